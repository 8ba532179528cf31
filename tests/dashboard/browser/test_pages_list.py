"""The list of runs in a real browser."""

from __future__ import annotations

import re
import time

import pages_kit as kit
from pages_kit import HOSTILE

from distillation import runs


def test_the_list_shows_every_run_with_its_status_and_metrics(tab, origin, store, named):
    kit.open_list(tab, origin)
    assert set(kit.listed(tab)) == {run.uuid for run in runs.list(store)}
    row = f"[data-uuid='{named['large'].uuid}']"
    assert kit.text(tab, f"{row} .status") == "completed"
    assert kit.texts(tab, f'{row} [data-column="epoch"]') == ["2 / 2"]
    [shown] = kit.texts(tab, f'{row} [data-column="accuracy.test"]')
    assert shown.endswith(" %")
    assert abs(kit.number(shown) - named["large"].summary["accuracy.test"]) < 5.1e-5


def test_a_click_on_a_column_sorts_and_a_second_one_turns_it_round(tab, origin):
    kit.open_list(tab, origin)
    for order in ("descending", "ascending"):
        kit.click(tab, '[data-sort="metric accuracy.test"]')
        head = "document.querySelector('[data-sort=\"metric accuracy.test\"]').parentElement"
        assert tab.run(f"{head}.getAttribute('aria-sort')") == order
        values = kit.column(tab, "accuracy.test")
        numbers = [kit.number(value) for value in values if value != "–"]
        assert len(numbers) == 5
        assert numbers == sorted(numbers, reverse=order == "descending")
        assert values[-1] == "–"  # the run without that metric stays last


def test_words_find_runs_by_name_and_configuration(tab, origin, named):
    kit.open_list(tab, origin)
    kit.write(tab, "#text", "digits seed=1")
    assert kit.listed(tab) == [named["small_1"].uuid]
    kit.write(tab, "#text", "temperature=8")
    assert kit.listed(tab) == [named["distill"].uuid]
    kit.write(tab, "#text", "nothing like it")
    assert "No run matches" in kit.text(tab)
    tab.run("[...document.querySelectorAll('.empty button')][0].click()")
    assert len(kit.listed(tab)) == 6


def test_the_status_filter_stays_when_the_page_is_loaded_again(tab, origin, store):
    with runs.create("filters", root=store) as recorder:
        kit.open_list(tab, origin)
        tab.wait("document.querySelector('[data-status=running]')")
        kit.click(tab, "[data-status=running]")
        assert kit.listed(tab) == [recorder.uuid]
        kit.open_list(tab, origin, tab.run("location.search"))
        assert kit.listed(tab) == [recorder.uuid]
    runs.remove(recorder.uuid, root=store)


def test_a_chosen_column_is_remembered(tab, origin, named):
    kit.open_list(tab, origin)
    assert not kit.column(tab, "temperature")
    kit.click(tab, '#columns input[value="config temperature"]')
    kit.click(tab, '#columns input[value="experiment"]')
    kit.open_list(tab, origin)
    assert "8" in kit.column(tab, "temperature")
    assert not kit.column(tab, "experiment")


def test_settings_that_tell_runs_of_a_name_apart_are_shown_unasked(tab, tmp_path):
    for warmth in (4.0, 8.0):
        config = {"seed": int(warmth), "momentum": 0.9, "temperature": warmth}
        with runs.create("tells", name="distill", config=config, root=tmp_path):
            pass
    with kit.dashboard(tmp_path) as address:
        kit.open_list(tab, address)
        assert set(kit.column(tab, "temperature")) == {"4", "8"}
        assert not kit.column(tab, "momentum")


def test_every_run_shows_some_metric_unasked(tab, tmp_path):
    """An experiment tests, a trainer validates, the toolkit names what its pipeline returns."""
    recorded = {
        "experiment": ["accuracy.test", "agreement.test", "loss.test", "loss.train"],
        "trainer": ["accuracy.valid", "loss.valid", "loss.train", "learning_rate"],
        "toolkit": ["inference_result.test", "loss.train", "learning_rate"],
    }
    for experiment, metrics in recorded.items():
        for _ in range(2 if experiment == "trainer" else 1):
            with runs.create(experiment, root=tmp_path) as recorder:
                recorder.log(10, 0, dict.fromkeys(metrics, 0.5))
    with kit.dashboard(tmp_path) as address:
        kit.open_list(tab, address)
        heads = [name for name in kit.texts(tab, ".runs thead th") if "." in name]
        assert heads == ["accuracy.test", "inference_result.test", "accuracy.valid"]
        shown = [kit.column(tab, name) for name in heads]
        assert [row.count("–") for row in zip(*shown, strict=True)] == [2] * 4
        for name in ("experiment", "toolkit"):
            [run] = runs.list(tmp_path, experiment=name)
            runs.remove(run.uuid, root=tmp_path)
        tab.wait("document.querySelectorAll('.runs tbody tr').length === 2")
        heads = [name for name in kit.texts(tab, ".runs thead th") if "." in name]
        assert heads == ["accuracy.valid", "loss.valid"]


def test_shares_are_in_percent_on_every_page_and_sorted_as_numbers(tab, tmp_path):
    metrics = [{"ece.test": 0.09, "accuracy": 0.2083}, {"ece.test": 0.1, "accuracy": 62.5}]
    uuids = []
    for values in metrics:
        with runs.create("shares", root=tmp_path) as recorder:
            recorder.log(10, 0, {**values, "loss.test": 0.2083})
        uuids.append(recorder.uuid)
    with kit.dashboard(tmp_path) as address:
        kit.open_list(tab, address, "?sort=metric%20ece.test")
        assert kit.column(tab, "ece.test") == ["10.00 %", "9.00 %"]
        assert kit.column(tab, "loss.test") == ["0.2083"] * 2
        tab.open(f"{address}/runs/{uuids[0]}")
        tab.wait("document.querySelector('.side tbody tr')")
        assert {"9.00 %", "20.83 %"} < set(kit.texts(tab, ".side td.number"))
        drawing = kit.drawn(tab, "ece")
        assert tab.run(f"{drawing}._fullLayout.yaxis.tickformat") == ".2~%"
        tab.open(f"{address}/compare?runs={','.join(uuids)}")
        tab.wait("document.querySelector('.groups tbody tr')")
        assert "9.50 ± 0.71 %" in kit.text(tab, ".groups")
        assert "31.3542 ± 44.0" in kit.text(tab, ".groups")  # one was no share


def test_the_usual_columns_fit_into_a_laptop(tab, tmp_path):
    """Of an experiment, a trainer and the toolkit, which name their metrics each in its way."""
    teacher = None
    metrics = {
        "digits": "accuracy.test",
        "digits_teacher": "accuracy.valid",
        "kd_training": "inference_result.test",
    }
    for experiment, metric in metrics.items():
        for i in range(2):
            config = {"label_loss_weight": i / 10, "without_classes": [i]}
            config = config if experiment == "digits" else {}
            options = {"config": config, "parent": teacher, "root": tmp_path, "seed": 42}
            with runs.create(experiment, **options) as recorder:
                recorder.update(epochs=20)
                recorder.log(10, 19, {metric: 0.2083, "loss.train": 3.7209})
            teacher = recorder.uuid
    with kit.dashboard(tmp_path) as address:
        kit.open_list(tab, address, width=1280)
        assert {"label_loss_weight", "inference_result.test"} < set(
            kit.texts(tab, ".runs thead th")
        )
        frame = "document.querySelector('#list .wide')"
        assert tab.run(f"{frame}.scrollWidth <= {frame}.clientWidth")


def test_how_runs_are_compared_is_said_and_soon_reached(tab, origin):
    kit.open_list(tab, origin)
    assert "Tick runs to compare" in kit.text(tab, "#hint")
    kit.click(tab, ".runs tbody .pick input")
    tab.run("document.querySelector('#columns summary').focus()")
    tab.press("Tab")
    assert tab.run("document.activeElement.closest('#selection') !== null")


def test_a_tick_leaves_the_other_rows_in_the_table(tab, origin):
    kit.open_list(tab, origin)
    tab.run(
        """(() => {
            window.moved = 0;
            new MutationObserver((all) => all.forEach((m) => { moved += m.addedNodes.length; }))
                .observe(document.querySelector('.runs tbody'), {childList: true});
        })()"""
    )
    kit.click(tab, ".runs tbody tr:nth-child(2) .pick input")
    tab.wait("document.querySelector('.runs tbody tr:nth-child(2)[aria-selected]')")
    assert tab.run("moved") == 1


def test_selected_runs_go_to_the_comparison(tab, origin, named):
    kit.open_list(tab, origin)
    pair = [named["small"].uuid, named["distill"].uuid]
    for uuid in pair:
        kit.click(tab, f"[data-uuid='{uuid}'] .pick input")
    assert "2 selected" in kit.text(tab, "#selection")
    kit.click(tab, "#selection a[href^='/compare']")
    tab.wait("document.querySelectorAll('.legend.large .swatch').length === 2")
    assert all(uuid in tab.run("location.search") for uuid in pair)


def test_a_hidden_run_can_be_shown_again(tab, origin, named):
    uuid = named["small_1"].uuid
    kit.open_list(tab, origin)
    kit.click(tab, f"[data-uuid='{uuid}'] .pick input")
    tab.run("[...document.querySelectorAll('#selection button')][0].click()")
    tab.wait(f"!document.querySelector('[data-uuid=\"{uuid}\"]')")
    kit.open_list(tab, origin)
    assert uuid not in kit.listed(tab)
    kit.click(tab, "#hidden")
    assert uuid in kit.listed(tab)
    kit.click(tab, f"[data-uuid='{uuid}'] .pick input")
    tab.run("[...document.querySelectorAll('#selection button')][0].click()")
    tab.wait("document.getElementById('selection').hidden")
    kit.open_list(tab, origin)
    assert uuid in kit.listed(tab)


def test_a_note_is_kept(tab, origin, named):
    uuid = named["small"].uuid
    kit.open_list(tab, origin)
    kit.click(tab, f"[data-uuid='{uuid}'] .edit")
    kit.write(tab, "dialog textarea", f"the baseline {HOSTILE}")
    kit.click(tab, "dialog button[type=submit]")
    tab.wait("!document.querySelector('dialog')")
    kit.open_list(tab, origin)
    assert kit.text(tab, f"[data-uuid='{uuid}'] .edit") == f"the baseline {HOSTILE}"
    tab.open(f"{origin}/runs/{uuid}")
    tab.wait("document.querySelector('textarea')")
    assert tab.run("document.querySelector('textarea').value") == f"the baseline {HOSTILE}"


def test_hostile_text_is_shown_as_text_on_every_page(tab, origin, store):
    [run] = runs.list(store, experiment="hostile")
    others = ",".join(r.uuid for r in runs.list(store))
    for page in ("", f"runs/{run.uuid}", f"compare?runs={others}", "lineage"):
        tab.open(f"{origin}/{page}")
        tab.wait("document.querySelector('main').textContent.includes('<img src=x')")
        assert tab.run("document.querySelectorAll('main img').length") == 0
    tab.open(f"{origin}/runs/{run.uuid}")
    kit.drawn(tab, HOSTILE)  # a metric of that name, drawn by Plotly
    tab.wait("document.querySelector('.log').textContent.includes('<img')")
    assert tab.run("document.querySelectorAll('main img').length") == 0
    assert tab.run("typeof window.hacked") == "undefined"


def test_an_empty_store_says_what_to_do_and_fills_by_itself(tab, tmp_path):
    with kit.dashboard(tmp_path) as address:
        tab.open(address)
        tab.wait("document.querySelector('.empty')")
        assert "python -m experiments.digits" in kit.text(tab)
        for page in ("lineage", "transfer"):
            tab.open(f"{address}/{page}")
            tab.wait("document.querySelector('.empty')")
            assert "python -m experiments.digits" in kit.text(tab)
        tab.open(address)
        with runs.create("first", root=tmp_path) as recorder:
            tab.wait(f"document.querySelector('[data-uuid=\"{recorder.uuid}\"]')", 5)
        tab.run("localStorage.clear()")


def test_a_dashboard_that_others_reach_opens_with_its_token(tab, store):
    with kit.dashboard(store, "--host", "0.0.0.0") as printed:
        port, token = re.fullmatch(r"http://.+:(\d+)/(\?token=.+)", printed).groups()
        kit.open_list(tab, f"http://127.0.0.1:{port}", token)
        assert "token" not in tab.run("location.href")  # nor in the history
        kit.click(tab, ".runs tbody a")
        tab.wait("document.querySelector('.title h1')")
        tab.run("localStorage.clear()")


def test_what_cannot_be_read_is_named(tab, tmp_path):
    with runs.create("good", root=tmp_path) as recorder:
        pass
    broken = tmp_path / "good" / ("0" * 32)
    broken.mkdir()
    (broken / "run.json").write_text('{"uuid": ')
    with kit.dashboard(tmp_path) as address:
        kit.open_list(tab, address)
        assert kit.listed(tab) == [recorder.uuid]
        assert "1 thing could not be read" in kit.text(tab, "#problems")
        assert broken.name in tab.run("document.querySelector('#problems').textContent")


def test_the_script_of_the_charts_is_read_ahead(tab, origin):
    kit.open_list(tab, origin)
    tab.wait("window.Plotly")


def test_nothing_is_asked_while_the_page_is_hidden(tab, origin):
    kit.open_list(tab, origin)
    tab.wait("window.Plotly")  # read ahead
    turn = "document.dispatchEvent(new Event('visibilitychange'))"
    tab.run(
        f"Object.defineProperty(document, 'hidden', {{value: true, configurable: true}}); {turn}"
    )
    tab.run("new Promise(done => setTimeout(done, 300))")  # for a request on its way
    tab.requests.clear()
    tab.run("new Promise(done => setTimeout(done, 2600))")
    assert tab.requests == []
    since = time.monotonic()
    tab.run(f"delete document.hidden; {turn}")
    while not tab.requests:
        tab.run("1")
        assert time.monotonic() - since < 1.5
    assert tab.requests == [f"{origin}/api/runs"]
