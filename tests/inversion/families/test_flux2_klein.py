"""Flux.2 Klein: a chat around prompts, states of three layers, normalised patches of latents; against diffusers."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from hypothesis import example, given, settings
from hypothesis import strategies as st

import textinv_ray
from tests.support import tiny, tiny_flow
from textinv_ray.config.job import JobConfig, ReviewConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.families.flux2_klein import LAYERS, Flux2Klein
from textinv_ray.inversion.families.language_encoder import QwenEncoder
from textinv_ray.inversion.generation import Request, generate
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.sampling import sample_ids
from textinv_ray.inversion.task import ConceptTask

PROMPTS = ["a photo of <X>", " <x> and <x>, my <X>! ", "a cat"]
CONFIG = JobConfig()
LENGTH = tiny_flow.QWEN_TOKENS
PIECES = st.lists(
    st.sampled_from(["<x>", "A cat", " the ", "on my house,", "é", " ", "<|endoftext|>", "<|im_end|>"])
    | st.text("ab c,.\n'", max_size=9),
    max_size=9,
)


def encoder(padding_side: str) -> QwenEncoder:
    tokens = tiny_flow.qwen_tokenizer()
    tokens.padding_side = padding_side
    return QwenEncoder("qwen3_4b", tokens, tiny_flow.qwen(tokens, 8).model, length=LENGTH, layers=LAYERS)


ENCODERS = [encoder(side) for side in ("right", "left")]
PLAIN = copy.deepcopy(ENCODERS[0].tokenizer)
PLAIN.add_tokens(["<x>"])


@pytest.fixture(scope="module")
def klein(tiny_flux2_klein: Path) -> Flux2Klein:
    return tiny_flow.load_flux2_klein(tiny_flux2_klein)


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(0)) * 0.1


def pipeline_with(
    backbone: Flux2Klein, folder: Path, vectors: torch.Tensor, tmp_path: Path
) -> Flux2KleinPipeline:
    """A plain pipeline with the word <X>."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(words.save_learned_embeds(backbone, "<X>", vectors))
    pipeline = Flux2KleinPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert textinv_ray.load_words(pipeline, str(file)) == ["<X>"]
    return pipeline


@settings(deadline=None)
@given(PIECES)
@example(["<x>"])
@example([" ", "<x>", " "])
@example(["a ", "<x>", "<x>", "s!"])
@example(["a cat " * 30])
@example(["a cat " * 30, "<x>"])
def test_ids_and_masks_are_those_of_the_plain_tokenizer_with_added_tokens(pieces: list[str]) -> None:
    """As the pipeline calls it: the chat's template, padding, truncation."""
    chat = [{"role": "user", "content": "".join(pieces)}]
    text = PLAIN.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    word = PLAIN.convert_tokens_to_ids("<x>")
    for qwen in ENCODERS:
        plain = PLAIN(
            text,
            padding="max_length",
            truncation=True,
            max_length=LENGTH,
            padding_side=qwen.tokenizer.padding_side,
        )
        if word in PLAIN(text).input_ids[LENGTH:]:
            with pytest.raises(ValueError, match=f"longer than the {LENGTH} tokens that .* qwen3_4b reads"):
                qwen.tokenize("", pieces, {"<x>": [-1]})
            continue
        ids = qwen.tokenize("", pieces, {"<x>": [-1]})
        assert ids == [-1 if id_ == word else id_ for id_ in plain.input_ids]
        # A template cut off may end in the token of padding
        if plain.input_ids[-1] != PLAIN.pad_token_id or not all(plain.attention_mask):
            assert qwen.mask(torch.tensor([ids])).tolist() == [plain.attention_mask]


def test_words_of_the_vocabulary() -> None:
    qwen = ENCODERS[0]
    assert qwen.known_as("cat")
    assert not qwen.known_as("<x>")
    qwen.tokenizer.unk_token = None  # as of published ones
    assert not qwen.known_as("<x>")
    assert qwen.tokenizer.convert_ids_to_tokens(qwen.token_ids("red cat")) == ["Ġred", "Ġcat"]
    assert qwen.nearest_words(qwen.token_embeddings("cat"), 1) == ["cat"]


def test_layers_that_nothing_reads_are_not_kept(klein: Flux2Klein) -> None:
    assert len(klein.text_encoder.layers) == LAYERS[-1] + 1


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_prompts_are_encoded_as_the_pipeline_does(
    klein: Flux2Klein, tiny_flux2_klein: Path, tmp_path: Path, num_vectors: int
) -> None:
    vectors = rows(num_vectors)
    pipeline = pipeline_with(klein, tiny_flux2_klein, vectors, tmp_path)
    expected, _ = pipeline.encode_prompt(PROMPTS, device="cpu", max_sequence_length=LENGTH)
    found = klein.encode(words.tokenize(klein, PROMPTS, {"<X>": num_vectors}), vectors)
    torch.testing.assert_close(found.hidden_states, expected, rtol=1e-4, atol=1e-5)


def test_latents_are_those_of_the_pipeline_and_come_back(klein: Flux2Klein, tiny_flux2_klein: Path) -> None:
    pipeline = Flux2KleinPipeline.from_pretrained(tiny_flux2_klein)
    images = tiny.concept(0).images[:, 0]
    pixels = torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels).latent_dist
        decoded = pipeline.vae.decode(posterior.mean, return_dict=False)[0]

    def patches(latents: torch.Tensor) -> torch.Tensor:
        """Channels are (channel, row in the patch, column in the patch)."""
        found = latents.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, C, h/2, w/2, row, column)
        return found.permute(0, 1, 4, 5, 2, 3).flatten(1, 3)

    mean, std = klein.latent_moments(images)
    assert mean.shape[1:] == (4, *(tiny.RESOLUTION // klein.vae_factor,) * 2)
    norm = pipeline.vae.bn.eval()
    torch.testing.assert_close(mean, norm(patches(posterior.mean)))
    torch.testing.assert_close(std, norm(patches(posterior.std)) - norm(torch.zeros_like(std)))
    plain = pipeline.image_processor.postprocess(decoded, output_type="np")
    assert np.abs(klein.decode(mean).astype(int) - (plain * 255).round().astype(int)).max() <= 1


def test_the_shift_is_the_pipelines_for_many_steps(klein: Flux2Klein) -> None:
    """What it computes for 200 steps is what the scheduler's configuration says."""
    for side in (16, 32, 64):
        expected = np.exp(compute_empirical_mu(side * side, 200))
        assert klein.shift((side, side)) == pytest.approx(expected, rel=1e-3)


def test_a_step_is_that_of_a_plain_loop_with_diffusers_own_calls(
    klein: Flux2Klein, tiny_flux2_klein: Path, tmp_path: Path
) -> None:
    """Losses and gradient of one step, with a larger embedding table and the transformer called as diffusers does."""
    task = ConceptTask(tiny.concept(0, steps=3, batch_size=1, placeholder_token="<X>"), klein, CONFIG)
    pack = Pack(klein, CONFIG, 1)
    pack.add(task)
    losses, gradient = pack.losses_and_gradient()
    draws, vectors = task.draw(), task.vectors

    pipeline = pipeline_with(klein, tiny_flux2_klein, vectors, tmp_path)
    table = pipeline.text_encoder.get_input_embeddings().weight
    table.requires_grad_()
    latents = (
        task.tensors["latent_means"][draws.latents]
        + task.tensors["latent_stds"][draws.latents] * draws.noise[0]
    )
    shift = klein.shift((4, 4))
    u = torch.sigmoid(torch.distributions.Normal(0.0, 1.0).icdf(draws.levels)).float()
    sigmas = shift * u / (1 + (shift - 1) * u)
    noisy = (1 - sigmas) * latents + sigmas * draws.noise[1]
    prompt = words.fill(task.concept.templates[int(draws.prompts[0])], "<X>")
    states, text_ids = pipeline.encode_prompt(prompt, device="cpu", max_sequence_length=LENGTH)
    image_ids = torch.tensor([[0, row, column, 0] for row in range(4) for column in range(4)])
    prediction = pipeline.transformer(
        hidden_states=torch.stack([noisy[0, :, row, column] for _, row, column, _ in image_ids])[None],
        timestep=sigmas,
        guidance=None,
        encoder_hidden_states=states,
        txt_ids=text_ids,
        img_ids=image_ids,
        return_dict=False,
    )[0]
    target = torch.stack([(draws.noise[1] - latents)[0, :, row, column] for _, row, column, _ in image_ids])
    loss = (prediction[0] - target).square().mean()
    (expected,) = torch.autograd.grad(loss, table)
    torch.testing.assert_close(losses, loss.detach()[None], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        gradient[0], expected[pipeline.tokenizer.convert_tokens_to_ids("<X>")], rtol=1e-3, atol=1e-7
    )


@pytest.mark.parametrize("negative", [None, "a <x> house"])
@pytest.mark.parametrize("distilled", [False, True])
def test_pictures_equal_those_of_a_plain_script(
    tmp_path: Path, distilled: bool, negative: str | None
) -> None:
    """A distilled model ignores the scale and the negative prompt."""
    folder = tiny_flow.save_flux2_klein(tmp_path / "model", distilled=distilled)
    klein = tiny_flow.load_flux2_klein(folder)
    config = ReviewConfig(num_inference_steps=3, sampler="euler", guidance_scale=4.0)
    vectors = rows(2)
    pipeline = pipeline_with(klein, folder, vectors, tmp_path)
    other, _ = pipeline.encode_prompt(negative or "", device="cpu", max_sequence_length=LENGTH)
    plain = [
        pipeline(
            prompt=prompt,
            negative_prompt_embeds=other,
            num_inference_steps=3,
            guidance_scale=4.0,
            height=32,
            width=32,
            max_sequence_length=LENGTH,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images[0]
        for seed, prompt in enumerate(PROMPTS)
    ]
    expected = (np.stack(plain) * 255).round().astype(int)
    counts = {"<X>": 2}
    negative_ids = None if negative is None else words.tokenize(klein, [negative] * 3, counts, negative=True)
    ours = sample_ids(
        klein, words.tokenize(klein, PROMPTS, counts), vectors, [0, 1, 2], config, negative_ids=negative_ids
    )
    assert np.abs(ours.astype(int) - expected).max() <= 1
    assert expected.std() > 5


def test_a_distilled_model_takes_no_negative_prompts(tmp_path: Path) -> None:
    klein = tiny_flow.load_flux2_klein(tiny_flow.save_flux2_klein(tmp_path, distilled=True))
    with pytest.raises(ValueError, match=r"negative prompts: this Flux\.2 Klein model takes none"):
        generate(klein, {}, [Request("a cat", negative_prompt="red")], ReviewConfig(sampler="euler"))
