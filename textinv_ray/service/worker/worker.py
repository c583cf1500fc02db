"""One worker: takes leases, learns them in a pack, reviews and stores what is finished.

A worker holds the frozen model once and, for each of its concepts, a task of kilobytes. It sends the
scheduler heartbeats from a thread, and writes to the store from another, so that the device waits for neither.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

from textinv_ray.concepts.concept import Concept
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.backbone import Backbone
from textinv_ray.inversion.pack import Pack, is_out_of_memory
from textinv_ray.inversion.review import Pictures, Review, Subject, evaluate_words, review
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.inversion.tuning import compile_step
from textinv_ray.service.models import loading
from textinv_ray.service.scheduling.leases import Lease
from textinv_ray.service.scheduling.protocol import PayloadLostError, SchedulerInterface
from textinv_ray.service.store.history import History
from textinv_ray.service.store.pictures import sample_grid, training_grid
from textinv_ray.service.store.records import Result
from textinv_ray.service.store.store import Store, StoreError, sample_name
from textinv_ray.service.worker import artifacts
from textinv_ray.service.worker.active_concept import ActiveConcept
from textinv_ray.service.worker.heartbeat import Heartbeat
from textinv_ray.service.worker.pack_sizes import pack_size
from textinv_ray.util.logs import log_to_stderr

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

_IDLE_S = 0.5


def learn(setup: dict[str, Any]) -> None:
    """The Ray Train loop of one worker. `setup`: scheduler (SchedulerInterface), config (plain data), output."""
    log_to_stderr()
    config = JobConfig.from_dict(setup["config"])
    torch.set_num_threads(max(1, round(config.service.cpus_per_worker)))
    try:
        backbone, scorer = loading.backbone(config), loading.scorer(config)
    except Exception as error:
        logger.exception("this worker can't start")
        setup["scheduler"].failed_to_start(str(error))
        raise
    Worker(setup["scheduler"], Store(setup["output"]), backbone, scorer, config).run()


class Worker:
    """Learns leased concepts until the scheduler has no more for it."""

    def __init__(
        self,
        scheduler: SchedulerInterface,
        store: Store,
        backbone: Backbone,
        scorer: Scorer,
        config: JobConfig,
    ) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._scheduler = scheduler
        self._store = store
        self._backbone = backbone
        self._scorer = scorer
        self._initializer_pictures: Pictures = {}
        self._config = config
        self._items: dict[str, ActiveConcept] = {}
        self._pack: Pack | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._saved_at = self._busy_at = time.monotonic()
        self._heart = Heartbeat(scheduler, self.name, config.service, self._steps)

    def run(self) -> None:
        """Returns when everything is over, or when the scheduler said to stop (after writing checkpoints)."""
        error = "it was interrupted"
        self._heart.start()
        try:
            while not self._heart.stop:
                self._heart.tick()
                self._let_go(self._heart.take_lost())
                self._check_writes()
                if not self._refill() and not self._items:
                    break
                if self._pack is None or not self._pack.tasks:
                    time.sleep(_IDLE_S)
                    continue
                self._step(self._pack)
                self._save_sometimes()
            self._save(self._items.values())
            self._writer.shutdown(wait=True)
            self._check_writes()
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
            self._heart.end()
            self._scheduler.leave(self.name, error)

    def _steps(self) -> dict[str, int]:
        """For the heartbeat: each concept's step."""
        return {concept_id: item.task.step for concept_id, item in list(self._items.items())}

    # Taking

    def _refill(self) -> bool:
        """Takes leases for the pack's free slots. False when there will never be more."""
        count = self._pack.free if self._pack else 1
        if count == 0:
            return True
        answer = self._scheduler.take(self.name, count)
        if self._items or answer.leases or not answer.no_pending:
            self._busy_at = time.monotonic()
        elif time.monotonic() - self._busy_at > self._config.service.release_after_s:
            logger.info("nothing is left but what others learn: this worker goes")
            return False
        new = [item for item in map(self._begin, answer.leases) if item]
        if new and self._pack is None:
            self._pack = Pack(self._backbone, self._config, self._fitting_size(new[0].task))
        self._review(
            [item for item in new if 0 in item.reviews and not item.history.points[0].sampled], first=True
        )
        for item in new:
            if item.concept_id in self._items and not item.task.done:
                assert self._pack is not None
                self._pack.add(item.task)
        self._finish([item for item in new if item.concept_id in self._items and item.task.done])
        return bool(answer.leases) or not answer.over

    def _fitting_size(self, task: ConceptTask) -> int:
        """How many concepts share a pass from now on, for which it is compiled, if it is."""
        size = pack_size(self._store, self._backbone, task, self._config)
        logger.info("%d concepts share a pass", size)
        if self._config.pack.compile:
            compile_step(self._backbone, task, size, self._config)
        return size

    def _begin(self, lease: Lease) -> ActiveConcept | None:
        """Makes a leased concept ready, continuing where its last state in the store ends."""
        start = time.monotonic()
        self._heart.tick()
        self._drop(lease.concept_id)  # lost and leased anew, after a long silence
        try:
            prepared = self._scheduler.fetch(lease)
        except PayloadLostError:
            logger.warning("%s: the scheduler that leased it is gone", lease.concept_id)
            self._scheduler.give_back(self.name, lease.concept_id)
            return None
        concept = Concept.from_row({"concept_id": lease.concept_id, "concept": prepared.row})
        if lease.attempt > 1:  # a worker may have been lost between its last write and its word of it
            result = self._store.result(lease.concept_id)
            if result and result.fingerprint == concept.fingerprint:
                self._store.remove_checkpoint(lease.concept_id)
                self._scheduler.ack(self.name, lease.concept_id)
                return None
        try:
            task = ConceptTask(concept, self._backbone, self._config)
        except ValueError as error:
            self._fail(lease.concept_id, str(error))
            return None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._lacks_memory_for(lease.concept_id)
            return None
        self._restore(task)
        history = artifacts.history_of(self._store, task, self._config)
        item = ActiveConcept(
            task, prepared.images_mtime_digest, history, artifacts.review_steps(concept, self._config)
        )
        item.history.at(task.step, time.monotonic() - start)
        self._items[concept.concept_id] = item
        self._write(
            item,
            lambda: self._store.write_concept(item.concept_id, "training.png", training_grid(concept.images)),
        )
        logger.info(
            "%s: from step %d of %d, attempt %d", lease.concept_id, task.step, task.steps, lease.attempt
        )
        return item

    def _restore(self, task: ConceptTask) -> None:
        for name, state in self._store.states(task.concept.concept_id):
            try:
                task.restore(state)
                return
            except ValueError as error:
                logger.warning("%s/%s is not continued: %s", task.concept.concept_id, name, error)

    # Learning

    def _step(self, pack: Pack) -> None:
        self._look(pack)
        if not pack.tasks:
            return
        start = time.monotonic()
        tasks = list(pack.tasks)
        before = [task.step for task in tasks]
        leavers = None
        try:
            leavers = pack.step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if leavers is None:  # and the error is gone, whose traceback held the step's tensors
            self._shrink(pack)
            return
        share = (time.monotonic() - start) / len(tasks)
        moved = [task for task, step in zip(tasks, before, strict=True) if task.step != step]
        self._heart.computed += len(moved)
        for task in tasks:
            if not task.failed:
                self._item(task).history.at(task.step, share)
        for task in leavers:
            if task.failed:
                self._fail(task.concept.concept_id, task.failed)
        due = [self._item(task) for task in moved if not task.failed and not task.done]
        due = [item for item in due if item.task.step in item.reviews]
        for scored in (False, True):
            self._review([item for item in due if item.reviews[item.task.step] == scored], scored=scored)
        self._finish(self._looked([self._item(task) for task in leavers if not task.failed]))

    def _look(self, pack: Pack) -> None:
        """With `stopping.rule: clip`, looks at the words that are due before their next step; some may end by it."""
        if self._config.stopping.rule != "clip":
            return
        items = self._looked([self._item(task) for task in pack.tasks if task.evaluation_due])
        for item in items:
            item.task.apply_stopping()
            if item.task.done:
                pack.remove(item.task)
        self._finish([item for item in items if item.task.done])

    def _looked(self, items: Sequence[ActiveConcept]) -> list[ActiveConcept]:
        """Looks at the pictures of those that are due. Returns all but those that failed by it."""
        due = {item.concept_id: item for item in items if item.task.evaluation_due}
        subjects = [Subject(item.task.concept, item.task.vectors) for item in due.values()]
        render = partial(evaluate_words, self._backbone, self._scorer, config=self._config)
        scores = self._rendered(list(due.values()), subjects, render, History.add_stopping)
        for concept_id, score in scores.items():
            due[concept_id].task.record(score)
        return [item for item in items if not item.task.evaluation_due]

    def _shrink(self, pack: Pack) -> None:
        """After a step that ran out of memory (and changed nothing): half the concepts go on, the others later.

        They keep what they have learned, in checkpoints, and wait for a free slot of any worker. A concept that was
        alone goes on with checkpointed activations, or fails when they are already.
        """
        torch.cuda.empty_cache()
        alone = pack.tasks[0] if len(pack.tasks) == 1 else None
        if alone and self._backbone.checkpoints_activations:
            self._lacks_memory_for(alone.concept.concept_id)
            return
        if alone:
            logger.warning("out of memory: from now on activations are computed again in the backward pass")
            self._backbone.checkpoint_activations()
            pack.size = self._fitting_size(alone)
            return
        pack.size = len(pack.tasks) // 2
        logger.warning("out of memory: %d concepts share a pass from now on", pack.size)
        for item in [self._item(task) for task in pack.tasks[pack.size :]]:
            pack.remove(item.task)
            self._save([item])
            self._write(item, self._returner(item.concept_id))
        if self._config.pack.compile:  # what was compiled pads to the size that was too large
            compile_step(self._backbone, pack.tasks[0], pack.size, self._config)

    def _returner(self, concept_id: str) -> Callable[[], None]:
        def give_back() -> None:
            self._items.pop(concept_id, None)
            self._scheduler.give_back(self.name, concept_id)

        return give_back

    def _lacks_memory_for(self, concept_id: str) -> None:
        """A concept that had no room: it fails if it was alone here, else it waits for another chance."""
        others = self._items.keys() - {concept_id}
        if self._pack and others:
            self._pack.size = max(1, len(self._pack.tasks))
            logger.warning("out of memory: %d concepts share a pass from now on", self._pack.size)
            self._drop(concept_id)
            self._scheduler.give_back(self.name, concept_id)
        else:
            self._fail(concept_id, "out of memory, though it was alone: a smaller batch_size needs less")

    def _item(self, task: ConceptTask) -> ActiveConcept:
        return self._items[task.concept.concept_id]

    # Reviewing

    def _review(
        self, items: Sequence[ActiveConcept], *, first: bool = False, scored: bool = True
    ) -> dict[str, Review]:
        """Samples (and scores) of items at their current step; `first`: of their initializers, at step 0.

        An item whose prompts can't be rendered fails, and is missing in what is returned.
        """
        subjects = [
            Subject(item.task.concept, item.task.start if first else item.task.vectors) for item in items
        ]
        scorer, kept = self._scorer if scored else None, self._initializer_pictures
        render = partial(review, self._backbone, scorer, config=self._config, initializers=kept)
        reviews = self._rendered(items, subjects, render, History.add_review)
        for item in [item for item in items if item.concept_id in reviews]:
            found = reviews[item.concept_id]
            point = item.history.points[0] if first else item.history.points[-1]
            artifacts.review(point, found.clip_image_similarity, found.clip_text_similarity)
            self._write_samples(item, point.step, found)
        return reviews

    def _rendered(
        self,
        items: Sequence[ActiveConcept],
        subjects: Sequence[Subject],
        render: Callable[[Sequence[Subject]], Sequence[Found]],
        note_seconds: Callable[[History, float], None],
    ) -> dict[str, Found]:
        """What `render` finds in one subject of each item; an item for which it finds nothing has failed."""
        if not items:
            return {}
        start = time.monotonic()
        self._heart.tick()
        try:
            found = render(subjects)
        except (ValueError, RuntimeError, MemoryError) as error:
            if not isinstance(error, ValueError) and not is_out_of_memory(error):
                raise
            if len(items) == 1:
                self._fail(items[0].concept_id, str(error))
                return {}
            apart = [
                self._rendered([item], [subject], render, note_seconds)
                for item, subject in zip(items, subjects, strict=True)
            ]
            return {concept_id: one for some in apart for concept_id, one in some.items()}
        share = (time.monotonic() - start) / len(items)
        for item in items:
            note_seconds(item.history, share)
        return {item.concept_id: one for item, one in zip(items, found, strict=True)}

    def _write_samples(self, item: ActiveConcept, step: int, found: Review) -> None:
        self._write(
            item,
            lambda: self._store.write_concept(item.concept_id, sample_name(step), sample_grid(found.samples)),
        )

    # Ending

    def _finish(self, items: Sequence[ActiveConcept]) -> None:
        """Reviews and stores concepts that are done."""
        reviews = self._review(items)
        for item in items:
            if item.concept_id not in reviews:
                continue
            task = item.task
            item.history.set_losses(task.loss_history.tolist())
            samples = reviews[item.concept_id].samples
            result = artifacts.result(task, item.history, self._backbone, samples, item.images_mtime_digest)
            files = {
                "learned_embeds.safetensors": words.save_learned_embeds(
                    task.concept.placeholder_token, task.vectors
                ),
                "state.safetensors": task.to_bytes(),
                "history.parquet": item.history.to_bytes(),
            }
            self._write(item, self._finisher(result, files))

    def _finisher(self, result: Result, files: dict[str, bytes]) -> Callable[[], None]:
        concept_id = result.concept_id

        def finish() -> None:
            if self._may_write(concept_id):
                self._store.finish(result, files)
                self._scheduler.ack(self.name, concept_id)
            self._items.pop(concept_id, None)

        return finish

    def _fail(self, concept_id: str, error: str) -> None:
        logger.warning("%s failed: %s", concept_id, error)
        self._drop(concept_id)
        self._scheduler.fail(self.name, concept_id, error)

    def _drop(self, concept_id: str) -> None:
        """Forgets a concept."""
        item = self._items.pop(concept_id, None)
        if item and self._pack and item.task in self._pack.tasks:
            self._pack.remove(item.task)

    def _let_go(self, lost: Iterable[str]) -> None:
        """Drops concepts that the scheduler gave to others while this worker was silent."""
        for concept_id in lost:
            self._drop(concept_id)
            # It may have come back by a new lease in the meantime; then it must not be waited for.
            self._scheduler.give_back(self.name, concept_id)

    # Writing

    def _save_sometimes(self) -> None:
        if time.monotonic() - self._saved_at >= self._config.service.checkpoint_every_s:
            # While the store is away, one checkpoint waits for it, not a queue of them.
            self._save(item for item in self._items.copy().values() if not item.is_saving)
            self._saved_at = time.monotonic()

    def _save(self, items: Iterable[ActiveConcept]) -> None:
        """Queues a checkpoint of each item that isn't finished yet."""
        for item in list(items):
            if not item.task.done:
                item.history.set_losses(item.task.loss_history.tolist())
                state, history, step = item.task.to_bytes(), item.history.to_bytes(), item.task.step
                item.checkpoint = self._write(item, self._saver(item.concept_id, state, history, step))

    def _saver(self, concept_id: str, state: bytes, history: bytes, step: int) -> Callable[[], None]:
        def save() -> None:
            if self._may_write(concept_id):
                self._store.checkpoint(concept_id, state, history)
                self._scheduler.saved(self.name, concept_id, step)

        return save

    def _may_write(self, concept_id: str) -> bool:
        return self._scheduler.may_write(self.name, concept_id)

    def _write(self, item: ActiveConcept, write: Callable[[], None]) -> Future[None]:
        written = self._writer.submit(write)
        item.writes.append(written)
        return written

    def _check_writes(self) -> None:
        """Raises what went wrong in the writing thread."""
        for item in list(self._items.values()):
            item.check_writes()
