"""What text encoders say of prompts, and a store of it for encoders that don't learn."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

MAX_BYTES = 4 * 2**30
"""Of the host's memory for the states of one encoder: about 2000 prompts of 256 tokens of T5-XXL in 16 bits."""


class Encoded(NamedTuple):
    """What one text encoder says of B prompts."""

    hidden_states: Tensor
    """(B, L, D)."""
    pooled: Tensor | None = None
    """(B, P)."""
    mask: Tensor | None = None
    """(B, L): 1 for tokens, 0 for padding that is ignored."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Encoded:
        """Applies a function to every tensor that is there."""
        return Encoded(
            function(self.hidden_states), *(None if part is None else function(part) for part in self[1:])
        )


class StateCache:
    """States by prompt, on the host; those that were used least recently make room. Safe for threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._states: OrderedDict[bytes, Encoded] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self, ids: Tensor, rows: Tensor | None, encode: Callable[[Tensor, Tensor | None], Encoded]
    ) -> Encoded:
        """`encode(ids, rows)`, where only prompts that aren't known yet are encoded. ids: (B, L). rows: (R, D)."""
        with self._lock:
            keys = _keys(ids, rows)
            missing = [keys.index(key) for key in dict.fromkeys(keys) if key not in self._states]
            found = {key: self._states[key] for key in keys if key in self._states}
            if missing:
                made = encode(ids[missing], rows).map(lambda part: part.to("cpu"))
                for place, index in enumerate(missing):
                    state = made.map(partial(_entry, place))
                    found[keys[index]] = state
                    self._put(keys[index], state)
            for key in keys:
                if key in self._states:
                    self._states.move_to_end(key)
        states = [found[key] for key in keys]

        def stacked(parts: list[Tensor | None]) -> Tensor | None:
            known = [part for part in parts if part is not None]
            return torch.stack(known).to(ids.device) if known else None

        hidden = stacked([state.hidden_states for state in states])
        assert hidden is not None
        return Encoded(
            hidden, stacked([state.pooled for state in states]), stacked([state.mask for state in states])
        )

    def __len__(self) -> int:
        return len(self._states)

    def _put(self, key: bytes, state: Encoded) -> None:
        self._states[key] = state
        self._bytes += _size(state)
        while self._bytes > self._max_bytes and len(self._states) > 1:
            _, oldest = self._states.popitem(last=False)
            self._bytes -= _size(oldest)


def _entry(place: int, part: Tensor) -> Tensor:
    return part[place].clone()


def _size(state: Encoded) -> int:
    return sum(part.numel() * part.element_size() for part in state if part is not None)


def _keys(ids: Tensor, rows: Tensor | None) -> list[bytes]:
    """What tells prompts apart: their ids, and of learned tokens the vectors."""
    lines = ids.cpu()
    table = None if rows is None else rows.detach().cpu()
    keys = []
    for line in lines:
        learned = -1 - line[line < 0]
        key = line.clamp(min=-1).numpy().tobytes()
        if table is not None and len(learned):
            key += table[learned].contiguous().numpy().tobytes()
        keys.append(key)
    return keys
