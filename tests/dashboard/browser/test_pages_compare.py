"""Comparison, lineage and what was transferred, in a real browser."""

from __future__ import annotations

import json
import statistics

import pages_kit as kit
import pytest

from distillation import runs


def open_about(tab, origin: str, page: str, *chosen, **size) -> None:
    """A page about runs, once it has a table."""
    tab.open(f"{origin}/{page}?runs={','.join(run.uuid for run in chosen)}", **size)
    tab.wait("document.querySelector('main table')")


def cells(tab, section: str) -> list[dict[str, str]]:
    """The rows of the first table under a heading, by column; the first cell is `row`."""
    return tab.run(
        f"""[...[...document.querySelectorAll('section')]
            .find(s => s.querySelector('h2').textContent.startsWith({json.dumps(section)}))
            .querySelectorAll('table tbody tr')].slice(0, 40)
            .map(row => Object.fromEntries([...row.children].map((c, i) =>
                [i ? c.dataset.column : 'row', c.textContent])))"""
    )


def test_mean_and_spread_over_seeds_stand_beside_the_number_of_runs(tab, origin, named):
    alike = [named["small"], named["small_1"]]
    open_about(tab, origin, "compare", *alike, named["large"])
    rows = {int(row["n"]): row for row in cells(tab, "Metrics")}
    assert set(rows) == {1, 2}
    values = [run.summary["accuracy.test"] for run in alike]
    shown = rows[2]["accuracy.test"].removesuffix(" best").split(" ± ")
    mean, std = kit.number(f"{shown[0]} %"), kit.number(shown[1])
    assert mean == pytest.approx(statistics.mean(values), abs=5.1e-5)
    assert std == pytest.approx(statistics.stdev(values), abs=5.1e-5)
    assert "±" not in rows[1]["accuracy.test"]
    best = max((2, statistics.mean(values)), (1, named["large"].summary["accuracy.test"]), key=_2nd)
    assert [n for n, row in rows.items() if row["accuracy.test"].endswith(" best")] == [best[0]]


def _2nd(pair):
    return pair[1]


def test_only_what_differs_of_the_configuration_is_shown(tab, origin, named):
    open_about(tab, origin, "compare", named["small"], named["small_1"])
    [row] = cells(tab, "Configuration")
    assert list(row.values()) == ["seed", "0", "1"]
    open_about(tab, origin, "compare", named["small"], named["distill"])
    rows = {row["row"]: list(row.values())[1:] for row in cells(tab, "Configuration")}
    assert rows["temperature"] == ["–", "8"]
    assert "epochs" not in rows


def test_curves_are_overlaid(tab, origin, named):
    pair = [named["small"], named["large"]]
    open_about(tab, origin, "compare", *pair)
    drawing = kit.drawn(tab, "accuracy.test")
    tab.wait(f"{drawing}.data.length === 2")
    assert tab.run(f"{drawing}.data.map(t => t.y)") == [r.curve("accuracy.test")[1] for r in pair]
    colours = tab.run(f"{drawing}.data.map(t => t.line.color)")
    assert len(set(colours)) == 2


def test_names_that_every_object_has_belong_to_the_runs_that_recorded_them(tab, tmp_path):
    uuids = []
    for metrics in ({"constructor": 1.0, "loss": 3.0}, {"loss": 2.0}):
        with runs.create("names", root=tmp_path, config=dict.fromkeys(metrics, 1)) as recorder:
            recorder.log(10, 0, metrics)
        uuids.append(recorder.uuid)
    with kit.dashboard(tmp_path) as address:
        tab.open(f"{address}/compare?runs={','.join(uuids)}")
        assert tab.run(f"{kit.drawn(tab, 'constructor')}.data.length") == 1
        assert tab.run(f"{kit.drawn(tab, 'loss')}.data.length") == 2


def test_a_run_that_is_not_here_is_named_and_the_others_are_compared(tab, origin, named):
    tab.open(f"{origin}/compare?runs={named['small'].uuid},{'0' * 32}")
    tab.wait("document.querySelector('.failure')")
    assert "Not in this store: 00000000" in kit.text(tab)
    assert "accuracy.test" in kit.text(tab)


def test_nothing_chosen_says_how_to_choose(tab, origin):
    tab.open(f"{origin}/compare")
    tab.wait("document.querySelector('.empty')")
    assert "Select runs in the list" in kit.text(tab)


def test_the_lineage_ties_the_student_to_its_teacher(tab, origin, named):
    teacher, student = named["large"].uuid, named["distill"].uuid
    tab.open(f"{origin}/lineage")
    tab.wait("document.querySelector('.family')")
    edges = tab.run("[...document.querySelectorAll('.edge')].map(e => ({...e.dataset}))")
    assert edges == [{"teacher": teacher, "student": student}]
    left, right = (
        tab.run(f"document.querySelector('.family [data-uuid=\"{u}\"]').getBoundingClientRect().x")
        for u in (teacher, student)
    )
    assert left < right
    label = f"document.querySelector('.family [data-uuid=\"{student}\"]').ariaLabel"
    assert f"learned from large {teacher[:8]}" in tab.run(label)


def test_the_lineage_is_walked_by_keys_and_leads_to_the_runs(tab, origin, named):
    teacher, student = named["large"].uuid, named["distill"].uuid
    tab.open(f"{origin}/lineage")
    tab.wait("document.querySelector('.family a')")
    tab.run(f"document.querySelector('.family [data-uuid=\"{teacher}\"]').focus()")
    for key, uuid in (("ArrowRight", student), ("ArrowLeft", teacher), ("ArrowRight", student)):
        for kind in ("keyDown", "keyUp"):
            tab.send("Input.dispatchKeyEvent", type=kind, key=key)
        assert tab.run("document.activeElement.dataset.uuid") == uuid
    for kind in ("keyDown", "keyUp"):
        tab.send(
            "Input.dispatchKeyEvent", type=kind, key="Enter", windowsVirtualKeyCode=13, text="\r"
        )
    tab.wait(f"location.pathname === '/runs/{student}'")


def test_a_teacher_that_is_gone_stays_in_the_lineage(tab, tmp_path):
    gone = "f" * 32
    with runs.create("orphan", parent=gone, root=tmp_path) as recorder:
        recorder.log(10, 0, {"loss.train": 0.1, "inference_result.test": 0.9889})
    with kit.dashboard(tmp_path) as address:
        tab.open(f"{address}/lineage")
        tab.wait("document.querySelector('.family .missing')")
        assert "missing teacher" in tab.run("document.querySelector('.family').textContent")
        assert "inference_result.test 0.9889" in kit.texts(tab, ".family .second")  # whole
        assert tab.run("document.querySelectorAll('.edge').length") == 1
        assert tab.run("document.querySelectorAll('.family a').length") == 1


def evaluated(run) -> dict:
    return json.loads((run.path / "evaluation.json").read_text())


def test_what_was_transferred_stands_class_by_class_side_by_side(tab, origin, named):
    open_about(tab, origin, "transfer", named["distill"])
    bars = kit.drawn(tab, "Accuracy of each class")
    plain = tab.run("document.querySelectorAll('main table tbody a')[1].getAttribute('href')")
    assert plain.removeprefix("/runs/") in (named["small"].uuid, named["small_1"].uuid)
    trio = [named["large"], runs.find(plain.removeprefix("/runs/"), named["large"].path.parents[1])]
    for i, run in enumerate([*trio, named["distill"]]):
        found = evaluated(run)
        per_class = [row[k] / sum(row) for k, row in enumerate(found["confusion"])]
        assert tab.run(f"{bars}.data[{i}].y") == pytest.approx(per_class)
    assert tab.run(f"{bars}.querySelectorAll('.bars .point').length") == 30
    assert tab.run(f"{bars}._fullLayout.yaxis.range[0]") == 0


def test_agreement_divergence_and_calibration_are_drawn_over_time(tab, origin, named):
    open_about(tab, origin, "transfer", named["distill"])
    for title, metric in (("Agreement", "agreement.test"), ("KL", "kl.test")):
        drawing = kit.drawn(tab, title)
        assert tab.run(f"{drawing}.data.map(t => t.y)") == [named["distill"].curve(metric)[1]]
    drawing = kit.drawn(tab, "Calibration error")
    tab.wait(f"{drawing}.data.length === 3")  # teacher, plain, distilled


def test_reliability_and_confusion_come_from_the_evaluations(tab, origin, named):
    open_about(tab, origin, "transfer", named["distill"], named["large"], named["small"])
    ours = evaluated(named["distill"])
    drawing = kit.drawn(tab, "Reliability, distilled")
    filled = [bin for bin in ours["bins"] if bin["count"]]
    assert tab.run(f"{drawing}.data[0].y") == [bin["accuracy"] for bin in filled]
    for other, role in ((named["small"], "plain"), (named["large"], "teacher")):
        title = f"Confusion, distill {named['distill'].uuid[:8]} − {role}"
        theirs = evaluated(other)["confusion"]
        wanted = [
            [a - b for a, b in zip(*rows, strict=True)]
            for rows in zip(ours["confusion"], theirs, strict=True)
        ]
        assert tab.run(f"{kit.drawn(tab, title)}.data[0].z") == wanted


def test_the_label_of_the_choice_is_one_line_on_a_phone(tab, origin, named):
    open_about(tab, origin, "transfer", named["distill"], **kit.PHONE)
    tab.wait("document.querySelector('#choice label')")
    assert (
        tab.run("""(() => {
        const word = document.createRange();
        word.selectNode(document.querySelector('#choice label').firstChild);
        return word.getClientRects().length;
    })()""")
        == 1
    )


def test_another_student_is_chosen_from_the_list(tab, origin, named, store):
    run = named["distill"]
    with runs.create("digits", name="other", parent=run.parent_uuid, root=store) as recorder:
        recorder.log(10, 0, {"agreement.test": 0.5})
    try:
        tab.open(f"{origin}/transfer")
        tab.wait("document.querySelector('#student')")
        assert tab.run("document.querySelector('#student').value") == recorder.uuid  # the newest
        tab.wait("document.querySelector('main').innerText.includes('Without an evaluation yet')")
        tab.run(
            f"""(() => {{ const s = document.querySelector('#student'); s.value = '{run.uuid}';
                s.dispatchEvent(new Event('change')); }})()"""
        )
        tab.wait(f"location.search.endsWith('{run.uuid}') && document.querySelector('main table')")
    finally:
        runs.remove(recorder.uuid, root=store)
