"""The manifest's tags in MLflow: under a prefix of their own, and with names that MLflow takes."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

PREFIX = "tag."
"""Before the names of a row's own tags: a manifest can't set `approved`, `textinv.job` or `mlflow.parentRunId`."""
_LONGEST = 250  # characters of a name; MLflow refuses longer ones
_REFUSED = re.compile(r"[^/\w.\- :]")


def of_row(tags: Mapping[str, str]) -> dict[str, str]:
    """A row's tags as MLflow gets them: `shelf` as `tag.shelf`, `price ($)` as `tag.price ___`.

    Characters that MLflow refuses become underscores, and long names are cut. A name that is taken then gets a number.
    """
    found: dict[str, str] = {}
    for name, value in tags.items():
        wanted = _REFUSED.sub("_", f"{PREFIX}{name}")
        if posixpath.normpath(wanted) != wanted:  # MLflow takes names for paths: a//b, a/, a/../b
            wanted = wanted.replace("/", "_")
        unique, number = wanted[:_LONGEST], 1
        while unique in found:
            number += 1
            unique = f"{wanted[: _LONGEST - 10]}_{number}"
        found[unique] = value
    return found
