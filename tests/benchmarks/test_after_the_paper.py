"""benchmarks/after_the_paper.py: what its variants compute, and the whole at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import after_the_paper
from benchmarks.after_the_paper import ClipWords, PerLayerBackbone
from tests.support import examples, tiny
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.inversion.pack import Pack
from textinv_ray.inversion.sampling import sample_images
from textinv_ray.inversion.scoring import Scorer
from textinv_ray.inversion.task import ConceptTask


def double(folder: Path) -> Backbone:
    """float64, so that equal mathematics gives equal numbers."""
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    for model in backbone.models:
        model.to(torch.float64)
    return backbone


def noise_prediction(backbone: Backbone, prompt: str, vectors: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((1, *tiny.LATENT_SHAPE), generator=generator, dtype=torch.float64)
    ids = words.tokenize(backbone, [prompt], {"<x>": len(vectors)})
    return backbone.predict(latents, torch.tensor([500]), backbone.encode(ids, vectors))


def test_per_layer_words_with_equal_vectors_are_plain_words(tiny_sd: Path) -> None:
    """And where a layer's vector differs, so does the prediction: each layer reads its own."""
    plain, per_layer = double(tiny_sd), PerLayerBackbone.of(double(tiny_sd))
    assert per_layer.layers == 4
    vector = torch.randn((1, 32), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prompt = "a photo of <x> on the beach with <x>"
    expected = noise_prediction(plain, prompt, vector)
    vectors = vector.repeat(4, 1).requires_grad_()
    predicted = noise_prediction(per_layer, prompt, vectors)
    torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(predicted.square().sum(), vectors)
    assert (gradient.norm(dim=1) > 0).all()
    for layer in range(4):
        other = vector.repeat(4, 1)
        other[layer] *= -1  # adding the same to all numbers would be lost in the encoder's layer norms
        assert not torch.allclose(noise_prediction(per_layer, prompt, other), expected, atol=1e-6)


def test_a_layer_reads_its_own_vector_of_each_word(tiny_sd: Path) -> None:
    backbone = PerLayerBackbone.of(tiny.load_sd(tiny_sd))
    end = backbone.tokenizer.eos_token_id
    read = backbone.read_by(2, words.tokenize(backbone, ["a <x> in <y>"], {"<x>": 4, "<y>": 4}))[0].tolist()
    a, within = (backbone.tokenizer(text, add_special_tokens=False).input_ids[0] for text in ("a", "in"))
    begin_token, padding = backbone.tokenizer.bos_token_id, backbone.tokenizer.pad_token_id
    assert read == [begin_token, a, -1 - 2, within, -1 - 6, end] + [padding] * (tiny.MAX_TOKENS - 6)
    plain = words.tokenize(backbone, ["a photo"])
    assert torch.equal(backbone.read_by(3, plain), plain)


def test_per_layer_words_are_learned_in_packs_as_alone(tiny_sd: Path) -> None:
    backbone, config = PerLayerBackbone.of(double(tiny_sd)), JobConfig()

    def learn(indices: list[int]) -> list[torch.Tensor]:
        concepts = [tiny.concept(index, num_vectors=4, batch_size=1 + index) for index in indices]
        tasks = [ConceptTask(concept, backbone, config) for concept in concepts]
        pack = Pack(backbone, config, len(tasks))
        for task in tasks:
            pack.add(task)
        while pack.tasks:
            pack.step()
        return [task.vectors for task in tasks]

    for together, index in zip(learn([0, 1, 2]), range(3), strict=True):
        (alone,) = learn([index])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
        assert len({tuple(vector) for vector in together.tolist()}) == 4
    pictures = sample_images(backbone, {"<x>": together}, ["a photo of <x>"], [0], config.review)
    assert pictures.shape == (1, 16, 16, 3)


def test_clip_words_are_the_nearest_of_the_vocabulary(tiny_sd: Path, tiny_clip: Path) -> None:
    backbone, scorer = tiny.load_sd(tiny_sd), Scorer.load(str(tiny_clip))
    concept = tiny.concept()
    nearest = ClipWords(backbone, scorer).nearest(concept, 30)
    assert {"cat", "dog", "red"} <= set(nearest)
    assert not {"<", ">", ",", "1", "a"} & set(nearest)
    images = scorer.image_features(concept.images[:, 0])
    texts = scorer.text_features([f"a photo of a {word}" for word in nearest])
    cosines = (images @ texts.T).mean(dim=0).tolist()
    assert cosines == pytest.approx(sorted(cosines, reverse=True), abs=1e-6)


@pytest.mark.slow
def test_after_the_paper_to_its_end_and_no_further(tmp_path: Path, tiny_sd: Path, tiny_clip: Path) -> None:
    manifest = examples.write_manifest(tmp_path / "data", 2)
    settings = [f"--set={setting}" for setting in examples.settings(tiny_sd, tiny_clip)]
    arguments = [str(manifest), "-o", str(tmp_path / "out"), "--seeds", "2", "--measure", "0.1", *settings]
    after_the_paper.main(arguments)
    budget = json.loads((tmp_path / "out" / "budget.json").read_text())
    assert budget["base"]["steps"] == 6
    notes = (tmp_path / "out" / "scores.jsonl").read_text()
    lines = [json.loads(line) for line in notes.splitlines()]
    assert (
        len({(line["method"], line["concept"], line["seed"], line["share"]) for line in lines})
        == 5 * 2 * 2 * 2
    )
    table = pq.read_table(tmp_path / "out" / "table.parquet").to_pylist()
    assert [(row["share"], row["name"]) for row in table if row["runs"] == 4] == [
        (share, method) for share in (0.25, 1.0) for method in after_the_paper.METHODS
    ]
    final = [line["image"] for line in lines if (line["method"], line["share"]) == ("base", "1")]
    assert table[5]["reconstruction"] == pytest.approx(np.mean(final))

    # Stopped in the middle, it goes on to the same end
    (tmp_path / "out" / "scores.jsonl").write_text("".join(line + "\n" for line in notes.splitlines()[:-3]))
    after_the_paper.main(arguments)
    assert sorted((tmp_path / "out" / "scores.jsonl").read_text().splitlines()) == sorted(notes.splitlines())
