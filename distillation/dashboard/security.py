"""Who may ask: the Host and Origin of a request, and the token where others can reach the port.

A page elsewhere can make a reader's browser send requests to 127.0.0.1, and a name that is made to
point there (DNS rebinding) even lets it read the answers. So the Host must be one that we are known
by, and a request that another page caused is refused.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Collection
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self'; "
    "style-src 'self' 'unsafe-inline'; "  # Plotly adds a style element
    "img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware that refuses what is not asked by the reader, and sets the headers.

    `hosts` are the names in a URL that lead here (without port). With `token`, addresses are hosts
    too, since no name can be made to look like one, and every request needs the token: as
    `Authorization: Bearer`, as cookie, or once as `?token=`, which sets the cookie.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], token: str | None = None) -> None:
        self.app = app
        self.hosts = {host.lower().rstrip(".") for host in hosts}
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        cookie: str | None = None

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                if cookie is not None:
                    headers.append("Set-Cookie", cookie)
            await send(message)

        answer = self._refusal(scope)
        if answer is None and self.token is not None:
            answer, cookie = self._admission(scope)
        await (self.app if answer is None else answer)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that another page may have caused."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            return _refuse(421, f"unknown host {host[:100]!r}; open the address that was printed")
        site = headers.get("sec-fetch-site")
        is_navigation = headers.get("sec-fetch-mode") == "navigate"
        reads = scope["method"] in ("GET", "HEAD")
        if site in ("cross-site", "same-site") and not (reads and is_navigation):
            return _refuse(403, "the request comes from another page")
        origin = headers.get("origin")
        if origin is not None and not _same_origin(origin, host):
            return _refuse(403, "the request comes from another page")
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name.rstrip(".") in self.hosts:
            return True
        if self.token is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _admission(self, scope: Scope) -> tuple[Response | None, str | None]:
        """(the answer to who has no token, the cookie to set)."""
        headers = Headers(scope=scope)
        port = (scope.get("server") or ("", 0))[1]
        name = f"distillation-{port}"  # cookies know no ports
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._matches(bearer.strip()):
            return None, None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for key, value in query if key == "token"]
        if given and self._matches(given[0]):
            cookie = f"{name}={self.token}; Path=/; HttpOnly; SameSite=Strict"
            if scope["path"].startswith("/api/") or scope["method"] not in ("GET", "HEAD"):
                return None, cookie
            return _without_token(scope["path"], query), cookie
        if self._matches(cookie_parser(headers.get("cookie", "")).get(name, "")):
            return None, None
        return _refuse(
            401, "this dashboard needs its token: open the address that was printed"
        ), None

    def _matches(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())


def _without_token(path: str, query: list[tuple[str, str]]) -> Response:
    """Go on to the page itself: the token shall not stay in the address.

    A page that sends the reader on, not a redirect: after one that began on another site the
    browser would hold a strict cookie back.
    """
    rest = urlencode([(key, value) for key, value in query if key != "token"])
    target = quote("/" + path.lstrip("/")) + (f"?{rest}" if rest else "")
    safe = target.replace("&", "&amp;").replace('"', "%22").replace("<", "%3C").replace("'", "%27")
    return HTMLResponse(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Dashboard</title>'
        '<link rel="icon" href="/static/icon.svg">'
        f'<meta http-equiv="refresh" content="0;url={safe}">'
        f'<p><a href="{safe}">Open the dashboard</a></p></html>'
    )


def _same_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _refuse(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)
