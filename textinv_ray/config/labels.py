"""Selectors of a cluster's nodes by Ray's labels: what may be written, and which nodes they match.

{ray.io/market-type: spot}                  the label has this value
{ray.io/accelerator-type: "in(A100,H100)"}  one of these; `!spot` and `!in(...)`: another value, or no such label
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

_PART = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_KEY = re.compile(rf"(?:(?P<prefix>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)/)?{_PART}")
_LONGEST_PREFIX = 253
_VALUE = re.compile(rf"(?P<no>!?)(?:(?P<one>{_PART})|in\((?P<some>{_PART}(?:, ?{_PART})*)\))")


def _checked(selector: dict[str, str]) -> dict[str, str]:
    for key, value in selector.items():
        found = _KEY.fullmatch(key)
        if not found or len(found["prefix"] or "") > _LONGEST_PREFIX:
            raise ValueError(f"{key!r} is no label; labels look like ray.io/market-type")
        if not _VALUE.fullmatch(value):
            raise ValueError(
                f"{value!r} selects no label: write a value, !value, in(value,value) or !in(value,value)"
            )
    return selector


LabelSelector = Annotated[dict[str, str], AfterValidator(_checked)]
"""Label -> what its value must be. A node must match all of them; an empty selector matches every node."""


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels is selected."""
    for key, wanted in selector.items():
        found = _VALUE.fullmatch(wanted)
        assert found is not None, "it was checked when the configuration was read"
        values = re.split(", ?", found["one"] or found["some"])
        if (labels.get(key) in values) == bool(found["no"]):
            return False
    return True


def shown(selector: Mapping[str, str]) -> str:
    """For people: `ray.io/market-type=spot`; "any node" without a label."""
    return ", ".join(f"{key}={value}" for key, value in selector.items()) or "any node"
