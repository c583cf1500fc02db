"""Checks that no prompt is so long that the word is cut off: a text encoder reads a fixed number of tokens.

The same rule as `inversion/words.py`: what stands behind the word may be cut off, the word may not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from textinv_ray.config.job import JobConfig
from textinv_ray.config.templates import WORD, templates
from textinv_ray.manifest.batch import Batch, short
from textinv_ray.manifest.columns import COLUMNS
from textinv_ray.manifest.vocabulary import Vocabulary

_IMAGE_WORD = "\ue000"  # of Unicode's private use area
_PROMPT_COLUMNS = ("templates", "captions", "prompts")
_READ = (
    *_PROMPT_COLUMNS,
    "num_vectors",
    "vectors_added_at",
    "per_image_probability",
    "context_weight",
    "learnable_property",
    "init_from",
)


class PromptChecks:
    """Checks rows against the number of tokens that the model reads. Prompts that many rows share are checked once."""

    def __init__(self, config: JobConfig, vocabulary: Vocabulary) -> None:
        self._config = config
        self._vocabulary = vocabulary
        self._shared: dict[tuple[str, int, bool, bool, bool, bool], str] = {}

    def problems(self, batch: Batch) -> Iterator[tuple[int, str, str]]:
        """Yields (index, column, message)."""
        given = {name: batch.column(name) for name in _READ}
        columns = {name: column.to_pylist() for name, column in given.items() if column is not None}
        for index, placeholder in enumerate(batch.placeholders.to_pylist()):
            row = {name: values[index] for name, values in columns.items()}
            if placeholder and len(placeholder) <= COLUMNS["placeholder_token"].max_length:
                for column, message in self._row(row, placeholder):
                    yield index, column, message

    def _row(self, row: Mapping[str, object], placeholder: str) -> Iterator[tuple[str, str]]:
        config = self._config

        def value(name: str) -> object:
            return COLUMNS[name].value(row, config)

        start = row.get("init_from")
        vectors = row.get("num_vectors")
        if vectors is None:  # a file has as many as it has
            vectors = 1 if start and str(start).endswith(".safetensors") else config.training.num_vectors
        added = value("vectors_added_at")
        if not isinstance(vectors, int | float) or not vectors < 1e6 or not isinstance(added, Sequence):
            return  # another check's problem
        count = int(vectors) + len(added)
        if value("learnable_property") not in ("object", "style"):
            return
        probability = value("per_image_probability")
        beside = isinstance(probability, int | float) and probability > 0
        for name in _PROMPT_COLUMNS:
            texts = row.get(name)
            if not isinstance(texts, list):
                continue
            for text in texts[: COLUMNS[name].max_count]:
                if (
                    text
                    and len(text) <= COLUMNS[name].max_length
                    and self._is_cut_off(text, placeholder, count, beside and name != "prompts")
                ):
                    yield name, self._message(text, count)
                    break
        weight = value("context_weight")
        in_context = isinstance(weight, int | float) and weight > 0
        given = bool(row.get("templates")), bool(row.get("prompts")), in_context
        key = (str(value("learnable_property")), count, beside, *given)
        if key not in self._shared:
            self._shared[key] = self._of_configuration(*key)
        if self._shared[key]:
            yield "num_vectors", self._shared[key]

    def _of_configuration(
        self,
        learnable_property: str,
        count: int,
        beside: bool,
        own_templates: bool,
        own_prompts: bool,
        in_context: bool,
    ) -> str:
        """The message about a prompt that the row doesn't give itself; empty if all fit."""
        config = self._config
        scoring, review = config.scoring, config.review
        prompts = [scoring.image_prompt.of(learnable_property), *scoring.edit_prompts.of(learnable_property)]
        if not own_prompts:
            prompts += review.prompts.of(learnable_property)
        if in_context:
            prompts += config.training.context_prompts.of(learnable_property)
        training = () if own_templates else config.training.templates or templates(learnable_property)
        cut_off = [text for text in prompts if self._is_cut_off(text, "<x>", count, False)]
        cut_off += [text for text in training if self._is_cut_off(text, "<x>", count, beside)]
        return self._message(cut_off[0], count) if cut_off else ""

    def _is_cut_off(self, text: str, placeholder: str, vectors: int, beside: bool) -> bool:
        """Whether a vector of the word lies beyond the last token. `beside`: a word of the image's own follows it."""
        room = self._vocabulary.room
        words = text.count(WORD) + text.lower().count(placeholder.lower())
        if text.isascii() and len(text) + words * (vectors + 6 * beside) <= room:
            return False  # each token has at least a character
        filled = text.replace(WORD, f"{placeholder} with {_IMAGE_WORD}" if beside else placeholder)
        # The pieces with odd numbers are words
        pieces = re.split(f"({re.escape(placeholder)}|{_IMAGE_WORD})", filled, flags=re.IGNORECASE)
        sizes = [1 if piece == _IMAGE_WORD else vectors for piece in pieces[1::2]]
        return sum(sizes) + sum(self._vocabulary.count(piece) for piece in pieces[:-1:2]) > room

    def _message(self, text: str, vectors: int) -> str:
        word = f"the word, with {vectors} vectors," if vectors > 1 else "the word"
        readers = self._vocabulary.readers
        one = len(readers) == 1
        who = f"text encoder {readers[0]} reads" if one else f"text encoders {' and '.join(readers)} read"
        return (
            f"{short(text)} is longer than the {self._vocabulary.room} tokens that the model's {who}, so {word} "
            "would be cut off; shorten it"
        )
