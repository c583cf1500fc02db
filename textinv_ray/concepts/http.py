"""Reads a file from a web server: every redirect checked, the whole of it within a time limit.

fsspec follows redirects by itself, and its time limits hold for single reads, which a server that sends a byte at a
time never exceeds.
"""

from __future__ import annotations

import asyncio
import ipaddress
from urllib.parse import urljoin, urlsplit

import aiohttp
import fsspec
import fsspec.asyn
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from textinv_ray.config.job import DataConfig
from textinv_ray.util.redact import redact

_MOST_REDIRECTS = 10
_REDIRECTS = {301, 302, 303, 307, 308}
_CHUNK = 2**20
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class StatusError(Exception):
    """The server answered with a status that isn't 200."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"HTTP status {status}")


class RefusedError(Exception):
    """Not fetched, and not to be tried again: a redirect that isn't allowed, a loop, a private address."""


def read(uri: str, config: DataConfig, *, limit: int, timeout_s: float) -> bytes:
    """The first `limit` bytes of `uri`, an http or https URI, redirects followed.

    Raises TimeoutError when they haven't all come after `timeout_s` seconds, StatusError, RefusedError, and errors of
    aiohttp.
    """
    loop = fsspec.asyn.get_loop()  # a thread of fsspec's; the caller may have a running loop of its own
    task = asyncio.run_coroutine_threadsafe(asyncio.wait_for(_follow(uri, config, limit), timeout_s), loop)
    try:
        return task.result()
    except asyncio.TimeoutError:  # a class of its own before Python 3.11
        raise TimeoutError from None
    except BaseException:
        task.cancel()
        raise


async def _follow(uri: str, config: DataConfig, limit: int) -> bytes:
    settings = fsspec.config.conf.get(urlsplit(uri).scheme.lower(), {}).get("client_kwargs", {})
    connector = aiohttp.TCPConnector(resolver=_PublicResolver()) if config.refuse_private_addresses else None
    options = {**settings, "connector": connector, "cookie_jar": aiohttp.DummyCookieJar()}
    seen: set[str] = set()
    async with aiohttp.ClientSession(**options) as session:
        while True:
            _check_hop(uri, seen, config)
            seen.add(uri)
            async with session.get(uri, allow_redirects=False) as answer:
                target = answer.headers.get("Location")
                if answer.status not in _REDIRECTS or target is None:
                    return await _body(answer, limit)
                uri = urljoin(uri, target)


def _check_hop(uri: str, seen: set[str], config: DataConfig) -> None:
    """Raises RefusedError if `uri` may not be fetched. `seen`: the URIs that led here."""
    by = "redirects to" if seen else "names"
    protocol = urlsplit(uri).scheme.lower()
    if protocol not in ("http", "https") or protocol not in config.allowed_protocols:
        allowed = ", ".join(name for name in config.allowed_protocols if name in ("http", "https"))
        raise RefusedError(
            f"{by} {redact(uri)}: protocol {protocol!r} is not among data.allowed_protocols, "
            f"or not one of the web ({allowed})"
        )
    if uri in seen:
        raise RefusedError(f"redirects in a circle, to {redact(uri)} again")
    if len(seen) > _MOST_REDIRECTS:
        raise RefusedError(f"redirects more than {_MOST_REDIRECTS} times")
    host = urlsplit(uri).hostname or ""
    if config.refuse_private_addresses and _is_private(host):
        raise RefusedError(_refusal(by, host))


async def _body(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    if answer.status != 200:
        raise StatusError(answer.status)
    parts, left = [], limit
    async for part in answer.content.iter_chunked(_CHUNK):
        parts.append(part[:left])
        left -= len(part)
        if left <= 0:
            break
    return b"".join(parts)


class _PublicResolver(AbstractResolver):
    """Looks names up as usual, and refuses those with an address that isn't of the public internet."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)  # type: ignore[arg-type]
        if any(_is_private(entry["host"]) for entry in found):
            raise RefusedError(_refusal("names", host))
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _is_private(host: str) -> bool:
    """Whether a host is an IP address that isn't of the public internet; false for names."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        else:
            address = address.ipv4_mapped or address.sixtofour or address
    return not address.is_global or address.is_multicast


def _refusal(by: str, host: str) -> str:
    return f"{by} {host}, which is a private address (data.refuse_private_addresses)"
