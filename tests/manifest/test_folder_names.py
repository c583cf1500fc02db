"""Ids and placeholders from the names of folders: distinct, stable, and near to the name."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from textinv_ray.manifest.folder_names import named

BYTES = os.fsdecode(b"\xff\xfe")


@pytest.mark.parametrize(
    ("name", "concept_id", "placeholder"),
    [
        ("rex", "rex", ""),
        ("my cat", "my-cat", ""),
        ("кошка", "koshka", "<кошка>"),
        ("Müller", "Muller", "<Müller>"),
        ("猫", "concept-a810bf", "<猫>"),
        ("黒 cat", "cat-", "<黒-cat>"),
        ("10_sks cat", "sks", "<sks>"),
        ("a{b}c", "a-b-c", ""),
        (BYTES, "concept-b3d510", ""),
    ],
)
def test_names(name: str, concept_id: str, placeholder: str) -> None:
    found = named({name: None})[name]
    assert found.concept_id.startswith(concept_id)
    assert found.placeholder_token == placeholder


def test_a_name_that_is_an_id_keeps_it_whatever_is_beside_it() -> None:
    for beside in (["my cat", "my-cat"], ["my-cat", "my cat"]):
        found = named(dict.fromkeys(beside))
        assert found["my-cat"].concept_id == "my-cat"
        assert re.fullmatch(r"my-cat-[0-9a-f]{6}", found["my cat"].concept_id)
        assert found["my cat"].placeholder_token == ""
    found = named({"a b": None, "c": "a-b"})
    assert (found["c"].concept_id, found["a b"].concept_id[:4]) == ("a-b", "a-b-")


names = st.text(max_size=12) | st.sampled_from(
    ["кошка", "собака", "猫", "犬", "a b", "a-b", "A-B", BYTES, "é", "e\u0301", "10_sks cat", "5_sks dog"]
)


@example(folders=["E\U00018d09", "È\ud7fc", "È"])  # letters of no script yet, which a token can't have
@given(
    st.lists(
        names.filter(lambda name: name and "/" not in name and "\0" not in name), unique=True, max_size=8
    )
)
def test_whatever_the_names_ids_are_sound_and_distinct(folders: list[str]) -> None:
    found = named(dict.fromkeys(folders))
    ids = [entry.concept_id for entry in found.values()]
    assert len({concept_id.lower() for concept_id in ids}) == len(folders)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,128}", concept_id) for concept_id in ids)
    assert not {".", ".."} & set(ids)
    tokens = [entry.placeholder_token or f"<{entry.concept_id}>" for entry in found.values()]
    assert len({token.lower() for token in tokens}) == len(folders)
    assert not any(re.search(r"[\s{}]", token) for token in tokens)
    for token in tokens:
        token.encode()
