"""`textinv predictor fit --refine`: steps through the model on the images of the outputs' words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import catalogue, examples
from tests.support.commands import as_options, textinv
from textinv_ray.concepts import predictor
from textinv_ray.concepts.predictor import Example, Predictor
from textinv_ray.config.job import JobConfig
from textinv_ray.service.library import refinement
from textinv_ray.service.models import sources
from textinv_ray.util.errors import UserError


@pytest.fixture
def config(tiny_sd: Path, tiny_clip: Path) -> JobConfig:
    return examples.config(tiny_sd, tiny_clip)


def words(config: JobConfig) -> list[Example]:
    return catalogue.examples(12, scorer=config.scoring.model, model=sources.facts(config.model).identity)


@pytest.mark.slow
def test_the_command(
    config: JobConfig, tiny_sd: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image is missing; its word goes without, and the others' steps are taken."""
    uri, file = catalogue.output(tmp_path / "out", words(config)), tmp_path / "p.safetensors"
    manifest = examples.write_manifest(tmp_path / "data", 12)
    (tmp_path / "data" / "c3-0.png").unlink()
    settings = as_options(examples.settings(tiny_sd, tiny_clip))
    command = ("predictor", "fit", uri, "-o", str(file), "--refine", "3", "--manifest", str(manifest))
    assert textinv(*command, *settings) == 0
    said = capsys.readouterr().out
    (made,) = Predictor.from_bytes(file.read_bytes()).refinements
    assert (made.steps, made.words + len(made.left_out)) == (3, 11)
    assert f"3 steps through the model on {made.words} words" in said
    assert f"{made.loss_before:.5f}, then {made.loss:.5f}" in said
    assert "without 1 words" in said


def test_a_manifest_that_nothing_would_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert textinv("predictor", "fit", str(tmp_path), "--manifest", "m.parquet") == 2
    assert "--manifest is for --refine" in capsys.readouterr().err


def test_what_cant_be_refined(config: JobConfig, tmp_path: Path) -> None:
    made = words(config)
    fitted, uri = predictor.fit(made), catalogue.output(tmp_path / "out", made)
    with pytest.raises(UserError, match=r"no job\.json says where they are: give --manifest"):
        refinement.refine([uri], made, fitted, config, 1)
    few = str(examples.write_manifest(tmp_path / "data", 9))
    with pytest.raises(UserError, match=r"images of 9 of the 12 words were found in .*; at least 10"):
        refinement.refine([uri], made, fitted, config, 1, [few])
    other = predictor.fit(catalogue.examples(12, scorer=config.scoring.model))
    with pytest.raises(UserError, match="is not the model that the words were learned for"):
        refinement.refine([uri], made, other, config, 1, [few])
