"""`textinv evaluate`: scores all finished words of an output by one protocol, on a pool of actors.

    OUTPUT/
      evaluation/<concept_id>.json         an `Evaluation`: the scores, and the fingerprint of everything they depend on
      evaluation/<concept_id>.safetensors  what identity retrieval needs of the pictures
      evaluation.parquet                   a row per concept, made from those files
      evaluation.md, evaluation.tex        means with their intervals, beside published ones

A concept is skipped when its files have the current fingerprint. Images are read from the store's heldout.png, or where
there is none from training.png: the first crop of each image, at most 256 pixels wide.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from rich.console import Console

from textinv_ray.concepts import word_files
from textinv_ray.config import protocol as protocols
from textinv_ray.config.job import JobConfig
from textinv_ray.config.protocol import Encoder as EncoderSpec
from textinv_ray.config.protocol import ProtocolData
from textinv_ray.inversion.encoder_loading import load_encoder, model_type
from textinv_ray.inversion.evaluation import Evaluator, LearnedConcept, Protocol
from textinv_ray.manifest import data_sets
from textinv_ray.model_files.places import is_bundled
from textinv_ray.service.batch import actor_pool, evaluation_tables
from textinv_ray.service.batch.evaluation_tables import Evaluation, Summary
from textinv_ray.service.library.lexicon import pick
from textinv_ray.service.models import loading, sources
from textinv_ray.service.store import features
from textinv_ray.service.store.pictures import HELDOUT, TRAINING, training_images
from textinv_ray.service.store.records import Result
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.concept_runs import ConceptRuns
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import ExitCode
from textinv_ray.util.redact import message, redact
from textinv_ray.util.text import one_line

DESCRIPTION = "description"
"""The tag (in the manifest's column `tags`) with a person's description of the concept."""
_CONCEPTS_PER_BLOCK = 16
_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_NOT_RESULTS = {
    "title",
    "source",
    "notes",
    "published",
    "data",
    "scorers",
    "bundled_prompts",
    "prompts",
    "subjects",
}


@dataclass(frozen=True)
class EvaluationPlan:
    """The protocol and the models of an evaluation."""

    name: str
    """Name of the protocol."""
    definition: ProtocolData
    """The protocol, with the prompts of the data set where these lie there."""
    config: JobConfig
    """Models, sampler, and number of workers."""
    encoders: Mapping[str, EncoderSpec]
    """By the name that scores begin with."""
    holdout: int | None
    """Number of held-out images to compare with; None: all that a concept has."""
    identity: str
    """Identity of the diffusion model's weights (`ModelFacts`)."""

    @property
    def protocol(self) -> Protocol:
        """The prompts and the number of samples."""
        bundled = is_bundled(self.config.model.path)
        return Protocol.of(self.definition, self.config.review, bundled=bundled)

    def covers(self, result: Result) -> bool:
        """Whether a concept is a subject of the protocol; without subjects, whether there are prompts for its kind."""
        if self.definition.subjects:
            return result.concept_id in self.definition.subjects
        return result.learnable_property in self.protocol.edit_prompts

    def fingerprint(self, result: Result) -> str:
        """SHA-256 of everything that a concept's scores depend on."""
        protocol, subject = self.protocol, self.definition.subjects.get(result.concept_id)
        group = subject.prompts if subject else result.learnable_property
        depends: list[object] = [
            result.fingerprint,
            result.tags.get(DESCRIPTION),
            self.definition.model_dump(mode="json", exclude=_NOT_RESULTS),
            [protocol.image_prompts, protocol.edit_prompts[group], subject and subject.class_word],
            protocol.review.model_dump(mode="json", exclude={"prompts", "images_per_prompt", "sample_at"}),
            [self.identity, self.config.model.dtype, self.config.model.vae_dtype, self.holdout],
            {name: spec.model_dump(mode="json") for name, spec in self.encoders.items()},
        ]
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """Plain data, which `from_dict` reads."""
        return {
            "name": self.name,
            "definition": self.definition.model_dump(mode="json"),
            "config": self.config.to_dict(),
            "encoders": {name: spec.model_dump(mode="json") for name, spec in self.encoders.items()},
            "holdout": self.holdout,
            "identity": self.identity,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EvaluationPlan:
        """The inverse of `to_dict`."""
        encoders = {name: EncoderSpec.model_validate(spec) for name, spec in data["encoders"].items()}
        definition = ProtocolData.model_validate(data["definition"], strict=False)
        config = JobConfig.from_dict(data["config"])
        return cls(data["name"], definition, config, encoders, data["holdout"], data["identity"])


def plan(
    store: Store,
    protocol: str = "quick",
    overrides: Sequence[str] = (),
    scorers: Sequence[str] = (),
    data: str | None = None,
    holdout: int | None = None,
) -> EvaluationPlan:
    """The plan by the configuration that the words were learned with, and overrides.

    scorers: NAME=MODEL each, added to those of the protocol or in place of the one of that name. data: folder of the
    protocol's data set, for prompts that lie there.
    Raises UserError for an unknown protocol, for an output without a job.json, and for models that can't be read.
    """
    definition = protocols.load(protocol)
    job = store.job()
    if job is None:
        raise UserError(f"{store.shown} has no job.json; give the output of `textinv invert`")
    if definition.data and definition.data.layout == "captions":
        if data is None:
            raise UserError(
                f"the prompts of {definition.title} lie with its images: name the data set's folder with --data "
                f"({definition.data.where})"
            )
        definition = data_sets.with_captions(definition, data)
    config = job.config(store.shown).override(overrides)
    facts = sources.facts(config.model)
    facts.family.check(config)
    encoders = _encoders(definition, config, scorers)
    made = EvaluationPlan(protocol, definition, config, encoders, holdout, facts.identity)
    if made.protocol.review.sampler not in facts.family.samplers:
        raise UserError(
            f"the protocol {protocol!r} samples with {made.protocol.review.sampler}, which {facts.family.name} "
            "hasn't: use another (quick takes the job's sampler)"
        )
    return made


def _encoders(definition: ProtocolData, config: JobConfig, scorers: Sequence[str]) -> dict[str, EncoderSpec]:
    found = dict(definition.scorers)
    if not found:
        found["clip"] = EncoderSpec(model=config.scoring.model)
        if config.scoring.judge:
            found["judge"] = EncoderSpec(model=config.scoring.judge)
    for given in scorers:
        name, _, path = given.partition("=")
        if not _NAME.fullmatch(name) or not path:
            raise UserError(
                f"--scorer {one_line(redact(given), 300)}: write it as NAME=MODEL, such as "
                "dino=facebook/dino-vits16, the name in small letters"
            )
        found[name] = (
            found[name].model_copy(update={"model": path}) if name in found else EncoderSpec(model=path)
        )
    return found


def _check_encoders(encoders: Mapping[str, EncoderSpec], config: JobConfig) -> None:
    """Raises UserError for what can't be an encoder, before a Ray is started: by its configuration alone."""
    from transformers import AutoImageProcessor

    for name, spec in encoders.items():
        if spec.model == config.scoring.model:
            continue
        path = sources.resolve(spec.model)
        try:
            model_type(path)
            AutoImageProcessor.from_pretrained(path, backend="pil")
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"{name}={one_line(redact(spec.model), 300)} is no scoring model that can be loaded: "
                f"{message(lines[0])}"
            ) from None


def evaluate(
    store: Store, todo: EvaluationPlan, console: Console, *, only: Collection[str] | None = None
) -> int:
    """Evaluates the concepts that have no current evaluation, and writes the tables.

    only: concept ids; None: all. Returns DONE, or INCOMPLETE when some failed. Raises UserError for ids that the
    output doesn't have, and when no word is of the protocol's subjects.
    """
    results = {result.concept_id: result for result in store.results()}
    chosen = pick(results, list(only), "concept") if only is not None else list(results)
    chosen = _covered(todo, [results[concept_id] for concept_id in chosen], store, console)
    wanted = {concept_id: todo.fingerprint(results[concept_id]) for concept_id in chosen}
    have = {found.concept_id: found.fingerprint for found in evaluations(store)}
    missing = [
        concept_id for concept_id, fingerprint in wanted.items() if have.get(concept_id) != fingerprint
    ]
    protocol = todo.protocol
    console.print(
        f"{store.shown}: {len(results)} words; to evaluate: {len(missing)}, {todo.name} "
        f"({protocol.num_images} images a prompt, {protocol.review.num_inference_steps} steps of "
        f"{protocol.review.sampler}, guidance {protocol.review.guidance_scale:g})"
    )
    failed = _evaluate_all(store, todo, {id_: wanted[id_] for id_ in missing}, console) if missing else 0
    rows = list(evaluations(store))
    current = [row for row in rows if row.fingerprint == wanted.get(row.concept_id)]
    summary = Summary.of(store, current, todo.name, todo.definition)
    evaluation_tables.write(store, rows, summary)
    for line in summary.lines():
        console.print(line, highlight=False, markup=False)
    console.print(
        f"scores: {store.shown}/evaluation.parquet; tables: {store.shown}/evaluation.md, evaluation.tex"
    )
    return ExitCode.INCOMPLETE if failed else ExitCode.DONE


def _covered(todo: EvaluationPlan, chosen: Sequence[Result], store: Store, console: Console) -> list[str]:
    """The concepts that the protocol is for. Raises UserError when it is for none of them."""
    subjects, title = todo.definition.subjects, todo.definition.title
    found = [result.concept_id for result in chosen if todo.covers(result)]
    if chosen and not found and subjects:
        raise UserError(
            f"no word of {store.shown} is a subject of {title}: learn the manifest that "
            f"`textinv manifest --protocol {todo.name} PATH` makes"
        )
    if chosen and not found:
        raise UserError(f"{title} has no prompts for any word of {store.shown}")
    if len(found) < len(chosen):
        console.print(f"left out: {len(chosen) - len(found)} words that {title} isn't for")
    if found and len(found) < len(subjects):
        console.print(f"{len(found)} of the {len(subjects)} subjects of {title} have a word")
    return found


def _evaluate_all(
    store: Store, todo: EvaluationPlan, fingerprints: Mapping[str, str], console: Console
) -> int:
    """Evaluates the concepts of `fingerprints` (by concept_id). Returns how many failed. Raises UserError."""
    _check_encoders(todo.encoders, todo.config)
    table = pa.table({"concept_id": list(fingerprints), "fingerprint": list(fingerprints.values())})
    arguments = {"plan": todo.to_dict(), "output": store.uri}
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


def log(store: Store, todo: EvaluationPlan, runs: ConceptRuns, console: Console) -> None:
    """Adds the scores to the concepts' runs in MLflow, where they aren't yet, and the means and tables to the job's."""
    found = evaluations(store)
    logged = sum(
        runs.log_evaluation(row.concept_id, row.fingerprint, row.metrics(), int(1000 * row.evaluated_at))
        for row in found
    )
    results = {
        result.concept_id: todo.fingerprint(result) for result in store.results() if todo.covers(result)
    }
    current = [row for row in found if row.fingerprint == results.get(row.concept_id)]
    summary = Summary.of(store, current, todo.name, todo.definition)
    runs.log_summary(
        summary.metrics(), {"evaluation.md": summary.markdown(), "evaluation.tex": summary.latex()}
    )
    console.print(f"MLflow: {logged} of {len(found)} concepts have their scores")


def evaluations(store: Store) -> list[Evaluation]:
    """All evaluations of an output, by concept_id. Files that can't be read are left out."""
    return list(store.records(Evaluation, "evaluation/{}.json", store.recorded("evaluation")))


class EvaluationActor:
    """Evaluates concepts and writes their scores to the store. An actor of the pool."""

    def __init__(self, plan: Mapping[str, object], output: str) -> None:
        """`plan`: of `EvaluationPlan.to_dict`. `output`: the store's URI."""
        self._plan = todo = EvaluationPlan.from_dict(plan)
        torch.set_num_threads(max(1, round(todo.config.service.cpus_per_worker)))
        self._store = Store(output)
        encoders = {
            name: load_encoder(
                sources.resolve(spec.model),
                device=todo.config.model.device,
                resize=spec.resize,
                crop=spec.crop,
            )
            for name, spec in todo.encoders.items()
        }
        self._evaluator = Evaluator(loading.backbone(todo.config), encoders, todo.protocol)

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
            concept = read_concept(self._store, concept_id, self._plan.definition, self._plan.holdout)
            found = self._evaluator.evaluate(concept)
        except ValueError as error:
            return str(error)
        made = Evaluation(
            concept_id=concept_id,
            protocol=self._plan.name,
            learnable_property=concept.learnable_property,
            scores={name: round(value, 6) for name, value in found.scores.items()},
            evaluated_at=time.time(),
            fingerprint=fingerprint,
        )
        self._store.write(evaluation_tables.features_file(concept_id), features.to_bytes(found.features))
        self._store.write(_name(concept_id), made.to_bytes())
        return ""


def _name(concept_id: str) -> str:
    return f"evaluation/{concept_id}.json"


def read_concept(
    store: Store, concept_id: str, definition: ProtocolData | None = None, holdout: int | None = None
) -> LearnedConcept:
    """A finished concept from the store, with the prompts and the class word that a protocol has for it.

    holdout: see `EvaluationPlan`. Raises ValueError when a file is missing or damaged, and for a concept with fewer
    held-out images.
    """
    result = store.result(concept_id)
    held = result.heldout_images if result else 0
    if result and holdout is not None and holdout > held:
        raise ValueError(
            f"it has {held} held-out images, not {holdout}: learn it with --set data.holdout={holdout}"
        )
    name, count = (HELDOUT, held) if held and holdout != 0 else (TRAINING, result.images if result else 0)
    data = store.read_concept(concept_id, "learned_embeds.safetensors")
    pictures = store.read_concept(concept_id, name)
    if result is None or data is None or pictures is None:
        raise ValueError(f"its result.json, learned_embeds.safetensors or {name} is not there")
    ((token, word),) = word_files.parse_words(data, word_files.STORED).items()
    images = training_images(pictures, count, name)
    subject = definition.subjects.get(concept_id) if definition else None
    return LearnedConcept(
        token,
        word,
        result.learnable_property,
        images[:holdout] if holdout else images,
        result.tags.get(DESCRIPTION),
        subject.prompts if subject else "",
        subject.class_word if subject else "",
    )
