"""The table of prompts, the input of `textinv generate-many`: a Parquet file with a row per prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from textinv_ray.inversion.generation import Request
from textinv_ray.manifest.problem import Problem, raise_problems
from textinv_ray.service.library.lexicon import Lexicon
from textinv_ray.service.store.store import Store
from textinv_ray.util import parquet
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import brief, message, redact
from textinv_ray.util.text import nearest


class PromptRow(BaseModel):
    """A row of the table. Its fields are the columns; columns with a default may be absent, and their cells null."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    prompt: Annotated[str, Field(min_length=1)]
    """May contain learned words."""
    negative_prompt: str | None = None
    """Negative prompt of classifier-free guidance; may contain learned words."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the first image."""
    count: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of images, with seeds `seed`, `seed` + 1, ..."""
    size: Annotated[int, Field(ge=8, le=4096, multiple_of=8)] | None = None
    """Side of the images in pixels; null: the model's resolution."""
    guidance: Annotated[float, Field(ge=1)] | None = None
    """Guidance scale; null: that of the configuration."""

    @model_validator(mode="after")
    def _seeds_are_in_range(self) -> PromptRow:
        if self.seed + self.count > 2**63:
            raise PydanticCustomError(
                "seed", "with count {count}, the last seed is above 2**63 - 1", {"count": self.count}
            )
        return self


COLUMNS = tuple(PromptRow.model_fields)


def read(uri: str, lexicon: Lexicon) -> list[Request]:
    """A request for each row, in the file's order.

    Raises UserError when the file can't be read, and for invalid columns or values: it lists all by row and column.
    """
    table = _read(uri)
    problems = [
        Problem(None, None, name, f"is not a column of a table of prompts{nearest(name, COLUMNS)}")
        for name in table.column_names
        if name not in COLUMNS and not name.startswith("__index_level_")
    ]
    if "prompt" not in table.column_names:
        problems.append(Problem(None, None, "prompt", "is missing; expected: string"))
    raise_problems(uri, iter(problems), "the prompts")
    if len(table) == 0:
        raise UserError(f"{redact(uri)}: the table has no rows; it needs one per prompt")
    requests = []
    for number, row in enumerate(table.to_pylist()):
        try:
            requests.append(_request(PromptRow.model_validate(_cells(row)), lexicon))
        except ValidationError as error:
            problems += _problems(number, error)
        except UserError as error:
            problems.append(Problem(number, None, "prompt", str(error)))
    raise_problems(uri, iter(problems), "the prompts")
    return requests


def _read(uri: str) -> pa.Table:
    store, name = Store.of_file(uri)
    try:
        with store.open(name) as file:
            if file is None:
                raise UserError(f"{redact(uri)}: the table of prompts doesn't exist")
            return parquet.read(file)
    except UserError:
        raise
    except pa.ArrowInvalid:
        raise UserError(f"{redact(uri)}: this is not a Parquet file (or a damaged one)") from None
    except Exception as error:
        why = message(str(error)) or type(error).__name__
        raise UserError(f"{redact(uri)}: the table of prompts can't be read: {why}") from None


def _cells(row: Mapping[str, object]) -> dict[str, object]:
    """The cells of a row that have a value.

    pandas writes NaN for missing numbers, and makes floats of the integers of such a column.
    """
    cells: dict[str, object] = {}
    for name, value in row.items():
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        cells[name] = int(value) if isinstance(value, float) and value.is_integer() else value
    return cells


def _problems(number: int, error: ValidationError) -> Iterator[Problem]:
    for item in error.errors(include_url=False):
        column, text = str(item["loc"][0]) if item["loc"] else "seed", item["msg"]
        if not item["loc"]:
            yield Problem(number, None, column, text)
        elif item["type"] in ("missing", "string_too_short"):
            yield Problem(number, None, column, "is empty")
        else:
            yield Problem(number, None, column, f"{text[0].lower()}{text[1:]}, not {brief(item['input'])}")


def _request(row: PromptRow, lexicon: Lexicon) -> Request:
    return Request(
        prompt=row.prompt,
        words=lexicon.words_in(f"{row.prompt}\n{row.negative_prompt or ''}"),
        negative_prompt=row.negative_prompt,
        seed=row.seed,
        count=row.count,
        size=row.size,
        guidance_scale=row.guidance,
    )
