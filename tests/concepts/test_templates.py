"""The paper's templates."""

from __future__ import annotations

import pytest

from textinv_ray.concepts import templates


@pytest.mark.parametrize(("learnable_property", "count"), [("object", 27), ("style", 19)])
def test_the_papers_lists(learnable_property: str, count: int) -> None:
    found = templates.templates(learnable_property)
    assert len(found) == count
    assert all(template.count(templates.WORD) == 1 for template in found)


def test_objects_are_photographed_and_styles_painted() -> None:
    assert templates.templates("object")[0] == "a photo of a {}"
    assert all("in the style of {}" in template for template in templates.templates("style"))
