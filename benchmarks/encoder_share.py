"""What share of a training step the text encoders take, by FLOP, at the real sizes of the flow-matching families.

    python benchmarks/encoder_share.py [--resolution 1024] [--batch-size 4] [--models NAME,...] [--measure]

Models are built without values (torch's meta device), so no weights are needed; with --measure they are filled with
one value in bfloat16, and each part is timed once for one sample on the CPU, after a pass to warm up. Counted are the
forward pass and the backward pass to the word's vectors, without activation checkpointing; the VAE runs once per image
and isn't counted. Columns: all prompts through the encoders; equal prompts of a step once (27 templates); only CLIP
learns, so that T5's states are kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Gemma2Config,
    Gemma2Model,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from benchmarks import measure

TEMPLATES = 27
"""Of the paper, for objects."""


@dataclass(frozen=True)
class Part:
    """A text encoder: what one prompt costs is a forward and a backward pass of `tokens`."""

    name: str
    model: Callable[[], PreTrainedModel]
    tokens: int


def clip(width: int, layers: int, heads: int) -> PreTrainedModel:
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
        )
    )


def t5_xxl() -> PreTrainedModel:
    config = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def gemma_2b() -> PreTrainedModel:
    return Gemma2Model(
        Gemma2Config(
            hidden_size=2304,
            intermediate_size=9216,
            num_hidden_layers=26,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
        )
    )


def qwen(width: int, inner: int) -> PreTrainedModel:
    """The 27 layers of Qwen 3 that Flux.2 Klein reads states of."""
    return Qwen3Model(
        Qwen3Config(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=27,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
        )
    )


CLIP_L = Part("clip_l", lambda: clip(768, 12, 12), 77)
CLIP_G = Part("clip_g", lambda: clip(1280, 32, 20), 77)


@dataclass(frozen=True)
class Model:
    """A family at its real size."""

    name: str
    encoders: tuple[Part, ...]
    denoiser: Callable[[], torch.nn.Module]
    inputs: Callable[[int, int], dict[str, Any]]
    """(batch size, side in pixels) -> arguments of the denoiser."""


def sd3(width: int, layers: int, dual: int) -> Callable[[], torch.nn.Module]:
    return lambda: SD3Transformer2DModel(
        sample_size=128,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=width // 64,
        caption_projection_dim=width,
        pos_embed_max_size=192,
        dual_attention_layers=tuple(range(dual)),
        qk_norm="rms_norm",
    )


def sd3_inputs(count: int, side: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(count, 16, side // 8, side // 8),
        "encoder_hidden_states": torch.empty(count, 77 + 256, 4096, requires_grad=True),
        "pooled_projections": torch.empty(count, 2048, requires_grad=True),
        "timestep": torch.empty(count),
    }


def flux_inputs(count: int, side: int) -> dict[str, Any]:
    tokens = (side // 16) ** 2
    return {
        "hidden_states": torch.empty(count, tokens, 64),
        "encoder_hidden_states": torch.empty(count, 512, 4096, requires_grad=True),
        "pooled_projections": torch.empty(count, 768, requires_grad=True),
        "timestep": torch.empty(count),
        "guidance": torch.empty(count),
        "txt_ids": torch.empty(512, 3),
        "img_ids": torch.empty(tokens, 3),
    }


def sana_inputs(count: int, side: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(count, 32, side // 32, side // 32),
        "encoder_hidden_states": torch.empty(count, 300, 2304, requires_grad=True),
        "encoder_attention_mask": torch.empty(count, 300),
        "timestep": torch.empty(count),
    }


def klein(layers: int, single_layers: int, heads: int, text: int) -> Callable[[], torch.nn.Module]:
    return lambda: Flux2Transformer2DModel(
        num_layers=layers,
        num_single_layers=single_layers,
        num_attention_heads=heads,
        joint_attention_dim=text,
        guidance_embeds=False,
    )


def klein_inputs(text: int) -> Callable[[int, int], dict[str, Any]]:
    def inputs(count: int, side: int) -> dict[str, Any]:
        tokens = (side // 16) ** 2
        return {
            "hidden_states": torch.empty(count, tokens, 128),
            "encoder_hidden_states": torch.empty(count, 512, text, requires_grad=True),
            "timestep": torch.empty(count),
            "txt_ids": torch.empty(512, 4),
            "img_ids": torch.empty(tokens, 4),
        }

    return inputs


MODELS = (
    Model("SD 3.5 medium", (CLIP_L, CLIP_G, Part("t5xxl", t5_xxl, 256)), sd3(1536, 24, 13), sd3_inputs),
    Model("SD 3.5 large", (CLIP_L, CLIP_G, Part("t5xxl", t5_xxl, 256)), sd3(2432, 38, 0), sd3_inputs),
    Model(
        "Flux.1 dev",
        (CLIP_L, Part("t5xxl", t5_xxl, 512)),
        lambda: FluxTransformer2DModel(guidance_embeds=True),
        flux_inputs,
    ),
    # The instruction is about 230 tokens of Gemma's
    Model("Sana 1.6B", (Part("gemma", gemma_2b, 530),), SanaTransformer2DModel, sana_inputs),
    Model(
        "Flux.2 Klein 4B",
        (Part("qwen3_4b", lambda: qwen(2560, 9728), 512),),
        klein(5, 20, 24, 7680),
        klein_inputs(7680),
    ),
    Model(
        "Flux.2 Klein 9B",
        (Part("qwen3_8b", lambda: qwen(4096, 12288), 512),),
        klein(8, 24, 32, 12288),
        klein_inputs(12288),
    ),
)


Run = Callable[[], tuple[Tensor, list[Tensor]]]
"""A forward pass: its output, and what the backward pass goes to."""


def flop(run: Run) -> int:
    """Floating-point operations of a forward and a backward pass."""
    counter = FlopCounterMode(display=False)
    with counter:
        output, wanted = run()
        torch.autograd.grad(output.sum(), wanted)
    return int(counter.get_total_flops())


def seconds(run: Run) -> float:
    """Of a forward and a backward pass, after one to warm up."""
    for _ in range(2):
        start = time.perf_counter()
        output, wanted = run()
        torch.autograd.grad(output.float().sum(), wanted)
    return time.perf_counter() - start


def filled(model: Any) -> Any:
    """A model of the meta device in bfloat16 on the CPU, every weight 0.01."""
    made = model.to(torch.bfloat16).to_empty(device="cpu")
    for tensor in (*made.parameters(), *made.buffers()):
        tensor.data.fill_(0 if tensor.dtype == torch.long else 0.01)
    return made


def of_encoder(model: PreTrainedModel, tokens: int) -> Run:
    """One prompt."""
    model.requires_grad_(False)

    def run() -> tuple[Tensor, list[Tensor]]:
        ids = torch.zeros(1, tokens, dtype=torch.long)
        embedding = (
            model.encoder.embed_tokens if isinstance(model, T5EncoderModel) else model.get_input_embeddings()
        )
        found: list[Tensor] = []

        def replace(_module: object, _arguments: object, frozen: Tensor) -> Tensor:
            found.append(torch.empty_like(frozen).requires_grad_())
            return found[0] * 1  # the counter takes no leaves

        hook = embedding.register_forward_hook(replace)
        output = model(ids).last_hidden_state
        hook.remove()
        return output, found

    return run


def of_denoiser(denoiser: torch.nn.Module, inputs: dict[str, Any]) -> Run:
    """A batch."""
    denoiser.requires_grad_(False)

    def run() -> tuple[Tensor, list[Tensor]]:
        wanted = [value for value in inputs.values() if value.requires_grad]
        given = {name: value * 1 if value.requires_grad else value for name, value in inputs.items()}
        return denoiser(**given, return_dict=False)[0], wanted

    return run


def shares(model: Model, count: int, side: int) -> dict[str, Any]:
    """Shares of a step of `count` samples that the encoders take."""
    with torch.device("meta"):
        denoiser = flop(of_denoiser(model.denoiser(), model.inputs(count, side)))
        by_encoder = {part.name: flop(of_encoder(part.model(), part.tokens)) for part in model.encoders}
    prompts = TEMPLATES * (1 - (1 - 1 / TEMPLATES) ** count)
    clip_cost = sum(cost for name, cost in by_encoder.items() if name.startswith("clip")) * count
    large = sum(cost for name, cost in by_encoder.items() if not name.startswith("clip"))

    def share(cost: float) -> float:
        return cost / (cost + denoiser)

    return {
        "model": model.name,
        "teraflop": round((denoiser + clip_cost + large * count) / 1e12, 1),
        "all prompts": round(share(clip_cost + large * count), 4),
        "equal prompts once": round(share(clip_cost + large * prompts), 4),
        "only CLIP learns": round(share(clip_cost), 4) if clip_cost else None,
    }


def measured(model: Model, side: int) -> dict[str, Any]:
    """Seconds of each part for one sample on this CPU, and the encoders' share of them."""
    found: dict[str, float] = {}
    for part in model.encoders:
        with torch.device("meta"):
            encoder = part.model()
        found[part.name] = seconds(of_encoder(filled(encoder), part.tokens))
        del encoder
    with torch.device("meta"):
        denoiser = model.denoiser()
    inputs = {
        name: torch.full_like(value, 0.01, dtype=torch.bfloat16).requires_grad_(value.requires_grad)
        for name, value in model.inputs(1, side).items()
    }
    found["denoiser"] = seconds(of_denoiser(filled(denoiser), inputs))
    encoders = sum(found.values()) - found["denoiser"]
    rounded = {name: round(value, 2) for name, value in found.items()}
    return {"model": model.name, **rounded, "encoders' share": round(encoders / sum(found.values()), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [model.name for model in MODELS]
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--models", default=",".join(names), help="some of them, with commas")
    parser.add_argument("--measure", action="store_true", help="time the models on this CPU, too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chosen = [model for model in MODELS if model.name in options.models.split(",")]
    rows = [shares(model, options.batch_size, options.resolution) for model in chosen]
    print(measure.table(rows))
    timed = [measured(model, options.resolution) for model in chosen] if options.measure else []
    for row in timed:
        print(measure.table([row]))
    figures = {"resolution": options.resolution, "batch_size": options.batch_size}
    measure.write_json(options.json, {**figures, "shares": rows, "measured": timed})


if __name__ == "__main__":
    main()
