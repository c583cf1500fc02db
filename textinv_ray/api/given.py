"""Concepts as Python values: they become a manifest in the output, which then is read like any other."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from textinv_ray.manifest.columns import COLUMNS
from textinv_ray.manifest.image_columns import IMAGE_COLUMNS, embedded_columns, schema
from textinv_ray.manifest.kinds import EmbeddedImage, ImageSource
from textinv_ray.manifest.uris import locate
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import brief, redact
from textinv_ray.util.text import nearest


class ArrowTable(Protocol):
    """A table of pyarrow, polars or pandas."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Arrow's C stream interface."""


Concepts = str | os.PathLike[str] | Mapping[str, object] | Iterable[Mapping[str, object]] | ArrowTable
"""The path or URI of a manifest; a mapping of concept_id to images, or to a row with `images`; a list of rows with
`concept_id` and `images`; or a table with the columns of a manifest. An image is a path or URI, the bytes of its file,
or a PIL image."""

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


def manifest_of(concepts: Concepts, store: Store) -> str:
    """The path or URI of the concepts' manifest. Unless they are one, it is written to the store.

    Its name has a digest of its content, so that no manifest takes the place of one that another job reads. Relative
    paths of images start from the working directory. Raises UserError for what can't be a manifest.
    """
    if isinstance(concepts, str | os.PathLike):
        return os.fspath(concepts)
    table = _table(concepts)
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(table, sink, compression="zstd")
    except pa.ArrowException as error:
        raise UserError(f"the concepts can't be a manifest: {error}") from None
    data = sink.getvalue().to_pybytes()
    name = f"manifest-{hashlib.sha256(data).hexdigest()[:12]}.parquet"
    store.write(name, data)
    return store.path(name) if store.is_local else f"{store.uri}/{name}"


def _table(concepts: Any) -> pa.Table:
    if hasattr(concepts, "__arrow_c_stream__"):
        return _with_absolute_paths(pa.table(concepts))
    if isinstance(concepts, Mapping):
        rows = [_row_of(concept_id, value) for concept_id, value in concepts.items()]
    elif isinstance(concepts, Iterable):
        rows = list(concepts)
    else:
        raise UserError(f"concepts: {_EXPECTED}, not {type(concepts).__name__}")
    if not rows:
        raise UserError(f"concepts: none was given; {_EXPECTED}")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(
                f"concepts[{number}]: expected a mapping with concept_id and images, not {brief(row)}"
            )
    return _from_rows([_checked(row, number) for number, row in enumerate(rows)])


_EXPECTED = "expected the path of a manifest, a mapping of names to images, a list of rows, or a table"


def _row_of(concept_id: object, value: object) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return {"concept_id": concept_id, **value}
    return {"concept_id": concept_id, "images": value}


def _checked(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The row with its images as a manifest has them. Raises UserError."""
    concept_id = row.get("concept_id")
    if not isinstance(concept_id, str):
        raise UserError(f"concepts[{number}]: its concept_id must be a text, not {brief(concept_id)}")
    for name in row:
        if name not in COLUMNS:
            near = nearest(str(name), list(COLUMNS)) or f" (known: {', '.join(COLUMNS)})"
            raise UserError(f"{brief(concept_id)}: {brief(name)} is not a column of a manifest{near}")
    images = row.get("images")
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        images = [images]
    if not isinstance(images, Iterable):
        raise UserError(f"{brief(concept_id)}: its images are missing: give a list of paths or of PIL images")
    sources = [_source(image, f"{brief(concept_id)}: images[{i}]") for i, image in enumerate(images)]
    checked = {**row, "images": sources}
    if (masks := row.get("masks")) is not None:
        if isinstance(masks, str | bytes | Mapping) or not isinstance(masks, Iterable):
            raise UserError(f"{brief(concept_id)}: masks must be a list, with None for an image without one")
        checked["masks"] = [
            None if mask is None else _source(mask, f"{brief(concept_id)}: masks[{i}]")
            for i, mask in enumerate(masks)
        ]
    return checked


def _source(image: object, place: str) -> ImageSource:
    """An image as a manifest has it. `place`: for messages."""
    if isinstance(image, bytes):
        return {"bytes": image, "path": None}
    if isinstance(image, Image.Image):
        return {"bytes": _png(image), "path": getattr(image, "filename", None) or None}
    if isinstance(image, Mapping) and set(image) <= {"bytes", "path"}:
        return cast(EmbeddedImage, dict(image))
    if not isinstance(image, str | os.PathLike):
        raise UserError(f"{place}: expected a path, a URI, bytes or a PIL image, not {type(image).__name__}")
    path = _absolute(os.fspath(image), place)
    if os.path.isdir(path):
        raise UserError(
            f"{place}: {redact(path)} is a folder; give its files, as sorted(Path(...).glob('*.png'))"
        )
    return path


def _absolute(path: str, place: str) -> str:
    try:
        return locate(path, os.getcwd())[1]
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None


def _png(image: Image.Image) -> bytes:
    """A PNG with the image's pixels as they are looked at, and its colour profile."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in _PNG_MODES:
        upright = upright.convert("RGB")
    buffer = io.BytesIO()
    profile = image.info.get("icc_profile") if upright.mode == image.mode else None
    upright.save(buffer, "PNG", icc_profile=profile)
    return buffer.getvalue()


def _from_rows(rows: list[dict[str, Any]]) -> pa.Table:
    """A table with the columns that the rows have. Raises UserError for a value of the wrong type."""
    embedded = embedded_columns(rows)
    for name in embedded:
        for row in rows:
            if row.get(name) is not None:
                row[name] = [
                    {"bytes": None, "path": image} if isinstance(image, str) else image for image in row[name]
                ]
    arrays, names = [], []
    for field in schema(embedded):
        if not any(field.name in row for row in rows):
            continue
        values = []
        for row in rows:
            value = row.get(field.name)
            if isinstance(value, Mapping):  # Arrow takes maps as pairs
                value = [(str(key), str(item)) for key, item in value.items()]
            try:
                if isinstance(value, str) and pa.types.is_list(field.type):
                    raise TypeError  # Arrow would take its letters
                pa.array([value], field.type)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                kind = COLUMNS[field.name].kind.expected
                raise UserError(
                    f"{brief(row['concept_id'])}: {field.name} must be of the type {kind}, not {brief(value)}"
                ) from None
            values.append(value)
        arrays.append(pa.array(values, field.type))
        names.append(field.name)
    return pa.table(arrays, names=names)


def _with_absolute_paths(table: pa.Table) -> pa.Table:
    """The table with images that can be found from elsewhere. What isn't a column of images stays as it is."""
    for name in IMAGE_COLUMNS:
        if table.schema.names.count(name) != 1:
            continue
        index, kind = table.schema.get_field_index(name), table.schema.field(name).type
        if COLUMNS[name].kind.accepts(kind):
            moved = [
                None if row is None else [_moved(image, name) for image in row]
                for row in table[name].to_pylist()
            ]
            table = table.set_column(index, name, pa.array(moved, kind))
    return table


def _moved(image: Any, column: str) -> Any:
    if isinstance(image, str):
        return _absolute(image, column)
    if isinstance(image, dict) and image.get("path") and image.get("bytes") is None:
        return {**image, "path": _absolute(image["path"], column)}
    return image
