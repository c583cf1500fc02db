"""Group normalisation for channels-last tensors on CPU, where torch's own takes nearly half of a bf16 training step.

Wu & He 2018, eq. 1-3, as a handful of passes over (B, H * W, C), with the gradient written out. (`torch.compile` would
fuse it as well, but its gradients for these models came out wrong on CPU with torch 2.13: many were exactly zero.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _ChannelsLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        batch, channels, height, width = images.shape
        flat = images.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        values = flat.float()
        count = height * width * channels // groups
        mean = values.sum(1).view(batch, groups, -1).sum(2) / count
        square = (values * values).sum(1).view(batch, groups, -1).sum(2) / count
        inverse = (square - mean * mean).clamp(min=0).add(eps).rsqrt()
        mean, inverse = (part.repeat_interleave(channels // groups, 1) for part in (mean, inverse))
        scale = inverse * weight
        out = torch.addcmul((bias - mean * scale)[:, None], values, scale[:, None]).to(images.dtype)
        ctx.save_for_backward(flat, weight, mean, inverse)
        ctx.groups, ctx.shape = groups, images.shape
        return out.view(batch, height, width, channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        flat, weight, mean, inverse = ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        gradient = gradients[0].permute(0, 2, 3, 1).reshape(flat.shape).float()
        values = flat.float()
        total, along = gradient.sum(1), (gradient * values).sum(1)
        normalised = (along - mean * total) * inverse
        count = height * width * channels // ctx.groups

        def per_group(part: Tensor) -> Tensor:
            summed = part.view(batch, ctx.groups, -1).sum(2) / count
            return summed.repeat_interleave(channels // ctx.groups, 1)

        shift, slope = per_group(total * weight), per_group(normalised * weight)
        by_gradient, by_value = inverse * weight, -inverse * inverse * slope
        constant = -inverse * shift - by_value * mean
        out = torch.addcmul(constant[:, None], gradient, by_gradient[:, None]).addcmul_(
            values, by_value[:, None]
        )
        out = out.to(flat.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return out, normalised.sum(0), total.sum(0), None, None


class ChannelsLastGroupNorm(nn.GroupNorm):
    """The same values and gradients as `nn.GroupNorm`, up to rounding."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4:
            return super().forward(input)
        return _ChannelsLast.apply(input, self.weight, self.bias, self.num_groups, self.eps)


def use_channels_last_group_norm(model: nn.Module) -> None:
    """Make every group norm of `model` the one above; on CUDA torch's own is fast, and stays."""
    if torch.cuda.is_available():
        return
    for module in model.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = ChannelsLastGroupNorm
