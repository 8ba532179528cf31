"""Notebooks as pages: Markdown beside code, outputs below it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from distillation.annotate import annotate
from distillation.errors import ConfigError

ROOT = Path(__file__).parents[2]
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}


def code(text: str, *outputs: dict) -> dict:
    return {"cell_type": "code", "metadata": {}, "source": text, "outputs": list(outputs)}


def stream(text: str) -> dict:
    return {"output_type": "stream", "name": "stdout", "text": [text]}


@pytest.fixture
def site(tmp_path, monkeypatch):
    """`site(cells)` makes the site of a notebook; gives its page and the problems."""
    monkeypatch.chdir(tmp_path)

    def make(*cells: dict) -> tuple[str, list[str]]:
        notebook = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (tmp_path / "a.ipynb").write_text(json.dumps(notebook, indent=1, ensure_ascii=False))
        found = annotate([Path("a.ipynb")], Path("site"))[1]
        page = Path("site/a.ipynb.html")
        return page.read_text() if page.exists() else "", [str(p) for p in found]

    return make


def rows(page: str) -> list[str]:
    return re.findall(r'<section class="row">.*?</section>', page, re.S)


def test_the_first_markdown_introduces_and_the_rest_stands_beside_its_code(site):
    page, problems = site(
        markdown("# A notebook\n\nWith $T^2$."),
        code("x = 1"),
        markdown("## Then"),
        code("print(x)", stream("1\n")),
        markdown("And so on."),
    )
    assert not problems
    first, second, third = rows(page)
    assert "A notebook" in page.partition(first)[0] and "<math" in page.partition(first)[0]
    assert "Then" in second and "print" in second and '<pre class="output">1</pre>' in second
    assert "And so on." in third and 'class="code' not in third
    assert "<title>A notebook" in page


def test_pictures_are_shown_and_html_is_not(site):
    picture = {"image/png": PIXEL + "\n", "text/plain": ["<Figure>"]}
    table = {"text/html": "<script>alert(1)</script>", "text/plain": "a  <b>"}
    page, _ = site(
        code("draw()", {"output_type": "display_data", "data": picture}),
        code("frame", {"output_type": "execute_result", "data": table}),
    )
    assert f'src="data:image/png;base64,{PIXEL}"' in page
    assert "a  &lt;b&gt;" in page and "alert" not in page and "&lt;Figure" not in page


@pytest.mark.parametrize(
    ("metadata", "alt"),
    [
        ({"alt": 'two "curves"'}, "two &quot;curves&quot;"),
        ({}, "what the code above draws"),
        (None, "what the code above draws"),
    ],
)
def test_a_cell_says_in_words_what_it_draws(site, metadata, alt):
    drawn = {"output_type": "display_data", "data": {"image/png": PIXEL}}
    assert f' alt="{alt}">' in site({**code("draw()", drawn), "metadata": metadata})[0]


def test_an_error_is_shown_without_its_colours(site):
    error = {"output_type": "error", "traceback": ["\x1b[0;31mValueError\x1b[0m: no <such>"]}
    assert '<pre class="output">ValueError: no &lt;such&gt;</pre>' in site(code("f()", error))[0]


def test_a_problem_names_its_line_in_the_file(site, tmp_path):
    _, problems = site(code("# All well."), markdown("All well.\n\nSee [there](gone.md), “ä”."))
    # An earlier cell that holds the same words is not taken for it
    (line,) = [int(p.split(":")[1]) for p in problems if "dead link" in p]
    written = (tmp_path / "a.ipynb").read_text().split("\n")
    assert "See [there]" in written[line - 1]


def test_the_search_finds_what_a_notebook_says(site):
    site(markdown("# Title\n\nfirst words"), code("x = 1"), markdown("## Part\n\nlater words"))
    index = Path("site/_annotate/search.js").read_text()
    assert '"title","Title","first words"]' in index
    assert '"part","Part","later words"]' in index


def test_the_notebook_itself_is_offered(site, tmp_path):
    page, _ = site(markdown("# One"), code("x = 1"))
    assert 'href="a.ipynb" download' in page
    assert Path("site/a.ipynb").read_bytes() == (tmp_path / "a.ipynb").read_bytes()


@pytest.mark.parametrize("name", ["a#1.ipynb", "50%20.ipynb", "README.ipynb", "x.y.ipynb"])
def test_the_notebook_is_offered_whatever_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(json.dumps({"cells": [code("x = 1")]}))
    assert annotate([Path(name)], Path("site")) == (1, [])
    page = Path("site", f"{name}.html").read_text()
    (link,) = re.findall(r'href="([^"]+)" download', page)
    assert unquote(link) == name and not re.search("[#?]", link)
    assert Path("site", name).exists()


def test_a_notebook_may_have_the_name_of_a_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text('"""# The script"""\n')
    Path("train.ipynb").write_text(json.dumps({"cells": [markdown("# The notebook")]}))
    assert annotate([tmp_path], Path("site")) == (2, [])
    assert "The script" in Path("site/train.html").read_text()
    assert "The notebook" in Path("site/train.ipynb.html").read_text()


def test_each_line_of_a_docstring_is_a_line_of_the_page(site):
    page, _ = site(code('def f():\n    """One\n    two\n    """\n    return 1'))
    lines = re.findall(r'<span class="l">(.*?)\n</span>', page)
    assert len(lines) == 5
    assert all(line.count("<span") == line.count("</span") for line in lines)
    assert '<span class="s">    two</span>' in lines[2]


def test_a_picture_inside_the_notebook_is_a_problem(site):
    _, problems = site(markdown("![x](attachment:a.png)"), code("x = 1"))
    assert any("attachment:a.png is inside the notebook" in problem for problem in problems)


@pytest.mark.parametrize(
    "cell",
    [
        {"outputs": True},
        {"outputs": [{"output_type": "error", "traceback": None}]},
        {"outputs": [{"output_type": "display_data", "data": []}]},
        {"outputs": [{"output_type": "display_data", "data": {"image/png": None}}]},
        {"outputs": [1], "source": None},
    ],
)
def test_odd_outputs_are_left_out(site, cell):
    page, problems = site({**code("x = 1"), **cell}, code("y = 1"))
    assert not problems and 'class="output"' not in page and "None" not in page


@pytest.mark.parametrize("text", ["{", "[]", '{"worksheets": []}', '{"cells": [1]}'])
def test_what_is_no_notebook_is_a_problem(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    Path("a.ipynb").write_text(text)
    with pytest.raises(ConfigError, match=r"can be shown: a\.ipynb:1: no notebook"):
        annotate([Path("a.ipynb")], Path("site"))
    Path("b.md").write_text("# B\n\nSee [a](a.ipynb).\n")
    _, problems = annotate([Path("a.ipynb"), Path("b.md")], Path("site"))
    assert any("no notebook" in str(problem) for problem in problems)


def test_links_between_notebooks_and_pages_lead_to_pages(tmp_path):
    annotate([ROOT / "notebooks"], tmp_path / "site", root=ROOT)
    index = (tmp_path / "site" / "notebooks" / "index.html").read_text()
    assert 'href="01_main_job.ipynb.html"' in index and not re.search(r'href="[^"]*ipynb"', index)
