"""A Jupyter notebook as a page: its Markdown beside its code, its outputs below the code."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from distillation.annotate.notes import Page, render
from distillation.annotate.page import Words, highlight_lines

_COLORS = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
_IMAGES = ("image/png", "image/jpeg")


def read(source: str) -> list[tuple[str, str, int, list[dict[str, Any]], str]]:
    """(kind, text, line in the file, outputs, `alt` of its metadata) of each cell.

    Raises `ValueError` for what is no notebook of format 4.
    """
    try:
        notebook = json.loads(source)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ValueError("a notebook of format 4 has a list of cells")
    found, at = [], 0
    for cell in cells:
        text = _joined(cell.get("source"))
        # Where the text stands in the file, so that a problem names its line
        opening = json.dumps(text.split("\n")[0], ensure_ascii=False)[:-1]
        here = source.find(opening, at)
        at = at if here < 0 else here
        outputs = cell.get("outputs")
        outputs = [o for o in outputs if isinstance(o, dict)] if isinstance(outputs, list) else []
        metadata = cell.get("metadata")
        alt = _joined(metadata.get("alt")) if isinstance(metadata, dict) else ""
        line = source.count("\n", 0, at) + 1
        found.append((str(cell.get("cell_type")), text, line, outputs, alt))
        at += len(text) if here >= 0 else 0
    return found


def notebook_page(source: str, page: Page, name: str) -> tuple[tuple[str, str], Words]:
    """The HTML of a notebook, introduction and rows, and what the search finds there.

    The Markdown before the first code introduces it; the file itself is offered as `name`.
    Outputs are shown as text or as pictures, never as HTML. What a cell draws is told, to those
    who do not see it, by `alt` in the cell's metadata: `"metadata": {"alt": "two curves …"}`.
    """
    words, rows, notes, intro = Words(), [], "", None
    for kind, text, line, outputs, alt in read(source):
        if kind == "markdown":
            notes += render(text, line, page)
        elif kind == "code" and text.strip():
            words.add(notes)
            if intro is None:
                intro, notes = notes, ""
            rows.append(_row(notes, text, outputs, alt))
            notes = ""
    words.add(notes)
    if intro is None:
        intro, notes = notes, ""
    if notes:
        rows.append(_row(notes))
    link = f'<p><a href="{quote(name)}" download>This notebook, to run</a></p>'
    return (f'<article class="prose">{intro}{link}</article>', "".join(rows)), words


def _row(notes: str, code: str = "", outputs: Iterable[dict[str, Any]] = (), alt: str = "") -> str:
    lines = highlight_lines(code.strip("\n"), ()) if code else []
    shown = "".join(f'<span class="l">{line}\n</span>' for line in lines)
    below = "".join(_output(output, alt) for output in outputs)
    left = f'<div class="note prose">{notes}</div>' if notes else '<div class="note"></div>'
    right = f'<div class="code cell"><pre><code>{shown}</code></pre>{below}</div>' if code else ""
    return f'<section class="row">{left}{right}</section>\n'


def _output(output: dict[str, Any], alt: str) -> str:
    if output.get("output_type") == "error":
        trace = output.get("traceback")
        return _text("\n".join(map(str, trace if isinstance(trace, list) else [])))
    data = output.get("data")
    data = data if isinstance(data, dict) else {}
    for kind in _IMAGES:
        packed = "".join(_joined(data.get(kind)).split())
        if packed and re.fullmatch(r"[\w+/=]+", packed):
            address = f"data:{kind};base64,{packed}"
            shown = html.escape(alt or "what the code above draws")
            return f'<img class="output" src="{address}" alt="{shown}">'
    return _text(_joined(output.get("text") or data.get("text/plain")))


def _text(text: str) -> str:
    shown = html.escape(_COLORS.sub("", text).strip("\n"))
    return f'<pre class="output">{shown}</pre>' if shown else ""


def _joined(text: Any) -> str:
    """Text as notebooks keep it: whole, or in lines."""
    return "".join(map(str, text)) if isinstance(text, list) else str(text or "")
