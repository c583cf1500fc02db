"""The ablation: its runs, its table and plot, and the whole study from the command to MLflow."""

from __future__ import annotations

import dataclasses
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support import examples
from textinv_ray.concepts import prepare
from textinv_ray.config.job import JobConfig
from textinv_ray.experiments import ablation, ablation_table
from textinv_ray.experiments.ablation import VARIANTS, expand
from textinv_ray.experiments.ablation_table import AXES, Score, interval, table
from textinv_ray.inversion.backbone import Backbone
from textinv_ray.inversion.review import Subject, review
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.manifest import checks
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver import job_record
from textinv_ray.service.intake import plan
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError

CONFIG = JobConfig.load("mini", ["training.steps=100"])


@pytest.fixture
def source(tmp_path: Path) -> Manifest:
    """Two concepts; the second has captions, which name it by its placeholder, and steps of its own."""
    path = examples.write_manifest(tmp_path / "data", 2)
    extended = pq.read_table(path)
    columns = {
        "captions": [None, ["my <c1>", "a {}"]],
        "steps": [None, 10],
        "placeholder_token": [None, "<c1>"],
    }
    for name, values in columns.items():
        if name in extended.schema.names:
            extended = extended.drop_columns([name])
        extended = extended.append_column(name, pa.array(values))
    pq.write_table(extended, path)
    return Manifest.open(str(path))


def test_every_variant_of_every_concept_with_every_seed(source: Manifest) -> None:
    rows = list(expand(source, CONFIG, list(VARIANTS), seeds=2))
    runs = {row["concept_id"]: row for row in rows}
    assert len(runs) == len(rows) == 2 * 2 * len(VARIANTS) - 2  # c0 has no captions
    assert "c0.captions.0" not in runs
    assert runs["c1.captions.1"]["captions"] == ["my {}", "a {}"]
    assert all("captions" not in row for name, row in runs.items() if ".captions." not in name)
    assert runs["c0.progressive.0"]["vectors_added_at"] == [40, 80]
    assert runs["c1.progressive.0"]["vectors_added_at"] == [4, 8]
    assert runs["c1.low-rate.0"]["learning_rate"] == pytest.approx(CONFIG.training.learning_rate / 50)
    assert runs["c1.base.1"]["tags"] == {
        "shelf": "3",
        "ablation_concept": "c1",
        "ablation_variant": "base",
        "ablation_seed": "1",
    }
    assert list(expand(source, CONFIG, ["base"], seeds=1, limit=1)) == [runs["c0.base.0"]]


def test_the_runs_are_a_sound_manifest(source: Manifest, tmp_path: Path) -> None:
    """Also in another folder. Each variant has a state of its own, and the seed of the other variants."""
    rows = list(expand(source, CONFIG, list(VARIANTS), seeds=2))
    path = tmp_path / "elsewhere" / "runs.parquet"
    path.parent.mkdir()
    path.write_bytes(ablation.to_parquet(rows))
    opened = Manifest.open(str(path))
    checks.check(opened, CONFIG)
    options: dict[str, Any] = {"base": opened.base, "resolution": 16, "model_identity": "model-1"}
    concepts = [prepare.make(row, CONFIG, **options) for row in opened.rows()]
    assert len({concept.state_fingerprint for concept in concepts}) == len(concepts)
    seeds = {
        name: concept.seed
        for name, concept in zip((row["concept_id"] for row in rows), concepts, strict=True)
    }
    assert seeds["c0.base.0"] == seeds["c0.auto.0"] != seeds["c0.base.1"]
    assert seeds["c0.base.0"] != seeds["c1.base.0"]


def test_variants_by_name() -> None:
    assert ablation.choose_variants([]) == list(VARIANTS)
    assert ablation.choose_variants(["auto", "progressive"]) == ["base", "progressive", "auto"]
    with pytest.raises(
        UserError, match=r"no variant 'progresive'; did you mean 'progressive'\? \(known: base,"
    ):
        ablation.choose_variants(["progresive"])


def known(found: tuple[float | None, float | None, float | None]) -> tuple[float, float, float]:
    mean, low, high = found
    assert mean is not None
    assert low is not None
    assert high is not None
    return mean, low, high


def test_the_interval_is_students() -> None:
    """Two values: half the width is 12.706 standard errors, from a table of the t distribution."""
    mean, low, high = known(interval([0.0, 2.0]))
    assert mean == 1
    assert high - mean == pytest.approx(12.706, abs=1e-3)
    assert mean - low == pytest.approx(high - mean)
    assert interval([3.0]) == (3.0, None, None)
    assert interval([]) == (None, None, None)


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(0.3, 0.1, (2000, 5))
    inside = [low <= 0.3 <= high for _, low, high in (known(interval(values)) for values in draws.tolist())]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def scores(values: dict[tuple[str, str, str], float]) -> list[Score]:
    """(variant, concept, seed) -> reconstruction; editability is half of it."""
    return [
        Score("variant", variant, concept, seed, value, value / 2, 1.0)
        for (variant, concept, seed), value in values.items()
    ]


def test_concepts_are_the_sample() -> None:
    """Ten seeds of a concept count as one, because concepts are the sampling unit."""
    few = scores({("base", "a", "0"): 0.25, ("base", "b", "0"): 0.75})
    many = scores(
        {("base", "a", str(seed)): 0.25 + (seed - 4.5) / 100 for seed in range(10)}
        | {("base", "b", "0"): 0.75}
    )
    (one,), (other,) = table(few, "base").to_pylist(), table(many, "base").to_pylist()
    assert one["reconstruction"] == pytest.approx(0.5)
    for name in ("reconstruction", "reconstruction_low", "editability_high"):
        assert other[name] == pytest.approx(one[name])
    assert (one["runs"], other["runs"], one["concepts"]) == (2, 11, 2)


@settings(max_examples=50, deadline=None)
@given(
    levels=st.lists(st.floats(-1, 1), min_size=2, max_size=5),
    shift=st.floats(-0.5, 0.5),
    missing=st.booleans(),
)
def test_differences_are_of_the_same_runs(levels: list[float], shift: float, missing: bool) -> None:
    """A constant difference is found exactly, however much concepts differ, and also when a run is missing."""
    base = {("base", f"c{index}", "0"): level for index, level in enumerate(levels)}
    other = {("high", concept, seed): level + shift for (_, concept, seed), level in base.items()}
    if missing:
        del base["base", "c0", "0"]
    first, second = table(scores(base | other), "base").to_pylist()
    assert first["reconstruction_difference"] is None
    for axis, expected in zip(AXES, (shift, shift / 2), strict=True):
        assert second[f"{axis}_difference"] == pytest.approx(expected, abs=1e-9)
        if len(levels) - missing > 1:
            assert second[f"{axis}_difference_high"] == pytest.approx(expected, abs=1e-9)


def test_text_and_plot(tmp_path: Path) -> None:
    runs = {("base", "a", "0"): 0.25, ("base", "b", "0"): 0.75, ("auto", "a", "0"): 0.5}
    found = table([*scores(runs), Score("reference", "no word", "a", "", 0.1, 0.3)], "base")
    lines = ablation_table.text(found, "base").splitlines()
    assert lines[1].split() == ["base", "0.500", "±", "3.177", "0.250", "±", "1.588", "2", "2"]
    assert lines[2].split() == ["auto", "0.500", "0.250", "+0.250", "+0.125", "1", "1"]
    assert lines[3].split() == ["no", "word", "0.100", "0.300", "1", "1"]
    ablation_table.plot(found, tmp_path / "plot.png")
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, "something was drawn"


def test_what_is_written_of_finished_runs(
    source: Manifest,
    tmp_path: Path,
    tiny_sd: Path,
    tiny_clip: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With real models for the references and real MLflow. Unfinished runs and other concepts are left out."""
    from mlflow import MlflowClient

    config = examples.config(tiny_sd, tiny_clip)
    rows = list(expand(source, config, ["base", "auto"], seeds=2))
    store = Store(str(tmp_path / "out"))
    for number, row in enumerate(rows[:-1]):
        score: dict[str, Any] = {"clip_image_similarity": 0.5 + number / 64, "clip_text_similarity": 0.25}
        examples.finish(store, row["concept_id"], tags=row["tags"], **score)
    examples.finish(
        store, "other", tags={"ablation_concept": "c0", "ablation_variant": "x", "ablation_seed": "0"}
    )
    todo = plan.Plan()
    job_record.begin(store, source, config, todo)
    ablation.compare(store, source, {row["concept_id"] for row in rows}, config, 1)

    found = pq.read_table(tmp_path / "out" / "ablation.parquet").to_pylist()
    assert [(row["name"], row["concepts"], row["runs"]) for row in found] == [
        ("base", 2, 4),
        ("auto", 2, 3),
        ("initializer", 2, 2),
        ("training images", 2, 2),
        ("no word", 2, 2),
    ]
    first, second = 0.5 + 0.5 / 64, 0.5 + 4.5 / 64  # c0.base.0, c0.base.1; c1.base.0, c1.base.1
    assert found[0]["reconstruction"] == pytest.approx((first + second) / 2)
    assert found[1]["reconstruction_difference"] == pytest.approx(2 / 64)
    assert found[2]["reconstruction"] == 0.5, "of the initializer, as the results say"
    assert all(-1 <= row["reconstruction"] <= 1 for row in found)
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"table and plot: {tmp_path / 'out'}/ablation.parquet, ablation.png"

    client = MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("textinv").experiment_id])
    (parent,) = [run for run in runs if "textinv.concept" not in run.data.tags]
    assert parent.info.status == "FAILED"
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"ablation.parquet", "ablation.png"} <= files


@pytest.mark.parametrize("crops", [1, 2])
def test_references_use_the_crops_that_the_review_uses(
    source: Manifest, tiny_sd: Path, tiny_clip: Path, crops: int
) -> None:
    """All of them. Training images are compared with each other, never a crop with one of its own image."""
    random_crops = ["data.crop=random", f"data.crops_per_image={crops}"] if crops > 1 else []
    config = examples.config(tiny_sd, tiny_clip, *random_crops)
    row = next(source.rows())
    concept = prepare.make(row, config, base=source.base, resolution=16, model_identity="model-1")
    assert concept.images.shape[:2] == (3, crops)
    found = {score.name: score for score in ablation.references([concept], config)}

    scorer = Scorer.load(str(tiny_clip))
    images = [scorer.image_features(of_image) for of_image in concept.images]
    pairs = [
        float(one @ other)
        for (_, first), (_, second) in combinations(enumerate(images), 2)
        for one, other in product(first, second)
    ]
    assert len(pairs) == 3 * crops**2
    assert found["training images"].reconstruction == pytest.approx(np.mean(pairs), abs=1e-5)
    texts = scorer.text_features(
        [prompt.replace("{} ", "").replace(" {}", "") for prompt in concept.edit_prompts]
    )
    training = torch.cat(images).mean(dim=0)
    assert found["training images"].editability == pytest.approx(float((texts @ training).mean()), abs=1e-5)

    # The same pictures and scores as the review gives to a word that is no text at all
    nothing = dataclasses.replace(concept, initializer_token=" ")
    backbone = Backbone.load(str(tiny_sd), dtype="float32")
    (reviewed,) = review(backbone, scorer, [Subject(nothing, None)], config)
    assert found["no word"].reconstruction == pytest.approx(reviewed.clip_image_similarity, abs=1e-5)
    assert found["no word"].editability == pytest.approx(reviewed.clip_text_similarity, abs=1e-5)


@pytest.mark.slow
def test_from_the_command_to_mlflow(source: Manifest, tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> None:
    from mlflow import MlflowClient

    given = examples.settings(tiny_sd, tiny_clip, "service.workers=1")

    done = examples.ablate(source.uri, tmp_path, given, "--variants", "progressive", "--seeds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = pq.read_table(tmp_path / "out" / "ablation.parquet").to_pylist()
    assert [(row["kind"], row["name"], row["runs"]) for row in found] == [
        ("variant", "base", 2),
        ("variant", "progressive", 2),
        ("reference", "initializer", 2),
        ("reference", "training images", 2),
        ("reference", "no word", 2),
    ]
    results = {
        row["concept_id"]: row for row in pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    }
    assert results["c0.progressive.0"]["num_vectors"] == 3
    base = [results[f"c{index}.base.0"]["clip_image_similarity"] for index in range(2)]
    assert found[0]["reconstruction"] == pytest.approx(np.mean(base))

    client = MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("textinv").experiment_id])
    (parent,) = [run for run in runs if "textinv.concept" not in run.data.tags]
    (run,) = [run for run in runs if run.data.tags.get("textinv.concept") == "c1.progressive.0"]
    assert parent.info.status == "FINISHED"
    assert {"ablation.parquet", "ablation.png"} <= {
        file.path for file in client.list_artifacts(parent.info.run_id)
    }
    assert run.data.params["vectors_added_at"] == "[4, 8]"

    wrong = examples.ablate(source.uri, tmp_path, given, "--variants", "progresive")
    assert wrong.returncode == 2
    assert "no variant 'progresive'; did you mean 'progressive'?" in wrong.stderr
