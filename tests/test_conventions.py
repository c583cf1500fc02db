"""What holds for the tests themselves."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def imported(module: Path) -> set[str]:
    """Dotted names of the modules that a file imports, and of what it imports from them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_test_module_is_imported() -> None:
    """What tests share lies in tests/support."""
    modules = [path for folder in ("tests", "benchmarks") for path in (TESTS.parent / folder).rglob("*.py")]
    names = {path: imported(path) for path in modules}
    assert "tests.support.waiting.wait_for" in set().union(*names.values()), "imports are found"
    of_tests = {
        str(path.relative_to(TESTS.parent)): name
        for path, found in names.items()
        for name in found
        if any(part.startswith("test_") for part in name.split("."))
    }
    assert of_tests == {}
