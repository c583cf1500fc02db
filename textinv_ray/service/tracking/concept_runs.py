"""Concepts' runs in MLflow after their job: which of them reviewers approved, and scores that come later."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textinv_ray.service.store.records import Decision, Result
from textinv_ray.service.store.store import Store
from textinv_ray.service.tracking.decision_tags import APPROVED, write_decision
from textinv_ray.service.tracking.mirror import CONCEPT, CONFIG, FINGERPRINT, JOB
from textinv_ray.service.tracking.refusals import check_database, reason
from textinv_ray.service.tracking.registry import Registry
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EVALUATION = "textinv.evaluation"


class ConceptRuns:
    """The concepts' runs of one output."""

    def __init__(self, store: Store, uri: str, experiment: str) -> None:
        """`uri`: of the tracking server or database. Raises UserError when there is none, or no such job."""
        self._store = store
        self._shown = redact(uri)
        database = Path(uri.removeprefix("sqlite:///"))
        if uri.startswith("sqlite:///") and not database.exists():
            raise UserError(f"there is no MLflow database {self._shown}; name the one with --tracking-uri")
        job = store.job()
        if job is None:
            raise UserError(f"{store.shown} has no job.json, so its runs in MLflow can't be found")
        try:
            check_database(uri)
            from mlflow import MlflowClient

            self._client: MlflowClient = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                raise UserError(f"MLflow at {self._shown} has no experiment {experiment!r}")
            runs = list(self._search(found.experiment_id, f"tags.`{JOB}` = '{job.id}'"))
            self._runs = {run.data.tags[CONCEPT]: run for run in runs if CONCEPT in run.data.tags}
            own = [run for run in runs if run.data.tags.get(CONFIG) == job.config_digest]
            self._parent: str | None = own[0].info.run_id if own else None
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"MLflow at {self._shown} can't be read: {reason(error)}") from None

    def approved(self) -> list[str]:
        """Concepts whose run has the tag approved=true and shows the word that the store has now.

        So an approval doesn't pass on to a word that was learned anew after it.
        """
        return sorted(
            concept_id
            for concept_id, run in self._runs.items()
            if run.data.tags.get(APPROVED, "").strip().lower() == "true" and self._is_current(concept_id, run)
        )

    def set_decision(self, decision: Decision) -> bool:
        """Writes a decision as tags of the concept's run. False when there is no run of the word that it is about."""
        run = self._runs.get(decision.concept_id)
        if run is None or run.data.tags.get(FINGERPRINT) != decision.fingerprint:
            return False
        run_id = run.info.run_id
        write_decision(self._client, run_id, self._client.get_run(run_id).data.tags, decision)
        return True

    def registry(self) -> Registry:
        """The model registry of the same MLflow."""
        return Registry(self._client, self._shown)

    def of_word(self, result: Result) -> Run | None:
        """The run that shows this result; none when there is none."""
        run = self._runs.get(result.concept_id)
        return run if run is not None and run.data.tags.get(FINGERPRINT) == result.fingerprint else None

    def log_evaluation(
        self, concept_id: str, fingerprint: str, metrics: Mapping[str, float], time_ms: int
    ) -> bool:
        """Adds metrics to a concept's run, once per `fingerprint`. False when there is no such run."""
        from mlflow.entities import Metric

        run = self._runs.get(concept_id)
        if run is None or not self._is_current(concept_id, run):
            return False
        if run.data.tags.get(EVALUATION) == fingerprint:
            return True
        entries = [Metric(name, value, time_ms, 0) for name, value in metrics.items()]
        try:
            self._client.log_batch(run.info.run_id, entries)
            self._client.set_tag(run.info.run_id, EVALUATION, fingerprint)
        except Exception as error:
            raise UserError(f"MLflow at {self._shown} can't be written to: {reason(error)}") from None
        return True

    def log_summary(self, metrics: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Adds metrics, and texts as files of these names, to the job's own run, once. Raises UserError."""
        from mlflow.entities import Metric

        if self._parent is None:
            return
        now = int(1000 * time.time())
        shown = hashlib.sha256(json.dumps([metrics, texts], sort_keys=True).encode()).hexdigest()
        try:
            if self._client.get_run(self._parent).data.tags.get(EVALUATION) == shown:
                return
            self._client.log_batch(
                self._parent, [Metric(name, value, now, 0) for name, value in metrics.items()]
            )
            for name, text in texts.items():
                self._client.log_text(self._parent, text, name)
            self._client.set_tag(self._parent, EVALUATION, shown)
        except Exception as error:
            raise UserError(f"MLflow at {self._shown} can't be written to: {reason(error)}") from None

    def _is_current(self, concept_id: str, run: Run) -> bool:
        result = self._store.result(concept_id)
        return result is not None and run.data.tags.get(FINGERPRINT) == result.fingerprint

    def _search(self, experiment_id: str, filter_string: str) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [experiment_id], filter_string, max_results=1000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return
