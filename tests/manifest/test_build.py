"""`textinv manifest`: a manifest from folders of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from tests.support import tiny
from tests.support.commands import textinv
from tests.support.tables import CONFIG
from textinv_ray.concepts import fetch
from textinv_ray.manifest import checks, image_files
from textinv_ray.manifest.build import Built, build
from textinv_ray.manifest.columns import Row
from textinv_ray.manifest.reader import Manifest
from textinv_ray.util.errors import UserError


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


def test_a_manifest_elsewhere_stays_as_it_is_when_writing_fails(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part of it would be a manifest as well, and concepts would be missing without a word."""
    arguments = ["manifest", str(pets), "-o", "memory://kept/m.parquet", "--embed"]
    assert textinv(*arguments) == 0
    before = fsspec.filesystem("memory").cat_file("/kept/m.parquet")
    last = max(path for path in pets.iterdir() if path.is_dir())
    (last / "metadata.jsonl").write_text("no json")
    assert textinv(*arguments) == 2
    assert fsspec.filesystem("memory").cat_file("/kept/m.parquet") == before


def test_a_manifest_that_cannot_be_written_is_a_message(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert textinv("manifest", str(pets), "-o", str(tmp_path / "file" / "m.parquet")) == 2
    assert "m.parquet: can't be written: " in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    assert textinv("manifest", str(pets), "-o", str(tmp_path / "folder")) == 2
    assert "folder: this is a folder" in capsys.readouterr().err


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path, "PNG")
    return path


def made(root: Path, **options: Any) -> tuple[dict[str, Row], Built]:
    """The rows by their concept_id. The manifest has no problems, and all its images are there."""
    out = root.parent / "m.parquet"
    built = build(str(root), str(out), **options)
    manifest = Manifest.open(str(out))
    checks.check(manifest, CONFIG, {"clip_l": tiny.tokenizer()}, image_bytes=True)
    rows = {row["concept_id"]: row for row in manifest.rows()}
    for row in rows.values():
        for image in row["images"]:
            assert fetch.fetch(image, base=manifest.base, config=CONFIG.data)
    return rows, built


def test_folders_in_any_script(tmp_path: Path) -> None:
    names = ["кошка", "собака", "猫", "my cat", "my-cat", "Straße", os.fsdecode(b"\xff")]
    for name in names:
        picture(tmp_path / "x" / name / "1.png")
    rows, built = made(tmp_path / "x")
    assert {"koshka", "sobaka", "my-cat", "Strasse"} < set(rows)
    assert len(rows) == len(names)
    assert rows["koshka"]["placeholder_token"] == "<кошка>"
    assert "'кошка' -> koshka" in built.renamed
    assert len(built.renamed) == len(names) - 1
    for line in built.renamed:
        line.encode()


@pytest.mark.parametrize("embed", [False, True])
def test_file_names_in_any_encoding(tmp_path: Path, embed: bool) -> None:
    names = [os.fsdecode(b"caf\xe9.png"), "ö.png", "a b%20.png", "#?.png"]
    for name in names:
        picture(tmp_path / "x" / "rex" / name)
    rows, built = made(tmp_path / "x", embed=embed)
    assert len(rows["rex"]["images"]) == len(names)
    assert any(line.startswith(r"rex/caf\xe9.png: its name isn't UTF-8") for line in built.notes)


@pytest.mark.parametrize("name", ["file:x", "~", "s3:", "data:"])
def test_folders_that_look_like_uris(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "x" / name / "1.png")
    build(str(tmp_path / "x"), str(tmp_path / "x" / "m.parquet"))
    manifest = Manifest.open(str(tmp_path / "x" / "m.parquet"))
    (row,) = manifest.rows()
    assert fetch.fetch(row["images"][0], base=manifest.base, config=CONFIG.data)


def test_every_kind_of_image_is_taken(tmp_path: Path) -> None:
    for index, suffix in enumerate(sorted(image_files.SUFFIXES)):
        picture(tmp_path / "x" / "rex" / f"{index}{suffix.upper() if index % 2 else suffix}")
    rows, _ = made(tmp_path / "x")
    assert len(rows["rex"]["images"]) == len(image_files.SUFFIXES)


def test_what_is_no_image_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "reads_heif", lambda: False)
    root = tmp_path / "x" / "rex"
    picture(root / "1.png")
    picture(root / "1-condlabel.png")
    picture(root / "mask" / "8.png")
    (root / "mask" / "1.png").write_bytes(b"<!doctype html><title>Log in</title>")
    (root / "2.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (root / "3.jpg").write_bytes(b"<!doctype html><title>Log in</title>")
    (root / "4.heic").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic")
    (root / "5.jpg").touch()
    os.mkfifo(root / "6.jpg")
    (root / "7.jpg").symlink_to(root / "nowhere")
    rows, built = made(tmp_path / "x")
    assert rows["rex"]["images"] == ["x/rex/1.png"]
    expected = {
        "1-condlabel.png": "a conditioning image, which the method has no use for",
        "mask/8.png": "a mask without an image of its name",
        "mask/1.png": "is an HTML page and not an image: the server may have answered with a login or an error",
        "2.jpg": "is a Git LFS pointer and not the image itself: run `git lfs pull`",
        "3.jpg": "is an HTML page and not an image: the server may have answered with a login or an error",
        "4.heic": "is a HEIC image, which needs another package: pip install 'textinv_ray[heic]'",
        "5.jpg": "is an empty file",
        "6.jpg": "is not a regular file",
        "7.jpg": "No such file or directory",
    }
    assert sorted(built.skipped) == sorted(f"rex/{name}: {why}" for name, why in expected.items())


@pytest.mark.parametrize("embed", [False, True])
def test_masks_beside_images(tmp_path: Path, embed: bool) -> None:
    """OneTrainer's names, and folders of masks; they go with their images when captions put these first."""
    root = tmp_path / "x" / "rex"
    for name in ("1.png", "2.jpg", "3.png", "4.png", "1-masklabel.png", "mask/3.png", "mask/1.png"):
        picture(root / name)
    (root / "3.txt").write_text("a {}")
    rows, built = made(tmp_path / "x", embed=embed)
    row = rows["rex"]
    names = [image if isinstance(image, str) else image["path"] for image in row["images"]]
    assert [str(name).rsplit("/", 1)[-1] for name in names] == ["3.png", "1.png", "2.jpg", "4.png"]
    if embed:
        assert [isinstance(mask, dict) and mask["bytes"] for mask in row["masks"]] == [
            (root / "mask" / "3.png").read_bytes(),
            (root / "1-masklabel.png").read_bytes(),
            False,
            False,
        ]
    else:
        assert row["masks"] == ["x/rex/mask/3.png", "x/rex/1-masklabel.png", None, None]
    assert "rex: masks of 2 of its 4 images" in built.notes
    assert built.skipped == []


def test_captions_beside_images(tmp_path: Path) -> None:
    root = tmp_path / "x" / "10_sks cat"
    for name in ("1.png", "2.png", "3.png", "4.png"):
        picture(root / name)
    (root / "2.txt").write_text("a photo of sks cat\n")
    (root / "3.caption").write_text("\ufeffa cat on a sofa", encoding="utf-8")
    (root / "4.txt").write_text("in the garden")
    (root / "notes.txt").write_text("mine")
    rows, built = made(tmp_path / "x")
    row = rows["sks"]
    assert row["images"] == [f"x/10_sks cat/{number}.png" for number in (2, 3, 4, 1)]
    assert row["captions"] == ["a photo of {} cat", "a {} on a sofa", "{}, in the garden"]
    assert (row["placeholder_token"], row["initializer_token"]) == ("<sks>", "cat")
    assert built.skipped == ["10_sks cat/notes.txt: not an image"]
    assert sorted(built.notes) == [
        "10_sks cat: 3 captions beside the images; '{}, ' was put before 1 that don't name the concept",
        "10_sks cat: a folder of kohya's scripts: 10 repeats are ignored, since `steps` says how long is "
        "learned; the placeholder is <sks>, the initializer cat",
    ]


def test_captions_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    root = tmp_path / "x" / "rex"
    for name in ("1.png", "2.png", "3.png"):
        picture(root / name)
    (root / "1.txt").write_bytes(b"caf\xe9")
    (root / "2.txt").write_text("x" * 5000)
    (tmp_path / "secret").write_text("SECRET")
    (root / "3.txt").symlink_to(tmp_path / "secret")
    rows, built = made(tmp_path / "x")
    assert "captions" not in rows["rex"]
    assert sorted(built.skipped) == [
        "rex/1.txt: isn't UTF-8 text",
        "rex/3.txt: not an image",
        "rex/the caption of 2.png: has more than 2000 characters",
    ]


@pytest.mark.parametrize("where", ["rex/metadata.jsonl", "metadata.jsonl"])
def test_metadata_of_hugging_face(tmp_path: Path, where: str) -> None:
    root = tmp_path / "x"
    picture(root / "rex" / "1.png")
    name = "1.png" if "/" in where else "rex/1.png"
    (root / where).write_text(f'{{"file_name": "{name}", "text": "a photo of rex at sea"}}\n')
    rows, built = made(root)
    assert rows["rex"]["captions"] == ["a photo of {} at sea"]
    assert built.skipped == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompts:\n- {} on a beach\n", 'line 2: .*; quote it: "{} on a beach"'),
        ("prompts:\n- {}\n", 'prompts must be a list of texts, not .*; quote it: "{}"'),
        ("placeholder_token: on\n", "placeholder_token must be text, not True; write it in quotes"),
        ("steps: 100000000000000000000", "steps must be a whole number, not 100000000000000000000"),
        ("seed: 1" + "0" * 5000, "a number has too many digits"),
        ('initializer_token: "\\ud800"', "there is half of a surrogate pair in the text"),
        ("tags: {a: {b: c}}", "tags must be names with a value each"),
        ("templates: ../../secret", "templates '../../secret' lies outside .*; put a copy of the file there"),
        ("templates: /etc/passwd", "templates '/etc/passwd' lies outside"),
        ("templates: link.txt", "templates 'link.txt' lies outside"),
        ("a: &a [*a]", "an alias stands within what it stands for"),
    ],
)
def test_settings_of_strangers(tmp_path: Path, text: str, message: str) -> None:
    root = tmp_path / "x" / "rex"
    picture(root / "1.png")
    (tmp_path / "secret").write_text("SECRET {}")
    (root / "link.txt").symlink_to(tmp_path / "secret")
    (root / "concept.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        made(tmp_path / "x")
    assert "SECRET" not in str(error.value)
    assert not (tmp_path / "m.parquet").exists()


def test_numbers_as_presets_have_them(tmp_path: Path) -> None:
    picture(tmp_path / "x" / "rex" / "1.png")
    (tmp_path / "x" / "rex" / "concept.yaml").write_text("learning_rate: 5e-4\n")
    rows, _ = made(tmp_path / "x")
    assert rows["rex"]["learning_rate"] == 5e-4


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "concept.yaml: is not a regular file"),
        ("outside", "concept.yaml: is a link to a file outside .*; put a copy in its place"),
        ("dangling", "concept.yaml: doesn't exist"),
    ],
)
def test_settings_that_are_no_file(tmp_path: Path, kind: str, message: str) -> None:
    root = tmp_path / "x" / "rex"
    picture(root / "1.png")
    (tmp_path / "outside").write_text("steps: 3")
    if kind == "pipe":
        os.mkfifo(root / "concept.yaml")
    else:
        target = tmp_path / "outside" if kind == "outside" else root / "nowhere"
        (root / "concept.yaml").symlink_to(target)
    with pytest.raises(UserError, match=message):
        made(tmp_path / "x")


@pytest.mark.parametrize("embed", [False, True])
def test_links_out_of_the_folder_are_not_followed(tmp_path: Path, embed: bool) -> None:
    picture(tmp_path / "elsewhere" / "1.png")
    root = tmp_path / "x" / "rex"
    picture(root / "1.png")
    (root / "2.png").symlink_to(root / "1.png")
    (root / "zz.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "x" / "other").symlink_to(tmp_path / "elsewhere")
    rows, built = made(tmp_path / "x", embed=embed)
    assert list(rows) == ["rex"]
    assert len(rows["rex"]["images"]) == 2
    assert built.skipped == [
        f"other: a link to a folder outside {tmp_path / 'x'}",
        f"rex/zz.png: a link to a file outside {tmp_path / 'x'}",
    ]
