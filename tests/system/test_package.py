"""The wheel, installed into an environment of its own: what is in it, its demo, and the example notebook.

Other packages come from this environment, so that nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import textinv_ray
from tests.support.commands import LOCAL_RAY, REPOSITORY
from tests.support.notebooks import run_cells
from textinv_ray.config.job import JobConfig
from textinv_ray.manifest.reader import Manifest
from textinv_ray.service.intake import plan
from textinv_ray.service.models import sources
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.util.bundled import example_manifest

pytest.importorskip("hatchling")
pytest.importorskip("nbclient")
pytestmark = pytest.mark.slow

LARGEST = 100e6
"""Bytes of a file that PyPI takes."""
FEW_STEPS = (
    "training.steps=4 training.batch_size=1 stopping.rule=none scoring.num_images=1 review.num_inference_steps=2 "
    "review.images_per_prompt=1 tracking.enabled=false"
)
WHERE = "import textinv_ray, textinv_ray.util.bundled as b; print(textinv_ray.__file__); print(b.example_manifest())"
MISTAKE = "textinv_ray.learn({'ada': []}, output='results/none')"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(REPOSITORY)],
        check=True,
        timeout=300,
    )
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, timeout=300)
    (site,) = folder.glob("lib/python*/site-packages")
    # Behind the environment's own packages; .pth files in there, as of an editable install, have no effect
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def environment(installed: Path) -> Mapping[str, str]:
    """Of a process in which only the installed package can be found."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**own, **LOCAL_RAY, "PATH": f"{installed}:{own['PATH']}", "TEXTINV_SET": FEW_STEPS}


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(installed / command[0]), *command[1:]],
        cwd=folder,
        env=environment(installed),
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    files = {path for path in (REPOSITORY / "textinv_ray").rglob("*") if path.is_file()}
    wanted = {str(path.relative_to(REPOSITORY)) for path in files if path.suffix != ".pyc"}
    presets = (path for path in (REPOSITORY / "configs").rglob("*") if path.is_file())
    wanted |= {f"textinv_ray/{path.relative_to(REPOSITORY)}" for path in presets}
    wanted.add("textinv_ray/examples/manifest.parquet")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert len(wanted) > 200
    assert names == wanted
    assert wheel.stat().st_size < LARGEST


def test_what_the_wheel_says_of_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = metadata.PathDistribution(zipfile.Path(archive, name.rsplit("/", 1)[0] + "/")).metadata
    assert (said["Name"], said["Version"]) == ("textinv_ray", textinv_ray.__version__)
    assert said["Author"] == "textinv_ray contributors"
    assert said["License-Expression"] == "Apache-2.0"
    assert "textual inversion" in (said["Keywords"] or "")
    assert "Typing :: Typed" in said.get_all("Classifier", [])
    assert {"s3", "gcs", "azure", "heic"} <= set(said.get_all("Provides-Extra", []))
    assert said.get_all("Project-URL") is None, "there is none"


def test_the_demo(installed: Path, tmp_path: Path) -> None:
    """From the wheel alone. Its outcome is what the source tree's job takes for done."""
    shown = run(installed, tmp_path, "textinv", "presets", "mini")
    assert shown.stdout == (REPOSITORY / "configs" / "mini.yaml").read_text()
    where = run(installed, tmp_path, "python", "-c", WHERE)
    package, examples = map(Path, where.stdout.splitlines())
    assert package.is_relative_to(installed.parent), "not this repository's"
    assert examples.parent.parent == package.parent

    done = run(installed, tmp_path, "textinv", "demo", "--only", "ada")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 concept learned" in done.stdout
    assert "results: " in done.stdout
    store = Store(str(tmp_path / "outputs" / "demo"))
    config = JobConfig.load(None, FEW_STEPS.split(" ")[:-1])
    source = Manifest.open(str(example_manifest()))
    todo = plan.make(source, config, sources.facts(config.model), StoredResults.read(store), only=["ada"])
    assert not todo.todo


def test_the_notebook(installed: Path, tmp_path: Path) -> None:
    """examples/notebook.ipynb as it is, but for the number of steps; then a mistake, in one line."""
    notebook = json.loads((REPOSITORY / "examples" / "notebook.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in code), "it is stored without outputs"
    (tmp_path / "concepts").symlink_to(REPOSITORY / "examples" / "concepts")
    learned, ada, drawn, finn, values, mistake = run_cells(
        [*("".join(cell["source"]) for cell in code), MISTAKE],
        str(installed / "python"),
        tmp_path,
        environment(installed),
        allow_errors=True,
    )
    job, table = learned.outputs
    assert "2 of 2 concepts learned" in job.data["text/plain"]
    assert "\x1b" not in job.data["text/plain"]
    assert html(table).count("<tr>") == 3
    assert html(table).count("data:image/") == 2 * (2 + 2 + 2)
    assert html(ada.outputs[0]).count("data:image/") == 5 + 2 + 2
    assert html(drawn.outputs[0]).count("data:image/") == 4
    assert "a photo of &lt;finn&gt; with sunglasses" in html(finn.outputs[0])
    assert "clip_image_similarity" in values.outputs[0].data["text/plain"]
    (error,) = mistake.outputs
    assert len(error.traceback) == 1
    assert "column 'images': has no images" in error.traceback[0]


def html(output: Any) -> str:
    """What a notebook shows of a value. Fails for an exception."""
    assert output.output_type in ("execute_result", "display_data"), output
    return str(output.data["text/html"])
