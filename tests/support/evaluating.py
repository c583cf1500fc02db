"""Evaluation in this process, without the seconds that a Ray and its actors take."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from textinv_ray.service.batch import evaluate
from textinv_ray.service.store.store import Store
from textinv_ray.util.terminal import PlainConsole


def evaluated(store: Store, overrides: Sequence[str] = ()) -> list[str]:
    """Evaluates all words as one actor does, by the quick protocol. Returns the concepts in evaluation.parquet."""
    todo = evaluate.plan(store, "quick", overrides)
    wanted = {result.concept_id: todo.fingerprint(result) for result in store.results()}
    actor = evaluate.EvaluationActor(todo.to_dict(), store.uri)
    errors = actor(pa.table({"concept_id": list(wanted), "fingerprint": list(wanted.values())}))["error"]
    assert set(errors.to_pylist()) == {""}
    assert evaluate.evaluate(store, todo, PlainConsole()) == 0
    return [str(name) for name in pq.read_table(store.path("evaluation.parquet"))["concept_id"].to_pylist()]
