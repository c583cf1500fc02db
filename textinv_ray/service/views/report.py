"""`report.html`: a page to accept or reject words by, without a server. It loads nothing from elsewhere.

It can't write to the store: its decisions are saved as a file, which `textinv review --import` stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment

from textinv_ray.service.store.pictures import TRAINING_COLUMNS, opened
from textinv_ray.service.store.records import Decision, Result, mean_scores, worse_than_initializer
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store, sample_name
from textinv_ray.service.views import results_table, thumbnails
from textinv_ray.util.statistics import mean_of

EMBEDDED = 500
"""With more concepts than this, pictures are linked (they lie beside the page) instead of embedded."""
_PICTURES = 4  # of each kind
_PAIRS = 30  # of words that are most alike
_LINKED = (
    f"With more than {EMBEDDED} concepts, pictures are linked instead of embedded: "
    "keep this page in the results folder."
)


@dataclass(frozen=True)
class Pictures:
    """A cell of pictures: some that are part of the page, or a link to a grid of them."""

    embedded: tuple[str, ...] = ()
    """data: URIs."""
    link: str = ""
    """From the page on; empty for embedded ones."""


@dataclass(frozen=True)
class ConceptRow:
    """A finished concept as the template shows it."""

    result: Result
    pictures: tuple[Pictures, ...]
    """Training images, samples of the initializer, samples of the learned word."""
    decision: Decision | None
    """What reviewers decided about this word; none when they haven't."""

    @property
    def tags(self) -> str:
        """The row's own labels."""
        return ", ".join(f"{name}: {value}" for name, value in self.result.tags.items())

    @property
    def notes(self) -> str:
        """Why learning ended before all steps were taken, and which step was the best."""
        notes = [] if self.result.stopped == "steps" else [f"by {self.result.stopped}"]
        notes += [] if self.result.best_step is None else [f"best at {self.result.best_step}"]
        return ", ".join(notes)


def write(store: Store, stored: StoredResults) -> None:
    """Writes report.html: failed concepts first, then the others by rising image similarity.

    With pictures of one concept at a time in memory. After results.parquet, which it takes similar words and
    retrieval from.
    """
    results = sorted(stored.results, key=lambda result: result.clip_image_similarity or 0.0)
    embed = len(results) <= EMBEDDED
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"score": _score, "blank": _blank}
    page = environment.from_string(
        resources.files("textinv_ray.service.views").joinpath("report.html").read_text(encoding="utf-8")
    )
    found = results_table.retrieval(store)
    decisions = {decision.concept_id: decision for decision in store.decisions()}
    stream = page.stream(
        title=store.shown,
        worse=worse_than_initializer(stored.results),
        summary=_summary(stored, found),
        judged=any(result.judge_similarity is not None for result in results),
        retrieval=found,
        note="" if embed else _LINKED,
        alike=results_table.alike(store, _PAIRS),
        failures=stored.without_result,
        rows=(
            ConceptRow(
                result,
                tuple(_pictures(store, result, embed)),
                _current(result, decisions.get(result.concept_id)),
            )
            for result in results
        ),
    )
    with store.building("report.html") as path, path.open("w", encoding="utf-8") as file:
        file.writelines(stream)


def _current(result: Result, decision: Decision | None) -> Decision | None:
    """The decision, if it is on this word and holds."""
    return decision if decision and decision.verdict_on(result) != "undecided" else None


def _summary(stored: StoredResults, retrieval: Mapping[str, float]) -> str:
    """Counts, and means with their 95 % confidence intervals."""
    means = mean_scores(stored.results)
    parts = [f"{len(stored.results)} done, {len(stored.without_result)} failed"]
    for name in ("clip_image_similarity", "clip_text_similarity", "judge_similarity"):
        if name in means:
            parts.append(f"mean {name.replace('clip', 'CLIP').replace('_', ' ')} {means[name]}")
    if retrieval:
        parts.append(f"retrieval top 1 {mean_of(list(retrieval.values()))}")
    return "; ".join(parts)


def _pictures(store: Store, result: Result, embed: bool) -> Iterator[Pictures]:
    """The first pictures of each kind, or links to the grids that they are part of."""
    seeds = result.images_per_prompt
    for name, columns, count in (
        ("training.png", min(result.images, TRAINING_COLUMNS), result.images),
        (sample_name(0), seeds, seeds),
        (sample_name(result.steps), seeds, seeds),
    ):
        if not embed:
            yield Pictures(link=f"concepts/{result.concept_id}/{name}")
            continue
        data = store.read_concept(result.concept_id, name)
        if data is None:
            yield Pictures()
            continue
        try:
            grid = opened(data)
        except ValueError as error:
            store.ignore(f"concepts/{result.concept_id}/{name}", str(error))
            yield Pictures()
            continue
        yield Pictures(thumbnails.of_grid(grid, columns, min(count, _PICTURES)))


def _score(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.3f}"


def _blank(value: float | None) -> float | str:
    """What the page sorts by."""
    return "" if value is None else value
