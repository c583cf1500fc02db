"""A whole job for each family of flow matching, with tiny models: learn, go on, export, draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.support import examples, jobs, tiny_flow
from tests.support.commands import as_options, textinv
from tests.support.evaluating import evaluated
from tests.support.jobs import Job
from tests.support.nodes import Nodes
from textinv_ray.concepts.word_files import read_words
from textinv_ray.service.library.lexicon import Lexicon

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """A family: its tiny model, settings, and the sizes of a word."""

    save: Callable[[Path], Path]
    settings: tuple[str, ...]
    sizes: dict[str, int]


CASES = {
    "sd3": Case(
        tiny_flow.save_stable_diffusion_3,
        ("training.encoders=[clip_l, clip_g]", "review.sampler=euler"),
        {"clip_l": 32, "clip_g": 40, "t5xxl": 80},
    ),
    "flux": Case(tiny_flow.save_flux, ("review.sampler=euler",), {"clip_l": 32, "t5xxl": 24}),
    "sana": Case(tiny_flow.save_sana, (), {"gemma": 24}),
    "klein": Case(tiny_flow.save_flux2_klein, ("review.sampler=euler",), {"qwen3_4b": 16}),
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """One has room for the worker, the other for the preparation."""
    nodes = Nodes(workers=2)
    yield nodes
    nodes.close()


@pytest.mark.parametrize("name", CASES)
def test_a_whole_job(
    name: str, nodes: Nodes, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    examples.write_manifest(tmp_path / "data", 2)
    settings = examples.settings(
        case.save(tmp_path / "model"),
        tiny_clip,
        "training.lr_schedule=constant",
        "training.num_vectors=2",
        "scoring.num_images=1",
        "service.workers=1",
        "service.cpus_per_worker=1.1",
        "tracking.enabled=false",
        *case.settings,
    )
    manifest = str(tmp_path / "data/manifest.parquet")
    assert textinv("validate", manifest, *as_options(settings)) == 0
    assert "not checked" not in capsys.readouterr().err
    job = Job(tmp_path, settings, address=nodes.address)
    try:
        code, out = job.run()
        assert code == 0, out
        lexicon = Lexicon([job.store.uri])
        word = lexicon.word("<c1>")
        sizes = [part.shape for part in word.values()]
        assert sizes == [(2, size) for size in case.sizes.values()]
        assert len(case.sizes) == 1 or list(word) == list(case.sizes)
        for concept_id, rows in jobs.words(tmp_path, settings).items():
            joined = np.concatenate(list(lexicon.word(f"<{concept_id}>").values()), axis=1)
            np.testing.assert_allclose(joined, rows, atol=1e-4)
        assert (
            textinv("export", job.store.uri, "--format", "comfyui", "--output", str(tmp_path / "words")) == 0
        )
        (read,) = read_words(tmp_path / "words" / "c1.safetensors").values()
        assert all(map(np.array_equal, read.values(), word.values()))
        options = ["--words", job.store.uri, "--output", str(tmp_path / "pictures"), "-n", "2"]
        assert textinv("generate", "a <c0> beside a <c1>", *options) == 0
        assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"0.png", "1.png", "grid.png"}
        result = job.store.result("c1")
        assert result is not None
        assert list(result.embedding_dims.values()) == list(case.sizes.values())
        capsys.readouterr()
        assert textinv("words", job.store.uri) == 0
        assert "<c1>" in capsys.readouterr().out
        assert textinv("evaluate", job.store.uri, "--preset", "paper") == 2
        assert "the protocol 'paper' samples with ddim, which" in capsys.readouterr().err
        for wrong, message in (
            ("review.sampler=ddim", "has no 'ddim'"),
            ("training.encoders=[clip_h]", "has no clip_h"),
            ("data.resolution=24", "sides of a multiple of"),
        ):
            assert textinv("invert", manifest, "--dry-run", *as_options([*settings, wrong])) == 2
            assert message in capsys.readouterr().err
        if name == "klein":  # the others draw and score by the same calls
            only = [one for one in settings if one.startswith(("scoring", "service"))]
            assert evaluated(job.store, only) == ["c0", "c1"]
    finally:
        job.close()
