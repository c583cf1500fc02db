"""The evaluation of Gal et al. 2022, section 5.1, for many words: reconstruction, editability, and references.

All scores are raw cosines in [-1, 1], computed per sample and then averaged, as in the authors' code (by the paper's
text, embeddings are averaged first). f is CLIP's image encoder and g its text encoder, both with outputs of length 1:

    clip_image_similarity    mean over samples s of the image prompt and training images t of f(s) . f(t)
                             (reconstruction)
    clip_text_similarity     mean over editing prompts p of the mean over samples s of p of f(s) . g(p without
                             the word) (editability). clip_text_similarity_<category>: over a category's prompts
    dino_similarity          like clip_image_similarity, with the class token of a DINO model (DINO score of Ruiz
                             et al. 2023, "DreamBooth", section 4.1)

Each prompt is sampled with seeds 0, 1, ... A reference replaces the samples and nothing else:

    training_images   the training images as samples. Image similarity is over pairs of different images, because an
                      image's cosine with itself is 1; a concept with one image has none
    without_word      samples of the prompts without the word: what the model draws without having learned it
    description       samples of the prompts with a person's description in place of the word, where there is one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from textinv_ray.concepts.word_files import Word
from textinv_ray.config.job import ReviewConfig
from textinv_ray.inversion import scoring, words
from textinv_ray.inversion.dino import Dino
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.generation import Request, generate
from textinv_ray.inversion.scoring import Scorer

EditPrompts = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Learnable property -> category -> prompts with `{}`."""

PROMPTS: dict[str, EditPrompts] = {
    # Section 5.1 of the paper: a background change, a style change, a composition. Those for styles are ours.
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
    # Prompts within the bundled model's vocabulary
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
"""Editing prompts by kind of model: "mini" for the bundled models, "general" for others."""
IMAGE_PROMPTS = {"object": "a photo of {}", "style": "a painting in the style of {}"}
"""Prompt of the image similarities, by learnable property."""


@dataclass(frozen=True)
class Protocol:
    """Which prompts are sampled, how often, and how."""

    num_images: int
    """Samples of each prompt."""
    review: ReviewConfig
    """Sampler, sampling steps and guidance scale."""
    edit_prompts: EditPrompts

    @classmethod
    def of(cls, preset: str, review: ReviewConfig, edit_prompts: EditPrompts) -> Protocol:
        """`quick`: 4 samples per prompt with the settings of `review`. `paper`: 64 samples per prompt, 50 DDIM steps,
        the guidance scale of `review`. Raises ValueError for another preset."""
        if preset == "quick":
            return cls(4, review, edit_prompts)
        if preset == "paper":
            ddim = {"sampler": "ddim", "num_inference_steps": 50}
            return cls(64, review.model_copy(update=ddim), edit_prompts)
        raise ValueError(f"no preset {preset!r} (known: {', '.join(PRESETS)})")

    def pictures(self, learnable_property: str) -> int:
        """Number of samples of one concept, without those of references."""
        edits = self.edit_prompts[learnable_property]
        return self.num_images * (1 + sum(len(prompts) for prompts in edits.values()))


PRESETS = ("quick", "paper")


@dataclass(frozen=True, eq=False)
class LearnedConcept:
    """A learned word and the images that it was learned from."""

    placeholder_token: str
    word: Word
    """Its vectors by text encoder."""
    learnable_property: str
    training_images: np.ndarray
    """uint8 (N, S, S, 3)"""
    description: str | None = None
    """A person's description of the concept, such as "a red plush fox with one ear"."""


@dataclass(frozen=True, eq=False)
class _Features:
    """Embeddings of the samples of one prompt."""

    clip: Tensor
    """(n, d), of length 1"""
    dino: Tensor | None


class Evaluator:
    """Scores words by one protocol. Samples and texts without a learned word are computed once for all concepts."""

    def __init__(
        self, backbone: Backbone, scorer: Scorer, protocol: Protocol, dino: Dino | None = None
    ) -> None:
        self._backbone = backbone
        self._scorer = scorer
        self._dino = dino
        self._protocol = protocol
        self._plain: dict[str, _Features] = {}
        self._texts: dict[str, Tensor] = {}

    def evaluate(self, concept: LearnedConcept) -> dict[str, float]:
        """All scores by name, those of references as `<score>_<reference>`. Scores that don't exist are left out.

        Raises ValueError for a word of another model, and for a prompt that is so long that the word is cut off.
        """
        token, prompts = concept.placeholder_token, self._prompts(concept)
        vectors = words.rows_of(self._backbone, concept.word)
        learned = self._draw([words.fill(prompt, token) for prompt in prompts], {token: vectors})
        training = self._encode(concept.training_images)
        scores = self._score(concept, dict(zip(prompts, learned, strict=True)), training)
        plain = [self._without_word(scoring.without_word(prompt)) for prompt in prompts]
        references = {"without_word": dict(zip(prompts, plain, strict=True))}
        references["training_images"] = dict.fromkeys(prompts, training)
        if concept.description:
            described = self._draw([words.fill(prompt, concept.description) for prompt in prompts], {})
            references["description"] = dict(zip(prompts, described, strict=True))
        for name, samples in references.items():
            found = self._score(concept, samples, training)
            scores |= {f"{score}_{name}": value for score, value in found.items()}
        return scores

    def _prompts(self, concept: LearnedConcept) -> list[str]:
        """The image prompt and all editing prompts, each once."""
        kind = concept.learnable_property
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
        self, concept: LearnedConcept, samples: Mapping[str, _Features], training: _Features
    ) -> dict[str, float]:
        """The scores of samples; these are by prompt with `{}`."""
        images = samples[IMAGE_PROMPTS[concept.learnable_property]]
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
        for category, prompts in self._protocol.edit_prompts[concept.learnable_property].items():
            found = [scoring.text_similarity(samples[text].clip, self._text(text)) for text in prompts]
            scores[f"clip_text_similarity_{category}"] = sum(found) / len(found)
            by_prompt += found
        scores["clip_text_similarity"] = sum(by_prompt) / len(by_prompt)
        return scores
