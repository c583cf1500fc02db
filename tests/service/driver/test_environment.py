"""The surroundings of a driver."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import fsspec
import pytest

from textinv_ray.service.driver.environment import log_file, quiet
from textinv_ray.service.store.files import StoreError
from textinv_ray.service.store.store import Store


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"RAY_USAGE_STATS_ENABLED": "1"}
    monkeypatch.setattr("os.environ", environment)
    quiet()
    assert environment["RAY_USAGE_STATS_ENABLED"] == "1"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_the_log_of_a_local_output_lies_in_it(tmp_path: Path) -> None:
    with log_file(Store(str(tmp_path / "out"))) as path:
        assert path == tmp_path / "out" / "job.log"
        path.write_text("line\n")
    assert path.read_text() == "line\n"


def test_the_log_of_a_remote_output_is_put_there_in_the_end() -> None:
    store = Store("memory://logs/out")
    with log_file(store) as path:
        path.write_text("line\n")
        assert store.read("job.log") is None
    assert store.read("job.log") == b"line\n"
    assert not path.exists()
    with log_file(store) as path:
        path.write_text("of the next run\n")
    assert store.read("job.log") == b"line\nof the next run\n"
    with log_file(store):
        pass
    assert store.read("job.log") == b"line\nof the next run\n"
    fsspec.filesystem("memory").store.clear()


def test_a_log_that_is_somebody_else_s() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        log = Path(folder) / "job.log"
        log.write_text("theirs\n")
        log.chmod(0o400)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(StoreError, match=r"job\.log: access denied"), log_file(Store(folder)):
                pass
        finally:
            if root:
                os.seteuid(0)
        assert log.read_text() == "theirs\n"
