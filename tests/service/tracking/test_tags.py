"""A row's tags in MLflow: names of their own, which MLflow takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from textinv_ray.service.tracking import tags


def test_names() -> None:
    given = {
        "shelf": "3",
        "price ($)": "9",
        "price (€)": "8",
        "100%": "x",
        "a=b": "y",
        "цена": "z",
        "a//b": "w",
    }
    assert tags.of_row(given) == {
        "tag.shelf": "3",
        "tag.price ___": "9",
        "tag.price ____2": "8",
        "tag.100_": "x",
        "tag.a_b": "y",
        "tag.цена": "z",
        "tag.a__b": "w",
    }


def test_reserved_names_are_out_of_reach() -> None:
    reserved = (
        "approved",
        "textinv.job",
        "textinv.concept",
        "mlflow.parentRunId",
        "mlflow.runName",
        "status",
    )
    assert list(tags.of_row(dict.fromkeys(reserved, "true"))) == [f"tag.{name}" for name in reserved]


@given(
    st.dictionaries(st.text(max_size=300) | st.text("./a-(%", max_size=6), st.text(max_size=5), max_size=6)
)
def test_mlflow_takes_every_name(given: dict[str, str]) -> None:
    from mlflow.utils.validation import _validate_tag

    found = tags.of_row(given)
    assert sorted(found.values()) == sorted(given.values()), "none is lost"
    for name, value in found.items():
        assert name.startswith("tag.")
        assert len(name) <= 250
        _validate_tag(name, value)
