"""The world that mini-sd knows: characters, and some patterns, of the DiceBear styles, of named parts and colours.

An identity is a style with fixed parts and colours. A view shows it once: background, flip, scale, rotation,
shift, expression, perhaps an accessory. All choices are made here, from seeds, so that captions say exactly
what is drawn.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

COLOURS = {
    "red": "d64541",
    "orange": "f2914a",
    "yellow": "f4d03f",
    "green": "4caf50",
    "teal": "2aa198",
    "blue": "3b7ddd",
    "navy": "24386b",
    "purple": "8e44ad",
    "pink": "f29ac0",
    "white": "f6f6f6",
    "grey": "9a9a9a",
    "black": "1e1e1e",
    "brown": "7b4a2d",
}
HAIR = {
    "black": "1e1a1a",
    "brown": "6b432a",
    "auburn": "8e3b22",
    "blond": "e3c06c",
    "grey": "a8a8a8",
    "white": "efefef",
    "ginger": "d9722e",
    "blue": "3b7ddd",
    "pink": "f08cb8",
    "green": "4caf50",
    "purple": "8e44ad",
}
SKIN = {"pale": "f9e2d4", "light": "f0c8a0", "tan": "d09a6a", "brown": "9c643c", "dark": "5f3a24"}
PALETTES = {"hair": HAIR, "skin": SKIN, "clothes": COLOURS, "hat": COLOURS, "glasses": COLOURS}
HELDOUT_STYLES = ("notionists", "adventurer")
NEVER = {
    "openPeeps": ("mask",),
    "pixelArt": ("accessories",),
    "adventurer": ("earrings",),
    "notionists": ("gesture", "bodyIcon"),
}
"""Parts that are left out: they hide the face, or captions have no word for them."""
ACCESSORIES, TRAINING_ACCESSORIES = 0.12, 0.2
"""How often a view adds an accessory to a character that has none, where its style can draw one."""
COMPOSED = 0.15
"""How often a view for training shows what its style can't draw by itself, see `compose`."""
RESERVED = 12
"""One in so many combinations of style, main part and colours is kept out of training."""


Lenses = tuple[float, float, float, float, float]
"""x and y of the left one's centre, of the right one's, and the radius, in the coordinates of the style's SVG."""
EDITED = ("blue background", "sunglasses")
"""What held-out characters are drawn with as well, to see what real pictures of the card's edits score."""


@dataclass(frozen=True)
class Style:
    """One avatar style: which parts make an identity, which an expression, and how captions call them.

    A phrase may hold {hair} for the name of the hair colour; None: captions say nothing of the part.
    """

    nouns: tuple[str, ...]
    kind: str
    """person, emoji or pattern"""
    main: dict[str, dict[str, str | None]]
    """Part -> value -> phrase: always there; reserved combinations are made of the first part."""
    optional: dict[str, tuple[float, dict[str, str | None]]] = field(default_factory=dict)
    """Part -> (probability, value -> phrase)."""
    expression: dict[str, dict[str, str | None]] = field(default_factory=dict)
    """Part -> value -> caption word; changes with every view."""
    colours: dict[str, str] = field(default_factory=dict)
    """DiceBear's colour option -> palette."""
    accessory: tuple[str, dict[str, str]] | None = None
    """(part, value -> phrase) that a view may add."""
    lenses: Lenses | None = None
    """Where glasses are drawn over the eyes of a style that has no sunglasses."""

    @property
    def has_clothes(self) -> bool:
        return self.kind == "person" and "clothes" in self.colours.values()

    @property
    def tinted(self) -> bool:
        """Whether the palette "clothes" is the colour of the whole, said with the noun: a red emoji."""
        return self.kind != "person" and len(self.colours) == 1

    @property
    def has_background(self) -> bool:
        """Whether views choose the background; elsewhere it is the face itself."""
        return "backgroundColor" not in self.colours


def expanded(values: dict[str, str | None]) -> dict[str, str | None]:
    """Parts that only have numbers: {"short01..03": phrase} -> short01, short02, short03."""
    parts: dict[str, str | None] = {}
    for key, phrase in values.items():
        found = re.fullmatch(r"(\w+?)01\.\.(\d+)", key)
        keys = [f"{found[1]}{number:02d}" for number in range(1, int(found[2]) + 1)] if found else [key]
        parts.update(dict.fromkeys(keys, phrase))
    return parts


def load_styles() -> dict[str, Style]:
    """The table in styles.yaml."""
    styles = {}
    for name, spec in yaml.safe_load(Path(__file__).with_name("styles.yaml").read_text()).items():
        optional = spec.get("optional", {}).items()
        accessory = spec.get("accessory")
        styles[name] = Style(
            nouns=tuple(spec["nouns"]),
            kind=spec.get("kind", "person"),
            main={part: expanded(values) for part, values in spec["main"].items()},
            optional={part: (item["probability"], expanded(item["values"])) for part, item in optional},
            expression={part: expanded(values) for part, values in spec.get("expression", {}).items()},
            colours=spec.get("colours", {}),
            accessory=(accessory["part"], accessory["values"]) if accessory else None,
            lenses=tuple(spec["lenses"]) if "lenses" in spec else None,
        )
    return styles


STYLES = load_styles()
TRAINING_STYLES = tuple(style for style in STYLES if style not in HELDOUT_STYLES)
DRAWN = 4 * [style for style in TRAINING_STYLES if STYLES[style].kind != "pattern"] + [
    style for style in TRAINING_STYLES if STYLES[style].kind == "pattern"
]
"""The styles of one identity after the other: patterns a quarter as often as characters."""


@dataclass(frozen=True)
class Identity:
    """A character: always drawn with these parts and colours."""

    style: str
    parts: dict[str, str]
    colours: dict[str, tuple[str, str]]
    """Palette -> (name, hex)."""

    @property
    def reserved(self) -> bool:
        """Whether this combination of style, main part and colours is kept out of training."""
        main = self.parts[next(iter(STYLES[self.style].main))]
        names = [self.colours.get(kind, ("", ""))[0] for kind in ("skin", "hair", "clothes")]
        digest = hashlib.blake2b("|".join([self.style, main, *names]).encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") % RESERVED == 0

    def features(self) -> list[str]:
        """Categorical features; training makes name vectors from them."""
        parts = [f"{self.style}.{part}={value}" for part, value in self.parts.items()]
        return [
            f"style={self.style}",
            *parts,
            *(f"{kind}={name}" for kind, (name, _) in self.colours.items()),
        ]

    def rgb(self) -> list[float]:
        """Skin, hair and clothes as nine values in [0, 1]; 0.5 where there is none."""
        values = []
        for kind in ("skin", "hair", "clothes"):
            code = self.colours[kind][1] if kind in self.colours else None
            values += [int(code[i : i + 2], 16) / 255 if code else 0.5 for i in (0, 2, 4)]
        return [round(value, 3) for value in values]

    def phrases(self) -> list[str]:
        """What captions can say of the parts."""
        style, said = STYLES[self.style], []
        known = {**style.main, **{part: values for part, (_, values) in style.optional.items()}}
        for part, value in self.parts.items():
            phrase = known[part][value]
            if phrase:
                said.append(phrase.format(**{kind: name for kind, (name, _) in self.colours.items()}))
        if style.has_clothes and not any(
            "{clothes}" in (p or "") for v in style.main.values() for p in v.values()
        ):
            said.append(f"a {self.colours['clothes'][0]} shirt")
        return said


def draw_identity(style: str, rng: np.random.Generator) -> Identity:
    """Any identity of the style, reserved or not."""
    spec, parts, colours = STYLES[style], {}, {}
    for part, values in spec.main.items():
        parts[part] = str(rng.choice(list(values)))
    for part, (probability, values) in spec.optional.items():
        if rng.random() < probability:
            parts[part] = str(rng.choice(list(values)))
    for palette in spec.colours.values():
        names = list(PALETTES[palette])
        # Natural hair four times in five
        names = names[:7] if palette == "hair" and rng.random() < 0.8 else names
        name = str(rng.choice(names))
        colours[palette] = (name, jittered(PALETTES[palette][name], rng))
    return Identity(style, parts, colours)


def jittered(code: str, rng: np.random.Generator) -> str:
    """A colour near the hex code: each channel moved by up to 14 of 255."""
    channels = [int(code[i : i + 2], 16) + int(rng.integers(-14, 15)) for i in (0, 2, 4)]
    return "".join(f"{min(255, max(0, channel)):02x}" for channel in channels)


def draw_view(
    identity: Identity, rng: np.random.Generator, accessories: float = ACCESSORIES
) -> dict[str, Any]:
    """{"background", "expression", "accessory"} for captions and "options" for DiceBear."""
    style = STYLES[identity.style]
    options: dict[str, Any] = {
        "flip": bool(rng.random() < 0.5),
        "scale": int(rng.integers(80, 109)),
        "rotate": int(rng.integers(-8, 9)) % 360,
        "translateX": int(rng.integers(-6, 7)),
        "translateY": int(rng.integers(-6, 7)),
    }
    view: dict[str, Any] = {"background": None, "expression": None, "accessory": None, "options": options}
    if style.has_background:
        view["background"] = str(rng.choice(list(COLOURS)))
        options["backgroundColor"] = [jittered(COLOURS[view["background"]], rng)]
    words = []
    for part, values in style.expression.items():
        value = str(rng.choice(list(values)))
        options[part] = [value]
        if values[value]:
            words.append(values[value])
    view["expression"] = words[-1] if words else None
    for part, (_, values) in style.optional.items():
        options[f"{part}Probability"] = 100 if part in identity.parts else 0
        if part not in identity.parts:
            options[part] = [next(iter(values))]
    for part, value in identity.parts.items():
        options[part] = value if part == "seed" else [value]
    for option, palette in style.colours.items():
        options[option] = [identity.colours[palette][1]]
    if style.accessory and style.accessory[0] not in identity.parts and rng.random() < accessories:
        part, phrases = style.accessory
        value = str(rng.choice(list(phrases)))
        view["accessory"] = phrases[value]
        options[part], options[f"{part}Probability"] = [value], 100
        if part in style.expression:  # glasses that are a kind of eyes: nothing is left of the expression
            options.pop(f"{part}Probability")
            view["expression"] = None
    options |= {f"{part}Probability": 0 for part in NEVER.get(identity.style, ())}
    return view


def compose(identity: Identity, view: dict[str, Any], rng: np.random.Generator) -> None:
    """Now and then change a view of `draw_view` to one that no avatar collection has: what people will ask for.

    Styles without sunglasses of their own (`Style.lenses`) get some drawn over the eyes, or glasses. A face that fills
    the picture with its own colour becomes a round one on a background. "over" and "disc" in `view` are for draw.mjs.
    """
    style = STYLES[identity.style]
    wears_own = "glasses" in identity.parts
    if rng.random() >= COMPOSED or style.kind == "pattern":
        return
    if style.lenses and not wears_own:
        put_on_glasses(style.lenses, view, dark=rng.random() < 0.75)
    if not style.has_background and (not style.lenses or rng.random() < 0.5):
        put_before(style, view, str(rng.choice(list(COLOURS))), rng)


def edited(identity: Identity, view: dict[str, Any], edit: str, rng: np.random.Generator) -> None:
    """Change a view of `draw_view` to one of EDITED, with the style's own sunglasses if it has some."""
    style = STYLES[identity.style]
    if edit == "blue background":
        put_before(style, view, "blue", rng)
        return
    if style.lenses:
        put_on_glasses(style.lenses, view, dark=True)
        return
    parts = {**style.main, **{part: values for part, (_, values) in style.optional.items()}}
    if style.accessory:
        parts[style.accessory[0]] = dict(style.accessory[1])
    part, value = next(
        (part, value) for part, values in parts.items() for value in values if values[value] == "sunglasses"
    )
    view["accessory"], view["options"][part] = "sunglasses", [value]
    if part not in style.main and part not in style.expression:
        view["options"][f"{part}Probability"] = 100


def put_on_glasses(lenses: Lenses, view: dict[str, Any], dark: bool) -> None:
    """Draw glasses or sunglasses over the eyes, in place of those that the view has."""
    view["accessory"], view["over"] = ("sunglasses" if dark else "glasses"), glasses(lenses, dark)
    if "glassesProbability" in view["options"]:
        view["options"]["glassesProbability"] = 0


def put_before(style: Style, view: dict[str, Any], colour: str, rng: np.random.Generator) -> None:
    """Choose the background; a face that fills the picture with its own colour becomes a round one on it."""
    if not style.has_background:
        view["disc"] = view["options"]["backgroundColor"][0]
    view["background"], view["options"]["backgroundColor"] = colour, [jittered(COLOURS[colour], rng)]


def glasses(lenses: Lenses, dark: bool) -> str:
    """SVG of glasses or sunglasses: two lenses that are flat above and round below, and the bridge between them."""
    left, left_y, right, right_y, radius = lenses
    drawn = "".join(
        f'<path d="M{x - radius:.4g} {y - 0.7 * radius:.4g}h{2 * radius:.4g}v{0.6 * radius:.4g}'
        f'a{radius:.4g} {radius:.4g} 0 0 1 {-2 * radius:.4g} 0z"/>'
        for x, y in ((left, left_y), (right, right_y))
    )
    bridge = f'<path d="M{left:.4g} {left_y - 0.5 * radius:.4g}L{right:.4g} {right_y - 0.5 * radius:.4g}"/>'
    fill = "#1b1b22" if dark else "none"
    return f'<g fill="{fill}" stroke="#1b1b22" stroke-width="{0.25 * radius:.4g}">{drawn}{bridge}</g>'


def names(count: int, seed: int = 5) -> list[str]:
    """Pronounceable made-up words of four to seven letters, all different."""
    rng = np.random.default_rng(seed)
    starts, vowels, ends = (
        [*"bdfgjklmnprstvwz", "br", "dr", "kr", "pl", "st", "tr"],
        "aeiou",
        ["", "n", "r", "l", "k", "m"],
    )
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = [
            str(rng.choice(starts)) + str(rng.choice(list(vowels))) for _ in range(int(rng.integers(2, 4)))
        ]
        word = "".join(syllables) + str(rng.choice(ends))
        if 5 <= len(word) <= 7 and word not in ("tiara", "poster"):
            found[word] = None
    return list(found)
