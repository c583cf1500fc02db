"""The metrics: their table, what Ray offers of them to Prometheus, and the dashboard that shows them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.commands import REPOSITORY
from tests.support.metrics import scraped
from tests.support.waiting import wait_for
from textinv_ray.service import metrics
from textinv_ray.service.metrics import COMMON_TAGS, METRICS, Counter, Histogram

DASHBOARD = REPOSITORY / "configs" / "grafana" / "textinv_ray.json"
BY_PROMETHEUS = {"le"}
"""Labels that a metric has beside its tags."""


def test_the_table() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"textinv_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == isinstance(metric, Counter)
        assert metric.name.endswith("_seconds") == isinstance(metric, Histogram) == (metric.unit == "s")
        assert metric.description
        assert not set(metric.tags) & {*COMMON_TAGS, "job", "instance"}, "Prometheus has its own"
        if isinstance(metric, Histogram):
            assert list(metric.boundaries) == sorted(set(metric.boundaries))
    assert set(METRICS) == {each for each in vars(metrics).values() if isinstance(each, metrics.Metric)}


@pytest.fixture
def endpoint(local_ray: None) -> Iterator[str]:
    """Of this process's Ray, to which the metrics go during the test."""
    import ray

    (node,) = ray.nodes()
    metrics.report("s3://bucket/out", "w")
    yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    metrics.stop()


@pytest.mark.slow
def test_what_is_recorded_reaches_prometheus(endpoint: str) -> None:
    metrics.STEPS.add(3)
    metrics.STEPS.add(0)
    metrics.STEPS.add(4)
    metrics.CONCEPTS.set(5, state="done")
    with metrics.STORE_SECONDS.timed(operation="read"):
        time.sleep(0.02)
    began = time.monotonic()

    def found() -> dict[str, tuple[float, dict[str, str]]]:
        return {sample.name: (sample.value, sample.tags) for sample in scraped(endpoint)}

    wait_for(lambda: len(found()) >= 5 and time.monotonic() - began > 4, 60, "Ray doesn't offer the metrics")
    now = found()
    value, tags = now["ray_textinv_steps_total"]
    assert value == 7
    assert (tags["job_name"], tags["worker"]) == ("s3://bucket/out", "w")
    value, tags = now["ray_textinv_concepts"]
    assert (value, tags["state"]) == (5, "done"), "a gauge stays, though Ray forgets it soon"
    assert 0.02 <= now["ray_textinv_store_seconds_sum"][0] < 1
    assert now["ray_textinv_store_seconds_count"][1]["operation"] == "read"


def test_nothing_is_recorded_before_it_is_asked_for() -> None:
    for metric in METRICS:
        tags = dict.fromkeys(metric.tags, "x")
        for name in {"add", "set", "observe"} & set(dir(metric)):
            getattr(metric, name)(1, **tags)


# The dashboard


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def _series() -> dict[str, set[str]]:
    """Names of all time series -> their labels."""
    found = {}
    for metric in METRICS:
        ends = ("_bucket", "_sum", "_count") if isinstance(metric, Histogram) else ("",)
        for end in ends:
            found[metric.exported + end] = {*COMMON_TAGS, *metric.tags} | (
                BY_PROMETHEUS if end == "_bucket" else set()
            )
    return found


def _panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_every_expression_asks_for_what_there_is(dashboard: dict[str, Any]) -> None:
    series, variables = _series(), {each["name"] for each in dashboard["templating"]["list"]}
    expressions = [target["expr"] for panel in _panels(dashboard) for target in panel["targets"]]
    expressions += [each["definition"] for each in dashboard["templating"]["list"] if "definition" in each]
    gauges = {metric.exported for metric in METRICS if metric.kind == "gauge"}
    asked = set()
    for expression in expressions:
        names = re.findall(r"\b(ray_\w+)", expression)
        assert names, expression
        assert set(names) <= series.keys(), expression
        asked |= set(names)
        labels = set().union(*(series[name] for name in names))
        by = ",".join(re.findall(r"by \(([^)]*)\)", expression))
        used = {*re.findall(r"(\w+)=~?\"", expression), *filter(None, re.split(r",\s*", by))}
        used |= set(re.findall(r"label_values\(.*, (\w+)\)$", expression))
        assert used <= labels, expression
        assert set(re.findall(r"\$(?!__)(\w+)", expression)) <= variables
        for letters in ("()", "{}", "[]"):
            assert expression.count(letters[0]) == expression.count(letters[1]), expression
        if "_bucket" in expression:
            assert re.search(r"by \((?:\w+, )*le\)", expression), "quantiles are taken over le"
        for name in names if "label_values" not in expression else ():
            is_rate = re.search(rf"(?:rate|increase)\({name}\b", expression) is not None
            assert is_rate == (name not in gauges), expression
    shown = {metric.name for metric in METRICS if any(name.startswith(metric.exported) for name in asked)}
    assert shown == {metric.name for metric in METRICS}, "every metric has its place"


def test_legends_name_labels_that_are_left(dashboard: dict[str, Any]) -> None:
    for panel in _panels(dashboard):
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert re.search(rf"by \((?:\w+, )*{label}\b", target["expr"]), panel["title"]


def test_grafana_can_load_it(dashboard: dict[str, Any]) -> None:
    """What Grafana asks of a dashboard that is provisioned from a file; panels stand beside each other."""
    assert dashboard["uid"]
    assert dashboard["title"]
    assert dashboard["schemaVersion"] >= 36
    assert "id" not in dashboard, "Grafana gives it one"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in _panels(dashboard):
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
