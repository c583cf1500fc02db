"""What the scheduler reads of the output and writes to it: which concepts are over, and what failed."""

from __future__ import annotations

import time
from collections.abc import Mapping

from textinv_ray.service.scheduling.leases import Event
from textinv_ray.service.store.keys import Key
from textinv_ray.service.store.records import Failure
from textinv_ray.service.store.store import Store


class Stored:
    """The output of a job, as its scheduler sees it. Raises StoreError."""

    def __init__(self, output: str, keys: Mapping[str, Key], began: float) -> None:
        """`keys`: Plan.todo. `began`: when the job did, in seconds since 1970."""
        self._store = Store(output)
        # A write that fails is tried again when the failure is published next
        self._impatient = Store(output, patience_s=0)
        self._keys = keys
        self._began = began

    def done(self) -> list[str]:
        """Concepts of the job whose result is up to date."""
        return [
            result.concept_id
            for result in self._store.results()
            if self._keys.get(result.concept_id) == result.key
        ]

    def failures(self) -> list[Failure]:
        """Of concepts of the job, since it began."""
        return [
            failure
            for failure in self._store.failures()
            if failure.time >= self._began and failure.concept_id in self._keys
        ]

    def recognise(self, concept_id: str) -> None:
        """Stores the new key of a result whose images were touched or moved: next time they needn't be read.

        It may have failed meanwhile, with other images.
        """
        result = self._store.result(concept_id)
        if result:
            self._store.amend(result.model_copy(update=self._keys[concept_id]._asdict()))
            self._store.settle(result)

    def fail(self, event: Event) -> None:
        """Stores the record of a failed concept; one try."""
        self._impatient.fail(
            Failure(
                concept_id=event.concept_id,
                error=event.error,
                time=time.time(),
                quarantined=event.quarantined,
            )
        )
