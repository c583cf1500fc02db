"""The wheel, installed into an environment of its own: what is in it, its demo, and the example notebook.

Other packages come from this environment, so that nothing is downloaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest

import textinv_ray
from tests.support.commands import LOCAL_RAY, REPOSITORY

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


def test_it_finds_its_presets_models_and_examples(installed: Path, tmp_path: Path) -> None:
    """From the wheel alone, up to the start of a job."""
    shown = run(installed, tmp_path, "textinv", "presets", "mini")
    assert shown.stdout == (REPOSITORY / "configs" / "mini.yaml").read_text()
    where = run(installed, tmp_path, "python", "-c", WHERE)
    package, examples = map(Path, where.stdout.splitlines())
    assert package.is_relative_to(installed.parent), "not this repository's"
    assert examples.parent.parent == package.parent
    job = run(installed, tmp_path, "textinv", "invert", str(examples), "--only", "ada", "--dry-run")
    assert job.returncode == 0, job.stdout + job.stderr
    assert "to learn: 1 concept, 4 steps" in job.stdout
