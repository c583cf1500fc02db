"""The code that docs/notebook.md shows, run as it stands there except for the number of steps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.commands import REPOSITORY
from textinv_ray.inversion import load_learned_embeds

PAGE = REPOSITORY / "docs" / "notebook.md"


def documented_code() -> str:
    """The first Python block under the heading "Without Ray"."""
    page = PAGE.read_text(encoding="utf-8")
    _, heading, section = page.partition("## Without Ray\n")
    assert heading, f"{PAGE} has no heading 'Without Ray'"
    block = re.search(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert block, f"{PAGE} has no Python block below 'Without Ray'"
    return block[1]


def test_the_documented_code_learns_a_word(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder where the paths that it names lead to a tiny model and to three pictures."""
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "textinv_ray" / "models"
    models.mkdir(parents=True)
    (models / "mini-sd").symlink_to(tiny_sd)
    (tmp_path / "cat").mkdir()
    for number in (1, 2, 3):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"cat/{number}.png")

    code, names = documented_code(), dict[str, Any]()
    assert code.count("training.steps=200") == 1
    exec(compile(code.replace("training.steps=200", "training.steps=4"), str(PAGE), "exec"), names)

    assert names["task"].done
    assert names["task"].step == 4
    assert names["images"].shape == (4, 16, 16, 3)
    token, vectors = load_learned_embeds(
        names["backbone"], (tmp_path / "learned_embeds.safetensors").read_bytes()
    )
    assert token == "<cat>"
    assert vectors.equal(names["task"].vectors)
    assert not vectors.equal(names["task"].initial_vectors)
