"""The paper's training prompts, where concepts take them from."""

from textinv_ray.config.templates import WORD, templates

__all__ = ["WORD", "templates"]
