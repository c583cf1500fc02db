"""Removes credentials from URIs, and from every text that may hold one: messages, configurations, logs.

All passes over a text are linear in its length: a worker's or a library's line may have any length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit, urlunsplit

from textinv_ray.util.text import LONGEST, one_line

_BRIEF = 80  # characters
_USERINFO = re.compile(r"(?<=://)[^/?#\s]*@")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*\Z")
_LONGEST_SCHEME = 64  # characters
_LONGEST_MESSAGE = 100_000
# What follows ://. A password may hold quotes, so the end is looked for behind it. A quote ends a URI where something
# else than a word follows.
_AUTHORITY = re.compile(r"[^/?#\s\"<>]*@")
_REST = re.compile(r"(?:[^\s\"'<>]|'(?=[\w%&=]))*")
# User and password without a scheme, as where fsspec names a missing file: begun behind a place where a path may begin.
_LOGIN = re.compile(r"(?<![^\s/'\"@])[^\s/'\"@]+@")
_USER = re.compile(r"(^|[(\[])([^:(\[]{1,255}):[^@]")
_BEFORE_A_PATH = " \t\r\n'\"(["
_QUERY = re.compile(r"(?<=: )(/[^\s?]*)\?\S*")  # in urllib3's messages the path stands apart from the host
_QUERY_OF_PATH = re.compile(r"\?[^?/]*=.*$", re.DOTALL)
_PARAMETERS = re.compile(r"\?[^\s'\"]+")
_SECRET = ("credential", "key", "passw", "secret", "sig", "token")
"""Parts of the names of parameters that hold a secret, in a URI whose scheme and host stand elsewhere."""


def redact(uri: str) -> str:
    """`uri` without user, password, query and fragment, for logs, reports and MLflow.

    The whole query is removed, because signed URLs have their signature there. A plain path isn't changed, but for
    parameters that are named like a signature: it may be relative to a URL.
    """
    if "://" not in uri:
        return _PARAMETERS.sub(_without_secrets, uri)
    chain = [_redact_link(link) for link in uri.split("::")]
    return "::".join(chain)


def redact_text(text: str) -> str:
    """A text, such as another library's message, with each URI in it replaced by `redact(uri)`.

    User and password are also removed from the start of a path, which is what a URI without its scheme looks like.
    """
    text = "".join(_without_uris(text)) if "://" in text else text
    if "@" in text:
        text = _LOGIN.sub(_without_login, text)
    if "?" in text:
        text = _PARAMETERS.sub(_without_secrets, _QUERY.sub(r"\1", text))
    return text


def message(text: str) -> str:
    """An error's text for people and records: on one line, without credentials, of some 2,000 characters at most."""
    return one_line(redact_text(" ".join(text[:_LONGEST_MESSAGE].split())))


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


def redact_values(data: object) -> object:
    """Plain data (mappings, lists, values) with every text in it redacted."""
    if isinstance(data, str):
        return redact_text(data)
    if isinstance(data, Mapping):
        return {key: redact_values(value) for key, value in data.items()}
    return [redact_values(value) for value in data] if isinstance(data, list | tuple) else data


def _without_uris(text: str) -> Iterator[str]:
    """The parts of a text, with its URIs redacted."""
    done = 0
    while (mark := text.find("://", done)) >= 0:
        scheme = _SCHEME.search(text, max(done, mark - _LONGEST_SCHEME), mark)
        authority = _AUTHORITY.match(text, mark + 3)
        rest = _REST.match(text, authority.end() if authority else mark + 3)
        end = rest.end() if rest else mark + 3
        begin = scheme.start() if scheme else mark
        yield text[done:begin]
        uri = text[begin:end]
        yield redact(uri) if scheme else _USERINFO.sub("", uri)
        done = end
    yield text[done:]


def _without_login(match: re.Match[str]) -> str:
    """Nothing, for `user:password@` where a path may begin; or what stands before it, such as an opening bracket."""
    found, text, start = match.group(), match.string, match.start()
    user = _USER.search(found)
    if user is None:
        return found
    if not user.group(1):
        before = start - 2 if start and text[start - 1] == "/" else start - 1  # /user:password@bucket/x
        if before >= 0 and text[before] not in _BEFORE_A_PATH:
            return found
    return found[: user.start(2)]


def _without_secrets(match: re.Match[str]) -> str:
    names = (part.partition("=")[0].lower() for part in re.split("[?&]", match.group()) if "=" in part)
    return "" if any(word in name for name in names for word in _SECRET) else match.group()


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
