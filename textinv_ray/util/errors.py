"""Errors that are the user's to mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave us: shown as one message, without a traceback, exit code 2."""
