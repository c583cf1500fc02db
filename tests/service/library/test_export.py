"""Words for other programs, chosen by id and by reviewers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.support import examples
from tests.support.commands import textinv
from textinv_ray.concepts.interpolation import between
from textinv_ray.concepts.word_files import FORMATS, read_words, store_word
from textinv_ray.service.library.export import export
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError


@pytest.fixture
def output(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "out"))
    examples.finish(store, "cat", [[1, 0, 0, 0]])
    examples.finish(store, "my.dog", [[0, 1, 0, 0], [0, 0, 1, 0]], placeholder_token="<Dog/1>")
    return store


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_file_per_word(
    output: Store, tmp_path: Path, format_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "export"
    assert textinv("export", output.uri, "--format", format_name, "--output", str(out)) == 0
    prefix = "ti-" if format_name == "a1111" else ""
    files = [f"{prefix}cat.safetensors", f"{prefix}my.dog.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == [*files, "words.csv"]
    dog = next(iter(read_words(out / files[1]).values()))
    assert dog["clip_l"].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    listed = list(csv.DictReader((out / "words.csv").read_text("utf-8").splitlines()))
    calls = {
        "diffusers": ["<cat>", "<Dog/1>"],
        "a1111": ["ti-cat", "ti-my.dog"],
        "comfyui": ["embedding:cat", "embedding:my.dog"],
    }
    assert [row["in_prompt"] for row in listed] == calls[format_name]
    assert [row["concept_id"] for row in listed] == ["cat", "my.dog"]
    assert capsys.readouterr().out.endswith(f"2 words in {out}, listed in words.csv\n")


def test_two_words_never_share_a_file(
    output: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """diffusers' second file of `cat` has the name of the word of `cat_2`."""
    examples.finish(output, "cat_2")
    word = {"clip_l": np.zeros((1, 768), np.float32), "clip_g": np.zeros((1, 1280), np.float32)}
    for concept_id in ("cat", "cat_2", "my.dog"):
        output.write_concept(concept_id, "learned_embeds.safetensors", store_word(f"<{concept_id}>", word))
    out = tmp_path / "export"
    options = ["--format", "diffusers", "--output", str(out)]
    assert textinv("export", output.uri, *options) == 2
    assert "cat_2.safetensors would be the file of the concept 'cat_2' and of another encoder of 'cat'" in (
        capsys.readouterr().err
    )
    assert not out.exists()
    for only in ("cat,my.dog", "cat_2"):
        assert textinv("export", output.uri, *options, "--only", only) == 0
    assert textinv("export", output.uri, "--format", "comfyui", "--output", str(tmp_path / "comfyui")) == 0


@pytest.mark.parametrize(
    ("format_name", "files"),
    [
        ("diffusers", ["cat.safetensors", "cat_2.safetensors"]),
        ("a1111", ["ti-cat.safetensors"]),
        ("comfyui", ["cat.safetensors"]),
    ],
)
def test_words_for_two_encoders(output: Store, tmp_path: Path, format_name: str, files: list[str]) -> None:
    word = {"clip_l": np.full((2, 768), 0.5, np.float32), "clip_g": np.full((2, 1280), 0.25, np.float32)}
    output.write_concept("cat", "learned_embeds.safetensors", store_word("<cat>", word))
    out = tmp_path / "export"
    options = ["--format", format_name, "--output", str(out), "--only", "cat"]
    assert textinv("export", output.uri, *options) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted([*files, "words.csv"])
    (found,) = read_words(out / files[0]).values()
    assert list(found) == ["clip_l", "clip_g"]
    for name, vectors in word.items():
        assert np.array_equal(found[name], vectors)


def test_words_moved_back_to_their_initializers(output: Store, tmp_path: Path) -> None:
    out = Store(str(tmp_path / "export"))
    export(output, "comfyui", out, only=["cat"], towards_initializer=0.25)
    (found,) = read_words(tmp_path / "export" / "cat.safetensors").values()
    expected = between({"clip_l": np.eye(4)[3:]}, {"clip_l": np.eye(4)[:1]}, 0.75)
    np.testing.assert_allclose(found["clip_l"], expected["clip_l"], atol=1e-7)
    output.remove("concepts/cat/initial_embeds.safetensors")
    with pytest.raises(UserError, match="the initial vectors of '<cat>' are not known"):
        export(output, "comfyui", out, only=["cat"], towards_initializer=0.25)


def test_only_some(output: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "export"
    arguments = ["export", output.uri, "--format", "a1111", "--output", str(out)]
    assert textinv(*arguments, "--only", "cat", "--prefix", "") == 0
    assert sorted(path.name for path in out.iterdir()) == ["cat.safetensors", "words.csv"]
    assert textinv(*arguments, "--only", "kat") == 2
    assert "error: no concept 'kat'; did you mean 'cat'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{out}", "--format", "invoke"], "no format 'invoke' (known: diffusers, a1111, comfyui)"),
        (["{none}", "--format", "a1111"], "none has no learned words"),
        (
            ["{out}", "--format", "a1111", "--approved"],
            "no word is approved: approve some with `textinv review {out}`",
        ),
        (["{out}", "--format", "a1111", "--only", " ,"], "--only ' ,' names no concept"),
    ],
)
def test_mistakes_are_one_line(
    output: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    places = {"out": output.uri, "none": str(tmp_path / "none")}
    assert textinv("export", *(part.format(**places) for part in arguments)) == 2
    error = capsys.readouterr().err
    assert message.format(**places) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("token", ["=HYPERLINK(x)", "@SUM(A1)", "+1", "-cat", "\t=1"])
def test_no_word_is_a_formula(output: Store, tmp_path: Path, token: str) -> None:
    examples.finish(output, "evil", placeholder_token=token)
    out = tmp_path / "export"
    assert textinv("export", output.uri, "--format", "diffusers", "--output", str(out)) == 0
    listed = {
        row["concept_id"]: row
        for row in csv.DictReader((out / "words.csv").read_bytes().decode().splitlines())
    }
    assert listed["evil"]["placeholder_token"] == listed["evil"]["in_prompt"] == f"'{token}"
    assert listed["cat"]["placeholder_token"] == "<cat>"
    assert list(read_words(out / "evil.safetensors")) == [token], "the word itself stays"
