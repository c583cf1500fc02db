"""The server of `textinv review` in this process, and requests to it."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.waiting import wait_for
from textinv_ray.service.reviewing.serve import ReviewServer
from textinv_ray.service.store.records import Decision
from textinv_ray.service.store.store import Store


class Served:
    """A server that runs."""

    def __init__(self, server: ReviewServer) -> None:
        self.server = server
        self.url = server.url
        parts = urlsplit(server.url)
        self.base = f"http://127.0.0.1:{server.port}"
        (self.token,) = parse_qs(parts.query)["token"]
        self.decided: list[Decision] = []
        """What `on_decision` was called with."""

    def request(
        self, path: str, data: object = None, headers: Mapping[str, str] = {}, *, token: bool = True
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """(status, body, headers). `data`: posted as JSON. Redirects are not followed."""
        given = {"Authorization": f"Bearer {self.token}"} if token else {}
        body = None if data is None else json.dumps(data).encode()
        if body is not None:
            given["Content-Type"] = "application/json"
        request = urllib.request.Request(self.base + path, body, {**given, **headers})
        try:
            with _OPENER.open(request, timeout=20) as answer:
                return answer.status, answer.read(), dict(answer.headers.items())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), dict(error.headers.items())

    def json(self, path: str, data: object = None) -> Any:
        status, body, _ = self.request(path, data)
        assert status == 200, body
        return json.loads(body)

    def decide(self, concept_id: str, verdict: str, reviewer: str = "eva", **more: object) -> dict[str, Any]:
        """Posts a decision on the word as the page has it. Returns the answer to it."""
        concepts = {concept["id"]: concept for concept in self.json("/api/concepts")["concepts"]}
        wanted = {
            "concept_id": concept_id,
            "fingerprint": concepts[concept_id]["fingerprint"],
            "verdict": verdict,
            **more,
        }
        (answer,) = self.json("/api/decisions", {"reviewer": reviewer, "decisions": [wanted]})["answers"]
        return dict(answer)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


@contextmanager
def served(store: Store, reviewer: str = "eva", host: str = "127.0.0.1") -> Iterator[Served]:
    """Runs the server of an output."""
    decided: list[Decision] = []
    server = ReviewServer(store, reviewer=reviewer, on_decision=decided.append, host=host)
    found = Served(server)
    found.decided = decided
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: found.request("/page/style.css")[0] == 200, 20)
        yield found
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()
