"""The thread of the driver that keeps the runs in MLflow up to date."""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from textinv_ray.service import metrics
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.tracking.mirror import MLflowMirror
from textinv_ray.service.tracking.refusals import is_refusal, reason
from textinv_ray.util.logs import about
from textinv_ray.util.redact import redact_text

logger = logging.getLogger(__name__)

_MANY = 10  # concepts to catch up with at the end: worth a line


class MirrorThread:
    """Keeps an MLflowMirror up to date in a thread of the driver. Whatever MLflow does, the job goes on."""

    def __init__(
        self,
        mirror: MLflowMirror,
        keys: Mapping[str, str],
        warn: Callable[[str], None],
        *,
        retry_s: tuple[float, float] = (2.0, 60.0),
    ) -> None:
        """`keys`: see `run_keys`; what MLflow lacks of them is written first.

        `warn` is called once when MLflow can't be written to, and once when it is back. `retry_s`: the first and the
        longest wait after an error.
        """
        self._retry_s = retry_s
        self._mirror = mirror
        self._keys = keys
        self._warn = warn
        self._todo: dict[str, None] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._failing_since = math.inf
        self._refused = 0
        self._is_unusable = False
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def note(self, concept_ids: Iterable[str]) -> None:
        """Has the runs of these concepts brought up to what the store has."""
        with self._changed:
            self._todo.update(dict.fromkeys(concept_ids))
            metrics.TRACKING_QUEUE.set(len(self._todo))
            self._changed.notify_all()

    def give_up(self) -> None:
        """Begins nothing more, so that another process may take over."""
        self._given_up.set()
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def finish(self, patience_s: float, limit_s: float = math.inf) -> bool:
        """Waits until MLflow has every concept: `patience_s` while it answers nothing, `limit_s` in all.

        Returns whether it has. If not, nothing more is begun, so that another process may take over.
        """
        start = time.monotonic()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            left = len(self._todo)
        if left > _MANY:
            self._warn(f"MLflow: writing {left} concepts")
        answers, answered_at = self._mirror.answers, start
        while self._thread.is_alive():
            self._thread.join(0.2)
            now = time.monotonic()
            if self._mirror.answers != answers:
                answers, answered_at = self._mirror.answers, now
            if now > start + limit_s or now > answered_at + patience_s:
                self.give_up()
                return False
        if self._refused > 1:
            self._warn(f"MLflow refuses a part of {self._refused} concepts; job.log says which")
        return not self._is_unusable

    def close(
        self,
        status: str,
        stored: StoredResults,
        files: Iterable[Path],
        *,
        patience_s: float,
        limit_s: float = math.inf,
    ) -> bool:
        """Waits as `finish` does, then ends the job's run with MLflow's `status`. Returns whether that worked."""
        if not self.finish(patience_s, limit_s):
            return False
        try:
            self._mirror.close(status, stored, files)
        except Exception:
            logger.warning("MLflow: %s", redact_text(traceback.format_exc()))
            return False
        return True

    @property
    def place(self) -> str:
        """See MLflowMirror.place."""
        return self._mirror.place

    def _run(self) -> None:
        wait, is_open = self._retry_s[0], False
        while not self._given_up.is_set():
            concept_id = ""
            try:
                if not is_open:
                    self._mirror.open()
                    self.note(self._mirror.missing(self._keys))
                    is_open = True
                with self._changed:
                    while not self._todo and not self._closing:
                        self._changed.wait()
                    if not self._todo or self._given_up.is_set():
                        return
                    concept_id = next(iter(self._todo))
                    del self._todo[concept_id]
                    metrics.TRACKING_QUEUE.set(len(self._todo))
                with metrics.TRACKING_SECONDS.timed(), about(concept_id):
                    refusal = self._mirror.update(concept_id)
                if refusal:
                    self._refused += 1
                    if self._refused == 1:
                        self._warn(f"MLflow refuses a part of {concept_id}: {refusal}")
                wait = self._retry_s[0]
                if self._failing_since < math.inf:
                    self._failing_since = math.inf
                    self._warn("MLflow is back; its view catches up")
            except Exception as error:
                with about(concept_id):
                    logger.warning("MLflow: %s", redact_text(traceback.format_exc()))
                if not is_open and is_refusal(error):
                    self._is_unusable = True
                    self._warn(f"MLflow can't be used, the job goes on without it: {reason(error)}")
                    return
                if self._failing_since == math.inf:
                    self._failing_since = time.monotonic()
                    self._warn(f"MLflow can't be written to for now, the job goes on: {reason(error)}")
                with self._changed:
                    if concept_id:
                        metrics.RETRIES.add(target="tracking")
                        self._todo[concept_id] = None
                self._given_up.wait(wait)
                wait = min(2 * wait, self._retry_s[1])
