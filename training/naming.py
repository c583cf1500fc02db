"""Names: how one token comes to mean a whole character while mini-sd is trained.

In Stable Diffusion one word can carry a whole person, because its training text was full of names. Learning several
thousand names here one by one would take more images than a small model sees. So while it trains, the vector of a name
is computed from the identity's features by a small network, shared by all identities: each image teaches every name.
At the end `write_names` writes these vectors into the rows of the named identities' tokens, and the network is only
needed again to train further. Nothing of it is used by, or known to, inversion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

NAMES_FILE = Path(__file__).with_name("names.safetensors")
WORD_NORM = 0.4
"""Norm of every embedding, as in CLIP ViT-L/14's table, so that learning rates mean the same here."""

NORMS = 0.8, 2.0
"""Of a name in training, relative to WORD_NORM."""


class NameEncoder(nn.Module):
    """Categorical features and nine colour values of an identity -> a word vector (B, D) of norm WORD_NORM."""

    def __init__(self, features: Sequence[str], dimension: int, hidden: int = 512) -> None:
        super().__init__()
        self.index = {feature: number for number, feature in enumerate(sorted(features))}
        self.table = nn.EmbeddingBag(len(self.index), hidden, mode="sum")
        nn.init.normal_(self.table.weight, std=0.3)
        self.colours = nn.Linear(9, hidden)
        self.layers = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, dimension)
        )

    def inputs(
        self, features: Sequence[Sequence[str]], rgb: Sequence[Sequence[float]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`inputs_of` them, on the module's device."""
        flat, offsets, colours = inputs_of(self.index, features, rgb)
        where = self.colours.weight.device
        return flat.to(where), offsets.to(where), colours.to(where)

    def forward(self, flat: Tensor, offsets: Tensor, colours: Tensor) -> Tensor:
        with torch.autocast(colours.device.type, enabled=False):
            return F.normalize(self.raw(flat, offsets, colours), dim=-1) * WORD_NORM

    def raw(self, flat: Tensor, offsets: Tensor, colours: Tensor) -> Tensor:
        """Vectors (B, D) of any norm."""
        return self.layers(self.table(flat, offsets) + self.colours(colours))

    def save(self, path: Path) -> None:
        """The weights in float16, and which feature each row of the table is."""
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, path, {"features": json.dumps(list(self.index))})

    @torch.no_grad()
    def restore(self, path: Path) -> None:
        """Load what `save` wrote; features and columns that were not known then keep what they have here."""
        with safe_open(path, "pt") as file:
            rows = {feature: row for row, feature in enumerate(json.loads(file.metadata()["features"]))}
        weights = {name: value.float() for name, value in load_file(path).items()}
        table = self.table.weight.clone()
        for feature, row in self.index.items():
            if feature in rows:
                table[row] = weights["table.weight"][rows[feature]]
        for name in ("layers.3.weight", "layers.3.bias"):
            weights[name] = torch.cat([weights[name], self.state_dict()[name][len(weights[name]) :].cpu()])
        self.load_state_dict({**weights, "table.weight": table})


def inputs_of(
    index: Mapping[str, int], features: Sequence[Sequence[str]], rgb: Sequence[Sequence[float]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Features as (flat indices, offsets), unknown ones left out, and colours as (B, 9) in [-1, 1]."""
    known = [[index[feature] for feature in row if feature in index] for row in features]
    offsets = torch.tensor([0] + [len(row) for row in known[:-1]]).cumsum(0)
    flat = torch.tensor([number for row in known for number in row])
    return flat, offsets, torch.tensor(rgb) * 2 - 1


def jitter(vectors: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Move word vectors (B, D) a little, so that meaning changes smoothly with them, and stretch them up to NORMS[1].

    Inversion makes norms grow two- or threefold; a text encoder that knows such words still reads those beside them.
    The generator is of the vectors' device.
    """
    noise = torch.randn(vectors.shape, generator=generator, device=vectors.device)
    scale = torch.empty(len(vectors), 1, device=vectors.device).uniform_(*NORMS, generator=generator)
    return (vectors + noise * (0.15 * WORD_NORM / vectors.shape[1] ** 0.5)) * scale


@torch.no_grad()
def limit_norms(table: Tensor, norm: float = WORD_NORM) -> None:
    """Scale rows of the embedding table (V, D) that grew beyond `norm` back to it, in place."""
    table.mul_((norm / table.norm(dim=1, keepdim=True)).clamp(max=1.0))
