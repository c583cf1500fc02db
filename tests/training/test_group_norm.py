"""The group norm that CPU training uses is torch's, values and gradients."""

from __future__ import annotations

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training.group_norm import ChannelsLastGroupNorm


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    per_group=st.integers(1, 4),
    side=st.integers(2, 5),
    seed=st.integers(0, 100),
)
def test_equals_torch(batch: int, groups: int, per_group: int, side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    channels = groups * per_group
    theirs = nn.GroupNorm(groups, channels, eps=1e-3)
    nn.init.normal_(theirs.weight, generator=generator)
    nn.init.normal_(theirs.bias, generator=generator)
    ours = copy.deepcopy(theirs)
    ours.__class__ = ChannelsLastGroupNorm
    images = torch.randn(batch, channels, side, side + 1, generator=generator)
    upstream = torch.randn(images.shape, generator=generator)
    results = []
    for norm in (theirs, ours):
        given_images = images.clone().to(memory_format=torch.channels_last).requires_grad_()
        out = norm(given_images)
        out.backward(upstream)
        results.append((out, given_images.grad, norm.weight.grad, norm.bias.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-3)
