"""Errors for users."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can correct. Commands print the message without a traceback and exit with code 2."""


class UnreachableError(UserError):
    """Something that could not be reached. The same may succeed later."""
