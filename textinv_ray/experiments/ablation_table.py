"""Results of an ablation: means and confidence intervals by variant, as a table, as text and as a plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from scipy.stats import t as student

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIDENCE = 0.95
AXES = ("reconstruction", "editability")
"""clip_image_similarity and clip_text_similarity: raw cosines, see inversion/scoring.py."""
JUDGE = "judge"
"""judge_similarity: reconstruction by an encoder that nothing was chosen or predicted by."""


@dataclass(frozen=True)
class Score:
    """One run of a variant, or a reference for one concept."""

    kind: Literal["variant", "between", "reference"]
    """`between`: of the base variant's words, moved towards their initializers."""
    name: str
    """Name of the variant, the place between, or the reference."""
    concept: str
    """concept_id in the source manifest."""
    seed: str
    """Number of the run; empty for references."""
    reconstruction: float
    """clip_image_similarity, in [-1, 1]."""
    editability: float
    """clip_text_similarity, in [-1, 1]."""
    seconds: float | None = None
    """The run's share of its workers' time."""
    judge: float | None = None
    """judge_similarity, in [-1, 1]; None without `scoring.judge`."""


_INTERVALS = [f"{axis}{what}" for what in ("", "_difference") for axis in (*AXES, JUDGE)]
SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("name", pa.string()),
        ("concepts", pa.int32()),
        ("runs", pa.int32()),
        *((f"{name}{end}", pa.float64()) for name in _INTERVALS for end in ("", "_low", "_high")),
        ("seconds", pa.float64()),
    ]
)
"""`<axis>_difference`: to the base variant, paired by concept and seed. `_low`, `_high`: of the 95 % interval."""


def interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """(mean, low, high): the mean and its 95 % confidence interval by Student's t. One value has no bounds."""
    if not values:
        return None, None, None
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, None, None
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(student.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def table(scores: Sequence[Score], base: str) -> pa.Table:
    """A row per variant and reference, in the order of their first score.

    Concepts are the sampling unit: the seeds of a concept are averaged first, because they aren't independent samples
    of concepts. Differences to `base` are paired by concept and seed, so that variance common to both cancels.
    """
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.kind, score.name), []).append(score)
    by_run = {(score.concept, score.seed): score for score in groups.get(("variant", base), [])}
    rows = []
    for (kind, name), group in groups.items():
        seconds = [score.seconds for score in group if score.seconds is not None]
        row: dict[str, object] = {
            "kind": kind,
            "name": name,
            "concepts": len({score.concept for score in group}),
            "runs": len(group),
            "seconds": float(np.mean(seconds)) if seconds else None,
        }
        for axis in (*AXES, JUDGE):
            values = _known(group, axis)
            _put(row, axis, values)
            if kind != "reference" and name != base:
                of_base = _known(by_run.values(), axis)
                paired = {key: value - of_base[key] for key, value in values.items() if key in of_base}
                _put(row, f"{axis}_difference", paired)
        rows.append(row)
    return pa.Table.from_pylist(rows, SCHEMA)


def _known(scores: Iterable[Score], axis: str) -> dict[tuple[str, str], float]:
    """(concept, seed) -> value, of the scores that have one."""
    values = {(score.concept, score.seed): getattr(score, axis) for score in scores}
    return {key: value for key, value in values.items() if value is not None}


def _put(row: dict[str, object], name: str, values: Mapping[tuple[str, str], float]) -> None:
    by_concept: dict[str, list[float]] = {}
    for (concept, _), value in values.items():
        by_concept.setdefault(concept, []).append(value)
    means = [float(np.mean(seeds)) for seeds in by_concept.values()]
    for end, bound in zip(("", "_low", "_high"), interval(means), strict=True):
        row[name + end] = bound


def shown_axes(found: pa.Table) -> tuple[str, ...]:
    """AXES, and JUDGE where a row has it."""
    return AXES if found[JUDGE].null_count == len(found) else (*AXES, JUDGE)


def text(found: pa.Table, base: str) -> str:
    """The table for a terminal: means ± half the width of their confidence intervals."""

    def cell(row: Mapping[str, float | None], name: str, sign: str = "") -> str:
        mean, high = row[name], row[f"{name}_high"]
        if mean is None:
            return ""
        return f"{mean:{sign}.3f}" + ("" if high is None else f" ± {high - mean:.3f}")

    axes = shown_axes(found)
    lines = [["", *axes, *(f"{axis} - {base}" for axis in axes), "concepts", "runs"]]
    for row in found.to_pylist():
        cells = [cell(row, axis) for axis in axes]
        cells += [cell(row, f"{axis}_difference", "+") for axis in axes]
        lines.append([row["name"], *cells, str(row["concepts"]), str(row["runs"])])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = [
        line[0].ljust(widths[0])
        + "".join(f"  {text:>{width}}" for text, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    ]
    note = f"(mean ± half of the {CONFIDENCE:.0%} confidence interval over concepts)"
    return "\n".join([*shown, note])


def _error_bar(row: Mapping[str, float | None], axis: str) -> list[list[float]] | None:
    """[[distance to the lower bound], [distance to the upper bound]], as matplotlib wants it; None without bounds."""
    mean, low, high = row[axis], row[f"{axis}_low"], row[f"{axis}_high"]
    if mean is None or low is None or high is None:
        return None
    return [[mean - low], [high - mean]]


_MARKERS = ("o", "^", "D")


def plot(found: pa.Table, path: Path) -> None:
    """Draws reconstruction against editability: a point with intervals per variant, squares for references, and a curve
    from the base variant to words moved towards their initializers. With a judge, a second panel has its similarity.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [axis for axis in shown_axes(found) if axis != "editability"]
    figure, panels = pyplot.subplots(
        1, len(heights), figsize=(2 + 7 * len(heights), 6), dpi=120, squeeze=False
    )
    names = {"reconstruction": "reconstruction (CLIP image similarity)", JUDGE: "similarity by the judge"}
    for axes, height in zip(panels[0], heights, strict=True):
        _draw(axes, found, height)
        axes.set_xlabel("editability (CLIP text similarity)")
        axes.set_ylabel(names[height])
        axes.grid(alpha=0.3)
    panels[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    panels[0][0].set_title(
        f"Mean and {CONFIDENCE:.0%} confidence interval over concepts; squares: references", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _draw(axes: Axes, found: pa.Table, height: str) -> None:
    """The points of one panel. height: the axis that is drawn upwards."""
    from matplotlib import colormaps

    colors = colormaps["tab10"]
    rows = found.to_pylist()
    curve = [row for row in rows if row["kind"] == "between"]
    if curve:
        line = [next(row for row in rows if row["kind"] == "variant"), *curve]
        axes.plot(
            [row["editability"] for row in line],
            [row[height] for row in line],
            "k.--",
            linewidth=0.8,
            label="base, moved towards the initializer",
        )
    for number, row in enumerate(row for row in rows if row["kind"] != "between" and row[height] is not None):
        reference = row["kind"] == "reference"
        drawn = axes.errorbar(
            row["editability"],
            row[height],
            yerr=_error_bar(row, height),
            xerr=_error_bar(row, "editability"),
            fmt="s" if reference else _MARKERS[number // 10 % len(_MARKERS)],
            color="black" if reference else colors(number % 10),
            markersize=7,
            elinewidth=0.6,
            alpha=0.9,
            label=None if reference else row["name"],
        )
        for bar in drawn.lines[2]:
            bar.set_alpha(0.4)  # in the middle of the plot many cross
        if reference:  # they stand apart; variants are often too near to each other for words
            axes.annotate(
                row["name"],
                (row["editability"], row[height]),
                xytext=(-6, -12 if row["name"] == "initializer" else 6),  # a prompt without a word is near it
                textcoords="offset points",
                horizontalalignment="right",
                fontsize=8,
            )
