"""What a job says at its end."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support import examples
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver import messages
from textinv_ray.service.driver.job import Job, Outcome
from textinv_ray.service.intake import plan
from textinv_ray.service.intake.plan import Plan
from textinv_ray.service.models import sources
from textinv_ray.service.store.keys import Key
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store


@pytest.mark.parametrize(
    ("stopping_seconds", "said"),
    [
        (0.0, "of which 20% for samples and scores)"),
        (5.0, "of which 20% for samples and scores, 40% for choosing the best word)"),
    ],
)
def test_what_was_not_learning_is_told(tmp_path: Path, stopping_seconds: float, said: str) -> None:
    store, console = Store(str(tmp_path)), Console(file=io.StringIO(), width=300)
    for name in ("a", "b"):
        examples.finish(store, name, seconds=12.5, review_seconds=2.5, stopping_seconds=stopping_seconds)
    outcome = Outcome(tuple(store.results()), {"c": "no such image"}, planned=3)
    messages.print_results(console, store, outcome, time.monotonic())
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert said in text
    assert "2 of 3 concepts learned in 0 s, 1 failed" in text
    assert "c: no such image" in text


def test_what_got_worse_is_told(tmp_path: Path) -> None:
    """All are learned, and one is less like its images than the word it started from."""
    store, console = Store(str(tmp_path)), Console(file=io.StringIO(), width=300)
    examples.finish(store, "good")
    examples.finish(store, "bad", clip_image_similarity_initializer=0.594, clip_image_similarity=0.414)
    examples.finish(store, "equal", clip_image_similarity_initializer=0.5, clip_image_similarity=0.5)
    examples.finish(store, "unknown", clip_image_similarity_initializer=None)
    outcome = Outcome(tuple(store.results()), {}, planned=4)
    messages.print_results(console, store, outcome, time.monotonic())
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "4 of 4 concepts learned in 0 s, 0 failed\n1 result got worse than its initializer:\n" in text
    assert text.endswith("  bad: CLIP image similarity 0.594 -> 0.414\n")


def test_what_counts_as_failed(tmp_path: Path) -> None:
    """What this run gave up, unless it is done after all: a silent worker's result may come after that."""
    store, key = Store(str(tmp_path)), Key("row", "stamp")
    done: dict[str, Any] = {"row_fingerprint": "row", "images_mtime_digest": "stamp"}
    for name, changes in (("done", done), ("late", done), ("other", {**done, "row_fingerprint": "older"})):
        examples.finish(store, name, **changes)
    for name, time_s in (
        ("late", 7.0),
        ("other", 7.0),
        ("bad", 7.0),
        ("before", 3.0),
        ("not asked for", 7.0),
    ):
        examples.fail(store, name.replace(" ", "-"), time=time_s)
    names = ("done", "late", "other", "bad", "before")
    outcome = Outcome.of(Plan(todo=dict.fromkeys(names, key)), StoredResults.read(store), began=5.0)
    assert [result.concept_id for result in outcome.done] == ["done", "late"]
    assert sorted(outcome.failed) == ["bad", "other"]
    assert outcome.unfinished == 1


def start_of(job: Job) -> str:
    messages.print_start(job)
    assert isinstance(job.console.file, io.StringIO)
    return job.console.file.getvalue()


def job_of(tmp_path: Path, tiny_sd: Path, tiny_clip: Path, config: JobConfig, preset: str | None) -> Job:
    manifest = Manifest.open(str(examples.write_manifest(tmp_path / "data", 2)))
    facts = sources.facts(examples.config(tiny_sd, tiny_clip).model)
    todo = plan.make(manifest, config, facts, StoredResults())
    store, console = Store(str(tmp_path / "out")), Console(file=io.StringIO(), width=300)
    return Job(store, manifest, config, facts, todo, console, preset)


def test_the_start_says_what_differs_from_the_preset(tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> None:
    overrides = ["training.steps=7", "tracking.uri=https://me:PASSWORD@h/x", "service.output=elsewhere"]
    changed = job_of(tmp_path / "a", tiny_sd, tiny_clip, JobConfig.load("quick", overrides), "quick")
    line = "configuration: quick with training.steps=7, tracking.uri=https://h/x (job.json has all of it)\n"
    assert line in start_of(changed)
    plain = job_of(tmp_path / "b", tiny_sd, tiny_clip, JobConfig.load(), None)
    assert "configuration: mini (job.json has all of it)\n" in start_of(plain)


def test_rows_that_do_not_heed_the_start_are_told(tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> None:
    """The manifest's rows name an initializer; a default start is for rows that don't."""
    line = "  2 of these won't start from training.init_from=auto: their rows have an initializer_token"
    config = examples.config(tiny_sd, tiny_clip, "training.init_from=auto")
    job = job_of(tmp_path / "a", tiny_sd, tiny_clip, config, None)
    assert line in start_of(job)
    console = Console(file=io.StringIO(), width=300)
    messages.print_plan(console, job.plan, config, job.store, (None, "unknown"))
    assert isinstance(console.file, io.StringIO)
    assert line in console.file.getvalue()
    plain = job_of(tmp_path / "b", tiny_sd, tiny_clip, examples.config(tiny_sd, tiny_clip), None)
    assert "won't start" not in start_of(plain)
