"""Where the files of a row lie: what a path or URI in a manifest means."""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.compute as pc

_FILE_URI = r"(?i)^file:(//(localhost)?/|/[^/])"
MALFORMED_FILE_URI = "file: URIs name an absolute path, as in file:///data/x.png"
"""What is wrong with a `file:` URI for which `protocols` gives null, or `locate` raises ValueError."""


def locate(uri: str, base: str) -> tuple[str, str]:
    """Resolves a path or URI of a manifest; relative ones start at `base`, the manifest's folder.

    Returns (protocol, location). The location of a local file is a path, with the protocol "file"; of others, a URI.
    `file:` URIs are percent-decoded, as `pathlib.Path.as_uri` and browsers encode them; plain paths stay as they are.
    `~/` is the home folder. Raises ValueError for a `file:` URI without an absolute path on this machine.
    """
    lowered = uri[:8].lower()
    if lowered.startswith("file:"):
        return "file", _path_of(uri)
    if lowered.startswith("data:"):
        return "data", uri
    if uri.startswith("~/"):
        return "file", os.path.expanduser(uri)
    if "://" not in uri and not uri.startswith("/"):
        protocol, separator, folder = base.rpartition("://")
        # Object stores would take `..` for a name.
        uri = protocol + separator + posixpath.normpath(posixpath.join(folder, uri))
    protocol, separator, path = uri.partition("://")
    if not separator:
        return "file", uri
    protocol = protocol.lower()
    if protocol == "local":
        return "file", path
    return protocol, uri


def _path_of(uri: str) -> str:
    """The path of a `file:` URI: as bytes, because names of files need not be UTF-8."""
    if not re.match(_FILE_URI, uri):
        raise ValueError(MALFORMED_FILE_URI)
    path = uri[uri.index("/", 7) :] if uri[5:7] == "//" else uri[5:]
    return os.fsdecode(unquote_to_bytes(path))


def protocols(uris: pa.Array, base: str) -> pa.Array:
    """The protocol that `locate` gives for each URI; null where it raises, and for null.

    What isn't the name of a protocol may come out as another text that isn't one either.
    """
    lowered = pc.utf8_lower(uris)
    named = pc.replace_substring_regex(lowered, r"(?s)^([^:]*)://.*$", r"\1")
    named = pc.if_else(pc.equal(named, "local"), "file", named)
    relative_to = locate("x", base)[0]
    without = pc.if_else(pc.or_(pc.starts_with(uris, "/"), pc.starts_with(uris, "~/")), "file", relative_to)
    found = pc.if_else(pc.match_substring(uris, "://"), named, without)
    found = pc.if_else(pc.starts_with(uris, "~/"), "file", found)
    found = pc.if_else(pc.starts_with(lowered, "data:"), "data", found)
    malformed = pc.and_(
        pc.starts_with(lowered, "file:"), pc.invert(pc.match_substring_regex(uris, _FILE_URI))
    )
    found = pc.if_else(pc.starts_with(lowered, "file:"), "file", found)
    return pc.if_else(malformed, None, found)
