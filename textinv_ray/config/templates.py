"""The training prompts of Gal et al. 2022 ("An Image is Worth One Word"), copied from the authors' code.

The object templates derive from CLIP's ImageNet prompts (Radford et al. 2021). As in the authors' list, two style
templates appear twice.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

WORD = "{}"
"""Marks the place of the learned word in a template or prompt."""


@cache
def templates(learnable_property: str) -> tuple[str, ...]:
    """The 27 object or 19 style templates, each with one `{}`. `learnable_property`: "object" or "style"."""
    file = resources.files("textinv_ray.config") / f"{learnable_property}_templates.txt"
    return tuple(line for line in file.read_text(encoding="utf-8").splitlines() if line)
