"""`textinv_ray.learn`: a job as a function call."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence

from textinv_ray.api.given import Concepts, manifest_of
from textinv_ray.api.results import Results
from textinv_ray.api.screen import NotebookScreen, is_in_notebook
from textinv_ray.config.job import JobConfig
from textinv_ray.config.machine import load_config
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver import run
from textinv_ray.service.intake import plan, waves
from textinv_ray.service.models import sources
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import ExitCode
from textinv_ray.util.submitted_job import check_lasting

Overrides = Mapping[str, object] | Sequence[str]
"""Settings: `{"training.steps": 200}`, or as for --set: `["training.steps=200"]`."""


def learn(
    concepts: Concepts,
    *,
    preset: str | os.PathLike[str] | None = None,
    overrides: Overrides = (),
    output: str | os.PathLike[str] | None = None,
    verbose: bool = False,
) -> Results:
    """Learns a word for each concept, as `textinv invert` does, and returns them. What is done already is not repeated.

        results = learn({"cat": ["1.jpg", "2.jpg", "3.jpg"]}, preset="sd15", output="results/cat")
        results.generate("a drawing of <cat> on the beach")

    concepts: a mapping of names to images (paths, URIs, bytes, PIL images) or to rows with `images` and other columns
    of a manifest; a list of rows with `concept_id` and `images`; a table with the columns of a manifest (pyarrow,
    polars, pandas); or the path or URI of a manifest. What isn't one is written to the output as one.
    preset: a preset's name or the path of a YAML file; None: `mini`, for the bundled model. overrides: of single
    settings. output: folder or URI; None: `service.output`, by default `results`. verbose: prints the libraries'
    messages as well.

    The job runs on the Ray of `service.ray` or RAY_ADDRESS, and otherwise on one of its own, which ends with it. Raises
    UserError for what is wrong with the concepts, the settings or the model; KeyboardInterrupt when it was interrupted
    (workers have written checkpoints then, and the same call goes on from there). Concepts that failed are in
    `Results.failed`.
    """
    name = None if preset is None else os.fspath(preset)
    config = load_config(name, as_overrides(overrides))
    target = config.service.output if output is None else os.fspath(output)
    check_lasting(target)
    _check_ray()
    store = Store(target)
    manifest = manifest_of(concepts, store)
    screen = NotebookScreen() if is_in_notebook() else None
    try:
        code = run.invert(manifest, config, output=store.uri, verbose=verbose, preset=name, screen=screen)
    finally:
        if screen:
            screen.close()
    if code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if code > ExitCode.INCOMPLETE:
        raise SystemExit(code)
    return _results(store, Manifest.open(manifest), config)


def open_results(output: str | os.PathLike[str]) -> Results:
    """The words of a job's output, a folder or URI; whatever is done, also while the job runs.

    Raises UserError for an output without job.json.
    """
    store = Store(os.fspath(output))
    job = store.job()
    if job is None:
        raise UserError(f"{store.shown} has no job.json: give the output of a job")
    stored = StoredResults.read(store)
    failed = {failure.concept_id: failure.error for failure in stored.without_result}
    return Results(store, job.config(store.shown), [result.concept_id for result in stored.results], failed)


def as_overrides(overrides: Overrides) -> list[str]:
    """As for --set. Raises UserError for values that no setting can have."""
    if isinstance(overrides, Mapping):
        try:
            return [f"{name}={json.dumps(value)}" for name, value in overrides.items()]
        except (TypeError, ValueError) as error:
            raise UserError(f"overrides: {error}; give numbers, texts, lists or None") from None
    if isinstance(overrides, str):
        raise UserError("overrides: give a mapping such as {'training.steps': 200}, or a list of settings")
    return list(overrides)


def _check_ray() -> None:
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        raise UserError(
            "this process is connected to a Ray already: call ray.shutdown() first. learn() starts one of its own, or "
            "joins the one that the setting service.ray names"
        )


def _results(store: Store, manifest: Manifest, config: JobConfig) -> Results:
    """Of the manifest's concepts, those that are done with these settings, in its order."""
    stored, facts = StoredResults.read(store), sources.facts(config.model)
    waved = waves.read(store, manifest, config, facts)
    planned = plan.make(manifest, config, facts, stored, waves=waved)
    todo = dict.fromkeys([*planned.todo, *planned.later])
    ids = [row["concept_id"] for row in manifest.rows(image_bytes=False)]
    job = store.job()
    since = stored.failed_since(job.begun_at if job else 0.0)
    failed = {name: why for name, why in since.items() if name in todo}
    done = [concept_id for concept_id in ids if concept_id not in todo]
    return Results(store, config, done, failed, [name for name in todo if name not in failed])
