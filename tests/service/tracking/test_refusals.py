"""What MLflow will never take, told from an MLflow that is away."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from textinv_ray.service.tracking.refusals import UnusableError, check_database, is_refusal, reason


def test_refusals_and_outages() -> None:
    from mlflow.exceptions import MlflowException, RestException
    from mlflow.protos import databricks_pb2 as codes

    refusals = [
        MlflowException("a bad name", codes.INVALID_PARAMETER_VALUE),
        RestException({"error_code": "PERMISSION_DENIED", "message": "no"}),
        RestException({"error_code": "404", "message": "no"}),
        ValueError("no such scheme"),
        ModuleNotFoundError("psycopg2"),
    ]
    outages = [
        MlflowException("refused connections come as this"),
        RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}),
        RestException({"error_code": "503", "message": "later"}),
        ConnectionRefusedError(),
        TimeoutError(),
        sqlite3.OperationalError("database is locked"),
    ]
    assert all(map(is_refusal, refusals))
    assert not any(map(is_refusal, outages))


def test_reasons_are_short_and_without_credentials() -> None:
    assert reason(ValueError("https://me:pw@h/x?sig=1 refused\nand more")) == "https://h/x refused"
    assert len(reason(ValueError("x" * 10**6))) < 600
    assert reason(TimeoutError()) == "TimeoutError"


def test_databases(tmp_path: Path) -> None:
    sound = tmp_path / "sound.db"
    with sqlite3.connect(sound) as connection:
        connection.execute("CREATE TABLE t (x)")
    for path in (sound, tmp_path / "new.db", tmp_path / "new" / "folder" / "x.db"):
        check_database(f"sqlite:///{path}")
    for uri in ("http://127.0.0.1:9", "file:///nowhere/at/all", "postgresql://h/x"):
        check_database(uri)


@pytest.mark.parametrize("kind", ["text", "folder", "pipe", "below a file"])
def test_what_is_no_database(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mlflow.db"
    if kind == "text":
        path.write_text("not a database at all")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("x")
        path = path / "mlflow.db"
    with pytest.raises(UnusableError, match=r"mlflow\.db: (it isn't a|.* can't be written)"):
        check_database(f"sqlite:///{path}")
