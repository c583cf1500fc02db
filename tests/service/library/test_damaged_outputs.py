"""Whatever the files of an output are, every command ends soon, with an answer or with one message.

An output may be damaged by a disk, edited by hand, half copied, or made by a stranger.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support import examples
from tests.support.commands import as_options, textinv
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.service.batch import actor_pool, evaluate
from textinv_ray.service.models import loading
from textinv_ray.service.store.records import Failure, JobRecord, Record, Result, parse
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import report, results_table

LONGEST_S = 60.0
"""For a command, on a busy machine; most take a tenth of a second, and the first with a new MLflow database five."""
NOBODY = 65534
QUICK, SLOWER = ("status", "words", "words --like", "export"), ("generate", "evaluate", "dry-run")
MLFLOW = ("export --approved", "track")
READ_BY_SLOWER = ("results.parquet", "concepts/c0/learned_embeds.safetensors", "concepts/c0/training.png")
JSON_FILES: Mapping[str, type[Record]] = {
    "job.json": JobRecord,
    "concepts/c0/result.json": Result,
    "failed/c2.json": Failure,
    "evaluation/c0.json": evaluate.Evaluation,
}
FILES = (
    *JSON_FILES,
    "lock.json",
    "pack_sizes.json",
    "results.parquet",
    "report.html",
    "job.log",
    "evaluation.parquet",
    "mlflow.db",
    *(
        f"concepts/c0/{name}"
        for name in (
            *("learned_embeds.safetensors", "state.safetensors", "history.parquet", "training.png"),
            *("samples/step_0000000.png", "checkpoint.safetensors"),
        )
    ),
)


ANY: Mapping[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "random": lambda data: random.Random(0).randbytes(4096),
    "a byte": lambda data: b"".join((data[: len(data) // 3], b"=", data[len(data) // 3 + 1 :])),
    "a picture": lambda data: examples.png(),
}
OF_JSON: Mapping[str, Callable[[bytes], bytes]] = {
    "null": lambda data: b"null",
    "list": lambda data: b"[1, 2]",
    "text": lambda data: b'"text"',
    "deep": lambda data: b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "huge number": lambda data: b'{"a": ' + b"9" * 5000 + b"}",
}
DAMAGES = {**ANY, **OF_JSON}
PLACES = ("nothing", "folder", "pipe", "link")
"""What else may be in place of a file."""


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path, tiny_clip: Path, empty_database: Path
) -> Path:
    """A finished output, made by the writers of the product: two words, a failure, a concept that was interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    store = Store(str(folder / "out"))
    examples.begin(store, examples.config(tiny_sd, tiny_clip), folder, 4)
    dim = loading.backbone(examples.config(tiny_sd, tiny_clip)).embedding_dim
    for number in range(2):
        examples.finish(store, f"c{number}", [[number + 1.0] * dim], embedding_dim=dim)
    examples.fail(store, "c2", "image c2-0.png: doesn't exist")
    store.checkpoint("c3", b"state", examples.history("c3").to_bytes())
    shutil.copy(folder / "out/concepts/c3/checkpoint.safetensors", folder / "out/concepts/c0")
    stored = StoredResults.read(store)
    results_table.write(store, stored)
    report.write(store, stored)
    todo = evaluate.plan(store, "quick")
    for result in stored.results:
        made = evaluate.Evaluation(
            concept_id=result.concept_id,
            protocol="quick",
            learnable_property="object",
            scores={"clip_image_similarity": 0.5},
            evaluated_at=1_700_000_000.0,
            fingerprint=todo.fingerprint(result),
        )
        store.write(f"evaluation/{result.concept_id}.json", made.to_bytes())
    store.write("evaluation.parquet", b"PAR1")
    store.write("pack_sizes.json", b'{"a CPU": 2}')
    store.write("lock.json", b"{}")
    store.write("job.log", b"a line\n")
    shutil.copy(empty_database, folder / "out" / "mlflow.db")
    return folder


@pytest.fixture
def output(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, in a folder that other users may enter."""
    folder = Path(tempfile.mkdtemp(prefix="damaged-"))
    folder.chmod(0o755)
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(loading, "backbone", backbone)
    monkeypatch.setattr(actor_pool, "run", evaluated_here)
    yield folder / "out"
    shutil.rmtree(folder)


def backbone(config: JobConfig) -> Backbone:
    """The model, loaded once."""
    return _load(config.model.path)


@cache
def _load(path: str) -> Backbone:
    return load_backbone(path, dtype="float32", device="cpu")


def evaluated_here(
    table: pa.Table, actor: type, arguments: Any, *_: Any, **__: Any
) -> Iterator[dict[str, Any]]:
    """In place of a Ray: reads what an actor reads, in this process."""
    for concept_id in table["concept_id"].to_pylist():
        try:
            evaluate.read_concept(Store(arguments["output"]), concept_id)
            yield {"concept_id": concept_id, "error": ""}
        except ValueError as error:
            yield {"concept_id": concept_id, "error": str(error)}


@pytest.fixture
def commands(output: Path, whole: Path) -> dict[str, list[str]]:
    """The command lines that read an output, by name."""
    job = parse(JobRecord, (whole / "out" / "job.json").read_bytes()).config("job.json")
    settings = examples.settings(Path(job.model.path), Path(job.scoring.model))
    export = ["export", str(output), "--format", "a1111", "--output", "export"]
    return {
        "status": ["status", str(output)],
        "words": ["words", str(output)],
        "words --like": ["words", str(output), "--like", "c1"],
        "export": export,
        "generate": [
            "generate",
            "<c0>",
            "--words",
            str(output),
            "-n",
            "1",
            "--steps",
            "1",
            "--output",
            "drawn",
        ],
        "evaluate": ["evaluate", str(output), "--no-tracking"],
        "dry-run": ["invert", "data/manifest.parquet", "-o", str(output), "--dry-run", *as_options(settings)],
        "export --approved": [*export, "--approved"],
        "track": ["track", str(output)],
    }


def run(commands: Mapping[str, list[str]], names: Iterable[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name in names:
        began = time.monotonic()
        code = textinv(*commands[name])
        said = capsys.readouterr()
        assert code in (0, 1, 2), name
        assert "Traceback" not in said.out + said.err, name
        assert len(said.err) < 5000, name
        if code == 2:
            assert "error: " in said.err, name
        assert time.monotonic() - began < LONGEST_S, name


def of(name: str) -> tuple[str, ...]:
    """The commands to try with a file: those that take their time only where it concerns them."""
    slower = SLOWER if name in (*JSON_FILES, *READ_BY_SLOWER) else ("evaluate",) if name == "job.log" else ()
    return (
        *QUICK,
        *slower,
        *(MLFLOW if name in ("mlflow.db", "job.json", "concepts/c0/training.png") else ()),
    )


def test_a_whole_output(commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    """So that the others fail for the damage."""
    assert set(commands) == {*QUICK, *SLOWER, *MLFLOW}
    for name, arguments in commands.items():
        expected = 2 if name == "export --approved" else 0
        assert textinv(*arguments) == expected, (name, capsys.readouterr())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in FILES for damage in (DAMAGES if name.endswith(".json") else ANY)],
)
def test_damaged(
    output: Path,
    commands: dict[str, list[str]],
    name: str,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (output / name).write_bytes(DAMAGES[damage]((output / name).read_bytes()))
    run(commands, of(name), capsys)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", FILES)
def test_something_else_in_its_place(
    output: Path,
    commands: dict[str, list[str]],
    name: str,
    place: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = output / name
    path.unlink()
    if place == "folder":
        path.mkdir()
    elif place == "pipe":
        os.mkfifo(path)
    elif place == "link":
        path.symlink_to("/dev/zero")
    run(commands, of(name), capsys)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, to whom permissions apply")
@pytest.mark.parametrize("name", FILES)
def test_no_permission(
    output: Path, commands: dict[str, list[str]], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (output.parent, *output.parent.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    (output / name).chmod(0)
    os.seteuid(NOBODY)
    try:
        run(commands, of(name), capsys)
    finally:
        os.seteuid(0)


VALUES: tuple[Any, ...] = (
    None,
    "",
    "\x1b",
    "x" * 5000,
    -1,
    0,
    1e300,
    10**30,
    [],
    [None],
    {},
    {"a": {"a": 1}},
    True,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", JSON_FILES)
def test_each_field_gone_or_something_else(
    output: Path, commands: dict[str, list[str]], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is no record any more is left out by one rule, which is tried once; what still is one, by every command."""
    fields = json.loads((output / name).read_text())
    accepted = []
    for field in fields:
        changed = [{key: value for key, value in fields.items() if key != field}]
        changed += [{**fields, field: value} for value in VALUES]
        for variant in changed:
            data = json.dumps(variant).encode()
            try:
                parse(JSON_FILES[name], data)
            except ValueError:
                continue
            accepted.append((field, data))
    for _, data in accepted:
        (output / name).write_bytes(data)
        run(commands, (*QUICK, "dry-run"), capsys)
    assert accepted


def test_a_file_in_place_of_the_output(
    output: Path, commands: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """As when the manifest is given by mistake."""
    shutil.rmtree(output)
    output.write_bytes(b"PAR1")
    for name, arguments in commands.items():
        assert textinv(*arguments) == 2, name
        said = capsys.readouterr().err
        assert said.startswith("error: "), name
        assert said.count("\n") == 1, (name, said)
        if name == "dry-run":
            assert f"{output} is a file" in said
    assert output.read_bytes() == b"PAR1"
