"""`textinv review` as a command: it prints an address, stores decisions, and ends by Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support import examples
from tests.support.commands import Command, textinv
from tests.support.reviewing import served
from textinv_ray.service.store.store import Store


def test_the_command(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    examples.finish(store, "a")
    command = [sys.executable, "-m", "textinv_ray", "review", store.uri, "--reviewer", "eva"]
    process = Command(command, tmp_path / "review", tmp_path)
    try:
        found = process.wait_for(
            lambda: re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\S+)", process.out()), 60
        )
        base, token = found.groups()  # type: ignore[union-attr]
        wanted = {"concept_id": "a", "fingerprint": "fingerprint of a", "verdict": "approved"}
        request = urllib.request.Request(
            f"{base}/api/decisions",
            json.dumps({"reviewer": "eva", "decisions": [wanted]}).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        urllib.request.urlopen(request, timeout=20).close()
        process.send_signal(signal.SIGINT)
        code, said = process.ended(30)
    finally:
        process.kill()
    assert code == 0, said
    assert "Traceback" not in said
    decision = store.decision("a")
    assert decision is not None
    assert (decision.verdict, decision.reviewer) == ("approved", "eva")


def test_nothing_to_review(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("review", str(tmp_path)) == 2
    assert "has no learned words; give the --output of a job" in capsys.readouterr().err


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples.finish(Store(str(tmp_path)), "a")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert textinv("review", str(tmp_path), "--port", str(port)) == 2
    assert f"can't listen at 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_beyond_this_machine(tmp_path: Path) -> None:
    """Other names of the machine are answered then, and the token is needed all the same."""
    store = Store(str(tmp_path))
    examples.finish(store, "a")
    with served(store, host="0.0.0.0") as found:
        assert not found.server.is_loopback
        assert found.server.url.startswith(f"http://{socket.gethostname()}:")
        assert found.request("/api/concepts", headers={"Host": "review.example"})[0] == 200
        assert found.request("/api/concepts", headers={"Host": "review.example"}, token=False)[0] == 403
        foreign = {"Host": "review.example", "Origin": "http://evil.example"}
        assert found.request("/api/concepts", headers=foreign)[0] == 403
