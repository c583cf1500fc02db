"""An S3 server for tests: moto in this process, which can be away, throttle and refuse on demand."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

BUCKET = "bucket"
SECRET = "SECRET-KEY-OF-THE-TESTS"
_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
_ANSWERS = {
    "slow down": ("503 Slow Down", _ERROR.format("SlowDown", "Please reduce your request rate.")),
    "broken": (
        "500 Internal Server Error",
        _ERROR.format("InternalError", "We encountered an internal error."),
    ),
    "denied": ("403 Forbidden", _ERROR.format("AccessDenied", "Access Denied")),
}


class S3Server:
    """A bucket at `endpoint`. `mode`: "ok", or what it answers to every (or to a number of) requests."""

    def __init__(self) -> None:
        self._backend = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer | None = None
        self.mode = "ok"
        self.times: float = float("inf")
        """How many requests get the mode's answer; then it is "ok" again."""
        self.only: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
        """Methods that the mode concerns."""
        self.requests: list[str] = []
        """METHOD /path of all so far."""
        self.port = 0
        self.start()
        client = boto3.client("s3", endpoint_url=self.endpoint, **self._keys())
        client.create_bucket(Bucket=BUCKET)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which boto, and so s3fs, finds it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Comes (back), with all it had."""
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        self.port = self._server.port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Connections are refused from now on."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def fail(
        self, mode: str, times: float = float("inf"), only: Iterable[str] = ("GET", "HEAD", "PUT")
    ) -> None:
        self.mode, self.times, self.only = mode, times, tuple(only)

    def heal(self) -> None:
        self.mode = "ok"

    def _answer(self, environment: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        method = environment["REQUEST_METHOD"]
        self.requests.append(f"{method} {environment['PATH_INFO']}")
        if self.mode != "ok" and method in self.only and self.times > 0:
            self.times -= 1
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            status, body = _ANSWERS[self.mode]
            respond(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [b"" if method == "HEAD" else body.encode()]
        return self._backend(environment, respond)

    def _keys(self) -> dict[str, str]:
        return {
            "aws_access_key_id": "key",
            "aws_secret_access_key": SECRET,
            "region_name": os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
        }
