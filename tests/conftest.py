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
_START_RAY = ("benchmarks/", "experiments/", "service/", "system/")
"""Folders whose slow tests start a Ray of their own."""
_WITHOUT_RAY = (
    *("benchmarks/test_after_the_paper.py", "benchmarks/test_commands.py"),
    *("service/library/test_damaged_outputs.py", "service/tracking/test_mirror.py"),
    *("service/tracking/test_rebuild.py", "system/test_bundled_models.py", "system/test_quality.py"),
)
"""Except these files there."""


_CLUSTERS = ("system/", "service/cluster/test_connection.py", "service/cluster/test_autoscaling.py")
"""Of those that start a Ray, folders and files that go to a process of their own.

All that start a cluster are among them: Ray leaves the address of the last one where jobs of this machine find it.
"""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Shares tests out between the processes of pytest-xdist (`--dist loadfile`), each file to one of them.

    Files with tests that start a Ray make two chains, each of which goes to one process, one file after the other: more
    than two Rays would wait for one another on two cores. What takes longest begins first: the chains, then files with
    slow tests.
    """
    from xdist.scheduler import LoadFileScheduling

    def order(scope: str) -> int:
        return 0 if scope in ("clusters", "ray") else 2 - _is_slow(config.rootpath / scope)

    class LongestFirst(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return _chain(config.rootpath / file) or file

        def _assign_work_unit(self, node: Any) -> None:
            self.workqueue.move_to_end(min(self.workqueue, key=order), last=False)
            super()._assign_work_unit(node)

    return LongestFirst(config, log) if config.getvalue("dist") == "loadfile" else None


@cache
def _is_slow(file: Path) -> bool:
    return "pytest.mark.slow" in file.read_text()


@cache
def _chain(file: Path) -> str:
    """Which chain of files that start a Ray a file is of; empty: it starts none."""
    text, place = file.read_text(), file.relative_to(TESTS).as_posix()
    is_slow = _is_slow(file) and place.startswith(_START_RAY)
    if not (is_slow and place not in _WITHOUT_RAY) and '"local_ray"' not in text and "local_ray:" not in text:
        return ""
    return "clusters" if place.startswith(_CLUSTERS) else "ray"


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
