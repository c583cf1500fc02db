"""What the UNet's trainer weighs, and that recipes train what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor

from tests.support import drawings
from training import unet
from training.common import MODELS
from training.model import SCHEDULE
from training.unet import PREDICTIONS, weighted_loss


class Predicting:
    """Stands where a model would predict latents that are off by `error`, in terms of what its schedule says."""

    def __init__(self, prediction: str, latents: Tensor, alphas: Tensor, error: Tensor) -> None:
        self.schedule = SCHEDULE | PREDICTIONS[prediction]
        self._latents, self._error, self._a = latents, error, alphas[:, None, None, None]

    def predict(self, noisy: Tensor, *_: Any) -> Tensor:
        guess = self._latents + self._error
        noise = (noisy - self._a.sqrt() * guess) / (1 - self._a).sqrt()
        if self.schedule["prediction_type"] == "epsilon":
            return noise
        return self._a.sqrt() * noise - (1 - self._a).sqrt() * guess


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_errors_of_the_latents_count_the_same_whatever_is_predicted(prediction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, noise, error = torch.randn((3, 8, 4, 16, 16), generator=generator, dtype=torch.float64)
    alphas = torch.linspace(0.03, 0.97, 8, dtype=torch.float64)
    model: Any = Predicting(prediction, latents, alphas, error)
    nothing: Any = None
    loss = weighted_loss(model, latents, noise, nothing, alphas, nothing, nothing, (0.5, 4.0))
    snr = alphas / (1 - alphas)
    expected = snr.clamp(0.5, 4.0) * error.pow(2).mean((1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_only_v_learns_from_pure_noise() -> None:
    """At the last timestep of zero terminal SNR the noise is what is seen; an error of it has no weight."""
    scheduler = DDPMScheduler(**SCHEDULE | PREDICTIONS["v-zero-snr"])
    alphas = scheduler.alphas_cumprod[-1:]
    assert float(alphas) == 0
    latents, noise = torch.ones(2, 1, 4, 16, 16)
    model: Any = Predicting("v-zero-snr", latents, alphas, torch.ones(1))
    nothing: Any = None
    capped = weighted_loss(model, latents, noise, nothing, alphas, nothing, nothing)
    assert float(capped) == 0
    assert float(weighted_loss(model, latents, noise, nothing, alphas, nothing, nothing, largest=None)) == 1


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Path:
    """The folder of a run of two steps of four samples."""
    data = unet.Data(drawings.write(folder / "drawings"))
    drawings.write(folder / "drawings" / "heldout")
    (folder / "vae").mkdir()
    np.save(folder / "vae" / "moments.npy", np.zeros((len(data), 8, 16, 16), np.float16))
    monkeypatch.setattr(unet, "BUILD", folder)
    run = folder / "run"
    fixed = ["--trial", "--batch", "4", "--steps", "2", "--folder", str(run)]
    monkeypatch.setattr(sys, "argv", ["unet", *fixed, *options])
    unet.main()
    return run


@pytest.mark.slow
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_plain_class_loads_what_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prediction: str
) -> None:
    folder = trained(tmp_path, monkeypatch, "--fresh", "--prediction", prediction)
    first, last = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    assert (first["samples"], last["samples"]) == (0, 8)
    assert np.isfinite(first["by_noise"] + last["by_noise"]).all()
    pipe = StableDiffusionPipeline.from_pretrained(folder / "mini-sd", safety_checker=None)
    assert SCHEDULE | PREDICTIONS[prediction] == {
        name: pipe.scheduler.config[name] for name in SCHEDULE | PREDICTIONS[prediction]
    }
    shipped = StableDiffusionPipeline.from_pretrained(MODELS / "mini-sd", safety_checker=None)
    same = [
        torch.equal(one, other)
        for one, other in zip(pipe.unet.parameters(), shipped.unet.parameters(), strict=True)
        if one.ndim > 1
    ]
    assert not any(same), "the UNet began with random weights"


@pytest.mark.slow
def test_the_text_encoder_can_stay_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, names included: its file is in the repository once for both bundled models."""
    folder = trained(tmp_path, monkeypatch, "--rate", "0.1", "--text", "0")
    for part, same in (("text_encoder/model", True), ("unet/diffusion_pytorch_model", False)):
        written, shipped = (
            (root / f"{part}.safetensors").read_bytes() for root in (folder / "mini-sd", MODELS / "mini-sd")
        )
        assert (written == shipped) is same
