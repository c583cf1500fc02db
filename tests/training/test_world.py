"""What training may draw, what is held out, and what captions say."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from transformers import CLIPTokenizer

from training import world
from training.build import heldout_identities, heldout_views, row_of, training_views
from training.captions import NAME_COUNT, caption, colour_caption, full_caption, vocabulary_words
from training.tokenizer import extended, load
from training.world import (
    EDITED,
    HELDOUT_STYLES,
    STYLES,
    TRAINING_STYLES,
    compose,
    draw_identity,
    draw_view,
    edited,
    names,
)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    identities = [draw_identity(style, rng) for style in STYLES for _ in range(30)]
    return [
        row_of(identity, number, None, draw_view(identity, rng)) for number, identity in enumerate(identities)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """What training begins with: the vocabulary of the bundled model, and the words that it lacks yet."""
    return extended(load(), vocabulary_words())


def test_training_never_draws_what_is_held_out() -> None:
    views = list(training_views(2000, seed=3))
    assert {identity.style for identity, *_ in views} == set(TRAINING_STYLES)
    assert not any(identity.reserved for identity, *_ in views)


def test_heldout_views_are_those_that_all_figures_were_measured_on() -> None:
    views = [json.dumps([row_of(*view), view[3]["options"]]) for view in heldout_views()]
    assert hashlib.sha256("\n".join(views).encode()).hexdigest().startswith("d5d5093ba4c24ee5")


def test_heldout_identities() -> None:
    heldout = heldout_identities()
    characters = [identity for identity in heldout if identity.style not in HELDOUT_STYLES]
    assert len(characters) >= 60
    assert all(identity.reserved for identity in characters)
    assert len({identity.style for identity in characters}) >= 5
    assert Counter(identity.style for identity in heldout if identity.style in HELDOUT_STYLES).keys() == set(
        HELDOUT_STYLES
    )


def test_views_keep_the_identity() -> None:
    rng = np.random.default_rng(1)
    for style in STYLES:
        identity = draw_identity(style, rng)
        first, second = draw_view(identity, rng)["options"], draw_view(identity, rng)["options"]
        for part, value in identity.parts.items():
            assert first[part] == second[part] == (value if part == "seed" else [value])


def test_what_is_composed_changes_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = list(training_views(500, seed=3))
    monkeypatch.setattr(world, "COMPOSED", 0)
    plain = list(training_views(500, seed=3))
    assert [view[:3] for view in composed] == [view[:3] for view in plain]
    changed = [new for new, old in zip(composed, plain, strict=True) if new[3] != old[3]]
    assert 0.02 < len(changed) / len(plain) < 0.2
    assert all(row_of(*view)["composed"] for view in changed)
    assert not any("composed" in row_of(*view) for view in plain)


def test_captions_say_what_is_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "COMPOSED", 1)
    rng = np.random.default_rng(5)
    said: Counter[str] = Counter()
    for style in (style for style in TRAINING_STYLES for _ in range(20)):
        identity = draw_identity(style, rng)
        view = draw_view(identity, rng, accessories=0)
        background = view["background"]
        compose(identity, view, rng)
        text = full_caption(row_of(identity, 0, None, view))
        if "over" in view:
            assert view["accessory"] in ("glasses", "sunglasses")
            assert view["accessory"] in text
            assert view["options"].get("glassesProbability", 0) == 0, "two pairs"
            said[view["accessory"]] += 1
        if "disc" in view:
            assert background is None
            assert (
                f"on {'an' if view['background'] == 'orange' else 'a'} {view['background']} background"
                in text
            )
            said["background"] += 1
        if STYLES[style].kind == "pattern":
            assert not {"over", "disc"} & view.keys()
    assert said["sunglasses"] > said["glasses"] > 0
    assert said["background"] > 0


@pytest.mark.parametrize("style", [style for style in TRAINING_STYLES if STYLES[style].kind != "pattern"])
def test_every_character_can_be_drawn_as_the_card_edits_it(style: str) -> None:
    rng = np.random.default_rng(6)
    for _ in range(10):
        identity = draw_identity(style, rng)
        on_blue, with_sunglasses = (draw_view(identity, rng, accessories=0) for _ in EDITED)
        edited(identity, on_blue, EDITED[0], rng)
        edited(identity, with_sunglasses, EDITED[1], rng)
        assert on_blue["background"] == "blue"
        assert ("disc" in on_blue) != STYLES[style].has_background
        assert with_sunglasses["accessory"] == "sunglasses"
        spec, options = STYLES[style], with_sunglasses["options"]
        known = [*spec.main.items(), *((part, values) for part, (_, values) in spec.optional.items())]
        known += [(spec.accessory[0], dict(spec.accessory[1]))] if spec.accessory else []
        worn = [
            part
            for part, values in known
            if values.get(options[part][0]) == "sunglasses" and options.get(f"{part}Probability", 100)
        ]
        assert ("over" in with_sunglasses) != bool(worn)


def test_named_captions_have_the_name_and_nothing_of_the_parts(rows: list[dict[str, Any]]) -> None:
    rng = np.random.default_rng(2)
    for row in rows:
        text = caption(row, rng, name="zorak")
        assert "zorak" in text.split() or "zorak" in re.findall(r"\w+", text)
        assert not any(phrase in text for phrase in row["phrases"] if phrase != row["accessory"])
        assert "zorak" in caption(row, rng, style_name="zorak")


def test_what_has_one_colour_says_it_with_its_noun(rows: list[dict[str, Any]]) -> None:
    for style, start in (("funEmoji", "emoji"), ("rings", "pattern of rings"), ("glass", "blurred pattern")):
        row = next(row for row in rows if row["style"] == style)
        assert f"{row['colours']['clothes']} {start}" in full_caption(row)
        assert "shirt" not in full_caption(row)


def test_characters_are_drawn_more_often_than_patterns() -> None:
    drawn = Counter(identity.style for identity, *_ in training_views(4000, seed=4))
    assert drawn["micah"] > 2 * drawn["rings"] > 0


def test_colour_caption_says_colours_only(rows: list[dict[str, Any]]) -> None:
    row = next(
        row for row in rows if row["style"] == "micah" and not any("bald" in p for p in row["phrases"])
    )
    text = colour_caption(row)
    assert row["colours"]["skin"] in text
    assert row["colours"]["clothes"] in text
    assert "micah" not in text
    assert "micah" in full_caption(row)


def test_every_word_is_one_token(rows: list[dict[str, Any]], tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(4)
    texts = [caption(row, rng) for row in rows] + [full_caption(row) for row in rows] + names(NAME_COUNT)
    words = set(itertools.chain.from_iterable(re.findall(r"[a-z]+", text) for text in texts)) | set(
        vocabulary_words()
    )
    for word, ids in zip(words, tokenizer(list(words)).input_ids, strict=True):
        assert len(ids) == 3, word


def test_full_captions_fit(rows: list[dict[str, Any]], tokenizer: CLIPTokenizer) -> None:
    lengths = [len(ids) for ids in tokenizer([full_caption(row) for row in rows]).input_ids]
    assert np.mean(np.array(lengths) <= tokenizer.model_max_length) > 0.97


def test_names_are_words_of_their_own() -> None:
    found = names(NAME_COUNT)
    assert len(set(found)) == NAME_COUNT
    spoken = {word for style in STYLES.values() for noun in style.nouns for word in noun.split()}
    assert not spoken & set(found)
