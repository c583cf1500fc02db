"""Stores and manifests that several tests use."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from PIL import Image

from tests.support.commands import as_options, finished, script
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver import job_record
from textinv_ray.service.intake import plan
from textinv_ray.service.models import sources
from textinv_ray.service.store.history import History
from textinv_ray.service.store.records import Failure, JobRecord, Result
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store, sample_name

MANIFEST = pa.schema(
    [
        ("concept_id", pa.string()),
        ("images", pa.list_(pa.string())),
        ("masks", pa.list_(pa.string())),
        ("initializer_token", pa.string()),
        ("init_from", pa.string()),
        ("steps", pa.int64()),
        ("prompts", pa.list_(pa.string())),
        ("tags", pa.map_(pa.string(), pa.string())),
    ]
)


def png(seed: int = 0, side: int = 20) -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def grid(seed: int, columns: int, rows: int, side: int = 8) -> bytes:
    """Tiles of noise."""
    shape = (rows * side, columns * side, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_manifest(folder: Path, count: int, changes: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """`count` concepts c0, c1, ... of three pictures each; `changes` by concept_id."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        names = [f"c{index}-{number}.png" for number in range(3)]
        for number, name in enumerate(names):
            (folder / name).write_bytes(png(10 * index + number))
        row: dict[str, Any] = {
            "concept_id": f"c{index}",
            "images": names,
            "initializer_token": "cat",
            "tags": [("shelf", "3")],
        }
        rows.append({**row, **(changes or {}).get(row["concept_id"], {})})
    path = folder / "manifest.parquet"
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST), path)
    return path


def config(sd: Path, clip: Path, *overrides: str) -> JobConfig:
    """The smallest job on the models of tests/tiny.py."""
    return JobConfig.load("mini", settings(sd, clip, *overrides))


def settings(sd: Path, clip: Path, *overrides: str) -> list[str]:
    """The same as values of --set."""
    return [
        f"model.path={sd}",
        "model.dtype=float32",
        f"scoring.model={clip}",
        "scoring.num_images=2",
        "training.steps=6",
        "training.batch_size=2",
        "review.num_inference_steps=2",
        "review.sample_at=[0, 0.5, 1]",
        "stopping.rule=none",
        "pack.size=2",
        *overrides,
    ]


def result(concept_id: str, **changes: Any) -> Result:
    """The result of a concept, with `changes` to its fields; lists may stand for tuples."""
    fields = {
        "concept_id": concept_id,
        "placeholder_token": f"<{concept_id}>",
        "initializer_token": "cat",
        "learnable_property": "object",
        "num_vectors": 1,
        "embedding_dims": {"clip_l": 4},
        "steps": 2,
        "stopped": "steps",
        "best_step": None,
        "learning_rate": 0.01,
        "batch_size": 2,
        "seed": 1,
        "images": 3,
        "templates": 27,
        "captions": 0,
        "options": {},
        "tags": {"shelf": "3"},
        "image_uris": ["0.png", "1.png", "2.png"],
        "clip_image_similarity_initializer": 0.5,
        "clip_image_similarity": 0.75,
        "clip_text_similarity_initializer": 0.25,
        "clip_text_similarity": 0.2,
        "judge_similarity_initializer": 0.4,
        "judge_similarity": 0.6,
        "final_loss": 0.1,
        "norms": {"clip_l": [1.0]},
        "nearest_words": {"clip_l": ["cat", "dog"]},
        "seconds": 12.5,
        "review_seconds": 2.5,
        "stopping_seconds": 0.0,
        "finished_at": 1_700_000_000.5,
        "sample_steps": [0, 2],
        "sample_prompts": ["a photo of {}"],
        "images_per_prompt": 2,
        "fingerprint": f"fingerprint of {concept_id}",
        "row_fingerprint": f"row of {concept_id}",
        "state_fingerprint": f"state of {concept_id}",
        "images_mtime_digest": "",
        **changes,
    }
    return Result.model_validate(fields, strict=False)


def job(config: JobConfig, **changes: Any) -> JobRecord:
    """A job that runs, with `changes` to its fields."""
    fields = {
        "id": "job",
        "name": "out",
        "started_at": 1_700_000_000.0,
        "begun_at": 1_700_000_000.0,
        "manifest": "manifest.parquet",
        "manifest_rows": 3,
        "manifest_digest": "rows",
        "done_before": 0,
        "to_replace": 0,
        "config_digest": "config",
        "configuration": config.to_dict(),
        "determines_results": config.result_inputs(),
        "versions": {"python": "3.11"},
        "mlflow_is_behind": False,
        **changes,
    }
    return JobRecord.model_validate(fields)


def fail(
    store: Store, concept_id: str, error: str = "x", time: float = 1_700_000_000.0, quarantined: bool = False
) -> None:
    """Puts a failed concept into a store, as the scheduler does."""
    store.fail(Failure(concept_id=concept_id, error=error, time=time, quarantined=quarantined))


def history(concept_id: str, steps: int = 2) -> History:
    """Losses of each step, samples and scores at the first and the last."""
    made = History(f"state of {concept_id}", "review", planned_steps=steps)
    for step in range(steps + 1):
        point = made.at(step, 0.5)
        point.time_ms = 1_700_000_000_000 + 1000 * step
        if step in (0, steps):
            point.sampled, point.clip_image_similarity, point.clip_text_similarity = (
                True,
                0.5 + step / 8,
                0.25,
            )
    made.set_losses([0.5**step for step in range(steps)])
    return made


def finish(
    store: Store, concept_id: str, vectors: Sequence[Sequence[float]] | None = None, **changes: Any
) -> None:
    """Puts a finished concept into a store, as a worker does."""
    made = result(concept_id, **changes)
    for step in made.sample_steps:
        store.write_concept(concept_id, sample_name(step), grid(step, columns=2, rows=1))
    store.write_concept(concept_id, "training.png", grid(7, columns=3, rows=1))
    word = np.asarray(vectors if vectors is not None else [[1, 2, 3, 4]], np.float32)
    files = {
        "learned_embeds.safetensors": safetensors.numpy.save({made.placeholder_token: word}),
        "initial_embeds.safetensors": safetensors.numpy.save({made.placeholder_token: word[:, ::-1].copy()}),
        "state.safetensors": b"state",
        "history.parquet": history(concept_id, made.steps).to_bytes(),
    }
    store.finish(made, files)


def begin(store: Store, config: JobConfig, folder: Path, count: int = 3) -> None:
    """Writes a manifest of `count` concepts into `folder`/data, and the store's job.json, as a job's start does."""
    manifest = Manifest.open(str(write_manifest(folder / "data", count)))
    todo = plan.make(manifest, config, sources.facts(config.model), StoredResults.read(store))
    job_record.begin(store, manifest, config, todo)


def ablate(
    manifest: str, folder: Path, settings: Sequence[str], *options: str
) -> subprocess.CompletedProcess[str]:
    """`textinv ablate` on a Ray of its own, in `folder`, into its "out"."""
    return finished([*script("ablate", manifest, "-o", "out"), *as_options(settings), *options], folder)
