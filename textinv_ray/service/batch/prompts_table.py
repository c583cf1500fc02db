"""prompts.parquet: what `jobs/generate_many.py` is to draw, a row per prompt.

prompt            string, required   any learned words in it
negative_prompt   string             what guidance leads away from
seed              integer            of the first picture; default 0
count             integer            pictures, of the seeds from `seed` on; default 1
size              integer            side in pixels, a multiple of 8; default: the model's
guidance          number             guidance scale; default: the configuration's
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from textinv_ray.inversion.generation import Request
from textinv_ray.manifest.problem import Problem, raise_problems
from textinv_ray.service.library.lexicon import Lexicon
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError
from textinv_ray.util.redact import redact, redact_text
from textinv_ray.util.text import nearest

COLUMNS = ("prompt", "negative_prompt", "seed", "count", "size", "guidance")
_INTEGERS = {"seed": (0, 2**63 - 1), "count": (1, 10_000), "size": (8, 4096)}


def read(uri: str, lexicon: Lexicon) -> list[Request]:
    """A request per row, in the file's order.

    Raises UserError when the file can't be read, and with everything that is wrong, by row and column.
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
        found = list(_row_problems(number, row))
        problems += found
        try:
            requests.append(None if found else _request(row, lexicon))
        except UserError as error:
            problems.append(Problem(number, None, "prompt", str(error)))
    raise_problems(uri, iter(problems), "the prompts")
    return [request for request in requests if request]


def _read(uri: str) -> pa.Table:
    folder, _, name = uri.rpartition("/")
    store = Store(folder or ("/" if uri.startswith("/") else "."))
    try:
        with store.fs.open(store.path(name), "rb") as file:
            return pq.read_table(file)
    except FileNotFoundError:
        raise UserError(f"{redact(uri)}: the table of prompts doesn't exist") from None
    except pa.ArrowInvalid:
        raise UserError(f"{redact(uri)}: this is not a Parquet file (or a damaged one)") from None
    except Exception as error:
        why = redact_text(str(error)) or type(error).__name__
        raise UserError(f"{redact(uri)}: the table of prompts can't be read: {why}") from None


def _row_problems(number: int, row: Mapping[str, Any]) -> Iterator[Problem]:
    for name in ("prompt", "negative_prompt"):
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            yield Problem(number, None, name, f"{value!r} is not a text")
    if not _given(row, "prompt") or row["prompt"] == "":
        yield Problem(number, None, "prompt", "is empty")
    for name, (low, high) in _INTEGERS.items():
        if not _given(row, name):
            continue
        value = row[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or value != math.floor(value) or not low <= value <= high:
            yield Problem(number, None, name, f"{value!r} is not a whole number from {low} to {high}")
        elif name == "size" and value % 8:
            yield Problem(number, None, name, f"{value} is not a multiple of 8")
    if _given(row, "guidance"):
        value = row["guidance"]
        if not isinstance(value, int | float) or not 1 <= value < math.inf:
            yield Problem(number, None, "guidance", f"{value!r} is not a number from 1 on")


def _given(row: Mapping[str, Any], name: str) -> bool:
    """Whether a cell has a value; pandas' missing numbers are NaN."""
    value = row.get(name)
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _request(row: Mapping[str, Any], lexicon: Lexicon) -> Request:
    given = {name: row[name] for name in COLUMNS if _given(row, name)}
    negative = given.get("negative_prompt", "")
    return Request(
        prompt=given["prompt"],
        words=lexicon.words_in(f"{given['prompt']}\n{negative}"),
        negative_prompt=negative,
        seed=int(given.get("seed", 0)),
        count=int(given.get("count", 1)),
        size=int(given["size"]) if "size" in given else None,
        guidance_scale=float(given["guidance"]) if "guidance" in given else None,
    )
