"""Checks of a whole manifest: duplicates, the message with all problems, and speed."""

from __future__ import annotations

import os
import re

import pytest

from tests.support import tiny
from tests.support.tables import CONFIG, Write, good, problems
from textinv_ray.manifest import checks, duplicates
from textinv_ray.manifest.batch import Batch
from textinv_ray.manifest.reader import Manifest
from textinv_ray.util.errors import UserError


def test_the_message_lists_50_and_counts_the_rest(write: Write) -> None:
    path = write(**good(200, steps=[-1] * 200, seed=[-1] + [1] * 199))
    with pytest.raises(UserError) as error:
        checks.check(Manifest.open(path), CONFIG)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{path}: 201 problems in the manifest"
    assert len(lines) == 52
    assert lines[-1] == "  ... and 151 more"
    rows = [int(re.search(r"row (\d+)", line)[1]) for line in lines[1:-1]]  # type: ignore[index]
    assert rows == sorted(rows)


def test_duplicates_are_found_across_batches(write: Write) -> None:
    count = 20_000  # more than two batches
    columns = good(count)
    columns["concept_id"][-1] = "c0"
    columns["placeholder_token"] = [None, "<x>", *[None] * (count - 3), "<X>"]
    found = problems(write(**columns))
    assert [line.split(":")[0] for line in found] == [
        f"row {count - 1} (c0), column 'concept_id'",
        f"row {count - 1} (c0), column 'placeholder_token'",
    ]


def test_equal_hashes_alone_are_no_duplicates(write: Write) -> None:
    columns = good(30)
    columns["concept_id"][29] = "c0"
    opened = Manifest.open(write(**columns))
    found = []
    for values in duplicates.of_manifest(hash_of=lambda text: 0):
        for batch in opened.batches(["concept_id"]):
            values.add(Batch(batch))
        found += [(problem.row, problem.column) for problem in values.problems(opened)]
    assert found == [(29, "concept_id")]


def test_many_rows_take_seconds(write: Write) -> None:
    count = 50_000
    path = write(**good(count, images=[[f"{i}/{k}.jpg" for k in range(4)] for i in range(count)]))
    started = os.times().user
    checks.check(Manifest.open(path), CONFIG, {"clip_l": tiny.tokenizer()})
    assert os.times().user - started < 10  # about 0.5
