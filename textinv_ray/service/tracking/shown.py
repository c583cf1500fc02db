"""What runs in MLflow show: points of curves, parameters, inputs, and the table that opens first."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from textinv_ray.service.store import records
from textinv_ray.service.store.history import History, Point
from textinv_ray.service.store.records import JobRecord, Result
from textinv_ray.util.statistics import mean_of

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

Metric = tuple[str, float, int, int]
"""Name, value, milliseconds since the epoch, step."""
VIEW = "mlflow.sharedViewState."
"""Prefix of the experiment's tags with table views, which an address names (read from the interface of MLflow 3.17)."""
_SCORES = (
    "clip_image_similarity",
    "clip_text_similarity",
    "judge_similarity",
    "stopping_clip_image_similarity",
)
_PARAMS = ("model.path", "model.revision", "stopping.rule", "service.waves.first")


def of_history(history: History, after: int, config_steps: int, loss_points: int) -> list[Metric]:
    """Scores and losses after the step `after`.

    A loss is the mean over the steps since the one before, so that there are at most `loss_points`. Which steps have
    one depends on the planned number of steps alone: a run that is written bit by bit equals one written at once.
    """
    every = -(-(history.planned_steps or config_steps) // loss_points)
    metrics, window = [], []
    for point in history.points:
        if point.loss is not None:
            window.append(point.loss)
        is_end = point.step % max(1, every) == 0
        if point.step > after:
            metrics += _scores(point)
            if is_end and window:
                metrics.append(("loss", sum(window) / len(window), point.time_ms, point.step))
        if is_end:
            window = []
    return metrics


def _scores(point: Point) -> list[Metric]:
    found = ((name, getattr(point, name)) for name in _SCORES)
    return [(name, value, point.time_ms, point.step) for name, value in found if value is not None]


def means(results: Collection[Result], retrieval: Mapping[str, float]) -> dict[str, float]:
    """Means of scores over a job's concepts, with their 95 % confidence intervals as `..._low` and `..._high`.

    retrieval: concept_id -> retrieval_top1.
    """
    found = {f"mean_{name}": mean for name, mean in records.mean_scores(results).items()}
    if retrieval:
        found["retrieval_top1"] = mean_of(list(retrieval.values()))
    values: dict[str, float] = {}
    for name, mean in found.items():
        values[name] = mean.mean
        if mean.values > 1:
            values |= {f"{name}_low": mean.low, f"{name}_high": mean.high}
    return values


def of_result(result: Result) -> list[Metric]:
    """Metrics of a finished concept beside those of its history."""
    time_ms = int(1000 * result.finished_at)
    return [(name, value, time_ms, result.steps) for name, value in records.metrics(result).items()]


def params_of_job(job: JobRecord) -> dict[str, object]:
    """The settings that tell jobs apart: how words are learned, and for which model. configuration.yaml has all."""
    flat = dict(_flat(job.determines_results))
    training = {name: value for name, value in flat.items() if name.startswith("training.")}
    short = {
        name: value for name, value in training.items() if not isinstance(value, list) and value is not None
    }
    return {**{name: flat[name] for name in _PARAMS if flat.get(name) is not None}, **short}


def tags_of_job(job: JobRecord) -> dict[str, str]:
    """Where a job comes from, under the names that MLflow shows as source, version and user."""
    tags = {
        "mlflow.source.name": job.source,
        "mlflow.source.type": "JOB" if job.source else "",
        "mlflow.source.git.commit": job.git_commit,
        "mlflow.user": job.user,
    }
    return {name: value for name, value in tags.items() if value}


def dataset_of_job(job: JobRecord) -> DatasetInput:
    """The manifest as the job's input."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name = job.manifest.rstrip("/").rsplit("/", 1)[-1]
    return DatasetInput(
        Dataset(
            name=name[:500],
            digest=job.manifest_digest[:36],
            source_type="uri",
            source=json.dumps({"uri": job.manifest}),
            profile=json.dumps({"concepts": job.manifest_rows}),
        ),
        tags=[InputTag("mlflow.data.context", "training")],
    )


def view_key(job_id: str) -> str:
    """Name of a job's table view in addresses."""
    return f"textinv-{job_id}"


def place(experiment_id: str, job_id: str) -> str:
    """The table of a job's runs within MLflow's interface.

    MLflow 3.17 opens every experiment for chat traces, whatever its kind, unless the address says `workflowType`
    (or the browser remembers another choice); versions before go by the experiment's kind, and ignore it.
    """
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={view_key(job_id)}"


def view(job_id: str, job_tag: str) -> str:
    """The table of a job's runs as MLflow's interface reads it: the columns that matter, the worst gain first."""
    columns = [
        *(f"metrics.`{name}`" for name in ("clip_image_similarity_gain", *records.SCORES)),
        *(f"params.`{name}`" for name in ("initializer_token", "steps", "stopped")),
        *(f"tags.`{name}`" for name in ("approved", "status")),
    ]
    return json.dumps(
        {
            "searchFilter": f"tags.`{job_tag}` = '{job_id}'",
            "orderByKey": "metrics.`clip_image_similarity_gain`",
            "orderByAsc": True,
            "selectedColumns": columns,
            "viewMaximized": True,
        }
    )


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """("training.steps", 300), ..."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
