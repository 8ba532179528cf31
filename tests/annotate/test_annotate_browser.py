"""Our own site in a real browser: nothing goes wrong, nothing leaves the page's origin."""

from __future__ import annotations

import functools
import http.server
import json
import os.path
import re
import subprocess
import sys
import threading
from pathlib import Path

import chromium
import pytest

from distillation.annotate import annotate

ROOT = Path(__file__).parents[2]
STEP = "experiments/cifar10/distill.html"
PHONE = {"width": 390, "height": 844}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("annotate") / "site"
    command = ["-m", "distillation.cli", "annotate", "docs/site.yaml", "--strict", "--out", out]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    return out, done


@pytest.fixture(scope="module")
def site(made) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def origin(site):
    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    if chromium.executable() is None:
        pytest.skip("no Chromium: install Debian's package chromium")
    with chromium.browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(window, origin):
    """A window that must stay without console errors and without requests to elsewhere."""
    window.errors.clear()
    window.requests.clear()
    yield window
    assert window.errors == []
    assert window.requests
    assert window.outside(origin) == []


def test_our_own_site_has_no_problem(made):
    _, done = made
    assert (done.returncode, done.stderr) == (0, "")


def test_every_document_is_on_our_own_site_and_no_tool(site):
    texts = {path.stem for path in ROOT.glob("docs/*.md")}
    assert {path.stem for path in site.glob("docs/*.html")} == {*texts, "index"}


def test_every_formula_is_visible(tab, origin):
    tab.open(f"{origin}/{STEP}")
    boxes = tab.run(
        "[...document.querySelectorAll('math')].map(m => m.getBoundingClientRect())"
        ".map(b => [b.width, b.height])"
    )
    assert len(boxes) > 10
    assert all(width > 4 and height > 6 for width, height in boxes)


def test_no_formula_is_cut_off_by_the_code_beside_it(tab, origin):
    """One that is wider than its note's paragraph can be scrolled to there."""
    tab.open(f"{origin}/distillation/losses/balancers.html", width=1440)
    # Narrower than any note is, for there to be some
    wide = tab.run("""[...document.querySelectorAll('.note p:has(> math)')]
        .map(p => { p.style.width = '80px'; return p; })
        .filter(p => p.scrollWidth > p.clientWidth)
        .map(p => { p.scrollLeft = 9999; return p.lastElementChild.getBoundingClientRect().right
            <= p.getBoundingClientRect().right + 1; })""")
    assert wide
    assert all(wide)


def test_notes_stand_left_of_their_code_on_a_wide_screen(tab, origin):
    tab.open(f"{origin}/{STEP}", width=1440)
    pairs = tab.run("""[...document.querySelectorAll('.row')]
        .map(r => [r.querySelector('.note'), r.querySelector('.code')])
        .filter(([n, c]) => n.textContent && c)
        .map(([n, c]) => [n.getBoundingClientRect(), c.getBoundingClientRect()])
        .map(([n, c]) => [n.right <= c.left + 1, Math.abs(n.top - c.top) < 2])""")
    assert len(pairs) > 30
    assert all(left and level for left, level in pairs)


def test_notes_stand_above_their_code_on_a_phone(tab, origin):
    tab.open(f"{origin}/{STEP}", **PHONE)
    pairs = tab.run("""[...document.querySelectorAll('.row')]
        .map(r => [r.querySelector('.note'), r.querySelector('.code')])
        .filter(([n, c]) => n.textContent && c)
        .map(([n, c]) => n.getBoundingClientRect().bottom <= c.getBoundingClientRect().top + 1)""")
    assert len(pairs) > 30
    assert all(pairs)


@pytest.mark.parametrize(
    "page",
    [
        STEP,
        "index.html",
        "experiments/index.html",
        "distillation/losses/functional.html",
        "docs/doors/trainer.html",
        "docs/losses.html",
        "docs/training_params.html",
        "notebooks/01_main_job.ipynb.html",
    ],
)
def test_a_narrow_screen_has_no_sideways_scroll(tab, origin, page):
    for width in (390, 320):
        tab.open(f"{origin}/{page}", width=width, height=800)
        assert tab.run("document.documentElement.scrollWidth") <= width
        tab.run("scrollTo(500, 0)")
        assert tab.run("scrollX") == 0


def search(tab, text: str) -> list[str]:
    """The addresses that the search finds, the best first."""
    tab.run(f"""(() => {{
        const input = document.getElementById('page-search');
        input.focus();
        input.value = {json.dumps(text)};
        input.dispatchEvent(new Event('input'));
    }})()""")
    tab.wait("document.querySelector('#page-results > *')")
    links = "[...document.querySelectorAll('#page-results a')]"
    return tab.run(f"{links}.map(a => a.getAttribute('href'))")


def test_the_search_finds_a_term_and_goes_there(tab, origin):
    tab.open(f"{origin}/index.html")
    found = search(tab, "soft targets")
    assert f"{STEP}#soft-targets" in found
    assert tab.run("document.querySelector('#page-results mark').textContent").lower() == "soft"
    tab.run(
        "document.querySelector('#page-results a[href$=\"distill.html#soft-targets\"]').click()"
    )
    tab.wait("location.hash === '#soft-targets' && document.readyState === 'complete'")
    assert tab.run("document.querySelector('#soft-targets').tagName") == "H2"


def test_what_the_search_finds_fits_on_a_phone(tab, origin):
    tab.open(f"{origin}/index.html", **PHONE)
    search(tab, "temperature")
    box = tab.run("document.getElementById('page-results').getBoundingClientRect().toJSON()")
    assert 0 <= box["left"] < box["right"] <= PHONE["width"]


def test_the_search_shows_pages_to_read_before_internals(tab, origin):
    tab.open(f"{origin}/index.html")
    assert re.match(r"(docs|experiments|notebooks)/|index", search(tab, "temperature")[0])


def test_a_search_for_what_is_not_there_says_so(tab, origin):
    tab.open(f"{origin}/index.html")
    assert search(tab, "<img src=x>") == []
    assert "<img src=x>" in tab.run("document.querySelector('#page-results').textContent")


def test_a_click_on_a_name_lights_up_its_uses_and_a_second_one_goes_there(tab, origin):
    tab.open(f"{origin}/{STEP}")
    name = "[...document.querySelectorAll('.code a')].find(a => a.textContent === 'build_model')"
    press = "{bubbles: true, cancelable: true, detail: 1}"
    tab.run(f"{name}.dispatchEvent(new MouseEvent('click', {press}))")
    assert tab.run("document.querySelectorAll('.lit').length") == 2
    assert "build_model" in tab.run("document.getElementById('page-uses').textContent")
    tab.run(f"{name}.dispatchEvent(new MouseEvent('click', {press}))")
    tab.wait("location.pathname.endsWith('/experiments/classification.html')")
    tab.wait("document.readyState === 'complete'")
    assert tab.run("location.hash") == "#build_model"


def test_enter_on_a_name_goes_to_its_definition(tab, origin):
    tab.open(f"{origin}/{STEP}")
    tab.run("[...document.querySelectorAll('.code a')].find(a => a.text === 'build_model').focus()")
    tab.press("Enter")
    tab.wait("location.pathname.endsWith('/experiments/classification.html')")


def test_what_is_lit_up_is_announced(tab, origin):
    tab.open(f"{origin}/{STEP}")
    bar = "document.getElementById('page-uses')"
    # What is not displayed when words are added to it says nothing
    assert tab.run(f"getComputedStyle({bar}).display") != "none"
    assert tab.run(f"{bar}.getBoundingClientRect().width") == 0
    tab.run(
        "document.querySelector('.code span[data-n]')"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true, detail: 1}))"
    )
    assert tab.run(f"{bar}.getAttribute('role')") == "status"
    assert "here" in tab.run(f"{bar}.textContent")
    tab.press("Escape")
    assert tab.run(f"{bar}.textContent") == ""


def test_the_theme_follows_the_system_until_one_is_chosen(tab, origin):
    ground = "getComputedStyle(document.body).backgroundColor"
    tab.open(f"{origin}/index.html", dark=True)
    dark = tab.run(ground)
    tab.open(f"{origin}/index.html", dark=False)
    light = tab.run(ground)
    assert light != dark
    tab.run("document.getElementById('page-theme').click()")
    assert tab.run(ground) == dark
    tab.open(f"{origin}/{STEP}", dark=False)
    assert tab.run(ground) == dark
    tab.run("localStorage.clear()")


@pytest.mark.parametrize("chosen", ["", "dark"])
def test_what_is_printed_is_dark_on_white_whatever_the_theme(tab, origin, chosen):
    tab.open(f"{origin}/{STEP}", dark=True, media="print")
    tab.run(f"document.documentElement.dataset.theme = '{chosen}'")
    style = "getComputedStyle(document.querySelector('.code .{}'))"
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.run(f"{style.format('l')}.color") == "rgb(0, 0, 0)"
    strings = tab.run(f"{style.format('s')}.color")
    assert max(map(int, re.findall(r"\d+", strings))) < 128, strings


def test_a_phone_shows_the_pages_on_demand(tab, origin):
    tab.open(f"{origin}/{STEP}", **PHONE)
    shown = "getComputedStyle(document.getElementById('page-sidebar')).display !== 'none'"
    assert not tab.run(shown)
    tab.run("document.getElementById('page-menu').click()")
    assert tab.run(shown)


def test_the_menu_of_a_phone_fills_the_window_and_is_scrolled(tab, origin):
    tab.open(f"{origin}/{STEP}", **PHONE)
    tab.run("document.getElementById('page-menu').click()")
    menu = "document.getElementById('page-sidebar')"
    box = tab.run(f"{menu}.getBoundingClientRect().toJSON()")
    assert (box["left"], box["right"], box["bottom"]) == (0, PHONE["width"], PHONE["height"])
    bar = tab.run("document.querySelector('.bar').getBoundingClientRect().bottom")
    assert tab.run(f"{menu}.querySelector('a').getBoundingClientRect().top") > bar
    tab.run(f"{menu}.querySelectorAll('details').forEach(d => {{ d.open = true; }})")
    wheel = {"type": "mouseWheel", "x": 200, "y": 400, "deltaX": 0, "deltaY": 300}
    tab.send("Input.dispatchMouseEvent", **wheel)
    tab.wait(f"{menu}.scrollTop > 0")
    tab.run(f"{menu}.scrollTop = 1e6")
    last = f"[...{menu}.querySelectorAll('a')].at(-1).getBoundingClientRect()"
    assert tab.run(f"{last}.bottom") <= PHONE["height"]
    assert tab.run("scrollY") == 0
    # Nor does the page show below a short one
    tab.run(f"{menu}.replaceChildren()")
    assert tab.run(f"{menu}.getBoundingClientRect().bottom") == PHONE["height"]


@pytest.mark.parametrize("width", [390, 320])
def test_the_name_of_the_site_is_whole_on_a_phone(tab, origin, width):
    tab.open(f"{origin}/index.html", width=width, height=800)
    home = "document.querySelector('.home')"
    assert tab.run(f"{home}.scrollWidth <= {home}.clientWidth")
    assert tab.run(f"{home}.getBoundingClientRect().bottom") < tab.run(
        "document.querySelector('.bar').getBoundingClientRect().bottom"
    )


def test_figures_in_a_table_stand_below_each_other(tab, origin):
    tab.open(f"{origin}/index.html")
    cell = "[...document.querySelectorAll('td')].find(c => c.textContent === '140,778')"
    assert tab.run(f"getComputedStyle({cell}).textAlign") == "right"


def test_every_link_between_pages_of_the_site_leads_to_its_place(site):
    """In the pages as written: names, sidebars, neighbours, contents."""
    files = {str(p) for p in site.rglob("*")}
    texts = {p: p.read_text() for p in site.rglob("*.html")}
    ids = {str(p): re.findall(r' id="([^"]*)"', text) for p, text in texts.items()}
    assert len(ids) > 200
    assert [page for page, found in ids.items() if len(found) > len(set(found))] == []
    for page, text in texts.items():
        for href in set(re.findall(r'href="([^"]*)"', text)):
            if re.match(r"\w+:", href):
                continue
            path, _, at = href.partition("#")
            target = os.path.normpath(page.parent / path) if path else str(page)
            assert target in files, f"{page}: {href}"
            assert not at or at in ids[target], f"{page}: {href}"


def test_no_element_has_what_the_pages_policy_refuses(site):
    for page in site.rglob("*.html"):
        assert not re.findall(r"<\w[^>]* (?:style|on\w+)=", page.read_text()), page


def test_a_page_reads_from_a_file_without_a_server(window, site):
    window.errors.clear()
    window.requests.clear()
    window.open(f"file://{site}/{STEP}")
    window.run("document.getElementById('page-search').focus()")
    window.wait("window.searchIndex")
    assert window.errors == []
    assert window.outside(f"file://{site}/") == []


def test_the_search_finds_the_singular_of_a_word(window, tmp_path):
    (tmp_path / "page.md").write_text(
        "# Distillation\n\nMulti-teacher losses: a class of batches.\n"
    )
    annotate([tmp_path / "page.md"], tmp_path / "site")
    window.open(f"file://{tmp_path}/site/page.html")
    for text in ("multi-teachers", "losses", "classes", "class batches"):
        assert search(window, text) == ["page.html#distillation"], text
    assert search(window, "bus") == []
    search(window, "multi-teachers")
    assert window.run("document.querySelector('#page-results mark').textContent") == "Multi-teacher"


def test_names_of_operators_are_upright_and_their_letters_stand_together(window, tmp_path):
    (tmp_path / "page.md").write_text(r"$\operatorname{KL} + q_\text{KL} + p_\text{student}$")
    annotate([tmp_path / "page.md"], tmp_path / "site")
    window.open(f"file://{tmp_path}/site/page.html")
    names = window.run("""[...document.querySelectorAll('mi, mtext')].map(name => {
            const word = document.createElement('span');
            Object.assign(word.style, {font: getComputedStyle(name).font, position: 'absolute'});
            word.textContent = name.textContent;
            document.body.append(word);
            return [name.textContent, name.getBoundingClientRect().width, word.offsetWidth];
        }).filter(([text]) => text.length > 1)""")
    assert [name for name, _, _ in names] == ["KL", "KL", "student"]
    # As wide as the same word beside formulas: no italic letters, no space between them
    assert all(width == pytest.approx(plain, abs=1) for _, width, plain in names)


def test_equations_meet_at_their_signs_and_matrices_are_centred(window, tmp_path):
    aligned = r"\begin{aligned} a &= b & x &= y \\ ccc &= d + e & zzz &= w \end{aligned}"
    matrix = r"\begin{pmatrix} a & bbb \\ ccc & d \end{pmatrix}"
    (tmp_path / "page.md").write_text(f"$${aligned}$$\n\n$${matrix}$$\n")
    annotate([tmp_path / "page.md"], tmp_path / "site")
    window.open(f"file://{tmp_path}/site/page.html")
    equations, entries = window.run("""[...document.querySelectorAll('mtable')].map(table =>
        [...table.querySelectorAll('mtr')].map(row => [...row.children].map(cell => {
            const range = document.createRange();
            range.selectNodeContents(cell);
            const [inner, outer] = [range.getBoundingClientRect(), cell.getBoundingClientRect()];
            return [outer.left, inner.left, inner.right, outer.right];
        })))""")
    signs = []
    for row in equations:
        for (_, _, left, _), (_, right, _, _) in (row[:2], row[2:]):
            assert right - left < 8  # the space of the sign
        assert row[2][1] - row[1][3] > 20
        signs.append((row[0][2], row[2][2]))
    assert signs[0] == pytest.approx(signs[1], abs=0.5)
    for outer_left, inner_left, inner_right, outer_right in (
        cell for row in entries for cell in row
    ):
        assert inner_left - outer_left == pytest.approx(outer_right - inner_right, abs=1)
        assert inner_left - outer_left > 4
