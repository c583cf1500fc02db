"""One worker: leasing, learning, reviewing and writing, in one loop.

A worker holds the frozen model once and, for each of its concepts, a task of kilobytes. It sends heartbeats from a
thread, and writes to the store from another, so that the device waits for neither.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
import torch

from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.review import Review
from textinv_ray.service import metrics
from textinv_ray.service.models import loading
from textinv_ray.service.scheduling.protocol import SchedulerInterface
from textinv_ray.service.store.files import StoreError
from textinv_ray.service.store.store import Store
from textinv_ray.service.worker import artifacts
from textinv_ray.service.worker.active_concept import ActiveConcept
from textinv_ray.service.worker.context import WorkerContext
from textinv_ray.service.worker.engine import Engine
from textinv_ray.service.worker.heartbeat import Heartbeat
from textinv_ray.service.worker.learning import Learner
from textinv_ray.service.worker.leasing import Leasing
from textinv_ray.service.worker.reviewing import Reviewer
from textinv_ray.service.worker.slots import Slots
from textinv_ray.service.worker.writing import Writer
from textinv_ray.util.logs import log_to_stderr, set_worker

logger = logging.getLogger(__name__)

_IDLE_S = 0.5  # for which a worker waits at a time that has nothing to learn at the moment
_UNWRITTEN = 2  # For each slot, concepts that are done and wait for the store, before no more are begun.


def start(setup: dict[str, Any]) -> Worker:
    """The worker of this process, with its models loaded. `setup`: scheduler (SchedulerInterface), config (plain data),
    output, and the folder where relative paths of models begin, if this node has it. Raises UserError for models and
    an output that can't be used here, and what loading raises.
    """
    if folder := setup.get("folder"):
        with suppress(OSError):  # another machine may lack it, another user may not enter it
            os.chdir(folder)
    config = JobConfig.from_dict(setup["config"])
    log_to_stderr(config.service.log_format)
    torch.set_num_threads(max(1, round(config.service.cpus_per_worker)))
    store = Store(setup["output"])
    engine = Engine(loading.backbone(config), loading.scorer(config), config, judge=loading.judge(config))
    node = ray.get_runtime_context().get_node_id()
    worker = Worker(setup["scheduler"], store, engine, config, node)
    metrics.report(store.shown, worker.name)
    set_worker(worker.name)
    return worker


class Worker:
    """Learns leased concepts until the scheduler has no more for it."""

    def __init__(
        self, scheduler: SchedulerInterface, store: Store, engine: Engine, config: JobConfig, node: str = ""
    ) -> None:
        """`node`: id of the Ray node that this process is on."""
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        context = WorkerContext(self.name, scheduler, store, engine, config)
        self._scheduler = scheduler
        self._concepts = context.concepts
        self._heartbeat = Heartbeat(context, node)
        self._slots = Slots(context)
        self._writer = Writer(context)
        self._leasing = Leasing(context, self._slots, self._writer, self._heartbeat)
        self._reviewer = Reviewer(context, self._writer, self._heartbeat, self._leasing.fail)
        self._learner = Learner(
            context, self._slots, self._leasing, self._reviewer, self._writer, self._heartbeat
        )

    @property
    def pending_writes(self) -> int:
        """Writes to the store that aren't done yet."""
        return self._writer.pending

    def run(self) -> None:
        """Returns when everything is over, or when the scheduler said to stop (after writing checkpoints)."""
        error = "it was interrupted"
        self._heartbeat.start()
        try:
            while not self._heartbeat.stop:
                self._heartbeat.tick()
                self._leasing.let_go(self._heartbeat.take_lost())
                self._writer.check()
                is_going = not self._refill()
                if is_going and not self._concepts:
                    break
                if self._slots.is_empty:
                    if is_going:
                        time.sleep(_IDLE_S)  # while its last results are written
                    continue
                self._finish(self._learner.apply_stopping())
                self._finish(self._learner.step())
                self._writer.save_when_due()
            self._writer.save(self._concepts)
            self._writer.close()
            error = ""
        except StoreError as refusal:
            logger.exception("the store refuses")
            error = ""  # no concept's fault
            self._scheduler.halt(str(refusal))
        except BaseException as caught:
            logger.exception("this worker goes down")
            error = f"{type(caught).__name__}: {caught}"
            raise
        finally:
            self._heartbeat.end()
            self._scheduler.leave(self.name, error, self._heartbeat.computed)

    def _refill(self) -> bool:
        """Takes leases for the free slots. False when there will never be more."""
        if not self._slots.free:
            return True
        learning = len(self._slots.active)
        if len(self._concepts) - learning > _UNWRITTEN * (learning + self._slots.free):
            if not learning:
                time.sleep(_IDLE_S)  # while the store is away, or slower than this worker
            return True
        wait_s = _IDLE_S if self._slots.is_empty else 0.0
        begun = self._leasing.take(self._slots.free, self._slots.shape, wait_s)
        if begun is None:
            return False
        if begun:
            self._slots.measure(begun[0].task)
        reviewed = self._reviewer.review_initializers(
            [active for active in begun if 0 in active.reviews and not active.history.points[0].sampled]
        )
        begun = [active for active in begun if active in self._concepts]  # the others have failed
        unfinished = [active for active in begun if not active.task.done]
        if unfinished:
            self._slots.keep_free(len(unfinished))
        for active in unfinished:
            self._slots.add(active)
        # A word's vectors that no step has changed: the review of the start is that of the end
        known = {active: review for active, review in reviewed.items() if active.task.is_unchanged}
        self._finish([active for active in begun if active.task.done], known)
        return True

    def _finish(
        self, done: Sequence[ActiveConcept], known: Mapping[ActiveConcept, Review] | None = None
    ) -> None:
        """Reviews concepts that are done, apart from those whose review is `known`, and has their results written."""
        sound = [active for active in done if active.task.vectors.isfinite().all()]
        for active in done:
            if active not in sound:  # it can't be drawn either
                self._leasing.fail(active, artifacts.NOT_FINITE)
        reviews = {active: review for active, review in (known or {}).items() if active in sound}
        reviews |= self._reviewer.review([active for active in sound if active not in reviews])
        for active, review in reviews.items():
            try:
                self._writer.finish(active, review)
            except ValueError as error:  # it has no result that could be recorded
                self._leasing.fail(active, str(error))
