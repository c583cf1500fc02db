"""Which errors are retried, and for how long."""

from __future__ import annotations

import errno
import time

import pytest

from textinv_ray.util import retries


class Flaky:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "reset"),
        TimeoutError("slow"),
        OSError(errno.EIO, "We encountered an internal error"),
        OSError(errno.EBUSY, "Please reduce your request rate"),
        OSError("no errno"),
    ],
)
def test_transient(error: Exception) -> None:
    action = Flaky(error, error)
    assert retries.call(action, patience_s=30, what="x") == "done"
    assert action.calls == 3


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("Access Denied"),
        FileNotFoundError("no such bucket"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        ValueError("a mistake"),
    ],
)
def test_permanent(error: Exception) -> None:
    action = Flaky(error)
    with pytest.raises(type(error)):
        retries.call(action, patience_s=30, what="x")
    assert action.calls == 1


def test_patience_ends() -> None:
    action = Flaky(*[TimeoutError(f"{number}") for number in range(100)])
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        retries.call(action, patience_s=1, what="x")
    assert 2 <= action.calls < 10
    assert time.monotonic() - began < 3


def test_missing_credentials_are_not_waited_for() -> None:
    botocore = pytest.importorskip("botocore.exceptions")
    assert not retries.is_transient(botocore.NoCredentialsError())
    assert retries.is_transient(botocore.EndpointConnectionError(endpoint_url="http://x"))
    for status, transient in ((503, True), (500, True), (403, False), (404, False)):
        answer = {"Error": {"Code": "x"}, "ResponseMetadata": {"HTTPStatusCode": status}}
        assert retries.is_transient(botocore.ClientError(answer, "PutObject")) == transient
