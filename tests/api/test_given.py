"""Concepts as Python values: what they become in a manifest, and what is said of wrong ones."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.support import examples
from textinv_ray.api.given import Concepts, manifest_of
from textinv_ray.concepts.images import decode
from textinv_ray.manifest.columns import Row
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two pictures."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(examples.png(number))
    return tmp_path


def rows(concepts: Concepts, store: Store) -> list[Row]:
    return list(Manifest.open(manifest_of(concepts, store)).rows())


def test_a_mapping_of_names_to_paths(store: Store, folder: Path) -> None:
    """Relative ones start from the working directory, though the manifest lies in the output."""
    found = rows({"cat": ["1.png", Path("2.png"), "s3://bucket/3.png"], "one": "1.png"}, store)
    assert found == [
        {"concept_id": "cat", "images": [f"{folder}/1.png", f"{folder}/2.png", "s3://bucket/3.png"]},
        {"concept_id": "one", "images": [f"{folder}/1.png"]},
    ]


def test_rows_with_other_columns(store: Store, folder: Path) -> None:
    row = {"images": ["1.png"], "steps": 7, "tags": {"age": 3}, "prompts": ["a {}"], "learning_rate": 1}
    (found,) = rows({"cat": row}, store)
    assert found == {
        "concept_id": "cat",
        "images": [f"{folder}/1.png"],
        "steps": 7,
        "tags": {"age": "3"},
        "prompts": ["a {}"],
        "learning_rate": 1.0,
    }
    assert rows([{"concept_id": "cat", **row}], store) == [found]


def test_masks(store: Store, folder: Path) -> None:
    """As images; in memory though the images are paths, and the other way round."""
    mask = Image.new("L", (24, 20), 255)
    (found,) = rows({"cat": {"images": ["1.png", "2.png"], "masks": [None, mask]}}, store)
    assert found["images"] == [f"{folder}/1.png", f"{folder}/2.png"]
    nothing, given = found["masks"]
    assert nothing is None
    assert isinstance(given, dict)
    assert Image.open(io.BytesIO(given["bytes"] or b"")).size == (24, 20)
    (found,) = rows({"cat": {"images": [mask], "masks": ["1.png"]}}, store)
    assert found["masks"] == [f"{folder}/1.png"]
    table = pa.table({"concept_id": ["cat"], "images": [["1.png", "2.png"]], "masks": [["2.png", None]]})
    (found,) = rows(table, store)
    assert found["masks"] == [f"{folder}/2.png", None]
    with pytest.raises(UserError, match="masks must be a list, with None for an image without one"):
        rows({"cat": {"images": ["1.png"], "masks": "2.png"}}, store)


def test_pictures_in_memory(store: Store, folder: Path) -> None:
    """Bytes as they are; PIL images with the same pixels; beside them, paths."""
    data = (folder / "1.png").read_bytes()
    pixels = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    (found,) = rows({"cat": [data, Image.fromarray(pixels), "2.png"]}, store)
    first, second, third = found["images"]
    assert first == {"bytes": data, "path": None}
    assert isinstance(second, dict)
    assert second["bytes"] is not None
    assert (np.asarray(Image.open(io.BytesIO(second["bytes"]))) == pixels).all()
    assert third == {"bytes": None, "path": f"{folder}/2.png"}


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "F"]
)
def test_pil_images_of_every_mode_can_be_read(store: Store, mode: str) -> None:
    image = (
        Image.new("RGB", (8, 6), (200, 100, 50)).convert("L").convert("I").convert("I;16")
        if mode == "I;16"
        else (
            Image.new(mode, (8, 6))
            if mode in ("LAB", "HSV")
            else Image.new("RGB", (8, 6), (200, 100, 50)).convert(mode)
        )
    )
    (found,) = rows({"cat": [image]}, store)
    (source,) = found["images"]
    assert isinstance(source, dict)
    assert decode(source["bytes"] or b"", "x", 1000).size == (8, 6)


def test_a_photograph_is_upright_and_keeps_its_profile(store: Store) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "JPEG", exif=exif, icc_profile=b"a profile")
    (found,) = rows({"cat": [Image.open(buffer)]}, store)
    (source,) = found["images"]
    assert isinstance(source, dict)
    with Image.open(io.BytesIO(source["bytes"] or b"")) as stored:
        assert stored.size == (6, 8)
        assert stored.info["icc_profile"] == b"a profile"


def test_a_table_stays_as_it_is_but_for_relative_paths(store: Store, folder: Path) -> None:
    table = pa.table({"concept_id": ["cat"], "images": [["1.png", "/data/2.png"]], "steps": [3]})
    assert rows(table, store) == [
        {"concept_id": "cat", "images": [f"{folder}/1.png", "/data/2.png"], "steps": 3}
    ]
    embedded = pa.table(
        {"concept_id": ["cat"], "images": [[{"bytes": b"x", "path": "1.png"}, {"path": "1.png"}]]}
    )
    (found,) = rows(embedded, store)
    assert found["images"] == [{"bytes": b"x", "path": "1.png"}, {"bytes": None, "path": f"{folder}/1.png"}]


def test_a_manifest_is_not_written_again(store: Store) -> None:
    assert manifest_of("s3://bucket/m.parquet", store) == "s3://bucket/m.parquet"
    assert manifest_of(Path("m.parquet"), store) == "m.parquet"
    assert store.names("") == []


def test_the_same_concepts_have_the_same_manifest_and_others_another(store: Store) -> None:
    """Another job may read the one that is there."""
    image = Image.open("1.png")
    first = manifest_of({"cat": [image]}, store)
    assert manifest_of({"cat": [image]}, store) == first
    assert manifest_of({"cat": [image, image]}, store) != first
    assert len(store.names("")) == 2


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ({}, "none was given"),
        ([], "none was given"),
        (
            7,
            "expected the path of a manifest, a mapping of names to images, a list of rows, or a table, not int",
        ),
        (["cat"], r"concepts\[0\]: expected a mapping with concept_id and images, not 'cat'"),
        ([{"images": ["1.png"]}], r"concepts\[0\]: its concept_id must be a text, not None"),
        ({3: ["1.png"]}, "its concept_id must be a text, not 3"),
        ({"cat": None}, "'cat': its images are missing"),
        ({"cat": [3]}, r"'cat': images\[0\]: expected a path, a URI, bytes or a PIL image, not int"),
        ({"cat": np.zeros((2, 2, 3))}, r"images\[0\]: expected a path, .* not ndarray"),
        ({"cat": "."}, r"'cat': images\[0\]: .* is a folder; give its files"),
        ({"cat": ["file:x.png"]}, r"images\[0\]: file: URIs name an absolute path"),
        (
            {"cat": {"images": ["1.png"], "step": 3}},
            "'step' is not a column of a manifest; did you mean 'steps'",
        ),
        (
            {"cat": {"images": ["1.png"], "steps": "many"}},
            "'cat': steps must be of the type integer, not 'many'",
        ),
        (
            {"cat": {"images": ["1.png"], "captions": "x"}},
            "'cat': captions must be of the type list of strings",
        ),
        ({"cat": {"images": ["1.png"], "seed": 2**70}}, "'cat': seed must be of the type integer"),
    ],
)
def test_what_is_said_of_wrong_ones(store: Store, concepts: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        manifest_of(concepts, store)
    assert store.names("") == []
