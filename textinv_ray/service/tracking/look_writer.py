"""Writes looks to MLflow: to the concepts' runs, and small ones for the table in the job's run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textinv_ray.config.job import JobConfig
from textinv_ray.service.store.history import History
from textinv_ray.service.store.records import Result
from textinv_ray.service.store.store import Store, sample_name
from textinv_ray.service.tracking import looks

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL.Image import Image

THUMBNAILS = "thumbnails"
"""Folder of the job's run."""
_MOST_THUMBNAILS = 100


class LookWriter:
    """Writes the looks of one job. Its methods raise the errors of MLflow."""

    def __init__(self, client: MlflowClient, store: Store, config: JobConfig) -> None:
        self._client = client
        self._store = store
        self._seeds = config.review.images_per_prompt
        self._last = config.training.steps

    def listed(self, run_id: str) -> set[str]:
        """ "key+step" of the pictures that a run has."""
        listed = self._client.list_artifacts(run_id, "images")
        # The small copy is written last: a picture without it is written again.
        names = [Path(item.path).name for item in listed if item.path.endswith("+compressed.webp")]
        return {"+".join(name.split("+")[:3:2]) for name in names}

    def write(
        self, run_id: str, there: set[str], concept_id: str, history: History | None, result: Result | None
    ) -> int:
        """Logs a picture of each look that is sure and isn't `there`, to which it is added.

        MLflow shows them by a slider. Returns how many were written.
        """
        count = 0
        for look in looks.of_history(history, result, self._last):
            name = f"{looks.KEY}+{look.shown_at}"
            picture = None if name in there else self._picture(concept_id, look.step, result)
            if picture is not None:
                self._client.log_image(
                    run_id, picture, key=looks.KEY, step=look.shown_at, timestamp=look.time_ms
                )
                there.add(name)
                count += 1
        return count

    def write_thumbnails(self, run_id: str, results: Sequence[Result]) -> dict[str, str]:
        """Logs the last look of the first results. Returns their artifacts by concept_id."""
        there = {item.path for item in self._client.list_artifacts(run_id, THUMBNAILS)}
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for result in results[:_MOST_THUMBNAILS]:
                name = f"{result.concept_id}-{result.fingerprint[:12]}.webp".replace(" ", "_")
                if f"{THUMBNAILS}/{name}" not in there:
                    picture = self._picture(result.concept_id, result.steps, result)
                    if picture is None:
                        continue
                    picture.resize((picture.width // 2, picture.height // 2)).save(Path(folder) / name)
                    self._client.log_artifact(run_id, str(Path(folder) / name), THUMBNAILS)
                found[result.concept_id] = f"{THUMBNAILS}/{name}"
        return found

    def _picture(self, concept_id: str, step: int, result: Result | None) -> Image | None:
        """A look; none when it isn't there or damaged."""
        try:
            return looks.picture(
                self._store, concept_id, step, self._seeds, result.images if result else None
            )
        except ValueError as error:
            self._store.ignore(f"concepts/{concept_id}/{sample_name(step)}", str(error))
            return None
