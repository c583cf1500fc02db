"""What people read in MLflow beside numbers and pictures: notes on top of runs, and a table of results."""

from __future__ import annotations

from textinv_ray.service.store.records import SCORES, JobRecord, Result, scores_of
from textinv_ray.service.store.snapshot import StoredResults

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
    for name, words in result.nearest_words.items():
        encoder = f" in {name}" if len(result.nearest_words) > 1 else ""
        lines += ["", f"Nearest words{encoder}: " + ", ".join(words)]
    return "\n".join(lines)


def results_table(stored: StoredResults) -> dict[str, list[str] | list[list[str | float | None]]]:
    """The results as MLflow's table viewer reads them: failed ones first, then the worst."""
    columns = ["concept_id", "status", *SCORES, "steps", "seconds", "error"]
    blank = [None] * (len(SCORES) + 2)
    rows: list[list[str | float | None]] = [
        [failure.concept_id, "failed", *blank, failure.error] for failure in stored.failures
    ]
    worst_first = sorted(stored.results, key=lambda result: result.clip_image_similarity or 0)
    for result in worst_first[: max(0, _TABLE_ROWS - len(rows))]:
        scores = [None if score is None else round(score, 4) for score in scores_of(result).values()]
        rows.append([result.concept_id, "done", *scores, result.steps, round(result.seconds, 1), ""])
    return {"columns": columns, "data": rows[:_TABLE_ROWS]}
