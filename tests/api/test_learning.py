"""`textinv_ray.learn` up to the job; the job itself: tests/system/test_package.py."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import textinv_ray
from tests.support import examples
from textinv_ray.api.learning import _results, as_overrides
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake import plan
from textinv_ray.service.models import sources
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a picture."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1.png").write_bytes(examples.png())
    return tmp_path


@pytest.mark.parametrize("value", [7, 1e-3, 5e-5, None, True, "dpmsolver++", [0, 0.5, 1], "a: {} # b"])
def test_settings_as_python_values(value: object) -> None:
    field = {str: "review.prompts.object", list: "review.sample_at", bool: "tracking.enabled"}.get(
        type(value), "training.learning_rate"
    )
    if value == "dpmsolver++":
        field = "review.sampler"
    if value is None:
        field = "data.resolution"
    given = [value] if field == "review.prompts.object" else value
    found: Any = JobConfig.load("mini", as_overrides({field: given}))
    for name in field.split("."):
        found = getattr(found, name)
    assert (list(found) if isinstance(found, tuple) else found) == given


def test_settings_as_texts() -> None:
    assert as_overrides(["training.steps=3"]) == ["training.steps=3"]


@pytest.mark.parametrize(
    ("concepts", "options", "message"),
    [
        ({"cat": ["1.png"]}, {"preset": "sd115"}, "no configuration 'sd115'; did you mean 'sd15'?"),
        ({"cat": ["1.png"]}, {"overrides": {"training.step": 3}}, "no such field; did you mean 'steps'?"),
        ({"cat": ["1.png"]}, {"overrides": "training.steps=3"}, "give a mapping such as"),
        ({"cat": ["1.png"]}, {"overrides": {"training.steps": object()}}, "is not JSON serializable"),
        ({"cat": ["1.png"]}, {"output": ""}, "the path of an output is empty"),
        ({"my cat": ["1.png"]}, {}, "row 0 .*, column 'concept_id'"),
        ({"cat": []}, {}, r"row 0 \(cat\), column 'images': has no images"),
        ({}, {}, "none was given"),
        ("none.parquet", {}, "none.parquet: the manifest doesn't exist"),
    ],
)
def test_what_is_said_of_mistakes(
    concepts: Any, options: dict[str, Any], message: str, tiny_sd: Path, folder: Path
) -> None:
    if not isinstance(options.get("overrides"), str | dict):
        options = {**options, "overrides": {"model.path": str(tiny_sd)}}
    with pytest.raises(UserError, match=message):
        textinv_ray.learn(concepts, **options)
    assert not list(folder.rglob("job.json"))


def test_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTINV_SET", "training.step=3")
    with pytest.raises(UserError, match=r"training\.step: no such field"):
        textinv_ray.learn({"cat": ["1.png"]})


def test_a_submitted_job_needs_an_output_that_lasts(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match="lies in Ray's copy of the working directory"):
        textinv_ray.learn({"cat": ["1.png"]})
    assert not (folder / "results").exists()


def test_what_is_done_is_returned_at_once(folder: Path, tiny_sd: Path, tiny_clip: Path) -> None:
    """Without a Ray; and only what was asked for."""
    store = Store(str(folder / "out"))
    settings = examples.settings(tiny_sd, tiny_clip, "tracking.enabled=false")
    config, manifest = JobConfig.load("mini", settings), str(examples.write_manifest(folder / "data", 2))
    todo = plan.make(Manifest.open(manifest), config, sources.facts(config.model), StoredResults()).todo
    for concept_id, key in todo.items():
        examples.finish(store, concept_id, **key._asdict())
    examples.finish(store, "other")
    results = textinv_ray.learn(manifest, overrides=settings, output=store.uri)
    assert list(results) == ["c0", "c1"]
    assert (results.failed, results.unfinished) == ({}, ())
    assert results["c0"].token == "<c0>"


def test_what_failed_is_what_the_last_run_gave_up(folder: Path, tiny_sd: Path, tiny_clip: Path) -> None:
    store, config = Store(str(folder / "out")), examples.config(tiny_sd, tiny_clip)
    examples.fail(store, "c0", "of an earlier run")
    examples.begin(store, config, folder, 2)
    examples.fail(store, "c1", "image x: is truncated", time=time.time())
    results = _results(store, Manifest.open(str(folder / "data" / "manifest.parquet")), config)
    assert results.failed == {"c1": "image x: is truncated"}
    assert results.unfinished == ("c0",)


def test_public_names() -> None:
    assert set(textinv_ray.__all__) <= set(dir(textinv_ray))
    for name in textinv_ray.__all__:
        assert getattr(textinv_ray, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lern'"):
        textinv_ray.lern  # noqa: B018
