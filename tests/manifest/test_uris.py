"""What a path or URI leads to: a column at a time and one by one alike."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from textinv_ray.manifest.uris import locate, protocols

ALLOWED = ("file", "http", "https", "s3", "memory")
BASES = ("/data/pets", "s3://bucket/pets", "memory://x")


@pytest.mark.parametrize(
    ("uri", "base", "expected"),
    [
        ("a b%20c.png", "/p", ("file", "/p/a b%20c.png")),
        ("file:///p/my%20pet.png", "/q", ("file", "/p/my pet.png")),
        ("FILE:///p/%2520.png", "/q", ("file", "/p/%20.png")),
        ("file://localhost/p/a.png", "/q", ("file", "/p/a.png")),
        ("file:/p/a.png", "s3://b", ("file", "/p/a.png")),
        ("../a.png", "s3://b/c", ("s3", "s3://b/a.png")),
        ("S3://b/c.png", "/q", ("s3", "S3://b/c.png")),
        ("data:image/png;base64,AA", "/q", ("data", "data:image/png;base64,AA")),
    ],
)
def test_where_they_lead(uri: str, base: str, expected: tuple[str, str]) -> None:
    assert locate(uri, base) == expected


STARTS = """
/ ~/ ~ file: file:/ file:// file:/// FILE://localhost/ local:// s3:// http:// data: DATA: simplecache::file:// memory::
a:b:// ftp:// S3: ://
""".split()  # noqa: SIM905
starts = st.sampled_from(["", *STARTS])


@given(st.builds(str.__add__, starts, st.text(max_size=12)), st.sampled_from(BASES))
@example("file:\n///x", "/data/pets")
def test_a_whole_column_is_judged_as_each_is(uri: str, base: str) -> None:
    (found,) = protocols(pa.array([uri], pa.string()), base).to_pylist()
    try:
        expected = locate(uri, base)[0]
    except ValueError:
        assert found is None
        return
    assert (found in ALLOWED) == (expected in ALLOWED)
    if expected in (*ALLOWED, "data"):
        assert found == expected
