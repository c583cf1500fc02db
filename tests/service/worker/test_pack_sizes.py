"""Pack sizes are measured once per kind of device."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tiny
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.service.store.store import Store
from textinv_ray.service.worker import pack_sizes


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes of the tasks for which a size was measured: 8 concepts of 4 samples, and so on."""
    seen: list[int] = []

    def measure(backbone: Backbone, task: ConceptTask, config: JobConfig) -> int:
        seen.append(task.concept.batch_size)
        return 32 // task.concept.batch_size

    monkeypatch.setattr(pack_sizes, "choose_pack_size", measure)
    return seen


def test_measured_once(tiny_sd: Path, tmp_path: Path, measured: list[int]) -> None:
    backbone, config = load_backbone(str(tiny_sd), device="cpu", dtype="float32"), JobConfig()
    tasks = [ConceptTask(tiny.concept(0, batch_size=size), backbone, config) for size in (4, 2)]
    for _ in range(2):
        store = Store(str(tmp_path))  # as another worker would open it
        assert [pack_sizes.pack_size(store, backbone, task, config) for task in tasks] == [8, 16]
    assert measured == [4, 2]
    other = load_backbone(str(tiny_sd), device="cpu", dtype="bfloat16")
    assert pack_sizes.pack_size(store, other, tasks[0], config) == 8
    assert measured == [4, 2, 4]


@pytest.mark.parametrize(
    "data",
    [
        b'{"x": 1e999}',
        b'{"x": null}',
        b"[]",
        b"\xff",
        b'{"x":' + b"[" * 9999 + b"]" * 9999 + b"}",
        b"9" * 5000,
    ],
)
def test_a_damaged_file_is_measured_anew(
    tiny_sd: Path, tmp_path: Path, measured: list[int], data: bytes
) -> None:
    backbone, store = load_backbone(str(tiny_sd), device="cpu"), Store(str(tmp_path))
    store.write(pack_sizes.FILE, data)
    task = ConceptTask(tiny.concept(0), backbone, JobConfig())
    assert pack_sizes.pack_size(store, backbone, task, JobConfig()) == 32 // task.concept.batch_size
    assert len(measured) == 1


def test_no_credentials_in_the_store(tiny_sd: Path, tmp_path: Path, measured: list[int]) -> None:
    backbone, store = load_backbone(str(tiny_sd), device="cpu"), Store(str(tmp_path))
    config = JobConfig.from_dict({"model": {"path": "s3://me:secret@bucket/model"}})
    pack_sizes.pack_size(store, backbone, ConceptTask(tiny.concept(0), backbone, config), config)
    written = store.read(pack_sizes.FILE)
    assert written is not None
    assert b"bucket/model" in written
    assert b"secret" not in written


@pytest.mark.parametrize("damaged", [b"{", b"[1]", b'{"x": "many"}'])
def test_a_damaged_file_is_measured_again(
    tiny_sd: Path, tmp_path: Path, measured: list[int], damaged: bytes
) -> None:
    backbone, config, store = load_backbone(str(tiny_sd), device="cpu"), JobConfig(), Store(str(tmp_path))
    store.write(pack_sizes.FILE, damaged)
    task = ConceptTask(tiny.concept(0), backbone, config)
    sizes = [pack_sizes.pack_size(store, backbone, task, config) for _ in range(2)]
    assert sizes[0] == sizes[1]
    assert len(measured) == 1


def test_the_configured_size(tiny_sd: Path, tmp_path: Path, measured: list[int]) -> None:
    backbone, config = load_backbone(str(tiny_sd), device="cpu"), JobConfig.load("mini", ["pack.size=7"])
    task = ConceptTask(tiny.concept(0), backbone, config)
    assert pack_sizes.pack_size(Store(str(tmp_path)), backbone, task, config) == 7
    assert measured == []
