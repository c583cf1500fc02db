"""Files that lie beside the package in the source tree, and inside of it where it was installed from a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def folders(name: str) -> list[Path]:
    """The folders of this name that exist, that of the source tree first."""
    return [folder for folder in (_PACKAGE.parent / name, _PACKAGE / name) if folder.is_dir()]


def example_manifest() -> Path | None:
    """The manifest of the demo's eight concepts, with their images in it; None when it isn't installed."""
    paths = (folder / "manifest.parquet" for folder in folders("examples"))
    return next((path for path in paths if path.is_file()), None)
