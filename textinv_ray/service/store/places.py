"""Where files of a store may lie: inside its root, whatever names its data gives.

Names are built from ids that were read from manifests and records, and an output may come from a stranger. So an id is
checked where it is read, and each path once more where it is opened.
"""

from __future__ import annotations

import os
import re

from textinv_ray.util.errors import UserError

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class OutsideError(UserError, ValueError):
    """A name that would lead out of the store."""


def is_concept_id(text: str) -> bool:
    """Whether this can name a concept's folder and files: 1 to 128 letters, digits, dots, underscores, dashes."""
    return bool(_ID.fullmatch(text)) and text not in (".", "..")


def checked_id(concept_id: str) -> str:
    """The id, if it names a folder inside the store. Raises OutsideError otherwise."""
    if not is_concept_id(concept_id):
        raise OutsideError(f"concept_id {concept_id[:200]!r} can't name a folder")
    return concept_id


def checked_name(name: str) -> str:
    """A file's or folder's name in the store, such as `concepts/cat/result.json`, if it has no way up or out.

    Raises OutsideError otherwise.
    """
    if name.startswith("/") or "\0" in name or ".." in name.replace("\\", "/").split("/"):
        raise OutsideError(f"{name[:200]!r} can't name a file in an output")
    return name


def leads_out(root: str, name: str) -> bool:
    """Whether a link on the way from the local folder `root` to `name` in it ends outside of `root`.

    `root` itself may be a link. A file that doesn't exist leads nowhere.
    """
    path = root
    for part in name.split("/"):
        path = f"{path}/{part}"
        if os.path.islink(path):
            inside, found = os.path.realpath(root or "/"), os.path.realpath(f"{root}/{name}")
            return os.path.commonpath((inside, found)) != inside
    return False
