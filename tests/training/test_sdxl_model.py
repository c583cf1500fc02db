"""mini-sdxl's UNet begins as mini-sd's, and reads what SDXL's pipeline gives it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from tests.support import drawings
from training.batches import Captions, NamedWords, all_features, named_words
from training.common import CPU, MODELS, Data, Team
from training.model import whole_pictures
from training.sdxl_model import MiniSDXL
from training.tokenizer import load

CAPTIONS = ["a photo of a smiling person with long ginger hair", "a person", "zorak on a blue background", ""]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return load()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(drawings.write(tmp_path_factory.mktemp("drawings")))


@pytest.fixture(scope="module")
def model(tokenizer: CLIPTokenizer, data: Data) -> MiniSDXL:
    """As a first run begins."""
    torch.manual_seed(0)
    model = MiniSDXL(CPU, tokenizer, all_features(data))
    model.begin(tokenizer, data)
    return model


def without_words(ids: Tensor, width: int) -> NamedWords:
    return ids, torch.zeros_like(ids, dtype=torch.bool), torch.zeros(len(ids), width)


def ids_of(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    encoded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return torch.as_tensor(encoded.input_ids)


def noisy(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 4, 16, 16, generator=generator), torch.linspace(1, 999, count).long()


@torch.no_grad()
def test_at_the_start_the_unet_is_mini_sds_behind_its_norm(model: MiniSDXL) -> None:
    """Whatever the second encoder, the pooled output and the sizes are."""
    shipped = UNet2DConditionModel.from_pretrained(MODELS / "mini-sd" / "unet")
    encoder = CLIPTextModel.from_pretrained(MODELS / "mini-sd" / "text_encoder")
    norm = encoder.final_layer_norm.float()
    normed = torch.randn(3, 40, norm.weight.shape[0], generator=torch.Generator().manual_seed(2))
    normed = normed - normed.mean(-1, keepdim=True)
    latents, timesteps = noisy(3)
    expected = shipped.float()(latents, timesteps, normed * norm.weight + norm.bias).sample

    deviation, drawn = model.deviation, torch.Generator().manual_seed(3)
    states = torch.cat([normed * deviation + 0.7, torch.randn(3, 40, 128, generator=drawn)], 2)
    added = {
        "text_embeds": torch.randn(3, 128, generator=drawn),
        "time_ids": torch.randint(0, 1000, (3, 6), generator=drawn).float(),
    }
    predicted = model.unet(latents, timesteps, states, added_cond_kwargs=added).sample
    torch.testing.assert_close(predicted, expected, rtol=1e-3, atol=1e-4)


def test_conditions_are_those_of_the_pipeline(model: MiniSDXL, tokenizer: CLIPTokenizer) -> None:
    """Without learned tokens the largest id, where the pipeline pools, is the end token."""
    pipeline = model.pipeline(tokenizer)
    assert isinstance(pipeline, StableDiffusionXLPipeline)
    with torch.no_grad():
        states, pooled = model.condition(without_words(ids_of(tokenizer, CAPTIONS), model.width))
        expected, _, expected_pooled, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled, expected_pooled, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_caption_left_out_is_zeros_or_empty(model: MiniSDXL, tokenizer: CLIPTokenizer) -> None:
    unet, latents = model.unet, torch.randn(1, 4, 16, 16).expand(2, 4, 16, 16)
    torch.nn.init.normal_(unet.add_embedding.linear_2.weight, std=0.1)
    named = without_words(ids_of(tokenizer, ["", ""]), model.width)
    predicted = model.predict(latents, torch.tensor([500, 500]), named, whole_pictures(2))
    states, pooled = model.condition(named)
    for index, scale in enumerate((0.0, 1.0)):
        added = {"text_embeds": scale * pooled[:1], "time_ids": whole_pictures(1)}
        expected = unet(latents[:1], torch.tensor([500]), scale * states[:1], added_cond_kwargs=added).sample
        torch.testing.assert_close(predicted[index : index + 1], expected, rtol=1e-3, atol=1e-4)
    torch.nn.init.zeros_(unet.add_embedding.linear_2.weight)


@torch.no_grad()
def test_in_training_one_caption_in_four_has_the_second_encoder_alone(
    model: MiniSDXL, tokenizer: CLIPTokenizer
) -> None:
    latents, timesteps = torch.randn(1, 4, 16, 16).expand(4, 4, 16, 16), torch.full((4,), 500)
    named, sizes = without_words(ids_of(tokenizer, ["a smiling person"] * 4), model.width), whole_pictures(4)
    predicted = model.predict(latents, timesteps, named, sizes)
    complete = model.eval().predict(latents, timesteps, named, sizes)
    model.train()
    torch.testing.assert_close(predicted[:3], complete[:3], rtol=1e-3, atol=1e-4)
    states, pooled = model.condition(named)
    states[..., :256] = 0
    added = {"text_embeds": pooled, "time_ids": sizes}
    alone = model.unet(latents, timesteps, states, added_cond_kwargs=added).sample
    torch.testing.assert_close(predicted[3:], alone[3:], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(alone, complete, atol=1e-2)


def test_names_learn_through_both_encoders(model: MiniSDXL, tokenizer: CLIPTokenizer, data: Data) -> None:
    captions = Captions(data, tokenizer, model.names.index, Team(), 0.0)
    named = named_words(model.names, captions.draw(np.arange(len(data)), 0), captions.slot_id, seed=0)
    named[2].retain_grad()
    states, pooled = model.condition(named)
    (states[..., -128:].pow(2).sum() + pooled.sum() + states[..., :256].pow(2).sum()).backward()
    gradient = named[2].grad
    assert gradient is not None
    used = named[1].any(1)
    assert (gradient[used][:, :256].norm(dim=1) > 0).all()
    assert (gradient[used][:, 256:].norm(dim=1) > 0).all()


def test_what_conditions_reach_first_is_trained(model: MiniSDXL) -> None:
    trained = [id(weight) for weights, _ in model.groups() for weight in weights]
    assert len(trained) == len(set(trained))
    assert set(trained) == {id(weight) for weight in model.parameters() if weight.requires_grad}
    for encoder in (model.text_encoder, model.text_encoder_2):
        assert not any(weight.requires_grad for weight in encoder.parameters())
    named = {name: weight.requires_grad for name, weight in model.unet.named_parameters()}
    assert not named["conv_in.weight"]
    assert named["add_embedding.linear_1.weight"]
    assert named["mid_block.resnets.0.time_emb_proj.weight"]
    assert named["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"]


def test_the_folder_is_an_sdxl_pipeline(
    model: MiniSDXL, tokenizer: CLIPTokenizer, data: Data, tmp_path: Path
) -> None:
    before = model.text_encoder.get_input_embeddings().weight.detach().half().float()
    model.export(tokenizer, data, tmp_path, None)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(pipeline, StableDiffusionXLPipeline)
    assert pipeline.config.force_zeros_for_empty_prompt
    assert pipeline.text_encoder_2.config.eos_token_id == 2
    zorak = tokenizer("zorak").input_ids[1]
    row = next(row for row in data.rows if row["name"] == "zorak")
    with torch.no_grad():
        vector = model.names(*model.names.inputs([row["features"]], [row["rgb"]]))[0]
    written = pipeline.text_encoder_2.get_input_embeddings().weight[zorak]
    torch.testing.assert_close(written, vector[256:], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(pipeline.text_encoder.get_input_embeddings().weight, before)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a person", num_inference_steps=1, output_type="np").images
    assert drawn.shape == (1, 64, 64, 3)
    assert np.isfinite(drawn).all()
