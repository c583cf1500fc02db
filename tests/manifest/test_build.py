"""`textinv manifest`: a manifest from folders of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import textinv
from textinv_ray.manifest.reader import Manifest


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


def test_a_manifest_that_cannot_be_written_is_a_message(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert textinv("manifest", str(pets), "-o", str(tmp_path / "file" / "m.parquet")) == 2
    assert "m.parquet: can't be written: " in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    assert textinv("manifest", str(pets), "-o", str(tmp_path / "folder")) == 2
    assert "folder: this is a folder" in capsys.readouterr().err
