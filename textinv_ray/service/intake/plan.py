"""Compares the manifest with the store: which concepts a job has to learn. Needs neither Ray nor a model."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from textinv_ray.concepts import fetch, prepare, settings
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.columns import Row
from textinv_ray.manifest.reader import Manifest
from textinv_ray.model_files.places import is_bundled
from textinv_ray.service.intake.waves import Waves
from textinv_ray.service.models.sources import ModelFacts
from textinv_ray.service.store.keys import Key
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.sizing.estimates import Estimate, Work
from textinv_ray.util.collection import no_cycle_search
from textinv_ray.util.errors import UserError
from textinv_ray.util.text import nearest

_SHOWN_MISSING = 20
# For estimates before anything was measured
_USUAL_GPU = "a100-80"
_USUAL_IMAGES = 5  # of a concept


@dataclass
class Plan:
    """What has to be done for the rows that `--only` and `--limit` select."""

    done: set[str] = field(default_factory=set)
    """Concepts whose result in the store is up to date."""
    todo: dict[str, Key] = field(default_factory=dict)
    """Concepts that must be learned, each with the key that its result will have."""
    later: set[str] = field(default_factory=set)
    """Concepts that must be learned once a predictor was fitted on the first part's words."""
    later_steps: int = 0
    """Optimizer steps of all concepts in `later`."""
    later_samples: int = 0
    """Training samples of all concepts in `later`."""
    steps: int = 0
    """Optimizer steps of all concepts in `todo`."""
    samples: int = 0
    """Training samples of all concepts in `todo`: steps times batch size."""
    with_result: set[str] = field(default_factory=set)
    """Concepts in `todo` and `later` that have a result for other settings, or possibly for other images."""
    own_start: int = 0
    """Concepts in `todo` that don't start from `training.init_from`, because their rows have an initializer_token."""
    configured_start: int = 0
    """Concepts in `todo` that start from `training.init_from`."""
    missing: list[str] = field(default_factory=list)
    """Local images that don't exist, at most 20."""
    digest: str = ""
    """Digest of the rows' fingerprints, which identifies the manifest together with the configuration."""

    def then(self, rest: Plan) -> Plan:
        """This plan of a first part together with the plan of what was `later`."""
        return replace(
            self,
            done=self.done | rest.done,
            todo=self.todo | rest.todo,
            later=set(),
            later_steps=0,
            later_samples=0,
            steps=self.steps + rest.steps,
            samples=self.samples + rest.samples,
            own_start=self.own_start + rest.own_start,
            configured_start=self.configured_start + rest.configured_start,
        )


@no_cycle_search()
def make(
    manifest: Manifest,
    config: JobConfig,
    facts: ModelFacts,
    stored: StoredResults,
    *,
    only: Collection[str] = (),
    limit: int | None = None,
    waves: Waves | None = None,
) -> Plan:
    """Reads the manifest once and compares each row with the results in the store.

    `only`: ids to select; empty: all. `limit`: the most rows to take. `waves`: those of the job. A word that was
    learned plainly stays what it is when waves come later. Raises UserError for an id in `only` that the manifest
    doesn't have, and when the selection has concepts after the first part, but not all of that part.
    """
    results = {result.concept_id: result.key for result in stored.results}
    plan, digest = Plan(), hashlib.sha256()
    known: set[str] = set()
    for row in itertools.islice(_rows(manifest, only, known), limit):
        concept_id = row["concept_id"]
        fingerprint = prepare.row_fingerprint(
            row, config, resolution=facts.resolution, model_identity=facts.identity
        )
        digest.update(fingerprint.encode())
        mtime_digest = ""
        if "file" in config.data.allowed_protocols:  # otherwise not even a file's existence may be revealed
            local = fetch.local_files(prepare.files(row, config), manifest.base)
            mtime_digest = local.mtime_digest
            plan.missing += local.missing[: _SHOWN_MISSING - len(plan.missing)]
        key = Key(fingerprint, mtime_digest)
        if waves and (start := waves.start_of(row, config)) and results.get(concept_id) != key:
            fingerprint = prepare.row_fingerprint(
                row, config, resolution=facts.resolution, model_identity=facts.identity, given=start
            )
            key = Key(fingerprint, mtime_digest)
        if results.get(concept_id) == key:
            plan.done.add(concept_id)
            continue
        if concept_id in results:
            plan.with_result.add(concept_id)
        steps = waves.steps_of(row, config) if waves else settings.steps_of(row, config)
        samples = steps * row.get("batch_size", config.training.batch_size)
        if waves and waves.waits(row):
            plan.later.add(concept_id)
            plan.later_steps += steps
            plan.later_samples += samples
            continue
        predicted = waves and waves.start_of(row, config)
        if config.training.init_from and not predicted:
            plan.own_start += bool(settings.start_of(row, config)[1])
            plan.configured_start += not (row.get("initializer_token") or row.get("init_from"))
        plan.todo[concept_id] = key
        plan.steps += steps
        plan.samples += samples
    unknown = [concept_id for concept_id in only if concept_id not in known]
    if unknown and (limit is None or len(known) < limit):
        near = nearest(unknown[0], sorted(known)) if known else ""
        raise UserError(f"--only: no concept {unknown[0]!r} in the manifest{near}")
    if waves and plan.later and (missing := waves.first - known):
        raise UserError(
            f"service.waves: a predictor is fitted on {len(waves.first)} concepts of the whole manifest first, and "
            f"--only or --limit leaves out {len(missing)} of them; run without these once, or without waves"
        )
    plan.digest = digest.hexdigest()
    return plan


def _rows(manifest: Manifest, only: Collection[str], known: set[str]) -> Iterator[Row]:
    """The rows whose id is in `only` (empty: all rows). Adds their ids to `known`."""
    for row in manifest.rows():
        if not only or row["concept_id"] in only:
            known.add(row["concept_id"])
            yield row


def estimate(plan: Plan, config: JobConfig, stored: StoredResults) -> tuple[float | None, str]:
    """Estimates the work: (seconds of one worker's time for all of `todo` and `later`, where the figure comes from).

    None, and the reason: where it can't be estimated.
    """
    measured = [(result.seconds, result.steps * result.batch_size) for result in stored.results]
    samples, done = plan.samples + plan.later_samples, sum(count for _, count in measured)
    work = Work.of_equal(max(1, len(plan.todo) + len(plan.later)), _USUAL_IMAGES, config)
    # A stopping rule ends many concepts before their last step
    share = work.samples / work.most_samples if work.most_samples else 1.0
    if done:
        per_sample = sum(seconds for seconds, _ in measured) / done
        return samples * share * per_sample, f"measured on the {len(measured)} results in the output"
    path = config.model.path
    device = "cpu" if is_bundled(path) or config.model.device == "cpu" else _USUAL_GPU
    try:
        found = Estimate.of(work, config, device)
    except UserError as error:
        return None, str(error)
    seconds = samples * share / found.samples_per_second + 3600 * found.review_hours
    return seconds, f"on {found.device.name}, {found.source}; `textinv plan` knows other devices"
