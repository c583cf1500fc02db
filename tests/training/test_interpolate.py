"""Weights between those of two models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from training import interpolate


def test_each_weight_lies_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {"first": torch.tensor([0.0, 1.0]), "last": torch.tensor([1.0, 1.0])}
    for name, weight in ends.items():
        (tmp_path / name / "unet").mkdir(parents=True)
        save_file({"w": weight.half()}, tmp_path / name / interpolate.UNET)
    first, last = (str(tmp_path / name) for name in ends)
    monkeypatch.setattr(sys, "argv", ["interpolate", last, "--share", "0.25", "--to", first])
    interpolate.main()
    mixed = load_file(tmp_path / "first" / interpolate.UNET)["w"]
    assert mixed.dtype == torch.float16
    assert mixed.tolist() == [0.25, 1.0]


def test_what_can_not_be_mixed() -> None:
    with pytest.raises(ValueError, match="different models"):
        interpolate.between({"w": torch.zeros(2)}, {"w": torch.zeros(3)}, 0.5)
    for text in ("0", "1.5", "nan"):
        with pytest.raises(argparse.ArgumentTypeError, match="above 0, and 1 at most"):
            interpolate.a_share(text)
