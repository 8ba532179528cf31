"""The JSON that the pages ask for."""

from __future__ import annotations

import json
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from distillation.dashboard import comparison, curves, details, lineage, notes, transfer
from distillation.dashboard.answers import answer, error, tagged
from distillation.dashboard.catalogue import Catalogue, Entry, Listing
from distillation.dashboard.reading import dumps
from distillation.dashboard.series import SeriesCache
from distillation.errors import ConfigError, RunError
from distillation.runs.places import METRICS

_BODY = 64 << 10  # bytes: 10,000 characters, escaped
_MOST_RUNS = 200  # that are compared at once


class Api:
    """The endpoints over one run store."""

    def __init__(self, root: Path) -> None:
        self.catalogue = Catalogue(root)
        self.series = SeriesCache()

    def routes(self) -> list[Route]:
        """The routes under /api."""
        return [
            Route("/api/runs", self.runs),
            Route("/api/runs/{uuid}", self.run),
            Route("/api/runs/{uuid}/curves", self.curves),
            Route("/api/runs/{uuid}/log", self.log),
            Route("/api/runs/{uuid}/files/{name}", self.file),
            Route("/api/runs/{uuid}/note", self.note, methods=["POST"], max_body_size=_BODY),
            Route("/api/runs/{uuid}/hide", self.hide, methods=["POST"], max_body_size=_BODY),
            Route("/api/compare", self.compare),
            Route("/api/lineage", self.lineage),
            Route("/api/transfer", self.transfer),
        ]

    def entry(self, uuid: str) -> Entry:
        """The run with this UUID. Raises RunError."""
        entry = self.catalogue.find(uuid)
        if entry is None:
            raise RunError(f"there is no run {uuid[:40]!r} here")
        return entry

    def runs(self, request: Request) -> Response:
        """All runs, newest first."""
        return tagged(request, self.catalogue.listing().text())

    def run(self, request: Request) -> Response:
        """Everything that is known of one run."""
        entry = self.entry(request.path_params["uuid"])
        series = self.series.read(entry.path / METRICS)
        children = self.catalogue.listing().children(entry.uuid)
        return tagged(request, dumps(details.details(entry, series, children)))

    def curves(self, request: Request) -> Response:
        """Curves with at most `points` each."""
        entry = self.entry(request.path_params["uuid"])
        points = _points(request.query_params.get("points"))
        series = self.series.read(entry.path / METRICS)
        found = curves.curves(series, _names(request), points)
        body = {
            "curves": found,
            "size": series.size,
            "updated": series.updated or entry.facts["updated"],
            "damaged": len(series.damaged),
        }
        return tagged(request, dumps(body))

    def log(self, request: Request) -> Response:
        """The end of the run's log."""
        entry = self.entry(request.path_params["uuid"])
        tail = details.checked_tail(request.query_params.get("tail"))
        return tagged(request, dumps(details.log_tail(entry.path, tail)))

    def file(self, request: Request) -> Response:
        """The text of a file in the run's folder."""
        entry = self.entry(request.path_params["uuid"])
        return PlainTextResponse(details.file_text(entry.path, request.path_params["name"]))

    def compare(self, request: Request) -> Response:
        """Runs side by side."""
        listing = self.catalogue.listing()
        chosen, missing = self._chosen(request, listing)
        found = comparison.comparison(listing, chosen)
        return tagged(request, dumps({**found, "missing": missing}))

    def lineage(self, request: Request) -> Response:
        """Who learned from whom."""
        return tagged(request, dumps(lineage.lineage(self.catalogue.listing())))

    def transfer(self, request: Request) -> Response:
        """What the students have of their teachers."""
        listing = self.catalogue.listing()
        chosen, missing = self._chosen(request, listing)
        return tagged(request, dumps({**transfer.transfer(listing, chosen), "missing": missing}))

    async def note(self, request: Request) -> Response:
        """Write the run's note."""
        return await self._write(request, "text")

    async def hide(self, request: Request) -> Response:
        """Hide the run in the list, or show it again."""
        return await self._write(request, "hidden")

    async def _write(self, request: Request, key: str) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return error("send application/json", 415)
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise ConfigError("the request holds no JSON") from None
        if not isinstance(body, dict) or set(body) != {key} or body[key] is None:
            raise ConfigError(f'send {{"{key}": …}}')
        return await run_in_threadpool(self._written, request.path_params["uuid"], key, body[key])

    def _written(self, uuid: str, key: str, value: object) -> Response:
        notes.write(self.entry(uuid).path, **{key: value})
        return answer(self.entry(uuid).facts)

    def _chosen(self, request: Request, listing: Listing) -> tuple[list[Entry], list[str]]:
        """(the runs that `?runs=a,b` names, those that are not here). Raises RunError."""
        asked = request.query_params.get("runs", "")
        uuids = list(dict.fromkeys(uuid for uuid in asked.split(",") if uuid))
        if not uuids:
            raise ConfigError("name runs: ?runs=UUID,UUID")
        if len(uuids) > _MOST_RUNS:
            raise ConfigError(f"at most {_MOST_RUNS} runs at once, not {len(uuids)}")
        chosen = [listing.entries[uuid] for uuid in uuids if uuid in listing.entries]
        missing = [uuid for uuid in uuids if uuid not in listing.entries]
        if not chosen:
            raise RunError(f"there is no run {missing[0][:40]!r} here")
        return chosen, missing


def _names(request: Request) -> list[str] | None:
    """`?names=a,b`, or `?name=` once for each: a name may hold a comma."""
    names = request.query_params.getlist("name")
    for several in request.query_params.getlist("names"):
        names += [name for name in several.split(",") if name]
    given = "name" in request.query_params or "names" in request.query_params
    return list(dict.fromkeys(names)) if given else None


def _points(text: str | None) -> int:
    if text is None:
        return 1000
    fits = text.isascii() and text.isdigit() and len(text) < 9
    if not fits or not curves.FEWEST <= int(text) <= curves.MOST:
        raise ConfigError(
            f"points is a number from {curves.FEWEST} to {curves.MOST}, not {text[:40]!r}"
        )
    return int(text)
