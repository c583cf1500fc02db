"""The models that ship: what any diffusers or transformers program may expect of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from transformers import CLIPModel

from benchmarks.job import concepts_of
from tests.support.commands import REPOSITORY, textinv
from textinv_ray.concepts.retrieval import Features, retrieval_top1
from textinv_ray.concepts.word_files import write_word
from textinv_ray.config import protocol
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import Scorer, load_backbone, sample_images, save_learned_embeds
from textinv_ray.inversion.evaluation import Evaluator, LearnedConcept, Protocol
from textinv_ray.inversion.families.diffusion_unet import SAMPLERS
from textinv_ray.inversion.words import initial_vectors
from textinv_ray.service.models import loading, sources
from training.captions import NAME_COUNT
from training.world import names

HELDOUT = REPOSITORY / "benchmarks" / "heldout.parquet"
SD, SDXL, CLIP = (Path(sources.resolve(name)) for name in ("mini-sd", "mini-sdxl", "mini-clip"))


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(SD, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_small_safe_and_documented() -> None:
    files = [path for folder in (SD, CLIP) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    assert (SD / "README.md").is_file()
    assert (CLIP / "README.md").is_file()


def test_the_judge_is_small_safe_and_knows_characters() -> None:
    """By five views each of characters that no training saw: three find the other two among twelve."""
    folder = Path(sources.resolve("mini-judge"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}
    assert (folder / "README.md").is_file()
    config = JobConfig.load("mini")
    assert config.scoring.judge == "mini-judge"
    judge = loading.judge(config)
    assert judge is not None
    views = [judge.image_features(one.images[:, 0]).numpy() for one in concepts_of(str(HELDOUT), config)]
    assert np.mean(retrieval_top1([Features.of(one[:3], one[3:]) for one in views])) > 0.9


def test_mini_sdxl_is_small_safe_and_documented() -> None:
    files = [path for path in SDXL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    assert (SDXL / "README.md").is_file()


def test_mini_sdxl_shares_files_with_mini_sd() -> None:
    """To the bit: so that the repository holds them once."""
    for name in (
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/vocab.json",
    ):
        assert (SDXL / name).read_bytes() == (SD / name).read_bytes()


def test_mini_sdxl_has_what_is_special_about_sdxl() -> None:
    loaded = StableDiffusionXLPipeline.from_pretrained(SDXL)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.force_zeros_for_empty_prompt
    assert loaded.text_encoder_2.config.eos_token_id == 2
    assert loaded.text_encoder_2.config.eos_token_id != loaded.tokenizer_2.eos_token_id
    first, second = loaded.text_encoder.config.hidden_size, loaded.text_encoder_2.config.hidden_size
    assert loaded.unet.config.cross_attention_dim == first + second
    assert loaded.unet.config.addition_embed_type == "text_time"
    assert loaded.tokenizer.get_vocab() == loaded.tokenizer_2.get_vocab()
    images = [
        loaded(
            "a smiling person with ginger hair",
            generator=torch.Generator().manual_seed(3),
            num_inference_steps=4,
            output_type="np",
            **size,
        ).images
        for size in ({}, {"crops_coords_top_left": (24, 24)}, {"original_size": (24, 24)})
    ]
    assert images[0].shape == (1, 64, 64, 3)
    assert abs(images[0] - images[1]).max() > 0.02
    assert abs(images[0] - images[2]).max() > 0.02


def test_is_a_stable_diffusion_of_its_own_size(pipeline: StableDiffusionPipeline) -> None:
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    assert pipeline.unet.config.sample_size * pipeline.vae_scale_factor == 64
    assert pipeline.unet.config.in_channels == 4
    config, tokenizer = pipeline.text_encoder.config, pipeline.tokenizer
    assert (config.eos_token_id, config.bos_token_id) == (tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert config.vocab_size == len(tokenizer)
    assert config.max_position_embeddings == tokenizer.model_max_length


def test_words_have_the_norm_of_clips(pipeline: StableDiffusionPipeline) -> None:
    table = pipeline.text_encoder.get_input_embeddings().weight.detach().float()
    assert float(table.norm(dim=1).max()) < 0.41
    named = [ids[1] for ids in pipeline.tokenizer(names(NAME_COUNT)).input_ids]
    norms = table[torch.tensor(named)].norm(dim=1)
    assert float(norms.min()) > 0.39


def test_the_scorer_shares_no_weight_with_what_it_scores(pipeline: StableDiffusionPipeline) -> None:
    clip = CLIPModel.from_pretrained(CLIP)
    assert clip.config.text_config.hidden_size != pipeline.text_encoder.config.hidden_size
    assert clip.config.vision_config.image_size == 64


def test_a_word_draws_the_same_in_a_plain_script(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    backbone, config = load_backbone(str(SD), dtype="float32"), JobConfig.load("mini").review
    vectors = initial_vectors(backbone, "ginger hair", 2) + 0.01
    (tmp_path / "learned_embeds.safetensors").write_bytes(save_learned_embeds(backbone, "<it>", vectors))
    ours = sample_images(backbone, {"<it>": vectors}, ["a photo of a <it> on a blue background"], [7], config)
    pipeline.load_textual_inversion(str(tmp_path / "learned_embeds.safetensors"))
    pipeline.scheduler = SAMPLERS[config.sampler].from_config(pipeline.scheduler.config)
    theirs = pipeline(
        "a photo of a <it> on a blue background",
        generator=torch.Generator().manual_seed(7),
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        output_type="np",
    ).images
    assert abs(ours.astype(float) - theirs * 255).max() <= 1.5


def test_two_words_in_one_prompt_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = load_backbone(str(SD))
    sources = []
    for name, phrase in (("fox", "ginger hair"), ("ink", "line drawing")):
        path = tmp_path / f"{name}.safetensors"
        word = {"clip_l": initial_vectors(backbone, phrase, 2).numpy()}
        path.write_bytes(write_word("comfyui", f"<{name}>", word)[""])
        sources += ["--words", str(path)]
    out = tmp_path / "pictures"
    options = ["-n", "2", "--steps", "2", "--output", str(out), *sources]
    assert textinv("generate", "a <fox> person as a <ink>", *options) == 0
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png", "grid.png"]
    with Image.open(out / "grid.png") as grid:
        assert grid.size == (128, 64)


@pytest.mark.slow
def test_the_evaluation_knows_what_it_sees() -> None:
    """Pictures of a phrase: the phrase brings them back better than a prompt that says nothing of it."""
    backbone = load_backbone(str(SD))
    phrase = "person with ginger hair and a green shirt"
    review = JobConfig.load("mini", ["review.num_inference_steps=8"]).review
    training = sample_images(backbone, {}, [f"a photo of a {phrase}"] * 4, [90, 91, 92, 93], review)
    quick = Protocol.of(protocol.load("quick"), review, bundled=True)
    word = {"clip_l": initial_vectors(backbone, phrase, 6).numpy()}
    subject = LearnedConcept("<it>", word, "object", training, f"a {phrase}")
    scores = Evaluator(backbone, {"clip": Scorer.load(str(CLIP))}, quick).evaluate(subject).scores
    image = {name: scores[f"clip_image_similarity{name}"] for name in ("", "_description", "_without_word")}
    assert image["_description"] > image["_without_word"] + 0.1
    assert image[""] > image["_without_word"] + 0.1, "a word of the phrase's own vectors says the same"
    assert scores["clip_text_similarity"] > scores["clip_text_similarity_training_images"]
