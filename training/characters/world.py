"""What a drawing style is made of."""

from dataclasses import dataclass, field
from typing import Literal

Slot = Literal["hair", "beard", "glasses", "hat", "extra", "clothes", ""]
"""What a part's caption phrase is about; "" where nothing is said."""


@dataclass(frozen=True)
class Part:
    """A component that belongs to the identity."""

    phrases: dict[str, str]
    """DiceBear's option -> caption phrase; "{hair}" and so on stand for colour names, "" is unsaid."""
    slot: Slot = ""
    probability: float = 1.0
    """How often a character has the part at all. Below 1 only where DiceBear knows a probability."""
    often: tuple[str, ...] = ()
    """Options drawn four times as often as the others."""


@dataclass(frozen=True)
class Accessory:
    """Something a view may add to a character that lacks the component."""

    component: str
    options: tuple[str, ...]
    phrase: str
    """May hold "{accessory}" for the colour's name."""
    slot: Slot
    colour_option: str = ""
    """DiceBear's colour option for it, if it has one."""


Mood = dict[str, tuple[str, ...]]
"""Component -> options that show one mood."""


@dataclass(frozen=True)
class Style:
    """A DiceBear style: parts and colours of identities, moods and accessories of views."""

    key: str
    """DiceBear's name, as in "openPeeps"."""
    word: str
    """The name in captions, as in "open-peeps"; "" for styles that training must not name."""
    nouns: tuple[str, ...]
    main: str
    """The part (hair or head) that takes part in the held-out rule."""
    parts: dict[str, Part]
    colours: dict[str, tuple[str, ...]]
    """Colour slot ("skin", "hair", "clothes", ...) -> DiceBear's colour options."""
    moods: dict[str, Mood]
    """Caption word -> mood; "" is a mood without a word."""
    accessories: tuple[Accessory, ...] = ()
    black_hair: frozenset[str] = field(default_factory=frozenset)
    """Options of the main part that the style always draws in black."""
    fixed: dict[str, str] = field(default_factory=dict)
    """DiceBear options that are the same in every image."""


def numbered(stem: str, count: int, phrase: str = "", digits: int = 2) -> dict[str, str]:
    """Options variant01, variant02, ... that are known only by number, with one phrase for all."""
    return {f"{stem}{i:0{digits}d}": phrase for i in range(1, count + 1)}


def unsaid(*options: str) -> dict[str, str]:
    """Options that captions do not mention."""
    return {option: "" for option in options}
