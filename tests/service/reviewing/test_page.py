"""The page of `textinv review`, in a real browser: by keys alone, by several people, with hostile texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import browser, examples
from tests.support.reviewing import Served, served
from tests.support.waiting import wait_for
from textinv_ray.service.reviewing.decide import by_id
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import results_table

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MANY = 1000
NAME = """e => e.getAttribute("aria-label") || e.labels?.[0]?.textContent || e.textContent
    || e.querySelector("img")?.alt"""
EVIL = "\"><img src=x onerror='document.title=\"taken\"'><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.opened() as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Twelve concepts: c0 has the worst gain; c3 got worse; one failed."""
    store = Store(str(tmp_path))
    for index in range(12):
        tags = {"shelf": str(index % 2)}
        score = 0.4 + index / 100 if index < 2 else 0.6 + index / 100
        examples.finish(store, f"c{index}", [[1, index, 0, 0]], clip_image_similarity=score, tags=tags)
    examples.fail(store, "broken", "no such image")
    results_table.write(store, StoredResults.read(store))
    return store


@pytest.fixture
def server(store: Store) -> Iterator[Served]:
    with served(store) as found:
        yield found


def opened(chromium: Browser, server: Served, width: int = 1400, height: int = 900) -> Page:
    """The page, whose errors are errors of the test."""
    page = chromium.new_context(viewport={"width": width, "height": height}).new_page()
    page.on("pageerror", _fail)
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(server.url)
    page.wait_for_selector("body[data-ready]", state="attached")
    return page


def _fail(error: object) -> None:
    raise AssertionError(f"the page: {error}")


def heading(page: Page) -> str:
    return page.inner_text("main h2")


def verdicts(store: Store) -> dict[str, str]:
    return {concept_id: decision.verdict for concept_id, decision in by_id(store).items()}


def settle(store: Store, wanted: dict[str, str]) -> None:
    wait_for(lambda: verdicts(store) == wanted, 30, f"{verdicts(store)} is not {wanted}")


def test_by_keys_alone(chromium: Browser, server: Served, store: Store) -> None:
    page = opened(chromium, server)
    assert heading(page) == "c0", "the worst gain first"
    assert "worse than its initializer by 0.100" in page.inner_text("main")
    page.keyboard.press("a")
    assert heading(page) == "c1"
    page.keyboard.press("r")
    page.keyboard.press("n")
    assert heading(page) == "c3"
    page.keyboard.press("p")
    page.keyboard.press("p")
    assert heading(page) == "c1"
    assert "rejected" in page.inner_text("main .verdict")
    settle(store, {"c0": "approved", "c1": "rejected"})
    page.keyboard.press("u")
    assert heading(page) == "c1"
    page.keyboard.press("u")
    assert heading(page) == "c0"
    settle(store, {"c0": "undecided", "c1": "undecided"})
    assert "0 of 12 decided" in page.inner_text("header")
    page.context.close()


def test_a_note(chromium: Browser, server: Served, store: Store) -> None:
    page = opened(chromium, server)
    page.keyboard.press("e")
    page.keyboard.type("the arms are gone")
    page.keyboard.press("Control+Enter")
    wait_for(lambda: store.decision("c0"), 30)
    page.keyboard.press("r")
    settle(store, {"c0": "rejected"})
    decision = store.decision("c0")
    assert decision is not None
    assert decision.note == "the arms are gone"
    page.keyboard.press("p")
    assert "the arms are gone" in page.inner_text("main .verdict")
    page.context.close()


def test_a_selection_at_once_and_back(chromium: Browser, server: Served, store: Store) -> None:
    page = opened(chromium, server)
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    assert page.inner_text("#bulk-count") == "3 selected"
    page.keyboard.press("a")
    settle(store, {"c0": "approved", "c1": "approved", "c2": "approved"})
    page.keyboard.press("u")
    settle(store, dict.fromkeys(("c0", "c1", "c2"), "undecided"))
    page.keyboard.press("/")
    page.keyboard.type("shelf 1")  # an id may have the 1, too
    page.keyboard.press("Escape")
    assert page.get_attribute("#list .entry >> nth=0", "aria-setsize") == "7"
    page.select_option("#tag", '["shelf","1"]')
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Control+a")
    assert page.inner_text("#bulk-count") == "6 selected", "of those that pass the filters"
    page.keyboard.press("r")
    wait_for(lambda: list(verdicts(store).values()).count("rejected") == 6, 30)
    page.context.close()


def test_filters_and_order(chromium: Browser, server: Served) -> None:
    page = opened(chromium, server)
    page.select_option("#warning", "worse")
    assert page.get_attribute("#list .entry >> nth=0", "aria-setsize") == "2"
    page.select_option("#warning", "")
    page.select_option("#sort", "-gain")
    assert heading(page) == "c11"
    page.select_option("#tag", '["shelf","0"]')
    assert heading(page) == "c10"
    page.select_option("#tag", "")
    page.select_option("#verdict", "failed")
    assert heading(page) == "broken"
    assert "no such image" in page.inner_text("main")
    page.keyboard.press("a")
    page.select_option("#verdict", "approved")
    assert "No concept passes" in page.inner_text("main"), "what failed can't be approved"
    page.context.close()


def test_compare_and_zoom(chromium: Browser, server: Served) -> None:
    page = opened(chromium, server)
    page.keyboard.press("c")
    assert "Nearest: c" in page.inner_text(".compared")
    page.keyboard.press("z")
    text = page.inner_text("#zoom-text")
    assert text.startswith("c0: training image 1 of 3 (1 of ")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#zoom-text").startswith("c0: training image 2 of 3")
    page.keyboard.press("Escape")
    assert not page.is_visible("#zoom-dialog")
    page.wait_for_function("[...document.querySelectorAll('main img')].every(img => img.naturalWidth)")
    page.context.close()


def test_two_people_at_once(chromium: Browser, server: Served, store: Store) -> None:
    eva, tom = opened(chromium, server), opened(chromium, server)
    tom.fill("#reviewer", "tom")
    tom.keyboard.press("Escape")
    eva.keyboard.press("a")
    settle(store, {"c0": "approved"})
    tom.keyboard.press("r")
    tom.wait_for_selector("#message:has-text('eva has decided meanwhile: approved')")
    settle(store, {"c0": "approved"})
    tom.keyboard.press("p")
    tom.keyboard.press("r")
    settle(store, {"c0": "rejected"})
    eva.wait_for_selector("#message:has-text('tom: c0 is rejected')", timeout=15000)
    eva.context.close()
    tom.context.close()


def test_the_store_is_away_for_a_while(
    chromium: Browser, server: Served, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decisions wait in the page, and are stored when the server answers again."""
    page = opened(chromium, server)
    page.route("**/api/decisions", lambda route: route.abort())
    page.keyboard.press("a")
    page.keyboard.press("r")
    page.wait_for_selector("#saving:has-text('2 not stored yet')")
    page.unroute("**/api/decisions")
    settle(store, {"c0": "approved", "c1": "rejected"})
    page.wait_for_function("document.getElementById('saving').textContent === ''")
    page.context.close()


def test_texts_of_others_are_texts(chromium: Browser, tmp_path: Path) -> None:
    """Words, tags, prompts, errors and notes with markup in them."""
    store = Store(str(tmp_path))
    examples.finish(
        store,
        "a",
        placeholder_token=EVIL,
        initializer_token=EVIL,
        tags={EVIL: EVIL},
        nearest_words={"clip_l": [EVIL]},
        sample_prompts=[EVIL + "{}"],
    )
    examples.fail(store, "b", EVIL)
    with served(store, reviewer=EVIL) as server:
        page = opened(chromium, server)
        page.keyboard.press("e")
        page.fill("#note-text", EVIL)
        page.click("#note-save")
        page.select_option("#verdict", "all")
        for _ in range(2):
            assert EVIL in page.inner_text("main")
            assert page.locator("img[src=x], script:not([src])").count() == 0
            page.keyboard.press("n")
        page.keyboard.press("s")
        assert page.title() == f"Review of {store.shown}"
        page.context.close()


def test_a_narrow_window(chromium: Browser, server: Served, store: Store) -> None:
    page = opened(chromium, server, width=390, height=780)
    for at in ("approve", "reject", "undo", "next", "note"):
        box = page.locator(f"#{at}").bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 390, at
        assert box["y"] + box["height"] <= 780, at
        assert box["height"] >= 30, at
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not page.is_visible("#list")
    page.click("#list-toggle")
    page.click("#list .entry >> nth=3")
    assert heading(page) == "c3"
    page.click("#approve")
    settle(store, {"c3": "approved"})
    page.context.close()


def test_a_screen_reader_is_told(chromium: Browser, server: Served) -> None:
    page = opened(chromium, server)
    for element in page.locator("button:visible, input:visible, select:visible, [role=option]").all():
        assert element.evaluate(NAME).strip(), element.evaluate("e => e.outerHTML")
    pictures = [picture.get_attribute("alt") or "" for picture in page.locator("main .contact img").all()]
    assert len(pictures) == 3 + 2 + 2
    described = r"c0: (training image \d of 3|“a photo of \S+”, step \d, seed \d)"
    assert all(re.match(described, text) for text in pictures), pictures
    page.keyboard.press("a")
    said = page.inner_text("#said")
    assert said.startswith("c0 approved. c1, undecided, gain −0.09"), said
    assert page.get_attribute("#list", "aria-activedescendant") == "entry-1"
    assert "c1, undecided, gain −0.09" in (page.get_attribute("#entry-1", "aria-label") or "")
    assert page.locator("main svg[role=img]").get_attribute("aria-label") == (
        "CLIP image similarity over steps: step 0: 0.500, step 2: 0.750"
    )
    page.context.close()


def test_the_stopping_rules_evaluations_are_a_curve(chromium: Browser, server: Served, store: Store) -> None:
    history = examples.history("c0", 4)
    for step, score in ((1, 0.4), (2, 0.6), (3, 0.5)):
        history.points[step].stopping_clip_image_similarity = score
    store.write_concept("c0", "history.parquet", history.to_bytes())
    page = opened(chromium, server)
    points = page.locator("main polyline.rule").get_attribute("points")
    assert len((points or "").split()) == 3
    page.context.close()


def test_thousands_cost_what_is_seen(chromium: Browser, tmp_path: Path) -> None:
    """Pictures and list entries are there for what can be seen, not for the whole list."""
    store = Store(str(tmp_path))
    for index in range(MANY):
        made = examples.result(f"c{index:04}")
        store.write_concept(made.concept_id, "result.json", made.to_bytes())
    with served(store) as server:
        page = opened(chromium, server)
        assert page.locator("#list .entry").count() < 40
        page.evaluate("document.getElementById('list').scrollTop = 1e9")
        page.wait_for_selector(f"#list .entry:has-text('c{MANY - 1:04}')")
        assert page.locator("#list .entry").count() < 40
        page.keyboard.press("s")
        assert page.locator("#list .entry").count() < 120
        page.keyboard.press("Control+a")
        page.keyboard.press("a")
        wait_for(lambda: len(store.names("reviews")) == MANY, 60)
        page.wait_for_selector(f"#counts:has-text('{MANY} approved')")
        page.context.close()
