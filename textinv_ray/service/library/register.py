"""`textinv register`: learned words into MLflow's model registry."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from textinv_ray.service.library.lexicon import named_words, pick
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.concept_runs import ConceptRuns
from textinv_ray.service.tracking.registry import FILE
from textinv_ray.util.errors import UserError


@dataclass
class Registered:
    """What became of the chosen words, as names of registered models."""

    new: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    """That lost the alias `approved`, since their word isn't approved any more."""
    without_run: list[str] = field(default_factory=list)
    """Concept ids: MLflow has no run of their word, so there is nothing that a version could belong to."""


def register(
    store: Store,
    runs: ConceptRuns,
    *,
    only: Collection[str] | None,
    approved: Collection[str] | None,
    prefix: str,
) -> Registered:
    """Registers words as versions of `<prefix><concept_id>`; doing it twice changes nothing.

    only: concept ids; None: all. approved: only these, which get the alias `approved`, while others lose it; None: all
    words, and no alias changes. Raises UserError for ids that the output doesn't have, and when MLflow refuses.
    """
    ids = [concept_id for concept_id, _ in named_words(store)]
    chosen = pick(ids, list(only), "concept") if only is not None else ids
    if not chosen:
        raise UserError(f"{store.shown} has no learned words")
    registry, outcome = runs.registry(), Registered()
    wanted = None if approved is None else set(approved)
    for concept_id in chosen:
        name, result = f"{prefix}{concept_id}", store.result(concept_id)
        if wanted is not None and concept_id not in wanted:
            if registry.withdraw(name):
                outcome.withdrawn.append(name)
            continue
        run = runs.of_word(result) if result else None
        word = store.read_concept(concept_id, FILE)
        if result is None or run is None or word is None:
            outcome.without_run.append(concept_id)
        elif registry.register(name, result, word, run, approved=approved is not None):
            outcome.new.append(name)
        else:
            outcome.known.append(name)
    return outcome
