"""JSON answers: strict, with an ETag, and errors as {"error": message}."""

from __future__ import annotations

import hashlib

from starlette.requests import Request
from starlette.responses import Response

from distillation.dashboard.reading import dumps


def answer(value: object, status: int = 200) -> Response:
    """`value` as JSON."""
    return Response(dumps(value), status, media_type="application/json")


def error(message: str, status: int) -> Response:
    """An error that the reader is told."""
    return answer({"error": message}, status)


def tagged(request: Request, text: str) -> Response:
    """JSON text with its ETag, or 304 when the browser has it already."""
    body = text.encode()
    tag = f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    known = [
        t.strip().removeprefix("W/") for t in request.headers.get("if-none-match", "").split(",")
    ]
    if tag in known:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")
