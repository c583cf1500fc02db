"""Numbers of images: the runs, the images they are compared with, and the whole study from the command."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from tests.support import examples
from tests.support.commands import as_options, textinv
from textinv_ray.concepts import prepare
from textinv_ray.config.job import JobConfig
from textinv_ray.experiments import ablation, ablation_table, image_counts
from textinv_ray.experiments.ablation_table import Score, table
from textinv_ray.experiments.image_counts import expand
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake import plan
from textinv_ray.service.models import sources
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store, sample_name
from textinv_ray.util.errors import UserError

CONFIG = JobConfig.load("mini")


@pytest.fixture
def source(tmp_path: Path) -> Manifest:
    """Three concepts, of three, two and three images."""
    few = {"c1": {"images": ["c1-0.png", "c1-1.png"]}}
    return Manifest.open(str(examples.write_manifest(tmp_path / "data", 3, few)))


def test_a_run_has_the_first_images(source: Manifest, tmp_path: Path) -> None:
    """Only concepts with enough images for all counts, so that differences are between the same concepts."""
    runs = {row["concept_id"]: row for row in expand(source, CONFIG, [1, 3], seeds=2)}
    assert list(runs) == [f"c{c}.images-{size}.{seed}" for c in (0, 2) for size in (1, 3) for seed in (0, 1)]
    one, three = runs["c0.images-1.0"], runs["c0.images-3.0"]
    assert three["images"] == [str(tmp_path / "data" / f"c0-{number}.png") for number in range(3)]
    assert one["images"] == three["images"][:1]
    assert one["seed"] == three["seed"] != runs["c0.images-1.1"]["seed"]
    assert one["prompts"] == ["a photo of {}"], "the pictures that are kept are those that are scored"
    assert list(expand(source, CONFIG, [1, 4], seeds=1)) == []


def test_counts_as_people_write_them() -> None:
    assert image_counts.parse("5, 1,3,1") == [1, 3, 5]
    for wrong in ("", "0,1", "1;3", "many"):
        with pytest.raises(UserError, match=r"--set-sizes .*such as 1,3,5,10"):
            image_counts.parse(wrong)


@pytest.mark.parametrize("crops", [1, 2])
def test_all_runs_are_compared_with_the_images_that_none_learned_from(
    source: Manifest, tmp_path: Path, tiny_sd: Path, tiny_clip: Path, crops: int
) -> None:
    """With all crops of them, as in the review."""
    random_crops = ["data.crop=random", f"data.crops_per_image={crops}"] if crops > 1 else []
    config, store = examples.config(tiny_sd, tiny_clip, *random_crops), Store(str(tmp_path / "out"))
    runs = list(expand(source, config, [1, 2], seeds=1, limit=1))
    for number, row in enumerate(runs):
        count = len(row["images"])
        examples.finish(
            store, row["concept_id"], tags=row["tags"], images=count, clip_text_similarity=count / 8
        )
        for step in (0, 2):
            grid = examples.grid(10 * number + step, columns=2, rows=1)
            store.write_concept(row["concept_id"], sample_name(step), grid)
    wanted = {row["concept_id"] for row in runs}
    found = {score.name: score for score in image_counts.scores(store, source, wanted, [1, 2], config)}

    scorer = Scorer.load(str(tiny_clip))
    original = next(source.rows())
    concept = prepare.make(original, config, base=source.base, resolution=16, model_identity="model-1")
    assert concept.images.shape[:2] == (3, crops)
    unseen = scorer.image_features(concept.images[2])
    learned_from = torch.cat([scorer.image_features(of_image) for of_image in concept.images[:2]])
    for name, seed in (("images-1", 2), ("images-2", 12), ("initializer", 0)):
        pixels = np.asarray(Image.open(io.BytesIO(examples.grid(seed, columns=2, rows=1))))
        samples = scorer.image_features(np.stack([pixels[:, :8], pixels[:, 8:]]))
        assert found[name].reconstruction == pytest.approx(float((samples @ unseen.T).mean()), abs=1e-5)
    ceiling = np.mean([float(one @ other) for one in learned_from for other in unseen])
    assert found["other images"].reconstruction == pytest.approx(ceiling, abs=1e-5)
    assert (found["images-1"].editability, found["images-2"].editability) == (1 / 8, 2 / 8)

    # With no image left over, all of them
    reference = image_counts.ReferenceImages(concept, 3, scorer)
    assert len(reference.features) == 3 * crops
    assert reference.ceiling is None


class CountedFiles(LocalFileSystem):
    """Local files under counted://, and how often each was read."""

    protocol = "counted"
    reads: ClassVar[Counter[str]] = Counter()

    def cat_file(self, path: str, *args: Any, **options: Any) -> bytes:
        self.reads[path] += 1
        return bytes(super().cat_file(path, *args, **options))


def test_the_model_is_read_once_however_many_concepts(
    source: Manifest, tmp_path: Path, tiny_sd: Path, tiny_clip: Path
) -> None:
    fsspec.register_implementation("counted", CountedFiles)
    config = examples.config(tiny_sd, tiny_clip, f"model.path=counted://{tiny_sd}")
    store, reads = Store(str(tmp_path / "out")), []
    for limit in (1, 3):
        runs = list(expand(source, config, [1, 2], seeds=1, limit=limit))
        for row in runs:
            count = len(row["images"])
            examples.finish(store, row["concept_id"], tags=row["tags"], images=count)
        CountedFiles.reads.clear()
        found = image_counts.scores(store, source, {row["concept_id"] for row in runs}, [1, 2], config)
        assert len({score.concept for score in found}) == limit
        reads.append(CountedFiles.reads.total())
    assert reads[0] == reads[1] > 0


def test_plot(tmp_path: Path) -> None:
    runs = [
        Score("variant", f"images-{size}", concept, "0", size / 10 + level, 0.5 - size / 100)
        for size in (1, 3, 5)
        for concept, level in (("a", 0.0), ("b", 0.1))
    ]
    for scores in (runs, runs[::2], [*runs, Score("reference", "initializer", "a", "", 0.1, 0.3)]):
        found = table(scores, "images-5")
        image_counts.plot(found, tmp_path / "plot.png")
        pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, "something was drawn"
    assert "reconstruction - images-5" in ablation_table.text(found, "images-5")


def test_from_the_command(
    source: Manifest, tmp_path: Path, tiny_sd: Path, tiny_clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """All runs are finished: how those of a study are learned is tested in test_ablation.py."""
    given = examples.settings(tiny_sd, tiny_clip, "tracking.enabled=false", "review.images_per_prompt=2")
    config, store = JobConfig.load("mini", given), Store(str(tmp_path / "out"))
    rows = list(expand(source, config, [1, 2], seeds=1))
    runs = tmp_path / "runs.parquet"
    runs.write_bytes(ablation.to_parquet(rows))
    todo = plan.make(Manifest.open(str(runs)), config, sources.facts(config.model), StoredResults()).todo
    for row in rows:
        changes = {"tags": row["tags"], "images": len(row["images"]), **todo[row["concept_id"]]._asdict()}
        examples.finish(store, row["concept_id"], **changes)

    study = ["ablate", source.uri, *as_options(given)]
    assert textinv(*study, "--set-sizes", "1,2", "--seeds", "1", "-o", store.uri) == 0
    assert "nothing to do: all 6 concepts are done" in capfd.readouterr().out
    found = pq.read_table(tmp_path / "out" / "ablation.parquet").to_pylist()
    assert [(row["kind"], row["name"], row["runs"]) for row in found] == [
        ("variant", "images-1", 3),
        ("variant", "images-2", 3),
        ("reference", "initializer", 3),
        ("reference", "other images", 2),
    ]
    assert (tmp_path / "out" / "set_sizes.png").exists()

    study += ["-o", str(tmp_path / "none")]
    assert textinv(*study, "--set-sizes", "1,9") == 2
    assert "no concept has 9 images" in capfd.readouterr().err
    assert textinv(*study, "--set-sizes", "1,2", "--variants", "base") == 2
