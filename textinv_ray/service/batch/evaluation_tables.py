"""What an evaluation found, as tables: `evaluation.parquet`, and means beside published ones in Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from textinv_ray.config.protocol import ProtocolData
from textinv_ray.service.store.records import OfConcept, Time
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import results_table
from textinv_ray.util.statistics import Mean, mean_of

RETRIEVAL = "retrieval_top1"
OURS = "this output"
_REFERENCES = {
    "training_images": f"{OURS}, real images",
    "without_word": f"{OURS}, without the word",
    "description": f"{OURS}, description",
}
"""Rows of the references."""
_TITLES = {
    "_image_similarity": "{}-I",
    "_text_similarity": "{}-T",
    "_text_score": "{}-T (scaled)",
    f"_{RETRIEVAL}": "{} top 1",
    "_similarity": "{}",
}
"""Headings of the scores that tables show, by their ends; {} is the encoder."""
_SHOWN = {"clip": "CLIP", "dino": "DINO", "dinov2": "DINOv2", "dinov3": "DINOv3", "siglip": "SigLIP"}


class Evaluation(OfConcept):
    """The scores of a concept: evaluation/<concept_id>.json."""

    protocol: str
    """Name of the protocol."""
    learnable_property: str
    """`object` or `style`."""
    scores: dict[str, float]
    """By the names of `Evaluator.evaluate`."""
    evaluated_at: Time
    """When it was evaluated."""
    fingerprint: str
    """`EvaluationPlan.fingerprint` of the concept."""

    def metrics(self) -> dict[str, float]:
        """The scores by their names in MLflow, which groups them by the part before the slash."""
        return {f"{self.protocol}/{name}": value for name, value in self.scores.items()}


@dataclass(frozen=True)
class Summary:
    """Means over the concepts of one protocol."""

    protocol: str
    definition: ProtocolData
    means: Mapping[str, Mapping[str, Mean]]
    """Row of the table -> score -> its mean. The first row is OURS, then groups of subjects, then references."""
    retrieval: Mapping[str, Mapping[str, float]]
    """Encoder -> concept_id -> its retrieval_top1."""

    @classmethod
    def of(cls, store: Store, rows: Sequence[Evaluation], protocol: str, definition: ProtocolData) -> Summary:
        """The means of evaluations by one protocol. Reads their features."""
        files = {row.concept_id: features_file(row.concept_id) for row in rows}
        retrieval = results_table.retrieval_of(store, files)
        scores = {row.concept_id: dict(row.scores) for row in rows}
        for encoder, shares in sorted(retrieval.items()):
            for concept_id, share in shares.items():
                scores[concept_id][f"{encoder}_{RETRIEVAL}"] = share
        means = {OURS: _means(list(scores.values()))}
        for group in definition.groups:
            members = [found for id_, found in scores.items() if definition.subjects[id_].group == group]
            means[f"{OURS}, {group}"] = _means(members)
        for reference in _REFERENCES:
            end = f"_{reference}"
            references = [
                {name.removesuffix(end): value for name, value in found.items() if name.endswith(end)}
                for found in scores.values()
            ]
            means[_REFERENCES[reference]] = _means(references)
        return cls(protocol, definition, {name: found for name, found in means.items() if found}, retrieval)

    @property
    def columns(self) -> list[str]:
        """The scores that tables show: those of whole rows, without categories."""
        ours = self.means.get(OURS, {})
        published = [name for row in self.definition.published for name in row.scores]
        known = dict.fromkeys([*ours, *published])
        scaled = {
            name.replace("_text_score", "_text_similarity") for name in known if name.endswith("_text_score")
        }
        return [name for name in known if _heading(name) and name not in scaled]

    def lines(self) -> Iterator[str]:
        """What is printed: the mean of each score with its interval and the number of concepts."""
        for row, means in self.means.items():
            cells = [f"{name} {means[name]} ({means[name].values})" for name in self.columns if name in means]
            if cells:
                yield f"  {row}: {', '.join(cells)}"

    def metrics(self) -> dict[str, float]:
        """Means with the ends of their intervals, by their names in MLflow."""
        found = {}
        for name, mean in self.means.get(OURS, {}).items():
            found[f"{self.protocol}/{name}"] = mean.mean
            if not math.isnan(mean.low):
                found |= {f"{self.protocol}/{name}_low": mean.low, f"{self.protocol}/{name}_high": mean.high}
        return found

    def markdown(self) -> str:
        """A table with published rows above ours."""
        columns = self.columns
        lines = [f"# {self.definition.title}", "", f"Protocol: {self.definition.source}."]
        lines += [self.definition.notes.strip(), ""] if self.definition.notes else [""]
        lines += [f"| | {' | '.join(map(_heading, columns))} | concepts |", "|---" * (len(columns) + 2) + "|"]
        for cells in self._rows(columns):
            shown = (cell.replace("|", "&#124;") for cell in cells)
            lines.append(f"| {' | '.join(shown)} |")
        lines += [
            "",
            "In brackets: 95 % bootstrap intervals over concepts. Published rows: as their sources say.",
        ]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """The same as a tabular of the package booktabs."""
        columns = self.columns
        rows = [" & ".join(map(_escaped, cells)) + r" \\" for cells in self._rows(columns)]
        heads = " & ".join(["", *(_escaped(_heading(name)) for name in columns), "concepts"])
        lines = [rf"% {self.definition.title}: {self.definition.source}"]
        lines += [
            r"\begin{tabular}{l" + "r" * (len(columns) + 1) + "}",
            r"\toprule",
            heads + r" \\",
            r"\midrule",
        ]
        lines += [*rows[: len(self.definition.published)]]
        lines += [r"\midrule"] if self.definition.published else []
        lines += [*rows[len(self.definition.published) :], r"\bottomrule", r"\end{tabular}"]
        return "\n".join(lines) + "\n"

    def _rows(self, columns: Sequence[str]) -> Iterator[list[str]]:
        for row in self.definition.published:
            cells = [f"{row.scores[name]:.3f}" if name in row.scores else "" for name in columns]
            yield [f"{row.method} ({row.source})", *cells, ""]
        for name, means in self.means.items():
            counts = {mean.values for mean in means.values()}
            yield [name, *(str(means.get(column, "")) for column in columns), str(max(counts))]


def write(store: Store, rows: Sequence[Evaluation], summary: Summary) -> None:
    """Writes evaluation.parquet, a row per concept with a column for each score that any has, and the tables."""
    extra: dict[str, dict[str, float]] = {}
    for encoder, shares in summary.retrieval.items():
        for concept_id, share in shares.items():
            extra.setdefault(concept_id, {})[f"{encoder}_{RETRIEVAL}"] = share
    cells = [
        {**row.model_dump(exclude={"scores"}), **row.scores, **extra.get(row.concept_id, {})} for row in rows
    ]
    texts = ("concept_id", "protocol", "learnable_property", "fingerprint")
    names = sorted({name for row in cells for name in row} - {*texts, "evaluated_at"})
    fields = [(name, pa.string()) for name in texts]
    schema = pa.schema([*fields, ("evaluated_at", pa.float64()), *((name, pa.float64()) for name in names)])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(cells, schema), sink)
    store.write("evaluation.parquet", bytes(sink.getvalue().to_pybytes()))
    store.write("evaluation.md", summary.markdown().encode())
    store.write("evaluation.tex", summary.latex().encode())


def features_file(concept_id: str) -> str:
    """Name of the file with the features of a concept's evaluation."""
    return f"evaluation/{concept_id}.safetensors"


def _means(scores: Sequence[Mapping[str, float]]) -> dict[str, Mean]:
    names = dict.fromkeys(name for found in scores for name in found)
    return {name: mean_of([found[name] for found in scores if name in found]) for name in names}


def _heading(name: str) -> str:
    """The heading of a score's column; empty for a score that tables don't show."""
    for end, title in _TITLES.items():
        if name.endswith(end):
            encoder = name.removesuffix(end)
            return title.format(_SHOWN.get(encoder, encoder))
    return ""


def _escaped(text: str) -> str:
    """A text for LaTeX."""
    for sign in "\\&%$#_{}":
        text = text.replace(sign, r"\textbackslash " if sign == "\\" else f"\\{sign}")
    return text
