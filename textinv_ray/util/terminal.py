"""What is printed for people: without control characters, which texts of others may hold, and without credentials."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console

from textinv_ray.util.redact import redact_text
from textinv_ray.util.text import printable


def say(text: str, *, err: bool = False) -> None:
    """Prints lines on stdout, or on stderr."""
    typer.echo(printable(redact_text(text)), err=err)


class PlainConsole(Console):
    """A console that prints texts as they are: brackets are brackets, and escape sequences are letters."""

    def __init__(self, **options: Any) -> None:
        """`options`: of rich's Console."""
        super().__init__(
            # Not Jupyter's: in a notebook, rich would show each line as a display of its own, not in `file`
            **{
                "soft_wrap": True,
                "markup": False,
                "highlight": False,
                "emoji": False,
                "force_jupyter": False,
                **options,
            }
        )

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's, with every text made printable."""
        super().print(
            *(printable(item) if isinstance(item, str) else item for item in objects),
            **options,
        )
