"""Web servers that redirect: every hop is checked, and what is refused is not tried again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from textinv_ray.concepts.fetch import ImageError, fetch
from textinv_ray.config.job import DataConfig

PATIENT = DataConfig(download_retry_s=60)


class Redirecting:
    """A server: /to?URI redirects to URI, /loop to itself, /n to /(n-1) and at last to /image; it counts requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers.get("Authorization", "")))
                path, _, target = self.path.partition("?")
                name = path.strip("/")
                if name == "loop":
                    target = "/loop"
                elif name.isdigit():
                    target = f"/{int(name) - 1}" if name != "0" else "/image"
                elif name == "image":
                    target = ""
                self.send_response(302 if target else 200)
                if target:
                    self.send_header("Location", target)
                self.end_headers()
                if not target:
                    self.wfile.write(b"image")

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"


@pytest.fixture
def server() -> Iterator[Redirecting]:
    found = Redirecting()
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def get(uri: str, config: DataConfig = PATIENT) -> bytes:
    return fetch(uri, base="/", config=config)


def test_redirects_are_followed(server: Redirecting) -> None:
    assert get(f"http://{server.host}/3") == b"image"
    assert [path for path, _ in server.asked] == ["/3", "/2", "/1", "/0", "/image"]


def test_passwords_stay_with_the_host_they_are_for(server: Redirecting) -> None:
    assert (
        get(f"http://me:PW@{server.host}/to?http://localhost:{server.server.server_port}/image") == b"image"
    )
    assert [bool(authorization) for _, authorization in server.asked] == [True, False]


@pytest.mark.parametrize(
    ("path", "reason", "requests"),
    [
        ("loop", "redirects in a circle, to http://HOST/loop again", 1),
        ("50", "redirects more than 10 times", 11),
        ("to?file:///etc/hostname", "redirects to file:///etc/hostname: protocol 'file' is not among", 1),
        ("to?ftp://me:SECRET@h/x", "redirects to ftp://h/x: protocol 'ftp' is not among", 1),
        ("to?https://h/x", "redirects to https://h/x: protocol 'https' is not among", 1),
    ],
)
def test_refused_redirects_are_not_tried_again(
    server: Redirecting, path: str, reason: str, requests: int
) -> None:
    config = DataConfig(download_retry_s=60, allowed_protocols=("http", "file"))
    with pytest.raises(ImageError) as error:
        get(f"http://{server.host}/{path}", config)
    assert reason.replace("HOST", server.host) in str(error.value)
    assert "SECRET" not in str(error.value)
    assert len(server.asked) == requests
    assert not error.value.is_transient


PRIVATE = """
127.0.0.1 localhost [::1] [::ffff:127.0.0.1] [64:ff9b::7f00:1] 127.1 2130706433 10.0.0.1 169.254.169.254 192.168.1.1
[fe80::1] [fd00::1] 0.0.0.0 100.64.0.1
""".split()  # noqa: SIM905


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_can_be_refused(host: str) -> None:
    config = DataConfig(download_retry_s=0, download_timeout_s=5, refuse_private_addresses=True)
    with pytest.raises(ImageError, match=r"which is a private address|not a canonical IPv4"):
        get(f"http://{host}:9/x.png", config)


def test_they_are_allowed_by_default(server: Redirecting) -> None:
    assert get(f"http://{server.host}/to?http://{server.host}/image") == b"image"
