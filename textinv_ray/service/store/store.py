"""Durable results over fsspec: the truth about a job. MLflow and `results.parquet` are views of it.

    OUTPUT/
      job.json                       configuration, versions, digest of the manifest
      concepts/<concept_id>/
        checkpoint.safetensors       while it runs: the task's whole state
        state.safetensors            when it is done: the same, to continue from with more steps
        learned_embeds.safetensors   what diffusers' load_textual_inversion reads
        initial_embeds.safetensors   what the word was before its first step
        history.parquet              a row per step: see history.py
        training.png, heldout.png, samples/step_<step>.png
        features.safetensors         what identity retrieval needs of its pictures: see features.py
        image_features.safetensors   the scoring model's features of its training images, for predictors
        result.json                  written last: this is what "done" means
      failed/<concept_id>.json       why a concept was given up
      reviews/<concept_id>.json      what reviewers decided about its word
      results.parquet, report.html
      waves.json, predictor-<digest>.safetensors
                                     with service.waves: the first part, and what the others start from

Files appear whole: local ones are written under a temporary name and renamed, objects are put in one request. Before
a file of a finished concept is replaced, its `result.json` is removed, so that a result always fits its files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from textinv_ray.concepts.word_files import STORED
from textinv_ray.service.store import pictures
from textinv_ray.service.store.files import Files
from textinv_ray.service.store.places import checked_id, is_concept_id
from textinv_ray.service.store.records import (
    Decision,
    Failure,
    JobRecord,
    Result,
    SomeOfConcept,
    SomeRecord,
    parse,
)


class Store(Files):
    """An output: its files as records of a job and of concepts."""

    @classmethod
    def of_file(cls, uri: str) -> tuple[Store, str]:
        """The folder of a file as a store, and the file's name in it."""
        folder, _, name = uri.rpartition("/")
        return cls(folder or ("/" if uri.startswith("/") else ".")), name

    # Jobs

    def job(self) -> JobRecord | None:
        """job.json; none when it isn't there."""
        return self.record(JobRecord, "job.json")

    def write_job(self, job: JobRecord) -> None:
        """Writes job.json."""
        self.write("job.json", job.to_bytes())

    # Concepts while they are learned

    def read_concept(self, concept_id: str, name: str) -> bytes | None:
        """One of a concept's files."""
        return self.read(_concept(concept_id, name))

    def write_concept(self, concept_id: str, name: str, data: bytes) -> None:
        """Writes one of a concept's files."""
        self.write(_concept(concept_id, name), data)

    def states(self, concept_id: str) -> Iterator[tuple[str, bytes]]:
        """(name, bytes) of the states that learning may continue from, the newest first."""
        for name in ("checkpoint.safetensors", "state.safetensors"):
            data = self.read_concept(concept_id, name)
            if data is not None:
                yield name, data

    def checkpoint(self, concept_id: str, state: bytes, history: bytes) -> None:
        """Writes a running concept's checkpoint: the history first, which must have all steps of the state."""
        self.write_concept(concept_id, "history.parquet", history)
        self.write_concept(concept_id, "checkpoint.safetensors", state)

    def remove_checkpoint(self, concept_id: str) -> None:
        """Removes the checkpoint of a concept that has ended."""
        self.remove(_concept(concept_id, "checkpoint.safetensors"))

    # Concepts when they are over

    def finish(self, result: Result, files: Mapping[str, bytes]) -> None:
        """Makes a concept done. `files`: name -> bytes, without samples, which are in the store already.

        Doing it twice, or two workers doing it at once, leaves the same result.
        """
        concept_id = result.concept_id
        result = result.model_copy(update={"word_sha256": _sha256(files[STORED])})
        self.reopen(concept_id)
        for name, data in files.items():
            self.write_concept(concept_id, name, data)
        self.write_concept(concept_id, "result.json", result.to_bytes())
        self.settle(result)

    def settle(self, result: Result) -> None:
        """Removes what a concept that is done has from before: its checkpoint, failure and samples of other steps."""
        concept_id = result.concept_id
        self.remove_checkpoint(concept_id)
        self.remove(_failed(concept_id))
        kept = {sample_name(step) for step in result.sample_steps}
        for name in self.names(_concept(concept_id, "samples")):
            if f"samples/{name}" not in kept:
                self.remove(_concept(concept_id, f"samples/{name}"))

    def amend(self, result: Result) -> None:
        """Replaces the result.json of a concept that stays done."""
        self.write_concept(result.concept_id, "result.json", result.to_bytes())

    def reopen(self, concept_id: str) -> None:
        """Makes a concept one that isn't done. Its other files stay: learning continues from its state."""
        self.remove(_concept(concept_id, "result.json"))

    def damaged(self, results: Sequence[Result]) -> list[str]:
        """Ids of the results whose word is missing or isn't the one that was recorded.

        In a local store also of those whose training.png is missing or was cut off.
        """
        names = [_concept(result.concept_id, STORED) for result in results]
        return [
            result.concept_id
            for result, (_, data) in zip(results, self.read_many(names), strict=True)
            if data is None
            or (result.word_sha256 and _sha256(data) != result.word_sha256)
            or (self.is_local and not self._has_pictures(result.concept_id))
        ]

    def _has_pictures(self, concept_id: str) -> bool:
        with self.open(_concept(concept_id, "training.png")) as file:
            return file is not None and pictures.is_whole(file)

    def fail(self, failure: Failure) -> None:
        """Records why a concept was given up, for now: the next run tries it again."""
        self.write(_failed(failure.concept_id), failure.to_bytes())

    def concepts(self) -> list[str]:
        """Sorted ids of the concepts that have a folder. What can't be one is ignored, with a warning."""
        return [name for name in self.names("concepts") if self._is_id(name, f"concepts/{name}")]

    def recorded(self, folder: str) -> list[str]:
        """Sorted ids of the concepts with a record in a folder of `<concept_id>.json` files, such as `failed`."""
        names = [name.removesuffix(".json") for name in self.names(folder) if name.endswith(".json")]
        return [name for name in names if self._is_id(name, f"{folder}/{name}.json")]

    def _is_id(self, text: str, name: str) -> bool:
        if not is_concept_id(text):
            self.ignore(name, "its name is not a concept_id")
            return False
        return True

    def result(self, concept_id: str) -> Result | None:
        """A finished concept's result; none when it isn't done."""
        return self._own(concept_id, self.record(Result, _concept(concept_id, "result.json")))

    def failure(self, concept_id: str) -> Failure | None:
        """Why a concept was given up; none when it wasn't."""
        return self._own(concept_id, self.record(Failure, _failed(concept_id)))

    def results(self) -> Iterator[Result]:
        """Every finished concept's result, by concept_id."""
        return self.records(Result, "concepts/{}/result.json", self.concepts())

    def failures(self) -> Iterator[Failure]:
        """Every failure, by concept_id."""
        return self.records(Failure, "failed/{}.json", self.recorded("failed"))

    # Reviewers' decisions

    def write_decision(self, decision: Decision) -> None:
        """Writes what reviewers decided about a concept's word, in place of what they decided before."""
        self.write(_review(decision.concept_id), decision.to_bytes())

    def decision(self, concept_id: str) -> Decision | None:
        """What reviewers decided about a concept's word; none when they haven't."""
        return self._own(concept_id, self.record(Decision, _review(concept_id)))

    def decisions(self) -> Iterator[Decision]:
        """Every decision, by concept_id; also of words that were learned anew since."""
        return self.records(Decision, "reviews/{}.json", self.recorded("reviews"))

    def records(
        self, kind: type[SomeOfConcept], name: str, concept_ids: list[str]
    ) -> Iterator[SomeOfConcept]:
        """The records of these concepts that can be read. `name`: of the files, with `{}` for the id."""
        names = [name.format(concept_id) for concept_id in concept_ids]
        for concept_id, (name, data) in zip(concept_ids, self.read_many(names), strict=True):
            found = self._own(concept_id, self._parsed(kind, data, name))
            if found is not None:
                yield found

    def record(self, kind: type[SomeRecord], name: str) -> SomeRecord | None:
        """A record; a file that is damaged or something else counts as absent, with a warning."""
        return self._parsed(kind, self.read(name), name)

    def _parsed(self, kind: type[SomeRecord], data: bytes | None, name: str) -> SomeRecord | None:
        try:
            return None if data is None else parse(kind, data)
        except ValueError as error:
            self.ignore(name, f"it can't be read: {error}")
            return None

    def _own(self, concept_id: str, found: SomeOfConcept | None) -> SomeOfConcept | None:
        """The record, unless it is another concept's: a copy that was made by hand doesn't override the original."""
        if found is None or found.concept_id == concept_id:
            return found
        self.ignore(f"{concept_id} ({type(found).__name__})", f"it is of the concept {found.concept_id!r}")
        return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sample_name(step: int) -> str:
    """Name of the file with a concept's samples at a step."""
    return f"samples/step_{step:07d}.png"


def _concept(concept_id: str, name: str) -> str:
    return f"concepts/{checked_id(concept_id)}/{name}"


def _review(concept_id: str) -> str:
    return f"reviews/{checked_id(concept_id)}.json"


def _failed(concept_id: str) -> str:
    return f"failed/{checked_id(concept_id)}.json"
