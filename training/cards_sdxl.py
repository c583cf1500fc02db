"""Write mini-sdxl's card from the measured figures (evaluation-sdxl.json)."""

from __future__ import annotations

from typing import Any

import numpy as np

from training import cards
from training.common import MODELS

WAYS = {
    "both": "both encoders' vectors are learned",
    "first_encoder": "only the first encoder's; the second's stay the initializer's",
    "second_encoder": "only the second encoder's",
    "pooled_at_largest_id": "both, pooled at the largest id, learning and drawing (`eos_token_id: 2`)",
    "drawn_pooled_at_largest_id": "both, learned with the end token, drawn with the largest id",
}
"""How words are learned for the comparison, by the name in evaluation-sdxl.json."""


def ways_part(ways: dict[str, list[float]]) -> str:
    """A table of scores by way and character: means, and differences to the first way."""
    lines = [
        "| way | similarity | difference to the first | characters that are worse |",
        "|---|---|---|---|",
    ]
    reference = np.array(ways["both"])
    for name, what in WAYS.items():
        if name not in ways:
            continue
        difference = np.array(ways[name]) - reference
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        shown = "" if name == "both" else f"{difference.mean():+.3f} ± {error:.3f}"
        worse = "" if name == "both" else f"{int((difference < 0).sum())} of {len(difference)}"
        lines.append(f"| {what} | {np.mean(ways[name]):.3f} | {shown} | {worse} |")
    return "\n".join(lines)


def card_of_sdxl(figures: dict[str, Any]) -> str:
    inversion, ways, curve = figures["inversion"], figures["ways"], figures["curve"]
    mean = {name: f"{value:.3f}" for name, value in inversion["mean"].items()}
    learning = (
        f"{inversion['characters']} characters, {inversion['seeds']} seed, {inversion['steps']} steps of 4"
    )
    compared = f"{len(ways['both'])} characters, {figures['ways_steps']} steps"
    matched = figures["generation"]["text_image_top5"]
    rows = [("generated image among the five nearest of 100 captions", matched, 0.5, "%")]
    table = cards.bounds(rows + cards.inversion_rows(inversion))
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# mini-sdxl

A Stable Diffusion XL small enough for a repository: the classes and file format of SDXL (UNet2DConditionModel with `text_time`,
AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection, two tokenizers), 64 x 64 pixels. It knows the cartoon characters that
mini-sd knows, and exists so that words for two text encoders can be tried, tested and measured without a download.

    from diffusers import StableDiffusionXLPipeline
    pipe = StableDiffusionXLPipeline.from_pretrained("textinv_ray/models/mini-sdxl")
    pipe("a photo of a smiling person with long ginger hair and a green shirt on a blue background in micah style",
         guidance_scale=4).images[0]

It has what is special about SDXL: the hidden states before the last layer of both encoders (256 + 128), the second encoder's
projected state of the end token, `eos_token_id: 2` in its configuration, time ids, and zeros where there is no negative prompt.

{cards.data_part(24_000, "the views of `training.world.compose` among them.")}

## Recipe and compute

`training/sdxl.py` on 2 CPU cores, no GPU: {curve["samples"]:,} samples in batches of 32, learning rate 2e-4. The UNet began with mini-sd's
weights, which predict v, and with zeros for all that is new. Its attention, what reads the time and the new inputs were trained; its
convolutions, the VAE (mini-sd's) and both text encoders (mini-sd's, and mini-clip's text tower) were frozen. One drawing in six was small
and one in six cropped, and time ids said so. Names are written into the second encoder's table as mini-sd's card says; the
identities that have them here were drawn from another seed than mini-sd's, so those of mini-sd's were written from the trained network
afterwards. VAE, tokenizers and first encoder are mini-sd's files.

The loss on held-out characters was {curve["first"]} at the start and is {curve["last"]}; mini-sd's own is 0.1036.

## Figures

`python -m training.evaluate_sdxl --only generation,inversion`, on characters that were held out, with seeds that nothing was tuned to.

{table}

Inversion: a vector for each encoder, {learning}, learning rate 0.005, in bfloat16, scored by mini-clip (mean pairwise
cosine with the training images): initializer {mean["initializer"]}, colour caption {mean["colour_caption"]}, full caption {mean["full_caption"]}, learned word {mean["learned"]},
other real images of the same character {mean["ceiling"]}. Image similarities come from the scorer's image tower, which is no part of
this model; its text tower is, so that the text similarities of the edits are the model's own. Pictures:
`training/pictures/mini-sdxl/`.

What the second encoder and the place of pooling are worth, on earlier weights (`--compared 8 --compared-steps 60`; {compared};
similarity of pictures of the word, differences paired by character, with the standard error of their mean):

{ways_part(ways)}

## Limits

Those of mini-sd (its card says them). It was trained for a short time. In the comparison, pooling at the wrong token cost nothing that
this many characters show, and neither did leaving the second encoder's vectors as they are: the first encoder's states carry nearly
all. So it shows that learning for SDXL works, not what either is worth on SDXL itself. `make train-mini-sdxl HOURS=...` goes on from
its checkpoint, or begins again.
"""


def write(figures: dict[str, Any]) -> None:
    """Write mini-sdxl's card."""
    (MODELS / "mini-sdxl" / "README.md").write_text(card_of_sdxl(figures))
