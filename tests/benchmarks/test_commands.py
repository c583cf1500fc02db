"""Commands of benchmarks run, at a tiny size: what they measure is for their tables, not for tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from benchmarks import (
    against_script,
    breakdown,
    catalogue_words,
    encoder_share,
    fewer_steps,
    judged,
    measure,
    memory,
    options,
    predicted_starts,
    quality_vs_steps,
    random_models,
    real_size,
    review,
    step,
    stopping_rules,
)
from benchmarks.public_script import Progress
from tests.support import catalogue, examples, tiny
from textinv_ray.concepts import image_features, predictor
from textinv_ray.concepts.image_features import ImageFeatures
from textinv_ray.concepts.word_files import store_word
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.families.sdxl import StableDiffusionXL
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.models import sources
from textinv_ray.service.store.store import Store


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs a benchmark in this process and returns what it wrote as JSON."""

    def run(module: Any, *options: str) -> dict[str, Any]:
        path = tmp_path / "figures.json"
        monkeypatch.setattr(sys, "argv", ["benchmark", *options, "--json", str(path)])
        module.main()
        return dict(json.loads(path.read_text()))

    yield run
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("name", "weights"), [("sd15", 859_520_964), ("sdxl", 2_567_463_684)])
def test_random_models_have_the_real_sizes(name: str, weights: int) -> None:
    with torch.device("meta"):
        assert sum(weight.numel() for weight in random_models.unet(name).parameters()) == weights


def test_a_random_model_is_written_in_diffusers_format(tmp_path: Path) -> None:
    random_models.save("tiny-sdxl", tmp_path)
    backbone = load_backbone(str(tmp_path), dtype="float32")
    assert isinstance(backbone, StableDiffusionXL)
    assert [encoder.table.shape for encoder in backbone.encoders] == [(49408, 32)] * 2


def test_memory(figures: Callable[..., dict[str, Any]]) -> None:
    """Checkpointing keeps less, smaller pictures keep less; more memory holds more."""
    found = figures(memory, "--model=tiny-sdxl", "--sides=128,64")
    sizes = {(row["side"], row["checkpointing"]): row["GB a sample"] for row in found["rows"]}
    assert 0 < sizes[64, "on"] < sizes[64, "off"] < sizes[128, "off"]
    assert sizes[128, "on"] < sizes[128, "off"]
    assert all(row["samples in 16 GB"] < row["samples in 80 GB"] for row in found["rows"])


@pytest.mark.slow
def test_step(figures: Callable[..., dict[str, Any]]) -> None:
    found = figures(
        step,
        "--model=tiny",
        "--max-pack=2",
        "--limit=60",
        "--seconds=0.01",
        "--repeats=2",
        "--dtypes=float32,bfloat16",
    )
    assert [(row["dtype"], row["pack"]) for row in found["steps"]] == [
        ("float32", 1),
        ("float32", 2),
        ("bfloat16", 1),
        ("bfloat16", 2),
    ]
    assert all(row["samples/s"] > 0 and 0 < row["share of peak"] < 1 for row in found["steps"])
    assert {row["finite"] for row in found["steps"]} == {"yes"}
    found = figures(step, "--model=tiny-sdxl", "--max-pack=1", "--seconds=0.01", "--checkpointing=off,on")
    assert [row["checkpointing"] for row in found["steps"]] == ["off", "on"]
    found = figures(
        step,
        "--model=tiny",
        "--min-pack=2",
        "--max-pack=3",
        "--seconds=0.01",
        "--channels-last=on,off",
        "--dtypes=tf32",
    )
    assert [row["pack"] for row in found["steps"]] == [2, 2]
    assert [row["channels last"] for row in found["steps"]] == ["on", "off"]
    assert list(found["matmul_flops"]) == ["tf32"]


@pytest.mark.slow
def test_quality_vs_steps(
    figures: Callable[..., dict[str, Any]], manifest: str, settings: list[str], tmp_path: Path
) -> None:
    plot = tmp_path / "plot.png"
    options = ["--at=1,3", "--seeds=2", "--images=1", f"--manifest={manifest}", f"--plot={plot}", *settings]
    rule = "stopping.rule=clip stopping.min_steps=1 stopping.clip.every=1 stopping.clip.patience=1"
    early = "training.learning_rate=1e-30"  # no evaluation is better than the first
    file = tmp_path / "twelve.safetensors"
    file.write_bytes(predictor.fit(catalogue.examples(12)).to_bytes())
    options.append(f"--predictor={file}")
    found = figures(quality_vs_steps, *options, f"--stopping={rule}", f"--stopping={rule} {early}")
    assert [row["steps"] for row in found["points"][:3]] == [0, 1, 3]
    assert [(row[""], row["steps"]) for row in found["points"][3:6]] == [
        ("twelve", step) for step in (0, 1, 3)
    ]
    rules = found["points"][6:]
    assert [len(row["stopped_at"]) for row in rules] == [4, 4]
    assert rules[1]["stopped_at"] == [2, 2, 2, 2]
    assert plot.stat().st_size > 0


def without_seconds(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in point.items() if name != "seconds"} for point in points]


@pytest.mark.slow
def test_predicted_starts(
    figures: Callable[..., dict[str, Any]], manifest: str, settings: list[str], tmp_path: Path
) -> None:
    folder = catalogue.output(tmp_path / "words", catalogue.examples(24))
    options = [
        "--sizes=12,24,999",
        "--at=0,2",
        "--seeds=2",
        "--images=1",
        f"--manifest={manifest}",
        *settings,
    ]
    options += [
        "--rates=1,0",
        "--set=scoring.judge=null",
        "--set=data.holdout=1",
        f"--plot={tmp_path / 'plot.png'}",
        f"--scores={tmp_path / 'scores.json'}",
    ]
    found = figures(predicted_starts, folder, *options)
    points = {(point["start"], point["steps"]): point["values"] for point in found["points"]}
    made = [f"predicted by {count}{rate}" for count in (12, 24) for rate in ("", ", rate x 0")]
    names = ["initializer", "mean of 24", *made]
    assert list(points) == [(name, step) for name in names for step in (0, 2)]
    assert set(points["initializer", 0]) == {"clip", "edit", "retrieval", "loss"}
    for name in ("predicted by 12", "predicted by 24"):
        still = f"{name}, rate x 0"
        assert points[still, 0] == points[name, 0] == points[still, 2], "at a rate of 0 no word moves"
        assert points[name, 2] != points[name, 0]
    assert points["predicted by 12", 0] != points["predicted by 24", 0]
    assert (tmp_path / "plot.png").stat().st_size > 0
    assert len(found["table"]) == len(points)
    scores = tmp_path / "scores.json"
    whole = scores.read_text()
    stopped = json.loads(whole)
    assert stopped["points"] == found["points"]
    scores.write_text(json.dumps({**stopped, "points": stopped["points"][:1] + stopped["points"][2:]}))
    went_on = figures(predicted_starts, folder, *options)
    assert without_seconds(went_on["points"]) == without_seconds(found["points"])
    assert [point["seconds"] for point in went_on["points"][2:]] == [
        point["seconds"] for point in found["points"][2:]
    ], "these weren't learned again"
    with pytest.raises(SystemExit, match="scores of another comparison"):
        figures(predicted_starts, folder, *options, "--seeds=1")


def test_refined_predictors_are_starts_of_their_own(
    figures: Callable[..., dict[str, Any]], manifest: str, settings: list[str], tiny_sd: Path, tmp_path: Path
) -> None:
    identity = sources.facts(JobConfig.load("mini", [f"model.path={tiny_sd}"]).model).identity
    folder = catalogue.output(tmp_path / "words", catalogue.examples(12, model=identity))
    images = examples.write_manifest(tmp_path / "data", 12)
    options = ["--sizes=12", "--at=0", "--images=1", f"--manifest={manifest}", *settings]
    options += ["--set=scoring.judge=null", "--set=data.holdout=1", "--refine=10", f"--catalogue={images}"]
    points = figures(predicted_starts, folder, *options)["points"]
    assert [point["start"] for point in points] == [
        "initializer",
        "mean of 12",
        "predicted by 12",
        "predicted by 12, 10 steps on",
    ]
    assert points[2]["values"]["loss"] != points[3]["values"]["loss"]


def test_the_parts_of_a_step_make_up_the_step(figures: Callable[..., dict[str, Any]]) -> None:
    found = figures(breakdown, "--model=tiny", "--pack=2", "--steps=3", "--limit=0")
    parts = {row[""]: row["per cent"] for row in found["step"]}
    assert {"UNet, forward", "UNet, backward", "text encoder, backward", "random draws"} < set(parts)
    assert parts.pop("whole") == 100
    assert sum(parts.values()) == pytest.approx(100, abs=0.1 * len(parts))


def test_catalogue_words(
    manifest: str, settings: list[str], tmp_path: Path, figures: Callable[..., dict[str, Any]]
) -> None:
    """A predictor can read what was learned; a second run learns nothing again."""
    output = tmp_path / "words"
    found = figures(catalogue_words, manifest, str(output), "--steps=3", "--pack=2", *settings)
    assert (found["words"], found["why"]) == (2, {})
    store = Store(str(output))
    assert [result.steps for result in store.results()] == [3, 3]
    data = store.read_concept("one", image_features.FILE)
    assert data is not None
    assert ImageFeatures.from_bytes(data).images.shape == (2, 16)
    assert figures(catalogue_words, manifest, str(output), *settings)["words"] == 0


def test_judged(
    manifest: str, settings: list[str], tmp_path: Path, figures: Callable[..., dict[str, Any]]
) -> None:
    """The script's words are read, ours learned; all are judged on an image that none was learned from."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for number, name in enumerate(("one-seed0", "two-seed2", "two-seed3")):
        word = {"clip_l": np.full((1, 32), 0.1 * number, np.float32)}
        (theirs / f"{name}-0123456789ab.safetensors").write_bytes(store_word(f"<{name}>", word))
    options = ["--seeds=2", "--images=1", "--holdout=1", f"--script-words={theirs}"]
    file = catalogue.predictor_file(tmp_path / "p.safetensors", JobConfig.load("mini", settings[1::2]))
    grid = tmp_path / "grid.png"
    predicted = [f"--predictor={file}", "--predicted-steps=0,1", f"--grid={grid}"]
    found = figures(judged, *options, f"--manifest={manifest}", *predicted, *settings)
    assert found["words"] == 3
    assert found["steps"] == {
        **{"initializer": [0] * 3, "ours": [4] * 3},
        **{"predicted, 0 steps": [0] * 3, "predicted, 1 steps": [1] * 3},
    }
    assert set(found["scores"]) == {*found["steps"], "script"}
    with Image.open(grid) as picture:
        assert picture.size == (12 * 36 + 4, 3 * 36 + 22)  # of 16 px each
    for scores in found["scores"].values():
        assert set(scores) == {"clip", "judge", "edit", "retrieval", "loss"}
        assert {len(values) for values in scores.values()} == {2}, "a value for each concept"
    assert {"ours - script", "predicted, 1 steps - script"} < set(found["table"][0])
    for path in theirs.iterdir():
        path.unlink()
    with pytest.raises(SystemExit, match="theirs has no word of a concept of"):
        figures(judged, *options, f"--manifest={manifest}", *settings)


def test_a_script_that_cannot_run_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text("from diffusers.utils import check_min_version\ncheck_min_version('99.0')")
    monkeypatch.setattr(sys, "argv", ["b", f"--script={script}", f"--manifest={manifest}"])
    with pytest.raises(SystemExit, match=r"(?s)the version found is.*raw\.githubusercontent\.com"):
        against_script.main()


def test_progress_is_read_from_what_tqdm_writes() -> None:
    progress = Progress(100)
    for text, at in (
        ("Loading weights: 7/100 [00:01]\n\rSteps:   0%|   | 0/100 [00:00<?, ?it/s]", 1.0),
        ("\rSteps:   1%|   | 1/100 [00:00<?, ?it/s, loss=0.1]", 2.0),
        ("\rSteps:  50%|## | 50/100 [00:05", 3.0),
        ("\rSteps: 100%|###| 100/100 [00:10<00:00, 9.9it/s]", 11.9),
    ):
        progress.read(text, at)
    assert progress.learning_seconds == pytest.approx(9.9)


def test_a_table_is_aligned_and_shows_what_is_missing() -> None:
    rows: list[dict[str, Any]] = [{"": "a", "x": 1234.5}, {"": "long name", "x": None}]
    assert measure.table(rows).splitlines() == ["               x", "a          1,234", "long name      -"]


@pytest.mark.slow
def test_fewer_steps(figures: Callable[..., dict[str, Any]], manifest: str, settings: list[str]) -> None:
    variants = (
        "averaged-half,stratified,stratified-images,common-noise,antithetic-noise,rate-2,cosine-1,batch-2"
    )
    options = ["--at=1,3", "--set", "scoring.num_images=1", f"--manifest={manifest}", *settings]
    found = figures(fewer_steps, f"--variants={variants}", *options)
    assert {(row[""], row["step"]) for row in found["table"]} == {
        (name, step) for name in ("base", *variants.split(",")) for step in (1, 3)
    }
    scores = found["scores"]
    assert scores["averaged-half/1"] == scores["base/1"]  # of one iterate
    assert scores["averaged-half/3"] != scores["base/3"]
    assert len({json.dumps(one) for name, one in scores.items() if name.endswith("/3")}) == 9


@pytest.mark.slow
def test_options(
    figures: Callable[..., dict[str, Any]], manifest: str, settings: list[str], tmp_path: Path
) -> None:
    """Paired with base; what is in the output is not learned again."""
    arguments = [str(tmp_path / "out"), f"--manifest={manifest}", "--seeds=2", "--steps=2", "--images=1"]
    same, other = "training.noise_offset=0", "training.learning_rate=1 training.noise_offset=0.1"
    arguments += ["--set=scoring.judge=mini-judge", *settings]
    found = figures(options, *arguments, f"--option={same}")["rows"]
    assert [(row["name"], row["runs"]) for row in found] == [("base", 4), (same, 4), ("initializer", 4)]
    assert found[1]["reconstruction_difference"] == found[1]["judge_difference"] == 0
    swapped = str(tmp_path / "swapped.parquet")
    rows = pq.read_table(manifest).to_pylist()
    rows[0]["images"], rows[1]["images"] = rows[1]["images"], rows[0]["images"]
    pq.write_table(pa.Table.from_pylist(rows), swapped)
    judged_by = []
    for name, by in (("same", manifest), ("swapped", swapped)):
        compared = [str(tmp_path / name), *arguments[1:], "--set=data.holdout=1", f"--compare-with={by}"]
        judged_by.append(figures(options, *compared)["rows"][0]["judge"])
    assert judged_by[0] != judged_by[1]
    with pytest.raises(SystemExit, match="needs held-out images"):
        figures(options, str(tmp_path / "none"), *arguments[1:], f"--compare-with={manifest}")
    pq.write_table(pa.Table.from_pylist(rows[:1]), swapped)
    with pytest.raises(SystemExit, match="has no concept"):
        figures(options, str(tmp_path / "none"), *compared[1:])
    learned = (tmp_path / "out" / "scores.jsonl").read_text()
    file, plot = tmp_path / "twelve.safetensors", tmp_path / "plot.png"
    file.write_bytes(predictor.fit(catalogue.examples(12)).to_bytes())
    arguments += [f"--option={same}", f"--option={other}", "--towards-initializer=0.5", f"--plot={plot}"]
    again = {row["name"]: row for row in figures(options, *arguments, f"--predictor={file}")["rows"]}
    assert [again[row["name"]] for row in found] == found
    assert again[other]["reconstruction_difference"] != 0
    assert list(again) == [
        *("base", same, other, *(f"predicted, {steps} steps" for steps in (0, 10, 2))),
        *("0.5 towards the initializer", "initializer"),
    ]
    assert (tmp_path / "out" / "scores.jsonl").read_text().startswith(learned)
    assert plot.stat().st_size > 0


def test_review(figures: Callable[..., dict[str, Any]]) -> None:
    found = figures(review, "--concepts=5", "--side=64")["figures"]
    assert found["keys"] == 5


@pytest.mark.slow
def test_encoder_share(figures: Callable[..., dict[str, Any]]) -> None:
    (share,) = figures(encoder_share, "--models=Sana 1.6B", "--batch-size=2")["shares"]
    assert 0.3 < share["equal prompts once"] < share["all prompts"] < 0.6


@pytest.mark.slow
def test_stopping_rules(
    figures: Callable[..., dict[str, Any]], manifest: str, settings: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "twelve.safetensors"
    file.write_bytes(predictor.fit(catalogue.examples(12)).to_bytes())
    options = ["--images=1", f"--manifest={manifest}", *settings, "--set", "data.holdout=1"]
    options += ["--set", "stopping.min_steps=1"]
    rules = "4,clip/1/9/4,clip/1/1/4/2,clip/2/1/2,clip/2/9/4/1,dvar/1/2/0.9/4,clip/2/9/4@0"
    found = figures(stopping_rules, f"--rules={rules}", f"--predictor={file}", *options)
    table = {row["rule"]: row for row in found["table"]}
    assert list(table) == rules.split(",")
    assert (table["4"]["steps"], table["4"]["kept"], table["4"]["evaluations"]) == (4, 4, 0)
    assert [table[rule]["evaluations"] for rule in ("clip/1/9/4", "clip/2/9/4/1", "clip/2/9/4@0")] == [
        4,
        2,
        3,
    ]
    # mini's evaluations take 5 sampling steps; at step 3 only the rule clip/1/... evaluates
    scores = found["evaluations"]
    assert [[score is None for score in one] for one in scores["clip/1"]] == 2 * [[True, False, False]]
    assert [[score is None for score in one] for one in scores["clip/5"]] == 2 * [5 * [False]]
    assert [len(one) for one in scores["dvar/0"]] == [5, 5]
    best = [1 + max(range(4), key=one[1:].__getitem__) for one in scores["clip/5"]]
    assert table["clip/1/9/4"]["kept"] == round(sum(best) / len(best))
    assert all(len(values) == 2 for by_score in found["scores"].values() for values in by_score.values())
    for rules in ("clip/3/1/4@1,clip/9/1/4", "clip/2/1", "dvar/1/2/3", "7/1", "0", "-1", "4@x"):
        with pytest.raises(SystemExit, match="2"):
            figures(stopping_rules, f"--rules={rules}", *options)


@pytest.mark.parametrize(
    ("rule", "best", "end"),
    [
        *(("clip/1/2/5", 2, 4), ("clip/1/9/5", 5, 5), ("clip/1/9/4", 2, 4), ("clip/2/1/4", 2, 4)),
        *(("clip/2/1/5", 2, 4), ("clip/1/1/5@0", 0, 1), ("clip/1/1/5@3", 5, 5), ("5", 5, 5), ("0", 0, 0)),
        *(("dvar/1/2/0.5/5", 3, 3), ("dvar/1/2/0.5/3", 3, 3), ("dvar/1/2/0.5/5@5", 5, 5)),
    ],
)
def test_a_rule_is_applied_to_what_it_would_have_seen(rule: str, best: int, end: int) -> None:
    series = np.array([0.4, 0.1, 0.3, 0.2, 0.25, 0.4])
    given = JobConfig().stopping.model_copy(update={"min_steps": 1})
    assert stopping_rules.Rule.parse(rule, given).applied(series, 1, tiny.concept()) == (best, end)


def test_stratified_draws_are_spread_and_still_uniform(tiny_sd: Path) -> None:
    backbone, config = load_backbone(str(tiny_sd), device="cpu", dtype="float32"), JobConfig()
    images = np.zeros((4, 1, tiny.RESOLUTION, tiny.RESOLUTION, 3), dtype=np.uint8)
    concept = tiny.concept(batch_size=4, images=images, steps=400)
    task = fewer_steps.StratifiedImages(concept, backbone, config)
    seen = []
    for task.step in range(400):
        draws = task.draw()
        assert (backbone.levels(draws.levels) // 250).tolist() == [0, 1, 2, 3]
        per_image = len(task.tensors["latent_means"]) // 4
        assert sorted((draws.latents // per_image).tolist()) == [0, 1, 2, 3]
        seen.append(backbone.levels(draws.levels))
    assert torch.stack(seen).float().mean().item() == pytest.approx(499.5, abs=10)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_noise_of_a_batch_is_shared_or_mirrored(tiny_sd: Path, size: int) -> None:
    backbone, config = load_backbone(str(tiny_sd), device="cpu", dtype="float32"), JobConfig()
    concept = tiny.concept(batch_size=size)
    plain, common, antithetic = (
        make(concept, backbone, config).draw()
        for make in (ConceptTask, fewer_steps.CommonNoise, fewer_steps.AntitheticNoise)
    )
    for draws in (common, antithetic):
        assert torch.equal(draws.noise[0], plain.noise[0])
        assert draws.noise.shape == plain.noise.shape
        assert torch.equal(draws.noise[1, 0], plain.noise[1, 0])
        assert torch.equal(draws.levels, plain.levels)
    assert all(torch.equal(one, plain.noise[1, 0]) for one in common.noise[1])
    half = size // 2
    assert torch.equal(antithetic.noise[1, size - half :], -plain.noise[1, :half])
    assert torch.equal(antithetic.noise[1, : size - half], plain.noise[1, : size - half])


def test_the_job_of_real_size_is_a_valid_one(tmp_path: Path) -> None:
    config = JobConfig.load(None, real_size.settings(tmp_path, 64, 2))
    assert (config.training.steps, config.review.resolution, config.service.workers) == (2, 64, 1)
    assert Manifest.open(str(real_size.write_manifest(tmp_path, 64))).num_rows == 1
