"""The site that `make docs` builds: complete tables, nothing from other servers, and no build with mistakes."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

from tests.support.pages import ROOT
from textinv_ray.cli.jobs import app
from textinv_ray.cli.options import commands_of
from textinv_ray.config.job import JobConfig
from textinv_ray.config.presets import preset_names
from textinv_ray.manifest.columns import COLUMNS
from textinv_ray.service.store.records import Failure, JobRecord, Result
from textinv_ray.service.views import results_table
from textinv_ray.service.views.status import Status

pytest.importorskip("mkdocs")


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """`make docs` of a repository."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, field) of everything that `--set` takes."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def test_every_setting_is_in_the_table(hooks: ModuleType) -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \| (.+) \| (.+) \|$", hooks.settings_table(), re.MULTILINE)
    table = {name: (kind, default, text) for name, kind, default, text in rows}
    assert list(table) == [name for name, _ in fields(JobConfig)]
    assert table["training.batch_size"] == (
        "integer, 1 to 1,024",
        "`4`",
        "Samples of each concept per step.",
    )
    assert table["data.resolution"][0] == "integer, 8 to 4,096, a multiple of 8, or none"
    assert table["service.workers"][:2] == ("integer ≥ 1, or `auto`", "`auto`")
    assert table["review.prompts.object"][0] == "list of text with `{}`"
    assert table["review.prompts.object"][1].startswith("`['a photo of {}', ")
    for name, field in fields(JobConfig):
        assert table[name][2].replace("\\|", "|").endswith(" ".join(str(field.description).split()))


def test_every_column_is_in_the_table(hooks: ModuleType) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", hooks.columns_table(), re.MULTILINE)
    assert [name for name, *_ in rows] == list(COLUMNS)
    assert {name for name, _, default, _ in rows if default == "required"} == {"concept_id", "images"}


def test_every_field_of_a_record_is_in_its_table(hooks: ModuleType) -> None:
    tables: dict[str, type[BaseModel]] = hooks.RECORDS
    assert {Result, Failure, JobRecord, Status} <= set(tables.values())
    for name, record in tables.items():
        rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.*) \| (.+) \|$", hooks.TABLES[name](), re.MULTILINE)
        assert [field for field, *_ in rows] == list(record.model_fields)
        assert all(
            text == " ".join(str(record.model_fields[field].description).split()) for field, *_, text in rows
        )


def test_every_column_of_the_results_is_in_the_table(hooks: ModuleType) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", hooks.TABLES["results-columns"](), re.MULTILINE)
    assert rows == results_table.schema({4}).names


def test_every_preset_is_in_the_table(hooks: ModuleType) -> None:
    assert re.findall(r"^\| `([\w-]+)` \|", hooks.presets_table(), re.MULTILINE) == preset_names()


def test_every_option_of_every_command_is_in_the_table(hooks: ModuleType) -> None:
    text = hooks.commands_table()
    commands = commands_of(app)
    sections = dict(re.findall(r"^### textinv ([\w -]+)\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL))
    assert sorted(sections) == sorted(commands)
    for name, command in commands.items():
        rows = re.findall(r"^\| (`.+?) \| (.+) \|$", sections[name], re.MULTILINE)
        assert len(rows) == len(command.params)
        for (shown, _), option in zip(rows, command.params, strict=True):
            names = option.opts if option.param_type_name == "option" else [option.metavar]
            assert all(f"`{name}`" in shown for name in names)
    assert "| `-n` `N` | Number of pictures. Default: `4`. |" in text
    assert "Default: `0`." in sections["generate"], "of --seed"
    assert "`OUTPUT\\|FILE`" in text, "a table's cell ends at |"
    assert "<" not in text.replace("&lt;", "")


@pytest.mark.slow  # builds the site
def test_the_site_has_the_tables(site: Path) -> None:
    names = ("configuration", "manifest", "results", "operations")
    pages = {name: (site / f"{name}.html").read_text() for name in names}
    for name, _ in fields(JobConfig):
        assert f"<code>{name}</code>" in pages["configuration"]
    for name in COLUMNS:
        assert f"<td><code>{name}</code></td>" in pages["manifest"]
    for name in [*Result.model_fields, *results_table.schema({4}).names]:
        assert f"<td><code>{name}</code></td>" in pages["results"]
    for name in Status.model_fields:
        assert f"<td><code>{name}</code></td>" in pages["operations"]
    for page in pages.values():
        assert "!-- table" not in page


class _Loaded(HTMLParser):
    """Collects what a browser would load for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.urls.append(given.get("src") or "")
        if tag == "link" and given.get("rel") != "canonical":
            self.urls.append(given.get("href") or "")


@pytest.mark.slow  # builds the site
def test_pages_load_nothing_from_other_servers(site: Path) -> None:
    found = 0
    for page in site.rglob("*.html"):
        parser = _Loaded()
        parser.feed(page.read_text())
        found += len(parser.urls)
        assert not [url for url in parser.urls if url.startswith(("http:", "https:", "//"))], page
    assert found > 50
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style


@pytest.mark.slow  # builds the site
def test_the_site_holds_pages_and_no_code(site: Path) -> None:
    assert (site / "index.html").is_file()
    assert not list(site.rglob("*.py"))


@pytest.mark.slow  # builds the site
def test_mistakes_fail_the_build(tmp_path: Path) -> None:
    """A broken link, a missing anchor, an unknown table, and a public name without a docstring."""
    ignore = shutil.ignore_patterns(
        "__pycache__", "*.safetensors", "vocab.json", "merges.txt", "tokenizer.json"
    )
    for folder in ("docs", "textinv_ray", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "words.md").open("a") as page:
        page.write("\n[a](nowhere.md) [b](review.md#nothing)\n\n<!-- table: nonsense -->\n")
    with (tmp_path / "textinv_ray" / "util" / "text.py").open("a") as module:
        module.write("\n\ndef undescribed() -> None:\n    pass\n")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode != 0
    assert "contains a link 'nowhere.md'" in built.stderr
    assert "does not contain an anchor '#nothing'" in built.stderr
    assert "there is no table 'nonsense'" in built.stderr
    assert "textinv_ray.util.text.undescribed has no docstring" in built.stderr
