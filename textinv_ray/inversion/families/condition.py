"""What the denoiser is conditioned on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Condition(NamedTuple):
    """c(y) of B prompts. Every tensor has one entry per sample, so that samples of many concepts concatenate."""

    hidden_states: Tensor
    """(B, L, D): states of the text encoders, for cross-attention."""
    pooled: Tensor | None = None
    """(B, P): one vector for the whole prompt; None where the family has none."""
    time_ids: Tensor | None = None
    """(B, 6): original height and width, crop top and left, target height and width in pixels (SDXL: Podell et al.
    2023, section 2.2, "micro-conditioning"); None in other families."""
    mask: Tensor | None = None
    """(B, L): 1 for tokens that the denoiser attends to, 0 for padding; None where it attends to all."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """Applies a function to every tensor that is there."""
        return Condition(
            function(self.hidden_states), *(None if part is None else function(part) for part in self[1:])
        )

    def first(self, count: int) -> Condition:
        """That of the first prompts."""
        return self.map(lambda part: part[:count])
