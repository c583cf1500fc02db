"""The Hugging Face Hub: reached or not, and what is said of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.network import free_ports
from textinv_ray.util import hub
from textinv_ray.util.errors import UserError


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    hub.is_reachable.cache_clear()
    yield
    hub.is_reachable.cache_clear()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (
        "HF_HUB_OFFLINE",
        "https_proxy",
        "HTTPS_PROXY",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_hub_that_answers(endpoint: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.is_reachable()
        hub.is_reachable.cache_clear()
        endpoint.setenv("HF_HUB_OFFLINE", "1")
        assert not hub.is_reachable()


def test_a_hub_behind_a_proxy_is_not_asked(endpoint: pytest.MonkeyPatch) -> None:
    endpoint.setenv("HF_ENDPOINT", f"https://127.0.0.1:{free_ports(1)[0]}")
    assert not hub.is_reachable()
    hub.is_reachable.cache_clear()
    endpoint.setenv("https_proxy", "http://proxy:3128")
    assert hub.is_reachable()


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "https://no-such-host.invalid"])
def test_a_model_that_is_nowhere(endpoint: pytest.MonkeyPatch, address: str) -> None:
    endpoint.setenv("HF_ENDPOINT", address.format(port=free_ports(1)[0]))
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"the Hugging Face Hub can't be reached, and model_index\.json of 'a/b' isn't"
    ):
        hub.download("a/b", "model_index.json")
    assert time.monotonic() - began < 15, "found out once, not tried again for minutes"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("GatedRepo", r"the model 'a/b' is gated: accept its licence on its page of the Hub, then log in"),
        ("RepoNotFound", r"the Hub has no model 'a/b', or it is private"),
    ],
)
def test_a_model_that_the_hub_does_not_give(
    endpoint: pytest.MonkeyPatch, tmp_path: Path, code: str, message: str
) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403 if code == "GatedRepo" else 401)
            self.send_header("X-Error-Code", code)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        endpoint.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        endpoint.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UserError, match=message) as caught:
            hub.download("a/b", "model_index.json")
        server.shutdown()
    assert "\n" not in str(caught.value)
