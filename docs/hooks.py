"""MkDocs hooks: tables that are made from the code, and a check that public names have docstrings.

A page says where a table goes by a comment of its own line, such as `<!-- table: settings -->`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from textinv_ray.cli.jobs import app
from textinv_ray.cli.options import commands_of
from textinv_ray.config.job import JobConfig
from textinv_ray.config.model_families import FAMILIES
from textinv_ray.config.presets import preset_names, purpose
from textinv_ray.manifest import columns
from textinv_ray.service.metrics import METRICS
from textinv_ray.service.store import records
from textinv_ray.service.store.records import Decision, Failure, JobRecord, Record, Result
from textinv_ray.service.views import columns as results_columns
from textinv_ray.service.views.status import ErrorKind, Running, Status
from textinv_ray.sizing import report as sizing

logger = logging.getLogger("mkdocs.hooks.textinv_ray")

ROOT = Path(__file__).resolve().parents[1]
"""The repository."""
MARKER = re.compile(r"^<!-- table: ([a-z-]+) -->$", re.MULTILINE)
_LIMITS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this for each page. An unknown table is a warning, which `--strict` makes an error."""

    def table(marker: re.Match[str]) -> str:
        if marker[1] in TABLES:
            return TABLES[marker[1]]()
        logger.warning("there is no table %r (known: %s)", marker[1], ", ".join(TABLES))
        return marker[0]

    return MARKER.sub(table, markdown)


def on_pre_build(**_: Any) -> None:
    """MkDocs calls this first. A public name without a docstring is a warning, an error with `--strict`."""
    for name in undocumented():
        logger.warning("%s has no docstring", name)


# Tables


def columns_table() -> str:
    """The columns of a manifest."""
    return columns.markdown_table().replace(str(2**63), "2^63")


def settings_table() -> str:
    """A table for each section of the configuration: every field with its type, default and docstring."""
    schema = JobConfig.model_json_schema()
    parts = []
    for section, reference in schema["properties"].items():
        model = _resolve(reference, schema)
        rows = []
        for name, field, default, text in _fields(model, reference["default"], schema):
            cells = _type(field, schema), _default(default), _one_line(text)
            rows.append(f"| `{section}.{name}` | {' | '.join(cells)} |")
        about = _one_line(model["description"])
        head = "| setting | type | default | |\n|---|---|---|---|"
        parts.append("\n".join([f"### {section}\n", f"{about}\n", head, *rows]))
    return "\n\n".join(parts)


def presets_table() -> str:
    """Every preset with the model that it is for and what it changes."""
    rows = []
    for name in preset_names():
        config = JobConfig.load(name)
        learned = config.training
        training = f"{learned.steps} steps x {learned.batch_size}, rate {learned.learning_rate:g}"
        if learned.style.learning_rate is not None:
            training += f"; styles {learned.style.learning_rate:g}, {learned.style.optimizer}"
        rows.append(f"| `{name}` | `{config.model.path}` | {training} | {_one_line(purpose(name))} |")
    return "\n".join(["| preset | model | training | |", "|---|---|---|---|", *rows])


def families_table() -> str:
    """Every family of models: what it is known by, its words, how levels are drawn and pictures sampled."""
    rows = []
    for family in FAMILIES:
        vectors = ", ".join(f"`{name}`" for name in family.encoders)
        predicts = (
            f"velocity of a flow; {family.timesteps.replace('_', '-')}"
            if family.flow
            else "epsilon or v; uniform"
        )
        cells = (
            f"`{'`, `'.join(family.pipelines)}`",
            f"one of {vectors}" if len(family.encoders) > len(family.text_encoders) else vectors,
            predicts,
            ", ".join(f"`{sampler}`" for sampler in family.samplers),
            f"multiples of {family.side_multiple} px",
            "with" if family.negative_prompts else "without",
            ", ".join([*family.read_by, "`load_words`"]),
            family.run_with,
        )
        rows.append(f"| {family.name} | {' | '.join(cells)} |")
    names = (
        "family | pipeline | vectors | predicts; levels | `review.sampler` | sides | negative prompts | words read by"
        " | run with"
    )
    return "\n".join([f"| {names} |", "|---|---|---|---|---|---|---|---|---|", *rows])


def metrics_table() -> str:
    """Every metric, by its name in Prometheus."""
    rows = [
        f"| `{metric.exported}` | {metric.kind} | {metric.unit} | {', '.join(f'`{tag}`' for tag in metric.tags)} | "
        f"{_one_line(metric.description)} |"
        for metric in METRICS
    ]
    return "\n".join(["| metric | type | unit | more tags | |", "|---|---|---|---|---|", *rows])


def record_table(record: type[Record]) -> str:
    """The fields of a JSON file or of a part of one."""
    schema = record.model_json_schema()
    rows = []
    for name, field in record.model_fields.items():
        kind, text = (
            _type(schema["properties"][name], schema, limits=False),
            _one_line(field.description or ""),
        )
        rows.append(f"| `{name}` | {kind} | {records.range_of(field)} | {text} |")
    return "\n".join(["| field | type | unit or range | |", "|---|---|---|---|", *rows])


def commands_table() -> str:
    """Every command of `textinv` with its arguments and options, from its own help."""
    parts = []
    for name, command in sorted(commands_of(app).items()):
        text = (command.help or "").replace("<", "&lt;")
        about = "\n\n".join(_one_line(part) for part in text.split("\n\n"))
        rows = [
            f"| {_one_line(_names(option))} | {_one_line(_meaning(option))} |" for option in command.params
        ]
        parts.append("\n".join([f"### textinv {name}\n", f"{about}\n", "| | |\n|---|---|", *rows]))
    return "\n\n".join(parts)


def _names(option: Any) -> str:
    """How an argument or option is written, such as `-o`, `--output` `URI`."""
    if option.param_type_name == "argument":
        return f"`{option.metavar}`"
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len))
    if option.is_flag:
        return names
    value = option.metavar or ("TEXT" if option.min is None else "N")
    return f"{names} `{value}`"


def _meaning(option: Any) -> str:
    text = (option.help or "").replace("<", "&lt;")
    if option.required and option.param_type_name == "option":
        return f"{text} Required."
    if option.show_default and option.default is not None and option.default is not False:
        return f"{text} Default: `{option.default}`."
    return text


RECORDS: Mapping[str, type[Record]] = {
    "result-fields": Result,
    "failure-fields": Failure,
    "decision-fields": Decision,
    "job-fields": JobRecord,
    "status-fields": Status,
    "running-fields": Running,
    "error-fields": ErrorKind,
}
"""Marker -> the record whose fields are its table."""
TABLES: Mapping[str, Callable[[], str]] = {
    "commands": commands_table,
    "manifest-columns": columns_table,
    "settings": settings_table,
    "presets": presets_table,
    "families": families_table,
    "metrics": metrics_table,
    "gpus": sizing.gpus_table,
    "results-columns": results_columns.columns_table,
    **{name: partial(record_table, record) for name, record in RECORDS.items()},
}
"""Marker -> what makes its table."""


def _fields(
    model: Mapping[str, Any], defaults: Mapping[str, Any], schema: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], Any, str]]:
    """(dotted name, JSON schema, default, docstring) of each field. A nested model's fields stand in its place."""
    for name, field in model["properties"].items():
        inner, default, text = _resolve(field, schema), defaults.get(name), field.get("description", "")
        if "properties" in inner:
            for inner_name, *rest, inner_text in _fields(inner, default or field["default"], schema):
                yield f"{name}.{inner_name}", *rest, f"{text} {inner_text}"
        else:
            yield name, field, default, text


def _resolve(field: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = field.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else field


def _type(field: Mapping[str, Any], schema: Mapping[str, Any], *, limits: bool = True) -> str:
    """A JSON schema in words, with the `limits` of numbers or without."""
    if "$ref" in field:
        return f"`{field['$ref'].rpartition('/')[2]}`"
    if "anyOf" in field:
        return ", or ".join(_type(option, schema, limits=limits) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind = field.get("type", "any")
    if kind == "array":
        items = _type(field["items"], schema, limits=limits)
        return "list of " + re.sub(r"^(integer|number)", r"\1s", items)
    if kind == "string" and "pattern" in field:
        return "text with `{}`"
    words = {"string": "text", "boolean": "`true`, `false`", "null": "none", "object": "map"}.get(kind, kind)
    return words + (_limits(field) if limits else "")


def _limits(field: Mapping[str, Any]) -> str:
    if {"minimum", "maximum"} <= field.keys():
        given = f", {_number(field['minimum'])} to {_number(field['maximum'])}"
        return given + (f", a multiple of {field['multipleOf']}" if "multipleOf" in field else "")
    given = " and ".join(f"{sign} {_number(field[name])}" for name, sign in _LIMITS if name in field)
    return f" {given}" if given else ""


def _number(value: float) -> str:
    """2**63, the end of the seeds, is no number that a reader would recognise."""
    return f"{value:,}" if value != 2**63 else "2^63"


def _default(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return f"`{text.strip().removesuffix('...').strip()}`" if value is not None else "none"


def _one_line(text: str) -> str:
    """Text in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


# Docstrings


def undocumented() -> Iterator[str]:
    """Public modules, classes, functions and properties of the package that have no docstring."""
    import griffe

    package = griffe.load("textinv_ray", search_paths=[ROOT])
    assert isinstance(package, griffe.Module)
    yield from sorted(_undocumented(package))


def _undocumented(parent: Any) -> Iterator[str]:
    import griffe

    if not parent.docstring:
        yield parent.path
    for name, member in parent.members.items():
        if member.is_alias or name.startswith("_"):
            continue
        if member.kind in (griffe.Kind.MODULE, griffe.Kind.CLASS):
            yield from _undocumented(member)
        elif (member.kind is griffe.Kind.FUNCTION or "property" in member.labels) and not member.docstring:
            yield member.path
