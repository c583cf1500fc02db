"""Files of learned words for diffusers, A1111 (stable-diffusion-webui) and ComfyUI. Pickles are never read.

A word has vectors for one or more text encoders. All programs read safetensors files. They differ in the keys, and in
the word's name in prompts:

    format     keys                                           in a prompt
    diffusers  the placeholder token; one file per encoder    <cat>              loaded as <cat>, <cat>_1, ...
    a1111      emb_params; for several encoders as comfyui    the file's name
    comfyui    the encoders' names: clip_l (SD 1), clip_h     embedding:NAME, the file's name
               (SD 2), clip_l and clip_g (SDXL), these and
               t5xxl (SD 3), clip_l and t5xxl (Flux.1),
               gemma (Sana), qwen3_4b or qwen3_8b
               (Flux.2 Klein 4B and 9B)

OneTrainer and diffusers call t5xxl `t5`; ComfyUI drops that key.

Sources: diffusers' loaders/textual_inversion.py and its SDXL script, the webui's
modules/textual_inversion/textual_inversion.py (`create_embedding_from_data`), ComfyUI's comfy/sd1_clip.py
(`load_embed`), kohya's train_textual_inversion.py, OneTrainer (`emp_params`). A1111 and ComfyUI also read diffusers'
files of one encoder, but name the word by the file and not by the key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from textinv_ray.util import tensor_files

Word = Mapping[str, np.ndarray]
"""A word's vectors by text encoder, as ComfyUI names these: float32 (V, D of the encoder) each. The encoders are in
the order in which models concatenate them."""

FORMATS = ("diffusers", "a1111", "comfyui")
SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")
"""Suffixes of files of words. Only safetensors files are read; the others are pickles."""
STORED = "learned_embeds.safetensors"
"""Name of the file of a concept's word in an output."""
INITIAL = "initial_embeds.safetensors"
"""Name of the file of what the word was before its first step, beside it and in the same format."""
_ENCODER_OF_SIZE = {
    768: "clip_l",
    1024: "clip_h",
    1280: "clip_g",
    2304: "gemma",
    2560: "qwen3_4b",
    4096: "t5xxl",
}
_ENCODERS = ("clip_l", "clip_g", "clip_h", "t5xxl", "gemma", "qwen3_4b", "qwen3_8b")  # in the order of `Word`
_SYNONYMS = {"t5": "t5xxl"}
"""Keys that other programs write -> ComfyUI's."""
_NAMELESS = ("emb_params", "emp_params", "*", *_ENCODERS, *_SYNONYMS)
"""Keys that say nothing of the word's name: it is the file's."""
_METADATA = "textinv_ray"
_PICKLES = (b"PK", b"\x80")  # first bytes of files by torch.save: a zip archive, or a bare pickle
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def store_word(placeholder_token: str, word: Word) -> bytes:
    """The bytes of a concept's learned_embeds.safetensors.

    With one encoder: a float32 tensor (V, D) whose key is the placeholder token, which diffusers, A1111 and ComfyUI
    read. With several, and with one that the vectors' size doesn't say (Qwen 3 8B has T5's): a tensor for each encoder
    under its name, and the token in the metadata.
    """
    if len(word) == 1 and "qwen3_8b" not in word:
        return _file({placeholder_token: next(iter(word.values()))}, {"format": "pt"})
    # The metadata is one entry, because safetensors writes several in random order.
    return _file(word, {_METADATA: json.dumps({"placeholder_token": placeholder_token})})


def write_word(format_name: str, placeholder_token: str, word: Word) -> dict[str, bytes]:
    """Suffix of the file's name -> bytes of a word's files: one, or for diffusers one for each encoder: "", "_2".

    Vectors are written as float32. Raises ValueError for an unknown format.
    """
    if format_name == "diffusers":
        parts = enumerate(word.values(), start=1)
        return {
            f"_{number}" if number > 1 else "": _file({placeholder_token: vectors}, {"format": "pt"})
            for number, vectors in parts
        }
    if format_name not in FORMATS:
        raise ValueError(f"no format {format_name!r} (known: {', '.join(FORMATS)})")
    if len(word) > 1:
        return {"": _file(word, {"format": "pt"})}
    ((name, vectors),) = word.items()
    known = vectors.shape[1] in _ENCODER_OF_SIZE
    return {
        "": _file({name if format_name == "comfyui" and known else "emb_params": vectors}, {"format": "pt"})
    }


_MODEL_OF = {
    ("clip_l", "clip_g"): "Stable Diffusion XL, or 3 without T5",
    ("clip_l", "clip_g", "t5xxl"): "Stable Diffusion 3",
    ("clip_l", "t5xxl"): "Flux.1",
    ("clip_h",): "Stable Diffusion 2",
    ("gemma",): "Sana",
    ("qwen3_4b",): "Flux.2 Klein 4B",
    ("qwen3_8b",): "Flux.2 Klein 9B",
}


def model_of(sizes: Mapping[str, int]) -> str:
    """What people call the models that a word is for. sizes: of its vectors, by text encoder."""
    if dict(sizes) == {"clip_l": 768}:
        return "Stable Diffusion 1"
    return _MODEL_OF.get(tuple(name for name in _ENCODERS if name in sizes), "another model")


def in_prompt(format_name: str, placeholder_token: str, file_stem: str) -> str:
    """What a user of that program writes in a prompt to use the word."""
    if format_name == "diffusers":
        return placeholder_token
    return file_stem if format_name == "a1111" else f"embedding:{file_stem}"


def read_words(path: str | Path) -> dict[str, Word]:
    """Placeholder token -> word, of a file in any of the formats, with diffusers' second file beside it if it is there.

    A word whose file has no name for it (A1111, ComfyUI) is named after the file: `<stem>`.
    Raises ValueError with a one-line message when the file is missing or isn't a file of words.
    """
    path = Path(path).expanduser()
    try:
        data = path.read_bytes()
        second = second_file(path.name)
        beside = path.with_name(second).read_bytes() if path.with_name(second).is_file() else None
    except OSError as error:
        raise ValueError(f"the file of words {str(path)!r} can't be read: {error.strerror}") from None
    return parse_words(data, path.name, beside)


def second_file(name: str) -> str:
    """Name of the file that diffusers' SDXL script writes for the second encoder beside this one."""
    return f"{Path(name).stem}_2{Path(name).suffix}"


def parse_words(data: bytes, name: str, second: bytes | None = None) -> dict[str, Word]:
    """`read_words` for a file's bytes.

    `name`: the file's name without folders, for messages and nameless words. `second`: the bytes of its `second_file`.
    """
    tensors, metadata = _tensors(data, name)
    if not tensors:
        raise ValueError(f"{name!r} has no word in it")
    if len(tensors) > 1 and set(tensors) <= {*_ENCODERS, *_SYNONYMS}:
        parts = _ordered({_SYNONYMS.get(key, key): vectors for key, vectors in tensors.items()})
        if len(parts) < len(tensors):
            raise ValueError(f"{name!r} has vectors for one encoder twice: {', '.join(sorted(tensors))}")
        if len({len(vectors) for vectors in parts.values()}) > 1:
            raise ValueError(f"{name!r}: the encoders {', '.join(parts)} have different numbers of vectors")
        return {_token_in(metadata) or f"<{Path(name).stem}>": parts}
    if len(tensors) > 1 and any(key in _NAMELESS for key in tensors):
        raise ValueError(f"{name!r} has several nameless tensors: {', '.join(sorted(tensors))}")
    beside = _tensors(second, second_file(name))[0] if second else {}
    words: dict[str, Word] = {}
    for key, vectors in tensors.items():
        token = (_token_in(metadata) or f"<{Path(name).stem}>") if key in _NAMELESS else key
        parts = {_encoder_of(key, vectors): vectors}
        other = beside.get(key)
        if other is not None and len(other) == len(vectors) and _encoder_of(key, other) not in parts:
            parts[_encoder_of(key, other)] = other
        words[token] = _ordered(parts)
    return words


def _ordered(parts: Word) -> Word:
    """In the order of `_ENCODERS`: a file has its tensors in any order."""
    return {name: parts[name] for name in _ENCODERS if name in parts}


def _encoder_of(key: str, vectors: np.ndarray) -> str:
    key = _SYNONYMS.get(key, key)
    return key if key in _ENCODERS else _ENCODER_OF_SIZE.get(vectors.shape[1], "clip_l")


def _token_in(metadata: Mapping[str, str]) -> str | None:
    """The placeholder token that `store_word` noted."""
    try:
        token = json.loads(metadata[_METADATA])["placeholder_token"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    return token if isinstance(token, str) and token else None


def _file(tensors: Word, metadata: dict[str, str]) -> bytes:
    arrays = {key: np.asarray(vectors, np.float32) for key, vectors in tensors.items()}
    return tensor_files.to_bytes(arrays, metadata)


def _tensors(data: bytes, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The checked tensors of a safetensors file by key, float32 (V, D) each, and its metadata. Raises ValueError."""
    refusal = (
        f"{name!r} is a pickle, which can run code when it is opened, so it is never read: "
        "convert it to safetensors where you trust it"
    )
    if Path(name).suffix in SUFFIXES[1:]:
        raise ValueError(refusal)
    try:
        found = deserialize(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, RecursionError) as error:
        # Only now, because a safetensors file may begin with any byte (the length of its header)
        if data.startswith(_PICKLES):
            raise ValueError(refusal) from None
        raise ValueError(f"{name!r} is not a safetensors file: {error}") from None
    metadata = header.get("__metadata__")
    return {
        key: _vectors(info["dtype"], info["shape"], info["data"], key, name) for key, info in found
    }, metadata if isinstance(metadata, dict) else {}


def _vectors(dtype: str, shape: list[int], data: bytes, key: str, name: str) -> np.ndarray:
    if (dtype not in _FLOATS and dtype != "BF16") or len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"{name!r} is not a file of words: {key!r} is {tuple(shape)} of {dtype}")
    if dtype == "BF16":  # the upper half of a float32
        numbers = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        numbers = np.frombuffer(data, _FLOATS[dtype])
    with np.errstate(over="ignore"):
        vectors = np.atleast_2d(numbers.reshape(shape).astype(np.float32))
    if not np.isfinite(vectors).all():
        raise ValueError(f"{name!r}: the word {key!r} has values that are not finite")
    return vectors
