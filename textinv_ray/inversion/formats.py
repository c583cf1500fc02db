"""Files of learned words for diffusers, A1111 (stable-diffusion-webui) and ComfyUI. Pickles are never read.

All three programs read safetensors files with one tensor. They differ in its key and in the word's name in prompts:

    format     key                        in a prompt
    diffusers  the placeholder token      <cat>              tensor (V, D), loaded as <cat>, <cat>_1, ...
    a1111      emb_params                 the file's name    tensor (V, D), or (D,) for one vector
    comfyui    clip_l (SD 1), clip_h (SD 2)   embedding:NAME, the file's name; any single key is taken

Sources: diffusers' loaders/textual_inversion.py, the webui's modules/textual_inversion/textual_inversion.py
(`create_embedding_from_data`) and ComfyUI's comfy/sd1_clip.py (`load_embed`). A1111 and ComfyUI also read diffusers'
files, but name the word by the file and not by the key; their own formats have no second name that could mislead.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from textinv_ray.inversion import words

FORMATS = ("diffusers", "a1111", "comfyui")
SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")
"""Suffixes of files of words. Only safetensors files are read; the others are pickles."""
_ENCODERS = {768: "clip_l", 1024: "clip_h"}  # ComfyUI's names for the text encoders of SD 1 and SD 2, by D
_NAMELESS = ("emb_params", "clip_l", "clip_h", "*")
_PICKLES = (b"PK", b"\x80")  # first bytes of files by torch.save: a zip archive, or a bare pickle


def write_word(format_name: str, placeholder_token: str, vectors: Tensor) -> bytes:
    """The bytes of a word's file. vectors: (V, D), written as float32. Raises ValueError for an unknown format."""
    if format_name == "diffusers":
        return words.save_learned_embeds(placeholder_token, vectors)
    if format_name == "a1111":
        return words.save_learned_embeds("emb_params", vectors)
    if format_name == "comfyui":
        return words.save_learned_embeds(_ENCODERS.get(vectors.shape[-1], "emb_params"), vectors)
    raise ValueError(f"no format {format_name!r} (known: {', '.join(FORMATS)})")


def in_prompt(format_name: str, placeholder_token: str, file_stem: str) -> str:
    """What a user of that program writes in a prompt to use the word."""
    if format_name == "diffusers":
        return placeholder_token
    return file_stem if format_name == "a1111" else f"embedding:{file_stem}"


def read_words(path: str | Path) -> dict[str, Tensor]:
    """Placeholder token -> float32 (V, D), of a file in any of the formats.

    A word whose file has no name for it (A1111, ComfyUI) is named after the file: `<stem>`.
    Raises ValueError with a one-line message when the file is missing or isn't a file of words.
    """
    path = Path(path).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the file of words {str(path)!r} can't be read: {error.strerror}") from None
    return parse_words(data, path.name)


def parse_words(data: bytes, name: str) -> dict[str, Tensor]:
    """`read_words` for a file's bytes. `name`: the file's name without folders, for messages and nameless words."""
    refusal = (
        f"{name!r} is a pickle, which can run code when it is opened, so it is never read: "
        "convert it to safetensors where you trust it"
    )
    if Path(name).suffix in SUFFIXES[1:]:
        raise ValueError(refusal)
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        # Only now, because a safetensors file may begin with any byte (the length of its header)
        if data.startswith(_PICKLES):
            raise ValueError(refusal) from None
        raise ValueError(f"{name!r} is not a safetensors file: {error}") from None
    if not tensors:
        raise ValueError(f"{name!r} has no word in it")
    if "clip_g" in tensors:
        raise ValueError(f"{name!r} is a word for SDXL (clip_g), which has two text encoders")
    if len(tensors) > 1 and any(key in _NAMELESS for key in tensors):
        raise ValueError(f"{name!r} has several nameless tensors: {', '.join(sorted(tensors))}")
    return {_token(key, name): _checked(vectors, key, name) for key, vectors in tensors.items()}


def _token(key: str, name: str) -> str:
    return f"<{Path(name).stem}>" if key in _NAMELESS else key


def _checked(vectors: Tensor, key: str, name: str) -> Tensor:
    if not vectors.is_floating_point() or vectors.ndim not in (1, 2) or 0 in vectors.shape:
        raise ValueError(
            f"{name!r} is not a file of words: {key!r} is {tuple(vectors.shape)} of {vectors.dtype}"
        )
    vectors = torch.atleast_2d(vectors.to(torch.float32))
    if not vectors.isfinite().all():
        raise ValueError(f"{name!r}: the word {key!r} has values that are not finite")
    return vectors
