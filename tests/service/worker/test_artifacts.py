"""What results say of a concept."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support import tiny
from tests.support.fields import column_values
from textinv_ray.concepts.concept import Concept
from textinv_ray.manifest.columns import COLUMNS, Column
from textinv_ray.service.worker import artifacts

SETTINGS = {name: column for name, column in COLUMNS.items() if name != "images"}


@pytest.mark.parametrize("column", SETTINGS.values(), ids=list(SETTINGS))
@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_options_are_listed_unless_they_are_the_default(column: Column, data: st.DataObject) -> None:
    concept = tiny.concept()
    assert artifacts.options(concept) == {}
    value = data.draw(column_values(column))
    value = tuple(value) if isinstance(value, list) else value
    assume(value != getattr(concept, column.name))
    changed = Concept(**{**vars(concept), column.name: value})
    assert artifacts.options(changed) == ({column.name: value} if column.is_option else {})


def test_a_schedule_of_a_concepts_own_is_listed() -> None:
    assert artifacts.options(tiny.concept(lr_schedule="cosine")) == {"lr_schedule": "cosine"}
