"""Protocols that can't be used say what to install."""

from __future__ import annotations

import fsspec
import pytest

from textinv_ray.util.protocols import why_unusable


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("foo", "foo:// is no protocol that fsspec knows"),
        ("gs", "gs:// needs another Python package: pip install 'textinv_ray[gcs]'"),
        ("az", "az:// needs another Python package: pip install 'textinv_ray[azure]'"),
        ("abfs", "abfs:// needs another Python package: pip install 'textinv_ray[azure]'"),
        ("dropbox", "dropbox:// needs another Python package: "),
    ],
)
def test_what_is_said_of_a_protocol(protocol: str, expected: str) -> None:
    with pytest.raises((ImportError, ValueError)) as error:
        fsspec.core.url_to_fs(f"{protocol}://bucket/x")
    assert isinstance(error.value, ImportError | ValueError)
    assert why_unusable(protocol, error.value).startswith(expected)
