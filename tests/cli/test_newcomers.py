"""`textinv demo`, `textinv presets`, and completion in bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY, textinv
from textinv_ray.config.presets import preset_names
from textinv_ray.util.bundled import example_manifest


def test_presets_are_listed_with_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("presets") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == preset_names()
    assert (
        "mini-sdxl  The bundled Stable Diffusion XL model: two text encoders, 64 x 64 px, two CPU cores"
        in lines
    )


def test_a_preset_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("presets", "sd15") == 0
    assert capsys.readouterr().out == (REPOSITORY / "configs" / "sd15.yaml").read_text()


def test_an_unknown_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert textinv("presets", "sd115") == 2
    assert capsys.readouterr().err.startswith("error: no configuration 'sd115'; did you mean 'sd15'?")


def test_the_demo_is_the_job_on_the_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What would run, by a dry run of the same job: the demo itself is run by tests/system/test_package.py."""
    monkeypatch.chdir(tmp_path)
    assert example_manifest() == REPOSITORY / "examples" / "manifest.parquet"
    assert textinv("invert", str(example_manifest()), "--dry-run") == 0
    assert "to learn: 8 concepts, 2400 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "adda"], "no concept 'adda' in the manifest"),
        (["--set", "training.step=3"], "training.step: no such field; did you mean 'steps'?"),
        (["--output", ""], "the path of an output is empty"),
        (["--set", "service.output=/dev/null/x"], "/dev/null"),
        (["more"], "unexpected extra argument"),
    ],
)
def test_wrong_arguments_of_the_demo(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert textinv("demo", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("job.json"))


COMPLETE = """
eval "$(textinv --show-completion)"
complete -p textinv
COMP_WORDS=(textinv $1 $2); COMP_CWORD=$(($# < 2 ? 1 : $#))
$(complete -p textinv | sed -E 's/.* -F ([^ ]+) .*/\\1/') textinv
echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"), [(["regi"], "register"), (["presets", "sdx"], "sdxl sdxl-fast")]
)
def test_completion_in_bash(tmp_path: Path, words: list[str], offered: str) -> None:
    program = tmp_path / "textinv"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m textinv_ray "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", *words], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == offered, done.stdout + done.stderr
