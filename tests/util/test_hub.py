"""The Hugging Face Hub: reached or not, and what is said of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

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
