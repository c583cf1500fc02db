"""What a notebook shows of a job, in a kernel of its own."""

from __future__ import annotations

import sys

import pytest

from tests.support.notebooks import run_cells

pytest.importorskip("nbclient")

SCREEN = """
from textinv_ray.api.screen import NotebookScreen, is_in_notebook
assert is_in_notebook()
screen = NotebookScreen()
screen.line("model: <b>")
screen.progress("1 of <2> concepts done", 0.5)
"""
CLOSED = SCREEN + "screen.close()"


def test_a_job_below_a_cell() -> None:
    """While it runs and when it is over; what it says is shown as text."""
    running, over = (cell.outputs for cell in run_cells([SCREEN, CLOSED], sys.executable))
    (shown,) = running
    assert '<progress value="0.500"' in shown.data["text/html"]
    assert "1 of &lt;2&gt; concepts done" in shown.data["text/html"]
    assert "model: &lt;b&gt;" in shown.data["text/html"]
    (shown,) = over
    assert "progress" not in shown.data["text/html"]
    assert "<pre>model: &lt;b&gt;</pre>" in shown.data["text/html"]
    assert shown.data["text/plain"] == "model: <b>"
