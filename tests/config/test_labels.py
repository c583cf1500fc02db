"""Label selectors: the syntax is Ray's, and so is what they match."""

from __future__ import annotations

import pytest
from ray._private.label_utils import validate_label_selector

from textinv_ray.config.job import JobConfig
from textinv_ray.config.labels import matches
from textinv_ray.util.errors import UserError

SPOT, ON_DEMAND, BARE = {"ray.io/market-type": "spot"}, {"ray.io/market-type": "on-demand"}, {"zone": "a"}


def load(*overrides: str) -> JobConfig:
    return JobConfig.load("mini", [f"service.{override}" for override in overrides])


@pytest.mark.parametrize("key", ["ray.io/market-type", "zone", "a/b_c.d", "A", f"{'x' * 63}"])
@pytest.mark.parametrize(
    "value", ["spot", "!spot", "in(A100,H100)", "!in(A100, H100)", "in(A100)", "a-b_c.d", "9"]
)
def test_what_may_be_written(key: str, value: str) -> None:
    assert load(f'label_selector={{"{key}": "{value}"}}').service.label_selector == {key: value}
    assert validate_label_selector({key: value}) is None


@pytest.mark.parametrize(
    ("selector", "why"),
    [
        (
            '{"-zone": "a"}',
            "service.label_selector: '-zone' is no label; labels look like ray.io/market-type",
        ),
        ('{"a b": "a"}', "'a b' is no label"),
        (f'{{"{"x" * 64}": "a"}}', "is no label"),
        ('{"zone": "a b"}', "'a b' selects no label: write a value, !value, in(value,value)"),
        ('{"zone": "in()"}', "'in()' selects no label"),
        ('{"zone": "in(a,"}', "selects no label"),
        ('{"zone": "!!a"}', "selects no label"),
        ('{"zone": ">3"}', "selects no label"),
    ],
)
def test_what_may_not(selector: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        load(f"label_selector={selector}")
    assert why in str(caught.value)
    with pytest.raises(UserError) as caught:
        load("label_selector={a: b}", f"fallback_label_selectors=[{selector}]")
    assert why.removeprefix("service.label_selector: ") in str(caught.value)


def test_other_kinds_of_values() -> None:
    with pytest.raises(UserError, match=r"service\.label_selector\.zone: .* valid string, not 3"):
        load("label_selector={zone: 3}")
    with pytest.raises(UserError, match=r"service\.label_selector: .* should be an object, not 'spot'"):
        load("label_selector=spot")


def test_a_fallback_needs_something_to_fall_back_from() -> None:
    with pytest.raises(UserError, match="fallback_label_selectors need a label_selector"):
        load("fallback_label_selectors=[{zone: a}]")


@pytest.mark.parametrize(
    ("value", "matched"),
    [
        ("spot", [SPOT]),
        ("!spot", [ON_DEMAND, BARE]),
        ("in(spot,on-demand)", [SPOT, ON_DEMAND]),
        ("in(spot, other)", [SPOT]),
        ("!in(spot,on-demand)", [BARE]),
    ],
)
def test_which_nodes_match(value: str, matched: list[dict[str, str]]) -> None:
    selector = {"ray.io/market-type": value}
    assert [labels for labels in (SPOT, ON_DEMAND, BARE) if matches(selector, labels)] == matched
    assert matches({}, BARE)
    assert not matches({**selector, "zone": "b"}, {**matched[0], "zone": "a"}), "all labels count"


def test_selectors_travel_with_the_configuration() -> None:
    config = load("label_selector={zone: a}", "fallback_label_selectors=[{zone: b}, {}]")
    assert JobConfig.from_dict(config.to_dict()) == config
    assert config.service.label_selectors == ({"zone": "a"}, {"zone": "b"}, {})
    assert config.result_inputs() == load().result_inputs(), "a result doesn't depend on where it was learned"
