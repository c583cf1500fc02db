"""Ids and placeholder tokens from the names of folders, which may be in any script and any encoding."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from textinv_ray.util.text import one_line

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_KOHYA = re.compile(r"(\d{1,4})_(\S+) (.+)")
_PAIRS = """
а=a б=b в=v г=g д=d е=e ё=yo ж=zh з=z и=i й=y к=k л=l м=m н=n о=o п=p р=r с=s т=t у=u ф=f х=kh ц=ts ч=ch ш=sh щ=shch
ъ= ы=y ь= э=e ю=yu я=ya і=i ї=yi є=ye ґ=g ß=ss æ=ae œ=oe ø=o ł=l đ=d ð=d þ=th ı=i
"""
_LATIN = dict(pair.split("=") for pair in _PAIRS.split())
"""Letters that Unicode doesn't decompose, in Latin ones: of Russian, Ukrainian, German and the Nordic languages."""


@dataclass(frozen=True)
class Named:
    """What a folder's name gives."""

    concept_id: str
    placeholder_token: str
    """Empty: the default of the id."""


@dataclass(frozen=True)
class KohyaName:
    """A folder's name in the form of kohya's scripts, such as `10_sks cat`."""

    repeats: str
    trigger: str
    """What stands for the concept in captions."""
    class_word: str
    """What it is one of."""


def kohya_name(name: str) -> KohyaName | None:
    """The parts of a name such as `10_sks cat`; None for other names."""
    found = _KOHYA.fullmatch(name)
    return KohyaName(*found.groups()) if found else None


def is_text(name: str) -> bool:
    """Whether a name of the file system is UTF-8."""
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in name)


def readable(name: str) -> str:
    """A name of the file system for messages: bytes that aren't UTF-8 and control characters are escaped."""
    return one_line(os.fsencode(name).decode("utf-8", "backslashreplace"))


def named(folders: Mapping[str, str | None]) -> dict[str, Named]:
    """An id and a placeholder token for each folder, distinct whatever the case.

    `folders`: names, each with the concept_id that was given for it or None. Names that are ids stay as they are.
    Others are transliterated; where letters get lost, or another folder has the id, a digest of the name is appended:
    so an id doesn't depend on the order of the folders.
    """
    taken = {given.lower() for given in folders.values() if given is not None}
    found: dict[str, Named] = {}
    for name, given in folders.items():
        if given is not None:
            found[name] = Named(given, "")
        elif _is_id(name) and name.lower() not in taken:
            found[name] = Named(name, "")
            taken.add(name.lower())
    placeholders = {f"<{entry.concept_id}>".lower() for entry in found.values()}
    for name in folders:
        if name in found:
            continue
        kohya = kohya_name(name)
        source = kohya.trigger if kohya else name
        concept_id, is_whole = _transliterated(source)
        if not is_whole or concept_id.lower() in taken:
            concept_id = f"{concept_id[:110] or 'concept'}-{_digest(name)}"
        while concept_id.lower() in taken:
            concept_id += "-2"
        taken.add(concept_id.lower())
        token = f"<{_token(source)}>"
        if token.lower() in placeholders or len(token) > 200 or not is_text(name) or token == "<>":
            token = f"<{concept_id}>"
            if token.lower() in placeholders:  # of a folder whose other letters a token can't have
                token = f"<{concept_id}-{_digest(name)}>"
            while token.lower() in placeholders:
                token = f"{token[:-1]}-2>"
        placeholders |= {token.lower(), f"<{concept_id}>".lower()}
        default = f"<{concept_id}>"
        found[name] = Named(concept_id, token if token != default or kohya else "")
    return found


def _is_id(name: str) -> bool:
    return bool(_ID.fullmatch(name)) and name not in (".", "..")


def _transliterated(name: str) -> tuple[str, bool]:
    """(what an id may have of the name, whether no letter or digit was lost)."""
    text = "".join(_latin(character) for character in unicodedata.normalize("NFC", name))
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    lost = any(ord(c) > 127 and (c.isalnum() or not c.isprintable()) for c in plain)
    made = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-")
    return made, not lost and _is_id(made)


def _latin(character: str) -> str:
    letters = _LATIN.get(character.lower(), character)
    return letters.capitalize() if character.isupper() and letters != character else letters


def _token(name: str) -> str:
    """The name as one word, without braces."""
    text = unicodedata.normalize("NFC", name)
    return re.sub(r"[\s{}]+|[^\w.,!@#$%&()+=\[\]'~^;-]+", "-", text).strip("-")


def _digest(name: str) -> str:
    normal = unicodedata.normalize("NFC", name) if is_text(name) else name
    return hashlib.sha256(os.fsencode(normal)).hexdigest()[:6]
