"""Sana: Gemma behind an instruction, a mask, an autoencoder without a posterior; against plain diffusers."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline
from hypothesis import example, given, settings
from hypothesis import strategies as st

import textinv_ray
from tests.support import tiny, tiny_flow
from textinv_ray.config.job import JobConfig, ReviewConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.families.language_encoder import GemmaEncoder
from textinv_ray.inversion.families.sana import INSTRUCTION, Sana
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.sampling import sample_ids
from textinv_ray.inversion.task import ConceptTask

PROMPTS = ["a photo of <X>", " <x> and <x>, My <x>! ", "a cat"]
CONFIG = JobConfig()
LINES = INSTRUCTION.split("\n")
TOKENS = tiny_flow.gemma_tokenizer()
PLAIN = copy.deepcopy(TOKENS)
PLAIN.add_tokens(["<x>"])
GEMMA = GemmaEncoder("gemma", TOKENS, tiny_flow.gemma(TOKENS, 16), instruction="User Prompt: ", length=20)
PIECES = st.lists(
    st.sampled_from(["<x>", "A cat", " the ", "on My house,", "é", " "]) | st.text("ab c,.\n'", max_size=5),
    max_size=5,
)


@pytest.fixture(scope="module")
def sana(tiny_sana: Path) -> Sana:
    return tiny_flow.load_sana(tiny_sana)


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(0)) * 0.1


def pipeline_with(backbone: Sana, folder: Path, vectors: torch.Tensor, tmp_path: Path) -> SanaPipeline:
    """A plain pipeline with the word <X>."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(words.save_learned_embeds(backbone, "<X>", vectors))
    pipeline = SanaPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert textinv_ray.load_words(pipeline, str(file)) == ["<X>"]
    return pipeline


@settings(deadline=None)
@given(PIECES)
@example(["<x>"])
@example([" ", "<x>", " "])
@example(["a ", "<x>", "<x>", "s!"])
def test_ids_are_those_of_the_plain_tokenizer_with_added_tokens(pieces: list[str]) -> None:
    """With the instruction before it and without, in lower case, cut as the pipeline cuts."""
    prompt = "".join(pieces).lower().strip()
    word = PLAIN.convert_tokens_to_ids("<x>")
    for negative in (False, True):
        prefix = "" if negative else "User Prompt: "
        length = 20 if negative else len(PLAIN.encode(prefix)) + 20 - 2
        whole = PLAIN(prefix + prompt).input_ids
        if word in whole[length:]:
            with pytest.raises(ValueError, match=f"longer than the {length - 1} tokens that .* gemma reads"):
                GEMMA.tokenize("", pieces, {"<x>": [-1]}, negative=negative)
            continue
        found = GEMMA.tokenize("", pieces, {"<x>": [-1]}, negative=negative)
        expected = [-1 if id_ == word else id_ for id_ in whole[:length]]
        assert found == expected + [PLAIN.pad_token_id] * (GEMMA.max_tokens - len(expected))


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_prompts_are_encoded_as_the_pipeline_does(
    sana: Sana, tiny_sana: Path, tmp_path: Path, num_vectors: int
) -> None:
    vectors = rows(num_vectors)
    pipeline = pipeline_with(sana, tiny_sana, vectors, tmp_path)
    expected = pipeline.encode_prompt(
        PROMPTS, negative_prompt=PROMPTS, device="cpu", complex_human_instruction=LINES
    )
    counts = {"<X>": num_vectors}
    for states, mask, negative in ((*expected[:2], False), (*expected[2:], True)):
        condition = sana.encode(words.tokenize(sana, PROMPTS, counts, negative=negative), vectors)
        assert condition.mask is not None
        assert torch.equal(condition.mask, mask)
        there = mask.bool()
        torch.testing.assert_close(condition.hidden_states[there], states[there], rtol=1e-4, atol=1e-5)


def test_a_step_is_that_of_a_plain_loop_with_diffusers_own_calls(
    sana: Sana, tiny_sana: Path, tmp_path: Path
) -> None:
    """Losses and gradient of one step, with a larger embedding table and the transformer called as diffusers does."""
    task = ConceptTask(tiny.concept(0, steps=3, batch_size=1, placeholder_token="<X>"), sana, CONFIG)
    pack = Pack(sana, CONFIG, 1)
    pack.add(task)
    losses, gradient = pack.losses_and_gradient()
    draws, vectors = task.draw(), task.vectors

    pipeline = pipeline_with(sana, tiny_sana, vectors, tmp_path)
    table = pipeline.text_encoder.get_input_embeddings().weight
    table.requires_grad_()
    assert task.tensors["latent_stds"].count_nonzero() == 0
    latents = task.tensors["latent_means"][draws.latents]
    u = torch.sigmoid(torch.distributions.Normal(0.0, 1.0).icdf(draws.levels)).float()
    sigmas = 3 * u / (1 + 2 * u)
    noisy = (1 - sigmas) * latents + sigmas * draws.noise[1]
    prompt = words.fill(task.concept.templates[int(draws.prompts[0])], "<X>")
    states, mask, _, _ = pipeline.encode_prompt(
        prompt, do_classifier_free_guidance=False, device="cpu", complex_human_instruction=LINES
    )
    prediction = pipeline.transformer(
        noisy,
        encoder_hidden_states=states,
        encoder_attention_mask=mask,
        timestep=sigmas * 1000,
        return_dict=False,
    )[0]
    loss = (prediction - (draws.noise[1] - latents)).square().mean()
    (expected,) = torch.autograd.grad(loss, table)
    torch.testing.assert_close(losses, loss.detach()[None], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        gradient[0], expected[pipeline.tokenizer.convert_tokens_to_ids("<x>")], rtol=1e-3, atol=1e-7
    )


@pytest.mark.parametrize("sampler", ["euler", "dpmsolver++"])
@pytest.mark.parametrize("negative", [None, "a <x> house"])
def test_pictures_equal_those_of_a_plain_script(
    sana: Sana, tiny_sana: Path, tmp_path: Path, sampler: str, negative: str | None
) -> None:
    config = ReviewConfig.model_validate(
        {"num_inference_steps": 3, "sampler": sampler, "guidance_scale": 4.0}
    )
    vectors = rows(2)
    pipeline = pipeline_with(sana, tiny_sana, vectors, tmp_path)
    if sampler == "euler":
        pipeline.scheduler = sana.sampler(sampler)
        assert pipeline.scheduler.config.shift == 3
    plain = [
        pipeline(
            prompt,
            negative_prompt=negative or "",
            num_inference_steps=3,
            guidance_scale=4.0,
            height=32,
            width=32,
            use_resolution_binning=False,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images[0]
        for seed, prompt in enumerate(PROMPTS)
    ]
    expected = (np.stack(plain) * 255).round().astype(int)
    counts = {"<X>": 2}
    negative_ids = None if negative is None else words.tokenize(sana, [negative] * 3, counts, negative=True)
    ours = sample_ids(
        sana, words.tokenize(sana, PROMPTS, counts), vectors, [0, 1, 2], config, negative_ids=negative_ids
    )
    assert np.abs(ours.astype(int) - expected).max() <= 1
    assert expected.std() > 5


def test_pictures_do_not_depend_on_padding(sana: Sana) -> None:
    """The mask hides states of padding, whatever they are."""
    condition = sana.encode(words.tokenize(sana, ["a cat"]))
    assert condition.mask is not None
    noisy, levels = torch.randn(1, *tiny.LATENT_SHAPE), torch.tensor([0.5])
    padding = ~condition.mask.bool()[..., None]
    other = condition._replace(hidden_states=condition.hidden_states + 7 * padding)
    torch.testing.assert_close(sana.predict(noisy, levels, condition), sana.predict(noisy, levels, other))


def test_the_shift_of_a_scheduler_of_flow_matching_counts(tiny_sana: Path, tmp_path: Path) -> None:
    """DPM-Solver++ has a name of its own for it, with a default."""
    folder = shutil.copytree(tiny_sana, tmp_path / "sana")
    FlowMatchEulerDiscreteScheduler(shift=2.5).save_pretrained(folder / "scheduler")
    made = tiny_flow.load_sana(folder)
    assert made.shift((16, 16)) == 2.5
    assert made.sampler("euler").config.shift == 2.5
    assert made.sampler("dpmsolver++").config.flow_shift == 2.5
