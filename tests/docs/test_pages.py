"""What README and docs say of the repository: paths that exist, commands that the program takes, code that runs."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from typer.core import TyperCommand

from tests.support import pages
from tests.support.pages import PAGES, ROOT
from textinv_ray.cli.jobs import app
from textinv_ray.cli.options import commands_of
from textinv_ray.config.job import JobConfig
from textinv_ray.inversion import Backbone, load_backbone, save_learned_embeds
from textinv_ray.service.batch.prompts_table import PromptRow

JOBS = {
    "ablate": "ablate",
    "evaluate_many": "evaluate",
    "generate_many": "generate-many",
    "invert_many": "invert",
}
"""Scripts in jobs/ and the commands that they are."""
TOP = (
    "textinv_ray|tests|jobs|benchmarks|configs|docs|examples|training"
    "|inversion|config|manifest|service|experiments|cli|util"
    "|driver|intake|scheduling|cluster|worker|store|models|tracking|views|library|batch"
)
PATH = re.compile(rf"(?<![\w/.\-:<>])(?:{TOP})(?:/[\w.\-]+)*/[\w.\-*]*")
every_page = pytest.mark.parametrize("page", PAGES, ids=pages.name)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@every_page
def test_paths_exist(page: Path) -> None:
    """From the repository on, or in prose from the package or its `service/` on."""
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text())  # links: below
    roots = (ROOT, ROOT / "textinv_ray", ROOT / "textinv_ray" / "service")
    found = {path.rstrip(".") for path in PATH.findall(text)}
    missing = {path for path in found if not any(list(root.glob(path.rstrip("/"))) for root in roots)}
    assert not missing


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=pages.name)
def test_names_exist(page: Path) -> None:
    """Modules, classes and functions by their dotted names. The changelog has former ones as well."""
    for name in set(re.findall(r"(?<![\w/.])textinv_ray(?:\.\w+)+", page.read_text())):
        pkgutil.resolve_name(name)  # raises ImportError or AttributeError


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        if anchor:
            assert anchor in pages.headings(other.read_text()), target


def test_every_room_is_described() -> None:
    """The tables of docs/architecture.md name the folders of the package and of its service."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    tables = {"textinv_ray": "textinv_ray/", "textinv_ray/service": "textinv_ray/service/"}
    for folder, title in tables.items():
        (table,) = re.findall(rf"^\| folder of `{title}` .*?\n\n", text, re.MULTILINE | re.DOTALL)
        rooms = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
        assert set(re.findall(r"^\| `(\w+)/`", table, re.MULTILINE)) == rooms


def test_the_page_on_commands_is_the_program_s_help() -> None:
    text = (ROOT / "docs" / "commands.md").read_text().replace("&lt;", "<")
    listed = dict(re.findall(r"^\| `textinv ([\w -]+)` \| (.+) \|$", text, re.MULTILINE))
    helps = {name: (command.help or "").split("\n\n")[0] for name, command in commands_of(app).items()}
    assert listed == {name: " ".join(text.split()) for name, text in helps.items()}


def test_what_commands_write_goes_where_output_says() -> None:
    """One option, -o/--output URI, in all commands that write files; its help begins the same way."""
    options = {
        name: option
        for name, command in commands_of(app).items()
        for option in command.params
        if option.name in ("output", "out") and option.param_type_name == "option"
    }
    files = {"compare", "manifest", "predictor fit"}
    assert set(options) == {"ablate", "demo", "export", "generate", "generate-many", "invert", *files}
    assert {tuple(sorted(option.opts)) for option in options.values()} == {("--output", "-o")}
    for name, option in options.items():
        what = "File" if name in files else "Folder"
        assert re.fullmatch(rf"{what} or URI \(s3://\.\.\.\) for the .+\. Default: .+\.", option.help), name  # type: ignore[attr-defined]


def test_the_list_of_benchmarks_is_complete() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    files = {path.name for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert {Path(link).name for link in re.findall(r"\]\((\w+\.py)\)", text)} == files


def test_the_backbone_has_what_the_page_on_families_lists() -> None:
    text = (ROOT / "docs" / "families.md").read_text()
    cells = re.findall(r"^\| (`.+`) \|", text, re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(r"`(\w+)[`(]", cell)]
    assert len(listed) > 12
    members = {*dir(Backbone), *Backbone.__annotations__}
    assert set(listed) <= members


def test_the_page_on_pictures_lists_the_columns_of_prompts() -> None:
    text = (ROOT / "docs" / "pictures.md").read_text()
    _, _, table = text.partition("| column | type | |")
    cells = re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE)
    assert [name for cell in cells for name in re.findall(r"\w+", cell)] == list(PromptRow.model_fields)


@pytest.mark.parametrize("package", ["api", "inversion", "config", "manifest", "concepts"])
def test_the_api_reference_has_every_module(package: str) -> None:
    text = (ROOT / "docs" / "api" / f"{package}.md").read_text()
    modules = {path.stem for path in (ROOT / "textinv_ray" / package).glob("[!_]*.py")}
    assert set(re.findall(rf"^::: textinv_ray\.{package}\.(\w+)$", text, re.MULTILINE)) == modules


def test_messages_in_troubleshooting_are_the_program_s() -> None:
    """What its entries quote stands in the code, apart from names in capitals, dots, and what Ray says."""
    code = "".join(path.read_text() for path in (ROOT / "textinv_ray").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a message over several lines
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\*\*`([^`]+)`", text, re.MULTILINE)
    assert len(quoted) > 8
    for message in set(quoted) - {"Unauthorized"}:
        for part in re.split(r"'?\b[A-Z]+\b'?|\(?\.\.\.\)?", message):
            assert part.strip() in code, message


def _command_of(words: Sequence[str]) -> tuple[TyperCommand, list[str]] | None:
    """The command that a line runs, and its arguments; none for programs of others."""
    if words[0] == "textinv" and not words[1].startswith("--"):
        name = next(name for name in commands_of(app) if [*words[1:]][: len(name.split())] == name.split())
        return _subcommand(name), list(words[1 + len(name.split()) :])
    if words[0].endswith("python") and len(words) > 1 and words[1].startswith("jobs/"):
        script = Path(words[1])
        assert (ROOT / script).is_file()
        return _subcommand(JOBS[script.stem]), list(words[2:])
    return None


def _subcommand(name: str) -> TyperCommand:
    return commands_of(app)[name]


@every_page
def test_commands_are_taken(page: Path) -> None:
    """Options and settings as the pages write them; nothing is run."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in pages.commands(page.read_text()):
        if words[0] == "make":
            assert words[1] in targets
        found = _command_of(words)
        if not found:
            continue
        command, arguments = found
        context = command.make_context(command.name, arguments)  # raises typer's UsageError
        config = context.params.get("config")
        if config is None or not config.endswith(".yaml"):
            overrides = context.params.get("overrides") or ()
            JobConfig.load(config, [text for text in overrides if "..." not in text])


def test_there_are_commands_to_test() -> None:
    found = [words for page in PAGES for words in pages.commands(page.read_text())]
    assert len(found) > 40
    assert sum(_command_of(words) is not None for words in found) > 25


def test_a_word_in_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block of docs/results.md, with the bundled model."""
    (block,) = pages.blocks((ROOT / "docs" / "results.md").read_text(), "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "textinv_ray").symlink_to(ROOT / "textinv_ray")
    word = tmp_path / "outputs/demo/concepts/ada/learned_embeds.safetensors"
    word.parent.mkdir(parents=True)
    backbone = load_backbone("textinv_ray/models/mini-sd")
    word.write_bytes(save_learned_embeds(backbone, "<ada>", torch.zeros(1, backbone.embedding_dim)))
    exec(compile(block, "docs/results.md", "exec"), {})
    assert (tmp_path / "ada.png").stat().st_size > 0
