"""Train mini-judge, the second scorer: a ViTModel that tells characters apart by pictures alone.

    python -m training.judge [--preset cpu|gpu] [--steps N] [--hours H]

NT-Xent (Chen et al. 2020, "SimCLR", section 2.1) between two views of one identity (other background, expression,
accessory), each shifted, flipped, blurred and made noisy. There are no captions, and the other identities of a batch
are of few drawing styles, so that the style alone tells nobody apart. It shares no weight, seed, shape or batch with
mini-clip, by which words are chosen, nor with mini-sd, which draws: it is the judge that had no part in the choice.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from training.common import (
    BUILD,
    MODELS,
    PRESETS,
    Averaged,
    Checkpoint,
    Data,
    Progress,
    Schedule,
    Team,
    autocast,
    default_preset,
    device,
    learning_rate,
    save_half,
)

STYLES_PER_BATCH, IDENTITIES_PER_STYLE = 4, 24
PEAK_RATE, WARMUP = 1e-3, 60
TEMPERATURE = 0.1
FOLDER = BUILD / "judge"
SEED = 4242
MAX_SHIFT = 4
"""Pixels."""


def build() -> ViTModel:
    config = ViTConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        image_size=64,
        patch_size=8,
        hidden_act="gelu_pytorch_tanh",
    )
    return ViTModel(config, add_pooling_layer=False)


def nt_xent(features: Tensor) -> Tensor:
    """Mean cross entropy of finding the other view among all others; rows i and i + B of (2 B, D) are a pair."""
    features = F.normalize(features.float(), dim=-1)
    logits = features @ features.T / TEMPERATURE
    logits.fill_diagonal_(-torch.inf)
    half = len(features) // 2
    target = torch.arange(2 * half, device=features.device).roll(half)
    return F.cross_entropy(logits, target)


class Views:
    """Two different views of each identity of a batch."""

    def __init__(self, data: Data) -> None:
        self.data = data
        views: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, row in enumerate(data.rows):
            views[row["style"]][row["identity"]].append(index)
        self.by_style = {
            style: [found for found in of_style.values() if len(found) > 1]
            for style, of_style in sorted(views.items())
        }
        self.styles = [s for s, found in self.by_style.items() if len(found) >= IDENTITIES_PER_STYLE]

    def batch(self, step: int) -> Tensor:
        """float32 (2 B, 3, 64, 64) in [-1, 1], changed at random."""
        rng = np.random.default_rng((SEED, step))
        pairs = []
        for style in rng.choice(self.styles, STYLES_PER_BATCH, replace=False):
            known = self.by_style[style]
            for identity in rng.choice(len(known), IDENTITIES_PER_STYLE, replace=False):
                pairs.append(rng.choice(known[identity], 2, replace=False))
        indices = np.array(pairs).T.ravel()
        return changed(self.data.batch(indices), torch.Generator().manual_seed(SEED + step))


def changed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to MAX_SHIFT pixels, and by chance flipped, blurred and made noisy."""
    count, _, height, width = images.shape
    padded = F.pad(images, (MAX_SHIFT,) * 4, mode="replicate")
    shifts = torch.randint(0, 2 * MAX_SHIFT + 1, (count, 2), generator=generator).tolist()
    out = torch.stack([padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(shifts)])
    flip, blur, noisy = torch.rand(3, count, 1, 1, 1, generator=generator).to(images.device)
    out = torch.where(flip < 0.5, out.flip(-1), out)
    out = torch.where(blur < 0.3, F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), 3, 1), out)
    noise = torch.randn(out.shape, generator=generator).to(images.device)
    return torch.where(noisy < 0.3, out + 0.1 * noise, out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default=default_preset())
    parser.add_argument("--steps", type=int)
    parser.add_argument("--hours", type=float, default=1e9, help="be done within this time")
    options = parser.parse_args()
    schedule = Schedule(options.steps or PRESETS[options.preset].judge_steps, options.hours, Team())

    torch.manual_seed(SEED)
    views, model = Views(Data(BUILD / "drawings")), build().to(device())
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_RATE, (0.9, 0.98), weight_decay=0.05, fused=True)
    average = Averaged(model, 0.99)
    checkpoint, progress = Checkpoint(FOLDER, model, optimizer, average), Progress(FOLDER, "judge", every=20)
    for step in itertools.count(checkpoint.load()):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, schedule.progress(step), PEAK_RATE, WARMUP, cooldown=0.5)
        images = views.batch(step)
        with autocast():
            features = model(images).last_hidden_state[:, 0]
        loss = nt_xent(features)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)
        progress.update(step + 1, loss, len(images))
        last = schedule.progress(step + 1) >= 1
        if (step + 1) % 100 == 0 or last:
            checkpoint.save(step + 1)
        if last:
            break

    average.copy_to(model)
    folder = MODELS / "mini-judge"
    save_half(model, folder)
    ViTImageProcessor(
        size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    print(json.dumps({"judge": folder.name, "steps": step + 1}))


if __name__ == "__main__":
    main()
