"""A predictor in the hand of a job: named by its bytes, and in place of what a row says."""

from __future__ import annotations

from tests.support import catalogue
from textinv_ray.concepts import predictor
from textinv_ray.concepts.predicted_start import PredictedStart


def start(seed: int) -> PredictedStart:
    return PredictedStart(predictor.fit(catalogue.examples(12, first=seed)).to_bytes())


def test_its_name_is_that_of_its_bytes() -> None:
    assert start(0).name == start(0).name != start(50).name
    assert start(0).predictor.counts == (1,)


def test_it_stands_in_place_of_the_initializer() -> None:
    row = {"concept_id": "c", "initializer_token": "cat", "steps": 3}
    assert start(0).of(row) == {**row, "init_from": start(0).name}
    assert "init_from" not in row
