"""Records: each field defined once, the same after writing and reading, refused when it is something else."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support import examples
from textinv_ray.config.job import JobConfig
from textinv_ray.service.store import records
from textinv_ray.service.store.records import SCORES, Failure, JobRecord, Record, Result, parse
from textinv_ray.service.views import columns

RECORDS = (
    examples.result("a"),
    examples.job(JobConfig()),
    Failure(concept_id="a", error="x", time=1.5, quarantined=True),
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_every_field_is_explained(record: Record) -> None:
    for name, field in type(record).model_fields.items():
        assert field.description, f"{name} has no docstring"


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_written_and_read_it_is_the_same(record: Record) -> None:
    assert parse(type(record), record.to_bytes()) == record


@given(
    options=st.dictionaries(
        st.text(min_size=1),
        st.text() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    ),
    tags=st.dictionaries(st.text(), st.text()),
    score=st.none() | st.floats(-1, 1),
    steps=st.integers(0, 10**6),
)
def test_any_values_survive(
    options: dict[str, Any], tags: dict[str, str], score: float | None, steps: int
) -> None:
    result = examples.result("a", options=options, tags=tags, clip_image_similarity=score, steps=steps)
    again = parse(Result, result.to_bytes())
    assert again == result
    assert [type(value) for value in again.options.values()] == [type(value) for value in options.values()]


LATER = {
    "status",
    "word_sha256",
    "heldout_images",
    "judge_similarity",
    "judge_similarity_initializer",
}
"""Fields that came after the first results: these are still read."""


@pytest.mark.parametrize("name", sorted(set(Result.model_fields) - LATER))
def test_a_result_without_a_field_is_refused(name: str) -> None:
    fields = json.loads(examples.result("a").to_bytes())
    del fields[name]
    with pytest.raises(ValueError, match=f"{name}: Field required"):
        parse(Result, json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "2"),
        ("steps", -1),
        ("seconds", -0.5),
        ("seconds", None),
        ("stopped", "luck"),
        ("tags", {"a": 1}),
    ],
)
def test_a_wrong_value_is_refused(name: str, value: object) -> None:
    fields = json.loads(examples.result("a").to_bytes()) | {name: value}
    with pytest.raises(ValueError, match=f"^{name}"):
        parse(Result, json.dumps(fields).encode())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_record_holds_what_json_has_no_word_for(number: float) -> None:
    with pytest.raises(ValidationError):
        examples.result("a", final_loss=number)


def test_a_record_is_not_changed() -> None:
    result: Any = examples.result("a")
    with pytest.raises(ValidationError):
        result.steps = 3


def test_what_mlflow_gets() -> None:
    options = {"norm_control": "rescale", "vectors_added_at": (4, 8)}
    result = examples.result("a", options=options, clip_text_similarity_initializer=None)
    params = records.params(result)
    assert params["vectors_added_at"] == [4, 8], "as in result.json"
    assert (params["steps"], params["stopped"], params["norm_control"]) == (2, "steps", "rescale")
    assert "best_step" not in params, "it is null"
    assert records.metrics(result) == {
        "clip_image_similarity_initializer": 0.5,
        "clip_image_similarity_gain": 0.25,
        "judge_similarity_initializer": 0.4,
        "seconds": 12.5,
    }


def test_means_are_over_the_results_that_have_the_score() -> None:
    found = [
        examples.result("a", clip_image_similarity=0.5),
        examples.result("b", clip_image_similarity=1.0, clip_text_similarity=None),
    ]
    means = records.mean_scores(found)
    assert list(means) == list(SCORES)
    assert [means[name].mean for name in ("clip_image_similarity", "clip_text_similarity")] == [0.75, 0.2]
    assert [means[name].values for name in ("clip_image_similarity", "clip_text_similarity")] == [2, 1]
    assert records.mean_scores([]) == {}


def test_the_documented_columns_are_those_of_the_table() -> None:
    rows = [line.split(" | ") for line in columns.columns_table().splitlines()[2:]]
    schema = columns.schema({4})
    assert [row[0].strip("|` ") for row in rows] == schema.names
    assert all(len(row) == 4 and row[3].strip("| ") for row in rows)
    assert schema.field("vectors").type.value_type == pa.list_(pa.float32(), 4)


def test_a_job_has_its_configuration() -> None:
    config = JobConfig.load("mini", ["training.steps=7"])
    job = parse(JobRecord, examples.job(config).to_bytes())
    assert job.config("job.json") == config


def test_messages_of_failures_are_cleaned() -> None:
    """Whatever a library says can be recorded, and shown as it was recorded."""
    error = "image \ud800 x\x1b[31m: https://me:pw@h/a?sig=1\nrefused " + "x" * 300_000
    failure = Failure(concept_id="a", error=error, time=1.5, quarantined=False)
    assert failure.error.startswith("image \\ud800 x\\x1b[31m: https://h/a refused xxx")
    assert len(failure.error) == 2000
    assert parse(Failure, failure.to_bytes()) == failure
