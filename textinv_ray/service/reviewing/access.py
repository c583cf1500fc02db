"""Who may use the page of `textinv review`: whoever has the token of its URL, from the page itself."""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "textinv_review"
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """ASGI middleware that refuses requests without the token, of other sites, and to other host names.

    The token comes as `?token=`, as a cookie that the page got for it, or as `Authorization: Bearer`.
    """

    def __init__(self, app: ASGIApp, *, token: str, is_loopback: bool) -> None:
        """is_loopback: whether only names of this machine itself are answered (against DNS rebinding)."""
        self._app = app
        self._token = token
        self._is_loopback = is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 403."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        why = self._refusal(Headers(scope=scope), scope)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        if why:
            await PlainTextResponse(why + "\n", status_code=403)(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)

    def _refusal(self, headers: Headers, scope: Scope) -> str:
        """Why a request is refused; empty when it isn't."""
        host = headers.get("host", "")
        if self._is_loopback and not is_local_name(host):
            return "this address is for names of this machine only"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return "requests of other sites are refused"
        is_opened = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_opened:
            return "requests of other sites are refused"
        if not any(
            hmac.compare_digest(token.encode(), self._token.encode()) for token in _tokens(headers, scope)
        ):
            return "open the whole URL that `textinv review` printed: it has the token"
        return ""


def is_local_name(host: str) -> bool:
    """Whether a Host header names the loopback interface."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def cookie_name(port: int) -> str:
    """Browsers share cookies among the ports of a host: two reviews at once need two names."""
    return f"{COOKIE}_{port}"


def _tokens(headers: Headers, scope: Scope) -> list[str]:
    """The tokens that a request brings."""
    found = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        found.append(value.strip())
    # A browser brings the cookies of all ports of this machine, and other programs' have values of any kind
    cookies = cookie_parser(headers.get("cookie", ""))
    return found + [value for name, value in cookies.items() if name.startswith(COOKIE)]
