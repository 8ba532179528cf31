"""Comparison over seeds, lineage, what was transferred, and the pages that show them."""

from __future__ import annotations

import json
import statistics

import pytest
from dashboard_kit import client, edit, evaluation, folder, record

LARGE = {"target": "distillation.models.vgg:LargeModel", "args": [], "kwargs": {}}
SMALL = {"target": "distillation.models.vgg:SmallModel", "args": [], "kwargs": {}}


def seeded(root, accuracy: float, seed: int, **options) -> str:
    config = {"epochs": 3, "seed": seed, "optimizer": {"learning_rate": 0.1}}
    config |= options.pop("config", {})
    curves = {"accuracy.test": [0.1, accuracy]}
    return record(root, seed=seed, config=config, curves=curves, **options)


def compare(root, *uuids: str) -> dict:
    answer = client(root).get("/api/compare", params={"runs": ",".join(uuids)})
    assert answer.status_code == 200
    return answer.json()


# Comparison -------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_alone_are_one_group(tmp_path):
    accuracies = [0.9, 0.92, 0.97]
    uuids = [seeded(tmp_path, value, seed) for seed, value in enumerate(accuracies)]
    other = seeded(tmp_path, 0.8, 0, config={"temperature": 4.0})
    found = compare(tmp_path, *uuids, other)
    first, second = found["groups"]
    assert first["runs"] == uuids
    assert first["config"] == {"epochs": 3, "optimizer.learning_rate": 0.1}
    measured = first["metrics"]["accuracy.test"]
    assert measured["mean"] == pytest.approx(statistics.mean(accuracies))
    assert measured["std"] == pytest.approx(statistics.stdev(accuracies)), "of a sample: n - 1"
    assert measured["n"] == 3
    assert second["runs"] == [other]
    assert second["metrics"]["accuracy.test"] == {"mean": 0.8, "std": None, "n": 1}


def test_differences_are_the_keys_whose_values_are_not_the_same(tmp_path):
    one = record(tmp_path, config={"epochs": 3, "rate": 1, "only": None, "betas": [1, 2]})
    two = record(tmp_path, config={"epochs": 3, "rate": 1.0, "betas": [1, 3]})
    assert compare(tmp_path, one, two)["differences"] == [
        {"key": "betas", "values": {one: "[1, 2]", two: "[1, 3]"}},
        {"key": "only", "values": {one: None}},
        {"key": "rate", "values": {one: 1, two: 1.0}},
    ]
    assert compare(tmp_path, one)["differences"] == []


def test_another_model_or_another_experiment_is_another_group(tmp_path):
    large = seeded(tmp_path, 0.9, 0, model=LARGE)
    small = seeded(tmp_path, 0.9, 1, model=SMALL)
    elsewhere = seeded(tmp_path, 0.9, 2, model=SMALL, experiment="cifar10")
    groups = compare(tmp_path, large, small, elsewhere)["groups"]
    assert [group["runs"] for group in groups] == [[large], [small], [elsewhere]]


def test_students_are_one_group_when_their_teachers_differ_in_their_seed_alone(tmp_path):
    long, again = (seeded(tmp_path, 0.9, seed, config={"epochs": 9}) for seed in (1, 2))
    short = seeded(tmp_path, 0.8, 1, config={"epochs": 1})
    teachers = [long, again, short, "e" * 32, "f" * 32]
    students = [seeded(tmp_path, 0.9, seed, parent=t) for seed, t in enumerate(teachers)]
    groups = compare(tmp_path, *students)["groups"]
    assert [group["runs"] for group in groups] == [students[:2], *([s] for s in students[2:])]


def test_students_of_two_checkpoints_of_one_teacher_are_two_groups(tmp_path):
    teacher = seeded(tmp_path, 0.9, 0)
    steps = [20, 20, 30, None]
    taught = [{"teacher": {"run": teacher, "step": step}} for step in steps]
    students = [
        seeded(tmp_path, 0.9, seed, parent=teacher, fields=fields)
        for seed, fields in enumerate(taught)
    ]
    groups = compare(tmp_path, *students)["groups"]
    assert [group["runs"] for group in groups] == [students[:2], [students[2]], [students[3]]]


def test_a_teachers_evaluation_at_another_checkpoint_is_said_to_be(tmp_path):
    teacher = seeded(tmp_path, 0.9, 0)
    fields = {"teacher": {"run": teacher, "step": 10}}
    student = seeded(tmp_path, 0.9, 1, parent=teacher, fields=fields)
    for uuid in (teacher, student):
        (folder(tmp_path, uuid) / "evaluation.json").write_text(json.dumps(evaluation(step=20)))
    found = client(tmp_path).get("/api/transfer", params={"runs": student}).json()
    (problem,) = found["problems"]
    said = f"evaluated at step 20, while {student[:8]} learned from step 10"
    assert problem == {"path": f"digits/{teacher}", "message": said}


def test_a_run_on_its_way_does_not_count_beside_completed_ones(tmp_path):
    done, going = seeded(tmp_path, 0.9, 0), seeded(tmp_path, 0.2, 1)
    edit(folder(tmp_path, going) / "run.json", status="interrupted")
    (group,) = compare(tmp_path, done, going)["groups"]
    assert group["runs"] == [done, going]
    assert group["counted"] == [done]
    assert group["metrics"]["accuracy.test"] == {"mean": 0.9, "std": None, "n": 1}


def test_values_that_are_missing_do_not_count(tmp_path):
    one = seeded(tmp_path, 0.9, 0)
    two = seeded(tmp_path, float("nan"), 1)
    (group,) = compare(tmp_path, one, two)["groups"]
    assert group["metrics"]["accuracy.test"] == {"mean": 0.9, "std": None, "n": 1}


@pytest.mark.parametrize("view", ["compare", "transfer"])
def test_no_run_and_too_many_runs_are_refused(tmp_path, view):
    asked = client(tmp_path)
    assert asked.get(f"/api/{view}").status_code == 400
    many = ",".join(f"{i:032x}" for i in range(201))
    assert asked.get(f"/api/{view}?runs={many}").status_code == 400
    assert asked.get(f"/api/{view}?runs={'0' * 32}").status_code == 404


# Lineage ----------------------------------------------------------------------------------------


def test_lineage_leads_from_teachers_to_students(tmp_path):
    teacher = record(tmp_path, name="large")
    student = record(tmp_path, name="distill", parent=teacher)
    grandchild = record(tmp_path, parent=student)
    orphan = record(tmp_path, parent="f" * 32)
    other = record(tmp_path, curves={"loss.train": [0.1], "inference_result.test": [0.5]})
    found = client(tmp_path).get("/api/lineage").json()
    nodes = {node["uuid"]: node for node in found["nodes"]}
    assert set(nodes) == {teacher, student, grandchild, orphan, other, "f" * 32}
    assert nodes[teacher]["name"] == "large"
    assert nodes[teacher]["metric"] == {"name": "accuracy.test", "value": 0.9}
    assert nodes[other]["metric"] == {"name": "inference_result.test", "value": 0.5}
    assert nodes["f" * 32]["status"] == "missing"
    assert {(e["teacher"], e["student"]) for e in found["edges"]} == {
        (teacher, student),
        (student, grandchild),
        ("f" * 32, orphan),
    }


def test_an_ensemble_has_an_edge_from_each_of_its_members(tmp_path):
    one, two = record(tmp_path), record(tmp_path)
    members = [{"kind": "run", "uuid": uuid, "step": 20} for uuid in (one, two)]
    inner = {"kind": "ensemble", "members": members[1:]}
    made_by = {"kind": "ensemble", "members": [members[0], inner, {"kind": "reference"}]}
    student = record(tmp_path, fields={"teacher": {"fingerprint": "x", "made_by": made_by}})
    asked = client(tmp_path)
    edges = asked.get("/api/lineage").json()["edges"]
    assert [(e["teacher"], e["student"]) for e in edges] == [(one, student), (two, student)]
    assert asked.get(f"/api/runs/{one}").json()["children"] == [student]


def test_a_run_that_calls_itself_its_teacher_breaks_nothing(tmp_path):
    one, two = record(tmp_path), record(tmp_path)
    edit(folder(tmp_path, one) / "run.json", parent=one)
    edit(folder(tmp_path, two) / "run.json", parent=two)
    asked = client(tmp_path)
    assert len(asked.get("/api/lineage").json()["edges"]) == 2
    assert asked.get(f"/api/transfer?runs={one}").status_code == 200


# What was transferred -----------------------------------------------------------------------------


def evaluated(root, accuracy: float, **options) -> str:
    uuid = record(root, **options)
    (folder(root, uuid) / "evaluation.json").write_text(json.dumps(evaluation(accuracy)))
    return uuid


def test_to_a_distilled_run_come_its_teacher_and_the_newest_plain_run_like_it(tmp_path):
    teacher = evaluated(tmp_path, 0.95, model=LARGE)
    evaluated(tmp_path, 0.7, model=SMALL, experiment="cifar10")
    evaluated(tmp_path, 0.7, model=SMALL, config={"epochs": 9})
    older = evaluated(tmp_path, 0.7, model=SMALL)
    plain = evaluated(tmp_path, 0.8, model=SMALL)
    edit(folder(tmp_path, older) / "run.json", started="2001-01-01T00:00:00+00:00")
    student = evaluated(tmp_path, 0.9, model=SMALL, parent=teacher)
    found = client(tmp_path).get("/api/transfer", params={"runs": student}).json()
    assert [(run["uuid"], run["role"]) for run in found["runs"]] == [
        (teacher, "teacher"),
        (plain, "plain"),
        (student, "distilled"),
    ]
    assert [run["evaluation"]["accuracy"] for run in found["runs"]] == [0.95, 0.8, 0.9]
    assert found["classes"] == ["cat", "dog"]


def test_of_several_plain_runs_the_most_alike_is_compared_with(tmp_path):
    def config(seed, **options):
        return {"seed": seed, "config": {"epochs": 3, "seed": seed, **options}, "model": SMALL}

    teacher = evaluated(tmp_path, 0.95, model=LARGE)
    record(tmp_path, **config(1, subset=0))
    alike = evaluated(tmp_path, 0.8, **config(1, subset=0))
    evaluated(tmp_path, 0.8, **config(2, subset=0))
    evaluated(tmp_path, 0.5, **config(1, subset=100))
    student = evaluated(tmp_path, 0.9, **config(1, subset=0, temperature=4.0), parent=teacher)
    found = client(tmp_path).get("/api/transfer", params={"runs": student}).json()["runs"]
    assert [run["uuid"] for run in found] == [teacher, alike, student]


def test_runs_that_are_chosen_stay_as_they_are_chosen(tmp_path):
    teacher = evaluated(tmp_path, 0.95, model=LARGE)
    older, newer = evaluated(tmp_path, 0.7, model=SMALL), evaluated(tmp_path, 0.8, model=SMALL)
    student = evaluated(tmp_path, 0.9, model=SMALL, parent=teacher)
    asked = client(tmp_path)
    found = asked.get("/api/transfer", params={"runs": f"{student},{older}"}).json()["runs"]
    assert [run["uuid"] for run in found] == [teacher, older, student]
    found = asked.get("/api/transfer", params={"runs": f"{newer},{older}"}).json()["runs"]
    assert [(run["uuid"], run["role"]) for run in found] == [(newer, "plain"), (older, "plain")]


def test_a_run_whose_teacher_is_no_run_is_distilled_and_none_to_compare_with(tmp_path):
    teacher = evaluated(tmp_path, 0.9, model=LARGE)
    fields = {"teacher": {"fingerprint": "x", "made_by": None}}
    other = evaluated(tmp_path, 0.9, model=SMALL, fields=fields)
    student = evaluated(tmp_path, 0.9, model=SMALL, parent=teacher)
    asked = client(tmp_path)
    (found,) = asked.get("/api/transfer", params={"runs": other}).json()["runs"]
    assert found["role"] == "distilled"
    found = asked.get("/api/transfer", params={"runs": student}).json()["runs"]
    assert [run["uuid"] for run in found] == [teacher, student]


def test_no_run_is_like_one_whose_architecture_is_not_known(tmp_path):
    teacher = evaluated(tmp_path, 0.9, model=LARGE)
    evaluated(tmp_path, 0.8)
    student = evaluated(tmp_path, 0.9, parent=teacher)
    found = client(tmp_path).get("/api/transfer", params={"runs": student}).json()["runs"]
    assert [run["uuid"] for run in found] == [teacher, student]


def test_a_run_without_an_evaluation_is_shown_without(tmp_path):
    teacher = record(tmp_path)
    student = record(tmp_path, parent=teacher, model=SMALL)
    found = client(tmp_path).get("/api/transfer", params={"runs": student}).json()
    assert [(run["role"], run["evaluation"]) for run in found["runs"]] == [
        ("teacher", None),
        ("distilled", None),
    ]
    assert found["classes"] == found["problems"] == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        json.dumps(evaluation(classes=["cat"])),
        json.dumps(evaluation(classes=[1, 2])),
        json.dumps(evaluation(confusion=[[1, 2], [3]])),
        json.dumps(evaluation(confusion=[[1, -2], [3, 4]])),
        json.dumps(evaluation(confusion=[["<b>", 0], [0, 0]])),
        json.dumps(evaluation(bins=[1])),
        json.dumps(evaluation(bins={})),
        json.dumps(evaluation(accuracy="high")),
        json.dumps(evaluation(ece=10**400)),
    ],
)
def test_a_damaged_evaluation_is_a_problem(tmp_path, content):
    uuid = record(tmp_path)
    (folder(tmp_path, uuid) / "evaluation.json").write_text(content)
    found = client(tmp_path).get("/api/transfer", params={"runs": uuid}).json()
    assert found["runs"][0]["evaluation"] is None
    (problem,) = found["problems"]
    assert problem["path"] == f"digits/{uuid}"
    assert "evaluation.json is damaged" in problem["message"]


def test_nan_in_an_evaluation_is_null(tmp_path):
    uuid = record(tmp_path)
    content = json.dumps(evaluation(kl=float("nan")))
    (folder(tmp_path, uuid) / "evaluation.json").write_text(content)
    found = client(tmp_path).get("/api/transfer", params={"runs": uuid}).json()
    assert found["runs"][0]["evaluation"]["kl"] is None


# Pages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/compare", "/lineage", "/transfer", "/runs/{uuid}"])
def test_every_page_is_html_whose_scripts_and_styles_are_ours(tmp_path, path):
    import re

    uuid = record(tmp_path)
    asked = client(tmp_path)
    answer = asked.get(path.format(uuid=uuid))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    linked = re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text)
    assert any(address.endswith(".js") for address in linked)
    for address in linked:
        assert asked.get(address).status_code == 200, address
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|https?://", answer.text)


@pytest.mark.parametrize("path", ["/runs/" + "0" * 32, "/runs/<script>alert(1)</script>", "/x<b>"])
def test_a_page_that_is_not_there_says_so_and_escapes_what_was_asked(tmp_path, path):
    answer = client(tmp_path).get(path)
    assert answer.status_code == 404
    assert "<script>alert" not in answer.text
    assert "<b>" not in answer.text


def test_text_of_runs_stays_out_of_the_pages(tmp_path):
    """Scripts ask for it as JSON; a page holds the root and a UUID."""
    text = "<img src=x onerror=alert(1)>"
    uuid = record(tmp_path, name=text, comment=text, config={text: text}, curves={text: [1.0]})
    asked = client(tmp_path)
    for path in ("/", f"/runs/{uuid}", f"/compare?runs={uuid}", "/lineage"):
        assert text not in asked.get(path).text
    json_type = asked.get(f"/api/runs/{uuid}").headers["content-type"]
    assert json_type == "application/json"


def test_static_files_stay_in_their_folder(tmp_path):
    asked = client(tmp_path)
    for path in ("%2e%2e/base.html", "..%2fbase.html", "%2e%2e%2f%2e%2e%2fapp.py", ""):
        assert asked.get(f"/static/{path}").status_code == 404


def test_plotly_comes_from_the_installed_package(tmp_path):
    answer = client(tmp_path).get("/static/plotly.min.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert len(answer.content) > 1_000_000
    assert "plotly.js v" in answer.text[:200]
