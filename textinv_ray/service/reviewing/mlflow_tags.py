"""Decisions as tags of the concepts' runs in MLflow, written while people decide."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from textinv_ray.service.store.records import Decision
from textinv_ray.service.tracking.concept_runs import ConceptRuns
from textinv_ray.util.redact import redact_text

logger = logging.getLogger(__name__)


class DecisionTags:
    """A thread that writes decisions to MLflow. Whatever MLflow does, people go on deciding."""

    def __init__(self, open_runs: Callable[[], ConceptRuns], warn: Callable[[str], None]) -> None:
        """`open_runs` is called in the thread with the first decision. `warn`: of the first error."""
        self._open = open_runs
        self._warn = warn
        self._runs: ConceptRuns | None = None
        self._noted = self._written = 0
        self._warned = False
        self._queue: queue.Queue[Decision | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="decisions-mlflow", daemon=True)
        self._thread.start()

    def note(self, decision: Decision) -> None:
        """Has a decision written."""
        self._noted += 1
        self._queue.put(decision)

    def finish(self, patience_s: float) -> int:
        """Waits until all is written, at most `patience_s`. Returns how many decisions MLflow lacks."""
        self._queue.put(None)
        self._thread.join(patience_s)
        return self._noted - self._written

    def _run(self) -> None:
        while (decision := self._queue.get()) is not None:
            try:
                if self._runs is None:
                    self._runs = self._open()
                is_written = self._runs.set_decision(decision)
            except Exception as error:  # MLflow's are of any kind
                logger.info("MLflow", exc_info=True)
                if not self._warned:
                    self._warned = True
                    why = redact_text(str(error)).strip().split("\n")[0]
                    self._warn(f"not written to MLflow, the store has all decisions: {why}")
                is_written = False
            self._written += is_written
