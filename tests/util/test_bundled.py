"""Files of the source tree that belong to the package."""

from __future__ import annotations

from tests.support.commands import REPOSITORY
from textinv_ray.manifest.reader import Manifest
from textinv_ray.util import bundled


def test_of_the_source_tree() -> None:
    assert bundled.folders("configs") == [REPOSITORY / "configs"]
    assert bundled.folders("no-such-folder") == []


def test_the_examples_are_eight_concepts() -> None:
    assert Manifest.open(str(bundled.example_manifest())).num_rows == 8
