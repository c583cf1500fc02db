"""URIs and messages lose their credentials and nothing else."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textinv_ray.util.redact import redact, redact_text, redact_values

secrets = st.text(string.ascii_letters + string.digits + "-_.~%+=&", min_size=1, max_size=12)
hosts = st.from_regex(r"[a-z][a-z0-9\-]{0,8}(\.[a-z]{2,3})?(:[1-9][0-9]{1,3})?", fullmatch=True)
paths = st.from_regex(r"(/[A-Za-z0-9_.\-]{1,8}){0,3}", fullmatch=True)
schemes = st.sampled_from(["http", "https", "s3", "gs", "postgresql+psycopg2"])


@given(schemes, secrets, secrets, hosts, paths, secrets, secrets)
def test_what_is_left_of_a_uri(
    scheme: str, user: str, password: str, host: str, path: str, query: str, fragment: str
) -> None:
    plain = f"{scheme}://{host}{path}"
    uri = f"{scheme}://{user}:{password}@{host}{path}?{query}#{fragment}"
    assert redact(uri) == plain
    assert redact(plain) == plain
    assert redact_text(f"can't reach '{uri}': refused") == f"can't reach '{plain}': refused"


@given(hosts, paths, secrets)
def test_a_signed_url_keeps_its_place_alone(host: str, path: str, signature: str) -> None:
    assert redact(f"https://{host}{path}?X-Amz-Signature={signature}") == f"https://{host}{path}"


@given(st.text(max_size=40).filter(lambda text: "://" not in text))
def test_a_path_stays_as_it_is(path: str) -> None:
    assert redact(path) == path


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:///out/mlflow.db", "sqlite:///out/mlflow.db"),
        ("file:///a/b?c", "file:///a/b"),
        ("s3://bucket/what?.png", "s3://bucket/what"),
        ("simplecache::https://me:secret@h/x?sig=1", "simplecache::https://h/x"),
        ("zip://x.png::https://me:secret@h/x.zip", "zip://x.png::https://h/x.zip"),
        ("http://me:secret@[host/x?sig=secret", "http://[host/x"),
    ],
)
def test_uris_of_other_kinds(uri: str, shown: str) -> None:
    assert redact(uri) == shown


@pytest.mark.parametrize("start", ["", "['", "no such file: ", "(", '"', "line\n"])
@given(user=secrets, password=secrets, slash=st.sampled_from(["", "/"]))
def test_a_uri_that_lost_its_scheme(start: str, user: str, password: str, slash: str) -> None:
    """As fsspec names files that it doesn't find."""
    assert redact_text(f"{start}{slash}{user}:{password}@bucket/x") == f"{start}{slash}bucket/x"


@pytest.mark.parametrize(
    "text", ["at 12:30 me@host wrote", "s3://bucket/a:b@c.png", "key: value@home", "a/b:c@d", "at host:80/x"]
)
def test_what_is_no_password_stays(text: str) -> None:
    assert redact_text(text) == text


def test_where_host_and_path_are_named_apart() -> None:
    told = "HTTPConnectionPool(host='h', port=80): Max retries exceeded with url: /a?sig=secret (Caused by x)"
    assert redact_text(told) == told.replace("?sig=secret", "")
    told = "after connection broken by 'Error(\"x\")': /a?sig=secret/api"
    assert redact_text(told) == told.replace("?sig=secret/api", "")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("can't open 'https://u:pa'ss@h/x?sig=a'b': refused", "can't open 'https://h/x': refused"),
        ("['https://u:p@h/1.png?s=1','https://h/2.png?s=2']", "['https://h/1.png','https://h/2.png']"),
        ("uri=https://u:p@h/x, next", "uri=https://h/x, next"),
        ("postgresql://u:p'w@h/db", "postgresql://h/db"),
        ("images/ok.png?sig=S&x=1 is truncated", "images/ok.png is truncated"),
        ("ok.png?X-Amz-Signature=S", "ok.png"),
        ("is it here? yes", "is it here? yes"),
        ("what?.png", "what?.png"),
        ("://u:p@h/x", "://h/x"),
    ],
)
def test_texts(text: str, clean: str) -> None:
    assert redact_text(text) == clean


def test_every_text_of_plain_data() -> None:
    data = {"a": {"b": ["https://u:p@h/x?s", 1, None]}, "c": ("sig.png?sig=S", True)}
    assert redact_values(data) == {"a": {"b": ["https://h/x", 1, None]}, "c": ["sig.png", True]}


LENGTH = 300_000
LONG = {
    "letters": "QUJD",
    "schemes": "a://",
    "half schemes": "a:/",
    "logins": "(a:",
    "ats": "a:b@",
    "colons": ":",
    "brackets": "([",
    "questions": "?",
    "parameters": "?a=b&",
    "queries": ": /",
    "quotes": "'a",
    "uris": "https://u:p@h/x?y ",
    "chains": "a::b://",
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_a_long_line_takes_no_time(text: str) -> None:
    """What is printed while a job runs goes through this: the job would wait for it."""
    whole = text * (LENGTH // len(text))
    began = time.monotonic()
    redact_text(whole)
    redact_text("https://h/" + whole)
    redact(whole)
    assert time.monotonic() - began < 3, "linear: 0.1 s each"


@given(st.text("ab:/@?'\"( =&", max_size=40))
def test_a_second_time_changes_nothing(text: str) -> None:
    once = redact_text(redact_text(text))
    assert redact_text(once) == once
