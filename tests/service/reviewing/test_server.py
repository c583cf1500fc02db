"""The server of `textinv review`: who may use it, what it answers, and what it stores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import examples
from tests.support.reviewing import Served, served
from tests.support.s3 import BUCKET, S3Server
from textinv_ray.service.reviewing.access import is_local_name
from textinv_ray.service.reviewing.decide import Request, decide
from textinv_ray.service.store.snapshot import StoredResults
from textinv_ray.service.store.store import Store
from textinv_ray.service.views import results_table

COUNT = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(str(tmp_path_factory.mktemp("review")))
    for index in range(COUNT):
        examples.finish(store, f"c{index}", [[1, index, 0, 0]])
    examples.fail(store, "broken", "no such image")
    results_table.write(store, StoredResults.read(store))
    return store


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Served]:
    with served(store) as found:
        yield found


PATHS = (
    "/",
    "/page/main.js",
    "/api/concepts",
    "/api/concepts/c0",
    "/api/decisions",
    "/pictures/c0/training/0",
)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_without_the_token(server: Served, path: str) -> None:
    assert server.request(path, token=False)[0] == 403
    assert server.request(f"{path}?token=x", token=False)[0] == 403
    assert server.request(path, token=False, headers={"Cookie": "textinv_review_1=x"})[0] == 403
    assert server.request(path)[0] == 200


def test_the_url_leaves_a_cookie_and_no_token_in_the_address(server: Served) -> None:
    status, _, headers = server.request(f"/?token={server.token}", token=False)
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    name_and_value = cookie.split(";")[0]
    assert server.request("/", token=False, headers={"Cookie": name_and_value})[0] == 200


@pytest.mark.parametrize(
    "others", ['prefs={"a": 1}', "name=Eva Maria", "flag", "my[key]=1", "name=caf\u00e9"]
)
def test_cookies_of_other_programs_of_this_machine_are_no_obstacle(server: Served, others: str) -> None:
    """Browsers bring those of all ports, in any order."""
    own = f"textinv_review_1={server.token}"
    for cookies in (f"{others}; {own}", f"{own}; {others}"):
        encoded = cookies.encode().decode("latin-1")
        assert server.request("/", token=False, headers={"Cookie": encoded})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
    ],
)
def test_other_sites_are_refused(server: Served, headers: dict[str, str]) -> None:
    data = {"reviewer": "eva", "decisions": []}
    assert server.request("/api/decisions", data, headers)[0] in (400, 403)
    assert server.request("/api/concepts", headers=headers)[0] in (400, 403)
    own = {"Origin": server.base, "Sec-Fetch-Site": "same-origin"}
    assert server.request("/api/decisions", data, own)[0] == 200


def test_a_form_of_another_site_decides_nothing(server: Served) -> None:
    """What browsers send to other sites without asking them first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        data = {"reviewer": "eva", "decisions": []}
        assert server.request("/api/decisions", data, {"Content-Type": kind})[0] == 415


def test_headers_keep_other_code_out(server: Served) -> None:
    for path in PATHS:
        headers = server.request(path)[2]
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_concepts_with_scores_nearest_and_failures(server: Served) -> None:
    found = server.json("/api/concepts")
    assert found["about"]["reviewer"] == "eva"
    by_id = {concept["id"]: concept for concept in found["concepts"]}
    assert len(by_id) == COUNT + 1
    assert by_id["broken"]["error"] == "no such image"
    one = by_id["c3"]
    assert (one["gain"], one["nearest"]) == (0.25, "c4")
    assert one["prompts"] == ["a photo of {}"]
    detail = server.json("/api/concepts/c3")
    assert [(point["step"], point["image"]) for point in detail["points"]][::2] == [(0, 0.5), (2, 0.75)]


@pytest.mark.parametrize(
    "path", ["/api/concepts/none", "/pictures/none/training/0", "/pictures/c0/9/0", "/page/x.js"]
)
def test_what_is_not_there(server: Served, path: str) -> None:
    assert server.request(path)[0] == 404
    assert server.request("/pictures/..%2f..%2fetc/training/0")[0] == 404
    assert server.request("/page/..%2fserver.py")[0] == 404


def test_a_decision_is_stored(server: Served, store: Store) -> None:
    answer = server.decide("c1", "approved", note="fine")
    assert (answer["decision"]["verdict"], answer["decision"]["note"]) == ("approved", "fine")
    decision = store.decision("c1")
    assert decision is not None
    assert (decision.reviewer, decision.fingerprint) == ("eva", "fingerprint of c1")
    assert server.decided[-1] == decision
    assert server.json("/api/decisions")["c1"]["verdict"] == "approved"


def test_another_reviewer_is_heard_of(server: Served, store: Store) -> None:
    server.decide("c2", "approved", "tom")
    answer = server.decide("c2", "rejected", "eva")
    assert answer["error"] == "conflict"
    assert answer["decision"]["reviewer"] == "tom"
    seen = answer["decision"]["decided_at"]
    assert server.decide("c2", "rejected", "eva", seen=seen)["decision"]["verdict"] == "rejected"
    found = store.decision("c2")
    assert found is not None
    assert [one.reviewer for one in found.earlier] == ["tom"]


def test_many_at_once_lose_nothing(server: Served, store: Store) -> None:
    """Each of eight reviewers decides on all concepts at the same time."""
    wanted = [
        {"concept_id": f"c{index}", "fingerprint": f"fingerprint of c{index}", "verdict": "undecided"}
        for index in range(4, COUNT)
    ]

    def bulk(reviewer: str) -> None:
        found = server.json("/api/decisions", {"reviewer": reviewer, "decisions": wanted})["answers"]
        assert all("decision" in answer for answer in found)

    names = [f"reviewer {number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(bulk, names))
    for index in range(4, COUNT):
        decision = store.decision(f"c{index}")
        assert decision is not None
        assert {decision.reviewer, *(one.reviewer for one in decision.earlier)} == set(names)


def test_a_word_that_was_learned_anew(server: Served, store: Store) -> None:
    examples.finish(store, "c3", [[1, 3, 0, 0]], fingerprint="another")
    answer = server.decide("c3", "approved")
    assert answer["error"] == "stale"
    assert store.decision("c3") is None
    server.json("/api/concepts?fresh=1")
    assert server.decide("c3", "approved")["decision"]["verdict"] == "approved"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"reviewer": "eva"}, "decisions: Field required"),
        ({"reviewer": "eva", "decisions": [{"concept_id": "c0"}]}, "decisions.0.fingerprint"),
        (
            {"reviewer": "eva", "decisions": [{"concept_id": "c0", "fingerprint": "", "verdict": "great"}]},
            "decisions.0.verdict",
        ),
        ([], "Input should be an object"),
    ],
)
def test_mistakes_are_told(server: Served, data: object, message: str) -> None:
    status, body, _ = server.request("/api/decisions", data)
    assert status == 422
    assert message in json.loads(body)["message"]


def test_names_of_this_machine() -> None:
    for name in ("localhost:1", "127.0.0.1", "127.9.9.9:80", "[::1]:5"):
        assert is_local_name(name)
    for name in ("", "localhost.evil.example", "10.0.0.1", "0.0.0.0:1", "[::2]", "evil@example", "[::1"):
        assert not is_local_name(name)


def test_on_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bucket = S3Server()
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    try:
        store = Store(f"s3://{BUCKET}/review")
        examples.finish(store, "a")
        with served(store) as found:
            assert found.request("/pictures/a/training/0?size=small")[0] == 200
            assert found.decide("a", "approved")["decision"]["verdict"] == "approved"
            other = Store(store.uri)  # of another server on the same bucket
            decide(other, Request("a", "fingerprint of a", "rejected", "tom"), careful=False)
            assert found.decide("a", "approved")["error"] == "conflict"
        decision = other.decision("a")
        assert decision is not None
        assert decision.verdict == "rejected"
    finally:
        bucket.stop()
