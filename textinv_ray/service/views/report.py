"""`report.html`: one self-contained page to accept or reject words by. Nothing in it is from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Iterator
from importlib import resources
from string import Template

from PIL import Image

from textinv_ray.service.store.pictures import TRAINING_COLUMNS
from textinv_ray.service.store.records import Failure, Result
from textinv_ray.service.store.store import Store, sample_name
from textinv_ray.service.views import results_table

EMBEDDED = 500
"""With more concepts than this, pictures are linked (they lie beside the page) instead of embedded."""
_SIDE = 96  # pixels of a thumbnail
_PICTURES = 4  # of each kind
_PAIRS = 30  # of words that are most alike


def write(store: Store) -> None:
    """Writes report.html anew from everything in the store, a concept at a time."""
    results = sorted(store.results(), key=lambda result: result.clip_image_similarity or 0.0)
    failures = [found for found in store.failures() if store.result(found.concept_id) is None]
    embed = len(results) <= EMBEDDED
    page = Template(
        resources.files("textinv_ray.service.views").joinpath("report.html").read_text(encoding="utf-8")
    )
    before, after = page.substitute(
        title=html.escape(store.shown),
        summary=html.escape(_summary(results, failures)),
        note=""
        if embed
        else html.escape(
            f"With more than {EMBEDDED} concepts, pictures are linked instead of embedded: "
            "keep this page in the results folder."
        ),
        alike=_alike(results_table.alike(store, _PAIRS)),
        rows="\0",
    ).split("\0")
    with store.building("report.html") as path, path.open("w", encoding="utf-8") as file:
        file.write(before)
        for failure in failures:
            file.write(_failed_row(failure))
        for result in results:
            file.write(_row(store, result, embed))
        file.write(after)


def _summary(results: list[Result], failures: list[Failure]) -> str:
    scores = [result.clip_image_similarity for result in results if result.clip_image_similarity is not None]
    text = f"{len(results)} done, {len(failures)} failed"
    return text + (f"; mean CLIP image similarity {sum(scores) / len(scores):.3f}" if scores else "")


def _alike(pairs: list[tuple[str, str, float]]) -> str:
    """The section of words that are most alike; nothing when there are no two."""
    if not pairs:
        return ""
    lines = "".join(
        f'<tr><td>{html.escape(one)}</td><td>{html.escape(other)}</td><td class="n">{_number(cosine)}</td></tr>'
        for one, other, cosine in pairs
    )
    return (
        "<details><summary>Words that are most alike</summary><p>Cosine of the means of their vectors. "
        "Near 1: the same thing twice, or the same images under two names.</p>"
        f"<table>{lines}</table></details>"
    )


def _row(store: Store, result: Result, embed: bool) -> str:
    prompts = result.sample_prompts
    seeds = result.images_per_prompt
    grids = (
        ("training.png", min(result.images, TRAINING_COLUMNS), result.images),
        (sample_name(0), seeds, seeds),
        (sample_name(result.steps), seeds, seeds),
    )
    pictures = [_pictures(store, result, *grid, embed) for grid in grids]
    image, text = result.clip_image_similarity, result.clip_text_similarity
    gain = None if image is None else image - (result.clip_image_similarity_initializer or 0.0)
    numbers = (image, gain, text, result.steps, result.seconds)
    shown = (
        _number(image),
        _number(gain, "+"),
        _number(text),
        _steps(result),
        f"{result.seconds:.0f}",
    )
    cells = "".join(
        f'<td class="n" data-v="{"" if value is None else value}">{cell}</td>'
        for value, cell in zip(numbers, shown, strict=True)
    )
    details = html.escape(
        f"{result.placeholder_token} from “{result.initializer_token}”, {result.learnable_property}"
    )
    words = html.escape(", ".join(result.nearest_words))
    tags = html.escape(", ".join(f"{key}: {value}" for key, value in result.tags.items()))
    name, kind = html.escape(result.concept_id), html.escape(result.learnable_property)
    return (
        f'<tr data-status="done" data-kind="{kind}"><td data-v="{name}"><b>{name}</b><br>{details}'
        f"<br><small>near: {words}{'<br>' + tags if tags else ''}</small></td>"
        + "".join(
            f'<td class="p" title="{html.escape(prompts[0] if prompts else "")}">{cell}</td>'
            for cell in pictures
        )
        + cells
        + "</tr>\n"
    )


def _steps(result: Result) -> str:
    notes = [] if result.stopped == "steps" else [f"by {result.stopped}"]
    notes += [] if result.best_step is None else [f"best at {result.best_step}"]
    return str(result.steps) + (f"<br><small>{', '.join(notes)}</small>" if notes else "")


def _failed_row(failure: Failure) -> str:
    name = html.escape(failure.concept_id)
    error = html.escape(failure.error)
    return (
        f'<tr data-status="failed" data-kind=""><td data-v="{name}"><b>{name}</b></td>'
        f'<td colspan="3" class="e">{error}</td>' + '<td class="n" data-v=""></td>' * 5 + "</tr>\n"
    )


def _pictures(store: Store, result: Result, name: str, columns: int, count: int, embed: bool) -> str:
    """The first `count` tiles of a grid of `columns` columns, as pictures of their own or as a link to it."""
    if not embed:
        link = html.escape(f"concepts/{result.concept_id}/{name}")
        return f'<a href="{link}"><img loading="lazy" class="strip" src="{link}" alt=""></a>'
    data = store.read_concept(result.concept_id, name)
    if data is None:
        return ""
    grid = Image.open(io.BytesIO(data))
    tiles = itertools.islice(_tiles(grid, grid.width // columns), min(count, _PICTURES))
    return "".join(f'<img src="{_data_uri(tile)}" alt="">' for tile in tiles)


def _tiles(grid: Image.Image, side: int) -> Iterator[Image.Image]:
    """Row by row, small."""
    for top in range(0, grid.height - side + 1, side):
        for left in range(0, grid.width - side + 1, side):
            tile = grid.crop((left, top, left + side, top + side))
            yield tile if side <= _SIDE else tile.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.3f}"
