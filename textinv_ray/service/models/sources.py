"""Sources of models: bundled names, folders, fsspec URIs (copied once per node), Hugging Face Hub ids."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fsspec

from textinv_ray.config.job import ModelConfig
from textinv_ray.config.model_families import ModelFamily, family_of
from textinv_ray.manifest.vocabulary import BUNDLED
from textinv_ray.util import retries
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import message, redact

_PATIENCE_S = 60.0  # for which reads from a store are retried
_CHUNK, _CHUNKS = (
    4096,
    16,
)  # bytes and number of samples of a weights file; training changes every one of them


@dataclass(frozen=True)
class ModelFacts:
    """What the driver needs to know of a model, read without loading it."""

    identity: str
    """Identifies the weights: a digest, the same for all copies; or a Hub id with its commit."""
    resolution: int
    """Side of the model's images in pixels."""
    family: ModelFamily
    """Its family."""


def cache_folder() -> Path:
    """The folder for copies of remote models on this node."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "textinv_ray" / "models"


def is_bundled(path: str) -> bool:
    """Whether this is the name of a model in this package."""
    return "/" not in path and (BUNDLED / path).is_dir()


def resolve(path: str) -> str:
    """The folder or Hub id to load a model from. The first call with a URI on a node copies the model there.

    Raises UserError when a URI can't be copied.
    """
    if is_bundled(path):
        return str(BUNDLED / path)
    if "://" in path:
        return str(_copy_once(path))
    folder = Path(path).expanduser()
    return str(folder.resolve()) if folder.is_dir() else path


def facts(model: ModelConfig) -> ModelFacts:
    """The facts about a model, from its configuration files and samples of its weights.

    Raises UserError when it doesn't exist or isn't a pipeline.
    """
    try:
        if is_bundled(model.path) or "://" in model.path or Path(model.path).expanduser().is_dir():
            fs, root = fsspec.core.url_to_fs(model.path if "://" in model.path else resolve(model.path))
            root = root.rstrip("/")
            read: Callable[[str], bytes] = lambda name: fs.cat_file(f"{root}/{name}")  # noqa: E731
            index = json.loads(read("model_index.json"))
            family = family_of(index, redact(model.path))
            identity = retries.call(
                lambda: _digest(fs, root, model.variant, family.parts_of(index)),
                patience_s=_PATIENCE_S,
                what=redact(model.path),
            )
        else:
            identity, read = _hub(model)
            family = family_of(json.loads(read("model_index.json")), model.path)
        denoiser, vae = (json.loads(read(f"{part}/config.json")) for part in (family.denoiser, "vae"))
        resolution = family.resolution(denoiser, vae)
    except UserError:
        raise
    except Exception as error:
        why = message(str(error).strip().split("\n")[0]) or type(error).__name__
        raise UserError(
            f"the model {redact(model.path)!r} can't be read: {why} "
            "(expected: a folder in diffusers' format, its URI, or a Hub id)"
        ) from None
    return ModelFacts(identity, resolution, family)


def _hub(model: ModelConfig) -> tuple[str, Callable[[str], bytes]]:
    """(id with commit, function that reads a small file) of a Hub model; from the local cache without a network."""
    from huggingface_hub import hf_hub_download

    def read(name: str) -> bytes:
        return Path(hf_hub_download(model.path, name, revision=model.revision)).read_bytes()

    # .../snapshots/<commit>/model_index.json
    commit = Path(hf_hub_download(model.path, "model_index.json", revision=model.revision)).parent.name
    return f"{model.path}@{commit}" + (f" {model.variant}" if model.variant else ""), read


def _digest(fs: fsspec.AbstractFileSystem, root: str, variant: str | None, parts: tuple[str, ...]) -> str:
    """SHA-256 of a pipeline folder: of small files all bytes, of weights the size and _CHUNKS samples."""
    digest = hashlib.sha256()
    for part in parts:
        for path in sorted(fs.ls(f"{root}/{part}", detail=False)):
            name = path.rsplit("/", 1)[-1]
            if not _counts(name, variant):
                continue
            size = fs.size(path)
            digest.update(f"{part}/{name} {size}\n".encode())
            if not name.endswith(".safetensors"):
                digest.update(fs.cat_file(path))
                continue
            for index in range(_CHUNKS):
                start = (size - _CHUNK) * index // (_CHUNKS - 1) if size > _CHUNK else 0
                digest.update(fs.cat_file(path, start=start, end=start + _CHUNK))
    return digest.hexdigest()


def _counts(name: str, variant: str | None) -> bool:
    """Whether a file is part of what is loaded: configurations, the tokenizer, and weights of the variant."""
    if not name.endswith(".safetensors"):
        return name.endswith((".json", ".txt"))
    found = re.fullmatch(r"[^.]+?(?:\.([^.]+))?\.safetensors", name)
    return bool(found) and (found.group(1) if found else None) == variant


def _copy_once(uri: str) -> Path:
    """Copies a folder to this node's cache, unless it is there. A lock makes other workers wait for the copy."""
    target = cache_folder() / hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        partial = Path(f"{target}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            fs, root = fsspec.core.url_to_fs(uri)
            retries.call(
                lambda: fs.get(root.rstrip("/") + "/", f"{partial}/", recursive=True),
                patience_s=_PATIENCE_S,
                what=redact(uri),
            )
        except Exception as error:
            raise UserError(f"{redact(uri)} can't be copied: {message(str(error))}") from None
        partial.rename(target)
    return target
