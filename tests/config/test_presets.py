"""Presets by name, and what they say of themselves."""

from __future__ import annotations

import pytest

from textinv_ray.config.presets import preset_file, preset_names, purpose, purpose_in_a_line
from textinv_ray.util.errors import UserError


@pytest.mark.parametrize("name", preset_names())
def test_each_says_in_a_line_what_it_is_for(name: str) -> None:
    line = purpose_in_a_line(name)
    assert 15 < len(line) < 130
    assert "\n" not in line
    assert purpose(name).startswith(line)
    assert not line.endswith(("al", "e.g", ":"))


@pytest.mark.parametrize("name", ["kuberay", "", "../configs/mini", "mini.yaml", "x" * 5000, "mini\0"])
def test_other_files_are_none(name: str) -> None:
    with pytest.raises(UserError, match="no configuration"):
        preset_file(name)
