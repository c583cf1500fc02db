"""A real browser without a window: an installed Chromium, which Playwright drives."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """Path of an installed Chromium or Chrome: TEXTINV_CHROMIUM, or one on PATH; none when there is none."""
    return os.environ.get("TEXTINV_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def opened() -> Iterator[Browser]:
    """Skips the test, and says why, where there is no browser."""
    path = chromium()
    if path is None:
        pytest.skip(f"no browser on PATH ({', '.join(NAMES)}); TEXTINV_CHROMIUM may name one")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
    with playwright.sync_playwright() as driver:
        # Without its sandbox it runs as root, too: in a container
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
