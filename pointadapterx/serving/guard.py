"""Who may ask, and what a browser may do with the answers."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = {"/", "/healthz", "/page.js", "/page.css", "/viewer.js"}
"""Paths that need no token: they say nothing of what is served."""
LOCAL = {"localhost", "127.0.0.1", "::1"}
HEADERS = {
    # Nothing may be fetched from elsewhere, and nothing within the page is a script.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Guard:
    """Checks of every request, before its body is read.

    Attributes:
        app: behind it.
        token: that requests have to bear; None: none.
        hosts: names that the server may be asked by; None: any.
    """

    app: ASGIApp
    token: str | None
    hosts: frozenset[str] | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refused(scope["path"], Headers(scope=scope))
        await (refused or self.app)(scope, receive, guarded)

    def _refused(self, path: str, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        # A page of another site may have its name lead here (DNS rebinding), or send requests without asking.
        if self.hosts is not None and host_of(host) not in self.hosts:
            return PlainTextResponse("error: the request names another host than this server's\n", 403)
        origin = headers.get("origin")
        if origin is not None and _place_of(origin) != host:
            return PlainTextResponse("error: pages of other sites may not use this server\n", 403)
        if self.token is None or path in OPEN:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if hmac.compare_digest(given.encode(), self.token.encode()) and scheme.lower() == "bearer":
            return None
        needed = {"WWW-Authenticate": "Bearer"}
        return PlainTextResponse("error: a token is needed: Authorization: Bearer TOKEN\n", 401, needed)


def _place_of(origin: str) -> str | None:
    """Host and port of a header ``Origin``; None where it names no place."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def host_of(header: str) -> str:
    """The host of a header ``Host`` without its port: ``::1`` of ``[::1]:8000``."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host that is listened at."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
