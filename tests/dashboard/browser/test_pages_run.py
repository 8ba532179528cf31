"""One run in a real browser: curves that move, and what goes wrong underneath."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import pages_kit as kit
import pytest

from distillation import runs


def open_run(tab, origin: str, uuid: str, **size) -> None:
    """The page of a run, once it has its parts."""
    tab.open(f"{origin}/runs/{uuid}", **size)
    tab.wait("document.querySelector('.title h1')")


def test_curves_show_what_was_recorded(tab, origin, named):
    run = named["distill"]
    open_run(tab, origin, run.uuid)
    drawing = kit.drawn(tab, "accuracy")
    steps, values = run.curve("accuracy.test")
    assert tab.run(f"[{drawing}.data[0].x, {drawing}.data[0].y]") == [steps, values]
    assert tab.run(f"{drawing}.querySelectorAll('.scatterlayer .trace').length") == 2
    assert f"test: last {100 * values[-1]:.2f} %" in tab.run(f"{drawing}.parentElement.ariaLabel")


def test_curves_can_be_smoothed_and_have_a_log_scale(tab, origin, named):
    open_run(tab, origin, named["distill"].uuid)
    drawing = kit.drawn(tab, "loss")
    _, values = named["distill"].curve("loss.test")
    kit.write(tab, "#smoothing", "0.5")
    tab.wait(f"{drawing}.data.length === 4")
    smoothed = tab.run(f"{drawing}.data[1].y")
    assert smoothed[0] == values[0]
    assert smoothed[1] == pytest.approx((values[0] * 0.25 + values[1] * 0.5) / 0.75)
    kit.click(tab, "#log-scale")
    tab.wait(f"{drawing}._fullLayout.yaxis.type === 'log'")
    open_run(tab, origin, named["small"].uuid)  # remembered
    drawing = kit.drawn(tab, "loss")
    assert tab.run(f"{drawing}._fullLayout.yaxis.type") == "log"
    assert tab.run("document.getElementById('smoothing').value") == "0.5"


def test_statistics_of_parameters_are_drawn_on_demand(tab, origin, named):
    open_run(tab, origin, named["small"].uuid)
    tab.wait("document.querySelector('.more:not([hidden]) input[value]')")
    name = "param.fc.weight.norm"
    assert name not in kit.texts(tab, "figure h3")
    kit.click(tab, f'input[value="{name}"]')
    drawing = kit.drawn(tab, name)
    assert tab.run(f"{drawing}.data[0].y") == named["small"].curve(name)[1]


def test_a_run_shows_what_it_was_told_and_what_it_left(tab, origin, named):
    run, teacher = named["distill"], named["large"]
    open_run(tab, origin, run.uuid)
    tab.wait("document.querySelector('.side button.link')")
    shown = kit.text(tab)
    assert "temperature" in shown
    assert "experiments.digits.distill --epochs 2" in shown
    assert f"{run.checkpoints[-1]:,}" in shown
    tab.wait(f"document.querySelector('.side a[href=\"/runs/{teacher.uuid}\"]')")
    tab.run(
        "[...document.querySelectorAll('.side button.link')]"
        ".find(b => b.textContent === 'config.json').click()"
    )
    tab.wait("document.querySelector('dialog pre').textContent.includes('\"temperature\": 8.0')")
    open_run(tab, origin, teacher.uuid)
    tab.wait(f"document.querySelector('.side a[href=\"/runs/{run.uuid}\"]')")


def test_the_curve_of_a_training_moves_within_five_seconds(tab, origin, store):
    """A real experiment writes while the page is open, which is not loaded again."""
    options = ["--epochs", "500", "--runs", str(store), "--comment", "live"]
    training = subprocess.Popen(
        [sys.executable, "-m", "experiments.digits.small", *options],
        cwd=kit.ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        run = _first(lambda: [r for r in runs.list(store) if r.comment == "live"])
        open_run(tab, origin, run.uuid)
        assert kit.text(tab, ".title .status") == "running"
        drawing = kit.drawn(tab, "accuracy")
        tab.run("window.stays = true")
        file = run.path / "metrics.jsonl"
        for _ in range(3):
            points, size = tab.run(f"{drawing}.data[0].x.length"), file.stat().st_size
            _first(lambda size=size: file.stat().st_size > size)
            tab.wait(f"{drawing}.data[0].x.length > {points}", 5)
        assert tab.run("window.stays")
        training.terminate()
        training.wait(timeout=60)
        tab.wait("document.querySelector('.title .status').textContent !== 'running'", 5)
    finally:
        training.kill()
        training.wait()
        for left in [r for r in runs.list(store) if r.comment == "live"]:
            shutil.rmtree(left.path)


def _first(find):
    """The first thing that `find` gives, within the time that a training takes to begin."""
    deadline = time.monotonic() + 60
    while not (found := find()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found[0] if isinstance(found, list) else found


def test_values_that_are_no_numbers_are_gaps_that_are_told(tab, origin, store):
    [run] = runs.list(store, experiment="broken")
    open_run(tab, origin, run.uuid)
    drawing = kit.drawn(tab, "loss")
    assert tab.run(f"{drawing}.data[0].y") == [2.0, None, 1.0, None, None, 0.0, 0.5]
    assert not tab.run(f"{drawing}._fullData[0].connectgaps")
    assert tab.run(f"{drawing}.data[0].marker.size") == [5, 0, 5, 0, 0, 0, 0]  # seen alone
    assert "3 values were not a number" in kit.text(tab)
    kit.click(tab, "#log-scale")
    tab.wait("document.querySelector('main').innerText.includes('1 value is not above zero')")
    assert kit.drawn(tab, "never")
    assert "7 values were not a number" in kit.text(tab)


def test_values_beyond_the_axes_are_gaps_that_are_told(tab, tmp_path):
    with runs.create("huge", root=tmp_path) as recorder:
        for i, loss in enumerate([1e308, -1e307, 1.0, 2.0]):
            recorder.log(10 * (i + 1), i, {"loss.train": loss})
    with kit.dashboard(tmp_path) as address:
        open_run(tab, address, recorder.uuid)
        assert tab.run(f"{kit.drawn(tab, 'loss')}.data[0].y") == [None, None, 1.0, 2.0]
        assert "2 values are too large to be drawn" in kit.text(tab)


def test_a_run_that_is_removed_underneath_says_so(tab, origin, store):
    with runs.create("fleeting", root=store) as recorder:
        recorder.log(10, 0, {"loss.train": 1.0})
    open_run(tab, origin, recorder.uuid)
    kit.drawn(tab, "loss")
    shutil.rmtree(recorder.path)
    tab.wait("document.querySelector('.empty')", 5)
    assert "This run is gone" in kit.text(tab)
    assert recorder.uuid in kit.text(tab)
    assert tab.run("document.querySelector('.empty a').getAttribute('href')") == "/"
    assert all("404" in error for error in tab.errors)  # what Chromium says of each
    tab.errors.clear()


def test_an_unknown_run_has_a_readable_page(tab, origin):
    tab.open(f"{origin}/runs/{'0' * 32}")
    assert "Not here" in kit.text(tab)
    assert f"there is no run '{'0' * 32}'" in kit.text(tab)
    assert all("404" in error for error in tab.errors)
    tab.errors.clear()


def test_a_page_says_when_the_dashboard_does_not_answer(tab, store, named):
    with kit.dashboard(store) as address:
        open_run(tab, address, named["small"].uuid)
        kit.drawn(tab, "accuracy")
    tab.wait("document.getElementById('trouble').textContent.includes('does not answer')", 5)
    assert "accuracy" in kit.text(tab)  # what was there stays
    assert all("ERR_" in error for error in tab.errors)
    tab.errors.clear()


def test_a_note_that_is_being_written_is_not_overwritten(tab, origin, store, named):
    run = named["large"]
    open_run(tab, origin, run.uuid)
    kit.write(tab, "textarea", "half a thought")
    tab.run(
        f"""fetch('/api/runs/{run.uuid}/note', {{method: 'POST', body: '{{"text": "other"}}',
            headers: {{'Content-Type': 'application/json'}}}}).then(r => r.status)"""
    )
    tab.run("new Promise(done => setTimeout(done, 2500))")
    assert tab.run("document.querySelector('textarea').value") == "half a thought"
    kit.click(tab, ".note button[type=submit]")
    tab.wait("document.querySelector('.note').textContent.includes('saved')")
    open_run(tab, origin, run.uuid)
    assert tab.run("document.querySelector('textarea').value") == "half a thought"


def test_a_teacher_that_is_no_run_is_not_taken_for_none(tab, tmp_path):
    said = {}
    for name, fields in (("student", {"teacher": {"fingerprint": "0" * 64}}), ("plain", {})):
        with runs.create("lone", name=name, root=tmp_path) as recorder:
            recorder.update(**fields)
        said[name] = recorder.uuid
    with kit.dashboard(tmp_path) as address:
        open_run(tab, address, said["student"])
        tab.wait("document.querySelector('.side').innerText.includes('is no recorded run')")
        open_run(tab, address, said["plain"])
        tab.wait("document.querySelector('.side').innerText.includes('from the labels alone')")
