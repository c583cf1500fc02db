"""The world that mini-sd knows: characters of the DiceBear avatar styles, composed from named parts and colours.

An identity is a style with fixed parts and colours. A view shows it once: background, flip, scale, rotation, shift,
expression, perhaps an accessory. All choices are made here, from seeds, so that captions say exactly what is drawn.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

COLOURS = {
    "red": "d64541", "orange": "f2914a", "yellow": "f4d03f", "green": "4caf50", "teal": "2aa198", "blue": "3b7ddd",
    "navy": "24386b", "purple": "8e44ad", "pink": "f29ac0", "white": "f6f6f6", "grey": "9a9a9a", "black": "1e1e1e",
    "brown": "7b4a2d",
}
HAIR = {
    "black": "1e1a1a", "brown": "6b432a", "auburn": "8e3b22", "blond": "e3c06c", "grey": "a8a8a8", "white": "efefef",
    "ginger": "d9722e", "blue": "3b7ddd", "pink": "f08cb8", "green": "4caf50", "purple": "8e44ad",
}
SKIN = {"pale": "f9e2d4", "light": "f0c8a0", "tan": "d09a6a", "brown": "9c643c", "dark": "5f3a24"}
PALETTES = {"hair": HAIR, "skin": SKIN, "clothes": COLOURS, "hat": COLOURS, "glasses": COLOURS}
HELDOUT_STYLES = ("notionists", "adventurer")
RESERVED = 12
"""One in so many combinations of style, main part and colours is kept out of training."""


def numbered(prefix: str, count: int, phrase: str | None = None) -> dict[str, str | None]:
    """Parts that only have numbers: prefix01, prefix02, ..."""
    return {f"{prefix}{number:02d}": phrase for number in range(1, count + 1)}


@dataclass(frozen=True)
class Style:
    """One avatar style: which parts make an identity, which an expression, and how captions call them.

    A phrase may hold {hair} for the name of the hair colour; None means that captions say nothing of the part.
    """

    nouns: tuple[str, ...]
    main: dict[str, dict[str, str | None]]
    """Part -> value -> phrase: always there; the first part is the one that held-out combinations are made of."""
    optional: dict[str, tuple[float, dict[str, str | None]]] = field(default_factory=dict)
    """Part -> (probability, value -> phrase)."""
    expression: dict[str, dict[str, str | None]] = field(default_factory=dict)
    """Part -> value -> caption word; changes with every view."""
    colours: dict[str, str] = field(default_factory=dict)
    """DiceBear's colour option -> palette."""
    accessory: tuple[str, dict[str, str]] | None = None
    """(part, value -> phrase) that a view may add."""

    @property
    def has_clothes(self) -> bool:
        return "clothes" in self.colours.values()


PERSON = ("person", "character", "portrait", "man", "woman")
_SHORT, _LONG = "short {hair} hair", "long {hair} hair"

STYLES = {
    "openPeeps": Style(
        PERSON,
        {"head": {
            "afro": "a black afro", "bangs": "black bangs", "bangs2": "black bangs", "bantuKnots": "black bantu knots",
            "bear": "a bear hat", "bun": "black hair in a bun", "bun2": "black hair in a bun", "buns": "black buns",
            "cornrows": "black cornrows", "cornrows2": "black cornrows", "dreads1": "black dreadlocks",
            "dreads2": "black dreadlocks", "flatTop": "a black flat top", "flatTopLong": "a black flat top",
            "hatBeanie": "a beanie", "hatHip": "a hat", "hijab": "a hijab", "long": "long black hair", "longAfro": "a long black afro",
            "longBangs": "long black hair with bangs", "longCurly": "long curly black hair", "medium1": "medium black hair",
            "medium2": "medium black hair", "medium3": "medium black hair", "mediumBangs": "medium black hair with bangs",
            "mediumStraight": "straight black hair", "mohawk": "a black mohawk", "mohawk2": "a black mohawk",
            "noHair1": "a bald head", "noHair2": "a bald head", "pomp": "a black pompadour", "shaved1": "shaved black hair",
            "shaved2": "shaved black hair", "short1": "short black hair", "short2": "short black hair", "short3": "short black hair", "short4": "short black hair",
            "short5": "short black hair", "turban": "a turban", "twists": "black twists", "twists2": "black twists",
        }},
        {"facialHair": (0.25, {
            "chin": "a chin beard", "full": "a beard", "full2": "a beard", "full3": "a beard", "full4": "a long beard",
            "goatee1": "a goatee", "goatee2": "a goatee", "moustache1": "a moustache", "moustache3": "a moustache",
            "moustache5": "a moustache", "moustache9": "a moustache"}),
         "accessories": (0.25, {
             "glasses": "glasses", "glasses2": "glasses", "glasses3": "glasses", "eyepatch": "an eyepatch",
             "sunglasses": "sunglasses", "sunglasses2": "sunglasses"})},
        {"face": {
            "angryWithFang": "angry", "awe": "surprised", "blank": None, "calm": "calm", "cheeky": "cheeky",
            "concerned": "worried", "cute": "smiling", "driven": "serious", "eatingHappy": "smiling", "fear": "scared",
            "lovingGrin1": "grinning", "lovingGrin2": "grinning", "rage": "angry", "serious": "serious", "smile": "smiling",
            "smileBig": "smiling", "smileLOL": "laughing", "solemn": "serious", "suspicious": "suspicious", "tired": "tired",
            "veryAngry": "angry", "eyesClosed": "sleepy"}},
        {"skinColor": "skin", "headContrastColor": "hat", "clothingColor": "clothes"},
        ("accessories", {"sunglasses": "sunglasses", "glasses": "glasses"}),
    ),
    "bigSmile": Style(
        ("face", "person", "character", "head"),
        {"hair": {
            "shortHair": _SHORT, "mohawk": "a {hair} mohawk", "wavyBob": "a wavy {hair} bob", "bowlCutHair": "a {hair} bowl cut",
            "curlyBob": "a curly {hair} bob", "straightHair": "straight {hair} hair", "braids": "{hair} braids",
            "shavedHead": "a shaved head", "bunHair": "{hair} hair in a bun", "froBun": "a {hair} afro bun", "bangs": "{hair} bangs",
            "halfShavedHead": "a half shaved head", "curlyShortHair": "short curly {hair} hair"}},
        {"accessories": (0.35, {
            "catEars": "cat ears", "glasses": "glasses", "sailormoonCrown": "a tiara", "clownNose": "a clown nose",
            "sleepMask": "a sleep mask", "sunglasses": "sunglasses", "faceMask": "a face mask", "mustache": "a moustache"})},
        {"eyes": {"cheery": None, "normal": None, "confused": "confused", "starstruck": "starstruck", "winking": "winking",
                  "sleepy": "sleepy", "sad": "sad", "angry": "angry"},
         "mouth": {"openedSmile": "smiling", "unimpressed": None, "gapSmile": "smiling", "openSad": None,
                   "teethSmile": "grinning", "awkwardSmile": None, "braces": "smiling", "kawaii": None}},
        {"skinColor": "skin", "hairColor": "hair"},
        ("accessories", {"sunglasses": "sunglasses", "glasses": "glasses"}),
    ),
    "micah": Style(
        PERSON,
        {"hair": {
            "fonze": "swept {hair} hair", "mrT": "a {hair} mohawk", "dougFunny": "a few {hair} hairs", "mrClean": "a bald head",
            "dannyPhantom": "spiky {hair} hair", "full": "full {hair} hair", "turban": "a {hair} turban",
            "pixie": "{hair} hair in a pixie cut"},
         "shirt": {"open": "an open {clothes} shirt", "crew": "a {clothes} shirt", "collared": "a collared {clothes} shirt"},
         "nose": {"curve": None, "pointed": None, "tound": None}, "ears": {"attached": None, "detached": None}},
        {"facialHair": (0.25, {"beard": "a beard", "scruff": "a stubble beard"}),
         "glasses": (0.25, {"round": "round {glasses} glasses", "square": "square {glasses} glasses"}),
         "earrings": (0.25, {"hoop": "hoop earrings", "stud": "stud earrings"})},
        {"mouth": {"surprised": "surprised", "laughing": "laughing", "nervous": "nervous", "smile": "smiling", "sad": "sad",
                   "pucker": None, "frown": "frowning", "smirk": "smirking"},
         "eyes": {"eyes": None, "round": None, "eyesShadow": None, "smiling": None},
         "eyebrows": {"up": None, "down": None, "eyelashesUp": None}},
        {"baseColor": "skin", "hairColor": "hair", "shirtColor": "clothes", "glassesColor": "glasses"},
        ("glasses", {"round": "round glasses", "square": "square glasses"}),
    ),
    "personas": Style(
        PERSON,
        {"hair": {
            "long": _LONG, "sideShave": "side shaved {hair} hair", "shortCombover": "a short {hair} combover",
            "curlyHighTop": "a curly {hair} high top", "bobCut": "a {hair} bob", "curly": "curly {hair} hair",
            "pigtails": "{hair} pigtails", "curlyBun": "a curly {hair} bun", "buzzcut": "a {hair} buzzcut",
            "bobBangs": "a {hair} bob with bangs", "bald": "a bald head", "balding": "balding {hair} hair", "cap": "a cap",
            "bunUndercut": "a {hair} bun", "fade": "a {hair} fade", "beanie": "a beanie", "straightBun": "a {hair} bun",
            "extraLong": "very long {hair} hair", "shortComboverChops": "a short {hair} combover", "mohawk": "a {hair} mohawk"},
         "body": {"squared": "a {clothes} shirt", "rounded": "a {clothes} shirt", "small": "a {clothes} shirt",
                  "checkered": "a checkered {clothes} shirt"},
         "nose": {"mediumRound": None, "smallRound": None, "wrinkles": None}},
        {"facialHair": (0.3, {"beardMustache": "a beard", "pyramid": "a moustache", "walrus": "a walrus moustache",
                              "goatee": "a goatee", "shadow": "a stubble beard", "soulPatch": "a goatee"})},
        {"eyes": {"open": None, "sleep": "sleepy", "wink": "winking", "happy": "happy"},
         "mouth": {"smile": "smiling", "frown": "frowning", "surprise": "surprised", "pacifier": None, "bigSmile": "smiling",
                   "smirk": "smirking", "lips": None}},
        {"skinColor": "skin", "hairColor": "hair", "clothingColor": "clothes"},
        ("eyes", {"sunglasses": "sunglasses", "glasses": "glasses"}),
    ),
    "toonHead": Style(
        PERSON,
        {"hair": {"sideComed": "combed {hair} hair", "undercut": "a {hair} undercut", "spiky": "spiky {hair} hair",
                  "bun": "{hair} hair in a bun"},
         "clothes": {"turtleNeck": "a {clothes} turtleneck", "openJacket": "a {clothes} jacket", "dress": "a {clothes} dress",
                     "shirt": "a {clothes} shirt", "tShirt": "a {clothes} t-shirt"}},
        {"rearHair": (0.5, {"longStraight": _LONG, "longWavy": "long wavy {hair} hair", "shoulderHigh": "shoulder long {hair} hair",
                            "neckHigh": None}),
         "beard": (0.25, {"moustacheTwirl": "a moustache", "fullBeard": "a beard", "chin": "a chin beard",
                          "chinMoustache": "a goatee", "longBeard": "a long beard"})},
        {"eyes": {"happy": None, "wide": None, "bow": None, "humble": None, "wink": "winking"},
         "eyebrows": {"raised": None, "angry": "angry", "happy": None, "sad": None, "neutral": None},
         "mouth": {"laugh": "laughing", "angry": None, "agape": "surprised", "smile": "smiling", "sad": "sad"}},
        {"skinColor": "skin", "hairColor": "hair", "clothesColor": "clothes"},
    ),
    "miniavs": Style(
        PERSON,
        {"hair": {"balndess": "a bald head", "slaughter": "swept {hair} hair", "ponyTail": "a {hair} ponytail", "long": _LONG,
                  "curly": "curly {hair} hair", "stylish": "stylish {hair} hair", "elvis": "a {hair} pompadour",
                  "classic02": _SHORT, "classic01": _SHORT},
         "head": {"normal": None, "wide": "a wide head", "thin": "a thin head"},
         "body": {"tShirt": "a {clothes} t-shirt", "golf": "a {clothes} polo shirt"}},
        {"mustache": (0.25, {"pencilThinBeard": "a thin beard", "pencilThin": "a thin moustache", "horshoe": "a horseshoe moustache",
                             "freddy": "a moustache"}),
         "glasses": (0.2, {"normal": "glasses"}), "blushes": (0.4, {"default": "red cheeks"})},
        {"eyes": {"normal": None, "confident": "confident", "happy": "happy"}, "mouth": {"default": None, "missingTooth": "grinning"}},
        {"skinColor": "skin", "hairColor": "hair", "bodyColor": "clothes"},
        ("glasses", {"normal": "glasses"}),
    ),
    "dylan": Style(
        ("face", "person", "character", "head"),
        {"hair": {"plain": "plain {hair} hair", "wavy": "wavy {hair} hair", "shortCurls": "short {hair} curls",
                  "parting": "parted {hair} hair", "spiky": "spiky {hair} hair", "roundBob": "a round {hair} bob",
                  "longCurls": "long {hair} curls", "buns": "{hair} buns", "bangs": "{hair} bangs", "fluffy": "fluffy {hair} hair",
                  "flatTop": "a {hair} flat top", "shaggy": "shaggy {hair} hair"}},
        {"facialHair": (0.25, {"default": "a beard"})},
        {"mood": {"happy": "happy", "angry": "angry", "neutral": None, "superHappy": "laughing", "sad": "sad",
                  "hopeful": "hopeful", "confused": "confused"}},
        {"skinColor": "skin", "hairColor": "hair"},
    ),
    "funEmoji": Style(
        ("emoji", "emoji face", "face"),
        {"eyes": {"sad": "sad eyes", "tearDrop": "a tear", "pissed": "angry eyes", "cute": "cute eyes", "wink": "a wink",
                  "wink2": "a wink", "plain": "plain eyes", "glasses": "glasses", "closed": "closed eyes", "love": "heart eyes",
                  "stars": "star eyes", "shades": "sunglasses", "closed2": "closed eyes", "crying": "crying eyes",
                  "sleepClose": "sleepy eyes"},
         "mouth": {"plain": "a plain mouth", "lilSmile": "a little smile", "sad": "a sad mouth", "shy": "a shy mouth",
                   "cute": "a cute mouth", "wideSmile": "a wide smile", "shout": "a shouting mouth", "smileTeeth": "a toothy smile",
                   "smileLol": "a laughing mouth", "pissed": "an angry mouth", "drip": "a dripping mouth",
                   "tongueOut": "its tongue out", "kissHeart": "a kiss", "sick": "a sick mouth", "faceMask": "a face mask"}},
        {}, {}, {"backgroundColor": "clothes"},
    ),
    "pixelArt": Style(
        PERSON,
        {"hair": numbered("short", 24, _SHORT) | numbered("long", 21, _LONG),
         "clothing": numbered("variant", 23, "a {clothes} shirt"), "eyes": numbered("variant", 12)},
        {"beard": (0.12, numbered("variant", 8, "a beard")),
         "glasses": (0.2, numbered("light", 7, "glasses") | numbered("dark", 7, "sunglasses")),
         "hat": (0.12, numbered("variant", 10, "a {hat} hat"))},
        {"mouth": numbered("happy", 13, "happy") | numbered("sad", 10, "sad")},
        {"skinColor": "skin", "hairColor": "hair", "clothingColor": "clothes", "hatColor": "hat"},
        ("glasses", {"dark01": "sunglasses", "light01": "glasses"}),
    ),
    "bigEars": Style(
        ("person", "character", "portrait", "face"),
        {"hair": numbered("short", 20, _SHORT) | numbered("long", 20, _LONG), "ear": numbered("variant", 8),
         "face": numbered("variant", 10), "frontHair": numbered("variant", 12), "nose": numbered("variant", 12)},
        {"sideburn": (0.3, numbered("variant", 7)), "cheek": (0.4, numbered("variant", 6))},
        {"eyes": numbered("variant", 32), "mouth": {f"variant0{row}0{column}": None for row in (1, 2, 3) for column in range(1, 6)}},
        {"skinColor": "skin", "hairColor": "hair"},
    ),
    "adventurer": Style(
        PERSON,
        {"hair": numbered("short", 19, _SHORT) | numbered("long", 26, _LONG)},
        {"glasses": (0.2, numbered("variant", 5, "glasses")), "features": (0.2, {"mustache": "a moustache", "freckles": "freckles"})},
        {"eyes": numbered("variant", 26), "mouth": numbered("variant", 30), "eyebrows": numbered("variant", 15)},
        {"skinColor": "skin", "hairColor": "hair"},
    ),
    "notionists": Style(
        PERSON,
        {"hair": numbered("variant", 63), "body": numbered("variant", 25), "nose": numbered("variant", 20)},
        {"beard": (0.2, numbered("variant", 12, "a beard")), "glasses": (0.2, numbered("variant", 11, "glasses"))},
        {"eyes": numbered("variant", 5), "lips": numbered("variant", 30), "brows": numbered("variant", 13)},
    ),
}
TRAINING_STYLES = tuple(style for style in STYLES if style not in HELDOUT_STYLES)


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
        return [f"style={self.style}", *parts, *(f"{kind}={name}" for kind, (name, _) in self.colours.items())]

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
        if style.has_clothes and self.style != "funEmoji" and not any("{clothes}" in (p or "") for v in style.main.values() for p in v.values()):
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


def draw_view(identity: Identity, rng: np.random.Generator) -> dict[str, Any]:
    """{"background", "expression", "accessory"} for captions and "options" for DiceBear."""
    style = STYLES[identity.style]
    options: dict[str, Any] = {
        "flip": bool(rng.random() < 0.5), "scale": int(rng.integers(80, 109)), "rotate": int(rng.integers(-8, 9)) % 360,
        "translateX": int(rng.integers(-6, 7)), "translateY": int(rng.integers(-6, 7)),
    }
    view: dict[str, Any] = {"background": None, "expression": None, "accessory": None, "options": options}
    if identity.style != "funEmoji":
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
        options[part] = [value]
    for option, palette in style.colours.items():
        options[option] = [identity.colours[palette][1]]
    if style.accessory and style.accessory[0] not in identity.parts and rng.random() < 0.12:
        part, values = style.accessory
        value = str(rng.choice(list(values)))
        view["accessory"] = values[value]
        options[part], options[f"{part}Probability"] = [value], 100
        if part in style.expression:
            options.pop(f"{part}Probability")
    if identity.style == "openPeeps":
        options["maskProbability"] = 0
    if identity.style == "pixelArt":
        options["accessoriesProbability"] = 0
    if identity.style == "adventurer":
        options["earringsProbability"] = 0
    if identity.style == "notionists":
        options["gestureProbability"], options["bodyIconProbability"] = 0, 0
    return view


def names(count: int, seed: int = 5) -> list[str]:
    """Pronounceable made-up words of four to seven letters, all different."""
    rng = np.random.default_rng(seed)
    starts, vowels, ends = list("bdfgjklmnprstvwz") + ["br", "dr", "kr", "pl", "st", "tr"], "aeiou", ["", "n", "r", "l", "k", "m"]
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = [str(rng.choice(starts)) + str(rng.choice(list(vowels))) for _ in range(int(rng.integers(2, 4)))]
        word = "".join(syllables) + str(rng.choice(ends))
        if 5 <= len(word) <= 7 and word not in ("tiara", "poster"):
            found[word] = None
    return list(found)
