"""Tables of prompts: what their rows ask for, and what is wrong with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import examples
from textinv_ray.inversion.generation import Request
from textinv_ray.service.batch import prompts_table
from textinv_ray.service.library.lexicon import Lexicon
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError


@pytest.fixture
def output(tmp_path: Path) -> Store:
    """Of two words."""
    store = Store(str(tmp_path / "out"))
    for concept_id in ("cat", "ink"):
        examples.finish(store, concept_id)
    return store


def table(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_rows_are_requests(output: Store, tmp_path: Path) -> None:
    path = table(
        tmp_path / "p.parquet",
        prompt=["a <cat>", "a dog"],
        negative_prompt=[None, "<ink>"],
        seed=[3.0, float("nan")],
        count=[None, 2],
        size=[24, None],
        guidance=[2, None],
    )
    assert prompts_table.read(path, Lexicon([output.uri])) == [
        Request("a <cat>", ("<cat>",), None, 3, 1, 24, 2.0),
        Request("a dog", ("<ink>",), "<ink>", 0, 2, None, None),
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"prompt": ["a"], "seeds": [1]},
            "column 'seeds': is not a column of a table of prompts; did you mean 'seed'",
        ),
        ({"seed": [1]}, "column 'prompt': is missing"),
        ({"prompt": ["a", ""]}, "row 1, column 'prompt': is empty"),
        ({"prompt": ["a", None]}, "row 1, column 'prompt': is empty"),
        ({"prompt": [5]}, "row 0, column 'prompt': input should be a valid string, not 5"),
        ({"prompt": ["a <cart>"]}, "row 0, column 'prompt': no learned word '<cart>'; did you mean '<cat>'"),
        (
            {"prompt": ["a"], "seed": [-1]},
            "column 'seed': input should be greater than or equal to 0, not -1",
        ),
        (
            {"prompt": ["a"], "count": [1.5]},
            "row 0, column 'count': input should be a valid integer, not 1.5",
        ),
        ({"prompt": ["a"], "count": [True]}, "column 'count': input should be a valid integer, not True"),
        (
            {"prompt": ["a"], "count": [0]},
            "column 'count': input should be greater than or equal to 1, not 0",
        ),
        ({"prompt": ["a"], "size": [20]}, "column 'size': input should be a multiple of 8, not 20"),
        (
            {"prompt": ["a"], "guidance": [0.5]},
            "column 'guidance': input should be greater than or equal to 1, not 0.5",
        ),
        ({"prompt": ["a"], "guidance": ["x"]}, "column 'guidance': input should be a valid number, not 'x'"),
        ({"prompt": ["a"], "guidance": [math.inf]}, "'guidance': input should be a finite number, not inf"),
        (
            {"prompt": ["", "a"], "size": [20, 9]},
            "3 problems in the prompts\n  row 0, column 'prompt': is empty\n  row 0, column 'size'",
        ),
        ({"prompt": pa.array([], pa.string())}, "has no rows"),
    ],
)
def test_what_is_wrong_with_a_table(
    output: Store, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    path = table(tmp_path / "p.parquet", **columns)
    with pytest.raises(UserError) as caught:
        prompts_table.read(path, Lexicon([output.uri]))
    assert message in str(caught.value)


def test_tables_that_are_none(output: Store, tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"bad")
    lexicon = Lexicon([output.uri])
    with pytest.raises(UserError, match="the table of prompts doesn't exist"):
        prompts_table.read(str(tmp_path / "none.parquet"), lexicon)
    with pytest.raises(UserError, match="not a Parquet file"):
        prompts_table.read(str(tmp_path / "bad.parquet"), lexicon)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"seed": [math.inf]}, "column 'seed': input should be a valid integer"),
        ({"seed": [1e300]}, "column 'seed': input should be less than"),
        (
            {"seed": [2**63 - 1], "count": [2]},
            "column 'seed': with count 2, the last seed is above 2**63 - 1",
        ),
        ({"seed": pa.array([2**64 - 1], pa.uint64())}, "column 'seed': input should be less than"),
        (
            {"prompt": pa.array([b"\xff"], pa.binary()).view(pa.string())},
            "not a Parquet file (or a damaged one)",
        ),
    ],
)
def test_numbers_and_texts_beyond_limits(
    output: Store, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    path = table(tmp_path / "p.parquet", **{"prompt": ["a"], **columns})
    with pytest.raises(UserError) as caught:
        prompts_table.read(path, Lexicon([output.uri]))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_last_seed(output: Store, tmp_path: Path) -> None:
    path = table(tmp_path / "p.parquet", prompt=["a"], seed=[2**63 - 2], count=[2])
    (request,) = prompts_table.read(path, Lexicon([output.uri]))
    assert list(request.seeds) == [2**63 - 2, 2**63 - 1]
