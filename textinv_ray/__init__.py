"""textinv_ray: textual inversion as a batch service on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textinv_ray.service.library.pipelines import load_words as load_words

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Imports `load_words` on first use: it needs torch, which commands that only list things do without."""
    if name == "load_words":
        from textinv_ray.service.library.pipelines import load_words

        return load_words
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
