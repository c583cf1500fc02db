"""Runs notebooks in a kernel of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TIMEOUT_S = 300


def run_cells(
    sources: Sequence[str],
    python: str,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    allow_errors: bool = False,
) -> list[Any]:
    """Runs cells of code with this Python, and returns them with their outputs.

    folder: the kernel's working directory. environment: all of the kernel's; None: this process's. Raises nbclient's
    CellExecutionError for an exception in a cell unless `allow_errors`.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbformat import v4

    class Manager(AsyncKernelManager):
        """Starts the kernel by a command of its own, without an installed kernelspec."""

        @property
        def kernel_spec(self) -> KernelSpec:
            argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python", language="python")

    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])
    client = NotebookClient(
        notebook,
        km=Manager(),
        timeout=TIMEOUT_S,
        allow_errors=allow_errors,
        resources={"metadata": {"path": str(folder or ".")}},
    )
    client.execute(**({} if environment is None else {"env": dict(environment)}))
    return list(notebook.cells)
