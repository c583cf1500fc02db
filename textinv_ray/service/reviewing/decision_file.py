"""Decisions as a file: what report.html saves in a browser, and `textinv review --import` stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from textinv_ray.service.reviewing import decide
from textinv_ray.service.store.records import Decision, Time, Verdict
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact

KIND = "textinv decisions"
_MAX_BYTES = 64 * 2**20


class FileEntry(BaseModel):
    """A decision in a file."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    concept_id: Annotated[str, Field(max_length=128)]
    fingerprint: str
    verdict: Verdict
    note: str = ""
    reviewer: str = ""
    decided_at: Time


class DecisionFile(BaseModel):
    """A file of decisions."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    kind: Literal["textinv decisions"]
    output: str = ""
    """Of the page that they were made on."""
    decisions: list[FileEntry]


@dataclass
class Outcome:
    """What became of the decisions of a file."""

    stored: list[Decision] = field(default_factory=list)
    known: int = 0
    """That the store had already."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(concept_id, why)."""


def read(path: str) -> list[FileEntry]:
    """Reads a file, at a path or URI. Raises UserError, with the first entry and field that is wrong."""
    shown = redact(path)
    store, name = Store.of_file(path)
    with store.open(name) as file:
        if file is None:
            raise UserError(f"the file of decisions {shown} doesn't exist")
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise UserError(f"{shown} is larger than {_MAX_BYTES >> 20} MB: not a file of decisions")
    try:
        return DecisionFile.model_validate_json(data).decisions
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where, *rest = first["loc"] or ("",)
        if where == "decisions" and rest:
            place = f"decision {rest[0]}, {'.'.join(map(str, rest[1:])) or 'the whole'}"
        else:
            place = str(where)
        why = f"{place}: {first['msg']}" if place else first["msg"]
        raise UserError(f"{shown} is not a file of decisions that report.html has saved: {why}") from None


def store_all(store: Store, entries: Sequence[FileEntry], reviewer: str) -> Outcome:
    """Stores decisions at the times when they were made: a later one in the store stays in force.

    reviewer: who decided, where an entry doesn't say. Doing it twice changes nothing. Raises StoreError.
    """
    outcome = Outcome()
    for entry in entries:
        request = decide.Request(
            entry.concept_id,
            entry.fingerprint,
            entry.verdict,
            entry.reviewer.strip() or reviewer,
            entry.note,
            entry.decided_at,
        )
        try:
            before = store.decision(entry.concept_id)
            made = decide.decide(store, request, careful=False)
        except ValueError as error:
            outcome.refused.append((entry.concept_id, str(error)))
            continue
        if made == before:
            outcome.known += 1
        else:
            outcome.stored.append(made)
    return outcome
