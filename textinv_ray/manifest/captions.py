"""Captions beside images, as other trainers keep them: `1.txt` beside `1.png`, and `metadata.jsonl`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from textinv_ray.config.training import MAX_PROMPT_LENGTH
from textinv_ray.manifest.folder_names import readable
from textinv_ray.util.errors import UserError
from textinv_ray.util.files import read_regular

SUFFIXES = (".txt", ".caption")
"""Endings of a caption's file, beside an image of the same name."""
METADATA = "metadata.jsonl"
"""Captions of a folder, as Hugging Face's image folders have them: a line {"file_name": ..., "text": ...} for each."""
_KEYS = ("text", "caption", "prompt")
_MAX_METADATA_BYTES = 64 * 2**20


@dataclass
class Captions:
    """The captions of a folder's images."""

    of_image: dict[str, str] = field(default_factory=dict)
    """By the image's file name."""
    ignored: list[str] = field(default_factory=list)
    """Files of captions that can't be used, each with the reason."""


def beside(images: Sequence[Path], files: Mapping[str, Path], metadata: Mapping[str, str]) -> Captions:
    """The captions of a folder's images. `files`: all its files by name. `metadata`: by the image's name."""
    found = Captions()
    for image in images:
        text = metadata.get(image.name, "")
        for suffix in SUFFIXES:
            file = files.get(f"{image.stem}{suffix}") or files.get(f"{image.name}{suffix}")
            if file is None:
                continue
            try:
                data = read_regular(file, 4 * MAX_PROMPT_LENGTH + 1)
                text = data.decode("utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                why = (error.strerror or str(error)) if isinstance(error, OSError) else "isn't UTF-8 text"
                found.ignored.append(f"{readable(file.name)}: {why}")
            break
        text = " ".join(text.split())
        if len(text) > MAX_PROMPT_LENGTH:
            found.ignored.append(
                f"the caption of {readable(image.name)}: has more than {MAX_PROMPT_LENGTH} characters"
            )
        elif text:
            found.of_image[image.name] = text
    return found


def read_metadata(file: Path) -> dict[str, str]:
    """The captions of a `metadata.jsonl` by `file_name`. Raises UserError that names the line."""
    try:
        data = read_regular(file, _MAX_METADATA_BYTES + 1)
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: isn't UTF-8 text") from None
    if len(data) > _MAX_METADATA_BYTES:
        raise UserError(f"{file}: is larger than {_MAX_METADATA_BYTES // 2**20} MiB")
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name = entry["file_name"]
            text = next((entry[key] for key in _KEYS if isinstance(entry.get(key), str)), "")
            text.encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UserError(
                f'{file}, line {number}: expected {{"file_name": "1.png", "text": "a photo of ..."}}'
            ) from None
        if isinstance(name, str) and text:
            found[name] = text
    return found


def with_word(text: str, triggers: Sequence[str], class_word: str) -> tuple[str, bool]:
    """The caption with `{}` where the learned word goes, and whether the caption says where that is.

    It does by `{}`, by one of the `triggers`, or else by the class word (the initializer). If not, `{}, ` is put before
    it, as the templates of other trainers do.
    """
    if "{}" in text:
        return text, True
    for word in (*triggers, class_word):
        if not word:
            continue
        marked, count = re.subn(rf"(?<!\w){re.escape(word)}(?!\w)", "{}", text, flags=re.IGNORECASE)
        if count:
            return marked, True
    return f"{{}}, {text}", False
