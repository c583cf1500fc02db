"""Which words people have approved: by the decisions in the store, and by tags in MLflow where the store has none."""

from __future__ import annotations

from collections.abc import Callable, Collection

from textinv_ray.service.reviewing import decide
from textinv_ray.service.store.store import Store


def approved(store: Store, in_mlflow: Callable[[], Collection[str]]) -> list[str]:
    """Sorted ids of the concepts whose word, as the store has it now, is approved.

    in_mlflow: ids that have the tag approved=true there. It is asked only if the store lacks a decision on some word:
    where it has one, approved, rejected or taken back, that counts.
    """
    concepts = store.concepts()
    decisions = decide.by_id(store)
    decided = [concept_id for concept_id in concepts if concept_id in decisions]
    found = decide.verdicts(filter(None, map(store.result, decided)), decisions)
    by_tag = set(in_mlflow()) - set(found) if len(found) < len(concepts) else set()
    return sorted({concept_id for concept_id, verdict in found.items() if verdict == "approved"} | by_tag)
