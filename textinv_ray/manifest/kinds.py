"""The kinds of columns: which Arrow types each accepts, and how its values become plain Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, TypedDict

import pyarrow as pa
from pyarrow import types


class EmbeddedImage(TypedDict, total=False):
    """An image as Hugging Face datasets store it. One of the two may be missing or None."""

    bytes: bytes | None
    """The encoded image file."""
    path: str | None
    """Its name, path or URI."""


ImageSource = str | EmbeddedImage
"""An image of a row: its URI or path, or its embedded bytes."""


@dataclass(frozen=True)
class Kind:
    """A kind of column."""

    expected: str
    """Its Arrow types, for messages and documentation."""
    arrow: pa.DataType
    """The Arrow type that `textinv manifest` writes."""
    accepts: Callable[[pa.DataType], bool]
    """Whether a column of this Arrow type can be read. Columns with no value at all (null) are always accepted."""
    plain: Callable[[Any], Any]
    """Converts a value of pyarrow or NumPy to plain Python. Raises ValueError."""
    in_yaml: str
    """What a value in concept.yaml must be, for messages; empty: can't be given there."""
    fits_yaml: Callable[[object], bool]
    """Whether a value read from concept.yaml is of this kind."""
    empty_is_absent: bool = False
    """Whether an empty list means the same as null."""


def _is_string(found: pa.DataType) -> bool:
    if types.is_dictionary(found):
        found = found.value_type
    return types.is_string(found) or types.is_large_string(found)


def _is_number(found: pa.DataType) -> bool:
    # Integers, too, may be stored as floats: pandas does so when some are missing.
    return types.is_integer(found) or types.is_floating(found)


def _is_list_of(is_element: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    def accepts(found: pa.DataType) -> bool:
        if not (types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)):
            return False
        return types.is_null(found.value_type) or is_element(found.value_type)

    return accepts


def _is_image(found: pa.DataType) -> bool:
    if not types.is_struct(found):
        return _is_string(found)
    fields = {field.name: field.type for field in found}
    if not fields or not set(fields) <= {"bytes", "path"}:
        return False
    data, path = fields.get("bytes", pa.null()), fields.get("path", pa.null())
    return (types.is_null(data) or types.is_binary(data) or types.is_large_binary(data)) and (
        types.is_null(path) or _is_string(path)
    )


def _is_tags(found: pa.DataType) -> bool:
    if types.is_map(found):
        return _is_string(found.key_type) and _is_scalar(found.item_type)
    return types.is_struct(found) and all(_is_scalar(field.type) for field in found)


def _is_scalar(found: pa.DataType) -> bool:
    return not types.is_nested(found) and not types.is_binary(found) and not types.is_large_binary(found)


def _whole(value: Any) -> int:
    if int(value) != value:
        raise ValueError(f"must be a whole number, not {value}")
    return int(value)


def _tags(value: Any) -> dict[str, str]:
    items = value.items() if isinstance(value, Mapping) else value
    return {str(key): str(item) for key, item in items if item is not None}


def _images(values: Any) -> list[ImageSource]:
    """The images; in place of null one without bytes and path, which fails its concept when it is fetched."""
    return [{} if value is None else value for value in values]


def _masks(values: Any) -> list[ImageSource | None]:
    """The masks; None for an image without one, be it null or a struct of nulls."""
    return [
        None if isinstance(value, Mapping) and value.get("bytes") is None and not value.get("path") else value
        for value in values
    ]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | date)


def _is_all(is_element: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(is_element, value))


STRING = Kind("string", pa.string(), _is_string, str, "text", lambda value: isinstance(value, str))
INTEGER = Kind("integer", pa.int64(), _is_number, _whole, "a whole number", _is_int)
NUMBER = Kind(
    "number",
    pa.float64(),
    _is_number,
    float,
    "a number",
    lambda value: _is_int(value) or isinstance(value, float),
)
STRINGS = Kind(
    "list of strings",
    pa.list_(pa.string()),
    _is_list_of(_is_string),
    list,
    "a list of texts",
    _is_all(lambda value: isinstance(value, str)),
    empty_is_absent=True,
)
INTEGERS = Kind(
    "list of integers",
    pa.list_(pa.int64()),
    _is_list_of(types.is_integer),
    lambda values: [_whole(value) for value in values],
    "a list of whole numbers",
    _is_all(_is_int),
)
IMAGES = Kind(
    "list of strings (URIs) or list of {bytes, path} structs",
    pa.list_(pa.string()),
    _is_list_of(_is_image),
    _images,
    "",
    lambda value: False,
)
MASKS = Kind(
    "list of strings (URIs) or list of {bytes, path} structs, with nulls",
    pa.list_(pa.string()),
    _is_list_of(_is_image),
    _masks,
    "",
    lambda value: False,
    empty_is_absent=True,
)
TAGS = Kind(
    "map of strings, or struct",
    pa.map_(pa.string(), pa.string()),
    _is_tags,
    _tags,
    "names with a value each",
    lambda value: isinstance(value, dict) and all(map(_is_plain, [*value, *value.values()])),
    empty_is_absent=True,
)
EMBEDDED_IMAGES = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
"""Arrow type of a column of images, or of masks, with their bytes in it."""

OF_TYPE: dict[object, Kind] = {
    str: STRING,
    int: INTEGER,
    float: NUMBER,
    list[str]: STRINGS,
    list[int]: INTEGERS,
    list[ImageSource]: IMAGES,
    list[ImageSource | None]: MASKS,
    dict[str, str]: TAGS,
}
"""The kind of a column whose plain values have this type."""
