"""What a job has to do: rows of the manifest against the store, without Ray and without a model."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from textinv_ray.concepts import images, prepare
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.models.sources import ModelFacts, is_bundled
from textinv_ray.service.store.keys import Key, key_of
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError
from textinv_ray.util.text import nearest

_SHOWN_MISSING = 20
# Seconds for one training sample, where nothing was measured yet.
_GPU_SECONDS_AT_512 = 0.3  # Stable Diffusion 1.5 on a V100 with diffusers' script, a public figure
_CPU_SECONDS_AT_512 = 15.0
_BUNDLED_SECONDS = 0.03


@dataclass
class Plan:
    """The rows that `--only` and `--limit` leave."""

    done: set[str] = field(default_factory=set)
    """Concepts that have their result."""
    todo: dict[str, Key] = field(default_factory=dict)
    """Concepts that must run."""
    steps: int = 0
    """Of all that must run, together."""
    samples: int = 0
    """Steps times batch size."""
    with_result: set[str] = field(default_factory=set)
    """Those of `todo` that have a result, with other settings or possibly with other images."""
    missing: list[str] = field(default_factory=list)
    """Local images that don't exist: the first few."""
    digest: str = ""
    """Of all the rows' fingerprints: names this manifest under this configuration."""


def make(
    manifest: Manifest,
    config: JobConfig,
    facts: ModelFacts,
    store: Store,
    *,
    only: Collection[str] = (),
    limit: int | None = None,
) -> Plan:
    """Streams through the manifest. Raises UserError for ids in `only` that aren't there."""
    results = {found["concept_id"]: key_of(found) for found in store.results()}
    plan, digest = Plan(), hashlib.sha256()
    known: set[str] = set()
    for row in itertools.islice(_rows(manifest, only, known), limit):
        concept_id = row["concept_id"]
        fingerprint = prepare.row_fingerprint(
            row, config, resolution=facts.resolution, model_identity=facts.identity
        )
        digest.update(fingerprint.encode())
        # Where local files are forbidden, not even whether they exist may be found out.
        may_look = "file" in config.data.allowed_protocols
        stamp = (
            images_mtime_digest(prepare.files(row, config), manifest.base, plan.missing) if may_look else ""
        )
        key = Key(fingerprint, stamp)
        if results.get(concept_id) == key:
            plan.done.add(concept_id)
            continue
        plan.todo[concept_id] = key
        steps = row.get("steps", config.training.steps)
        plan.steps += steps
        plan.samples += steps * row.get("batch_size", config.training.batch_size)
        if concept_id in results:
            plan.with_result.add(concept_id)
    unknown = [concept_id for concept_id in only if concept_id not in known]
    if unknown and (limit is None or len(known) < limit):
        near = nearest(unknown[0], sorted(known)) if known else ""
        raise UserError(f"--only: no concept {unknown[0]!r} in the manifest{near}")
    plan.digest = digest.hexdigest()
    return plan


def _rows(manifest: Manifest, only: Collection[str], known: set[str]) -> Any:
    for row in manifest.rows():
        if not only or row["concept_id"] in only:
            known.add(row["concept_id"])
            yield row


def images_mtime_digest(
    row_images: Sequence[str | Mapping[str, Any]], base: str, missing: list[str] | None = None
) -> str:
    """Digest of size and time of change of a row's local images: another picture under an old name shows.

    Empty when none is local. Images that don't exist are added to `missing`, up to 20.
    """
    stamps = []
    for image in row_images:
        protocol, path = images.locate(image, base) if isinstance(image, str) else ("", "")
        if protocol != "file":
            continue
        try:
            status = os.stat(path)
            stamps.append(f"{status.st_size} {status.st_mtime_ns}")
        except (OSError, ValueError):
            stamps.append("missing")
            if missing is not None and len(missing) < _SHOWN_MISSING:
                missing.append(path)
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest() if stamps else ""


def estimate(plan: Plan, config: JobConfig, facts: ModelFacts, store: Store) -> tuple[float, str]:
    """(seconds of one worker's time for what must run, where the figure comes from)."""
    measured = [(found["seconds"], found["steps"] * found["batch_size"]) for found in store.results()]
    samples = sum(count for _, count in measured)
    if samples:
        per_sample = sum(seconds for seconds, _ in measured) / samples
        return plan.samples * per_sample, f"measured on the {len(measured)} results in the output"
    if is_bundled(config.model.path):
        return plan.samples * _BUNDLED_SECONDS, "a rule of thumb for the bundled model on one CPU core"
    area = ((config.data.resolution or facts.resolution) / 512) ** 2
    if config.model.device == "cpu":
        return plan.samples * area * _CPU_SECONDS_AT_512, "a rule of thumb for Stable Diffusion on CPUs"
    return plan.samples * area * _GPU_SECONDS_AT_512, "a rule of thumb for Stable Diffusion on a V100"
