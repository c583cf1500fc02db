"""Results of an ablation: means and confidence intervals by variant, as a table, as text and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from scipy.stats import t as student

CONFIDENCE = 0.95
AXES = ("reconstruction", "editability")
"""clip_image_similarity and clip_text_similarity: raw cosines, see inversion/scoring.py."""


@dataclass(frozen=True)
class Score:
    """One run of a variant, or a reference for one concept."""

    kind: Literal["variant", "reference"]
    name: str
    """Name of the variant or reference."""
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


_INTERVALS = [f"{axis}{what}" for what in ("", "_difference") for axis in AXES]
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
        for axis in AXES:
            values = {(score.concept, score.seed): getattr(score, axis) for score in group}
            _put(row, axis, values)
            if kind == "variant" and name != base:
                paired = {
                    key: value - getattr(by_run[key], axis) for key, value in values.items() if key in by_run
                }
                _put(row, f"{axis}_difference", paired)
        rows.append(row)
    return pa.Table.from_pylist(rows, SCHEMA)


def _put(row: dict[str, object], name: str, values: Mapping[tuple[str, str], float]) -> None:
    by_concept: dict[str, list[float]] = {}
    for (concept, _), value in values.items():
        by_concept.setdefault(concept, []).append(value)
    means = [float(np.mean(seeds)) for seeds in by_concept.values()]
    for end, bound in zip(("", "_low", "_high"), interval(means), strict=True):
        row[name + end] = bound


def text(found: pa.Table, base: str) -> str:
    """The table for a terminal: means ± half the width of their confidence intervals."""

    def cell(row: Mapping[str, float | None], name: str, sign: str = "") -> str:
        mean, high = row[name], row[f"{name}_high"]
        if mean is None:
            return ""
        return f"{mean:{sign}.3f}" + ("" if high is None else f" ± {high - mean:.3f}")

    lines = [["", *AXES, *(f"{axis} - {base}" for axis in AXES), "concepts", "runs"]]
    for row in found.to_pylist():
        cells = [cell(row, axis) for axis in AXES]
        cells += [cell(row, f"{axis}_difference", "+") for axis in AXES]
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
    """Draws reconstruction against editability: a point with intervals per variant, squares for references."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), dpi=120)
    colors = pyplot.get_cmap("tab10")
    for number, row in enumerate(found.to_pylist()):
        reference = row["kind"] == "reference"
        drawn = axes.errorbar(
            row["editability"],
            row["reconstruction"],
            yerr=_error_bar(row, "reconstruction"),
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
                (row["editability"], row["reconstruction"]),
                xytext=(-6, -12 if row["name"] == "initializer" else 6),  # a prompt without a word is near it
                textcoords="offset points",
                horizontalalignment="right",
                fontsize=8,
            )
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes.set_xlabel("editability (CLIP text similarity)")
    axes.set_ylabel("reconstruction (CLIP image similarity)")
    axes.set_title(
        f"Mean and {CONFIDENCE:.0%} confidence interval over concepts; squares: references", fontsize=9
    )
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
