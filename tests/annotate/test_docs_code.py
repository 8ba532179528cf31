"""The Python of the documentation is run, page by page, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["losses.md", *(f"doors/{n}.md" for n in ("experiment", "script", "trainer", "toolkit"))]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILLATION_RUNS", str(tmp_path / "runs"))
    text = (DOCS / page).read_text(encoding="utf-8")
    names = {"__name__": "page"}
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M))
    assert blocks
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(DOCS / page), "exec"), names)
