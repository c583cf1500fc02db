"""Models: what is known of them without loading them, and where they come from."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest

from tests.support import single_files
from textinv_ray.config.model import ModelConfig
from textinv_ray.config.model_families import STABLE_DIFFUSION_XL
from textinv_ray.service.models import sources
from textinv_ray.util.errors import UserError


def facts(path: object, **fields: str) -> sources.ModelFacts:
    return sources.facts(ModelConfig.model_validate({"path": str(path), **fields}))


def test_a_copy_is_the_same_model(tiny_sd: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_sd, copy)
    assert facts(copy) == facts(tiny_sd)
    assert facts(copy).resolution == 16


def test_a_uri_is_the_same_model_and_is_copied_once(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.put(f"{tiny_sd}/", "/models/sd/", recursive=True)
    assert facts("memory://models/sd") == facts(tiny_sd)
    folder = sources.resolve("memory://models/sd")
    assert facts(folder) == facts(tiny_sd)
    memory.store.clear()
    assert sources.resolve("memory://models/sd") == folder


def test_a_model_that_was_replaced_is_copied_again(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results would have the identity of the new one, and words that were learned for the old one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.put(f"{tiny_sd}/", "/replaced/sd/", recursive=True)
    first = sources.resolve("memory://replaced/sd")
    assert sources.resolve("memory://replaced/sd") == first
    memory.pipe_file("/replaced/sd/unet/config.json", b"{}")
    second = sources.resolve("memory://replaced/sd")
    assert second != first
    assert (Path(second) / "unet" / "config.json").read_bytes() == b"{}"
    assert facts(first) == facts(tiny_sd), "other workers may use it still"
    memory.store.clear()


def test_other_weights_are_another_model(tiny_sd: Path, tmp_path: Path) -> None:
    copy = tmp_path / "trained"
    shutil.copytree(tiny_sd, copy)
    weights = next((copy / "unet").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert facts(copy).identity != facts(tiny_sd).identity


@pytest.mark.parametrize("name", ["chat_template.jinja", "spiece.model"])
def test_another_tokenizer_is_another_model(name: str, tiny_sd: Path, tmp_path: Path) -> None:
    """Templates of chats and vocabularies of sentencepiece count as well."""
    folder = shutil.copytree(tiny_sd, tmp_path / "sd")
    before = sources.facts(ModelConfig(path=str(folder))).identity
    (folder / "tokenizer" / name).write_bytes(b"other")
    assert sources.facts(ModelConfig(path=str(folder))).identity != before


def test_weights_that_are_not_loaded_dont_count(tiny_sd: Path, tmp_path: Path) -> None:
    copy = tmp_path / "both"
    shutil.copytree(tiny_sd, copy)
    weights = next((copy / "unet").glob("*.safetensors"))
    weights.with_name(weights.name.replace(".safetensors", ".fp16.safetensors")).write_bytes(b"other")
    assert facts(copy) == facts(tiny_sd)
    assert facts(copy, variant="fp16") != facts(tiny_sd)


def test_a_single_file(tiny_sdxl: Path, tmp_path: Path) -> None:
    """Its identity is that of its weights, wherever it lies, and of the configuration that is given."""
    folder = single_files.configuration(tmp_path / "configuration", tiny_sdxl)
    tensors = single_files.of_folder(tiny_sdxl)
    path = single_files.save(tmp_path / "xl.safetensors", tensors)
    found = facts(path, config=str(folder))
    assert (found.resolution, found.family) == (16, STABLE_DIFFUSION_XL)
    memory = fsspec.filesystem("memory")
    memory.put_file(str(path), "/files/other-name.safetensors")
    assert facts("memory://files/other-name.safetensors", config=str(folder)) == found
    assert facts(path, config=str(tiny_sdxl)) == found, "weights beside the configuration don't count"

    for part in ("model.diffusion_model.", "first_stage_model.", "conditioner.embedders.1.model."):
        trained = {key: value + 0.1 if key.startswith(part) else value for key, value in tensors.items()}
        other = single_files.save(tmp_path / "other.safetensors", trained)
        assert facts(other, config=str(folder)).identity != found.identity, part
    scheduler = folder / "scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("0.012", "0.013"))
    assert facts(path, config=str(folder)).identity != found.identity


def test_a_single_file_of_real_size(tmp_path: Path) -> None:
    path = single_files.save_sparse(tmp_path / "xl.safetensors", single_files.real("stable-diffusion-xl"))
    assert path.stat().st_size > 6.9e9
    assert facts(path).resolution == 1024
    assert " " not in facts(path).identity


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the model .* can't be read: .*expected: a folder in diffusers"):
        facts(tmp_path)
    with pytest.raises(UserError, match=r"can't be read"):
        facts("memory://no/such/model")


def test_a_uri_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"^memory://no/such/model can't be copied: ") as caught:
        sources.resolve("memory://user:secret@no/such/model")
    assert "secret" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and path.name.endswith(".partial")]
