"""A whole job with a tiny model of SDXL: learn, continue, list, export, evaluate, draw; and words of another family.

The tests build on one another: they are one story on one output folder and one Ray.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import examples, jobs, single_files
from tests.support.commands import as_options, textinv
from tests.support.evaluating import evaluated
from tests.support.jobs import Job
from tests.support.nodes import Nodes
from textinv_ray.concepts.word_files import Word, read_words, store_word
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake.preparation import concept_of
from textinv_ray.service.library.lexicon import Lexicon
from textinv_ray.service.models import sources
from textinv_ray.service.store.history import History

pytestmark = pytest.mark.slow
SIZES = {"clip_l": 32, "clip_g": 40}


def word(count: int, **sizes: int) -> Word:
    generator = np.random.default_rng(0)
    return {name: generator.normal(0, 0.1, (count, size)).astype(np.float32) for name, size in sizes.items()}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes(workers=1)
    yield nodes
    nodes.close()


@pytest.fixture(scope="module")
def job(
    tmp_path_factory: pytest.TempPathFactory, nodes: Nodes, tiny_sdxl: Path, tiny_clip: Path
) -> Iterator[Job]:
    """c2 starts from another word of SDXL, c3 from one of Stable Diffusion 1."""
    folder = tmp_path_factory.mktemp("sdxl")
    changes = {
        "c2": {"init_from": "other.safetensors", "initializer_token": None},
        "c3": {"init_from": "of-sd1.safetensors", "initializer_token": None},
    }
    examples.write_manifest(folder / "data", 4, changes)
    (folder / "data/other.safetensors").write_bytes(store_word("<other>", word(2, **SIZES)))
    (folder / "data/of-sd1.safetensors").write_bytes(store_word("<old>", word(1, clip_l=32)))
    settings = examples.settings(
        tiny_sdxl,
        tiny_clip,
        "training.lr_schedule=constant",
        "service.workers=1",
        "service.cpus_per_worker=1.1",
        "tracking.enabled=false",
    )
    job = Job(folder, settings, address=nodes.address)
    yield job
    job.close()


def found(job: Job) -> dict[str, Word]:
    """The learned words of the output."""
    lexicon = Lexicon([job.store.uri])
    return {token: lexicon.word(token) for token in lexicon.tokens}


def test_words_are_learned_and_a_word_of_another_family_fails_its_concept_alone(job: Job) -> None:
    code, out = job.run()
    assert code == 1, out
    assert "3 of 4 concepts learned" in out
    assert (
        "c3: init_from of-sd1.safetensors: the word was learned for another model: it has vectors for clip_l (32), "
        "this Stable Diffusion XL model takes clip_l (32) and clip_g (40)"
    ) in out.replace("\n", " ")
    assert job.store.names("failed") == ["c3.json"]
    words = found(job)
    assert {token: {name: part.shape for name, part in word.items()} for token, word in words.items()} == {
        "<c0>": {"clip_l": (1, 32), "clip_g": (1, 40)},
        "<c1>": {"clip_l": (1, 32), "clip_g": (1, 40)},
        "<c2>": {"clip_l": (2, 32), "clip_g": (2, 40)},
    }
    result = job.store.result("c2")
    assert result is not None
    assert result.embedding_dims == SIZES


def test_they_are_what_one_process_learns(job: Job) -> None:
    alone = jobs.words(job.folder, job.settings, only=["c0", "c2"])
    for concept_id, rows in alone.items():
        joined = np.concatenate(list(found(job)[f"<{concept_id}>"].values()), axis=1)
        np.testing.assert_allclose(joined, rows, atol=1e-5)


def test_more_steps_go_on_from_the_stored_state(job: Job) -> None:
    before = found(job)
    code, out = job.run("--only", "c0,c1", "--set", "training.steps=8")
    assert code == 0, out
    assert sorted(job.resumed()) == [("c0", 6), ("c1", 6)]
    after = found(job)
    for part in SIZES:
        assert np.abs(before["<c0>"][part] - after["<c0>"][part]).max() > 0


def test_status_and_words(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("status", job.store.uri) == 0
    assert "3" in capsys.readouterr().out
    assert textinv("words", job.store.uri) == 0
    listed = capsys.readouterr().out
    assert all(token in listed for token in ("<c0>", "<c1>", "<c2>"))
    assert textinv("words", job.store.uri, "--like", "<c0>") == 0


@pytest.mark.parametrize("form", ["diffusers", "a1111", "comfyui"])
def test_every_format_gives_the_words_back(job: Job, form: str, tmp_path: Path) -> None:
    assert textinv("export", job.store.uri, "--format", form, "--output", str(tmp_path)) == 0
    name = {"a1111": "ti-c2"}.get(form, "c2")
    assert (tmp_path / f"{name}_2.safetensors").is_file() == (form == "diffusers")
    word = found(job)["<c2>"]
    if form == "diffusers":  # a file for each encoder; the tiny model's have no size that tells them apart
        files = [read_words(tmp_path / f"{name}{suffix}.safetensors")["<c2>"] for suffix in ("", "_2")]
        read = [vectors for file in files for vectors in file.values()]
    else:
        (both,) = read_words(tmp_path / f"{name}.safetensors").values()
        read = list(both.values())
    assert all(map(np.array_equal, read, word.values()))
    assert len(read) == len(word) == 2


def test_they_are_evaluated(job: Job) -> None:
    settings = [one for one in job.settings if one.startswith(("scoring", "service"))]
    assert evaluated(job.store, settings) == ["c0", "c1", "c2"]


def test_pictures_are_drawn(job: Job, tmp_path: Path) -> None:
    options = ["--words", job.store.uri, "--output", str(tmp_path / "a"), "-n", "2"]
    assert textinv("generate", "a <c0> beside a <c2>", *options) == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"0.png", "1.png", "grid.png"}


def test_a_word_of_another_family_isnt_drawn(
    job: Job, tiny_sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--words", job.store.uri, "--output", str(tmp_path / "a"), "--set", f"model.path={tiny_sd}"]
    assert textinv("generate", "a <c0>", *options) == 2
    assert (
        "the word '<c0>' was learned for Stable Diffusion XL, or 3 without T5: it has vectors for "
        "clip_l (32) and clip_g (40), this Stable Diffusion 1.x / 2.x model takes clip_l (32)"
    ) in capsys.readouterr().err


def test_a_state_of_another_family_isnt_continued(job: Job, tiny_sd: Path) -> None:
    """The state is known as that of its own model alone: workers go on from no other."""
    source = Manifest.open(str(job.folder / "data/manifest.parquet"))
    row = next(row for row in source.rows() if row["concept_id"] == "c1")
    stored = job.store.read_concept("c1", "history.parquet")
    assert stored is not None
    for model, is_its_own in (((), True), ((f"model.path={tiny_sd}",), False)):
        config = JobConfig.load("mini", [*job.settings, *model])
        concept = concept_of(row, config, source.base, sources.facts(config.model))
        known = History.from_bytes(stored).state_fingerprint == concept.state_fingerprint
        assert known == is_its_own


def test_an_inpainting_model_is_refused_before_anything_starts(
    job: Job, tiny_sdxl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = single_files.of_folder(tiny_sdxl)
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(8, 9, 3, 3)
    file = single_files.save(tmp_path / "inpainting.safetensors", tensors)
    kolors = single_files.configuration(tmp_path / "kolors", tiny_sdxl)
    index = kolors / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "KolorsPipeline"}))
    manifest = str(job.folder / "data/manifest.parquet")
    capsys.readouterr()
    for path, what in ((file, "is an inpainting model"), (kolors, "is a KolorsPipeline")):
        for command in (["validate", manifest], ["invert", manifest, "--dry-run"], ["invert", manifest]):
            assert textinv(*command, *as_options([*job.settings, f"model.path={path}"])) == 2
            printed = capsys.readouterr()
            assert what in printed.err
            assert len(printed.err.splitlines()) == 1
            assert printed.out == ""
