"""textinv_ray: textual inversion as a batch service on Ray.

    results = textinv_ray.learn({"cat": ["1.jpg", "2.jpg", "3.jpg"]})

`learn` and `open_results` return `Results` of `LearnedConcept`s, `load_words` puts words into diffusers pipelines.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textinv_ray.api.learning import learn as learn
    from textinv_ray.api.learning import open_results as open_results
    from textinv_ray.api.results import LearnedConcept as LearnedConcept
    from textinv_ray.api.results import Results as Results
    from textinv_ray.service.library.pipelines import load_words as load_words
    from textinv_ray.util.errors import UserError as UserError

__version__ = "0.1.0"
_MODULES = {
    "LearnedConcept": "textinv_ray.api.results",
    "Results": "textinv_ray.api.results",
    "UserError": "textinv_ray.util.errors",
    "learn": "textinv_ray.api.learning",
    "load_words": "textinv_ray.service.library.pipelines",
    "open_results": "textinv_ray.api.learning",
}
"""Public name -> the module that has it."""
__all__ = ["LearnedConcept", "Results", "UserError", "__version__", "learn", "load_words", "open_results"]


def __getattr__(name: str) -> object:
    """Imports a public name on first use: most need torch, which commands that only list things do without."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
