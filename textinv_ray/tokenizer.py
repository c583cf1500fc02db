"""The model's tokenizer alone: what the manifest is checked against, without loading torch or a model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from textinv_ray import uris
from textinv_ray.config import ModelConfig
from textinv_ray.errors import UserError

BUNDLED = Path(__file__).resolve().parent / "models"


def load(model: ModelConfig) -> Any:
    """The CLIPTokenizer of a bundled name, a folder, an fsspec URI or a Hub id. Raises UserError."""
    from transformers import CLIPTokenizer

    try:
        if "://" in model.path:
            with tempfile.TemporaryDirectory() as folder:
                _copy(model.path.rstrip("/") + "/tokenizer", folder)
                return CLIPTokenizer.from_pretrained(folder)
        for place in (BUNDLED / model.path, Path(model.path).expanduser()):
            if place.is_dir():
                return CLIPTokenizer.from_pretrained(place / "tokenizer")
        return CLIPTokenizer.from_pretrained(
            model.path, subfolder="tokenizer", revision=model.revision or "main"
        )
    except Exception as error:
        reason = uris.shown_in(str(error)).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"the tokenizer of the model {uris.shown(model.path)} can't be loaded: {reason}"
        ) from None


def _copy(uri: str, folder: str) -> None:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(uri)
    filesystem.get(path.rstrip("/") + "/", folder, recursive=True)
