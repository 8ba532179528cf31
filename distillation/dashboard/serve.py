"""The dashboard's port: who can reach it, and the server on it."""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from distillation.dashboard.app import create_app
from distillation.dashboard.security import LOOPBACK
from distillation.errors import ConfigError

_TRIED = 100  # ports above a taken one


@dataclass(frozen=True)
class Door:
    """A port that is ours: its socket, the hosts in a URL that lead there, and the token.

    `url` is for whoever reaches the port, `here` for a browser on this machine.
    """

    socket: socket.socket
    hosts: tuple[str, ...]
    token: str | None
    url: str
    here: str


def open_door(host: str, port: int) -> Door:
    """Bind `host`:`port` (0 takes any free port); elsewhere than the loopback with a fresh token.

    Raises:
        ConfigError: the port is taken (the next free one is named), or the host is none of this
            machine's addresses.
    """
    family, address = _resolved(host)
    bound = _bind(family, address, port, host)
    port = bound.getsockname()[1]
    if ipaddress.ip_address(address).is_loopback:
        shown = host if host.lower() in LOOPBACK else address
        url = f"http://{_in_url(shown)}:{port}/"
        return Door(bound, (*LOOPBACK, shown, host), None, url, url)
    token = secrets.token_urlsafe(32)
    everywhere = ipaddress.ip_address(address).is_unspecified
    shown = socket.gethostname() if everywhere else host
    names = (*LOOPBACK, host, shown, socket.gethostname(), socket.getfqdn())
    url = f"http://{_in_url(shown)}:{port}/?token={token}"
    loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    here = f"http://{_in_url(loopback)}:{port}/?token={token}" if everywhere else url
    return Door(bound, names, token, url, here)


def serve(
    root: Path, door: Door, *, open_browser: bool = False, say: Callable[[str], object] = print
) -> None:
    """Answer at `door` with the runs under `root`, until interrupted; `say` gets the address.

    Raises:
        ConfigError: plotly's script is not installed.
    """
    try:
        app = create_app(root, token=door.token, allowed_hosts=door.hosts)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # addresses hold the token
            proxy_headers=False,
            server_header=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=2,
        )

        def ready() -> None:
            say(f"{root} at {door.url}  (Ctrl-C ends it)")
            if open_browser:  # it may take its time, or there may be none
                threading.Thread(target=webbrowser.open, args=(door.here,), daemon=True).start()

        # A thousand runs take half a second, the first time: begin before a browser asks
        threading.Thread(target=app.state.catalogue.listing, daemon=True).start()
        with suppress(KeyboardInterrupt):
            _Server(config, ready).run(sockets=[door.socket])
    finally:
        door.socket.close()


class _Server(uvicorn.Server):
    """A server that says when it can be reached."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()


def _resolved(host: str) -> tuple[socket.AddressFamily, str]:
    """The family and the address of `host`, IPv4 first."""
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host}: {reason}; 127.0.0.1 is this machine alone") from None
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    return family, address[0].partition("%")[0]


def _bind(family: socket.AddressFamily, address: str, port: int, host: str) -> socket.socket:
    try:
        return _bound(family, address, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} is taken{_free(family, address, port)}") from None
        advice = "; ports from 1024 up need no rights" if error.errno == errno.EACCES else ""
        reason = error.strerror or error
        raise ConfigError(f"cannot answer at {host} port {port}: {reason}{advice}") from None


def _free(family: socket.AddressFamily, address: str, port: int) -> str:
    for other in range(port + 1, min(port + _TRIED, 65536)):
        try:
            _bound(family, address, other).close()
        except OSError:
            continue
        return f"; {other} is free: --port {other}"
    return "; --port 0 takes any free one"


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where reuse would share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port))
        bound.listen(128)
    except BaseException:
        bound.close()
        raise
    return bound


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
