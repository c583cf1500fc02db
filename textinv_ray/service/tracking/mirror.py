"""A job in MLflow: a parent run per job, a child run per concept. The driver alone writes them, from the store.

Runs are found by their tags, and every number has the time that the store has for it. So writing twice changes
nothing, and runs that are rebuilt from the store equal those that were written while the job ran.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from textinv_ray.service.store import records
from textinv_ray.service.store.history import History
from textinv_ray.service.store.records import Failure, JobRecord, Result
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking import decision_tags, refusals, shown, tags, texts
from textinv_ray.service.tracking.look_writer import LookWriter
from textinv_ray.service.views import results_table
from textinv_ray.util.redact import redact
from textinv_ray.util.text import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

JOB, CONFIG, CONCEPT = "textinv.job", "textinv.config", "textinv.concept"
FINGERPRINT, STATE, STEP = "textinv.fingerprint", "textinv.state", "textinv.step"
_METRICS_PER_CALL = 900  # MLflow takes 1000 entries in one call, params and tags included
_KIND = "custom_model_development"  # so that the UI opens with runs and charts, not with chat traces


@dataclass
class _Child:
    """What the run of a concept shows."""

    run_id: str
    fingerprint: str
    """The key (see `run_keys`) of the result or failure that it shows; empty while there is none."""
    state: str
    """State fingerprint of the optimisation whose losses it shows."""
    step: int
    """The last step of the history that it shows; -1: none."""
    decision: Mapping[str, str] = field(default_factory=dict)
    """The tags of a reviewer's decision that it has."""
    images: set[str] | None = None
    """ "key+step" of the images that it shows; none: not known yet."""


class MLflowMirror:
    """The runs of one job in MLflow. When a method raises an error of MLflow, it may be called again."""

    def __init__(self, store: Store, uri: str, experiment: str, artifacts_within: str = "") -> None:
        """`uri`: of the tracking server or database. `experiment`: its name; it is created when there is none.

        artifacts_within: a folder that files may be written to; empty: wherever MLflow says.
        """
        self._store = store
        self._artifacts_within = artifacts_within
        self.answers = 0
        """Calls that MLflow has answered: while they rise, it isn't away."""
        self._uri = uri
        self._experiment = experiment
        self._children: dict[str, _Child] = {}
        self._client: MlflowClient | None = None
        self._job_id = ""
        self.parent_id = ""

    def open(self) -> None:
        """Connects, finds or creates the experiment and the parent run, and reads which concepts have runs."""
        refusals.check_database(self._uri)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self._uri)
        job = self._job()
        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            beside = None
            if self._uri.startswith("sqlite:///"):
                beside = str(Path(self._uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts")
            self._experiment_id = client.create_experiment(
                self._experiment, artifact_location=beside, tags={"mlflow.experimentKind": _KIND}
            )
        else:
            self._experiment_id = found.experiment_id
            self._check_place(found.artifact_location)
        self._client, self._job_id, self._config = client, job.id, job.config(self._store.shown)
        self._looks = LookWriter(client, self._store, self._config)
        client.set_experiment_tag(
            self._experiment_id, shown.VIEW + shown.view_key(job.id), shown.view(job.id, JOB)
        )
        self.parent_id = self._find_parent(job)
        for run in self._search(f"tags.`{JOB}` = '{job.id}'"):
            found_tags = run.data.tags
            if CONCEPT in found_tags:
                self._check_place(run.info.artifact_uri)
                self._children[found_tags[CONCEPT]] = _Child(
                    run.info.run_id,
                    found_tags.get(FINGERPRINT, ""),
                    found_tags.get(STATE, ""),
                    _step(found_tags.get(STEP, "")),
                    decision_tags.of_run(found_tags),
                )

    def missing(self, keys: Mapping[str, str]) -> list[str]:
        """Concepts whose run doesn't show yet how they ended. `keys`: see `run_keys`."""
        shown = {concept_id: child.fingerprint for concept_id, child in self._children.items()}
        return [concept_id for concept_id, key in keys.items() if shown.get(concept_id) != key]

    def update(self, concept_id: str) -> str:
        """Writes what the store has of a concept and its run lacks. Creates the run if there is none.

        Returns why MLflow refuses a part of it, empty if it takes all. Such a run says so, ends and counts as written:
        the same would be refused again.
        """
        try:
            self._update(concept_id)
        except Exception as error:
            if not refusals.is_refusal(error):
                raise
            logger.warning("MLflow refuses a part of %s", concept_id, exc_info=True)
            self._end_refused(concept_id, error)
            return refusals.reason(error)
        return ""

    def _end_refused(self, concept_id: str, error: Exception) -> None:
        child = self._children.get(concept_id)
        key = _key(self._store.result(concept_id), self._store.failure(concept_id))
        if refusals.is_gone(error):
            self._children.pop(concept_id, None)
        elif child is not None and key:
            note = f"MLflow refused a part of this run: {refusals.reason(error)}"
            try:
                self._client_.set_tag(child.run_id, "mlflow.note.content", note)
                self._end(child, key, "FINISHED" if self._store.result(concept_id) else "FAILED", None)
            except Exception as again:
                if not refusals.is_refusal(again):
                    raise
                logger.warning("MLflow refuses the end of the run of %s", concept_id, exc_info=True)

    def _update(self, concept_id: str) -> None:
        result = self._store.result(concept_id)
        failure = None if result else self._store.failure(concept_id)
        history = self._history(concept_id)
        key = _key(result, failure)
        start = _start(history, failure)
        child = self._child(concept_id, key, history, start)
        if child.fingerprint == key != "":
            return
        training, points = self._config.training, self._config.tracking.loss_points
        metrics = shown.of_history(history, child.step, training.steps, points) if history else []
        params: Mapping[str, object] = {}
        labels: dict[str, str] = {}
        if result:
            params = records.params(result)
            labels = {**tags.of_row(result.tags), "status": "done"}
            metrics += shown.of_result(result)
        elif failure:
            labels = {"status": "failed", "error": failure.error, "mlflow.note.content": failure.error}
        self._log(child.run_id, metrics, params, labels)
        if child.images is None:
            child.images = self._looks.listed(child.run_id)
        self.answers += self._looks.write(child.run_id, child.images, concept_id, history, result)
        if result:
            self._client_.set_tag(child.run_id, "mlflow.note.content", texts.of_result(result))
            self._log_file(child.run_id, concept_id, "learned_embeds.safetensors")
        if history and history.points:
            child.step = history.points[-1].step
            self._client_.set_tag(child.run_id, STEP, str(child.step))
        if key:
            end = history.points[-1].time_ms if history and history.points else None
            self._end(child, key, "FINISHED" if result else "FAILED", end)

    def _end(self, child: _Child, key: str, status: str, time_ms: int | None) -> None:
        self._client_.set_terminated(child.run_id, status, time_ms)
        self._client_.set_tag(child.run_id, FINGERPRINT, key)
        child.fingerprint = key

    def write_decisions(self) -> None:
        """Writes reviewers' decisions on the words that the runs show as tags, where they differ."""
        for decision in self._store.decisions():
            child = self._children.get(decision.concept_id)
            if child is None or child.fingerprint != decision.fingerprint:
                continue
            wanted = decision_tags.tags_of(decision)
            if wanted != child.decision:
                decision_tags.write_decision(self._client_, child.run_id, child.decision, decision)
                self.answers += 1
                child.decision = wanted

    def close(self, status: str, stored: StoredResults, artifacts: Iterable[Path]) -> None:
        """Writes the summary and ends the parent run with MLflow's `status`."""
        self.write_decisions()
        self.summarise(stored, artifacts, with_pictures=status != "KILLED")
        ended_at = self._job().ended_at
        end = None if ended_at is None else int(1000 * ended_at)
        self._client_.set_terminated(self.parent_id, status, end)

    def summarise(
        self, stored: StoredResults, artifacts: Iterable[Path], *, with_pictures: bool = True
    ) -> None:
        """Writes totals, a table of results, the configuration and `artifacts` to the parent run.

        with_pictures: whether the table's first rows get thumbnails, which takes seconds.
        """
        results, failures, job = stored.results, stored.failures, self._job()
        totals: dict[str, float] = {
            "concepts_done": len(results),
            "concepts_failed": len(failures),
            "steps": sum(result.steps for result in results),
            "seconds": sum(result.seconds for result in results),
        }
        totals |= shown.means(results, results_table.retrieval(self._store))
        now = max([int(1000 * result.finished_at) for result in results], default=0)
        self._log(self.parent_id, [(name, value, now, 0) for name, value in totals.items()], {}, {})
        thumbnails: Mapping[str, str] = {}
        if with_pictures:
            thumbnails = self._looks.write_thumbnails(self.parent_id, texts.worst_first(stored))
        self._client_.log_dict(self.parent_id, texts.results_table(stored, thumbnails), "results.json")
        configuration = yaml.safe_dump(job.configuration, sort_keys=False)
        self._client_.log_text(self.parent_id, configuration, "configuration.yaml")
        for path in artifacts:
            self._client_.log_artifact(self.parent_id, str(path))
        counts = f"{len(results)} done, {len(failures)} failed. Pictures of all: *Artifacts*, `report.html`."
        self._client_.set_tag(self.parent_id, "mlflow.note.content", f"{texts.of_job(job)}\n\n{counts}")
        listed = json.dumps([{"path": "results.json", "type": "table"}])
        self._client_.set_tag(self.parent_id, "mlflow.loggedArtifacts", listed)

    @property
    def place(self) -> str:
        """What follows the server's address in that of the table of this job's runs; empty before `open`."""
        return shown.place(self._experiment_id, self._job_id) if self._job_id else ""

    @property
    def _client_(self) -> MlflowClient:
        assert self._client is not None, "open() comes first"
        return self._client

    def _job(self) -> JobRecord:
        job = self._store.job()
        if job is None:
            raise FileNotFoundError(f"{self._store.shown} has no job.json")
        return job

    def _find_parent(self, job: JobRecord) -> str:
        """Finds or creates the parent run. An output has one for each configuration that changes results."""
        wanted = f"tags.`{JOB}` = '{job.id}' and tags.`{CONFIG}` = '{job.config_digest}'"
        labels = {
            "output": self._store.shown,
            "manifest": job.manifest,
            "mlflow.note.content": texts.of_job(job),
            **shown.tags_of_job(job),
            **{f"version.{name}": text for name, text in job.versions.items()},
        }
        run = next(iter(self._search(wanted)), None)
        if run is None:
            run = self._client_.create_run(
                self._experiment_id,
                start_time=int(1000 * job.started_at),
                tags={JOB: job.id, CONFIG: job.config_digest},
                run_name=job.name,
            )
        else:
            self._client_.update_run(run.info.run_id, status="RUNNING")
        self._log(run.info.run_id, [], shown.params_of_job(job), labels)
        self._client_.log_inputs(run.info.run_id, [shown.dataset_of_job(job)])
        return str(run.info.run_id)

    def _search(self, filter_string: str) -> Iterable[Any]:
        token = None
        while True:
            page = self._client_.search_runs(
                [self._experiment_id], filter_string, max_results=1000, page_token=token
            )
            self.answers += 1
            yield from page
            token = page.token
            if not token:
                return

    def _child(self, concept_id: str, key: str, history: History | None, start: int | None) -> _Child:
        """Finds or creates a concept's run. A run of another result or another optimisation is replaced."""
        child = self._children.get(concept_id)
        state = history.state_fingerprint if history else ""
        if child is not None:
            same_curve = child.state == state or not state
            if same_curve and (not child.fingerprint or child.fingerprint == key):
                return child
            self._client_.delete_run(child.run_id)
        own = {
            JOB: self._job_id,
            CONCEPT: concept_id,
            STATE: state,
            "mlflow.parentRunId": self.parent_id,
        }
        run = self._client_.create_run(self._experiment_id, start_time=start, tags=own, run_name=concept_id)
        self.answers += 1
        child = _Child(run.info.run_id, "", state, -1, images=set())
        self._children[concept_id] = child
        return child

    def _check_place(self, artifacts: str) -> None:
        """Raises UnusableError for a place of files outside of `artifacts_within`."""
        within = self._artifacts_within
        place = os.path.realpath(artifacts.removeprefix("file://"))
        if within and ("://" in artifacts or not Path(place).is_relative_to(os.path.realpath(within))):
            raise refusals.UnusableError(
                f"it keeps its files at {one_line(redact(artifacts), 300)}, outside of this output; "
                "if the database is yours, name it with --tracking-uri"
            )

    def _history(self, concept_id: str) -> History | None:
        data = self._store.read_concept(concept_id, "history.parquet")
        try:
            return History.from_bytes(data) if data else None
        except ValueError as error:
            logger.warning("history of %s: %s", concept_id, error)
            return None

    def _log(
        self,
        run_id: str,
        metrics: list[tuple[str, float, int, int]],
        params: Mapping[str, object],
        tags_of_run: Mapping[str, str],
    ) -> None:
        """Writes all in as few calls as MLflow's limits allow."""
        from mlflow.entities import Metric, Param, RunTag

        entries = [Metric(*entry) for entry in metrics]
        first, rest = entries[:_METRICS_PER_CALL], entries[_METRICS_PER_CALL:]
        param_list = [Param(name, str(value)[:5000]) for name, value in params.items()]
        tag_list = [RunTag(name, str(value)[:5000]) for name, value in tags_of_run.items()]
        self._client_.log_batch(run_id, first, param_list[:50], tag_list[:50])
        self.answers += 1
        while rest or param_list[50:] or tag_list[50:]:
            param_list, tag_list = param_list[50:], tag_list[50:]
            self._client_.log_batch(run_id, rest[:_METRICS_PER_CALL], param_list[:50], tag_list[:50])
            self.answers += 1
            rest = rest[_METRICS_PER_CALL:]

    def _log_file(self, run_id: str, concept_id: str, name: str) -> None:
        data = self._store.read_concept(concept_id, name)
        if data is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                path.write_bytes(data)
                self._client_.log_artifact(run_id, str(path))


def run_keys(stored: StoredResults) -> dict[str, str]:
    """For each concept that is over, what the FINGERPRINT tag of its run is once the run shows all of it."""
    keys = {result.concept_id: result.fingerprint for result in stored.results}
    return keys | {failure.concept_id: failure_key(failure) for failure in stored.without_result}


def _key(result: Result | None, failure: Failure | None) -> str:
    """The FINGERPRINT tag of a concept's run once it shows all; empty while the concept isn't over."""
    return result.fingerprint if result else failure_key(failure) if failure else ""


def _step(text: str) -> int:
    """The STEP tag of a run; -1 for one that has none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else -1


def failure_key(failure: Failure) -> str:
    """The FINGERPRINT tag of a failed concept's run."""
    return f"failed: {failure.error}"[:5000]


def _start(history: History | None, failure: Failure | None) -> int | None:
    """When a concept's run began, in ms since the epoch, as far as the store knows."""
    if history and history.points:
        return history.points[0].time_ms
    return int(1000 * failure.time) if failure else None
