"""Each exit code is given where the table says so; the documentation has the same table."""

from __future__ import annotations

import re
import signal
import socket
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.main import get_command

from tests.support.commands import REPOSITORY, Command, textinv
from textinv_ray.cli.jobs import app
from textinv_ray.cli.options import commands_of
from textinv_ray.manifest import checks
from textinv_ray.util.exit_codes import MEANINGS, ExitCode, in_a_line


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"concept_id": ["a"], "images": [["no-such-file.png"]]}), path)
    return str(path)


def test_all_is_done(manifest: str, tiny_sd: Path) -> None:
    assert textinv("validate", manifest, "--set", f"model.path={tiny_sd}") == 0


def test_some_failed(manifest: str, tiny_sd: Path) -> None:
    options = ["--set", f"model.path={tiny_sd}", "--check-images"]
    assert textinv("validate", manifest, *options) == 1


@pytest.mark.parametrize(
    "arguments", [["validate", "none.parquet"], ["validate"], ["validat"], ["presets", "x"]]
)
def test_a_mistake_of_the_user(arguments: list[str]) -> None:
    assert textinv(*arguments) == 2


def test_a_fault_of_the_program(
    manifest: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(*_: object, **options: object) -> None:
        raise ZeroDivisionError("s3://key:SECRET@bucket/x")

    monkeypatch.setattr(checks, "check", check)
    assert textinv("validate", manifest) == 3
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("error: a fault of textinv_ray itself; please report it with the lines above\n")
    assert "SECRET" not in error


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)]
)
def test_a_signal(tmp_path: Path, number: signal.Signals, code: ExitCode) -> None:
    """A command that waits for a server which never answers. Jobs: tests/service/driver."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        uri = f"http://127.0.0.1:{server.getsockname()[1]}/m.parquet"
        command = Command(
            [sys.executable, "-m", "textinv_ray", "validate", uri],
            tmp_path / "log",
            tmp_path,
            {"PYTHONPATH": str(REPOSITORY)},
        )
        with server.accept()[0]:
            command.send_signal(number)
            returned, said = command.ended(60)
    assert (128 - returned if returned < 0 else returned) == code, said  # shells count a death by a signal so
    assert "Traceback" not in said


def test_the_end_of_every_help_has_them() -> None:
    program = get_command(app)
    commands = [program, *program.commands.values(), *commands_of(app).values()]  # type: ignore[attr-defined]
    assert len(commands) > 15
    assert {command.epilog for command in commands} == {in_a_line()}
    assert all(f"{code:d} {meaning}" in in_a_line() for code, meaning in MEANINGS.items())


def test_the_documentation_has_them() -> None:
    page = (REPOSITORY / "docs" / "commands.md").read_text()
    table = {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)}
    assert table == {int(code): meaning for code, meaning in MEANINGS.items()}
    assert set(MEANINGS) == set(ExitCode)
