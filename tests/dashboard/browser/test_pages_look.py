"""How the pages look, and that those can use them who see little or nothing."""

from __future__ import annotations

import itertools
import json
import re

import pages_kit as kit
import pytest

from distillation import runs

STYLE = kit.ROOT / "distillation" / "dashboard" / "pages" / "static" / "style.css"
GROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture
def pages(origin, named) -> dict[str, tuple[str, str]]:
    """{page: (address, what is there when it is ready)}."""
    both = f"{named['distill'].uuid},{named['small'].uuid}"
    return {
        "runs": (f"{origin}/", ".runs tbody tr"),
        "run": (f"{origin}/runs/{named['distill'].uuid}", "figure"),
        "compare": (f"{origin}/compare?runs={both}", "main table"),
        "lineage": (f"{origin}/lineage", ".family"),
        "transfer": (f"{origin}/transfer?runs={named['distill'].uuid}", "figure"),
        "gone": (f"{origin}/compare?runs=", ".empty"),
    }


PAGES = ("runs", "run", "compare", "lineage", "transfer", "gone")


def show(tab, page: tuple[str, str], **size) -> None:
    address, ready = page
    tab.open(address, **size)
    tab.wait(f"document.querySelector({ready!r})")


@pytest.mark.parametrize("page", PAGES)
def test_a_narrow_screen_has_one_column_and_no_sideways_scroll(tab, pages, page):
    for width in (390, 320):
        show(tab, pages[page], width=width, height=800)
        for place in range(0, tab.run("document.body.scrollHeight"), 700):  # charts come in sight
            tab.run(f"scrollTo(0, {place})")
        assert not kit.sideways(tab)


def test_long_words_of_a_run_do_not_widen_a_page(tab, tmp_path):
    word, uuids = "w" * 3000, []
    evaluation = {"classes": [word, "b"], "confusion": [[2, 0], [1, 1]], "accuracy": 0.75}
    for parent in (None, 0):
        config = {"epochs": 1, "long": f"{word}{parent}", word: 1}
        options = {"config": config, "parent": uuids[0] if uuids else None, "root": tmp_path}
        with runs.create("words", name=word, comment=word, **options) as recorder:
            recorder.log(10, 0, {"accuracy.test": 0.75, "kl.test": 1.0})
            (recorder.path / "evaluation.json").write_text(json.dumps(evaluation))
        uuids.append(recorder.uuid)
    with kit.dashboard(tmp_path) as address:
        pages = {
            "": ".runs tbody tr",
            f"runs/{uuids[1]}": "figure",
            f"compare?runs={','.join(uuids)}": "figure",
            "lineage": ".family",
            f"transfer?runs={uuids[1]}": "figure",
        }
        for page, ready in pages.items():
            for width in (1280, 390):
                show(tab, (f"{address}/{page}", ready), width=width, height=800)
                assert tab.run("document.documentElement.scrollWidth") == width, page
        tab.open(f"{address}/runs/{uuids[1]}")
        tab.wait("document.querySelector('h1')")
        assert kit.text(tab, "h1") == word  # whole where there is room


def test_a_wide_list_scrolls_in_its_frame_and_cuts_off_no_setting(tab, tmp_path):
    loss = "KDLogitsLoss(CrossEntropyLoss(), LogitsDistillationLoss(temperature={}, dim=1))"
    for i in range(2):
        config = {"training_params": {"initial_lr": 0.1 * (i + 1), "loss": loss.format(i + 1)}}
        with runs.create("wide", name="kd", config=config, root=tmp_path):
            pass
    with kit.dashboard(tmp_path) as address:
        for width in (1300, 800):
            kit.open_list(tab, address, width=width, height=800)
            assert not kit.sideways(tab)
            assert tab.run(
                """[...document.querySelectorAll('.runs td, .runs th')]
                    .every(cell => cell.scrollWidth <= cell.clientWidth + 1)"""
            )
            tab.run("document.querySelector('#list .wide').scrollLeft = 9999")
            last = "document.querySelector('.runs thead th:last-child').getBoundingClientRect()"
            assert tab.run(f"{last}.right") <= width
            assert loss.format(2) in kit.text(tab, "#list").replace("\n", "")


def test_cells_say_their_column_on_a_phone(tab, pages):
    show(tab, pages["runs"], **kit.PHONE)
    cell = "document.querySelector('.runs td[data-column=\"accuracy.test\"]')"
    assert tab.run(f"getComputedStyle({cell}, '::before').content") == '"accuracy.test"'
    assert tab.run(f"{cell}.getBoundingClientRect().right") <= kit.PHONE["width"]
    kit.click(tab, "#columns summary")
    box = tab.run("document.querySelector('.panel').getBoundingClientRect().toJSON()")
    assert 0 <= box["left"] < box["right"] <= kit.PHONE["width"]


def test_a_phone_sorts_by_a_list_of_columns(tab, pages):
    show(tab, pages["runs"], **kit.PHONE)
    tab.run(
        """(() => { const s = document.getElementById('sort'); s.value = 'metric accuracy.test up';
            s.dispatchEvent(new Event('change')); })()"""
    )
    values = [kit.number(v) for v in kit.column(tab, "accuracy.test") if v != "–"]
    assert values == sorted(values)


def test_the_theme_follows_the_system_until_one_is_chosen(tab, pages):
    show(tab, pages["run"], dark=True)
    tab.wait("document.querySelector('[data-drawn]')")
    dark = tab.run(GROUND)
    line = "document.querySelector('[data-drawn]').data[0].line.color"
    dark_line = tab.run(line)
    show(tab, pages["run"], dark=False)
    tab.wait("document.querySelector('[data-drawn]')")
    light, light_line = tab.run(GROUND), tab.run(line)
    assert light != dark
    assert light_line != dark_line
    kit.click(tab, "#theme")
    assert tab.run(GROUND) == dark
    tab.wait(f"{line} === '{dark_line}'")  # the charts too
    show(tab, pages["lineage"], dark=False)
    assert tab.run(GROUND) == dark


@pytest.mark.parametrize("page", PAGES)
def test_everything_that_can_be_used_has_a_name(tab, pages, page):
    show(tab, pages[page])
    if page in ("run", "transfer"):
        tab.wait("document.querySelector('[data-drawn]')")
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "link", "checkbox", "textbox", "searchbox", "combobox", "slider", "image")
    used = [n for n in nodes if not n.get("ignored") and n["role"]["value"] in roles]
    assert len(used) >= 5
    assert [n for n in used if not n.get("name", {}).get("value", "").strip()] == []


@pytest.mark.parametrize("page", PAGES)
def test_headings_begin_with_one_and_leave_out_none(tab, pages, page):
    show(tab, pages[page])
    levels = [
        int(tag[1])
        for tag in tab.run("[...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName)")
    ]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_tables_have_headers_that_say_their_scope(tab, pages):
    for page in ("runs", "compare", "transfer"):
        show(tab, pages[page])
        heads = tab.run("[...document.querySelectorAll('main th')].map(h => h.scope)")
        assert {"row", "col"} == set(heads)


def test_a_chart_is_also_words_and_a_table(tab, pages):
    show(tab, pages["transfer"])
    tab.wait("document.querySelectorAll('figure').length >= 10")
    figures = tab.run(
        """[...document.querySelectorAll('figure')].map(f => [
            f.querySelector('[role=img]').ariaLabel, f.querySelectorAll('tbody tr').length])"""
    )
    assert all(re.search(r"\d", label) and rows for label, rows in figures)


def test_the_focus_is_seen_and_the_content_reached_first(tab, pages):
    show(tab, pages["runs"])
    for kind in ("rawKeyDown", "keyUp"):
        tab.send("Input.dispatchKeyEvent", type=kind, key="Tab", windowsVirtualKeyCode=9)
    assert tab.run("document.activeElement.className") == "skip"
    assert tab.run("document.activeElement.getBoundingClientRect().left") >= 0
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_scripts_of_others_do_not_run(tab, pages):
    """The policy of the pages, also if a text slipped through as HTML."""
    show(tab, pages["runs"])
    tab.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"hacked=1\">')")
    tab.wait("document.querySelector('body > img').complete")
    assert tab.run("typeof window.hacked") == "undefined"
    assert tab.errors
    tab.errors.clear()


def _themes() -> list[dict[str, str]]:
    css = STYLE.read_text()
    blocks = re.findall(r":root[^{]*\{([^}]*--paper[^}]*)\}", css)
    return [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in blocks]


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast of two colours."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_and_lines_stand_out_from_their_ground():
    light, dark = _themes()
    for theme in (light, dark):
        for text in ("ink", "quiet", "accent", "bad", "good", "warn", "busy"):
            assert contrast(theme[text], theme["paper"]) >= 4.5, text
            assert contrast(theme[text], theme["wash"]) >= 4.5, text
        for ground in ("paper", "wash"):
            assert contrast(theme["edge"], theme[ground]) >= 3
        for line in [name for name in theme if name.startswith("line-")]:
            assert contrast(theme[line], theme["paper"]) >= 3, line
