"""Opening a manifest, and reading its rows whatever program wrote it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import tiny
from tests.support.tables import CONFIG, Write, good, problems
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import checks
from textinv_ray.manifest.image_columns import schema
from textinv_ray.manifest.reader import Manifest
from textinv_ray.util.errors import UserError


def test_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifest.parquet").touch()
    expected = f"manifst.parquet: the manifest doesn't exist in {tmp_path}; did you mean 'manifest.parquet'?"
    with pytest.raises(UserError, match=re.escape(expected)):
        Manifest.open("manifst.parquet")


@pytest.mark.parametrize("by", ["environment", "folder"])
def test_a_missing_file_in_a_submitted_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.chdir(folder if by == "folder" else tmp_path)
    if by == "environment":
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(
        UserError, match=r"doesn't exist in .*`ray job submit --working-dir`: put the manifest"
    ):
        Manifest.open("m.parquet")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").touch()
    with pytest.raises(UserError, match=r"m.parquet: the manifest is an empty file$"):
        Manifest.open(str(tmp_path / "m.parquet"))


@pytest.mark.parametrize("data", [b"concept_id,images\n", b"PAR1" + b"x" * 50 + b"PAR1"])
def test_not_parquet(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.csv").write_bytes(data)
    with pytest.raises(UserError, match=r"m.csv: this is not a Parquet file \(or a damaged one\); pandas'"):
        Manifest.open(str(tmp_path / "m.csv"))


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"this is a folder, not a manifest; make one from it with `textinv"):
        Manifest.open(str(tmp_path))


def test_no_rows(write: Write) -> None:
    path = write(concept_id=pa.array([], pa.string()), images=pa.array([], pa.list_(pa.string())))
    with pytest.raises(UserError, match="the manifest has no rows; it needs one per concept"):
        Manifest.open(path)


def test_a_uri(write: Write) -> None:
    data = Path(write(**good())).read_bytes()
    fsspec.filesystem("memory").pipe("/team/m.parquet", data)
    opened = Manifest.open("memory://team/m.parquet")
    assert (opened.num_rows, opened.base) == (3, "memory://team")
    checks.check(opened, JobConfig.load("mini", ["data.allowed_protocols=[memory]"]))
    with pytest.raises(UserError, match=r"^memory://team/none.parquet: the manifest doesn't exist$"):
        Manifest.open("memory://team/none.parquet")
    with pytest.raises(UserError, match=r"^nosuch://x/m.parquet: the manifest can't be read: "):
        Manifest.open("nosuch://me:SECRET@x/m.parquet?SECRET")


def test_relative_images_start_at_the_manifest(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(write(**good()))
    monkeypatch.chdir(path.parent)
    assert Manifest.open("m.parquet").base == str(path.parent)
    assert Manifest.open(f"file://{path}").base == str(path.parent)


def test_types_of_other_writers(write: Write) -> None:
    large = pa.large_string()
    columns = {
        "concept_id": pa.array(["a", "b"], large),
        "images": pa.array([["x.png"], ["y.png"]], pa.large_list(large)),
        "placeholder_token": pa.array(["<x>", None]).dictionary_encode(),
        "initializer_token": pa.array(["cat", "cat"]).dictionary_encode(),
        "learnable_property": pa.array([None, None], pa.null()),
        "num_vectors": pa.array([1, 2], pa.int8()),
        "steps": pa.array([100.0, None], pa.float64()),
        "seed": pa.array([1, None], pa.uint16()),
        "learning_rate": pa.array([1, 2], pa.int32()),
        "templates": pa.array([["a {}"], []], pa.list_(large)),
        "captions": pa.array([["my <x>"], []], pa.list_(pa.string(), -1)),
        "prompts": pa.array([[], []], pa.list_(pa.null())),
        "tags": pa.array([{"n": 1, "s": "x"}, {"n": None, "s": "y"}]),
    }
    path = write(**columns)
    assert problems(path, tokenizers={"clip_l": tiny.tokenizer()}) == []
    first, second = Manifest.open(path).rows()
    assert first == {
        "concept_id": "a",
        "images": ["x.png"],
        "placeholder_token": "<x>",
        "initializer_token": "cat",
        "num_vectors": 1,
        "steps": 100,
        "seed": 1,
        "learning_rate": 1.0,
        "templates": ["a {}"],
        "captions": ["my <x>"],
        "tags": {"n": "1", "s": "x"},
    }
    assert isinstance(first["steps"], int)
    assert second["tags"] == {"s": "y"}


def test_embedded_images_are_read_only_when_asked(write: Write) -> None:
    images = pa.array([[{"bytes": b"x" * 100, "path": "a.png"}], [{"bytes": b"y", "path": None}]] * 2)
    path = write(**good(4, images=images))
    opened = Manifest.open(path)
    checks.check(opened, CONFIG)
    assert opened.count_images() == 4
    assert next(opened.rows())["images"] == [{"bytes": b"x" * 100, "path": "a.png"}]
    assert next(opened.rows(image_bytes=False))["images"] == [{"path": "a.png"}]
    only_bytes = pa.array([[{"bytes": b"x"}]] * 4)
    opened = Manifest.open(write(**good(4, images=only_bytes)))
    checks.check(opened, CONFIG)
    assert opened.count_images() == 4


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "concept_id": st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True),
                "images": st.lists(texts, min_size=1),
            },
            optional={
                "steps": st.integers(1, 1000),
                "seed": st.integers(0, 2**63 - 1),
                "learning_rate": st.floats(1e-6, 1),
                "templates": st.lists(texts.map(lambda text: text + "{}"), min_size=1),
                "tags": st.dictionaries(texts, texts, min_size=1),
                "initializer_token": texts,
                "vectors_added_at": st.lists(st.integers(1, 1000)),
                "regularization_weight": st.floats(0, 1),
                "norm_control": texts,
                "init_from": texts,
            },
        ),
        min_size=1,
        max_size=20,
    )
)
def test_rows_come_back_as_they_were_written(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema(())), path, row_group_size=3)
    assert list(Manifest.open(str(path)).rows()) == rows


def damaged(path: str, column: str) -> None:
    """Overwrites the middle of a column's data in the file's first row group."""
    chunk = next(
        found
        for index in range(pq.ParquetFile(path).metadata.num_columns)
        if (found := pq.ParquetFile(path).metadata.row_group(0).column(index)).path_in_schema.startswith(
            column
        )
    )
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    with Path(path).open("r+b") as file:
        file.seek(start + chunk.total_compressed_size // 3)
        file.write(b"\xff" * (chunk.total_compressed_size // 2))


@pytest.mark.parametrize("column", ["concept_id", "initializer_token"])
def test_a_text_that_its_dictionary_has_not(write: Write, column: str) -> None:
    """Arrow writes indices beyond a dictionary without a word."""
    indices = pa.array([0, 7], pa.int32())
    beyond = pa.DictionaryArray.from_arrays(indices, pa.array(["a"]), safe=False)
    columns = {"concept_id": ["a", "b"], "images": [["x.png"]] * 2, "initializer_token": ["cat"] * 2}
    manifest = Manifest.open(write(**{**columns, column: beyond}))
    with pytest.raises(
        UserError, match=rf"row 1, column '{column}': can't be read: Dictionary indices invalid"
    ):
        list(manifest.rows())


@pytest.mark.parametrize("column", ["concept_id", "images", "initializer_token"])
def test_a_damaged_page_is_named(write: Write, column: str) -> None:
    path = write(**good(7, images=[[f"{number}/{'x' * 50}.png"] for number in range(7)]))
    damaged(path, column)
    with pytest.raises(UserError) as error:
        list(checks.problems(Manifest.open(path), CONFIG))
    assert re.match(rf".*m.parquet: (row \d, )?column '{column}'(:)? can't be read", str(error.value))
    assert "\n" not in str(error.value)


def test_a_damaged_page_of_image_bytes_is_found_by_validate(write: Write) -> None:
    images = pa.array([[{"bytes": bytes(range(256)) * 40, "path": "a.png"}]] * 3)
    path = write(**good(3, images=images))
    damaged(path, "images.list.element.bytes")
    opened = Manifest.open(path)
    assert list(checks.problems(opened, CONFIG)) == []  # which doesn't read them
    with pytest.raises(UserError, match="column 'images' can't be read in row group 0"):
        list(checks.problems(opened, CONFIG, image_bytes=True))


@pytest.mark.parametrize("column", ["concept_id", "initializer_token", "templates", "images"])
@pytest.mark.parametrize("text", [b"caf\xe9", b"\xed\xa0\x80", b"\xff"])
def test_text_that_is_not_utf8_is_named_by_row(write: Write, column: str, text: bytes) -> None:
    texts = [b"a {}", text, b"c {}"]
    is_list = column in ("templates", "images")
    values = pa.array([[value] for value in texts] if is_list else texts)
    kind = pa.list_(pa.string()) if is_list else pa.string()
    flat = pa.Array.from_buffers(pa.string(), 3, pa.array(texts, pa.binary()).buffers())
    array = pa.ListArray.from_arrays(values.offsets, flat) if is_list else flat
    path = write(**good(3, **{column: array.cast(kind)}))
    with pytest.raises(
        UserError, match=rf"m.parquet: row 1, column '{column}': can't be read: a text isn't UTF-8"
    ):
        list(checks.problems(Manifest.open(path), CONFIG))


def test_an_encrypted_column_is_a_message(tmp_path: Path) -> None:
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):  # type: ignore[name-defined]
        def wrap_key(self, key: bytes, name: str) -> bytes:
            return key.hex().encode()

        def unwrap_key(self, key: bytes, name: str) -> bytes:
            return bytes.fromhex(key.decode())

    config = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["initializer_token"]}, plaintext_footer=True
    )
    properties = encryption.CryptoFactory(lambda _: Keys()).file_encryption_properties(
        encryption.KmsConnectionConfig(), config
    )
    table = pa.table(good())
    with pq.ParquetWriter(tmp_path / "m.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match=r"m.parquet: .*can't be read") as error:
        list(checks.problems(Manifest.open(str(tmp_path / "m.parquet")), CONFIG))
    assert "\n" not in str(error.value)
