"""Between a job's waves: the predictor is fitted on the first part's words, stored, and the rest is planned.

A run that is killed before waves.json is written finds the first part's words in the store and fits again: the same
words give the same predictor to the bit. A run that is killed afterwards starts from the predictor in the store.
"""

from __future__ import annotations

import dataclasses

from textinv_ray.concepts import predictor
from textinv_ray.concepts.predicted_start import PredictedStart
from textinv_ray.service.driver.job import Job
from textinv_ray.service.driver.lock import Lock
from textinv_ray.service.intake import plan, waves
from textinv_ray.service.intake.waves import Waves
from textinv_ray.service.library import predicting
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.util.errors import UserError


def second_part(job: Job, lock: Lock) -> Job:
    """The job with the plan of the concepts after its first part; concepts that failed in that aren't tried again.

    Fits and stores the predictor. Raises StoreError, and UserError where most of the first part failed, where the
    manifest can't be read any more, or where the output is another job's by now.
    """
    assert job.waves is not None
    stored = StoredResults.read(job.store)
    decided, said = _decided(job, job.waves, stored, lock)
    for line in said:
        job.console.print(line)
    rest = plan.make(job.manifest, job.config, job.facts, stored, only=job.plan.later, waves=decided)
    return dataclasses.replace(job, plan=rest, waves=decided)


def _decided(job: Job, undecided: Waves, stored: StoredResults, lock: Lock) -> tuple[Waves, list[str]]:
    """The waves with a predictor, or with the decision to do without, and lines about it. Writes both to the store."""
    done = job.plan.done | {
        result.concept_id for result in stored.results if job.plan.todo.get(result.concept_id) == result.key
    }
    learned = undecided.first & done
    if 2 * len(learned) < len(undecided.first):
        raise UserError(
            f"service.waves: only {len(learned)} of the first {len(undecided.first)} concepts were learned, too few "
            "for a predictor that all others start from; repair those that failed, or set a smaller service.waves.first"
        )
    examples = predicting.examples_of(job.store, sorted(learned))
    fitted, why = None, ""
    try:
        fitted = predictor.fit(examples)
        why = fitted.useless
    except ValueError as error:
        why = str(error)
    start = None if fitted is None or why else PredictedStart(fitted.to_bytes())
    decided = dataclasses.replace(undecided, decided=True, start=start)
    if lock.lost:
        raise UserError(lock.lost)
    waves.write(job.store, decided, len(examples), why)
    if start is None or fitted is None:
        return decided, [f"waves are left out: {why}; the other concepts are learned plainly"]
    return decided, [
        *predicting.lines(fitted, 0),
        f"second wave: {len(job.plan.later)} concepts start from {job.store.shown}/{start.name}",
    ]
