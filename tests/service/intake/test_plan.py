"""What is left to do: by rows, configuration, model and images; without Ray or torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import examples
from tests.support.commands import as_options
from textinv_ray.concepts import prepare
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver import job_record
from textinv_ray.service.driver.run import invert
from textinv_ray.service.intake import plan
from textinv_ray.service.intake.plan import Plan
from textinv_ray.service.models import sources
from textinv_ray.service.store.job import end, set_behind
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError
from textinv_ray.util.exit_codes import ExitCode


@pytest.fixture
def config(tiny_sd: Path, tiny_clip: Path) -> JobConfig:
    return examples.config(tiny_sd, tiny_clip)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return examples.write_manifest(tmp_path / "data", 4, {"c3": {"steps": 50}})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def made(manifest: Path, config: JobConfig, store: Store, **options: object) -> Plan:
    facts = sources.facts(config.model)
    return plan.make(Manifest.open(str(manifest)), config, facts, StoredResults.read(store), **options)  # type: ignore[arg-type]


def finish(store: Store, todo: Plan, concept_id: str) -> None:
    examples.finish(store, concept_id, **todo.todo[concept_id]._asdict())


def test_all_is_to_do_at_first(manifest: Path, config: JobConfig, store: Store) -> None:
    found = made(manifest, config, store)
    assert list(found.todo) == ["c0", "c1", "c2", "c3"]
    assert (found.steps, found.samples) == (3 * 6 + 50, 2 * (3 * 6 + 50))


def test_what_has_its_result_is_done(manifest: Path, config: JobConfig, store: Store) -> None:
    finish(store, made(manifest, config, store), "c1")
    found = made(manifest, config, store)
    assert found.done == {"c1"}
    assert list(found.todo) == ["c0", "c2", "c3"]
    assert not found.with_result


def test_another_configuration_runs_again(
    manifest: Path, config: JobConfig, store: Store, tiny_sd: Path, tiny_clip: Path
) -> None:
    finish(store, made(manifest, config, store), "c1")
    other = examples.config(tiny_sd, tiny_clip, "training.learning_rate=0.1")
    found = made(manifest, other, store)
    assert "c1" in found.todo
    assert found.with_result == {"c1"}
    assert made(manifest, config, store).digest != found.digest


def test_number_of_workers_is_no_other_configuration(
    manifest: Path, config: JobConfig, store: Store, tiny_sd: Path, tiny_clip: Path
) -> None:
    finish(store, made(manifest, config, store), "c1")
    other = examples.config(tiny_sd, tiny_clip, "service.workers=7", "pack.size=1", "tracking.enabled=false")
    assert made(manifest, other, store).done == {"c1"}


def test_a_changed_row_runs_again(manifest: Path, config: JobConfig, store: Store) -> None:
    first = made(manifest, config, store)
    finish(store, first, "c0")
    finish(store, first, "c1")
    times = {image: image.stat().st_mtime_ns for image in manifest.parent.glob("*.png")}
    examples.write_manifest(manifest.parent, 4, {"c0": {"initializer_token": "dog"}})
    for image, time_ns in times.items():
        os.utime(image, ns=(time_ns, time_ns))
    found = made(manifest, config, store)
    assert "c0" in found.todo
    assert found.done == {"c1"}


def test_another_picture_under_an_old_name_is_noticed(
    manifest: Path, config: JobConfig, store: Store
) -> None:
    first = made(manifest, config, store)
    for concept_id in ("c0", "c1"):
        finish(store, first, concept_id)
    (manifest.parent / "c1-2.png").write_bytes(examples.png(99, side=30))
    found = made(manifest, config, store)
    assert found.done == {"c0"}
    assert found.with_result == {"c1"}


def test_only_and_limit(manifest: Path, config: JobConfig, store: Store) -> None:
    assert list(made(manifest, config, store, only=["c2", "c0"]).todo) == ["c0", "c2"]
    assert list(made(manifest, config, store, limit=2).todo) == ["c0", "c1"]
    assert list(made(manifest, config, store, only=["c2", "c3"], limit=1).todo) == ["c2"]


def test_only_with_an_unknown_id(manifest: Path, config: JobConfig, store: Store) -> None:
    with pytest.raises(UserError, match=r"--only: no concept 'c22' in the manifest"):
        made(manifest, config, store, only=["c1", "c22"])


def test_missing_images_are_named(manifest: Path, config: JobConfig, store: Store) -> None:
    (manifest.parent / "c2-1.png").unlink()
    assert made(manifest, config, store).missing == [str(manifest.parent / "c2-1.png")]


def test_the_key_is_what_the_preparation_makes(manifest: Path, config: JobConfig, store: Store) -> None:
    """Else nothing would ever be recognised as done."""
    facts = sources.facts(config.model)
    opened = Manifest.open(str(manifest))
    row = next(iter(opened.rows()))
    concept = prepare.make(
        row, config, base=opened.base, resolution=facts.resolution, model_identity=facts.identity
    )
    assert concept.row_fingerprint == made(manifest, config, store).todo["c0"].row_fingerprint


def test_estimate_is_measured_where_it_can_be(manifest: Path, config: JobConfig, store: Store) -> None:
    todo = made(manifest, config, store)
    nothing = StoredResults.read(store)
    seconds, source = plan.estimate(todo, config, nothing)
    assert seconds
    assert "on A100 80 GB (SXM), computed, not measured" in source
    on_cpu = config.model_copy(update={"model": config.model.model_copy(update={"device": "cpu"})})
    slower, source = plan.estimate(todo, on_cpu, nothing)
    assert slower
    assert slower > 50 * seconds
    assert "two CPU cores" in source
    finish(store, todo, "c0")  # 2 steps of 2 samples in 12.5 s
    todo = made(manifest, config, store)
    assert plan.estimate(todo, config, StoredResults.read(store))[0] == pytest.approx(todo.samples * 12.5 / 4)


def test_a_finished_job_needs_neither_ray_nor_torch(
    manifest: Path, config: JobConfig, store: Store, tiny_sd: Path, tiny_clip: Path
) -> None:
    first = made(manifest, config, store)
    for concept_id in first.todo:
        finish(store, first, concept_id)
    job_record.begin(store, Manifest.open(str(manifest)), config, first)
    end(store, 0)
    set_behind(store, False)
    script = (
        "import sys\n"
        "from textinv_ray.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'ray', 'torch', 'diffusers', 'transformers', 'mlflow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    settings = examples.settings(tiny_sd, tiny_clip)
    done = subprocess.run(
        [sys.executable, "-c", script, "invert", str(manifest), "-o", store.root, *as_options(settings)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "nothing to do: all 4 concepts are done" in done.stdout
    assert "mlflow ui --backend-store-uri sqlite:///" in done.stdout


@pytest.mark.parametrize("code", [None, ExitCode.TERMINATED], ids=["killed", "stopped"])
def test_a_run_that_was_stopped_at_its_end_is_made_up_for(
    manifest: Path, config: JobConfig, store: Store, code: ExitCode | None
) -> None:
    """All was learned, but no view of it was written."""
    config = config.override(["tracking.enabled=false"])
    first = made(manifest, config, store)
    for concept_id in first.todo:
        finish(store, first, concept_id)
    job_record.begin(store, Manifest.open(str(manifest)), config, first)
    if code:
        end(store, code)
    assert invert(str(manifest), config, output=store.uri) == 0
    assert pq.read_table(store.path("results.parquet")).num_rows == 4
    assert store.read("report.html")
    job = store.job()
    assert job is not None
    assert job.exit_code == 0
    log = store.read("job.log") or b""
    assert b"all 4 concepts are done; results.parquet and report.html catch up" in log
    store.remove("results.parquet")
    assert invert(str(manifest), config, output=store.uri) == 0
    assert store.read("results.parquet") is None, "then there is nothing to do"


def test_another_word_under_an_old_name_is_noticed(manifest: Path, store: Store, config: JobConfig) -> None:
    """A word that others start from counts like their images."""
    word = manifest.parent / "word.safetensors"
    word.write_bytes(b"one")
    table = pq.read_table(manifest).drop_columns("init_from")
    pq.write_table(
        table.append_column("init_from", pa.array(["word.safetensors", "auto", None, None])), manifest
    )
    first = made(manifest, config, store)
    for concept_id in ("c0", "c1"):
        finish(store, first, concept_id)
    assert made(manifest, config, store).done == {"c0", "c1"}
    word.write_bytes(b"another")
    assert made(manifest, config, store).done == {"c1"}
    word.unlink()
    assert str(word) in made(manifest, config, store).missing


def test_who_starts_from_the_settings_is_counted(
    manifest: Path, config: JobConfig, store: Store, tmp_path: Path
) -> None:
    """Rows with a start of their own don't; a job is refused for a file that can't be read only where some do."""
    word = config.override(["training.init_from=none.safetensors"])
    table = pq.read_table(manifest).drop_columns(["initializer_token", "init_from"])
    own = pa.array([None, "auto", None, None])
    tokens = pa.array(["dog", None, "dog", "dog"])
    for tokens_of, expected in ((tokens, (3, 0)), (pa.array(["dog", None, None, None]), (1, 2))):
        pq.write_table(
            table.append_column("init_from", own).append_column("initializer_token", tokens_of), manifest
        )
        found = made(manifest, word, store)
        assert (found.own_start, found.configured_start) == expected
    with pytest.raises(UserError, match=r"none\.safetensors: doesn't exist; relative paths count from"):
        invert(str(manifest), word, output=str(tmp_path / "out"), dry_run=True)
    pq.write_table(table.append_column("init_from", own).append_column("initializer_token", tokens), manifest)
    assert invert(str(manifest), word, output=str(tmp_path / "out"), dry_run=True) == 0
