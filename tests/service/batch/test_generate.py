"""Images with learned words: the commands, with tiny models, real Ray and real files."""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.support import examples
from tests.support.commands import REPOSITORY, as_options, finished, script, textinv
from textinv_ray.inversion.generation import Request
from textinv_ray.service.batch import generate
from textinv_ray.service.library.lexicon import Lexicon
from textinv_ray.service.store.store import Store


def vectors(seed: int, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def output(tmp_path: Path) -> Store:
    """Two words for the tiny model."""
    store = Store(str(tmp_path / "out"))
    for concept_id, seed in (("cat", 1), ("ink", 2)):
        examples.finish(store, concept_id, vectors(seed).tolist(), embedding_dims={"clip_l": 32})
    return store


@pytest.fixture
def settings(tiny_sd: Path, tiny_clip: Path) -> list[str]:
    overrides = examples.settings(tiny_sd, tiny_clip, "service.workers=1")
    return as_options(overrides)


def pixels(data: bytes | Path) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)).astype(int)


def test_one_prompt(
    output: Store, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pictures"
    prompt = "a drawing of <cat> in the style of <ink>"
    options = ["--words", output.uri, "--output", str(out), *settings]
    assert textinv("generate", prompt, "-n", "5", "--seed", "3", *options) == 0
    assert capsys.readouterr().out == f"{out}/grid.png: 3.png, 4.png, 5.png, 6.png, 7.png\n"
    grid = pixels(out / "grid.png")
    assert grid.shape == (32, 64, 3)
    assert np.array_equal(grid[16:, :16], pixels(out / "7.png"))
    assert (grid[16:, 16:] == 255).all()
    before = pixels(out / "7.png")
    assert textinv("generate", prompt, "-n", "1", "--seed", "7", *options) == 0
    assert np.abs(before - pixels(out / "7.png")).max() <= 1
    changed = [
        ("--guidance", "2"),
        ("--steps", "4"),
        ("--negative-prompt", "<cat>"),
        ("--negative-prompt", "house"),
    ]
    for change in changed:
        assert textinv("generate", prompt, "-n", "1", "--seed", "7", *options, *change) == 0
        assert np.abs(before - pixels(out / "7.png")).max() > 1, change


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a <cart>"], "error: no learned word '<cart>'; did you mean '<cat>'?"),
        (["a <cat>", "--size", "20"], "--size 20 is not a multiple of 8"),
        (["a " * 40 + "<cat>"], "would be cut off"),
        (
            ["a <four>"],
            "the word '<four>' was learned for another model: it has vectors for clip_l (4), "
            "this Stable Diffusion 1.x / 2.x model takes clip_l (32)",
        ),
    ],
)
def test_mistakes_are_one_line(
    output: Store,
    settings: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    examples.finish(output, "four")
    options = ["--words", output.uri, "--output", str(tmp_path / "p"), *settings]
    assert textinv("generate", *arguments, *options) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error


def test_words_bring_their_configuration(output: Store, tiny_sd: Path, tiny_clip: Path) -> None:
    config = examples.config(tiny_sd, tiny_clip)
    output.write_job(examples.job(config))
    lexicon = Lexicon([output.uri])
    assert generate.settings(lexicon, None, [], None, None) == config
    changed = generate.settings(lexicon, None, ["model.dtype=auto"], 9, 3.5)
    assert (changed.model.dtype, changed.review.num_inference_steps, changed.review.guidance_scale) == (
        "auto",
        9,
        3.5,
    )
    assert generate.settings(lexicon, "sd15", [], None, None).model.path != config.model.path


def test_an_actor_passes_over_what_is_done(tiny_sd: Path, tiny_clip: Path, tmp_path: Path) -> None:
    """Ray passes a whole block again when another actor died with it. A row without its mark is rendered again."""
    config = examples.config(tiny_sd, tiny_clip)
    actor = generate.GenerationActor(config.to_dict(), {"<x>": {"clip_l": vectors(1).numpy()}}, str(tmp_path))
    requests = [Request("a <x>", ("<x>",), count=2), Request("a " * 40 + "<x>", ("<x>",)), Request("a cat")]
    texts = [json.dumps(asdict(request)) for request in requests]
    block = pa.table({"key": ["k0", "k1", "k2"], "request": texts})
    errors = actor(block)["error"].to_pylist()
    assert [bool(error) for error in errors] == [False, True, False]
    store = Store(str(tmp_path))
    store.remove("pictures/k0/1.png")
    store.remove("pictures/k0/done.json")
    (tmp_path / "pictures" / "k2" / "0.png").write_bytes(b"untouched")
    assert actor(block)["error"].to_pylist() == errors
    assert pixels(tmp_path / "pictures" / "k0" / "1.png").shape == (16, 16, 3)
    assert (tmp_path / "pictures" / "k2" / "0.png").read_bytes() == b"untouched"


def test_pictures_are_written_as_they_come(
    tiny_sd: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory holds so many at a time; how many, the pictures don't show."""
    config, word = examples.config(tiny_sd, tiny_clip), {"<x>": {"clip_l": vectors(1).numpy()}}
    requests = [Request("a <x>", ("<x>",), seed=3, count=5), Request("a cat", count=1)]
    texts = [json.dumps(asdict(request)) for request in requests]
    block = pa.table({"key": ["k0", "k1"], "request": texts})
    for folder, most in (("whole", 128), ("parts", 2)):
        monkeypatch.setattr(generate, "_MOST_PICTURES", most)
        actor = generate.GenerationActor(config.to_dict(), word, str(tmp_path / folder))
        assert actor(block)["error"].to_pylist() == ["", ""]
    whole, parts = (sorted((tmp_path / folder).rglob("*.*")) for folder in ("whole", "parts"))
    assert [path.name for path in parts] == [path.name for path in whole] == [
        "3.png", "4.png", "5.png", "6.png", "7.png", "done.json", "0.png", "done.json"
    ]  # fmt: skip
    for one, other in zip(whole, parts, strict=True):
        if one.suffix == ".png":
            assert np.abs(pixels(one) - pixels(other)).max() <= 1
        else:
            assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_many_prompts_and_again(output: Store, settings: list[str], tmp_path: Path) -> None:
    """A job renders what is missing, and nothing twice. Rows of a word that was learned again are rendered again."""
    rows = {
        "prompt": ["a <cat>", "a <cat> in <ink>", "a dog", "a dog", "a " * 40 + "<cat>"],
        "seed": [1, 2, 3, 3, 4],
        "count": [2, 1, 1, 1, 1],
    }
    path = str(tmp_path / "p.parquet")
    pq.write_table(pa.table(rows), path)
    out = Store(str(tmp_path / "pictures"))

    def command(arguments: list[str]) -> tuple[int, str]:
        done = finished([*arguments, "--words", output.uri, *settings], REPOSITORY)
        assert done.stderr == "", "nothing but our lines"
        return done.returncode, done.stdout

    def run() -> tuple[int, str]:
        return command(script("generate_many", path, "--output", out.uri))

    code, said = run()
    assert code == 1, said
    assert "to draw: 5 pictures of 4 rows" in said, "equal rows are drawn once"
    assert "row 4: the prompt" in said
    index = pq.read_table(out.path("index.parquet")).to_pylist()
    assert [(row["row"], row["seed"]) for row in index] == [(0, 1), (0, 2), (1, 2), (2, 3), (3, 3), (4, 4)]
    assert index[3]["file"] == index[4]["file"]
    assert index[5]["file"] is None
    assert "would be cut off" in index[5]["error"]
    drawn = {row["file"]: Path(out.path(row["file"])).stat().st_mtime_ns for row in index[:5]}
    assert index[2]["words"] == ["<cat>", "<ink>"]

    alone = tmp_path / "alone"
    asked = ["generate", "a <cat> in <ink>", "-n", "1", "--seed", "2", "--output", str(alone)]
    assert command([sys.executable, "-m", "textinv_ray", *asked]) == (0, f"{alone}/grid.png: 2.png\n")
    picture = pixels(Path(out.path(index[2]["file"])))
    assert np.abs(picture - pixels(alone / "2.png")).max() <= 1, "the same picture, whatever the batch"

    began = time.time_ns()
    examples.finish(output, "ink", vectors(9).tolist(), embedding_dims={"clip_l": 32})
    code, said = run()
    assert "to draw: 2 pictures of 2 rows" in said, "the row with the new word, and the one that failed"
    index = pq.read_table(out.path("index.parquet")).to_pylist()
    assert {
        name: Path(out.path(name)).stat().st_mtime_ns for name in drawn if name != picture_of(drawn, index)
    } == {name: time_ for name, time_ in drawn.items() if name != picture_of(drawn, index)}
    assert Path(out.path(index[2]["file"])).stat().st_mtime_ns > began


def picture_of(drawn: dict[str, int], index: list[dict[str, Any]]) -> str:
    """The one that no row has any more."""
    (old,) = set(drawn) - {row["file"] for row in index}
    return old


def test_files_of_words_will_do(settings: list[str], tmp_path: Path) -> None:
    safetensors.torch.save_file({"emb_params": vectors(1)}, tmp_path / "owl.safetensors")
    options = ["-w", str(tmp_path / "owl.safetensors"), "--output", str(tmp_path / "p"), *settings]
    assert textinv("generate", "an <owl>", "-n", "1", *options) == 0
    assert pixels(tmp_path / "p" / "0.png").shape == (16, 16, 3)
