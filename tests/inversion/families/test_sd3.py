"""Stable Diffusion 3: three encoders and a flow; against plain diffusers and plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

import textinv_ray
from tests.support import tiny, tiny_flow
from tests.support.learning import alone, assert_same, run
from textinv_ray.concepts.word_files import read_words, store_word, write_word
from textinv_ray.config.job import JobConfig, ReviewConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.families.sd3 import StableDiffusion3
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.sampling import sample_ids
from textinv_ray.inversion.task import ConceptTask
from textinv_ray.util.errors import UserError

PROMPTS = ["a photo of <x>", "<x> and <x>, my <x>!", "a cat"]
CONFIG = JobConfig.from_dict({"training": {"max_grad_norm": 0.05}})
CONCEPTS = [
    tiny.concept(0, steps=3, batch_size=1),
    tiny.concept(1, steps=2, batch_size=3, num_vectors=2, norm_control="rescale"),
    tiny.concept(2, steps=4, batch_size=2, norm_control="regularize", regularization_weight=0.01),
]


@pytest.fixture(scope="module")
def sd3(tiny_sd3: Path) -> StableDiffusion3:
    return tiny_flow.load_sd3(tiny_sd3)


@pytest.fixture(scope="module")
def sd3_64(tiny_sd3: Path) -> StableDiffusion3:
    backbone = tiny_flow.load_sd3(tiny_sd3)
    for model in backbone.models:
        model.to(torch.float64)
    return backbone


def rows(count: int, dim: int = 152) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(0)) * 0.1


def pipeline_with(
    backbone: StableDiffusion3, folder: Path, vectors: torch.Tensor, tmp_path: Path
) -> StableDiffusion3Pipeline:
    """A plain pipeline with the word <x>."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(words.save_learned_embeds(backbone, "<x>", vectors))
    absent = {} if backbone.text_encoder_3 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    assert textinv_ray.load_words(pipeline, str(file)) == ["<x>"]
    return pipeline


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_prompts_are_encoded_as_the_pipeline_does(
    sd3: StableDiffusion3, tiny_sd3: Path, tmp_path: Path, num_vectors: int
) -> None:
    vectors = rows(num_vectors)
    pipeline = pipeline_with(sd3, tiny_sd3, vectors, tmp_path)
    assert pipeline.text_encoder_2.config.eos_token_id == pipeline.tokenizer_2.eos_token_id
    expected, _, pooled, _ = pipeline.encode_prompt(
        PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=tiny.MAX_TOKENS
    )
    condition = sd3.encode(words.tokenize(sd3, PROMPTS, {"<x>": num_vectors}), vectors)
    torch.testing.assert_close(condition.hidden_states, expected)
    torch.testing.assert_close(condition.pooled, pooled)


def test_gradients_reach_the_word_through_all_encoders(sd3: StableDiffusion3) -> None:
    ids = words.tokenize(sd3, ["a photo of <x>"], {"<x>": 1})
    vectors = rows(1).requires_grad_()
    condition = sd3.encode(ids, vectors)
    assert condition.pooled is not None
    (of_states,) = torch.autograd.grad(condition.hidden_states.square().sum(), vectors, retain_graph=True)
    (of_pooled,) = torch.autograd.grad(condition.pooled.square().sum(), vectors)
    assert (of_states != 0).all()
    assert (of_pooled[:, :72] != 0).all()
    assert (of_pooled[:, 72:] == 0).all()


def test_a_step_is_that_of_a_plain_loop_with_diffusers_own_calls(
    sd3: StableDiffusion3, tiny_sd3: Path, tmp_path: Path
) -> None:
    """Losses and gradient of one step, with larger embedding tables and the transformer called as diffusers does."""
    task = ConceptTask(CONCEPTS[0], sd3, CONFIG)
    pack = Pack(sd3, CONFIG, 1)
    pack.add(task)
    losses, gradient = pack.losses_and_gradient()
    draws, vectors = task.draw(), task.vectors

    pipeline = pipeline_with(sd3, tiny_sd3, vectors, tmp_path)
    encoders = pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3
    tables = [encoder.get_input_embeddings().weight for encoder in encoders]
    for table in tables:
        table.requires_grad_()
    latents = task.tensors["latent_means"] + task.tensors["latent_stds"] * draws.noise[0]
    latents = latents[draws.latents]
    normal = torch.distributions.Normal(0.0, 1.0).icdf(draws.levels)
    u = torch.sigmoid(normal).float()  # logit-normal, then shift 3
    sigmas = 3 * u / (1 + 2 * u)
    noisy = (1 - sigmas) * latents + sigmas * draws.noise[1]
    concept = task.concept
    prompt = words.fill(concept.templates[int(draws.prompts[0])], "<x>")
    states, _, pooled, _ = pipeline.encode_prompt(
        prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=tiny.MAX_TOKENS
    )
    prediction = pipeline.transformer(
        hidden_states=noisy,
        timestep=sigmas * 1000,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    loss = (prediction - (draws.noise[1] - latents)).square().mean()
    expected = torch.autograd.grad(loss, tables)
    torch.testing.assert_close(losses, loss.detach()[None], rtol=1e-5, atol=1e-7)
    tokenizers = pipeline.tokenizer, pipeline.tokenizer_2, pipeline.tokenizer_3
    ids = [tokenizer.convert_tokens_to_ids("<x>") for tokenizer in tokenizers]
    whole = torch.cat([part[id_] for part, id_ in zip(expected, ids, strict=True)])
    torch.testing.assert_close(gradient[0], whole, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("learns", [["t5xxl"], ["clip_l", "clip_g"]])
def test_encoders_that_do_not_learn(sd3_64: StableDiffusion3, learns: list[str]) -> None:
    """Their columns stay, the others move as the gradient of the whole loss says; packed equals alone."""
    config = JobConfig.from_dict({"training": {"encoders": learns}})
    expected = [alone(concept, sd3_64, config) for concept in CONCEPTS]
    tasks = [ConceptTask(concept, sd3_64, config) for concept in CONCEPTS]
    starts = [task.initial_vectors for task in tasks]
    pack = Pack(sd3_64, config, 3)
    for task in tasks:
        pack.add(task)
    _, partial = pack.losses_and_gradient()
    whole = Pack(sd3_64, CONFIG, 3)
    for concept, task in zip(CONCEPTS, tasks, strict=True):
        learns_all = ConceptTask(concept, sd3_64, CONFIG)
        # Encoders that don't learn keep the initializer's norm
        learns_all.tensors["vectors"].copy_(task.tensors["vectors"])
        whole.add(learns_all)
    _, gradient = whole.losses_and_gradient()
    for encoder in sd3_64.encoders:
        own = partial[:, encoder.columns]
        torch.testing.assert_close(
            own, gradient[:, encoder.columns] if encoder.name in learns else own * 0, rtol=1e-9, atol=1e-12
        )
    while pack.tasks:
        pack.step()
    for task, start, other in zip(tasks, starts, expected, strict=True):
        assert_same(task, other)
        for encoder in sd3_64.encoders:
            same = torch.equal(task.vectors[:, encoder.columns], start[:, encoder.columns])
            assert same == (encoder.name not in learns)


def test_rates_by_the_scale_of_each_table(tiny_sd3: Path) -> None:
    """After a step of Adam every element has moved by about its rate; T5's table here is 5 times as large as CLIP's."""
    backbone = tiny_flow.load_sd3(tiny_sd3)
    for model in backbone.models:
        model.to(torch.float64)
    assert backbone.text_encoder_3 is not None
    backbone.text_encoder_3.encoder.embed_tokens.weight.data.mul_(5)
    config = JobConfig.from_dict({"training": {"encoder_rates": "by_norm"}})
    tasks = [
        ConceptTask(concept, backbone, config)
        for concept in (CONCEPTS[0], tiny.concept(5, learning_rate=0.1))
    ]
    pack = Pack(backbone, config, 2)
    for task in tasks:
        pack.add(task)
    pack.step()
    first, *_, t5 = (encoder.table.square().mean().sqrt() for encoder in backbone.encoders)
    assert float(t5 / first) > 4
    for task in tasks:
        moved = (task.vectors - task.initial_vectors).abs() / task.concept.learning_rate
        for encoder in backbone.encoders:
            factor = encoder.table.square().mean().sqrt() / first
            expected = torch.full_like(moved[:, encoder.columns], float(factor))
            torch.testing.assert_close(moved[:, encoder.columns], expected, rtol=0.01, atol=0)


def test_an_encoder_that_does_not_learn_runs_once_per_prompt(tiny_sd3: Path) -> None:
    backbone = tiny_flow.load_sd3(tiny_sd3)
    config = JobConfig.from_dict({"training": {"encoders": ["clip_l", "clip_g"]}})
    encoded: list[int] = []
    assert backbone.text_encoder_3 is not None
    backbone.text_encoder_3.register_forward_hook(
        lambda _model, _inputs, output: encoded.append(len(output.last_hidden_state))
    )
    concepts = [tiny.concept(index, steps=12) for index in range(2)]
    run([ConceptTask(concept, backbone, config) for concept in concepts], backbone, 2, config)
    # Two concepts that begin with the same word have the same prompts here
    assert sum(encoded) == len(concepts[0].templates)


def test_large_encoders_run_once_for_equal_prompts_of_a_step(tiny_sd3: Path) -> None:
    backbone = tiny_flow.load_sd3(tiny_sd3)
    encoded: list[int] = []
    assert backbone.text_encoder_3 is not None
    backbone.text_encoder_3.register_forward_hook(
        lambda _model, _inputs, output: encoded.append(len(output.last_hidden_state))
    )
    alone(tiny.concept(0, steps=1, batch_size=16), backbone, CONFIG)
    assert encoded == [3]


@pytest.mark.parametrize("sampler", ["euler", "dpmsolver++"])
@pytest.mark.parametrize("negative", [None, "a <x> house"])
def test_pictures_equal_those_of_a_plain_script(
    sd3: StableDiffusion3, tiny_sd3: Path, tmp_path: Path, sampler: str, negative: str | None
) -> None:
    config = ReviewConfig.model_validate(
        {"num_inference_steps": 4, "sampler": sampler, "guidance_scale": 4.0}
    )
    vectors = rows(2)
    pipeline = pipeline_with(sd3, tiny_sd3, vectors, tmp_path)
    if sampler == "dpmsolver++":
        pipeline.scheduler = sd3.sampler(sampler)
        assert pipeline.scheduler.config.flow_shift == 3
    plain = [
        pipeline(
            prompt,
            negative_prompt=negative,
            num_inference_steps=4,
            guidance_scale=4.0,
            max_sequence_length=tiny.MAX_TOKENS,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images[0]
        for seed, prompt in enumerate(PROMPTS)
    ]
    expected = (np.stack(plain) * 255).round().astype(int)
    counts = {"<x>": 2}
    negative_ids = None if negative is None else words.tokenize(sd3, [negative] * 3, counts, negative=True)
    ours = sample_ids(
        sd3, words.tokenize(sd3, PROMPTS, counts), vectors, [0, 1, 2], config, negative_ids=negative_ids
    )
    assert np.abs(ours.astype(int) - expected).max() <= 1
    assert expected.std() > 5


def test_without_t5(tmp_path: Path) -> None:
    """The sequence has zeros in T5's place, and words have no vectors for it."""
    folder = tiny_flow.save_stable_diffusion_3(tmp_path / "sd3", with_t5=False)
    backbone = tiny_flow.load_sd3(folder)
    assert [encoder.name for encoder in backbone.encoders] == ["clip_l", "clip_g"]
    pipeline = pipeline_with(backbone, folder, rows(2, 72), tmp_path)
    expected, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    condition = backbone.encode(words.tokenize(backbone, PROMPTS, {"<x>": 2}), rows(2, 72))
    assert condition.hidden_states.shape == (3, tiny.MAX_TOKENS + 256, 80)
    torch.testing.assert_close(condition.hidden_states, expected)
    torch.testing.assert_close(condition.pooled, pooled)
    assert alone(CONCEPTS[0], backbone, CONFIG).done
    word = {"clip_l": (1, 32), "clip_g": (1, 40), "t5xxl": (1, 80)}
    with pytest.raises(ValueError, match="the model was loaded without t5xxl"):
        words.rows_of(backbone, {name: np.zeros(shape, np.float32) for name, shape in word.items()})
    with pytest.raises(UserError, match=r"this Stable Diffusion 3 / 3\.5 model has no t5xxl"):
        Pack(backbone, JobConfig.from_dict({"training": {"encoders": ["clip_l", "t5xxl"]}}), 1)


def test_files_of_words(sd3: StableDiffusion3, tmp_path: Path) -> None:
    """ComfyUI's keys in our file and in an export; OneTrainer's and diffusers' `t5` is read as `t5xxl`."""
    vectors = rows(2)
    parts = {name: part.numpy() for name, part in sd3.split(vectors).items()}
    assert list(parts) == ["clip_l", "clip_g", "t5xxl"]
    token, read = words.load_learned_embeds(sd3, words.save_learned_embeds(sd3, "<x>", vectors))
    assert token == "<x>"
    assert torch.equal(read, vectors)
    file = tmp_path / "cat.safetensors"
    file.write_bytes(write_word("comfyui", "<x>", parts)[""])
    assert list(read_words(file)["<cat>"]) == ["clip_l", "clip_g", "t5xxl"]
    file.write_bytes(
        store_word("<x>", {"t5": parts["t5xxl"], "clip_g": parts["clip_g"], "clip_l": parts["clip_l"]})
    )
    assert torch.equal(words.rows_of(sd3, read_words(file)["<x>"]), vectors)


@pytest.mark.parametrize(("encoder", "room"), [("clip_l", 22), ("clip_g", 22), ("t5xxl", 23)])
def test_a_prompt_that_is_too_long_for_one_encoder(sd3: StableDiffusion3, encoder: str, room: int) -> None:
    (found,) = [part for part in sd3.encoders if part.name == encoder]
    found.tokenize("", ["cat " * (room - 1), "<x>"], {"<x>": [-1]})
    with pytest.raises(ValueError, match=f"longer than the {room} tokens that .* {encoder} reads, so '<x>'"):
        found.tokenize("", ["cat " * room, "<x>"], {"<x>": [-1]})
