"""Every field of the configuration and every column of the manifest, with values to try."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Annotated, Any, Literal, get_args, get_origin

from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import kinds
from textinv_ray.manifest.columns import Column

words = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=6)
prompts = words.map(lambda word: word + " {}")


def leaves(model: type[BaseModel] = JobConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted name, field) of all settings, those of nested models in place of the models."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def with_value(config: JobConfig, name: str, value: object) -> JobConfig:
    """The configuration with another value of the field with this dotted name."""
    return config.override([f"{name}={json.dumps(value)}"])


def value_of(config: JobConfig, name: str) -> Any:
    """The value of the field with this dotted name."""
    return reduce(getattr, name.split("."), config)


def setting_values(field: FieldInfo) -> st.SearchStrategy[Any]:
    """Values, other than none, that are valid for a field."""
    return _values(field.annotation, field.metadata)


def column_values(column: Column) -> st.SearchStrategy[Any]:
    """Values that a checked row may have in a column."""
    if column.choices:
        return st.sampled_from(column.choices)
    if column.has_placeholder:
        return st.lists(prompts, min_size=1, max_size=3)
    limits: dict[str, Any] = dict(column.limits)
    return {
        kinds.STRING: words,
        kinds.INTEGER: st.integers(limits.get(">=", 0), limits.get("<=", limits.get("<", 2**31) - 1)),
        kinds.NUMBER: st.floats(
            limits.get(">=", limits.get(">", 0)), limits.get("<=", 1), exclude_min=">" in limits
        ),
        kinds.STRINGS: st.lists(words, min_size=1, max_size=3),
        kinds.INTEGERS: st.lists(st.integers(1, 200), min_size=1, max_size=3).map(sorted),
        kinds.TAGS: st.dictionaries(words, words, min_size=1, max_size=2),
        kinds.IMAGES: st.lists(st.integers(0, 255).map(image), min_size=1, max_size=3),
        kinds.MASKS: st.lists(st.none() | st.integers(0, 255).map(image), min_size=2, max_size=2),
    }[column.kind]


def image(red: int) -> dict[str, Any]:
    """An embedded image of one colour."""
    return {"bytes": b"P6 2 2 255\n" + bytes((red, 30, 40)) * 4, "path": None}


def _values(annotation: Any, metadata: Sequence[Any]) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = arguments[1:]
        return _values(arguments[0], [part for item in inner for part in getattr(item, "metadata", [item])])
    if origin is Literal:
        return st.sampled_from(arguments)
    limit = _limits(metadata)
    if origin is tuple:
        elements = _values(arguments[0], ())
        return st.lists(elements, min_size=limit.get("min_length", 0), max_size=3, unique=True).map(sorted)
    if arguments:  # a union
        return st.one_of(*(_values(part, metadata) for part in arguments if part is not type(None)))
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        low, high = limit.get("ge", 0), limit.get("le", limit.get("lt", 2**20) - 1)
        return st.integers(low, high)
    if annotation is float:
        return st.floats(
            limit.get("ge", limit.get("gt", 0)),
            limit.get("le", limit.get("lt", 1000)),
            exclude_min="gt" in limit,
            exclude_max="lt" in limit,
        )
    assert annotation is str, annotation
    return prompts if limit.get("pattern") else words


def _limits(metadata: Sequence[Any]) -> dict[str, Any]:
    names = ("ge", "gt", "le", "lt", "min_length", "pattern")
    found = {name: getattr(item, name, None) for item in metadata for name in names if hasattr(item, name)}
    return {name: value for name, value in found.items() if value is not None}
