"""The slots of the pack: how many concepts learn together, and fewer when memory runs out."""

from __future__ import annotations

import logging

import torch

from textinv_ray.inversion.pack import Pack, is_out_of_memory
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service import metrics
from textinv_ray.service.scheduling.protocol import shape_name
from textinv_ray.service.worker.active_concept import ActiveConcept
from textinv_ray.service.worker.context import WorkerContext

logger = logging.getLogger(__name__)


class Slots:
    """A pack whose size is measured with the first concept, and which shrinks when the device is full."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._pack: Pack | None = None

    @property
    def free(self) -> int:
        """How many more concepts can be added; 1 before the first one, with which the size is measured."""
        return 1 if self._pack is None else self._pack.free

    @property
    def shape(self) -> str:
        """The shape that further concepts must be of; empty: of any."""
        shape = self._pack and self._pack.shape
        return shape_name(shape) if shape else ""

    @property
    def active(self) -> list[ActiveConcept]:
        """The concepts in the slots."""
        return [self._context.concepts.of(task) for task in self._pack.tasks] if self._pack else []

    @property
    def is_empty(self) -> bool:
        """Whether no concept is in a slot."""
        return self._pack is None or not self._pack.tasks

    def measure(self, task: ConceptTask) -> None:
        """Makes the pack, of a size that fits for concepts such as this one. Does nothing when it is there."""
        if self._pack is None:
            self._pack = self._context.engine.pack(self._fitting_size(task))

    def keep_free(self, count: int) -> None:
        """Has at least `count` free slots, for concepts that have begun: memory may have run out for one among them."""
        assert self._pack is not None
        if self._pack.free < count:
            self._set_size(len(self._pack.tasks) + count)

    def add(self, active: ActiveConcept) -> None:
        """Puts a concept into a free slot of the pack that `measure` made."""
        assert self._pack is not None
        self._pack.add(active.task)

    def remove(self, active: ActiveConcept) -> None:
        """Frees the concept's slot if it is in one."""
        if self._pack and active.task in self._pack.tasks:
            self._pack.remove(active.task)

    def step(self) -> list[ConceptTask] | None:
        """One step of all concepts in the slots. Returns those that left, done or failed.

        None when memory ran out: then nothing has changed. The error is gone by then, and with its traceback the
        tensors of the step.
        """
        assert self._pack is not None
        metrics.PACK_SIZE.set(self._pack.size)
        metrics.PACK_CONCEPTS.set(len(self._pack.tasks))
        try:
            return self._pack.step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def halve(self) -> list[ActiveConcept]:
        """Takes half of the concepts out, and their slots away. Returns those that were taken out."""
        assert self._pack is not None
        torch.cuda.empty_cache()
        before = self.active
        self._set_size(len(before) // 2)
        for active in before[self._pack.size :]:
            self._pack.remove(active.task)
        return before[self._pack.size :]

    def compile(self) -> None:
        """After `halve`: what was compiled before pads to the size that was too large."""
        assert self._pack is not None
        self._context.engine.compile(self._pack.tasks[0], self._pack.size)

    def save_memory(self) -> bool:
        """For a concept that ran out of memory alone. False when nothing is left to be done.

        From then on activations are computed again in the backward pass, and the size is measured anew.
        """
        assert self._pack is not None
        torch.cuda.empty_cache()
        if self._context.engine.checkpoints_activations:
            return False
        logger.warning("out of memory: from now on activations are computed again in the backward pass")
        self._context.engine.checkpoint_activations()
        self._pack.size = self._fitting_size(self._pack.tasks[0])
        return True

    def close_free(self) -> bool:
        """Takes the free slots away. False when there is no pack yet."""
        if self._pack is None:
            return False
        self._set_size(max(1, len(self._pack.tasks)))
        return True

    def _set_size(self, size: int) -> None:
        assert self._pack is not None
        self._pack.size = size
        logger.warning("out of memory: %d concepts share a pass from now on", size)

    def _fitting_size(self, task: ConceptTask) -> int:
        """How many concepts share a pass from now on, for which it is compiled, if it is."""
        size = self._context.engine.pack_size(self._context.store, task)
        logger.info("%d concepts share a pass", size)
        self._context.engine.compile(task, size)
        return size
