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

from tests.support import examples
from tests.support.commands import as_options, textinv
from textinv_ray.concepts import prepare
from textinv_ray.concepts.settings import settings_of
from textinv_ray.config.job import JobConfig
from textinv_ray.experiments import ablation, image_counts
from textinv_ray.experiments.ablation import VARIANTS, expand
from textinv_ray.experiments.interpolated import Models
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.review import Subject, review
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.manifest import checks
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.driver import job_record
from textinv_ray.service.driver.lock import Lock
from textinv_ray.service.intake import plan
from textinv_ray.service.models import sources
from textinv_ray.service.store.snapshot import StoredResults
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


def test_base_has_the_settings_of_the_job_and_variants_change_their_own(source: Manifest) -> None:
    several = CONFIG.override(["training.num_vectors=4", "training.regularization_weight=0.5"])
    runs = {row["concept_id"]: row for row in expand(source, several, list(VARIANTS), seeds=1)}
    for name, row in runs.items():
        made = settings_of(row, several)
        changed = {"two-vectors": 2, "three-vectors": 3, "progressive": 1}
        assert made.num_vectors == changed.get(name.split(".")[1], 4)
        assert made.regularization_weight == (0.01 if ".regularized." in name else 0.5)
    turned = CONFIG.override(["training.optimizer=directional", "training.direction_prior=0.1"])
    runs = {row["concept_id"]: row for row in expand(source, turned, list(VARIANTS), seeds=1)}
    assert settings_of(runs["c0.base.0"], turned).direction_prior == 0.1
    assert settings_of(runs["c0.directional.0"], turned).direction_prior == 0
    assert not [name for name in runs if ".norm-" in name], "a direction has one norm"


def test_starts_from_files(source: Manifest, tmp_path: Path) -> None:
    """Relative paths count from the user's manifest, and steps are those after such a start."""
    config = CONFIG.override(
        [
            "training.init_from=words/x.safetensors",
            "training.warm_start.steps=20",
            "training.warm_start.learning_rate_scale=0.5",
        ]
    )
    table = pq.read_table(source.uri).drop_columns(["initializer_token"])
    pq.write_table(table, source.uri)
    opened = Manifest.open(source.uri)
    runs = {row["concept_id"]: row for row in expand(opened, config, list(VARIANTS), seeds=1)}
    assert runs["c0.base.0"]["init_from"] == str(tmp_path / "data" / "words" / "x.safetensors")
    assert runs["c0.progressive.0"]["vectors_added_at"] == [8, 16]
    assert runs["c0.low-rate.0"]["learning_rate"] == pytest.approx(CONFIG.training.learning_rate / 100)
    few = config.override(["training.warm_start.steps=2"])
    assert not list(expand(opened, few, ["progressive"], seeds=1, limit=1))


def test_studies_with_held_out_images(source: Manifest, tmp_path: Path) -> None:
    config = CONFIG.override(["data.holdout=1"])
    with pytest.raises(UserError, match=r"--towards-initializer: .* leave data\.holdout out"):
        ablation.ablate(source.uri, config, output=str(tmp_path / "out"), shares=[0.5])
    with pytest.raises(UserError, match=r"--set-sizes: .* leave data\.holdout out"):
        image_counts.ablate(source.uri, config, output=str(tmp_path / "out"), counts=[1, 2])


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


def test_waves_are_refused(tmp_path: Path) -> None:
    """Variants that began from different words could not be compared."""
    store = Store(str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"service\.waves: in a study"):
        ablation.learn(store, [], CONFIG.override(["service.waves.first=20"]))
    assert not store.names("")


def test_words_of_an_earlier_study_are_not_compared(
    source: Manifest, tmp_path: Path, tiny_sd: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job ends early: one run has its word, one still that of other settings, and one none."""
    config = examples.config(tiny_sd, tiny_clip)
    rows, store = list(expand(source, config, ["base"], seeds=3, limit=1)), Store(str(tmp_path / "out"))

    def invert(place: str, config: JobConfig, *, output: str) -> int:
        facts = sources.facts(config.model)
        keys = plan.make(Manifest.open(place), config, facts, StoredResults()).todo
        examples.finish(store, "c0.base.0", **keys["c0.base.0"]._asdict())
        examples.fail(store, "c0.base.0")
        examples.finish(store, "c0.base.1", fingerprint="of other settings")
        return 1

    monkeypatch.setattr(ablation.run, "invert", invert)
    assert ablation.learn(store, rows, config) == (1, {"c0.base.0"})
    monkeypatch.setattr(ablation.run, "invert", lambda *_, **__: 143)
    assert ablation.learn(store, rows, config) == (143, set())


def test_another_study_leaves_the_manifest_of_a_running_one(
    source: Manifest, tmp_path: Path, tiny_sd: Path, tiny_clip: Path
) -> None:
    config, store = examples.config(tiny_sd, tiny_clip), Store(str(tmp_path / "out"))
    with Lock(store, print):
        for seeds in (1, 2):
            with pytest.raises(UserError, match="another job is learning into"):
                ablation.learn(store, list(expand(source, config, ["base"], seeds)), config)
    studies = [name for name in store.names("") if name.startswith("ablation_manifest-")]
    assert {Manifest.open(store.path(name)).num_rows for name in studies} == {2, 4}


def test_predicted_variants(source: Manifest, tmp_path: Path) -> None:
    """They need a predictor; they start from it and take few steps, or none."""
    with pytest.raises(
        UserError, match=r"'predicted' starts from a predictor; give its file with --predictor"
    ):
        ablation.choose_variants(["predicted"])
    chosen = ablation.choose_variants([], with_predictor=True)
    assert chosen == [*VARIANTS, "predicted", "predicted-10"]
    assert ablation.choose_variants(["predicted-10"], with_predictor=True) == ["base", "predicted-10"]
    rows = list(expand(source, CONFIG, ["base", "predicted", "predicted-10"], 1, predictor="/p.safetensors"))
    found = {row["concept_id"]: (row.get("init_from"), row.get("steps")) for row in rows}
    assert found["c0.predicted.0"] == ("/p.safetensors", 0)
    assert found["c0.predicted-10.0"] == ("/p.safetensors", 10)
    assert found["c0.base.0"] == (None, None)
    few = CONFIG.override(["training.steps=3"])
    rows = list(expand(source, few, ["predicted-10"], 1, limit=1, predictor="/p.safetensors"))
    assert rows[0]["steps"] == 3
    path = tmp_path / "runs.parquet"
    path.write_bytes(ablation.to_parquet(rows))
    checks.check(Manifest.open(str(path)), few)


@pytest.mark.slow
def test_an_image_that_is_gone_costs_its_concept_the_references_alone(
    source: Manifest, tmp_path: Path, tiny_sd: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = examples.config(tiny_sd, tiny_clip).override(["tracking.enabled=false"])
    rows, store = list(expand(source, config, ["base", "auto"], seeds=1)), Store(str(tmp_path / "out"))
    for row in rows:
        examples.finish(store, row["concept_id"], [[0.1] * 32], tags=row["tags"])
    for image in (tmp_path / "data").glob("c1-*"):
        image.unlink()
    ablation.compare(store, source, {row["concept_id"] for row in rows}, config, 0)
    found = pq.read_table(tmp_path / "out" / "ablation.parquet").to_pylist()
    counts = {row["name"]: row["concepts"] for row in found}
    assert counts == {"base": 2, "auto": 2, "initializer": 2, "training images": 1, "no word": 1}
    assert "left out of the references: c1: " in capsys.readouterr().out


@pytest.mark.slow
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
        word = np.random.default_rng(number).normal(0, 0.1, (1, 32)).tolist()
        examples.finish(store, row["concept_id"], word, tags=row["tags"], **score)
    examples.finish(
        store, "other", tags={"ablation_concept": "c0", "ablation_variant": "x", "ablation_seed": "0"}
    )
    todo = plan.Plan()
    job_record.begin(store, source, config, todo)
    ablation.compare(store, source, {row["concept_id"] for row in rows}, config, 1, shares=[0.5])

    found = pq.read_table(tmp_path / "out" / "ablation.parquet").to_pylist()
    assert [(row["name"], row["concepts"], row["runs"]) for row in found] == [
        ("base", 2, 4),
        ("auto", 2, 3),
        ("0.5 towards the initializer", 2, 4),
        ("initializer", 2, 2),
        ("training images", 2, 2),
        ("no word", 2, 2),
    ]
    first, second = 0.5 + 0.5 / 64, 0.5 + 4.5 / 64  # c0.base.0, c0.base.1; c1.base.0, c1.base.1
    assert found[0]["reconstruction"] == pytest.approx((first + second) / 2)
    assert found[1]["reconstruction_difference"] == pytest.approx(2 / 64)
    assert found[3]["reconstruction"] == 0.5, "of the initializer, as the results say"
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
    found = {score.name: score for score in ablation.references([concept], Models.load(config), config)}

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
    backbone = load_backbone(str(tiny_sd), dtype="float32")
    (reviewed,) = review(backbone, scorer, [Subject(nothing, None)], config)
    assert found["no word"].reconstruction == pytest.approx(reviewed.clip_image_similarity, abs=1e-5)
    assert found["no word"].editability == pytest.approx(reviewed.clip_text_similarity, abs=1e-5)


@pytest.mark.slow
def test_from_the_command_to_mlflow(
    source: Manifest, tmp_path: Path, tiny_sd: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    of_style = (
        "training.learnable_property=style",
        "training.style.learning_rate=0.3",
        "scoring.edit_prompts.style=['a face by {}']",  # the tiny encoder reads 22 tokens
    )
    given = examples.settings(tiny_sd, tiny_clip, "service.workers=1", *of_style)

    options = ("--variants", "progressive", "--seeds", "1", "--towards-initializer", "0.5")
    done = examples.ablate(source.uri, tmp_path, given, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = pq.read_table(tmp_path / "out" / "ablation.parquet").to_pylist()
    assert [(row["kind"], row["name"], row["runs"]) for row in found] == [
        ("variant", "base", 2),
        ("variant", "progressive", 2),
        ("between", "0.5 towards the initializer", 2),
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
    assert float(run.data.params["learning_rate"]) != 0.3, "styles are learned as objects"

    assert textinv("ablate", source.uri, *as_options(given), "--variants", "progresive") == 2
    assert "no variant 'progresive'; did you mean 'progressive'?" in capsys.readouterr().err
    assert textinv("ablate", source.uri, *as_options(given), "--variants", "predicted") == 2
    assert "'predicted' starts from a predictor; give its file with --predictor" in capsys.readouterr().err
