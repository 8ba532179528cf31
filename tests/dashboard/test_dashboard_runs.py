"""The list of runs and a run's own facts, from stores that real recorders wrote."""

from __future__ import annotations

import os
from datetime import datetime

import pytest
from dashboard_kit import client, edit, folder, listed, record

from distillation import runs


def test_a_run_is_listed_with_what_it_recorded(tmp_path):
    teacher = record(tmp_path, name="large")
    uuid = record(
        tmp_path,
        name="distill",
        comment="a trial",
        seed=3,
        parent=teacher,
        config={"epochs": 3, "optimizer": {"learning_rate": 0.1}, "betas": [0.9, 0.999]},
        curves={"accuracy.test": [0.5, 0.9], "param.conv.mean": [1.0]},
    )
    run = listed(client(tmp_path))[uuid]
    assert run["experiment"] == "digits"
    assert (run["name"], run["comment"], run["seed"]) == ("distill", "a trial", 3)
    assert run["status"] == "completed"
    assert run["parent"] == teacher
    assert (run["step"], run["epoch"], run["epochs"]) == (20, 1, 3)
    assert run["config"] == {
        "epochs": 3,
        "optimizer.learning_rate": 0.1,
        "betas": "[0.9, 0.999]",
    }
    assert run["metrics"] == {"accuracy.test": 0.9}, "statistics of parameters are left out"
    for key in ("created", "updated", "ended"):
        assert datetime.fromisoformat(run[key]).utcoffset().total_seconds() == 0


@pytest.mark.parametrize(
    ("config", "epochs"),
    [
        ({"epochs": 3}, 3),
        ({"training_params": {"max_epochs": 4, "lr_warmup_epochs": 1}}, 4),
        ({"max_epoch": 5}, 5),
        ({"a": {"teacher_training": {"max_epochs": 9}}, "z": {"params": {"max_epochs": 2}}}, 2),
        ({"epochs": "many"}, None),
        ({"lr": 1}, None),
    ],
)
def test_how_many_epochs_a_run_is_to_have_is_told_by_its_configuration(tmp_path, config, epochs):
    uuid = record(tmp_path, config=config)
    assert listed(client(tmp_path))[uuid]["epochs"] == epochs


def test_the_newest_run_comes_first(tmp_path):
    uuids = [record(tmp_path) for _ in range(3)]
    for day, uuid in enumerate(uuids, 1):
        edit(folder(tmp_path, uuid) / "run.json", started=f"2026-01-0{day}T00:00:00+00:00")
    assert list(listed(client(tmp_path))) == uuids[::-1]


def test_a_running_run_shows_its_last_values_as_they_come(tmp_path):
    asked = client(tmp_path)
    with runs.create("digits", root=tmp_path) as recorder:
        recorder.log(10, 0, {"loss.train": 0.5})
        assert recorder.run.status == "running"  # a look writes what is buffered
        first = listed(asked)[recorder.uuid]
        recorder.log(20, 0, {"loss.train": 0.25})
        assert recorder.run.status == "running"
        second = listed(asked)[recorder.uuid]
    assert (first["status"], first["step"], first["metrics"]) == (
        "running",
        10,
        {"loss.train": 0.5},
    )
    assert (second["step"], second["metrics"]) == (20, {"loss.train": 0.25})
    assert listed(asked)[recorder.uuid]["status"] == "completed"


def test_a_run_whose_process_died_is_interrupted_and_running_when_resumed(tmp_path):
    uuid = record(tmp_path)
    edit(folder(tmp_path, uuid) / "run.json", status="running")
    asked = client(tmp_path)
    assert listed(asked)[uuid]["status"] == "interrupted"
    with runs.resume(uuid, tmp_path):
        assert listed(asked)[uuid]["status"] == "running"


def test_a_list_that_did_not_change_is_not_sent_again(tmp_path):
    record(tmp_path)
    asked = client(tmp_path)
    tag = asked.get("/api/runs").headers["etag"]
    again = asked.get("/api/runs", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    record(tmp_path)
    changed = asked.get("/api/runs", headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert len(changed.json()["runs"]) == 2


def test_an_empty_or_missing_root_has_no_runs(tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        assert client(root).get("/api/runs").json() == {"runs": [], "problems": []}


def test_details_name_files_checkpoints_students_and_all_metrics(tmp_path):
    import torch

    with runs.create("digits", root=tmp_path, model={"target": "torch.nn:Linear"}) as recorder:
        recorder.log(10, 0, {"loss.train": 0.5, "param.conv.mean": 1.0})
        recorder.save_checkpoint(10, {"model": {"weight": torch.ones(2)}}, best=True)
    student = record(tmp_path, parent=recorder.uuid)
    found = client(tmp_path).get(f"/api/runs/{recorder.uuid}").json()
    assert found["metric_names"] == ["loss.train", "param.conv.mean"]
    assert found["children"] == [student]
    assert found["environment"]["model"] == {"target": "torch.nn:Linear"}
    assert found["environment"]["versions"]["python"]
    names = {file["name"] for file in found["files"]}
    assert {"run.json", "config.json", "metrics.jsonl"} <= names
    (checkpoint,) = found["checkpoints"]
    assert (checkpoint["step"], checkpoint["best"]) == (10, True)
    assert checkpoint["weights"] == ["model"]
    assert checkpoint["bytes"] > 8
    assert found["error"] is None


def test_details_say_why_a_run_crashed(tmp_path):
    with pytest.raises(ZeroDivisionError), runs.create("digits", root=tmp_path) as recorder:
        1 / 0  # noqa: B018
    found = client(tmp_path).get(f"/api/runs/{recorder.uuid}").json()
    assert found["status"] == "crashed"
    assert found["error"] == "ZeroDivisionError: division by zero"


def test_long_configuration_values_are_whole_in_the_details_only(tmp_path):
    uuid = record(tmp_path, config={"classes": "x" * 1000})
    asked = client(tmp_path)
    assert len(listed(asked)[uuid]["config"]["classes"]) == 201
    assert asked.get(f"/api/runs/{uuid}").json()["config"]["classes"] == "x" * 1000


@pytest.mark.parametrize("rest", ["", "/curves", "/log", "/files/run.json"])
@pytest.mark.parametrize("uuid", ["0" * 32, "zz", "%2e%2e", "A" * 32])
def test_an_unknown_run_is_not_found(tmp_path, uuid, rest):
    record(tmp_path)
    answer = client(tmp_path).get(f"/api/runs/{uuid}{rest}")
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}


def test_a_text_file_of_the_run_is_shown_as_text(tmp_path):
    uuid = record(tmp_path)
    (folder(tmp_path, uuid) / "page.html").write_text("<script>alert(1)</script> é")
    answer = client(tmp_path).get(f"/api/runs/{uuid}/files/page.html")
    assert answer.text == "<script>alert(1)</script> é"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    [
        "../run.json",
        "..%2frun.json",
        "%2e%2e%2f%2e%2e%2fsecret",
        "%2e%2e",
        ".hidden",
        "checkpoints",
        "link",
        "pipe",
        "nothing",
        "run.json%00",
        "..\\run.json",
    ],
)
def test_nothing_but_files_of_the_run_is_shown(tmp_path, name):
    uuid = record(tmp_path / "runs")
    place = folder(tmp_path / "runs", uuid)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "runs" / "digits" / "run.json").write_text("secret")
    (place / ".hidden").write_text("secret")
    (place / "checkpoints").mkdir()
    (place / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(place / "pipe")
    answer = client(tmp_path / "runs").get(f"/api/runs/{uuid}/files/{name}")
    assert answer.status_code == 404
    assert "secret" not in answer.text.replace("secret'", "")


def test_weights_and_large_files_are_not_shown(tmp_path):
    uuid = record(tmp_path)
    place = folder(tmp_path, uuid)
    (place / "weights.bin").write_bytes(b"\0\1\2")
    (place / "latin.txt").write_bytes(b"\xe9")
    (place / "large.txt").write_text("x" * (2 << 20))
    asked = client(tmp_path)
    for name in ("weights.bin", "latin.txt", "large.txt"):
        answer = asked.get(f"/api/runs/{uuid}/files/{name}")
        assert answer.status_code == 415
        assert name in answer.json()["error"]
    shown = {f["name"]: f["shown"] for f in asked.get(f"/api/runs/{uuid}").json()["files"]}
    assert shown["large.txt"] is False
    assert shown["run.json"] is True


def test_the_end_of_the_log_is_shown(tmp_path):
    uuid = record(tmp_path)
    asked = client(tmp_path)
    empty = {"text": "", "truncated": False, "name": None}
    assert asked.get(f"/api/runs/{uuid}/log").json() == empty
    (folder(tmp_path, uuid) / "train.log").write_text("first\nsecond\nthird\n")
    whole = asked.get(f"/api/runs/{uuid}/log").json()
    assert whole == {"text": "first\nsecond\nthird\n", "truncated": False, "name": "train.log"}
    end = asked.get(f"/api/runs/{uuid}/log", params={"tail": 9}).json()
    assert (end["text"], end["truncated"]) == ("third\n", True)
    for wrong in ("0", "-1", "x", "1e3", "99999999"):
        assert asked.get(f"/api/runs/{uuid}/log", params={"tail": wrong}).status_code == 400
