"""What a finished store of many concepts costs to read: `benchmarks/scale.py --store-only`.

`fill` writes the files that a job of so many concepts leaves, without the job. Then each action runs in a process of
its own, several times; a figure is the least of its times. CPU time says more than seconds on a machine with other
work.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from PIL import Image

from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver import job_record
from textinv_ray.service.intake import plan
from textinv_ray.service.models import sources
from textinv_ray.service.store import job as stored_job
from textinv_ray.service.store.history import History
from textinv_ray.service.store.keys import Key
from textinv_ray.service.store.records import Result
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store, sample_name
from textinv_ray.service.views import report, results_table

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 20
SETTINGS = (f"training.steps={STEPS}", "review.sample_at=[1.0]", "service.checkpoint_every_s=600")
REPEATS = 3
_MEASURE = "measure"


def write_manifest(folder: Path, rows: int) -> Path:
    """Concepts of three pictures, the same three for all."""
    names = [f"{number}.png" for number in range(3)]
    for number, name in enumerate(names):
        Image.new("RGB", (64, 64), (80 * number, 90, 100)).save(folder / name)
    ids = [f"concept-{index:07d}" for index in range(rows)]
    columns = {"concept_id": ids, "images": [names] * rows, "initializer_token": ["character"] * rows}
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def fill(path: Path, output: Path, config: JobConfig, dim: int) -> None:
    """Writes what a job leaves that has learned every row of a manifest: words are one vector of `dim` numbers."""
    manifest, store = Manifest.open(str(path)), Store(str(output))
    todo = plan.make(manifest, config, sources.facts(config.model), StoredResults())
    job_record.begin(store, manifest, config, todo)
    history = history_of().to_bytes()
    picture = io.BytesIO()
    Image.new("RGB", (32, 16)).save(picture, "PNG")
    random = np.random.default_rng(0)
    for concept_id, key in todo.todo.items():
        for name in ("training.png", sample_name(0), sample_name(STEPS)):
            store.write_concept(concept_id, name, picture.getvalue())
        vectors = random.standard_normal((1, dim)).astype(np.float32)
        result = result_of(concept_id, key, vectors)
        word = safetensors.numpy.save({result.placeholder_token: vectors})
        files = {
            "learned_embeds.safetensors": word,
            "state.safetensors": bytes(512),
            "history.parquet": history,
        }
        store.finish(result, files)
    end(store)


def end(store: Store) -> None:
    """Has job.json say that the job learned everything, and that MLflow has it."""
    stored_job.end(store, 0)
    stored_job.set_behind(store, False)


def history_of() -> History:
    """The history of a concept: STEPS losses, samples and scores at the first and the last step."""
    history = History("state", "review")
    for step in range(STEPS + 1):
        point = history.at(step, 0.1)
        if step in (0, STEPS):
            point.sampled, point.clip_image_similarity, point.clip_text_similarity = True, 0.5, 0.25
    history.set_losses([0.1] * STEPS)
    return history


def result_of(concept_id: str, key: Key, vectors: np.ndarray) -> Result:
    """The result of a concept. vectors: float32 (V, D)."""
    return Result(
        concept_id=concept_id,
        placeholder_token=f"<{concept_id}>",
        initializer_token="character",
        learnable_property="object",
        num_vectors=len(vectors),
        embedding_dims={"clip_l": vectors.shape[1]},
        steps=STEPS,
        stopped="steps",
        best_step=None,
        learning_rate=0.005,
        batch_size=4,
        seed=1,
        images=3,
        templates=27,
        captions=0,
        options={},
        image_uris=tuple(f"/data/images/{number}.png" for number in range(3)),
        clip_image_similarity_initializer=0.5,
        clip_image_similarity=0.75,
        clip_text_similarity_initializer=0.25,
        clip_text_similarity=0.2,
        final_loss=0.1,
        norms={"clip_l": tuple(map(float, np.linalg.norm(vectors, axis=1)))},
        nearest_words={"clip_l": ("cat", "dog", "animal", "toy", "doll")},
        seconds=2.1,
        review_seconds=0.5,
        stopping_seconds=0.0,
        tags={},
        finished_at=time.time(),
        sample_steps=(0, STEPS),
        sample_prompts=("a photo of {}",),
        images_per_prompt=2,
        fingerprint=key.row_fingerprint,
        row_fingerprint=key.row_fingerprint,
        state_fingerprint=key.row_fingerprint,
        images_mtime_digest=key.images_mtime_digest,
    )


def _plan_empty(path: Path, config: JobConfig) -> None:
    manifest = Manifest.open(str(path))
    found = plan.make(manifest, config, sources.facts(config.model), StoredResults())
    assert len(found.todo) == manifest.num_rows


def _list(path: Path, config: JobConfig) -> None:
    StoredResults.read(Store(str(path.parent / "out")))


def _write_views(path: Path, config: JobConfig) -> None:
    store = Store(str(path.parent / "out"))
    stored = StoredResults.read(store)
    results_table.write(store, stored)
    report.write(store, stored)


def _write_table(path: Path, config: JobConfig) -> None:
    store = Store(str(path.parent / "out"))
    assert results_table.write(store, StoredResults.read(store)) == Manifest.open(str(path)).num_rows


ACTIONS: dict[str, Callable[[Path, JobConfig], None]] = {
    "plan an empty store": _plan_empty,
    "read all results": _list,
    "read all results, write results.parquet": _write_table,
    "the same and report.html": _write_views,
}


def measure(path: Path) -> dict[str, float]:
    """Figures of the finished store beside a manifest, in `out`. From a process of its own.

    What a process takes at most counts from its fork on, when it is as large as the one that forked it.
    """
    found = subprocess.run(
        [sys.executable, __file__, _MEASURE, str(path)],
        stdout=subprocess.PIPE,
        env=_environment(),
        check=True,
    )
    return dict(json.loads(found.stdout))


def _figures(path: Path) -> dict[str, float]:
    restart = [str(REPOSITORY / "jobs" / "invert_many.py"), str(path), "-o", str(path.parent / "out")]
    restart += [part for setting in SETTINGS for part in ("--set", setting)]
    commands = {"restart: the command, to `nothing to do`": restart}
    commands |= {name: [__file__, name, str(path)] for name in ACTIONS}
    figures = {}
    for name, command in commands.items():
        seconds, cpu, memory = zip(*(_cost(command) for _ in range(REPEATS)), strict=True)
        figures[f"{name}, s"] = min(seconds)
        figures[f"{name}, CPU s"] = min(cpu)
        figures[f"{name}, MB"] = max(memory)
    return figures


def _cost(command: list[str]) -> tuple[float, float, float]:
    """(seconds, CPU seconds, most memory in MB) of a Python program. Raises SystemExit when it fails."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, env=_environment())
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"}


def main() -> None:
    """All actions, or one of them: for `measure`."""
    name, path = sys.argv[1], Path(sys.argv[2])
    if name == _MEASURE:
        print(json.dumps(_figures(path)))
    else:
        ACTIONS[name](path, JobConfig.load("mini", list(SETTINGS)))


if __name__ == "__main__":
    main()
