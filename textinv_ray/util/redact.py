"""Removes credentials from URIs."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

from textinv_ray.util.text import LONGEST, one_line

_BRIEF = 80  # characters
_USERINFO = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"(?<=: )(/[^\s?]*)\?\S*")  # in urllib3's messages the path stands apart from the host
_QUERY_OF_PATH = re.compile(r"\?[^?/]*=.*$", re.DOTALL)
# A URI; or user and password at the start of a path, as where fsspec names a missing file without the scheme.
# Lengths are bounded: without that, 100 kB of letters take a minute.
_URI = re.compile(
    r"[A-Za-z][A-Za-z0-9+.\-]{0,63}://[^\s'\"<>]+"
    r"|(?:^|(?<=[\s'\"(\[]))(/?)[^\s/'\"@:(\[]{1,255}:[^\s/'\"@]{1,4095}@",
    re.MULTILINE,
)


def redact(uri: str) -> str:
    """`uri` without user, password, query and fragment, for logs, reports and MLflow.

    The whole query is removed, because signed URLs have their signature there. A plain path isn't changed.
    """
    if "://" not in uri:
        return uri
    chain = [_redact_link(link) for link in uri.split("::")]
    return "::".join(chain)


def redact_text(text: str) -> str:
    """A text, such as another library's message, with each URI in it replaced by `redact(uri)`.

    User and password are also removed from the start of a path, which is what a URI without its scheme looks like.
    """
    return _QUERY.sub(r"\1", _URI.sub(_redact_match, text))


def shown(uri: str) -> str:
    """A URI or a path without credentials, as `redact`; the query is cut off a relative URI as well.

    Signatures stand there. What a `data:` URI holds isn't shown.
    """
    if uri[:5].lower() == "data:":
        return "data:..."
    return redact(uri) if "://" in uri else _QUERY_OF_PATH.sub("", uri)


def brief(value: object) -> str:
    """A value that a user gave, in quotes for a message: without credentials, and short."""
    text = redact_text((value if isinstance(value, str) else repr(value))[:LONGEST])
    text = "data:..." if text[:5].lower() == "data:" else _QUERY_OF_PATH.sub("", text)
    text = text if len(text) <= _BRIEF else f"{text[: _BRIEF - 3]}..."
    return repr(text) if isinstance(value, str) else one_line(text)


def _redact_match(match: re.Match[str]) -> str:
    found = match.group()
    return redact(found) if "://" in found else match.group(1)


def _redact_link(link: str) -> str:
    if "://" not in link:
        return link
    try:
        parts = urlsplit(link)
    except ValueError:  # such as an unclosed [ in the host
        return _USERINFO.sub("", link).split("?", 1)[0].split("#", 1)[0]
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme in ("http", "https") or "@" in parts.netloc or parts.query:
        bare = urlunsplit((parts.scheme, host, parts.path, "", ""))
        # urlunsplit drops the // of an empty host (sqlite:///x, file:///x); put it back.
        return bare if "://" in bare else bare.replace(":", "://", 1)
    return link
