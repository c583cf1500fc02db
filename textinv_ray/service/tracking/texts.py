"""What people read in MLflow beside numbers and pictures: notes on top of runs, and a table of results."""

from __future__ import annotations

from collections.abc import Mapping

from textinv_ray.service.store.records import SCORES, JobRecord, Result, scores_of
from textinv_ray.service.store.snapshot import StoredResults

Cell = str | float | None | dict[str, str]
"""Of the results table; a picture is a dictionary."""
_TABLE_ROWS = 2000  # of the results table in the UI; results.parquet has all


def of_job(job: JobRecord) -> str:
    """What the UI shows on top of a job's run."""
    config = job.config("job.json")
    at_most = "" if config.stopping.rule == "none" else "at most "
    return (
        f"{job.manifest_rows} concepts of `{job.manifest}`, learned for `{config.model.path}` in "
        f"{at_most}{config.training.steps} steps each, unless the row says otherwise"
    )


def of_result(result: Result) -> str:
    """What the UI shows on top of a concept's run."""
    lines = [
        f"`{result.placeholder_token}`: {result.learnable_property}, learned from "
        f"{result.images} images, starting at *{result.initializer_token}*",
        "",
        "| | initializer | learned |",
        "|---|---|---|",
    ]
    for name in ("clip_image_similarity", "clip_text_similarity"):
        before, after = getattr(result, f"{name}_initializer"), getattr(result, name)
        cells = ("" if value is None else f"{value:.3f}" for value in (before, after))
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    lines += ["", f"Nearest words: {result.nearest_text}"]
    return "\n".join(lines)


def worst_first(stored: StoredResults) -> list[Result]:
    """The results of the table: those that gained least come first."""
    return sorted(stored.results, key=lambda result: result.clip_image_similarity_gain or 0.0)[:_TABLE_ROWS]


def results_table(
    stored: StoredResults, thumbnails: Mapping[str, str]
) -> dict[str, list[str] | list[list[Cell]]]:
    """The results as MLflow's table viewer reads them, the worst first and failed ones last.

    The first row decides which columns have pictures. thumbnails: concept_id -> the artifact with its picture.
    """
    columns = ["concept_id", "look", "status", "gain", *SCORES, "steps", "seconds", "error"]
    if not thumbnails:
        columns.remove("look")
    rows: list[list[Cell]] = []
    for result in worst_first(stored):
        scores = [
            _rounded(score) for score in (result.clip_image_similarity_gain, *scores_of(result).values())
        ]
        path = thumbnails.get(result.concept_id)
        picture = {"type": "image", "filepath": path, "compressed_filepath": path} if path else None
        look: list[Cell] = [picture] if thumbnails else []
        numbers = [*scores, result.steps, round(result.seconds, 1)]
        rows.append([result.concept_id, *look, "done", *numbers, ""])
    blank: list[Cell] = [None] * (len(columns) - 3 - bool(thumbnails))
    for failure in stored.failures[: max(0, _TABLE_ROWS - len(rows))]:
        rows.append([failure.concept_id, *([None] if thumbnails else []), "failed", *blank, failure.error])
    return {"columns": columns, "data": rows}


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)
