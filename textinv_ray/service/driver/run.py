"""One job, from the command to the exit code: plan, start, watch, end.

plan    what is left to learn, by the manifest and the store; nothing heavy is imported before there is something
start   a Ray, the scheduler, the fleet of workers (learning.py)
watch   progress, failures, MLflow, signals, the lock (watch.py)
waves   with service.waves: after the first part a predictor is fitted (waves.py); plan, start and watch again
end     results.parquet, report.html, MLflow, the exit code (end.py)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace

from textinv_ray.concepts import prepare
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest import checks, vocabulary
from textinv_ray.manifest.reader import Manifest
from textinv_ray.model_files import places
from textinv_ray.service.driver import job_record, messages
from textinv_ray.service.driver.console import Screen, captured
from textinv_ray.service.driver.end import end, end_refused
from textinv_ray.service.driver.environment import log_file, quiet
from textinv_ray.service.driver.job import Job
from textinv_ray.service.driver.learning import learn
from textinv_ray.service.driver.lock import Lock
from textinv_ray.service.driver.signals import Stopping, sigterm_as_exit
from textinv_ray.service.driver.waves import second_part
from textinv_ray.service.intake import plan, waves
from textinv_ray.service.models import sources
from textinv_ray.service.store.files import StoreError
from textinv_ray.service.store.job import is_behind
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.background import MirrorThread
from textinv_ray.service.tracking.mirror import MLflowMirror, run_keys
from textinv_ray.service.tracking.uri import resolve_uri
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import ExitCode
from textinv_ray.util.redact import message
from textinv_ray.util.submitted_job import check_lasting
from textinv_ray.util.terminal import PlainConsole

logger = logging.getLogger(__name__)


def invert(
    manifest_uri: str,
    config: JobConfig,
    *,
    output: str | None = None,
    only: Collection[str] | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    verbose: bool = False,
    preset: str | None = None,
    screen: Screen | None = None,
) -> int:
    """Learns a word for every row of a manifest that has none yet.

    `preset`: what `config` was made from, to tell what differs from it. `screen`: shows the job in place of stdout,
    except for what is said before it has begun. Returns an `ExitCode`. Raises UserError for
    mistakes in the manifest or the configuration, for a model that can't be used, and for a submitted job whose output
    would be lost.
    """
    quiet()
    target = config.service.output if output is None else output
    check_lasting(target)
    store = Store(target)
    manifest = Manifest.open(manifest_uri)
    facts = _usable_model(manifest, config)
    # Loading a tokenizer takes seconds, which a job that only finds that all is done needn't spend.
    is_checked = not job_record.was_finished(store, manifest, config)
    tokenizers = vocabulary.load(config.model) if is_checked else {}
    checks.check(manifest, config, tokenizers, family=facts.family)
    shown = PlainConsole()
    with sigterm_as_exit(), nullcontext() if dry_run else Lock(store, shown.print) as lock:
        stored = StoredResults.read(store)
        damaged = store.damaged(stored.results)
        stored = stored.without(damaged)
        waved = waves.read(store, manifest, config, facts)
        todo = plan.make(manifest, config, facts, stored, only=only or (), limit=limit, waves=waved)
        if again := [name for name in damaged if name in todo.todo or name in todo.later]:
            shown.print(messages.damaged(again))
        if todo.todo and not is_checked:
            checks.check(manifest, config, vocabulary.load(config.model), family=facts.family)
        if todo.configured_start:
            prepare.check_start_readable(config, base=manifest.base)
        if lock is None:
            store.check_writable()
            messages.print_plan(shown, todo, config, store, plan.estimate(todo, config, stored))
            return ExitCode.DONE
        log_format = config.service.log_format
        with log_file(store) as log, captured(log, verbose, log_format, screen) as console:
            if not (todo.todo or todo.later or is_behind(store)):
                return messages.print_nothing_to_do(console, todo, config, store)
            job = Job(store, manifest, config, facts, todo, console, preset, screen, waved)
            messages.print_start(job)
            if waved and not waved.decided:
                waves.forget(store)
            for concept_id in again:
                store.reopen(concept_id)
            job_record.begin(store, manifest, config, todo)
            keys = run_keys(stored)
            del stored  # of hundreds of megabytes in a large job
            return _run(job, lock, keys)


def check(manifest: Manifest, config: JobConfig) -> None:
    """Raises UserError for what `invert` would find wrong with a manifest, a configuration and a model."""
    facts = _usable_model(manifest, config)
    checks.check(manifest, config, vocabulary.load(config.model), family=facts.family)


def _usable_model(manifest: Manifest, config: JobConfig) -> sources.ModelFacts:
    """The configured model. Raises UserError when it can't be read or can't do what is configured."""
    facts = sources.facts(config.model)
    facts.family.check(config)
    if config.training.encoders:  # a model may lack some of its family's, such as SD 3 without T5
        own = places.open_model(config.model).encoder_names
        facts.family.check_encoders(config.training.encoders, own)
    prepare.check_start(config, base=manifest.base, model_identity=facts.identity)
    return facts


def _run(job: Job, lock: Lock, keys: Mapping[str, str]) -> int:
    """Learns what is planned and writes the views. `keys`: see `run_keys`. Returns the exit code."""
    started = time.monotonic()
    with Stopping() as stopping:
        mirror = _start_mirror(job, keys)
        try:
            problem = learn(job, mirror, stopping, lock) if job.plan.todo else ""
        except UserError:
            if not lock.lost:
                end_refused(job, mirror)
            raise
        if job.plan.later and not problem and not stopping.signal:
            job, problem = _learn_rest(job, mirror, stopping, lock)
        problem = lock.lost or problem
        if problem:
            job.console.print(f"the job could not go on: {message(problem)}")
        if lock.lost:  # job.json and the views are the other job's now
            if mirror:
                mirror.give_up()
            return ExitCode.INCOMPLETE
        try:
            return end(job, mirror, stopping, started)
        except StoreError:
            if not problem:
                raise
            logger.exception("the store refused again")
            return ExitCode.INCOMPLETE


def _learn_rest(first: Job, mirror: MirrorThread | None, stopping: Stopping, lock: Lock) -> tuple[Job, str]:
    """Fits the predictor and learns what is after the first part. Returns the job with the plan of both, and why it
    ended early; empty if it didn't.
    """
    job = first
    try:
        rest = second_part(first, lock)
        job = replace(rest, plan=first.plan.then(rest.plan))
        return job, learn(rest, mirror, stopping, lock) if rest.plan.todo else ""
    except UserError as error:
        return job, str(error)


def _start_mirror(job: Job, keys: Mapping[str, str]) -> MirrorThread | None:
    """The thread that writes to MLflow; none where tracking is off."""
    tracking = job.config.tracking
    if not tracking.enabled:
        return None
    mirror = MLflowMirror(job.store, resolve_uri(job.config, job.store), tracking.experiment)
    return MirrorThread(mirror, keys, job.console.print)
