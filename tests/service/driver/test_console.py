"""What users see: our lines; all else is in the log file."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from textinv_ray.service.driver import console as consoles
from textinv_ray.service.driver.console import Progress

SCRIPT = """
import logging, os, subprocess, sys
from pathlib import Path
from textinv_ray.service.driver.console import captured

print("before")
with captured(Path(sys.argv[1]), sys.argv[2] == "verbose", "json" if sys.argv[2] == "json" else "text") as console:
    console.print("ours [1/2]")
    print("noise of a library")
    sys.stderr.write("noise on stderr\\n")
    logging.getLogger("x").info("logged by a library at https://me:secret@host/")
    subprocess.run(["sh", "-c", "echo noise of a child at ftp://me:secret@host/"])
    os.write(2, b"noise of C++\\n(PlacementGroupCleaner pid=7) Failed to query Ray Train Controller actor state. x\\n")
print("after")
"""


def run(log: Path, mode: str) -> tuple[str, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(log), mode], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout, done.stderr, log.read_text()


NOISE = ("noise of a library", "noise on stderr", "logged by a library", "noise of a child", "noise of C++")


def test_quiet(tmp_path: Path) -> None:
    out, err, log = run(tmp_path / "job.log", "quiet")
    assert out == "before\nours [1/2]\nafter\n"
    assert err == ""
    assert all(line in log for line in ("ours [1/2]", *NOISE))
    assert "secret" not in log
    assert "PlacementGroupCleaner" not in log, "said every second, it would bury all else"


ON_A_TERMINAL = """
import sys
from pathlib import Path
from textinv_ray.service.driver.console import Progress, captured

with captured(Path(sys.argv[1]), verbose=False) as console:
    with Progress(console, concepts=10, steps=1000) as progress:
        progress.show(3, 0, 2, 0, 0)
        print("noise of a library", flush=True)
        sys.stderr.write("noise on stderr\\n")
        progress.show(4, 0, 2, 0, 0)
"""


def test_a_terminal_shows_no_noise_either(tmp_path: Path) -> None:
    """On a real pseudo-terminal, where the progress line is drawn over and over."""
    log, (ours, theirs) = tmp_path / "job.log", pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, str(log)], stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        screen = b""
        with contextlib.suppress(OSError):  # how a terminal ends whose other side is closed
            while data := os.read(ours, 4096):
                screen += data
        os.close(ours)
        assert process.wait(60) == 0
    assert b"4 of 10 concepts done" in screen
    assert b"noise" not in screen
    assert all(line in log.read_text() for line in ("noise of a library", "noise on stderr"))


def test_verbose_shows_all_and_logs_all(tmp_path: Path) -> None:
    out, err, log = run(tmp_path / "job.log", "verbose")
    assert out == "before\nours [1/2]\nafter\n"
    assert all(line in err for line in NOISE)
    assert all(line in log for line in ("ours [1/2]", *NOISE))
    assert "secret" not in err + log


def test_a_log_of_json(tmp_path: Path) -> None:
    out, err, log = run(tmp_path / "job.log", "json")
    assert out == "before\nours [1/2]\nafter\n", "what people see is the same"
    assert err == ""
    lines = [json.loads(line) for line in log.splitlines()]
    messages = [line["message"] for line in lines]
    assert "ours [1/2]" in messages
    assert all(any(noise in message for message in messages) for noise in NOISE)
    (logged,) = [line for line in lines if "logged by a library" in line["message"]]
    assert (logged["level"], logged["logger"]) == ("INFO", "x")
    assert "secret" not in log


def test_the_log_goes_on(tmp_path: Path) -> None:
    run(tmp_path / "job.log", "quiet")
    _, _, log = run(tmp_path / "job.log", "quiet")
    assert log.count("ours [1/2]") == 2


def test_progress_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(consoles.time, "monotonic", lambda: now)
    out = io.StringIO()
    with Progress(Console(file=out, width=120), concepts=10, steps=1000) as progress:
        progress.show(0, 0, 0, 0, 0)
        assert out.getvalue() == ""
        now = 116.0
        progress.show(0, 0, 0, 0, 0)
        now = 117.0
        progress.show(0, 0, 2, 10, 10)
        now = 132.0
        progress.show(1, 1, 2, 310, 310)
    assert out.getvalue().splitlines() == [
        "0 of 10 concepts done, 0 running · starting the workers and loading the model",
        "1 of 10 concepts done, 1 failed, 2 running · 20.0 steps/s · 34 s left",
    ]


def test_progress_when_the_scheduler_was_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts steps anew, and finds what is done only after a while."""
    now = 100.0
    monkeypatch.setattr(consoles.time, "monotonic", lambda: now)
    out = io.StringIO()
    with Progress(Console(file=out, width=120), concepts=10, steps=1000) as progress:
        for later, done, steps in ((0, 0, 10), (16, 5, 500), (16, 0, 4), (16, 6, 324)):
            now += later
            progress.show(done, 0, 2, steps, 700)
    assert out.getvalue().splitlines() == [
        "5 of 10 concepts done, 2 running · 30.6 steps/s · 10 s left",
        "5 of 10 concepts done, 2 running",
        "6 of 10 concepts done, 2 running · 20.0 steps/s · 15 s left",
    ]


def test_progress_on_a_terminal() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, width=120, force_terminal=True), concepts=10, steps=1000) as progress:
        progress.show(3, 0, 2, 0, 0)
    assert "3 of 10 concepts done, 2 running" in out.getvalue()


ON_A_SCREEN = """
import sys
from pathlib import Path
from textinv_ray.service.driver.console import Progress, captured

class Screen:
    def line(self, text):
        lines.append(text)

    def progress(self, text, share):
        lines.append((text, share))

lines = []
with captured(Path(sys.argv[1]), verbose=False, screen=Screen()) as console:
    console.print("ours [1/2]")
    print("noise of a library")
    kept = sys.stderr
    with Progress(console, 10, 1000, Screen()) as progress:
        progress.show(2, 0, 2, 0, 500)
kept.write("said later\\n")
print(lines)
"""


def test_a_screen_has_our_lines_as_text_and_nothing_else(tmp_path: Path) -> None:
    """Where the environment asks for colours, as kernels of notebooks do; what a logger keeps still works after it."""
    done = subprocess.run(
        [sys.executable, "-c", ON_A_SCREEN, str(tmp_path / "job.log")],
        env={**os.environ, "FORCE_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, (text, share) = ast.literal_eval(done.stdout)
    assert first == "ours [1/2]"
    assert text.startswith("2 of 10 concepts done")
    assert share == 0.5
    assert done.stderr == "said later\n"
    assert "noise of a library" in (tmp_path / "job.log").read_text()


UNREAD = """
import os, sys
from pathlib import Path
from textinv_ray.service.driver.console import Progress, captured

if len(sys.argv) > 2:
    os.dup2(os.open(sys.argv[2], os.O_WRONLY), 1)
with captured(Path(sys.argv[1]), verbose=False) as console:
    sys.stdin.read()
    for number in range(2000):
        console.print(f"line {number}")
    with Progress(console, 10, 1000) as progress:
        progress.show(2, 0, 2, 0, 500)
    console.print("the end")
"""


@pytest.mark.parametrize("where", [[], ["/dev/full"]])
def test_a_job_goes_on_when_nobody_reads_or_the_disk_is_full(tmp_path: Path, where: list[str]) -> None:
    log = tmp_path / "job.log"
    with subprocess.Popen(
        [sys.executable, "-c", UNREAD, str(log), *where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
    assert log.read_text().endswith("line 1999\nthe end\n")


def test_progress_of_words_that_take_no_steps(tmp_path: Path) -> None:
    shares: list[float] = []

    class Screen:
        def line(self, text: str) -> None: ...

        def progress(self, text: str, share: float) -> None:
            shares.append(share)

    with Progress(Console(file=io.StringIO()), concepts=4, steps=0, screen=Screen()) as progress:
        progress.show(0, 0, 2, 0, 0)
        progress.show(1, 0, 2, 0, 0)
    assert shares == [0, 0.25]


MANY_JOBS = """
import os, sys
from pathlib import Path
from textinv_ray.service.driver.console import captured

counts = []
for _ in range(5):
    with captured(Path(sys.argv[1]), verbose=False) as console:
        console.print("ours")
        print("noise")
    counts.append(len(os.listdir("/proc/self/fd")))
print(counts)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_jobs_one_after_the_other_leave_no_files_open(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MANY_JOBS, str(tmp_path / "job.log")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    counts = ast.literal_eval(done.stdout.splitlines()[-1])
    assert counts == counts[:1] * 5
