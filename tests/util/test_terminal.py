"""Texts of others on a terminal."""

from __future__ import annotations

import io

import pytest

from textinv_ray.util.terminal import PlainConsole, say


def test_no_escape_sequence_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "cat\x1b[2J\x1b]0;title\x07 [bold]\u202e"
    say(f"one\n{evil}")
    say("no https://me:pw@h/x?sig=1", err=True)
    shown = capsys.readouterr()
    assert shown.out == "one\ncat\\x1b[2J\\x1b]0;title\\x07 [bold]\\u202e\n"
    assert shown.err == "no https://h/x\n"
    out = io.StringIO()
    PlainConsole(file=out, width=200).print(evil)
    assert out.getvalue() == "cat\\x1b[2J\\x1b]0;title\\x07 [bold]\\u202e\n"
