"""`textinv compare A B`: what changed from one output to another, by concept, with a paired test of each mean."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import pyarrow as pa
from jinja2 import Environment
from rich.console import Console

from textinv_ray.service.store.pictures import TRAINING, TRAINING_COLUMNS, opened
from textinv_ray.service.store.records import SCORES, Result
from textinv_ray.service.store.store import Store, sample_name
from textinv_ray.service.views import results_table, thumbnails
from textinv_ray.service.views.columns import RETRIEVAL
from textinv_ray.util import parquet
from textinv_ray.util.errors import UserError
from textinv_ray.util.statistics import Mean, mean_of, paired_p
from textinv_ray.util.text import nearest

logger = logging.getLogger(__name__)

EVALUATION = "evaluation.parquet"
_FIRST = ("judge_similarity", "clip_image_similarity")
"""The scores that concepts are ranked by, unless another is asked for: the first one that both outputs have."""
_SHOWN = 10  # concepts of each direction in the terminal
_PICTURED = 25  # of each direction in the report
_PICTURES = 4  # of each kind


@dataclass(frozen=True)
class Change:
    """A score in both outputs, over the concepts that have it in both."""

    name: str
    before: Mean
    after: Mean
    difference: Mean
    """Of the paired differences, after - before."""
    p: float
    """Of the paired permutation test, two-sided."""
    better: int
    """Concepts whose score is higher in the second output."""
    worse: int
    """Concepts whose score is lower."""


@dataclass(frozen=True)
class ConceptChange:
    """A concept in both outputs, by one score."""

    concept_id: str
    before: float
    after: float

    @property
    def difference(self) -> float:
        """after - before."""
        return self.after - self.before


@dataclass(frozen=True)
class Comparison:
    """What changed from output `first` to output `second`."""

    first: str
    second: str
    changes: tuple[Change, ...]
    score: str
    """The score that concepts are ranked by."""
    concepts: tuple[ConceptChange, ...]
    """By rising difference."""
    only_first: int
    """Concepts that only the first output has."""
    only_second: int
    """Concepts that only the second output has."""


def compare(first: Store, second: Store, score: str | None = None) -> Comparison:
    """Compares all scores of results, and of evaluations by the same protocol, that both outputs have.

    score: ranks the concepts. Raises UserError for outputs without a common concept or score, and for another score.
    """
    results = [{result.concept_id: result for result in store.results()} for store in (first, second)]
    common = sorted(results[0].keys() & results[1].keys())
    if not common:
        raise UserError(f"{first.shown} and {second.shown} have no finished concept in common")
    before, after = (_scores(store, found) for store, found in zip((first, second), results, strict=True))
    changes, pairs_of = [], {}
    for name in [name for name in before if name in after]:
        pairs = [
            ConceptChange(concept_id, before[name][concept_id], after[name][concept_id])
            for concept_id in common
            if concept_id in before[name] and concept_id in after[name]
        ]
        if pairs:
            pairs_of[name] = pairs
            changes.append(_change(name, pairs))
    if not changes:
        raise UserError(f"{first.shown} and {second.shown} have no score in common")
    if score is not None and score not in pairs_of:
        raise UserError(
            f"no score {score!r} in both outputs{nearest(score, list(pairs_of))} (both have {', '.join(pairs_of)})"
        )
    ranked_by = score or next((name for name in _FIRST if name in pairs_of), changes[0].name)
    return Comparison(
        first.shown,
        second.shown,
        tuple(changes),
        ranked_by,
        tuple(sorted(pairs_of[ranked_by], key=lambda pair: (pair.difference, pair.concept_id))),
        len(results[0]) - len(common),
        len(results[1]) - len(common),
    )


def show(console: Console, found: Comparison) -> None:
    """A table of means, and the concepts with the largest differences."""
    console.print(f"{len(found.concepts)} concepts in both; A: {found.first}, B: {found.second}")
    if found.only_first or found.only_second:
        console.print(f"left out: {found.only_first} only in A, {found.only_second} only in B")
    console.print()
    for line in _lines(found.changes):
        console.print(line)
    for title, some in (("better in B", reversed(found.concepts)), ("worse in B", found.concepts)):
        sign = 1 if title == "better in B" else -1
        chosen = [pair for pair in some if sign * pair.difference > 0]
        if chosen:
            console.print()
            console.print(f"{title}, by {found.score}:")
        for pair in chosen[:_SHOWN]:
            console.print(
                f"  {pair.concept_id}: {pair.before:.3f} -> {pair.after:.3f} ({pair.difference:+.3f})"
            )
        if len(chosen) > _SHOWN:
            console.print(f"  ... and {len(chosen) - _SHOWN} more")


def _lines(changes: Sequence[Change]) -> Iterator[str]:
    """A table of plain text, whatever the width of the terminal: a pipe has none."""
    rows = [("score", "A", "B", "B - A [95 %]", "p", "better", "worse")]
    for one in changes:
        difference = f"{one.difference.mean:+.3f}"
        if one.difference.values > 1:
            difference += f" [{one.difference.low:+.3f}, {one.difference.high:+.3f}]"
        means = (f"{one.before.mean:.3f}", f"{one.after.mean:.3f}")
        rows.append((one.name, *means, difference, f"{one.p:.4f}", str(one.better), str(one.worse)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join([name.ljust(widths[0]), *aligned])


def write(found: Comparison, first: Store, second: Store, target: Store, name: str) -> None:
    """Writes the report, an HTML page that loads nothing from elsewhere, with pictures of the largest differences."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = (
        resources.files("textinv_ray.service.views").joinpath("compare.html").read_text(encoding="utf-8")
    )
    page = environment.from_string(template)
    better = [one for one in reversed(found.concepts) if one.difference > 0]
    worse = [one for one in found.concepts if one.difference < 0]
    stream = page.stream(
        found=found,
        parts=(
            ("Better in B", len(better), _rows(better[:_PICTURED], first, second)),
            ("Worse in B", len(worse), _rows(worse[:_PICTURED], first, second)),
        ),
    )
    with target.building(name) as path, path.open("w", encoding="utf-8") as file:
        file.writelines(stream)


def _scores(store: Store, results: Mapping[str, Result]) -> dict[str, dict[str, float]]:
    """Score -> concept_id -> value: those of results, retrieval, and those of evaluations as `<protocol>/<score>`."""
    found: dict[str, dict[str, float]] = {}
    for name in SCORES:
        if not name.endswith("_initializer"):
            values = {id_: value for id_, one in results.items() if (value := getattr(one, name)) is not None}
            found[name] = values
    found[RETRIEVAL] = results_table.retrieval(store)
    stale = 0
    for concept_id, protocol, evaluated_at, scores in _evaluated(store):
        result = results.get(concept_id)
        if result is None:
            continue
        if evaluated_at < result.finished_at:
            stale += 1
            continue
        for name, value in scores.items():
            found.setdefault(f"{protocol}/{name}", {})[concept_id] = value
    if stale:
        logger.warning(
            "%s: %d evaluations are of words that were learned anew since, and are left out: `textinv evaluate` them",
            store.shown,
            stale,
        )
    return {name: values for name, values in found.items() if values}


def _evaluated(store: Store) -> Iterator[tuple[str, str, float, Mapping[str, float]]]:
    """(concept_id, protocol, time, scores without those of references) of each row of evaluation.parquet."""
    try:
        with store.open(EVALUATION) as file:
            rows = parquet.read(file).to_pylist() if file is not None else []
    except (pa.ArrowException, OSError, ValueError) as error:
        store.ignore(EVALUATION, f"it can't be read: {error}")
        return
    for row in rows:
        concept_id, protocol = row.pop("concept_id", None), row.pop("protocol", None)
        when = row.pop("evaluated_at", None)
        if isinstance(concept_id, str) and isinstance(protocol, str):
            yield (
                concept_id,
                protocol,
                when if isinstance(when, float) else math.inf,
                {
                    name: value
                    for name, value in row.items()
                    if isinstance(value, float) and name.endswith(("_similarity", "_score", "_top1"))
                },
            )


def _change(name: str, pairs: Sequence[ConceptChange]) -> Change:
    differences = [pair.difference for pair in pairs]
    return Change(
        name,
        mean_of([pair.before for pair in pairs]),
        mean_of([pair.after for pair in pairs]),
        mean_of(differences),
        paired_p(differences),
        sum(difference > 0 for difference in differences),
        sum(difference < 0 for difference in differences),
    )


def _rows(
    concepts: Sequence[ConceptChange], first: Store, second: Store
) -> Iterator[tuple[ConceptChange, list[tuple[str, ...]]]]:
    """Each concept with pictures: its training images, then samples of the word of each output."""
    for one in concepts:
        results = [store.result(one.concept_id) for store in (first, second)]
        cells: list[tuple[str, ...]] = []
        for store, result in zip((first, second), results, strict=True):
            if result is None:
                continue
            if not cells:
                columns = min(result.images, TRAINING_COLUMNS)
                cells.append(_pictures(store, one.concept_id, TRAINING, columns, result.images))
            seeds = result.images_per_prompt
            cells.append(_pictures(store, one.concept_id, sample_name(result.steps), seeds, seeds))
        yield one, cells


def _pictures(store: Store, concept_id: str, name: str, columns: int, count: int) -> tuple[str, ...]:
    data = store.read_concept(concept_id, name)
    try:
        return () if data is None else thumbnails.of_grid(opened(data), columns, min(count, _PICTURES))
    except ValueError as error:
        store.ignore(f"concepts/{concept_id}/{name}", str(error))
        return ()
