"""Checkpoints, averages, schedules and effects of the trainers."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.commands import REPOSITORY
from training.common import (
    Averaged,
    Checkpoint,
    Progress,
    batches,
    learning_rate,
    profiled,
    to_pixels,
    to_tensor,
)
from training.effects import EFFECTS, apply_effect


def trained(steps: int, folder: Path, resume: bool) -> nn.Module:
    """A little training whose state is a Checkpoint's."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters(), 0.1)
    average = Averaged(module, 0.9)
    checkpoint = Checkpoint(folder, module, optimizer, average)
    first = checkpoint.load() if resume else 0
    for step in range(first, steps):
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        module(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(module)
    checkpoint.save(steps)
    average.copy_to(module)
    return module


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = trained(6, tmp_path / "whole", resume=False)
    trained(3, tmp_path / "parts", resume=True)
    parts = trained(6, tmp_path / "parts", resume=True)
    for expected, found in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


TEAM_SCRIPT = """
import sys, torch
from torch import nn
from tests.support.commands import REPOSITORY
from training.common import Team

team = Team()
torch.manual_seed(0)
layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
images = torch.randn(6, 3, 8, 8)
layer(team.share(images)).square().mean().backward()
team.average_gradients(list(layer.parameters()))
assert team.agree(float(team.rank)) == 0.0
assert layer.weight.grad.stride() == layer.weight.stride()
if team.leads:
    alone = nn.Conv2d(3, 4, 3)
    alone.load_state_dict(layer.state_dict())
    alone(images).square().mean().backward()
    torch.testing.assert_close(layer.weight.grad, alone.weight.grad)
    torch.testing.assert_close(layer.bias.grad, alone.bias.grad)
    print("equal for", team.size)
team.wait()
"""


@pytest.mark.slow  # starts processes that import torch
@pytest.mark.parametrize("size", [1, 2])
def test_a_team_has_the_gradients_of_one_process(size: int, tmp_path: Path) -> None:
    script = tmp_path / "team.py"
    script.write_text(TEAM_SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    ended = subprocess.run(
        [*launch, str(script)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert f"equal for {size}" in ended.stdout


def test_batches_resume_where_they_were() -> None:
    every = [batch.tolist() for batch in itertools.islice(batches(10, 3, 1, 0), 7)]
    assert [batch.tolist() for batch in itertools.islice(batches(10, 3, 1, 4), 3)] == every[4:]
    assert len(set(itertools.chain(*every[:3]))) == 9


def test_learning_rate_warms_up_holds_and_falls() -> None:
    assert learning_rate(0, 0, 1.0, warmup=10) == pytest.approx(0.1)
    assert learning_rate(50, 0.5, 1.0, warmup=10) == 1.0
    assert learning_rate(90, 0.9, 1.0, warmup=10, cooldown=0.2) == pytest.approx(0.5)
    assert learning_rate(100, 1.1, 1.0, warmup=10) == 0.0


def test_pixels_survive_the_way_to_the_model_and_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_pixels(to_tensor(pixels)), pixels)


@pytest.mark.parametrize("effect", EFFECTS)
def test_effects_change_the_picture(effect: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    drawn = apply_effect(image, effect)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (drawn != image).any()


def test_lines_say_how_long_steps_were_waited_for(tmp_path: Path) -> None:
    def slow() -> Iterator[int]:
        for step in range(4):
            until = time.perf_counter() + 0.02
            while time.perf_counter() < until:
                pass
            yield step

    progress = Progress(tmp_path, "model", every=2)
    for step in progress.timed(slow()):
        progress.update(step + 1, torch.tensor(0.5), 8)
    lines = [json.loads(line) for line in progress.log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(0.5 < line["waited"] <= 1 for line in lines)

    plain = Progress(tmp_path / "plain", "model", every=1)
    plain.update(1, torch.tensor(0.5), 8)
    assert "waited" not in json.loads(plain.log.read_text())


def test_a_profile_says_what_steps_spend_time_on(tmp_path: Path) -> None:
    path = tmp_path / "profile.txt"
    with profiled(path, skipped=1) as profiler:
        for _ in range(10):
            torch.ones(8, 8) @ torch.ones(8, 8)
            profiler.step()
    assert "aten::mm" in path.read_text()
