"""The protocols as their sources say them."""

from __future__ import annotations

from pathlib import Path

import pytest

from textinv_ray.config import protocol
from textinv_ray.config.protocol import ProtocolData
from textinv_ray.util.errors import UserError


@pytest.mark.parametrize("name", protocol.names())
def test_each_is_whole(name: str) -> None:
    found = protocol.load(name)
    assert "20" in found.source, "with its year"
    for groups in (found.prompts, found.bundled_prompts or {}):
        for categories in groups.values():
            texts = [text for prompts in categories.values() for text in prompts]
            assert all(text.count("{}") == 1 for text in texts)
            assert len(set(texts)) == len(texts)
    for subject in found.subjects.values():
        assert subject.prompts in found.prompts
    assert set(found.prompts) >= {subject.prompts for subject in found.subjects.values()}
    if found.data and found.subjects:
        assert len(found.subjects) == found.data.subjects
        counts = {sum(map(len, found.prompts[one.prompts].values())) for one in found.subjects.values()}
        assert counts == {found.data.prompts_per_subject}
    assert ProtocolData.model_validate(found.model_dump(mode="json"), strict=False) == found


def test_dreambench() -> None:
    found = protocol.load("dreambench")
    live = [name for name, subject in found.subjects.items() if subject.group == "live"]
    assert live == ["cat", "cat2", "dog", "dog2", "dog3", "dog5", "dog6", "dog7", "dog8"]
    assert found.subjects["grey_sloth_plushie"].class_word == "stuffed animal"
    assert found.subjects["backpack_dog"].class_word == "backpack"
    assert "a {} in a chef outfit" in found.prompts["live"]["all"]
    assert "a {} in a chef outfit" not in found.prompts["object"]["all"]
    assert "a {} floating in an ocean of milk" in found.prompts["object"]["all"]
    assert sum(subject.images or 0 for subject in found.subjects.values()) == 158
    rows = {row.method: row.scores for row in found.published}
    assert rows["Textual Inversion (Stable Diffusion)"] == {
        "dino_similarity": 0.569,
        "clip_image_similarity": 0.780,
        "clip_text_similarity": 0.255,
    }


def test_customconcept101() -> None:
    found = protocol.load("customconcept101")
    assert (found.text_scale, found.guidance_scale, found.num_inference_steps) == (2.5, 6.0, 50)
    assert found.subjects["scene_barn"].class_word == "barn"
    assert found.subjects["actionfigure_1"].prompts == "actionfigure"
    assert "Georgia O'Keeffe style {} painting." in found.prompts["cat"]["all"]
    assert found.published[0].scores["clip_text_score"] == 0.6117


def test_quick_is_the_papers_with_fewer_samples() -> None:
    quick, paper = protocol.load("quick"), protocol.load("paper")
    assert (quick.prompts, quick.bundled_prompts) == (paper.prompts, paper.bundled_prompts)
    assert (quick.images_per_prompt, quick.sampler, paper.images_per_prompt) == (4, None, 64)


def test_one_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('like: paper\ntitle: Mine\nprompts: {object: {all: ["my {}"]}}\nbundled_prompts: null\n')
    mine = protocol.load(str(path))
    assert (mine.title, mine.prompts, mine.images_per_prompt) == ("Mine", {"object": {"all": ("my {}",)}}, 64)
    path.write_text("like: paper\nimages_per_promt: 3\nprompts: {object: {all: [none]}}\n")
    with pytest.raises(UserError, match="images_per_promt: Extra inputs"):
        protocol.load(str(path))
    path.write_text("a text")
    with pytest.raises(UserError, match="expected fields such as 'title:'"):
        protocol.load(str(path))
