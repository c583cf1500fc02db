"""The evaluation of Gal et al. 2022, section 4.3, for many words: reconstruction, editability, and references.

All scores are raw cosines in [-1, 1], computed per sample and then averaged, as in the authors' code (the paper
says that embeddings are averaged first). With f the image and g the text encoder of CLIP, each of length 1:

    clip_image_similarity    mean over samples s of the image prompt and training images t of f(s) . f(t)
                             (reconstruction)
    clip_text_similarity     mean over editing prompts p of the mean over samples s of p of f(s) . g(p without
                             the word) (editability); by category with the category's name behind it
    dino_similarity          like clip_image_similarity, with the class token of a DINO model (Ruiz et al. 2023)

Samples have the seeds 0, 1, ... of each prompt. The references replace the samples, and nothing else:

    training_images   the training images as samples. Their image similarity is over pairs of different images,
                      because an image's similarity with itself says nothing; none with a single image
    without_word      samples of the prompts without the word: what the model draws anyway
    description       samples of the prompts with a person's description in place of the word, where there is one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from textinv_ray.config.job import ReviewConfig
from textinv_ray.inversion import scoring, words
from textinv_ray.inversion.backbone import Backbone
from textinv_ray.inversion.dino import Dino
from textinv_ray.inversion.generation import Request, generate
from textinv_ray.inversion.scoring import Scorer

EditPrompts = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Learnable property -> category -> prompts with `{}`."""

PROMPTS: dict[str, EditPrompts] = {
    # Section 5 of the paper: a background, a style, a composition. The styles' are in their spirit.
    "general": {
        "object": {
            "background": ("a photo of {} on the moon",),
            "style": ("an oil painting of {}",),
            "composition": ("Elmo holding a {}",),
        },
        "style": {
            "background": ("a beach in the style of {}",),
            "composition": ("a house in the style of {}", "a dog in the style of {}"),
        },
    },
    # What the bundled model can follow.
    "mini": {
        "object": {
            "background": ("a photo of {} on a blue background",),
            "style": ("a photo of {} as a line drawing",),
            "composition": ("a photo of {} with sunglasses",),
        },
        "style": {
            "background": ("a picture of a person on a green background in the style of {}",),
            "composition": ("a picture of a person with red hair in the style of {}",),
        },
    },
}
"""Editing prompts by the kind of model."""
IMAGE_PROMPTS = {"object": "a photo of {}", "style": "a painting in the style of {}"}


@dataclass(frozen=True)
class Protocol:
    """How many samples of which prompts."""

    num_images: int
    """Samples of each prompt."""
    review: ReviewConfig
    """Sampler, steps and guidance."""
    edit_prompts: EditPrompts

    @classmethod
    def of(cls, preset: str, review: ReviewConfig, edit_prompts: EditPrompts) -> Protocol:
        """`quick`: 4 samples a prompt, sampled as `review` says. `paper`: 64 samples by 50 DDIM steps, with
        `review`'s guidance scale. Raises ValueError for another preset."""
        if preset == "quick":
            return cls(4, review, edit_prompts)
        if preset == "paper":
            ddim = {"sampler": "ddim", "num_inference_steps": 50}
            return cls(64, review.model_copy(update=ddim), edit_prompts)
        raise ValueError(f"no preset {preset!r} (known: {', '.join(PRESETS)})")

    def pictures(self, learnable_property: str) -> int:
        """Samples of one concept, without the references'."""
        edits = self.edit_prompts[learnable_property]
        return self.num_images * (1 + sum(len(prompts) for prompts in edits.values()))


PRESETS = ("quick", "paper")


@dataclass(frozen=True, eq=False)
class LearnedConcept:
    """A learned word and what it should bring back."""

    placeholder_token: str
    vectors: Tensor
    """(V, D)"""
    learnable_property: str
    training_images: np.ndarray
    """uint8 (N, S, S, 3)"""
    description: str | None = None
    """A person's words for the concept, such as "a red plush fox with one ear"."""


@dataclass(frozen=True, eq=False)
class _Features:
    """Of the samples of one prompt."""

    clip: Tensor
    """(n, d), of length 1"""
    dino: Tensor | None


class Evaluator:
    """Scores words by one protocol. What has no learned word in it is drawn and encoded once."""

    def __init__(
        self, backbone: Backbone, scorer: Scorer, protocol: Protocol, dino: Dino | None = None
    ) -> None:
        self._backbone = backbone
        self._scorer = scorer
        self._dino = dino
        self._protocol = protocol
        self._plain: dict[str, _Features] = {}
        self._texts: dict[str, Tensor] = {}

    def evaluate(self, subject: LearnedConcept) -> dict[str, float]:
        """Scores by name: those above, and the references' as <score>_<reference>. What can't be had is absent.

        Raises ValueError for a prompt that is so long that a word would be cut off.
        """
        token, prompts = subject.placeholder_token, self._prompts(subject)
        learned = self._draw([words.fill(prompt, token) for prompt in prompts], {token: subject.vectors})
        training = self._encode(subject.training_images)
        scores = self._score(subject, dict(zip(prompts, learned, strict=True)), training)
        plain = [self._without_word(scoring.without_word(prompt)) for prompt in prompts]
        references = {"without_word": dict(zip(prompts, plain, strict=True))}
        references["training_images"] = dict.fromkeys(prompts, training)
        if subject.description:
            described = self._draw([words.fill(prompt, subject.description) for prompt in prompts], {})
            references["description"] = dict(zip(prompts, described, strict=True))
        for name, samples in references.items():
            found = self._score(subject, samples, training)
            scores |= {f"{score}_{name}": value for score, value in found.items()}
        return scores

    def _prompts(self, subject: LearnedConcept) -> list[str]:
        """The image prompt and all editing prompts, each once."""
        kind = subject.learnable_property
        edits = self._protocol.edit_prompts[kind].values()
        return list(dict.fromkeys([IMAGE_PROMPTS[kind], *(text for texts in edits for text in texts)]))

    def _draw(self, prompts: Sequence[str], vectors_by_token: Mapping[str, Tensor]) -> list[_Features]:
        count, tokens = self._protocol.num_images, tuple(vectors_by_token)
        requests = [Request(prompt, tokens, count=count) for prompt in prompts]
        drawn = generate(self._backbone, vectors_by_token, requests, self._protocol.review)
        return [self._encode(images) for images in drawn]

    def _without_word(self, prompt: str) -> _Features:
        if prompt not in self._plain:
            (self._plain[prompt],) = self._draw([prompt], {})
        return self._plain[prompt]

    def _encode(self, images: np.ndarray) -> _Features:
        dino = self._dino.image_features(images) if self._dino else None
        return _Features(self._scorer.image_features(images), dino)

    def _text(self, prompt: str) -> Tensor:
        """(d,) of an editing prompt without the word."""
        text = scoring.without_word(prompt)
        if text not in self._texts:
            self._texts[text] = self._scorer.text_features([text])[0]
        return self._texts[text]

    def _score(
        self, subject: LearnedConcept, samples: Mapping[str, _Features], training: _Features
    ) -> dict[str, float]:
        """The scores of samples, by prompt with `{}`."""
        images = samples[IMAGE_PROMPTS[subject.learnable_property]]
        scores: dict[str, float] = {}
        if images is not training:
            scores["clip_image_similarity"] = scoring.image_similarity(images.clip, training.clip)
        elif len(training.clip) > 1:
            scores["clip_image_similarity"] = scoring.similarity_between_images(training.clip[:, None])
        if images.dino is not None and training.dino is not None:
            if images is not training:
                scores["dino_similarity"] = scoring.image_similarity(images.dino, training.dino)
            elif len(training.dino) > 1:
                scores["dino_similarity"] = scoring.similarity_between_images(training.dino[:, None])
        by_prompt = []
        for category, prompts in self._protocol.edit_prompts[subject.learnable_property].items():
            found = [scoring.text_similarity(samples[text].clip, self._text(text)) for text in prompts]
            scores[f"clip_text_similarity_{category}"] = sum(found) / len(found)
            by_prompt += found
        scores["clip_text_similarity"] = sum(by_prompt) / len(by_prompt)
        return scores
