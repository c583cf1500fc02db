"""Train mini-clip, the CLIPModel that scores: images against captions, and images against images of one identity.

    python -m training.clip [--preset cpu|gpu] [--steps N] [--hours H]

The contrastive loss of CLIP (Radford et al. 2021, figure 3) over (image, caption) pairs, plus the same loss between two
views of one identity (other background, flip, scale, expression), which is what scoring a learned word asks of it. Its
data, seed, text tower and shape are its own: it shares no weight with mini-sd, so no model marks its own work.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from training import captions as characters
from training.common import (
    BUILD,
    MODELS,
    PRESETS,
    Averaged,
    Checkpoint,
    Data,
    Preset,
    Progress,
    Schedule,
    Team,
    autocast,
    default_preset,
    device,
    learning_rate,
    save_half,
)
from training.tokenizer import MAX_LENGTH
from training.tokenizer import load as load_tokenizer
from training.tokenizer import save as save_tokenizer

PEAK_RATE = 1e-3
FOLDER = BUILD / "clip"
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def build(preset: Preset, tokenizer: CLIPTokenizer) -> CLIPModel:
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=128,
    )
    vision = CLIPVisionConfig(
        hidden_size=preset.clip_hidden,
        intermediate_size=3 * preset.clip_hidden,
        num_hidden_layers=preset.clip_layers,
        num_attention_heads=6 if preset.clip_hidden % 64 else 8,
        image_size=64,
        patch_size=8,
        projection_dim=128,
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
    )


def contrastive(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross entropy over the cosine similarities of matching rows of (B, D) and (B, D)."""
    logits = scale * F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def loss_of(model: CLIPModel, first: Tensor, second: Tensor, ids: Tensor) -> Tensor:
    with autocast():
        images = model.get_image_features(torch.cat([first, second])).pooler_output
        texts = model.get_text_features(ids).pooler_output
    one, other = images.chunk(2)
    scale = model.logit_scale.exp().clamp(max=100)
    return contrastive(one, texts, scale) + contrastive(one, other, scale)


Pair = tuple[np.ndarray, np.ndarray, Tensor]
"""Indices (B,) of one view and of another of B identities, and token ids (B, T) of a caption of the first."""


class Pairs(IterableDataset[Pair]):
    """Two views of each of `size` different identities and a caption of the first, step after step without end."""

    def __init__(self, data: Data, tokenizer: CLIPTokenizer, size: int, first: int = 0) -> None:
        self.data, self.tokenizer, self.size, self.first = data, tokenizer, size, first
        views: dict[int, list[int]] = defaultdict(list)
        for index, row in enumerate(data.rows):
            views[row["identity"]].append(index)
        self.views = [v for v in views.values() if len(v) > 1]

    def __iter__(self) -> Iterator[Pair]:
        info = get_worker_info()
        step, stride = (self.first + info.id, info.num_workers) if info else (self.first, 1)
        while True:
            yield self.pair(step)
            step += stride

    def pair(self, step: int) -> Pair:
        rng = np.random.default_rng((11, step))
        picked = [
            rng.choice(self.views[i], 2, replace=False)
            for i in rng.choice(len(self.views), self.size, replace=False, shuffle=False)
        ]
        first, second = np.array(picked).T
        texts = []
        for index in first:
            row = self.data.rows[index]
            texts.append(f"{characters.caption(row, rng)} {row.get('effect', '')}".strip())
        ids = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return first, second, ids


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default=default_preset())
    parser.add_argument("--steps", type=int)
    parser.add_argument("--hours", type=float, default=1e9, help="be done within this time")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    schedule = Schedule(options.steps or preset.clip_steps, options.hours, Team())

    torch.manual_seed(1)
    data, tokenizer = Data(BUILD / "drawings"), load_tokenizer()
    model = build(preset, tokenizer).to(device())
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_RATE, (0.9, 0.98), weight_decay=0.05, fused=True)
    average = Averaged(model, 0.998)
    checkpoint, progress = Checkpoint(FOLDER, model, optimizer, average), Progress(FOLDER, "clip")
    first_step = checkpoint.load()
    pairs = Pairs(data, tokenizer, preset.clip_batch, first_step)
    loader = DataLoader(pairs, batch_size=None, num_workers=preset.workers // 2, collate_fn=lambda pair: pair)
    for step, (first, second, ids) in enumerate(loader, first_step):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, schedule.progress(step), PEAK_RATE, cooldown=0.5)
        loss = loss_of(model, data.batch(first), data.batch(second), ids.to(device()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)
        progress.update(step + 1, loss, 2 * preset.clip_batch)
        last = schedule.progress(step + 1) >= 1
        if (step + 1) % 500 == 0 or last:
            checkpoint.save(step + 1)
        if last:
            break

    average.copy_to(model)
    folder = MODELS / "mini-clip"
    save_half(model, folder)
    save_tokenizer(tokenizer, folder)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    processor.save_pretrained(folder)
    print(json.dumps({"scorer": str(folder.name), "steps": step + 1}))


if __name__ == "__main__":
    main()
