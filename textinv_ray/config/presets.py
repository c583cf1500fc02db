"""The presets: YAML files of `configs/`, each with a comment in front that says what it is for."""

from __future__ import annotations

import re
from pathlib import Path

from textinv_ray.util.bundled import folders
from textinv_ray.util.errors import UserError
from textinv_ray.util.text import nearest


def preset_names() -> list[str]:
    """Names of the presets."""
    return sorted(
        {path.stem for folder in folders("configs") for path in folder.glob("*.yaml") if _is_preset(path)}
    )


def preset_file(name: str) -> Path:
    """The YAML file of a preset. Raises UserError for an unknown name, with the nearest one."""
    if re.fullmatch(r"[\w-]{1,100}", name):
        for folder in folders("configs"):
            path = folder / f"{name}.yaml"
            if path.is_file() and _is_preset(path):
                return path
    known = preset_names()
    raise UserError(
        f"no configuration {name!r}{nearest(name, known)} "
        f"(presets: {', '.join(known)}; or give the path of a .yaml file)"
    )


def purpose(name: str) -> str:
    """What a preset is for: the comment in front of it, without line breaks."""
    lines = preset_file(name).read_text(encoding="utf-8").splitlines()
    first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line[1:].strip() for line in lines[:first])


def purpose_in_a_line(name: str) -> str:
    """The first sentence of `purpose`."""
    return re.split(r"(?<=[.:])\s+(?=[A-Z])", purpose(name))[0].rstrip(".:")


def _is_preset(path: Path) -> bool:
    """Whether a YAML file isn't an object of Kubernetes: configs/ also holds files for clusters."""
    sections = re.findall(r"^([A-Za-z_]\w*):", path.read_text(encoding="utf-8"), re.MULTILINE)
    return bool(sections) and "apiVersion" not in sections
