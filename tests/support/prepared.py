"""A row of a manifest, and the concept that it becomes."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image

from textinv_ray.concepts import prepare
from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig

CONFIG = JobConfig.load("mini")


def png(color: str | tuple[int, int, int]) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (20, 30), color).save(buffer, "PNG")
    return buffer.getvalue()


ROW: dict[str, Any] = {
    "concept_id": "rex",
    "images": [{"bytes": png("red"), "path": "1.png"}, {"bytes": png("blue"), "path": None}],
    "initializer_token": "dog",
}


def make(row: dict[str, Any] | None = None, overrides: list[str] | None = None, **changes: Any) -> Concept:
    options: dict[str, Any] = {"base": "/", "resolution": 16, "model_identity": "model-1"}
    config = JobConfig.load("mini", overrides or [])
    extra = {name: changes.pop(name) for name in list(changes) if name in options}
    return prepare.make({**(row or ROW), **changes}, config, **{**options, **extra})
