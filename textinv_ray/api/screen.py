"""A job below a cell of a notebook: a bar, one line of progress, the last lines; in the end all lines, folded."""

from __future__ import annotations

import html
import sys
import threading
from typing import Any

_LAST_LINES = 5


def is_in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class NotebookScreen:
    """Shows a job below the cell that runs, and is updated in place. A `Screen` of the driver."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._text, self._share = "starting", 0.0
        self._shown: dict[str, str] = {}
        self._handle: Any = None

    def line(self, text: str) -> None:
        """A line for the user."""
        with self._lock:
            self._lines.append(text)
            self._update(is_over=False)

    def progress(self, text: str, share: float) -> None:
        """How far the job is, in words and as a share of its steps in [0, 1]."""
        with self._lock:
            self._text, self._share = text, share
            self._update(is_over=False)

    def close(self) -> None:
        """The job has ended: only its lines remain, folded."""
        with self._lock:
            self._update(is_over=True)

    def _update(self, is_over: bool) -> None:
        """Nothing is shown before there is something to say: a mistake in the call stands alone."""
        bundle = self._bundle(is_over)
        if self._handle is None:
            if not is_over:
                from IPython.display import display

                self._handle = display(bundle, raw=True, display_id=True)
        elif bundle != self._shown:
            self._handle.update(bundle, raw=True)
        self._shown = bundle

    def _bundle(self, is_over: bool) -> dict[str, str]:
        """What is shown now, by MIME type."""
        if is_over:
            plain = "\n".join(self._lines)
            rich = f"<details><summary>the job's messages</summary><pre>{html.escape(plain)}</pre></details>"
            return {"text/html": rich, "text/plain": plain}
        last = "\n".join(line for line in self._lines if line.strip()).splitlines()[-_LAST_LINES:]
        bar = f'<progress value="{self._share:.3f}" max="1" style="width:20em"></progress>'
        text = html.escape("\n".join(last))
        return {
            "text/html": f"<div>{bar} {html.escape(self._text)}<pre>{text}</pre></div>",
            "text/plain": self._text,
        }
