"""All results and failures of an output, read once for everything that needs them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from textinv_ray.service.store.records import Failure, Result
from textinv_ray.service.store.store import Store
from textinv_ray.util.collection import no_cycle_search


@dataclass(frozen=True)
class StoredResults:
    """The results and failures that a store had at one moment. About 5 kB of memory per concept."""

    results: tuple[Result, ...] = ()
    """By concept_id."""
    failures: tuple[Failure, ...] = ()
    """By concept_id; a concept may have a result of before, too."""

    @classmethod
    @no_cycle_search()
    def read(cls, store: Store) -> StoredResults:
        """Lists the store and reads every result and failure. Raises StoreError."""
        return cls(tuple(store.results()), tuple(store.failures()))

    def without(self, concept_ids: Collection[str]) -> StoredResults:
        """Without the results of these concepts."""
        left = tuple(result for result in self.results if result.concept_id not in concept_ids)
        return StoredResults(left, self.failures)

    def failed_since(self, began: float) -> dict[str, str]:
        """concept_id -> why, of concepts that were given up since `began`, in seconds since 1970."""
        return {failure.concept_id: failure.error for failure in self.failures if failure.time >= began}

    @cached_property
    def without_result(self) -> tuple[Failure, ...]:
        """Failures of concepts that have no result: what views show as failed."""
        done = {result.concept_id for result in self.results}
        return tuple(failure for failure in self.failures if failure.concept_id not in done)
