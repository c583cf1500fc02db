"""What commands leave where they write: nothing, after a mistake that is found before work begins."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import examples
from tests.support.commands import as_options, textinv
from textinv_ray.service.store.store import Store

NOT_THERE = "model.path=/no/such/model"
MISTAKES = {
    "invert": [
        ["data/manifest.parquet", "--only", "c0,nobody"],
        ["data/manifest.parquet", "--only", "nobody", "--limit", "1"],
        ["data/manifest.parquet", "--waves", "10", "--only", "c11"],
        ["data/manifest.parquet", "--set", NOT_THERE],
        ["data/too_long.parquet"],
        ["data/none.parquet"],
    ],
    "demo": [["--only", "adda"]],
    "ablate": [
        ["data/manifest.parquet", "--variants", "other"],
        ["data/manifest.parquet", "--set", NOT_THERE],
        ["data/manifest.parquet", "--set", "service.waves.first=20"],
        ["data/manifest.parquet", "--set-sizes", "1,9"],
        ["data/manifest.parquet", "--set-sizes", "1,2", "--set", NOT_THERE],
        ["data/too_long.parquet", "--variants", "auto"],
    ],
    "generate": [["a <nobody>", "-w", "words"], ["a <c0>", "-w", "words", "--set", NOT_THERE]],
    "generate-many": [
        ["data/manifest.parquet", "-w", "words"],
        ["data/prompts.parquet", "-w", "words"],
        ["data/none.parquet", "-w", "words"],
    ],
    "export": [
        ["none", "--format", "a1111"],
        ["words", "--format", "other"],
        ["words", "--format", "a1111", "--only", "nobody"],
    ],
    "compare": [["words", "none"]],
    "manifest": [["none"]],
    "predictor fit": [["none"]],
}
"""Command -> its arguments, but for the output: each has a mistake."""
OF_OUTPUTS = {
    "evaluate": [["none"], ["words", "--only", "nobody"], ["words", "--protocol", "other"]],
    "review": [["none"], ["none", "--import", "data/manifest.parquet"]],
    "register": [["none"]],
    "status": [["none"]],
    "track": [["none"]],
    "words": [["none"], ["words", "--like", "<nobody>"]],
}
"""The same of commands that write to the output that they are about, or nothing."""
FILES = {"compare": "page.html", "manifest": "made.parquet", "predictor fit": "predictor.safetensors"}
"""Commands whose output is a file."""
CASES = [
    (command, [*arguments, "-o", f"new/folder/{FILES.get(command, 'out')}"])
    for command, mistakes in MISTAKES.items()
    for arguments in mistakes
] + [(command, arguments) for command, mistakes in OF_OUTPUTS.items() for arguments in mistakes]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_sd: Path, tiny_clip: Path) -> Path:
    """The working folder, with manifests, a table of prompts, and learned words of the bundled model's kind."""
    examples.write_manifest(tmp_path / "data", 12)
    too_long = {"c1": {"prompts": ["a " * 80 + "{}"]}}
    examples.write_manifest(tmp_path / "other", 2, too_long).rename(tmp_path / "data" / "too_long.parquet")
    pq.write_table(pa.table({"prompt": ["a <c0>", "a <nobody>"]}), tmp_path / "data" / "prompts.parquet")
    words = Store(str(tmp_path / "words"))
    words.write_job(examples.job(examples.config(tiny_sd, tiny_clip)))
    examples.finish(words, "c0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def left(folder: Path) -> dict[str, bytes | None]:
    """What is in a folder: path -> a file's bytes, none for a folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(("command", "arguments"), CASES)
def test_a_mistake_leaves_nothing(
    folder: Path, command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = left(folder)
    assert textinv(*command.split(), *arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) >= 1
    assert left(folder) == before


def test_nothing_that_was_there_is_removed(folder: Path, tiny_sd: Path, tiny_clip: Path) -> None:
    """Not even an empty folder."""
    (folder / "new").mkdir()
    options = as_options(examples.settings(tiny_sd, tiny_clip))
    for output in ("new/folder/out", "new"):
        assert textinv("invert", "data/manifest.parquet", "--only", "nobody", "-o", output, *options) == 2
        assert (folder / "new").is_dir()
        assert list((folder / "new").iterdir()) == []
