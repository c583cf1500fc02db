"""`textinv predictor fit`: from the files of outputs, whatever their order; words without features are left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.catalogue import examples, output
from tests.support.commands import textinv
from textinv_ray.concepts import image_features, predictor


def test_the_words_of_several_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = [output(tmp_path / "a", examples(12), 2), output(tmp_path / "b", examples(20, first=50))]
    target = tmp_path / "new" / "p.safetensors"
    assert textinv("predictor", "fit", *outputs, "-o", str(target)) == 0
    said = capsys.readouterr().out
    assert "clip_l, 1 vector: 30 words, ridge, penalty 0.01, cross-validated R2 1.000" in said
    assert "left out: 2 words without image features" in said
    data = target.read_bytes()
    assert predictor.Predictor.from_bytes(data).counts == (1,)
    assert textinv("predictor", "fit", *outputs[::-1], "-o", str(target)) == 0
    assert target.read_bytes() == data


def test_the_words_of_a_concept_are_given_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of the same images would predict each other in cross-validation; of other images they may have one name."""
    once, again = output(tmp_path / "once", examples(12)), output(tmp_path / "again", examples(12))
    target = str(tmp_path / "p.safetensors")
    for outputs in ((once, again), (once, once)):
        assert textinv("predictor", "fit", *outputs, "-o", target) == 2
        assert "'c0' in " in (said := capsys.readouterr().err)
        assert f"has the images of 'c0' in {once}: give the words of a concept once" in said
    others = [replace(one, concept_id=f"c{number}") for number, one in enumerate(examples(12, first=50))]
    assert textinv("predictor", "fit", once, output(tmp_path / "others", others), "-o", target) == 0
    assert "24 words" in capsys.readouterr().out


def test_where_it_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    uri = output(tmp_path / "few", examples(3))
    assert textinv("predictor", "fit", uri, "-o", str(tmp_path / "file" / "p.safetensors")) == 2
    assert f"{tmp_path / 'file'} is a file" in capsys.readouterr().err


def test_what_makes_no_predictor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = output(tmp_path / "few", examples(3))
    other = output(tmp_path / "other", examples(9, model="model-2", first=20))
    target = tmp_path / "p.safetensors"
    for arguments, message in (
        (
            [few],
            "needs at least 10 words of one number of vectors with image features; there are 3 of 1 vectors",
        ),
        ([few, other], "the words are of several models: model-1, model-2"),
        ([str(tmp_path / "none")], "none has no learned words"),
    ):
        assert textinv("predictor", "fit", *arguments, "-o", str(target)) == 2
        assert message in capsys.readouterr().err
    assert textinv("predictor", "fit", few, "-o", str(tmp_path / "p.bin")) == 2
    assert "name a .safetensors file" in capsys.readouterr().err
    assert not target.exists()


def test_a_damaged_file_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = output(tmp_path / "a", examples(12))
    (tmp_path / "a/concepts/c3" / image_features.FILE).write_bytes(b"damaged")
    assert textinv("predictor", "fit", uri, "-o", str(tmp_path / "p.safetensors")) == 0
    assert "11 words" in capsys.readouterr().out
