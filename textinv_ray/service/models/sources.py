"""Sources of models: what a job needs to know of them, and their copies on a node (once, for fsspec URIs)."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import fsspec

from textinv_ray.config.model import ModelConfig
from textinv_ray.config.model_families import ModelFamily
from textinv_ray.model_files import places
from textinv_ray.model_files.clip_tokenizer import LAYOUTS
from textinv_ray.model_files.places import BUNDLED, Checkpoint, ModelFiles
from textinv_ray.model_files.single_file import is_single_file
from textinv_ray.util import retries
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import message, redact

_PATIENCE_S = 60.0  # for which reads from a store are retried
_CHUNK, _CHUNKS = (
    4096,
    16,
)  # bytes and number of samples of a part's weights; training changes every one of them


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


def resolve(path: str) -> str:
    """The folder, single file or Hub id to load a model from. The first call with a URI on a node copies it there.

    Raises UserError when a URI can't be copied.
    """
    if places.is_bundled(path):
        return str(BUNDLED / path)
    if "://" in path:
        return str(_copy_once(path))
    local = Path(path).expanduser()
    return str(local.resolve()) if local.exists() else path


def facts(model: ModelConfig) -> ModelFacts:
    """The facts about a model, from its configuration files and samples of its weights.

    Raises UserError when it can't be read, or words can't be learned for it.
    """
    files = places.open_model(model)
    try:
        identity = retries.call(
            lambda: _identity(files, model.variant), patience_s=_PATIENCE_S, what=redact(model.path)
        )
    except Exception as error:
        why = message(str(error).strip().split("\n")[0]) or type(error).__name__
        raise UserError(f"the model {redact(model.path)!r} can't be read: {why}") from None
    return ModelFacts(identity, files.resolution, files.family)


def _identity(files: ModelFiles, variant: str | None) -> str:
    """See `ModelFacts`. The configuration of a single file counts unless it is that of this package."""
    if files.checkpoint is None:
        return _folder_identity(files, variant)
    identity = _digest_of_checkpoint(files.checkpoint)
    if Path(files.folder).parent == LAYOUTS:
        return identity
    return f"{identity} {_folder_identity(files, variant, weights=False)}"


def _folder_identity(files: ModelFiles, variant: str | None, weights: bool = True) -> str:
    if files.identity is not None:
        return files.identity + (f" {variant}" if variant and weights else "")
    folder = files.folder if "://" in files.folder else resolve(files.folder)
    fs, root = fsspec.core.url_to_fs(folder)
    return _digest(fs, root.rstrip("/"), variant, files.parts, weights)


def _digest_of_checkpoint(checkpoint: Checkpoint) -> str:
    """SHA-256 of the names and shapes of a single file's tensors, and _CHUNKS samples of each part of the model."""
    header, fs = checkpoint.header, checkpoint.fs
    digest = hashlib.sha256()
    for name, info in sorted(header.tensors.items()):
        digest.update(f"{name} {info.shape} {info.end - info.start}\n".encode())
    for part in checkpoint.kind.layout.parts:
        infos = [info for name, info in sorted(header.tensors.items()) if name.startswith(part)]
        for index in range(_CHUNKS):
            info = infos[(len(infos) - 1) * index // (_CHUNKS - 1)]
            digest.update(
                fs.cat_file(checkpoint.path, start=info.start, end=min(info.start + _CHUNK, info.end))
            )
    return digest.hexdigest()


def _digest(
    fs: fsspec.AbstractFileSystem, root: str, variant: str | None, parts: tuple[str, ...], weights: bool
) -> str:
    """SHA-256 of a pipeline folder: of small files all bytes, of weights (if they count) size and _CHUNKS samples."""
    digest = hashlib.sha256()
    for part in parts:
        for path in sorted(fs.ls(f"{root}/{part}", detail=False)):
            name = path.rsplit("/", 1)[-1]
            if not _counts(name, variant) or (name.endswith(".safetensors") and not weights):
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
        return name.endswith((".json", ".txt", ".jinja", ".model"))
    found = re.fullmatch(r"[^.]+?(?:\.([^.]+))?\.safetensors", name)
    return bool(found) and (found.group(1) if found else None) == variant


def _copy_once(uri: str) -> Path:
    """Copies a folder or a single file to this node's cache, unless it is there. A lock makes other workers wait.

    What was replaced at the same URI since is copied again, beside the old copy, which other workers may use.
    """
    ending = ".safetensors" if is_single_file(uri) else ""
    name = cache_folder() / hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]
    name.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = _stamp(uri)
        copies = sorted(name.parent.glob(f"{name.name}-*[0-9a-f]{ending}"), key=os.path.getmtime)
        if stamp is None and copies:  # the original can't be reached
            return copies[-1]
        target = Path(f"{name}-{stamp or 0}{ending}")
        if target.exists():
            return target
        partial = Path(f"{target}.partial")
        partial.unlink() if partial.is_file() else shutil.rmtree(partial, ignore_errors=True)
        try:
            fs, root = fsspec.core.url_to_fs(uri)
            retries.call(
                (lambda: fs.get_file(root, str(partial)))
                if ending
                else (lambda: fs.get(root.rstrip("/") + "/", f"{partial}/", recursive=True)),
                patience_s=_PATIENCE_S,
                what=redact(uri),
            )
        except Exception as error:
            raise UserError(f"{redact(uri)} can't be copied: {message(str(error))}") from None
        partial.rename(target)
    return target


def _stamp(uri: str) -> str | None:
    """Digest of the names, sizes and versions of a model's files; None where they can't be listed."""
    try:
        fs, root = fsspec.core.url_to_fs(uri)
        fs.invalidate_cache()
        found = fs.find(root, detail=True)
    except Exception:
        return None
    versions = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "updated", "created")
    listed = [
        (path, entry.get("size"), next((str(entry[key]) for key in versions if entry.get(key)), ""))
        for path, entry in sorted(found.items())
    ]
    return hashlib.sha256(repr(listed).encode()).hexdigest()[:16] if listed else None
