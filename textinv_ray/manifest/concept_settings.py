"""What `concept.yaml`, or `concepts.yaml` for all folders, says of a concept: columns of its row."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from textinv_ray.config.training import read_templates
from textinv_ray.manifest.columns import COLUMNS
from textinv_ray.util import yaml_files
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import brief
from textinv_ray.util.text import nearest

ONE, ALL = "concept.yaml", "concepts.yaml"
"""Names of the files: in a concept's folder, and beside the folders."""
Settings = dict[str, object]
"""Columns of a row and their values."""
_COLUMNS = {name: column for name, column in COLUMNS.items() if column.kind.in_yaml}
_MAX_COMMON_BYTES = 16 * 2**20


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path leads to something in the folder `root`, links followed."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle; a NUL in the name
        return False


def leads_out(path: Path, root: Path) -> bool:
    """Whether a path in the folder `root` is a link to something elsewhere."""
    return path.is_symlink() and not is_inside(path, root)


def read_one(file: Path, root: Path) -> Settings:
    """The settings in a folder's concept.yaml. `root`: the folder of all concepts. Raises UserError."""
    if leads_out(file, root):
        raise UserError(f"{file}: is a link to a file outside {root}; put a copy in its place")
    return _settings(yaml_files.read(file, str(file)), str(file), file.parent, root)


def read_all(root: Path) -> dict[str, Settings]:
    """The settings in concepts.yaml by the folder's name in Unicode's form NFC; empty without it. Raises UserError."""
    file = root / ALL
    if not file.is_symlink() and not file.exists():
        return {}
    if leads_out(file, root):
        raise UserError(f"{file}: is a link to a file outside {root}; put a copy in its place")
    data = _mapping(yaml_files.read(file, str(file), _MAX_COMMON_BYTES), str(file))
    return {
        unicodedata.normalize("NFC", str(name)): _settings(value, f"{file}: {name}", root, root)
        for name, value in data.items()
    }


def _mapping(data: object, where: str) -> dict[object, object]:
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected lines such as 'initializer_token: dog'")
    return data


def _settings(data: object, where: str, folder: Path, root: Path) -> Settings:
    """Checks the names and types of one concept's settings; ranges are checked with the manifest. Raises UserError.

    `templates` may be the path, relative to `folder`, of a text file with one per line, inside of `root`.
    """
    settings: Settings = {}
    for key, value in _mapping(data, where).items():
        name = str(key)
        if name not in _COLUMNS:
            near = nearest(name, list(_COLUMNS))
            raise UserError(f"{where}: no such column {brief(name)}{near} (known: {', '.join(_COLUMNS)})")
        if value is None:
            continue
        if name == "templates" and isinstance(value, str):
            value = _templates(value, where, folder, root)
        kind = _COLUMNS[name].kind
        if not kind.fits_yaml(value):
            raise UserError(
                f"{where}: {name} must be {kind.in_yaml}, not {brief(value)}{_quote(value, kind.in_yaml)}"
            )
        settings[name] = kind.plain(value)
    return settings


def _templates(name: str, where: str, folder: Path, root: Path) -> list[str]:
    file = folder / name
    if not is_inside(file, root):
        raise UserError(f"{where}: templates {brief(name)} lies outside {root}; put a copy of the file there")
    return read_templates(str(file))


def _quote(value: object, expected: str) -> str:
    """A hint for values that YAML takes for something else than the text they were meant to be."""
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return '; quote it: "{}"' if {} in value else "; quote a text that has ': ' in it"
    is_scalar = isinstance(value, bool | int | float) or (
        value is not None and not isinstance(value, str | list | dict)
    )
    return "; write it in quotes" if expected == "text" and is_scalar else ""
