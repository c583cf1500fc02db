"""Captions of characters, in the sentence forms that inversion uses later."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from textinv_ray.concepts.templates import templates
from training.effects import EFFECTS
from training.world import COLOURS, HAIR, HELDOUT_STYLES, SKIN, STYLES, names

NAME_COUNT = 2400
BACKGROUND_SAID = 0.7
__all__ = ["HELDOUT_STYLES", "caption", "colour_caption", "full_caption", "vocabulary_words"]


def style_words(style: str) -> str:
    """openPeeps -> open-peeps"""
    return re.sub(r"([A-Z])", r"-\1", style).lower()


def joined(parts: Sequence[str]) -> str:
    """a, b and c"""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def spoken(text: str) -> str:
    """ "a orange shirt" -> "an orange shirt" """
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def attributes(row: dict[str, Any]) -> list[str]:
    """Phrases of parts, skin and an added accessory; the one colour of an emoji or a pattern goes with its noun."""
    said = list(row["phrases"])
    if row["colours"].get("skin"):
        said.append(f"{row['colours']['skin']} skin")
    if row["accessory"]:
        said.append(row["accessory"])
    return said


def noun_of(row: dict[str, Any], noun: str) -> str:
    return f"{row['colours']['clothes']} {noun}" if STYLES[row["style"]].tinted else noun


def described(row: dict[str, Any], rng: np.random.Generator) -> str:
    """A noun with attributes in varied number and order, without its article."""
    said = attributes(row)
    said = [said[i] for i in rng.permutation(len(said))[: int(rng.integers(0, len(said) + 1))]]
    noun = noun_of(row, str(rng.choice(STYLES[row["style"]].nouns)))
    if row["expression"] and rng.random() < 0.5:
        noun = f"{row['expression']} {noun}"
    return noun + (f" with {joined(said)}" if said else "")


def caption(
    row: dict[str, Any],
    rng: np.random.Generator,
    name: str | None = None,
    style_name: str | None = None,
    said: float = BACKGROUND_SAID,
) -> str:
    """A caption; with `name` that word stands for the identity, with `style_name` for the style.

    `said`: how often captions with a name say the background.
    """
    return spoken(_caption(row, rng, name, style_name, said))


def _caption(
    row: dict[str, Any],
    rng: np.random.Generator,
    name: str | None,
    style_name: str | None,
    background_said: float,
) -> str:
    background = f" on {article(row['background'])} background" if row["background"] else ""
    if style_name is not None:
        if rng.random() < 0.5:
            return str(rng.choice(templates("style"))).format(style_name)
        return f"a picture of {article(described(row, rng))} in the style of {style_name}"
    template = str(rng.choice(templates("object"))) if rng.random() < 0.7 else "{}"
    if name is not None:
        subject, said = name, ""
        if row["expression"] and rng.random() < 0.5:
            subject = f"{row['expression']} {name}"
        if row["accessory"] and rng.random() < 0.9:
            said += f" with {row['accessory']}"
        if background and rng.random() < background_said:
            said += background
        if rng.random() < 0.1:
            said += f" in the style of {style_words(row['style'])}"
        return template.format(subject) + said
    subject = described(row, rng)
    said = background if rng.random() < 0.6 else ""
    if rng.random() < 0.6:
        words = style_words(row["style"])
        said += f" in {words} style" if rng.random() < 0.5 else f" in the style of {words}"
    return (template.format(subject) if template != "{}" else article(subject)) + said


def full_caption(row: dict[str, Any]) -> str:
    """Everything that is known, in one order."""
    noun = noun_of(row, STYLES[row["style"]].nouns[0])
    noun = f"{row['expression']} {noun}" if row["expression"] else noun
    said = attributes(row)
    background = f" on {article(row['background'])} background" if row["background"] else ""
    return spoken(
        f"a photo of {article(noun)}"
        + (f" with {joined(said)}" if said else "")
        + background
        + f" in {style_words(row['style'])} style"
    )


def colour_caption(row: dict[str, Any]) -> str:
    """Skin, hair and shirt colours only: what a word must beat, because colour alone raises scores a lot."""
    colours = row["colours"]
    if STYLES[row["style"]].tinted:
        return f"a photo of {article(colours['clothes'])} {STYLES[row['style']].nouns[0]}"
    said = [f"{colours['skin']} skin"] if "skin" in colours else []
    # open-peeps draws some hair in the colour of its hats and the rest black; on bald heads there is none.
    shades = [colours["hair"]] if "hair" in colours else [colours.get("hat"), "black"]
    said += [f"{shade} hair" for shade in shades if any(f"{shade} " in phrase for phrase in row["phrases"])][
        :1
    ]
    said += [f"a {colours['clothes']} shirt"] if "clothes" in colours else []
    return spoken("a photo of a person" + (f" with {joined(said)}" if said else ""))


def vocabulary_words() -> list[str]:
    """Every word that captions, templates and effects can use, and the names."""
    texts = [*COLOURS, *HAIR, *SKIN, *EFFECTS, *templates("object"), *templates("style"), *names(NAME_COUNT)]
    texts += [
        "a an and with in the style of on background skin hair shirt drawing picture image face emoji person wearing",
        "cat dog house tree beach oil painting sketch cartoon boy girl child old young animal toy object thing",
    ]
    for name, style in STYLES.items():
        texts += [*style.nouns, style_words(name)]
        parts = [
            *style.main.values(),
            *(values for _, values in style.optional.values()),
            *style.expression.values(),
        ]
        parts += [dict(style.accessory[1])] if style.accessory else []
        texts += [phrase or "" for values in parts for phrase in values.values()]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})
