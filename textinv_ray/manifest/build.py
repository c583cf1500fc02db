"""Makes a manifest from a folder that has one folder of images per concept.

    pets/
      rex/      1.jpg 2.jpg 3.jpg concept.yaml
      minka/    a.png b.png

`concept.yaml` sets columns of the manifest (`initializer_token: dog`, ...). Instead, one `concepts.yaml` beside the
folders may set those of all: each folder's name, with its columns below it.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from textinv_ray.config.training import read_templates
from textinv_ray.manifest.columns import COLUMNS, schema
from textinv_ray.manifest.kinds import ImageSource
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact
from textinv_ray.util.text import nearest

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SETTINGS = {name: column for name, column in COLUMNS.items() if column.kind.in_yaml}
_ROW_GROUP_BYTES = 64 * 2**20
_ROW_GROUP_ROWS = 10_000


Settings = dict[str, object]
"""Columns of a row and their values, as concept.yaml gives them."""


@dataclass
class Built:
    """What `build` wrote, and what it left out."""

    concepts: int = 0
    """Number of rows written."""
    images: int = 0
    """Number of images in all rows."""
    skipped: list[str] = field(default_factory=list)
    """Files and folders left out, each with the reason."""
    renamed: list[str] = field(default_factory=list)
    """Folders whose name can't be a concept_id, each with the id that was made of it."""
    without_initializer: list[str] = field(default_factory=list)
    """Ids of the concepts without an initializer_token."""


@dataclass(frozen=True)
class _Concept:
    """A row to write."""

    images: list[Path]
    settings: Settings

    def row(self, base: Path, embed: bool) -> dict[str, object]:
        """All columns; images with their bytes, or as paths from `base`."""
        images: list[ImageSource]
        if embed:
            images = [{"bytes": path.read_bytes(), "path": path.name} for path in self.images]
        else:
            images = [Path(os.path.relpath(path, base)).as_posix() for path in self.images]
        return {**self.settings, "images": images}


def build(folder: str, out: str, *, embed: bool = False) -> Built:
    """Writes a manifest of the concepts in `folder` to `out`, a path or fsspec URI.

    Images are stored as paths relative to the manifest's folder; with `embed`, their bytes are stored instead.
    Raises UserError if there is no concept, or a concept.yaml is wrong; then a local `out` is not touched.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "isn't a folder" if root.exists() else "doesn't exist"
        raise UserError(f"{folder}: {what}; give the folder that holds one folder of images per concept")
    remote = "://" in out and not out.startswith("file://")
    if remote and not embed:
        raise UserError(f"{redact(out)}: a manifest elsewhere can't point at local images; add --embed")
    built = Built()
    concepts = _concepts(root, built)
    first = next(concepts, None)
    if first is None:
        raise UserError(_nothing(root))
    concepts = itertools.chain([first], concepts)
    if remote:
        import fsspec

        with fsspec.open(out, "wb") as file:
            _write(concepts, file, root, embed)
    else:
        path = Path(out.removeprefix("file://"))
        partial = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
        except OSError as error:
            raise UserError(f"{out}: can't be written: {error.strerror}") from None
        try:
            with partial.open("wb") as file:
                _write(concepts, file, path.parent, embed)
            partial.replace(path)
        except IsADirectoryError:
            raise UserError(f"{out}: this is a folder; give the path of the file to write") from None
        finally:
            partial.unlink(missing_ok=True)
    return built


def _concepts(root: Path, built: Built) -> Iterator[_Concept]:
    """Reads the folders one by one and counts them in `built`. Raises UserError."""
    common = _read_common(root)
    unused = set(common)
    for entry in sorted(root.iterdir(), key=_natural):
        if not entry.is_dir() or entry.name.startswith("."):
            if entry.name != "concepts.yaml":
                built.skipped.append(f"{entry.name}: not a concept's folder")
            continue
        unused.discard(entry.name)
        concept = _concept(entry, common.get(entry.name, {}), built)
        if not concept.images:
            built.skipped.append(f"{entry.name}: has no images")
            continue
        if "concept_id" not in concept.settings:
            concept_id = re.sub(r"[^A-Za-z0-9._-]+", "-", entry.name).strip("-") or "concept"
            concept.settings["concept_id"] = concept_id
            if concept_id != entry.name:
                built.renamed.append(f"{entry.name!r} -> {concept_id}")
        if "initializer_token" not in concept.settings:
            built.without_initializer.append(str(concept.settings["concept_id"]))
        built.concepts += 1
        built.images += len(concept.images)
        yield concept
    if unused:
        folders = [entry.name for entry in root.iterdir() if entry.is_dir()]
        name = min(unused)
        raise UserError(f"{root / 'concepts.yaml'}: there is no folder {name!r}{nearest(name, folders)}")


def _concept(folder: Path, common: Settings, built: Built) -> _Concept:
    """The images and settings of one folder. `common`: its settings in concepts.yaml. Raises UserError."""
    images, settings = [], dict(common)
    for file in sorted(folder.iterdir(), key=_natural):
        name = f"{folder.name}/{file.name}"
        if file.name.startswith("."):
            built.skipped.append(f"{name}: hidden")
        elif file.name == "concept.yaml":
            if common:
                raise UserError(f"{file}: concepts.yaml describes this concept too; keep one of them")
            settings = _settings(_load_yaml(file), str(file), folder)
        elif file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES:
            images.append(file)
        else:
            built.skipped.append(f"{name}: {'a folder' if file.is_dir() else 'not an image'}")
    return _Concept(images, settings)


def _write(concepts: Iterator[_Concept], file: IO[bytes], base: Path, embed: bool) -> None:
    """Writes row groups small enough to be held in memory, whatever the number of concepts."""
    columns = schema(embed)
    with pq.ParquetWriter(file, columns) as writer:
        pending: list[dict[str, object]] = []
        size = 0
        for concept in concepts:
            pending.append(concept.row(base, embed))
            if embed:
                size += sum(path.stat().st_size for path in concept.images)
            if size >= _ROW_GROUP_BYTES or len(pending) >= _ROW_GROUP_ROWS:
                writer.write_table(pa.Table.from_pylist(pending, columns))
                pending, size = [], 0
        if pending:
            writer.write_table(pa.Table.from_pylist(pending, columns))


def _read_common(root: Path) -> dict[str, Settings]:
    """The settings in concepts.yaml by folder name; empty without such a file."""
    path = root / "concepts.yaml"
    if not path.is_file():
        return {}
    data = _load_yaml(path)
    return {str(name): _settings(value, f"{path}: {name}", root) for name, value in data.items()}


def _load_yaml(path: Path) -> dict[object, object]:
    """The mapping in a YAML file; empty for an empty file. Raises UserError."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    return _mapping(data, str(path))


def _mapping(data: object, where: str) -> dict[object, object]:
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected lines such as 'initializer_token: dog'")
    return data


def _settings(data: object, where: str, folder: Path) -> Settings:
    """Checks the names and types of one concept's settings; ranges are checked with the manifest. Raises UserError.

    `templates` may be the path, relative to `folder`, of a text file with one per line.
    """
    settings: Settings = {}
    for key, value in _mapping(data, where).items():
        name = str(key)
        if name not in _SETTINGS:
            near = nearest(name, list(_SETTINGS))
            raise UserError(f"{where}: no such column {name!r}{near} (known: {', '.join(_SETTINGS)})")
        if value is None:
            continue
        if name == "templates" and isinstance(value, str):
            value = read_templates(str(folder / value))
        kind = _SETTINGS[name].kind
        if not kind.fits_yaml(value):
            raise UserError(f"{where}: {name} must be {kind.in_yaml}, not {value!r}")
        settings[name] = kind.plain(value)
    return settings


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that puts 2.png before 10.png."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _nothing(root: Path) -> str:
    layout = f"expected {root}/<concept>/*.{{{','.join(suffix[1:] for suffix in IMAGE_SUFFIXES)}}}"
    if any(path.suffix.lower() in IMAGE_SUFFIXES for path in root.iterdir()):
        return f"{root}: images lie directly in it; put each concept's into a folder of its own ({layout})"
    folders = [path for path in root.iterdir() if path.is_dir()]
    what = f"none of its {len(folders)} folders has images" if folders else "has no folders of images"
    return f"{root}: {what}; {layout}"
