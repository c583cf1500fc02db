"""`textinv evaluate`: scores all finished words of an output by one protocol, on a pool of actors.

    OUTPUT/
      evaluation/<concept_id>.json   an `Evaluation`: the scores, and the fingerprint of everything they depend on
      evaluation.parquet             a row per concept, made from those files

A concept is skipped when its file has the current fingerprint. Training images are read from the store's
training.png: the first crop of each image, at most 256 pixels wide.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from textinv_ray.concepts import word_files
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import evaluation
from textinv_ray.inversion.dino import Dino
from textinv_ray.inversion.evaluation import PROMPTS, Evaluator, LearnedConcept, Protocol
from textinv_ray.model_files.places import is_bundled
from textinv_ray.service.batch import actor_pool
from textinv_ray.service.library.lexicon import pick
from textinv_ray.service.models import loading, sources
from textinv_ray.service.store.pictures import training_images
from textinv_ray.service.store.records import OfConcept, Result, Time
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.concept_runs import ConceptRuns
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import ExitCode
from textinv_ray.util.redact import message, redact
from textinv_ray.util.text import one_line

DESCRIPTION = "description"
"""The tag (in the manifest's column `tags`) with a person's description of the concept."""
_CONCEPTS_PER_BLOCK = 16
_COLUMNS = ("clip_image_similarity", "clip_text_similarity", "dino_similarity")


class Evaluation(OfConcept):
    """The scores of a concept: evaluation/<concept_id>.json."""

    preset: str
    """Name of the protocol: one of `inversion.evaluation.PRESETS`."""
    learnable_property: str
    scores: dict[str, float]
    """Raw cosines in [-1, 1] by the names of `Evaluator.evaluate`."""
    evaluated_at: Time
    fingerprint: str
    """`EvaluationPlan.fingerprint` of the concept."""


@dataclass(frozen=True)
class EvaluationPlan:
    """The protocol and the models of an evaluation."""

    preset: str
    config: JobConfig
    """Models, sampler, and number of workers."""
    dino: str | None
    """Folder or Hub id of a DINO model; None: no DINO scores."""
    identity: str
    """Identity of the diffusion model's weights (`ModelFacts`)."""

    @property
    def protocol(self) -> Protocol:
        """The prompts and the number of samples."""
        kind = "mini" if is_bundled(self.config.model.path) else "general"
        return Protocol.of(self.preset, self.config.review, PROMPTS[kind])

    def fingerprint(self, result: Result) -> str:
        """SHA-256 of everything that a concept's scores depend on."""
        protocol = self.protocol
        depends: list[object] = [
            result.fingerprint,
            result.tags.get(DESCRIPTION),
            evaluation.IMAGE_PROMPTS,
            protocol.num_images,
            protocol.edit_prompts,
            [protocol.review.sampler, protocol.review.num_inference_steps, protocol.review.guidance_scale],
            [self.identity, self.config.model.dtype, self.config.scoring.model, self.dino],
        ]
        # Came later: left out at their defaults, so that earlier fingerprints hold
        if protocol.review.resolution:
            depends.append({"resolution": protocol.review.resolution})
        if self.config.model.vae_dtype != "auto":
            depends.append({"vae_dtype": self.config.model.vae_dtype})
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def plan(store: Store, preset: str, overrides: Sequence[str] = (), dino: str | None = None) -> EvaluationPlan:
    """The plan by the configuration that the words were learned with, and overrides.

    Raises UserError for an unknown preset, for an output without a job.json, and for a model that can't be read.
    """
    if preset not in evaluation.PRESETS:
        raise UserError(f"no preset {preset!r} (known: {', '.join(evaluation.PRESETS)})")
    job = store.job()
    if job is None:
        raise UserError(f"{store.shown} has no job.json; give the output of `textinv invert`")
    config = job.config(store.shown).override(overrides)
    facts = sources.facts(config.model)
    facts.family.check(config)
    made = EvaluationPlan(preset, config, dino, facts.identity)
    if made.protocol.review.sampler not in facts.family.samplers:
        raise UserError(
            f"the preset {preset!r} samples with {made.protocol.review.sampler}, which {facts.family.name} hasn't: "
            f"use another ({', '.join(name for name in evaluation.PRESETS if name != preset)})"
        )
    return made


def _check_dino(dino: str) -> None:
    """Raises UserError for what can't be a DINO model, before a Ray is started: by its configuration alone."""
    from transformers import AutoConfig, AutoImageProcessor

    try:
        path = sources.resolve(dino)
        AutoConfig.from_pretrained(path)
        AutoImageProcessor.from_pretrained(path, backend="pil")
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = message(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
        raise UserError(
            f"--dino {one_line(redact(dino), 300)} is no DINO model that can be loaded: {why}"
        ) from None


def evaluate(
    store: Store, todo: EvaluationPlan, console: Console, *, only: Collection[str] | None = None
) -> int:
    """Evaluates the concepts that have no current evaluation, and writes evaluation.parquet.

    only: concept ids; None: all. Returns DONE, or INCOMPLETE when some failed. Raises
    UserError for ids that the output doesn't have.
    """
    results = {result.concept_id: result for result in store.results()}
    chosen = pick(results, list(only), "concept") if only is not None else list(results)
    wanted = {concept_id: todo.fingerprint(results[concept_id]) for concept_id in chosen}
    have = {found.concept_id: found.fingerprint for found in evaluations(store)}
    missing = [
        concept_id for concept_id, fingerprint in wanted.items() if have.get(concept_id) != fingerprint
    ]
    protocol = todo.protocol
    console.print(
        f"{store.shown}: {len(results)} words; to evaluate: {len(missing)}, {todo.preset} "
        f"({protocol.num_images} images a prompt, {protocol.review.num_inference_steps} steps of "
        f"{protocol.review.sampler}, guidance {protocol.review.guidance_scale:g})"
    )
    failed = _evaluate_all(store, todo, {id_: wanted[id_] for id_ in missing}, console) if missing else 0
    found = list(evaluations(store))
    store.write("evaluation.parquet", _table(found))
    _print(console, [row for row in found if row.concept_id in wanted])
    console.print(f"scores: {store.shown}/evaluation.parquet")
    return ExitCode.INCOMPLETE if failed else ExitCode.DONE


def _evaluate_all(
    store: Store, todo: EvaluationPlan, fingerprints: Mapping[str, str], console: Console
) -> int:
    """Evaluates the concepts of `fingerprints` (by concept_id). Returns how many failed. Raises UserError."""
    if todo.dino:
        _check_dino(todo.dino)
    table = pa.table({"concept_id": list(fingerprints), "fingerprint": list(fingerprints.values())})
    arguments = {
        "config": todo.config.to_dict(),
        "preset": todo.preset,
        "dino": todo.dino,
        "output": store.uri,
        "identity": todo.identity,
    }
    done = 0
    try:
        rows = actor_pool.run(
            table, EvaluationActor, arguments, todo.config, console, batch_size=_CONCEPTS_PER_BLOCK
        )
        for finished, row in enumerate(rows, start=1):
            done += not row["error"]
            if row["error"]:
                console.print(f"{row['concept_id']}: {row['error']}")
            if finished % max(1, len(table) // 10) == 0:
                console.print(f"{finished} of {len(table)}")
    except actor_pool.PoolError as error:
        console.print(f"the job could not go on: {error}")
    return len(table) - done


def log(store: Store, runs: ConceptRuns, console: Console) -> None:
    """Adds the scores to the concepts' runs in MLflow, where they aren't yet."""
    found = evaluations(store)
    logged = sum(
        runs.log_evaluation(row.concept_id, row.fingerprint, _metrics(row), int(1000 * row.evaluated_at))
        for row in found
    )
    console.print(f"MLflow: {logged} of {len(found)} concepts have their scores")


def evaluations(store: Store) -> list[Evaluation]:
    """All evaluations of an output, by concept_id. Files that can't be read are left out."""
    return list(store.records(Evaluation, "evaluation/{}.json", store.recorded("evaluation")))


class EvaluationActor:
    """Evaluates concepts and writes their scores to the store. An actor of the pool."""

    def __init__(
        self, config: Mapping[str, object], preset: str, dino: str | None, output: str, identity: str
    ) -> None:
        """`config`: of `JobConfig.to_dict`. `output`: the store's URI. `identity`: of the diffusion model."""
        todo = EvaluationPlan(preset, JobConfig.from_dict(config), dino, identity)
        torch.set_num_threads(max(1, round(todo.config.service.cpus_per_worker)))
        self._preset = preset
        self._store = Store(output)
        self._evaluator = Evaluator(
            loading.backbone(todo.config),
            loading.scorer(todo.config),
            todo.protocol,
            Dino.load(sources.resolve(dino), device=todo.config.model.device) if dino else None,
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Columns concept_id, fingerprint -> concept_id, error; error is "" for concepts that were evaluated."""
        ids, fingerprints = batch["concept_id"].to_pylist(), batch["fingerprint"].to_pylist()
        errors = [self._evaluate(*pair) for pair in zip(ids, fingerprints, strict=True)]
        return pa.table({"concept_id": ids, "error": errors})

    def _evaluate(self, concept_id: str, fingerprint: str) -> str:
        """Evaluates a concept. Returns the error, or ""."""
        before = self._store.record(Evaluation, _name(concept_id))
        if before and before.fingerprint == fingerprint:
            return ""  # by an actor that died with this block
        try:
            concept = read_concept(self._store, concept_id)
            scores = self._evaluator.evaluate(concept)
        except ValueError as error:
            return str(error)
        made = Evaluation(
            concept_id=concept_id,
            preset=self._preset,
            learnable_property=concept.learnable_property,
            scores={name: round(value, 6) for name, value in scores.items()},
            evaluated_at=time.time(),
            fingerprint=fingerprint,
        )
        self._store.write(_name(concept_id), made.to_bytes())
        return ""


def _name(concept_id: str) -> str:
    return f"evaluation/{concept_id}.json"


def read_concept(store: Store, concept_id: str) -> LearnedConcept:
    """A finished concept from the store. Raises ValueError when a file is missing or damaged."""
    result = store.result(concept_id)
    data = store.read_concept(concept_id, "learned_embeds.safetensors")
    pictures = store.read_concept(concept_id, "training.png")
    if result is None or data is None or pictures is None:
        raise ValueError("its result.json, learned_embeds.safetensors or training.png is not there")
    ((token, word),) = word_files.parse_words(data, word_files.STORED).items()
    return LearnedConcept(
        token,
        word,
        result.learnable_property,
        training_images(pictures, result.images),
        result.tags.get(DESCRIPTION),
    )


def _metrics(row: Evaluation) -> dict[str, float]:
    """The scores by their names in MLflow, which groups them by the part before the slash."""
    return {f"{row.preset}/{name}": value for name, value in row.scores.items()}


def _table(found: Sequence[Evaluation]) -> bytes:
    """evaluation.parquet: a row per concept, a column for each score that any concept has."""
    names = sorted({name for row in found for name in row.scores})
    fields = [(name, pa.string()) for name in ("concept_id", "preset", "learnable_property", "fingerprint")]
    schema = pa.schema([*fields, ("evaluated_at", pa.float64()), *((name, pa.float64()) for name in names)])
    sink = pa.BufferOutputStream()
    rows = [{**row.model_dump(exclude={"scores"}), **row.scores} for row in found]
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    return bytes(sink.getvalue().to_pybytes())


def _print(console: Console, found: Sequence[Evaluation]) -> None:
    """Prints the mean of each score and of its references, with the number of concepts."""
    names = [name for name in _COLUMNS if any(name in row.scores for row in found)]
    for reference in ("", "_training_images", "_without_word", "_description"):
        cells = []
        for name in names:
            values = [row.scores[name + reference] for row in found if name + reference in row.scores]
            if values:
                cells.append(f"{name} {np.mean(values):.3f} ({len(values)})")
        if cells:
            what = reference.strip("_").replace("_", " ") or "learned words"
            console.print(f"  {what}: {', '.join(cells)} ")
