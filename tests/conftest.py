"""Fixtures that many tests share."""

from __future__ import annotations

import os
import signal
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# For this process and all that it starts: two programs with two threads each on two cores wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A token that a test's Ray leaves in the home folder would lock people out of the Ray they start next.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support import tiny, tiny_flow
from tests.support.tables import Write

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As shells start programs in the background: what tests start would not hear of Ctrl-C either.
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
_START_RAY = ("benchmarks", "experiments", "service", "system")
"""Folders whose slow tests start a Ray of their own."""
_WITHOUT_RAY = (
    *("benchmarks/test_after_the_paper.py", "benchmarks/test_commands.py"),
    *("service/library/test_damaged_outputs.py", "service/tracking/test_mirror.py"),
    *("service/tracking/test_rebuild.py", "system/test_bundled_models.py", "system/test_quality.py"),
)
"""Except these files there."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Shares tests out between the processes of pytest-xdist (`--dist loadfile`), each file to one of them.

    Files with tests that start a Ray, which takes all cores, go to the same process, one after the other.
    """
    from xdist.scheduler import LoadFileScheduling

    class OneRayAtATime(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if _starts_ray(config.rootpath / file) else file

    return OneRayAtATime(config, log) if config.getvalue("dist") == "loadfile" else None


@cache
def _starts_ray(file: Path) -> bool:
    text, place = file.read_text(), file.relative_to(TESTS)
    is_slow = "pytest.mark.slow" in text and place.parts[0] in _START_RAY
    return (is_slow and place.as_posix() not in _WITHOUT_RAY) or '"local_ray"' in text or "local_ray:" in text


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder with random weights: epsilon-prediction, 16 pixels."""
    return tiny.save_stable_diffusion(tmp_path_factory.mktemp("tiny-sd"))


@pytest.fixture(scope="session")
def tiny_sd_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with v-prediction."""
    return tiny.save_stable_diffusion(tmp_path_factory.mktemp("tiny-sd-v"), "v_prediction")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion XL folder with random weights: epsilon-prediction, 16 pixels."""
    return tiny.save_stable_diffusion_xl(tmp_path_factory.mktemp("tiny-sdxl"))


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 3 folder with random weights and T5, 16 pixels."""
    return tiny_flow.save_stable_diffusion_3(tmp_path_factory.mktemp("tiny-sd3"))


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Flux.1 folder with random weights and guidance as an input (dev), 16 pixels."""
    return tiny_flow.save_flux(tmp_path_factory.mktemp("tiny-flux"))


@pytest.fixture(scope="session")
def tiny_sana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Sana folder with random weights, 32 pixels."""
    return tiny_flow.save_sana(tmp_path_factory.mktemp("tiny-sana"))


@pytest.fixture(scope="session")
def tiny_flux2_klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Flux.2 Klein folder (base) with random weights, 32 pixels."""
    return tiny_flow.save_flux2_klein(tmp_path_factory.mktemp("tiny-flux2-klein"))


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel folder with its processor and random weights."""
    return tiny.save_clip(tmp_path_factory.mktemp("tiny-clip"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes columns to a Parquet file and returns its path."""

    def write(name: str = "m.parquet", **columns: Any) -> str:
        path = tmp_path / name
        pq.write_table(pa.table(columns), path, row_group_size=7)
        return str(path)

    return write


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder of two concepts with three images and one, and of things to skip."""
    root = tmp_path / "pets"
    for name in ("rex/10.png", "rex/2.JPG", "rex/1.webp", "my cat/a.jpeg"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(path)
    (root / "rex" / "notes.txt").touch()
    (root / "rex" / ".hidden.png").touch()
    (root / "rex" / "more").mkdir()
    (root / "empty").mkdir()
    (root / ".git").mkdir()
    (root / "readme.md").touch()
    (root / "rex" / "concept.yaml").write_text("initializer_token: dog\nsteps: 9\ntags: {age: 3}\n")
    return root
