"""report.html in a browser, opened from a file: sorted, filtered, decided on, and its decisions imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import browser, examples
from tests.support.commands import textinv
from textinv_ray.service.reviewing.decide import Request, by_id, decide
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import report

if TYPE_CHECKING:
    from playwright.sync_api import Page

EVIL = "<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "out"))
    for name, score in (("good", 0.9), ("bad", 0.3), ("fair", 0.6), ("decided", 0.7)):
        examples.finish(store, name, clip_image_similarity=score, tags={"x": EVIL})
    examples.fail(store, "broken", EVIL)
    decide(store, Request("decided", "fingerprint of decided", "approved", EVIL, EVIL))
    report.write(store, StoredResults.read(store))
    return store


@pytest.fixture
def page(store: Store) -> Iterator[Page]:
    with browser.opened() as chromium:
        page = chromium.new_page(viewport={"width": 1500, "height": 900})
        page.on("pageerror", _fail)
        page.goto(f"file://{store.path('report.html')}")
        yield page


def _fail(error: object) -> None:
    raise AssertionError(f"the page: {error}")


def shown(page: Page) -> list[str]:
    rows = page.locator("#t tbody tr:visible td:first-child b").all_inner_texts()
    return [str(text) for text in rows]


@pytest.mark.parametrize("width", [1400, 1000, 700])
def test_decisions_are_in_view_in_any_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for place in ("#t thead th:last-child", "#t td.d button >> nth=0", "#t td.d input >> nth=0"):
        box = page.locator(place).bounding_box()
        assert box is not None, place
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width, place


def test_decisions_come_back_as_a_file(store: Store, page: Page, tmp_path: Path) -> None:
    assert shown(page) == ["broken", "bad", "fair", "decided", "good"]
    assert "1 result got worse than the initializer" in page.inner_text("body")
    page.select_option("#g", "worse")
    assert shown(page) == ["bad"]
    page.select_option("#g", "")
    page.select_option("#d", "undecided")
    assert shown(page) == ["bad", "fair", "good"]
    page.evaluate("document.activeElement.blur()")
    for key in ("j", "r", "a"):
        page.keyboard.press(key)
    page.keyboard.press("e")
    page.keyboard.type("a note")
    page.keyboard.press("Enter")
    page.select_option("#d", "")
    page.fill("#who", "tom")
    page.reload()
    assert "3 made here" in page.inner_text("#n"), "kept by the browser"
    with page.expect_download() as found:
        page.click("#save")
    path = tmp_path / "decisions.json"
    found.value.save_as(path)
    assert textinv("review", store.uri, "--import", str(path)) == 0
    decisions = {
        name: (one.verdict, one.reviewer, one.note) for name, one in by_id(store).items() if name != "decided"
    }
    assert decisions == {
        "bad": ("rejected", "tom", ""),
        "fair": ("approved", "tom", ""),
        "good": ("undecided", "tom", "a note"),
    }


def test_texts_of_others_are_texts(page: Page) -> None:
    page.wait_for_selector("td.d button")
    assert page.title().startswith("Learned concepts")
    assert page.locator("img[src=x]").count() == 0
    assert f"approved by {EVIL}" in page.inner_text("#t")
    page.click("th button:text('gain')")
    assert shown(page)[1] == "bad"
    page.click("th button:text('gain')")
    assert shown(page)[1] == "good"
    page.fill("#q", "fair")
    assert shown(page) == ["fair"]
    page.click("button[aria-label='approve fair']")
    assert page.get_attribute("button[aria-label='approve fair']", "aria-pressed") == "true"
    page.click("button[aria-label='approve fair']")
    assert page.get_attribute("button[aria-label='approve fair']", "aria-pressed") == "false", "taken back"
