"""The commands, as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import textinv_ray
from tests.support.commands import REPOSITORY, script, textinv
from textinv_ray.cli import jobs
from textinv_ray.config.job import JobConfig, preset_names
from textinv_ray.manifest.reader import Manifest


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two concepts with three and one images, and things to skip."""
    root = tmp_path / "pets"
    for name in ("rex/10.png", "rex/2.JPG", "rex/1.webp", "my cat/a.jpeg"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(path)
    (root / "rex" / "notes.txt").touch()
    (root / "rex" / ".hidden.png").touch()
    (root / "rex" / "more").mkdir()
    (root / "empty").mkdir()
    (root / ".git").mkdir()
    (root / "readme.md").touch()
    (root / "rex" / "concept.yaml").write_text("initializer_token: dog\nsteps: 9\ntags: {age: 3}\n")
    return root


def test_a_manifest_from_folders(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "m.parquet"
    assert textinv("manifest", str(pets), "-o", str(out)) == 0
    cat, rex = Manifest.open(str(out)).rows()
    assert cat == {"concept_id": "my-cat", "images": ["../pets/my cat/a.jpeg"]}
    assert rex == {
        "concept_id": "rex",
        "images": ["../pets/rex/1.webp", "../pets/rex/2.JPG", "../pets/rex/10.png"],
        "initializer_token": "dog",
        "steps": 9,
        "tags": {"age": "3"},
    }
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line for line in lines if line.startswith("skipped")) == [
        "skipped: .git: not a concept's folder",
        "skipped: empty: has no images",
        "skipped: readme.md: not a concept's folder",
        "skipped: rex/.hidden.png: hidden",
        "skipped: rex/more: a folder",
        "skipped: rex/notes.txt: not an image",
    ]
    assert "renamed: 'my cat' -> my-cat" in lines
    assert f"{out}: 2 concepts, 4 images" in lines
    assert lines[-1].startswith(
        "1 concept without initializer_token (my-cat): name a near word in concept.yaml"
    )
    assert not list(out.parent.glob(".*"))


def test_embedded_images(pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    assert textinv("manifest", str(pets), "-o", str(out), "--embed") == 0
    _, rex = Manifest.open(str(out)).rows()
    assert [image["path"] for image in rex["images"] if not isinstance(image, str)] == [
        "1.webp",
        "2.JPG",
        "10.png",
    ]
    assert rex["images"][0] == {"bytes": (pets / "rex" / "1.webp").read_bytes(), "path": "1.webp"}


def test_one_file_for_all_concepts(pets: Path, tmp_path: Path) -> None:
    (pets / "rex" / "concept.yaml").unlink()
    (pets / "concepts.yaml").write_text(
        "rex: {initializer_token: dog}\nmy cat: {concept_id: tom, captions: ['{}']}\n"
    )
    assert textinv("manifest", str(pets), "-o", str(tmp_path / "m.parquet")) == 0
    cat, rex = Manifest.open(str(tmp_path / "m.parquet")).rows()
    assert (cat["concept_id"], cat["captions"], rex["initializer_token"]) == ("tom", ["{}"], "dog")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "rex/concept.yaml",
            "initializer: dog",
            "no such column 'initializer'; did you mean 'initializer_token'?",
        ),
        ("rex/concept.yaml", "images: [a.png]", "no such column 'images'"),
        ("rex/concept.yaml", "steps: many", "rex/concept.yaml: steps must be a whole number, not 'many'"),
        ("rex/concept.yaml", "steps: true", "steps must be a whole number, not True"),
        ("rex/concept.yaml", "captions: one", "captions must be a list of texts, not 'one'"),
        ("rex/concept.yaml", "dog", "expected lines such as 'initializer_token: dog'"),
        ("rex/concept.yaml", "a: [", "rex/concept.yaml is not valid YAML"),
        (
            "concepts.yaml",
            "rexx: {steps: 3}",
            "concepts.yaml: there is no folder 'rexx'; did you mean 'rex'?",
        ),
        (
            "concepts.yaml",
            "rex: {step: 3}",
            "concepts.yaml: rex: no such column 'step'; did you mean 'steps'?",
        ),
        ("concepts.yaml", "rex: 5", "concepts.yaml: rex: expected lines such as"),
        ("concepts.yaml", "rex: {steps: 3}", "concepts.yaml describes this concept too; keep one of them"),
    ],
)
def test_wrong_settings_of_a_concept(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, message: str
) -> None:
    (pets / file).write_text(text)
    assert textinv("manifest", str(pets), "-o", str(tmp_path / "m.parquet")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m.parquet").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no folders of images; expected "),
        (["a/b.txt"], "none of its 1 folders has images; expected "),
        (["a.png"], "images lie directly in it; put each concept's into a folder of its own (expected "),
    ],
)
def test_folders_without_concepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: list[str], message: str
) -> None:
    root = tmp_path / "x"
    root.mkdir()
    for file in files:
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).touch()
    assert textinv("manifest", str(root), "-o", str(tmp_path / "m.parquet")) == 2
    assert message in capsys.readouterr().err


def test_templates_from_a_file(pets: Path, tmp_path: Path) -> None:
    (pets / "rex" / "concept.yaml").write_text("initializer_token: dog\ntemplates: ../small.txt\n")
    (pets / "small.txt").write_text("a photo of a {}\nmy {}\n")
    out = tmp_path / "m.parquet"
    assert textinv("manifest", str(pets), "-o", str(out)) == 0
    rows = {row["concept_id"]: row for row in Manifest.open(str(out)).rows()}
    assert rows["rex"]["templates"] == ["a photo of a {}", "my {}"]


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("manifest", str(tmp_path / "x")) == 2
    assert (
        "doesn't exist; give the folder that holds one folder of images per concept"
        in capsys.readouterr().err
    )


def test_a_remote_manifest_needs_its_images_inside(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("manifest", str(pets), "-o", "memory://out/m.parquet") == 2
    assert "a manifest elsewhere can't point at local images; add --embed" in capsys.readouterr().err
    assert textinv("manifest", str(pets), "-o", "memory://out/m.parquet", "--embed") == 0
    assert Manifest.open("memory://out/m.parquet").count_images() == 4


def test_validate_says_that_nothing_is_wrong(
    pets: Path, tmp_path: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "m.parquet")
    textinv("manifest", str(pets), "-o", out)
    model = f"model.path={tiny_sd}"
    assert textinv("validate", out, "--set", model, "--check-images") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == f"{out}: 2 concepts, 4 images; nothing wrong"
    assert printed.err == ""
    (pets / "rex" / "10.png").write_bytes(b"oops")
    assert textinv("validate", out, "--set", model) == 0
    assert textinv("validate", out, "--set", model, "--check-images") == 1
    printed = capsys.readouterr()
    assert "row 1 (rex): image pets/rex/10.png: is not an image of a known kind" in printed.out
    assert printed.err == "1 concept would fail for an image\n"


def test_validate_says_everything_that_is_wrong(
    tmp_path: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "m.parquet")
    columns = {
        "concept_id": ["a", "b"],
        "images": [["x.png"], []],
        "placeholder_token": ["cat", "<b>"],
        "step": [1, 2],
    }
    pq.write_table(pa.table({**columns, "step": [1, 2]}), path)
    assert textinv("validate", path, "--set", f"model.path={tiny_sd}") == 2
    assert capsys.readouterr().err == (
        f"error: {path}: 3 problems in the manifest\n"
        "  column 'step': is not a column of a manifest; did you mean 'steps'?\n"
        "  row 0 (a), column 'placeholder_token': 'cat' is already a word of the model's tokenizer; "
        "use a new one like '<cat>'\n"
        "  row 1 (b), column 'images': has no images; give 1 or more (3 to 5 are best)\n"
    )


def test_validate_without_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"concept_id": ["a"], "images": [["x.png"]]}), path)
    assert textinv("validate", path, "--set", f"model.path={tmp_path}/no-model") == 0
    note = f"not checked against the model's vocabulary: the tokenizer of the model {tmp_path}/no-model can't"
    assert capsys.readouterr().err.startswith(note)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "none.parquet"], "error: none.parquet: the manifest doesn't exist"),
        (["invert", "x", "--config", "sd115"], "error: no configuration 'sd115'; did you mean"),
        (["invert", "x", "--set", "training.step=1"], "training.step: no such field; did you mean 'steps'?"),
        (["invert"], "MANIFEST"),
        (["invert", "x", "--limit", "0"], "--limit"),
        (["nothing"], "No such command"),
    ],
)
def test_usage_errors_are_one_message_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert textinv(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("code", [0, 1, 2])
def test_invert_hands_over_to_the_service(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    calls: list[tuple[str, JobConfig, dict[str, Any]]] = []

    def invert(path: str, config: JobConfig, **options: Any) -> int:
        calls.append((path, config, options))
        return code

    run = types.ModuleType("textinv_ray.service.driver.run")
    monkeypatch.setattr(run, "invert", invert, raising=False)
    monkeypatch.setitem(sys.modules, "textinv_ray.service.driver.run", run)
    import textinv_ray.service.driver

    monkeypatch.setattr(textinv_ray.service.driver, "run", run, raising=False)
    options = [
        "--output",
        "s3://b/out: x",
        "--only",
        "a, b,",
        "--limit",
        "3",
        "--set",
        "training.steps=5",
        "-v",
    ]
    assert textinv("invert", "m.parquet", *options, "--dry-run") == code
    ((path, config, given),) = calls
    assert path == "m.parquet"
    assert (config.training.steps, config.service.output) == (5, "s3://b/out: x")
    assert given == {
        "output": "s3://b/out: x",
        "only": ["a", "b"],
        "limit": 3,
        "dry_run": True,
        "verbose": True,
    }


def test_settings_of_the_cluster_and_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTINV_SET", "service.workers=16 training.steps=7")
    job = jobs._load(None, ["training.steps=9"])
    assert (job.service.workers, job.training.steps) == (16, 9)


def test_the_job_script_is_the_same_command(tmp_path: Path) -> None:
    done = subprocess.run(
        script("invert_many", "--help"), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "--dry-run" in done.stdout
    assert "invert_many" in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "m.parquet"]])
def test_light_commands_import_nothing_heavy(tmp_path: Path, tiny_sd: Path, arguments: list[str]) -> None:
    pq.write_table(pa.table({"concept_id": ["a"], "images": [["x.png"]]}), tmp_path / "m.parquet")
    if arguments[0] == "validate":
        arguments = [*arguments, "--set", f"model.path={tiny_sd}"]
    script = (
        "import sys\nfrom textinv_ray.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'diffusers'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


# The program itself


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("--version") == 0
    assert capsys.readouterr().out == f"textinv_ray {textinv_ray.__version__}\n"


def test_python_m() -> None:
    command = [sys.executable, "-m", "textinv_ray", "--version"]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (shown.returncode, shown.stdout) == (0, f"textinv_ray {textinv_ray.__version__}\n")


def test_the_package_is_typed() -> None:
    """By PEP 561."""
    assert (Path(textinv_ray.__file__).parent / "py.typed").is_file()


def test_help_names_every_preset(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert textinv("invert", "--help") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in preset_names())
