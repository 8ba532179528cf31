"""The application: which address gives what. Endpoints that read files run in threads."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection
from pathlib import Path

import jinja2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from distillation.dashboard.answers import error
from distillation.dashboard.api import Api
from distillation.dashboard.security import HEADERS, LOOPBACK, Guard
from distillation.errors import CheckpointError, ConfigError, DataError, RunError

PAGES = Path(__file__).with_name("pages")
_STATUS = {
    ConfigError: 400,
    RunError: 404,
    CheckpointError: 409,
    DataError: 415,
    RecursionError: 422,  # JSON nested a thousand deep
}
_TITLES = {
    "/": "runs",
    "/runs/{uuid}": "run",
    "/compare": "compare",
    "/lineage": "lineage",
    "/transfer": "transfer",
}


def create_app(
    root: str | os.PathLike,
    *,
    token: str | None = None,
    allowed_hosts: Collection[str] | None = None,
) -> Starlette:
    """The dashboard over the run store at `root`, as an ASGI application.

    `token` is what every request must bring (none for a port that only this machine reaches),
    `allowed_hosts` the names by which browsers reach it, without port: those of the loopback by
    default.

    Raises:
        ConfigError: plotly's script is not installed.
    """
    api = Api(Path(root))
    pages = Pages(Path(root), api)
    middleware = [Middleware(Guard, hosts=allowed_hosts or LOOPBACK, token=token)]
    if token is not None:  # from afar a thousand runs are a megabyte, each time one changes
        middleware.append(Middleware(GZipMiddleware, compresslevel=4))
    app = Starlette(
        routes=[
            *(Route(path, pages.page(name)) for path, name in _TITLES.items()),
            *api.routes(),
            Route("/static/plotly.min.js", _script(plotly_script())),
            Mount("/static", _Static(directory=PAGES / "static", check_dir=False)),
        ],
        middleware=middleware,
        exception_handlers={
            HTTPException: pages.refused,
            Exception: _crashed,
            **dict.fromkeys(_STATUS, pages.refused),
        },
    )
    app.state.catalogue = api.catalogue
    return app


def plotly_script() -> Path:
    """The script of the installed plotly, whose Python is not imported. Raises ConfigError."""
    found = importlib.util.find_spec("plotly")
    for place in (found and found.submodule_search_locations) or ():
        script = Path(place) / "package_data" / "plotly.min.js"
        if script.is_file():
            return script
    raise ConfigError("distill dashboard needs plotly: pip install 'distillation[dashboard]'")


class Pages:
    """The HTML shells; their scripts ask the API for what they show."""

    def __init__(self, root: Path, api: Api) -> None:
        self.root = root
        self.api = api
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(PAGES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        self.templates = Jinja2Templates(env=environment)

    def page(self, name: str):
        """The endpoint of the page `name`."""

        def endpoint(request: Request) -> Response:
            uuid = request.path_params.get("uuid")
            if uuid is not None:
                self.api.entry(uuid)
            return self._render(request, name, {"uuid": uuid})

        return endpoint

    def refused(self, request: Request, problem: Exception) -> Response:
        """An error that has a reason: JSON for the API, a page for a reader."""
        if isinstance(problem, HTTPException):
            status, message = problem.status_code, str(problem.detail)
            headers = problem.headers
        else:
            kinds = [kind for kind in _STATUS if isinstance(problem, kind)]
            status, message, headers = _STATUS[kinds[0]], str(problem), None
        path = request.url.path
        if path.startswith(("/api/", "/static/")) or request.method not in ("GET", "HEAD"):
            answer = error(message, status)
        else:
            answer = self._render(request, "error", {"status": status, "message": message}, status)
        answer.headers.update(headers or {})
        return answer

    def _render(self, request: Request, name: str, context: dict, status: int = 200) -> Response:
        context = {"page": name, "root": str(self.root), "uuid": None, **context}
        return self.templates.TemplateResponse(request, f"{name}.html", context, status_code=status)


class _Static(StaticFiles):
    """The package's own files; a browser asks each time whether they are the same."""

    def file_response(self, *args, **kwargs) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _script(path: Path):
    def endpoint(request: Request) -> Response:
        headers = {"Cache-Control": "private, max-age=86400"}
        return FileResponse(path, media_type="text/javascript", headers=headers)

    return endpoint


def _crashed(request: Request, problem: Exception) -> Response:
    """An error of our own; the server says on the terminal what it was."""
    return PlainTextResponse("the dashboard failed; its terminal says why", 500, headers=HEADERS)
