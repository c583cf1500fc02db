"""The tables: complete, of possible values, and what the counting finds again."""

from __future__ import annotations

import pytest

from benchmarks import costs as counting
from textinv_ray.config.job import JobConfig
from textinv_ray.config.model_families import FAMILIES
from textinv_ray.config.presets import preset_names
from textinv_ray.model_files.places import is_bundled
from textinv_ray.sizing import tables
from textinv_ray.sizing.tables import PictureCost
from textinv_ray.util.errors import UserError


def test_every_family_and_preset_has_a_model() -> None:
    assert {model.family for model in tables.models().values()} == {family.name for family in FAMILIES}
    for preset in preset_names():
        path = JobConfig.load(preset).model.path
        assert is_bundled(path) or tables.model_at(path), path


def test_every_model_has_its_costs_and_its_familys_encoders() -> None:
    by_name = {family.name: family for family in FAMILIES}
    assert tables.models().keys() == tables.costs().keys() == counting.MODELS.keys()
    for name, model in tables.models().items():
        found = [part.name for part in tables.costs()[name].encoders]
        assert set(found) <= set(by_name[model.family].encoders), name


def test_what_was_measured_is_of_known_models_and_devices() -> None:
    for line in tables.measured():
        assert line.device in tables.devices()
        assert is_bundled(line.model) or line.model in tables.models()
        assert line.how.startswith("measured: ")


def test_an_unknown_device() -> None:
    with pytest.raises(UserError, match=r"--gpu: no 'h10'; did you mean 'h100'\? \(known: t4, .*b200, cpu\)"):
        tables.device("h10")
    assert tables.device("H100") is tables.devices()["h100"]


@pytest.mark.parametrize("name", list(tables.models()))
def test_costs_between_the_sides_that_were_counted(name: str) -> None:
    costs = tables.costs()[name]
    for side in tables.SIDES:
        counted, found = costs.sides[str(side)], costs.of_side(side)
        for field in PictureCost.model_fields:
            assert getattr(found, field) == pytest.approx(getattr(counted, field))
    sides = [costs.of_side(side) for side in (256, 384, 512, 640, 768, 896, 1024, 1280)]
    for field in PictureCost.model_fields:
        values = [getattr(cost, field) for cost in sides]
        assert values == sorted(values)
        assert values[0] > 0
    for cost in sides:
        assert cost.checkpointed < cost.kept
        assert 1.9 * cost.forward < cost.both < 3 * cost.forward, "no gradient of a weight is computed"


@pytest.mark.slow
def test_the_counting_finds_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "SIDES", (512,))
    found, stored = counting.cost_of(counting.MODELS["sd15"]), tables.costs()["sd15"]
    assert found["sides"]["512"] == stored.sides["512"].model_dump()
    assert found["parameters"] == stored.parameters
    assert found["encoders"] == [part.model_dump() for part in stored.encoders]
