"""Where a model is: a bundled name, a folder, an fsspec URI, a Hub id, or a single file; and its small files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fsspec
from pydantic import JsonValue

from textinv_ray.config.model import ModelConfig
from textinv_ray.config.model_families import ModelFamily, UnsupportedModelError, check_parts, family_of
from textinv_ray.model_files import clip_tokenizer
from textinv_ray.model_files.header import Header, read_header
from textinv_ray.model_files.single_file import SingleFile, is_single_file, recognise
from textinv_ray.util import hub
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import message, redact

BUNDLED = Path(__file__).resolve().parents[1] / "models"
"""The folder of the bundled models."""
_EXPECTED = "a folder in diffusers' format, its URI, a Hub id, or a .safetensors file"


@dataclass(frozen=True)
class Checkpoint:
    """A single file with its header."""

    fs: fsspec.AbstractFileSystem
    path: str
    """In `fs`."""
    header: Header
    kind: SingleFile


@dataclass(frozen=True)
class ModelFiles:
    """A model whose family is known; none of its weights were read."""

    family: ModelFamily
    folder: str
    """Its configuration and tokenizers in diffusers' format: a folder, a URI or a Hub id. For models that aren't single
    files it has the weights, too."""
    read: Callable[[str], bytes]
    """Reads a small file of `folder`."""
    parts: tuple[str, ...]
    """The subfolders that are read."""
    tokenizers: dict[str, bool]
    """Subfolders of the tokenizers, and whether they are CLIP's."""
    identity: str | None
    """Of a Hub id: the id with the commit."""
    resolution: int
    """Side of the model's images in pixels."""
    scheduler_options: dict[str, JsonValue]
    """What differs from the scheduler's configuration in `folder`."""
    checkpoint: Checkpoint | None
    """The single file, if it is one."""

    @property
    def denoiser(self) -> dict[str, JsonValue]:
        """Its configuration."""
        found: dict[str, JsonValue] = json.loads(self.read(f"{self.family.denoiser}/config.json"))
        return found

    @property
    def encoder_names(self) -> tuple[str, ...]:
        """Names of its text encoders in files of words."""
        return self.family.encoder_names(self.embedding_dims)

    @property
    def embedding_dims(self) -> tuple[int, ...]:
        """Numbers in a token embedding of each text encoder, by their configurations."""
        configs = (
            json.loads(self.read(f"{part}/config.json"))
            for part in self.family.text_encoders
            if part in self.parts
        )
        return tuple(int(config.get("hidden_size") or config["d_model"]) for config in configs)


def is_bundled(path: str) -> bool:
    """Whether this is the name of a model in this package."""
    return "/" not in path and (BUNDLED / path).is_dir()


def is_checkpoint(path: str) -> bool:
    """Whether `model.path` is a single file. Raises UserError for a pickle."""
    return not is_bundled(path) and not Path(path).expanduser().is_dir() and is_single_file(path)


def open_model(model: ModelConfig) -> ModelFiles:
    """Finds out what a model is, from its configuration files or the header of its single file.

    Raises UnsupportedModelError when words can't be learned for it, UserError when it can't be read.
    """
    shown = redact(model.path)
    try:
        if is_checkpoint(model.path):
            return _open_checkpoint(model, shown)
        if model.config is not None:
            raise UserError(
                f"model.config is for single files; the model {shown!r} has its own configuration"
            )
        return _open_folder(model.path, model.revision, shown, _options(model.prediction_type, False), None)
    except UserError:
        raise
    except Exception as error:
        why = message(str(error).strip().split("\n")[0]) or type(error).__name__
        raise UserError(f"the model {shown!r} can't be read: {why} (expected: {_EXPECTED})") from None


def _open_checkpoint(model: ModelConfig, shown: str) -> ModelFiles:
    fs, path = fsspec.core.url_to_fs(model.path if "://" in model.path else Path(model.path).expanduser())
    try:
        header = read_header(fs, path, shown)
    except FileNotFoundError:
        raise UserError(f"the model {shown!r} doesn't exist (expected: {_EXPECTED})") from None
    kind = recognise(header, shown, any_shapes=model.config is not None)
    folder = model.config or str(clip_tokenizer.LAYOUTS / kind.configuration(model.prediction_type, shown))
    options = _options(model.prediction_type or kind.prediction_type, kind.zero_terminal_snr)
    files = _open_folder(folder, model.revision, shown, options, Checkpoint(fs, path, header, kind))
    if files.family is not kind.layout.family:
        raise UnsupportedModelError(
            f"the model {shown!r} is of {kind.layout.name}, but model.config is of {files.family.name}"
        )
    return files


def _open_folder(
    folder: str,
    revision: str | None,
    shown: str,
    options: dict[str, JsonValue],
    checkpoint: Checkpoint | None,
) -> ModelFiles:
    identity = None
    if folder.startswith("~"):
        folder = str(Path(folder).expanduser())  # whoever reads the files further takes it as it is
    local = BUNDLED / folder if is_bundled(folder) else Path(folder)
    if "://" in folder or local.is_dir():
        fs, root = fsspec.core.url_to_fs(folder if "://" in folder else str(local.resolve()))
        root = root.rstrip("/")
        read: Callable[[str], bytes] = lambda name: fs.cat_file(f"{root}/{name}")  # noqa: E731
    elif local.exists() or folder.startswith(("/", ".")):
        what = "is a file, but not a .safetensors file" if local.exists() else "doesn't exist"
        raise UserError(f"the model {redact(folder)!r} {what} (expected: {_EXPECTED})")
    else:
        identity, read = _hub(folder, revision)
    index = json.loads(read("model_index.json"))
    family = family_of(index, shown)
    denoiser, vae = (json.loads(read(f"{part}/config.json")) for part in (family.denoiser, "vae"))
    scheduler = json.loads(read("scheduler/scheduler_config.json")) | options
    check_parts(family, denoiser, scheduler, shown)
    parts = family.parts_of(index)
    tokenizers = {name: index[name][1].startswith("CLIP") for name in family.tokenizers if name in parts}
    return ModelFiles(
        family,
        folder,
        read,
        parts,
        tokenizers,
        identity,
        family.resolution(denoiser, vae),
        options,
        checkpoint,
    )


def _options(prediction_type: str | None, zero_terminal_snr: bool) -> dict[str, JsonValue]:
    """Settings of the scheduler that the configuration doesn't have, or has otherwise."""
    options: dict[str, JsonValue] = {"prediction_type": prediction_type} if prediction_type else {}
    if zero_terminal_snr:  # Lin et al. 2023, sections 3.1 and 3.3
        options |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return options


def _hub(path: str, revision: str | None) -> tuple[str, Callable[[str], bytes]]:
    """(id with commit, function that reads a small file) of a Hub model; from the local cache without a network."""

    def read(name: str) -> bytes:
        return Path(hub.download(path, name, revision)).read_bytes()

    # .../snapshots/<commit>/model_index.json
    commit = Path(hub.download(path, "model_index.json", revision)).parent.name
    return f"{path}@{commit}", read
