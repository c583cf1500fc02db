"""The commands, as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import textinv_ray
from tests.support import catalogue, examples
from tests.support.commands import REPOSITORY, script, textinv
from textinv_ray.concepts.word_files import store_word
from textinv_ray.config.job import JobConfig
from textinv_ray.config.machine import load_config
from textinv_ray.config.presets import preset_names
from textinv_ray.service.store.store import Store


def test_validate_says_that_nothing_is_wrong(
    pets: Path, tmp_path: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "m.parquet")
    textinv("manifest", str(pets), "-o", out)
    model = f"model.path={tiny_sd}"
    assert textinv("validate", out, "--set", model, "--check-images") == 0
    printed = capsys.readouterr()
    assert (
        printed.out.splitlines()[-1] == f"{out}: 2 concepts, 4 images; nothing wrong "
        "(checked with the configuration mini)"
    )
    assert printed.err == ""
    (pets / "rex" / "10.png").write_bytes(b"oops")
    assert textinv("validate", out, "--set", model) == 0
    assert textinv("validate", out, "--set", model, "--check-images") == 1
    printed = capsys.readouterr()
    assert "row 1 (rex): image pets/rex/10.png: is not an image of a known kind" in printed.out
    assert printed.err == "1 concept would fail for an image\n"


def test_validate_looks_at_masks(
    pets: Path, tmp_path: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "m.parquet")
    Image.new("L", (3, 3), 255).save(pets / "rex" / "10-masklabel.png")
    assert textinv("manifest", str(pets), "-o", out) == 0
    assert "rex: masks of 1 of its" in capsys.readouterr().out
    assert textinv("validate", out, "--set", f"model.path={tiny_sd}", "--check-images") == 1
    found = capsys.readouterr()
    assert "row 1 (rex): mask pets/rex/10-masklabel.png: has 3 x 3 pixels, but its image" in found.out
    assert found.err == "1 concept would fail for an image\n"


def test_the_words_that_concepts_start_from_are_checked_like_images(
    pets: Path, tmp_path: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pets / "rex" / "concept.yaml").write_text("init_from: none.safetensors?sig=SECRET\n")
    out = str(tmp_path / "m.parquet")
    assert textinv("manifest", str(pets), "-o", out) == 0
    assert textinv("validate", out, "--set", f"model.path={tiny_sd}", "--check-images") == 1
    found = capsys.readouterr()
    assert f"row 1 (rex): init_from {tmp_path}/none.safetensors: doesn't exist" in found.out
    assert "SECRET" not in found.out + found.err


@pytest.mark.parametrize(("dim", "code"), [(32, 0), (40, 1)])
def test_validate_knows_a_word_of_another_model(
    pets: Path, tmp_path: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str], dim: int, code: int
) -> None:
    word = {"clip_l": np.ones((1, dim), np.float32)}
    (tmp_path / "other.safetensors").write_bytes(store_word("<x>", word))
    (pets / "rex" / "concept.yaml").write_text("init_from: other.safetensors\n")
    out = str(tmp_path / "m.parquet")
    textinv("manifest", str(pets), "-o", out)
    model = f"model.path={tiny_sd}"
    assert textinv("validate", out, "--set", model, "--check-images") == code
    said = "the word was learned for another model: its vectors have 40 numbers, the model's 32"
    assert (said in capsys.readouterr().out) == bool(code)


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


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("gemma", "training.encoders: Stable Diffusion 1.x / 2.x has no gemma"),
        (
            "clip_h",
            "this Stable Diffusion 1.x / 2.x model has no clip_h (its text encoders: clip_l)",
        ),
    ],
)
@pytest.mark.parametrize("command", [["validate"], ["invert", "--dry-run"]])
def test_text_encoders_that_the_model_hasn_t(
    tmp_path: Path,
    tiny_sd: Path,
    capsys: pytest.CaptureFixture[str],
    encoder: str,
    message: str,
    command: list[str],
) -> None:
    path = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"concept_id": ["a"], "images": [["x.png"]]}), path)
    options = ["--set", f"model.path={tiny_sd}", "--set", f"training.encoders=[{encoder}]"]
    assert textinv(*command, path, *options) == 2
    assert message in capsys.readouterr().err


def test_validate_without_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "m.parquet")
    pq.write_table(pa.table({"concept_id": ["a"], "images": [["x.png"]]}), path)
    assert textinv("validate", path, "--set", f"model.path={tmp_path}/no-model") == 0
    note = f"not checked against the model's vocabulary: the model '{tmp_path}/no-model' doesn't exist"
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
        "--waves",
        "30",
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
    assert config.service.waves.first == 30
    assert given == {
        "output": "s3://b/out: x",
        "preset": None,
        "only": ["a", "b"],
        "limit": 3,
        "dry_run": True,
        "verbose": True,
    }


def test_settings_of_the_cluster_and_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTINV_SET", "service.workers=16 training.steps=7")
    job = load_config(None, ["training.steps=9"])
    assert (job.service.workers, job.training.steps) == (16, 9)


def test_the_job_script_is_the_same_command(tmp_path: Path) -> None:
    done = subprocess.run(
        script("invert_many", "--help"), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "--dry-run" in done.stdout
    assert "invert_many" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["validate", "m.parquet"],
        ["compare", "out", "out"],
        ["predictor", "fit", "out"],
        ["plan", "m.parquet", "-c", "sdxl", "--gpu", "l4", "--set", "training.initializer_token=cat"],
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_light_commands_import_nothing_heavy(tmp_path: Path, tiny_sd: Path, arguments: list[str]) -> None:
    pq.write_table(pa.table({"concept_id": ["a"], "images": [["x.png"]]}), tmp_path / "m.parquet")
    if arguments[0] == "validate":
        arguments = [*arguments, "--set", f"model.path={tiny_sd}"]
    if arguments[0] == "compare":
        examples.finish(Store(str(tmp_path / "out")), "a")
    if arguments[0] == "predictor":
        catalogue.output(tmp_path / "out", catalogue.examples(12))
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
