from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from tests.support import tiny
from textinv_ray.inversion import words
from textinv_ray.inversion.families.stable_diffusion import StableDiffusion
from textinv_ray.inversion.families.text_encoder import CLIPEncoder, in_order


def random_vectors(count: int, dim: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture
def encoder(backbone: StableDiffusion) -> CLIPEncoder:
    (only,) = backbone.encoders
    assert isinstance(only, CLIPEncoder)
    return only


def test_prompts_without_words_are_encoded_as_transformers_does(
    backbone: StableDiffusion, encoder: CLIPEncoder
) -> None:
    ids = words.tokenize(backbone, ["a photo of a cat", "", "unknown things, too"])
    expected = backbone.text_encoder(ids, output_hidden_states=True)
    for rows in (None, random_vectors(2)):
        found = encoder.run(ids, rows, all_hidden_states=True)
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
        assert len(found.hidden_states) == 3
        assert all(map(torch.equal, found.hidden_states, expected.hidden_states))


def test_gradient_is_that_of_a_resized_table(backbone: StableDiffusion, encoder: CLIPEncoder) -> None:
    rows = random_vectors(2).requires_grad_()
    ids = words.tokenize(backbone, ["a <x> <x> on the <y>"], {"<x>": 1, "<y>": 1})
    (gradient,) = torch.autograd.grad(encoder.run(ids, rows).last_hidden_state.square().sum(), rows)

    resized = copy.deepcopy(backbone.text_encoder)
    vocabulary = len(encoder.table)
    resized.resize_token_embeddings(vocabulary + 2)
    table = resized.get_input_embeddings().weight
    table.data[-2:] = rows.detach()
    table.requires_grad_()
    added = torch.where(ids < 0, vocabulary - 1 - ids, ids)
    (expected,) = torch.autograd.grad(resized(added).last_hidden_state.square().sum(), table)
    torch.testing.assert_close(gradient, expected[-2:])


def test_no_hook_stays_behind(backbone: StableDiffusion, encoder: CLIPEncoder) -> None:
    ids = words.tokenize(backbone, ["a <x>"], {"<x>": 1})
    with pytest.raises(RuntimeError):
        encoder.run(ids, random_vectors(1, dim=31))
    encoder.run(ids, random_vectors(1))
    assert not backbone.text_encoder.get_input_embeddings()._forward_hooks


def test_threads_do_not_meet_each_others_words(backbone: StableDiffusion) -> None:
    ids = words.tokenize(backbone, ["a photo of <x>"], {"<x>": 1})
    tables = [random_vectors(1, seed=seed) for seed in range(20)]
    expected = [backbone.encode(ids, table).hidden_states for table in tables]
    # A pause where one thread has its words in place and another may come in
    pause = backbone.text_encoder.embeddings.register_forward_pre_hook(lambda *_: time.sleep(0.002))
    try:
        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(lambda table: backbone.encode(ids, table).hidden_states, tables))
    finally:
        pause.remove()
    assert all(torch.equal(result, known) for result, known in zip(results, expected, strict=True))


def test_each_encoder_has_its_part_of_ids_and_rows(backbone: StableDiffusion) -> None:
    """Two encoders read their own columns of the same rows, and their own tokens of the same line."""
    model, tokenizer = backbone.text_encoder, backbone.tokenizer
    first, second = in_order([CLIPEncoder(name, tokenizer, model) for name in ("clip_l", "clip_g")])
    length = tiny.MAX_TOKENS
    assert (first.columns, second.columns) == (slice(0, 32), slice(32, 64))
    assert (first.tokens, second.tokens) == (slice(0, length), slice(length, 2 * length))
    lines = words.tokenize(backbone, ["a <x>", "the <x> house"], {"<x>": 2})
    ids = lines.reshape(1, 2 * length)
    rows = random_vectors(2, dim=64)
    (alone,) = in_order([CLIPEncoder("clip_l", tokenizer, model)])
    for place, encoder in enumerate((first, second)):
        expected = alone.encode(lines[place][None], rows[:, 32 * place :][:, :32].contiguous())
        assert torch.equal(encoder.encode(ids, rows).hidden_states, expected.hidden_states)


def test_the_end_of_a_prompt(backbone: StableDiffusion, encoder: CLIPEncoder) -> None:
    """Where the first end token is: padding, which is the same token here, comes after it."""
    ids = words.tokenize(backbone, ["", "a <x>", "a cat", "cat " * 50], {"<x>": 3})
    assert encoder.tokenizer.pad_token_id == encoder.tokenizer.eos_token_id
    assert encoder.end_of(ids).tolist() == [1, 5, 3, tiny.MAX_TOKENS - 1]


def test_the_mean_and_the_norm_of_the_vocabulary(encoder: CLIPEncoder, backbone64: StableDiffusion) -> None:
    table = encoder.model.get_input_embeddings().weight
    assert (encoder.dim, encoder.max_tokens) == (32, tiny.MAX_TOKENS)
    torch.testing.assert_close(encoder.mean, table.mean(dim=0))
    assert encoder.norm == pytest.approx(table.norm(dim=1).mean().item())
    assert encoder.mean.dtype == torch.float32
    assert backbone64.encoders[0].mean.dtype == torch.float64


def test_embeddings_of_a_text(encoder: CLIPEncoder) -> None:
    red, cat = (encoder.tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in ("red", "cat"))
    assert encoder.token_ids("red Cat") == [red, cat]
    assert torch.equal(encoder.token_embeddings("red cat"), encoder.table[[red, cat]])
    with pytest.raises(ValueError, match="' ' gives no token"):
        encoder.token_embeddings(" ")


def test_the_nearest_words_are_whole_words_by_falling_cosine(encoder: CLIPEncoder) -> None:
    cat, house = encoder.token_embeddings("cat house")
    assert encoder.nearest_words(3 * cat[None], 1) == ["cat"]
    found = encoder.nearest_words(torch.stack([cat, house]), 1000)
    tokens = [f"{word}</w>" for word in found]
    assert set(tokens) == {token for token in encoder.tokenizer.get_vocab() if token.endswith("</w>")}
    ids = torch.tensor(encoder.tokenizer.convert_tokens_to_ids(tokens))
    cosines = F.cosine_similarity(encoder.table[ids], (cat + house)[None]).tolist()
    assert cosines == pytest.approx(sorted(cosines, reverse=True), abs=1e-6)
