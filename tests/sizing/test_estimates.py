"""Estimates: what they must obey, whatever the tables say; and some that can be checked by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from textinv_ray.config.job import JobConfig
from textinv_ray.sizing import tables
from textinv_ray.sizing.estimates import STARTING_S, UTILISATION, Estimate, Learning, Work, expected_steps
from textinv_ray.util.errors import UserError

GPUS = [name for name in tables.devices() if name != "cpu"]
PRESETS = ["sd15", "sd21", "sdxl", "sd35", "flux", "sana", "klein"]


def estimate(preset: str, gpu: str, *settings: str, concepts: int = 100) -> Estimate:
    config = JobConfig.load(preset, settings)
    return Estimate.of(Work.of_equal(concepts, 5, config), config, gpu)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], 400),
        (
            [
                "stopping.rule=clip",
                "stopping.min_steps=50",
                "stopping.clip.every=20",
                "stopping.clip.patience=6",
            ],
            268,
        ),
        (["stopping.rule=dvar", "stopping.dvar.window=5", "stopping.min_steps=50"], 74.5),
        (["stopping.rule=clip", "stopping.min_steps=400"], 400),
    ],
    ids=["none", "clip", "dvar", "too late"],
)
def test_a_stopping_rule_shortens_learning(settings: list[str], expected: float) -> None:
    """By what was measured on the bundled model: 269 and 74 steps (docs/benchmarks.md)."""
    assert expected_steps(400, JobConfig.load("sd15", settings)) == pytest.approx(expected)


def test_a_start_with_a_first_look_of_its_own_ends_earlier() -> None:
    settings = [
        "stopping.rule=clip",
        "stopping.min_steps=50",
        "stopping.clip.every=20",
        "stopping.clip.patience=6",
    ]
    config = JobConfig.load("sd15", settings)
    cold, warm = (Work.of([Learning(5, 4, 400, first)], config) for first in (None, 0))
    assert warm.samples == 4 * expected_steps(400, config, 0) < cold.samples
    assert warm.evaluations == pytest.approx(1 + expected_steps(400, config, 0) / 20)


def test_the_longest_of_each_wave_take_turns() -> None:
    config = JobConfig.load("sd15")
    both = Work.of([Learning(5, 4, 100), Learning(5, 4, 70), Learning(5, 4, 30, wave=1)], config)
    assert both.longest == 4 * (100 + 30)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("preset", PRESETS)
def test_properties(preset: str, gpu: str) -> None:
    try:
        found = estimate(preset, gpu)
    except UserError as error:
        needed, had = str(error).split(" GB for one concept")[0].split()[-1], tables.device(gpu).memory
        assert had is not None
        assert float(needed) > had
        return
    memory, config = found.device.memory, JobConfig.load(preset)
    assert memory is not None
    assert found.memory_gb is not None
    assert found.memory_gb <= memory
    assert 1 <= found.pack <= config.pack.max_size
    assert math.log2(found.pack).is_integer()
    is_measured = gpu == "h200" and preset in ("sd15", "sdxl")
    assert found.source.startswith("measured: " if is_measured else "computed, not measured: ")
    # More concepts take as much time each, and more GPUs less time, but never less money.
    assert estimate(preset, gpu, concepts=200).hours == pytest.approx(2 * found.hours)
    walls = [found.wall_hours(count) for count in (1, 2, 4, 8, 200)]
    assert walls == sorted(walls, reverse=True)
    assert walls[0] == pytest.approx(found.hours + STARTING_S / 3600)
    assert walls[-1] >= found.longest_hours
    paid = [found.gpu_hours(count) for count in (1, 2, 4, 8, 200)]
    assert paid == sorted(paid)
    # Half the steps, half the training; smaller pictures, more of them at a time.
    assert estimate(
        preset, gpu, f"training.steps={config.training.steps // 2}"
    ).training_hours == pytest.approx(found.training_hours / 2)
    smaller = estimate(preset, gpu, "data.resolution=256", "review.resolution=256")
    assert smaller.hours < found.hours
    assert smaller.pack >= found.pack


def test_a_sample_by_hand() -> None:
    """Stable Diffusion 1.5: 1669 GFLOP of the UNet and 27 of the text encoder (forward and backward), at 512 px."""
    found = estimate("sd15", "a100-80")
    assert found.samples_per_second == pytest.approx(UTILISATION * 312e12 / 1.696e12, rel=0.001)
    assert found.training_hours == pytest.approx(100 * 12000 / found.samples_per_second / 3600)


def test_what_fits_is_what_the_page_on_sdxl_says() -> None:
    """5.31 GB a sample of 1024 px, 0.63 with checkpointed activations; text encoders 0.11 GB more."""
    assert (estimate("sdxl", "t4").pack, estimate("sdxl", "t4").checkpointed) == (1, False)
    tight = estimate("sdxl", "t4", "training.batch_size=4")
    assert (tight.pack, tight.checkpointed) == (2, True)
    roomy = estimate("sdxl", "a100-80")
    assert roomy.memory_gb == pytest.approx(2 + 6.94 + 8 * (5.305 + 0.109), abs=0.02)


def test_a_model_that_does_not_fit() -> None:
    with pytest.raises(
        UserError, match=r"FLUX.1-dev needs \d+\.\d GB for one concept .*t4 has 15.8: its weights"
    ):
        estimate("flux", "t4")
    with pytest.raises(UserError, match=r"training.batch_size below 64 or a smaller data.resolution"):
        estimate("sdxl", "t4", "training.batch_size=64")


def test_settings_that_the_model_cannot_have() -> None:
    with pytest.raises(UserError, match=r"data.resolution: images of Flux.1 have sides of a multiple of 16"):
        estimate("flux", "h200", "data.resolution=520")


def test_a_pack_that_does_not_fit() -> None:
    found = estimate("sdxl", "h100", "pack.size=64")
    assert found.pack < 64
    assert found.notes == (f"pack.size is 64, but no more than {found.pack} fit",)


def test_no_steps_at_all() -> None:
    """Then pictures and scores are what is left."""
    found = estimate("sd15", "h100", "training.steps=0")
    assert found.training_hours == 0 < found.review_hours == found.hours
    assert estimate("mini", "cpu", "training.steps=0").concepts_per_hour == math.inf


def test_another_pack_and_encoders_that_do_not_learn() -> None:
    assert estimate("sd15", "h100", "pack.size=3").pack == 3
    some, all_encoders = estimate("sd35", "h200", 'training.encoders=["clip_l"]'), estimate("sd35", "h200")
    assert some.samples_per_second > all_encoders.samples_per_second
    assert some.pack >= all_encoders.pack


def test_a_gpu_without_bfloat16_is_noted() -> None:
    (note,) = estimate("sana", "v100").notes
    assert "no bfloat16" in note
    assert not estimate("sana", "a100-80").notes


def test_measured_throughput_takes_precedence() -> None:
    found = estimate("sd15", "cpu")
    assert found.samples_per_second == 0.15
    assert found.source.startswith("measured: ")
    assert found.memory_gb is not None
    bundled = estimate("mini", "cpu")
    assert bundled.review_hours == 0
    assert bundled.source.startswith("measured: ")
    with pytest.raises(UserError, match="bundled model, for CPUs"):
        estimate("mini", "h100")


def test_a_copy_of_a_larger_model_of_a_family_costs_as_that(tiny_sd3: Path, tmp_path: Path) -> None:
    for layers, name in ((24, "medium"), (38, "large"), (2, "medium")):
        folder = tmp_path / str(layers)
        shutil.copytree(tiny_sd3, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        file = folder / "transformer" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "num_layers": layers}))
        config = JobConfig.load(
            "sd35", [f"model.path={folder}", "data.resolution=1024", "review.resolution=1024"]
        )
        found = Estimate.of(Work.of_equal(10, 5, config), config, "a100-80")
        assert found.notes[-1].endswith(f"costs are taken from stabilityai/stable-diffusion-3.5-{name}")
        known = estimate(
            "sd35", "a100-80", f"model.path=stabilityai/stable-diffusion-3.5-{name}", concepts=10
        )
        assert found.hours == pytest.approx(known.hours)


def test_another_checkpoint_of_a_family(tiny_sd: Path) -> None:
    """A folder of the user's: by its family, which is said."""
    config = JobConfig.load("sd15", [f"model.path={tiny_sd}", "model.variant=null"])
    small = Estimate.of(Work.of_equal(10, 5, config), config, "h100")
    config = config.override(["data.resolution=512", "review.resolution=512"])
    found = Estimate.of(Work.of_equal(10, 5, config), config, "h100")
    assert small.hours < found.hours, "its pictures are its own"
    (note,) = found.notes
    assert (
        note
        == f"{tiny_sd} isn't in the table: its costs are taken from stable-diffusion-v1-5/stable-diffusion-v1-5"
    )
    assert found.hours == pytest.approx(estimate("sd15", "h100", concepts=10).hours)
