"""Errors for users."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can correct. Commands print the message without a traceback and exit with code 2."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"error: {self}"]


class UnreachableError(UserError):
    """Something that could not be reached. The same may succeed later."""
