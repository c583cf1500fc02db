"""Named colours, and the small jitter that makes every character's own shade."""

import random

CLOTHES = {
    "red": "d62828", "orange": "f58220", "yellow": "fbd32d", "green": "2f9e44", "teal": "1aa6a6",
    "blue": "2f6fe0", "navy": "1b2a5c", "purple": "7b3fb5", "pink": "f27fb2", "white": "f5f5f5",
    "grey": "8d929a", "black": "1e1e22", "brown": "7a4a25",
}  # fmt: skip
"""Clothes, hats and glasses."""

BACKGROUND = {
    "red": "ef6b6b", "orange": "f9a65a", "yellow": "fbe27a", "green": "8fd19a", "teal": "6cc7c5",
    "blue": "7fb2f5", "navy": "27386e", "purple": "b08be0", "pink": "f8b4d4", "white": "fbfbfb",
    "grey": "c3c7cc", "black": "222226", "brown": "a27b5c",
}  # fmt: skip
"""The same names, paler, so that characters stand out."""

NATURAL_HAIR = {
    "black": "1c1718", "brown": "5a3520", "auburn": "7f2f1d", "blond": "e3bf6d", "grey": "9b9b9d",
    "white": "ececea", "ginger": "c9581f",
}  # fmt: skip

DYED_HAIR = {
    name: CLOTHES[name]
    for name in ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
}

SKIN = {"pale": "fbe3d3", "light": "f3c9a5", "tan": "d99a66", "brown": "a0673c", "dark": "5e3a22"}

FACE = {
    name: BACKGROUND[name]
    for name in ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "grey", "brown")
}  # fmt: skip
"""Emoji faces: bright enough for black eyes and mouths."""

IRIS = {"grey": "76778b", "blue": "4b86b4", "green": "588f6b", "hazel": "8f6a4a"}

Colour = tuple[str, str]
"""A colour's name and its hex triplet, as in ("red", "d1302c")."""


def draw_colour(palette: dict[str, str], rng: random.Random, jitter: int = 10) -> Colour:
    """Draw a named colour; each RGB channel moves by up to `jitter` of 255."""
    name = rng.choice(list(palette))
    channels = bytes.fromhex(palette[name])
    moved = bytes(min(255, max(0, c + rng.randint(-jitter, jitter))) for c in channels)
    return name, moved.hex()


def draw_hair(rng: random.Random) -> Colour:
    """Draw a hair colour: natural for seven characters in ten."""
    return draw_colour(NATURAL_HAIR if rng.random() < 0.7 else DYED_HAIR, rng)


def rgb(hex_triplet: str) -> list[float]:
    """Three floats in [0, 1]."""
    return [round(c / 255, 4) for c in bytes.fromhex(hex_triplet)]
