"""What was learned, as Python objects that a notebook shows: words, scores, pictures."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from textinv_ray.api.pictures import Pictures, tag
from textinv_ray.concepts import word_files
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion.families.backbone import Backbone
from textinv_ray.inversion.generation import Request
from textinv_ray.service.batch import generate
from textinv_ray.service.library.lexicon import Lexicon
from textinv_ray.service.models import loading
from textinv_ray.service.store.pictures import opened, training_images
from textinv_ray.service.store.records import Mean, Result, mean_scores, scores_of
from textinv_ray.service.store.store import Store, sample_name
from textinv_ray.service.views import results_table
from textinv_ray.util.errors import UserError
from textinv_ray.util.text import nearest

_SHOWN = 30  # concepts in a notebook
_PICTURES = 2  # of each kind, in the table of all concepts
_THUMBNAIL = 96
_PLACE = "{}"


class Results(Mapping[str, "LearnedConcept"]):
    """Learned concepts by concept_id. A notebook shows a table with pictures before and after."""

    def __init__(
        self,
        store: Store,
        config: JobConfig,
        concept_ids: Sequence[str],
        failed: Mapping[str, str],
        unfinished: Sequence[str] = (),
    ) -> None:
        """`concept_ids`: those that are done. `config`: which they were learned with."""
        self._store = store
        self.config = config
        """The configuration that the words were learned with."""
        self.output = store.shown
        """The folder or URI with everything, without credentials."""
        self.failed = dict(failed)
        """concept_id -> why it has no word."""
        self.unfinished = tuple(unfinished)
        """Concepts that were not learned, because the job ended before. The same call goes on with them."""
        self._concept_ids = tuple(concept_ids)
        self._known: dict[str, LearnedConcept] = {}

    def __getitem__(self, concept_id: str) -> LearnedConcept:
        """Raises KeyError, with the reason, for a concept that has no word."""
        if concept_id not in self._known:
            result = self._store.result(concept_id) if concept_id in self._concept_ids else None
            if result is None:
                why = self.failed.get(concept_id, f"no such concept{nearest(concept_id, self._concept_ids)}")
                raise KeyError(f"{concept_id}: {why}")
            self._known[concept_id] = LearnedConcept(self, self._store, result)
        return self._known[concept_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._concept_ids)

    def __len__(self) -> int:
        return len(self._concept_ids)

    @property
    def scores(self) -> dict[str, Mean]:
        """Mean and confidence interval of each score over the concepts, in [-1, 1]; what no concept has is left out."""
        return mean_scores([concept.result for concept in self.values()])

    def table(self) -> pa.Table:
        """results.parquet, with the rows of these concepts and of the failed ones. Raises UserError without it."""
        data = self._store.read(results_table.FILE)
        try:
            stored = pq.read_table(pa.BufferReader(data or b""))
        except (pa.ArrowException, OSError):
            raise UserError(f"{self.output}: results.parquet is missing or damaged") from None
        wanted = pa.array([*self._concept_ids, *self.failed], pa.string())
        return stored.filter(pc.is_in(stored["concept_id"], wanted))

    def generate(
        self,
        prompt: str,
        n: int = 4,
        *,
        seed: int = 0,
        negative_prompt: str | None = None,
        size: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Pictures:
        """Draws `n` pictures of a prompt with learned words, such as "a drawing of <cat> as <ink>".

        The pictures have the seeds `seed`, `seed` + 1, ... The model is loaded at the first call and kept. size: side
        in pixels, a multiple of 8; None: the model's. steps, guidance: of sampling; None: as configured. Raises
        UserError for an unknown word, and for what the model doesn't take.
        """
        if n < 1 or seed < 0 or (size is not None and (size < 8 or size % 8)):
            raise UserError("generate: n must be 1 or more, seed 0 or more, and size a multiple of 8")
        lexicon = Lexicon([self._store.uri])
        overrides = {"num_inference_steps": steps, "guidance_scale": guidance}
        config = self.config.override(
            [f"review.{name}={value}" for name, value in overrides.items() if value is not None]
        )
        request = Request(
            prompt=prompt,
            words=lexicon.words_in(f"{prompt}\n{negative_prompt or ''}"),
            negative_prompt=negative_prompt,
            seed=seed,
            count=n,
            size=size,
        )
        images = generate.draw(request, lexicon, config, lambda: self._backbone)
        return Pictures.of(images, [f"{prompt} (seed {number})" for number in request.seeds])

    @cached_property
    def _backbone(self) -> Backbone:
        return loading.backbone(self.config)

    def __repr__(self) -> str:
        lines = [f"{len(self)} learned in {self.output}{self._rest()}"]
        for concept_id in self._concept_ids[:_SHOWN]:
            lines.append(f"  {self[concept_id]!r}")
        if len(self) > _SHOWN:
            lines.append(f"  ... and {len(self) - _SHOWN} more")
        lines += [f"  {concept_id} failed: {why}" for concept_id, why in list(self.failed.items())[:_SHOWN]]
        return "\n".join(lines)

    def _rest(self) -> str:
        """How many concepts have no word, for the end of a line."""
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return failed + (f", {len(self.unfinished)} not learned yet" if self.unfinished else "")

    def _repr_html_(self) -> str:
        rows = [self[concept_id].table_row() for concept_id in self._concept_ids[:_SHOWN]]
        rows += [
            f'<tr><td>{html.escape(concept_id)}</td><td colspan="6" style="text-align:left">failed: '
            f"{html.escape(why)}</td></tr>"
            for concept_id, why in list(self.failed.items())[:_SHOWN]
        ]
        titles = "concept", "word", "training images", "before", "after", "CLIP image similarity", "steps"
        head = "".join(f"<th>{title}</th>" for title in titles)
        more = f"<p>... and {len(self) - _SHOWN} more</p>" if len(self) > _SHOWN else ""
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{more}"
            f"<p>{len(self)} learned in <code>{html.escape(self.output)}</code>{self._rest()}</p>"
        )


class LearnedConcept:
    """A concept that has its word. A notebook shows its pictures before and after, and its scores."""

    def __init__(self, results: Results, store: Store, result: Result) -> None:
        """`results`: those that it is one of, with the model for `generate`."""
        self._results = results
        self._store = store
        self.result = result
        """Everything that is known of it: the content of result.json."""

    @property
    def concept_id(self) -> str:
        """Name of the concept."""
        return self.result.concept_id

    @property
    def token(self) -> str:
        """The learned word in prompts, such as `<cat>`."""
        return self.result.placeholder_token

    @property
    def scores(self) -> dict[str, float]:
        """Scores by name, those of the initializer with the ending `_initializer`: cosines in [-1, 1]."""
        return {name: score for name, score in scores_of(self.result).items() if score is not None}

    @cached_property
    def vectors(self) -> dict[str, np.ndarray]:
        """The word: float32 (V, D) by text encoder, such as `clip_l`. Raises UserError when its file is missing."""
        data = self._store.read_concept(self.concept_id, word_files.STORED)
        if data is None:
            raise UserError(f"{self._store.shown}: {self.concept_id} has no {word_files.STORED} any more")
        try:
            (word,) = word_files.parse_words(data, word_files.STORED).values()
        except ValueError as error:
            raise UserError(f"{self._store.shown}: {self.concept_id}: {error}") from None
        return dict(word)

    def samples(self, step: int | None = None) -> Pictures:
        """The samples of a step, a prompt after the other. None: of the last one; 0: of the initializer.

        Raises UserError for a step without samples (`result.sample_steps` lists those that have some), and for a file
        that is missing or damaged.
        """
        result = self.result
        step = result.steps if step is None else step
        if step not in result.sample_steps:
            known = ", ".join(map(str, result.sample_steps)) or "none"
            raise UserError(f"{self.concept_id} has no samples of step {step} (there are: {known})")
        rows, columns = len(result.sample_prompts), result.images_per_prompt
        pixels = np.asarray(opened(self._read(sample_name(step))).convert("RGB"))
        height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
        tiles = pixels.reshape(rows, height, columns, width, 3).transpose(0, 2, 1, 3, 4)
        prompts = [prompt.replace(_PLACE, self.token) for prompt in result.sample_prompts]
        captions = [f"{prompt} (seed {seed})" for prompt in prompts for seed in range(columns)]
        return Pictures.of(tiles.reshape(-1, height, width, 3), captions)

    def training_images(self) -> Pictures:
        """The images that it was learned from, cut to squares, at most 256 pixels wide. Raises UserError."""
        count = self.result.images
        return Pictures.of(training_images(self._read("training.png"), count), self._image_names())

    def _image_names(self) -> list[str]:
        return [uri.rsplit("/", 1)[-1] for uri in self.result.image_uris]

    def generate(self, prompt: str = "a photo of {}", n: int = 4, **options: object) -> Pictures:
        """As `Results.generate`, with `{}` in the prompt for the word."""
        return self._results.generate(prompt.replace(_PLACE, self.token), n, **options)  # type: ignore[arg-type]

    def _read(self, name: str) -> bytes:
        data = self._store.read_concept(self.concept_id, name)
        if data is None:
            raise UserError(f"{self._store.shown}: {self.concept_id} has no {name} any more")
        return data

    def __repr__(self) -> str:
        return f"{self.token}: CLIP image similarity {self._change()}, {self.result.steps} steps"

    def _change(self) -> str:
        """Similarity of the initializer and of the word."""
        before, after = self.result.clip_image_similarity_initializer, self.result.clip_image_similarity
        if after is None:
            return "not computed"
        return f"{after:.3f}" if before is None else f"{before:.3f} -> {after:.3f}"

    def table_row(self) -> str:
        """A row of the table of all concepts, as HTML."""
        pictures = (self._thumbnails(kind) for kind in ("training", "before", "after"))
        worse = " (worse)" if self.result.is_worse_than_initializer else ""
        cells = [html.escape(self.concept_id), f"<code>{html.escape(self.token)}</code>", *pictures]
        cells += [f"{html.escape(self._change())}{worse}", str(self.result.steps)]
        return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"

    def _thumbnails(self, kind: str) -> str:
        """Small pictures as HTML; what is missing or damaged is left out."""
        try:
            take = {
                "training": self.training_images,
                "before": lambda: self.samples(0),
                "after": self.samples,
            }
            pictures = take[kind]()
        except (UserError, ValueError):
            return ""
        return "".join(tag(picture, _THUMBNAIL) for picture in pictures[:_PICTURES])

    def _repr_html_(self) -> str:
        parts = [f"<h4><code>{html.escape(self.token)}</code></h4>"]
        for title, take in (
            ("training images", self.training_images),
            ("before", lambda: self.samples(0)),
            ("after", self.samples),
        ):
            try:
                parts.append(f"<p>{title}</p>{take()._repr_html_()}")
            except (UserError, ValueError):  # not stored, or damaged
                continue
        scores = "".join(
            f"<tr><td>{name}</td><td>{score:.3f}</td></tr>" for name, score in self.scores.items()
        )
        return "".join(parts) + f"<table><tbody>{scores}</tbody></table>"
