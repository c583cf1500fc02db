"""Prompts against the text encoder: what `validate` says is what the learning would say, prompt by prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.support import tiny, tiny_flow
from tests.support.tables import Write, good, problems
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import words
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.families.loading import load_backbone
from textinv_ray.manifest.batch import Batch
from textinv_ray.manifest.prompt_checks import PromptChecks
from textinv_ray.manifest.vocabulary import Vocabulary

CONFIG = JobConfig.load("mini", ["training.steps=200"])
ROOM = tiny.MAX_TOKENS - 2
LONG = "a " * (ROOM - 1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"templates": [LONG + "a {}"]}, "column 'templates': 'a a a"),
        ({"captions": [LONG + "a {}"]}, "column 'captions': 'a a a"),
        ({"prompts": [LONG + "a {}"]}, "column 'prompts': 'a a a"),
        ({"templates": [LONG + "a <c1>"]}, "column 'templates': 'a a a"),
        (
            {"templates": [LONG + "{}"], "num_vectors": 2},
            "so the word, with 2 vectors, would be cut off; shorten it",
        ),
        (
            {"templates": [LONG + "{}"], "vectors_added_at": [5]},
            "so the word, with 2 vectors, would be cut off",
        ),
        ({"templates": [LONG + "{}"], "per_image_probability": 0.5}, "column 'templates': "),
        (
            {"templates": ["{} {}"], "num_vectors": 12, "prompts": ["{}"]},
            "column 'templates': '{} {}' is longer than",
        ),
        ({"num_vectors": ROOM - 1}, "column 'num_vectors': 'a photo of {}"),
        (
            {"num_vectors": ROOM - 6},
            "column 'num_vectors': 'a cropped photo of the {}' is longer than the 22 tokens that the model's "
            "text encoder clip_l reads",
        ),
    ],
)
def test_prompts_that_are_too_long(write: Write, columns: dict[str, Any], message: str) -> None:
    row: dict[str, Any] = {name: [None, value, None] for name, value in columns.items()}
    found = problems(write(**good(**row)), CONFIG, tokenizers={"clip_l": tiny.tokenizer()})
    assert found
    assert all(line.startswith("row 1 (c1), ") for line in found)
    assert message in found[0]


def test_the_text_encoders_are_named(write: Write) -> None:
    """Those that read the least; a language model reads more."""
    short = tiny.tokenizer()
    short.model_max_length = 20
    path = write(**good(1, templates=[[LONG + "{}"]]))
    one, both = "text encoder clip_l reads", "text encoders clip_l and clip_g read"
    for second, who in ((tiny.tokenizer(), one), (short, both)):
        tokenizers = {"clip_l": short, "clip_g": second, "t5xxl": tiny_flow.t5_tokenizer()}
        (found,) = problems(path, CONFIG, tokenizers=tokenizers)
        assert f"longer than the 18 tokens that the model's {who}" in found


def test_what_stands_behind_the_word_may_be_cut_off(write: Write) -> None:
    fine = {"templates": [LONG + "{}", "{} " + LONG * 9], "prompts": ["{}" + LONG * 2], "num_vectors": 1}
    columns: dict[str, Any] = {name: [value] for name, value in fine.items()}
    path = write(**good(1, **columns))
    assert problems(path, CONFIG, tokenizers={"clip_l": tiny.tokenizer()}) == []


def test_prompts_of_the_configuration(write: Write) -> None:
    path = write(**good(1, num_vectors=[ROOM - 2], templates=[["{}"]], prompts=[["{}"]]))
    (found,) = problems(path, CONFIG, tokenizers={"clip_l": tiny.tokenizer()})
    assert found.startswith("row 0 (c0), column 'num_vectors': 'a photo of {}'")
    plain = CONFIG.override(["scoring.evaluate_at=[]", "stopping.rule=none"])
    assert problems(path, plain, tokenizers={"clip_l": tiny.tokenizer()}) == [found], (
        "the last step is always scored"
    )


def test_prompts_of_context_regularisation(write: Write) -> None:
    """Where a row has it; in the configuration for rows without the column."""
    prompts = f'training.context_prompts={{object: ["{LONG}a {{}}"], style: ["{{}}"]}}'
    config, tokenizers = CONFIG.override([prompts]), {"clip_l": tiny.tokenizer()}
    path = write(**good(3, context_weight=[None, 0.1, 0.0]))
    (found,) = problems(path, config, tokenizers=tokenizers)
    assert found.startswith("row 1 (c1), column 'num_vectors': '")
    everywhere = config.override(["training.context_weight=0.1"])
    assert [line[:5] for line in problems(path, everywhere, tokenizers=tokenizers)] == ["row 0", "row 1"]


@pytest.fixture(scope="module")
def backbone(tiny_sd: Path) -> Backbone:
    return load_backbone(str(tiny_sd), dtype="float32")


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.sampled_from(["{}", "a", " ", "photo", "of", "é", "кот", "<C0>", ",", "xyz"]), max_size=30
    ),
    count=st.integers(1, 26),
    beside=st.booleans(),
)
def test_the_check_agrees_with_the_learning(
    backbone: Backbone, pieces: list[str], count: int, beside: bool
) -> None:
    text = " ".join(pieces)
    assume("{}" in text)
    rows = {
        "concept_id": ["c0"],
        "templates": [[text]],
        "num_vectors": [count],
        "per_image_probability": [0.5 if beside else 0.0],
    }
    checks = PromptChecks(CONFIG, Vocabulary({"clip_l": tiny.tokenizer()}))
    found = [column for _, column, _ in checks.problems(Batch(pa.RecordBatch.from_pydict(rows)))]
    filled = text.replace("{}", "<c0> with <image>" if beside else "<c0>")
    try:
        words.tokenize(backbone, [filled], {"<c0>": count, "<image>": 1})
        assert "templates" not in found
    except ValueError:
        assert "templates" in found
