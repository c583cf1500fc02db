"""The evaluation of words: likeness to images of the concept, agreement with prompts, and references.

All scores are raw cosines in [-1, 1], computed per sample and then averaged, as in the code of Gal et al. 2022, section
5.1 (by the paper's text, embeddings are averaged first). Every encoder e of an evaluation (clip, siglip, dino, judge,
...) gives scores of its own; f is its image encoder and g its text encoder, both with outputs of length 1:

    e_image_similarity    mean over samples s and images t of the concept of f(s) . f(t). The samples are those of the
                          image prompt ("a photo of {}"), or of all editing prompts where the protocol says so. The
                          images are the held-out ones; without them those that the word was learned from
    e_similarity          the same of an encoder that reads no text, such as DINO (DINO score of Ruiz et al. 2023,
                          "DreamBooth", section 4.1)
    e_text_similarity     mean over editing prompts p of the mean over samples s of p of f(s) . g(text of p). The text
                          of p is p without the word, or with the class word in its place where the protocol has class
                          words. e_text_similarity_<category>: over a category's prompts
    e_text_score          the same with w max(f(s) . g, 0) in place of f(s) . g, where the protocol says w (CLIPScore,
                          Hessel et al. 2021)

Each prompt is sampled with seeds 0, 1, ... once, for all encoders. A reference replaces the samples and nothing else:

    training_images   the images as samples. Image similarity is over pairs of different images, because an image's
                      cosine with itself is 1; a concept with one image has none
    without_word      samples of the prompts without the word: what the model draws without having learned it
    description       samples of the prompts with a person's description in place of the word, where there is one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from textinv_ray.concepts.retrieval import Features
from textinv_ray.concepts.word_files import Word
from textinv_ray.config.job import ReviewConfig
from textinv_ray.config.protocol import EditPrompts, ProtocolData
from textinv_ray.inversion import scoring, words
from textinv_ray.inversion.encoders import Encoder
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.generation import Request, generate

IMAGE_PROMPTS = {"object": "a photo of {}", "style": "a painting in the style of {}"}
"""Prompt of the image similarities, by learnable property."""
REFERENCES = ("training_images", "without_word", "description")
"""What may be scored beside the words."""


@dataclass(frozen=True)
class Protocol:
    """Which prompts are sampled, how often, and how."""

    num_images: int
    """Samples of each prompt."""
    review: ReviewConfig
    """Sampler, sampling steps and guidance scale."""
    edit_prompts: EditPrompts
    image_prompts: Mapping[str, str] | None = None
    """By learnable property, whose samples are compared with images; None: those of all editing prompts."""
    text_scale: float | None = None
    """w of e_text_score; None: there is none."""
    references: tuple[str, ...] = REFERENCES
    """Names of the references that are scored."""

    @classmethod
    def of(cls, data: ProtocolData, review: ReviewConfig, *, bundled: bool) -> Protocol:
        """A protocol as its file says it, with what it leaves open from `review`. bundled: for a bundled model."""
        own = {
            name: value
            for name in ("sampler", "num_inference_steps", "guidance_scale")
            if (value := getattr(data, name)) is not None
        }
        return cls(
            data.images_per_prompt,
            review.model_copy(update=own),
            data.bundled_prompts if bundled and data.bundled_prompts else data.prompts,
            IMAGE_PROMPTS if data.images == "image_prompt" else None,
            data.text_scale,
            data.references,
        )

    def prompts(self, concept: LearnedConcept) -> list[str]:
        """The image prompt, if there is one, and all editing prompts of a concept, each once."""
        edits = [text for texts in self.edit_prompts[concept.prompt_group].values() for text in texts]
        image = [self.image_prompts[concept.learnable_property]] if self.image_prompts else []
        return list(dict.fromkeys(image + edits))


@dataclass(frozen=True, eq=False)
class LearnedConcept:
    """A learned word and images of its concept."""

    placeholder_token: str
    word: Word
    """Its vectors by text encoder."""
    learnable_property: str
    images: np.ndarray
    """uint8 (N, S, S, 3): held-out images; where there are none, those that the word was learned from."""
    description: str | None = None
    """A person's description of the concept, such as "a red plush fox with one ear"."""
    prompts: str = ""
    """Group of the protocol's prompts; empty: the learnable property."""
    class_word: str = ""
    """What stands in place of the word in texts; empty: nothing."""

    @property
    def prompt_group(self) -> str:
        """The key of its prompts in `Protocol.edit_prompts`."""
        return self.prompts or self.learnable_property


Vectors = dict[str, Tensor]
"""Embeddings of pictures by encoder: (n, d) of length 1 each."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What `Evaluator.evaluate` found."""

    scores: dict[str, float]
    """By name, those of references as `<score>_<reference>`. Scores that don't exist are left out."""
    features: dict[str, Features]
    """What identity retrieval goes by, by encoder."""


class Evaluator:
    """Scores words by one protocol. Samples and texts without a learned word are computed once for all concepts."""

    def __init__(self, backbone: Backbone, encoders: Mapping[str, Encoder], protocol: Protocol) -> None:
        """encoders: by the name that their scores begin with."""
        self._backbone = backbone
        self._encoders = encoders
        self._protocol = protocol
        self._plain: dict[str, Vectors] = {}
        self._texts: dict[tuple[str, str], Tensor] = {}

    def evaluate(self, concept: LearnedConcept) -> Evaluated:
        """All scores of a concept.

        Raises ValueError for a word of another model, and for a prompt that is so long that the word is cut off.
        """
        token, prompts = concept.placeholder_token, self._protocol.prompts(concept)
        vectors = words.rows_of(self._backbone, concept.word)
        drawn = self._draw([words.fill(prompt, token) for prompt in prompts], {token: vectors})
        learned, views = dict(zip(prompts, drawn, strict=True)), self._encode(concept.images)
        scores = self._score(concept, learned, views)
        for name in self._protocol.references:
            samples = self._reference(name, concept, prompts, views)
            found = self._score(concept, samples, views) if samples else {}
            scores |= {f"{score}_{name}": value for score, value in found.items()}
        pictures = self._compared(concept, learned)
        features = {
            name: Features.of(pictures[name].cpu().numpy(), views[name].cpu().numpy())
            for name in self._encoders
        }
        return Evaluated(scores, features)

    def _reference(
        self, name: str, concept: LearnedConcept, prompts: Sequence[str], views: Vectors
    ) -> Mapping[str, Vectors]:
        """The samples of a reference by prompt; empty where there are none."""
        if name == "training_images":
            return dict.fromkeys(prompts, views)
        if name == "without_word":
            return {prompt: self._without_word(scoring.without_word(prompt)) for prompt in prompts}
        if not concept.description:
            return {}
        described = self._draw([words.fill(prompt, concept.description) for prompt in prompts], {})
        return dict(zip(prompts, described, strict=True))

    def _draw(self, prompts: Sequence[str], vectors_by_token: Mapping[str, Tensor]) -> list[Vectors]:
        count, tokens = self._protocol.num_images, tuple(vectors_by_token)
        requests = [Request(prompt, tokens, count=count) for prompt in prompts]
        drawn = generate(self._backbone, vectors_by_token, requests, self._protocol.review)
        return [self._encode(images) for images in drawn]

    def _without_word(self, prompt: str) -> Vectors:
        if prompt not in self._plain:
            (self._plain[prompt],) = self._draw([prompt], {})
        return self._plain[prompt]

    def _encode(self, images: np.ndarray) -> Vectors:
        return {name: encoder.image_features(images) for name, encoder in self._encoders.items()}

    def _text(self, name: str, prompt: str, class_word: str) -> Tensor:
        """(d,) of an editing prompt, as an encoder reads it."""
        text = words.fill(prompt, class_word) if class_word else scoring.without_word(prompt)
        if (name, text) not in self._texts:
            self._texts[name, text] = self._encoders[name].text_features([text])[0]
        return self._texts[name, text]

    def _compared(self, concept: LearnedConcept, samples: Mapping[str, Vectors]) -> Vectors:
        """The samples that are compared with images."""
        if self._protocol.image_prompts:
            return samples[self._protocol.image_prompts[concept.learnable_property]]
        return {
            name: torch.cat([of_prompt[name] for of_prompt in samples.values()]) for name in self._encoders
        }

    def _score(
        self, concept: LearnedConcept, samples: Mapping[str, Vectors], views: Vectors
    ) -> dict[str, float]:
        """The scores of samples; these are by prompt with `{}`."""
        scores: dict[str, float] = {}
        is_views = all(of_prompt is views for of_prompt in samples.values())
        compared = views if is_views else self._compared(concept, samples)
        for name, encoder in self._encoders.items():
            image_score = f"{name}_image_similarity" if encoder.reads_text else f"{name}_similarity"
            if not is_views:
                scores[image_score] = scoring.image_similarity(compared[name], views[name])
            elif len(views[name]) > 1:
                scores[image_score] = scoring.similarity_between_images(views[name][:, None])
            if encoder.reads_text:
                scores |= self._text_scores(name, concept, samples)
        return scores

    def _text_scores(
        self, name: str, concept: LearnedConcept, samples: Mapping[str, Vectors]
    ) -> dict[str, float]:
        scores: dict[str, float] = {}
        by_prompt, scaled, scale = [], [], self._protocol.text_scale
        categories = self._protocol.edit_prompts[concept.prompt_group]
        for category, prompts in categories.items():
            cosines = [samples[text][name] @ self._text(name, text, concept.class_word) for text in prompts]
            found = [float(of_prompt.mean()) for of_prompt in cosines]
            if category != "all":
                scores[f"{name}_text_similarity_{category}"] = sum(found) / len(found)
            by_prompt += found
            scaled += [float(of_prompt.clamp(min=0).mean()) for of_prompt in cosines]
        scores[f"{name}_text_similarity"] = sum(by_prompt) / len(by_prompt)
        if scale:
            scores[f"{name}_text_score"] = scale * sum(scaled) / len(scaled)
        return scores
