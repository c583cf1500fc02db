"""A manifest from the layout people have: a folder per concept with its images in it.

    pets/
      rex/      1.jpg 2.jpg 3.jpg concept.yaml
      minka/    a.png b.png

`concept.yaml` holds columns of the manifest (`initializer_token: dog`, ...). One `concepts.yaml` beside the
folders may do it for all: their names, with the columns below each.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from textinv_ray.config.training import read_templates
from textinv_ray.manifest.reader import COLUMNS, Kind
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact
from textinv_ray.util.text import nearest

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SETTINGS = {name: kind for name, kind in COLUMNS.items() if name != "images"}
_ROW_GROUP_BYTES = 64 * 2**20
_ROW_GROUP_ROWS = 10_000


@dataclass
class Built:
    """What `build` did."""

    concepts: int = 0
    """Rows written."""
    images: int = 0
    """Images in them."""
    skipped: list[str] = field(default_factory=list)
    """Files and folders left out, each with the reason."""
    renamed: list[str] = field(default_factory=list)
    """Folders whose name can't be a concept_id, with the id they got."""
    without_initializer: list[str] = field(default_factory=list)
    """Concepts that name no initializer_token."""


def build(folder: str, out: str, *, embed: bool = False) -> Built:
    """Writes the manifest `out` (path or fsspec URI) for the concepts in `folder`.

    Image URIs are relative to the manifest's own folder; `embed` stores the images' bytes instead.
    Raises UserError when there is nothing to write or a concept.yaml is wrong; then no file is written.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "isn't a folder" if root.exists() else "doesn't exist"
        raise UserError(f"{folder}: {what}; give the folder that holds one folder of images per concept")
    remote = "://" in out and not out.startswith("file://")
    if remote and not embed:
        raise UserError(f"{redact(out)}: a manifest elsewhere can't point at local images; add --embed")
    built = Built()
    common = _read_common(root)
    rows = _rows(root, common, built)
    first = next(rows, None)
    if first is None:
        raise UserError(_nothing(root))
    if remote:
        import fsspec

        with fsspec.open(out, "wb") as file:
            _write(first, rows, file, root, embed)
    else:
        path = Path(out.removeprefix("file://"))
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f".{path.name}.part")
        try:
            _write(first, rows, half, path.parent, embed)
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)
    return built


def _rows(root: Path, common: dict[str, dict[str, Any]], built: Built) -> Iterator[dict[str, Any]]:
    """One dict per concept: columns, and `images` as paths."""
    unused = set(common)
    for entry in sorted(root.iterdir(), key=_natural):
        if not entry.is_dir() or entry.name.startswith("."):
            if entry.name != "concepts.yaml":
                built.skipped.append(f"{entry.name}: not a concept's folder")
            continue
        settings = dict(common.get(entry.name, {}))
        unused.discard(entry.name)
        images = []
        for file in sorted(entry.iterdir(), key=_natural):
            name = f"{entry.name}/{file.name}"
            if file.name.startswith("."):
                built.skipped.append(f"{name}: hidden")
            elif file.name == "concept.yaml":
                if settings:
                    raise UserError(f"{file}: concepts.yaml describes this concept too; keep one of them")
                settings = _settings(_load_yaml(file), str(file), entry)
            elif file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES:
                images.append(file)
            else:
                built.skipped.append(f"{name}: {'a folder' if file.is_dir() else 'not an image'}")
        if not images:
            built.skipped.append(f"{entry.name}: has no images")
            continue
        concept_id = settings.pop("concept_id", None)
        if concept_id is None:
            concept_id = re.sub(r"[^A-Za-z0-9._-]+", "-", entry.name).strip("-") or "concept"
            if concept_id != entry.name:
                built.renamed.append(f"{entry.name!r} -> {concept_id}")
        if "initializer_token" not in settings:
            built.without_initializer.append(concept_id)
        built.concepts += 1
        built.images += len(images)
        yield {"concept_id": concept_id, "images": images, **settings}
    if unused:
        folders = [entry.name for entry in root.iterdir() if entry.is_dir()]
        name = min(unused)
        raise UserError(f"{root / 'concepts.yaml'}: there is no folder {name!r}{nearest(name, folders)}")


def _write(first: dict[str, Any], rows: Iterator[dict[str, Any]], file: Any, base: Path, embed: bool) -> None:
    """Row groups small enough to be held, so that any number of concepts and embedded images streams."""
    columns = schema(embed)
    with pq.ParquetWriter(file, columns) as writer:
        pending: list[dict[str, Any]] = []
        size = 0
        for row in itertools.chain([first], rows):
            if embed:
                row["images"] = [{"bytes": path.read_bytes(), "path": path.name} for path in row["images"]]
                size += sum(len(image["bytes"]) for image in row["images"])
            else:
                row["images"] = [Path(os.path.relpath(path, base)).as_posix() for path in row["images"]]
            pending.append(row)
            if size >= _ROW_GROUP_BYTES or len(pending) >= _ROW_GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(pending, columns))
                pending, size = [], 0
        if pending:
            writer.write_table(pa.Table.from_pylist(pending, columns))


def schema(embed: bool) -> pa.Schema:
    """Arrow schema of a manifest with all columns; `embed`: images as {bytes, path}, else as URIs."""
    arrow: dict[Kind, pa.DataType] = {
        "string": pa.string(),
        "integer": pa.int64(),
        "number": pa.float64(),
        "strings": pa.list_(pa.string()),
        "integers": pa.list_(pa.int64()),
        "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}) if embed else pa.string()),
        "tags": pa.map_(pa.string(), pa.string()),
    }
    return pa.schema([(name, arrow[kind]) for name, kind in COLUMNS.items()])


def _read_common(root: Path) -> dict[str, dict[str, Any]]:
    """concepts.yaml, if there is one: settings by folder name."""
    path = root / "concepts.yaml"
    if not path.is_file():
        return {}
    data = _load_yaml(path)
    return {str(name): _settings(value, f"{path}: {name}", root) for name, value in data.items()}


def _load_yaml(path: Path) -> dict[Any, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected lines such as 'initializer_token: dog'")
    return data


def _settings(data: Any, where: str, folder: Path) -> dict[str, Any]:
    """Checks one concept's settings. Ranges are the manifest's own business.

    `templates` may be the path, from `folder`, of a file with one per line.
    """
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected lines such as 'initializer_token: dog'")
    settings = {}
    for name, value in data.items():
        if name not in _SETTINGS:
            near = nearest(str(name), list(_SETTINGS))
            raise UserError(f"{where}: no such column {name!r}{near} (known: {', '.join(_SETTINGS)})")
        if value is None:
            continue
        if name == "templates" and isinstance(value, str):
            value = read_templates(str(folder / value))
        if not _fits(value, _SETTINGS[name]):
            raise UserError(f"{where}: {name} must be {_EXPECTED[_SETTINGS[name]]}, not {value!r}")
        settings[name] = {str(k): str(v) for k, v in value.items()} if _SETTINGS[name] == "tags" else value
    return settings


_EXPECTED: dict[Kind, str] = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "strings": "a list of texts",
    "integers": "a list of whole numbers",
    "tags": "names with a value each",
}


def _fits(value: Any, kind: Kind) -> bool:
    if kind == "string":
        return isinstance(value, str)
    if kind == "strings":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind == "integers":
        return isinstance(value, list) and all(_fits(item, "integer") for item in value)
    if kind == "tags":
        return isinstance(value, dict)
    return isinstance(value, int if kind == "integer" else (int, float)) and not isinstance(value, bool)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """2.png before 10.png."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _nothing(root: Path) -> str:
    layout = f"expected {root}/<concept>/*.{{{','.join(suffix[1:] for suffix in IMAGE_SUFFIXES)}}}"
    if any(path.suffix.lower() in IMAGE_SUFFIXES for path in root.iterdir()):
        return f"{root}: images lie directly in it; put each concept's into a folder of its own ({layout})"
    folders = [path for path in root.iterdir() if path.is_dir()]
    what = f"none of its {len(folders)} folders has images" if folders else "has no folders of images"
    return f"{root}: {what}; {layout}"
