"""Runs that are being written, half-written, damaged, or deleted: said, and never a failure."""

from __future__ import annotations

import json
import os
import shutil
import threading

import pytest
from dashboard_kit import client, edit, evaluation, folder, listed, record

from distillation import runs


def problems(asked) -> dict[str, str]:
    return {p["path"]: p["message"] for p in asked.get("/api/runs").json()["problems"]}


def everything(asked, uuid: str) -> dict[str, int]:
    """The status of every address that tells something of a run."""
    addresses = [
        "/api/runs",
        f"/api/runs/{uuid}",
        f"/api/runs/{uuid}/curves",
        f"/api/runs/{uuid}/log",
        f"/api/runs/{uuid}/files/run.json",
        f"/api/compare?runs={uuid}",
        "/api/lineage",
        f"/api/transfer?runs={uuid}",
    ]
    return {address: asked.get(address).status_code for address in addresses}


def test_a_run_that_just_begins_is_a_problem_until_it_has_a_record(tmp_path):
    whole = record(tmp_path)
    (tmp_path / "digits" / ("a" * 32)).mkdir()
    asked = client(tmp_path)
    assert list(listed(asked)) == [whole]
    assert "no run.json" in problems(asked)[f"digits/{'a' * 32}"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"uuid": "x"}', b"[" * 100_000, b"9" * 10_000],
)
def test_a_damaged_record_is_a_problem(tmp_path, content):
    whole, broken = record(tmp_path), record(tmp_path)
    (folder(tmp_path, broken) / "run.json").write_bytes(content)
    asked = client(tmp_path)
    assert list(listed(asked)) == [whole]
    message = problems(asked)[f"digits/{broken}"]
    assert "run.json" in message
    assert str(tmp_path) not in message
    assert 500 not in everything(asked, broken).values()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a":' * 100_000, b"\xff"])
def test_a_run_with_a_damaged_configuration_is_listed_without(tmp_path, content):
    uuid = record(tmp_path)
    (folder(tmp_path, uuid) / "config.json").write_bytes(content)
    asked = client(tmp_path)
    assert listed(asked)[uuid]["config"] == {}
    assert "config.json" in problems(asked)[f"digits/{uuid}"]
    assert set(everything(asked, uuid).values()) == {200}


@pytest.mark.parametrize(
    "fields",
    [
        {"name": {"a": 1}, "comment": [1], "seed": "x", "ended": 3, "error": {"a": 1}},
        {"summary": {"loss": "x", "accuracy": [1], "ok": 10**400, "bool": True}},
        {"summary": None, "facts": None, "model": 3, "command": 7},
        {"started": "yesterday", "best_step": "x"},
        {"parent": "not a uuid"},
        {"name": "\ud800", "comment": "\0"},
    ],
)
def test_a_record_with_other_kinds_of_values_breaks_nothing(tmp_path, fields):
    uuid = record(tmp_path)
    edit(folder(tmp_path, uuid) / "run.json", **fields)
    asked = client(tmp_path)
    assert uuid in listed(asked)
    assert set(everything(asked, uuid).values()) == {200}


def test_nan_and_infinities_are_null(tmp_path):
    nan = float("nan")
    uuid = record(tmp_path, curves={"loss.train": [nan, 0.5, float("inf")], "kl": [nan]})
    place = folder(tmp_path, uuid)
    with (place / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "epoch": NaN, "time": 1, "loss.train": -Infinity}\n')
        file.write('{"step": 50, "epoch": 1e999, "time": 1, "loss.train": 1e999}\n')
    (place / "config.json").write_text('{"rate": NaN, "rates": [1e999], "momentum": 1e999}')
    edit(place / "run.json", facts={"macs": nan})
    asked = client(tmp_path)
    assert set(everything(asked, uuid).values()) == {200}
    run = listed(asked)[uuid]
    assert run["metrics"] == {"loss.train": None, "kl": None}
    assert (run["step"], run["epoch"]) == (50, None)
    assert run["config"]["rate"] is run["config"]["momentum"] is None
    found = asked.get(f"/api/runs/{uuid}/curves").json()["curves"]
    assert found["loss.train"] == {
        "steps": [10, 20, 30, 40, 50],
        "values": [None, 0.5, None, None, None],
    }


def test_a_torn_last_row_is_left_out_until_it_is_whole(tmp_path):
    uuid = record(tmp_path, curves={"loss.train": [0.5]})
    asked = client(tmp_path)
    with (folder(tmp_path, uuid) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "epoch": 0, "time": 1, "loss.tr')
        file.flush()
        torn = asked.get(f"/api/runs/{uuid}/curves").json()
        assert listed(asked)[uuid]["step"] == 10
        file.write('ain": 0.25}\n')
        file.flush()
        whole = asked.get(f"/api/runs/{uuid}/curves").json()
    assert torn["curves"]["loss.train"]["steps"] == [10]
    assert torn["damaged"] == 0
    assert whole["curves"]["loss.train"] == {"steps": [10, 20], "values": [0.5, 0.25]}
    assert listed(asked)[uuid]["step"] == 20


def test_damaged_rows_are_left_out_and_counted(tmp_path):
    uuid = record(tmp_path, curves={"loss.train": [0.5]})
    with (folder(tmp_path, uuid) / "metrics.jsonl").open("ab") as file:
        file.write(b"garbage\n[1]\n\xff\n")
        file.write(b'{"step": "x"}\n{"step": %d}\n{"step": true}\n' % 10**30)
        file.write(b'{"step": 20, "loss.train": "text", "accuracy": true, "other": [1]}\n')
        file.write(b'{"step": 30, "loss.train": %d}\n' % 10**400)
    asked = client(tmp_path)
    found = asked.get(f"/api/runs/{uuid}/curves").json()
    assert found["damaged"] == 6
    assert found["curves"]["loss.train"] == {"steps": [10, 20, 30], "values": [0.5, None, None]}
    (message,) = asked.get(f"/api/runs/{uuid}").json()["problems"]
    assert message == "metrics.jsonl is damaged: left out line 2, 3, 4 and 3 more"
    assert set(everything(asked, uuid).values()) == {200}


def test_a_run_deleted_underneath_is_not_found(tmp_path):
    uuid, other = record(tmp_path), record(tmp_path)
    asked = client(tmp_path)
    assert set(everything(asked, uuid).values()) == {200}
    shutil.rmtree(folder(tmp_path, uuid))
    statuses = everything(asked, uuid)
    assert statuses.pop("/api/runs") == statuses.pop("/api/lineage") == 200
    assert set(statuses.values()) == {404}
    assert list(listed(asked)) == [other]
    assert asked.get(f"/api/compare?runs={uuid},{other}").json()["missing"] == [uuid]


def test_a_run_whose_files_vanish_one_by_one_breaks_nothing(tmp_path):
    uuid = record(tmp_path)
    place = folder(tmp_path, uuid)
    (place / "evaluation.json").write_text(json.dumps(evaluation()))
    asked = client(tmp_path)
    for name in sorted(path.name for path in place.iterdir() if path.name != "run.json"):
        (place / name).unlink()
        assert set(everything(asked, uuid).values()) == {200}, name
    assert asked.get(f"/api/runs/{uuid}/curves").json()["curves"] == {}


def test_folders_and_pipes_in_the_place_of_files_break_nothing(tmp_path):
    uuid = record(tmp_path)
    place = folder(tmp_path, uuid)
    for name in ("config.json", "metrics.jsonl", "evaluation.json", "note.json"):
        (place / name).unlink(missing_ok=True)
        os.mkfifo(place / name) if name != "config.json" else (place / name).mkdir()
    assert set(everything(client(tmp_path), uuid).values()) == {200}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_in_the_place_of_a_record_holds_up_nobody(tmp_path, make):
    whole, uuid = record(tmp_path), record(tmp_path)
    path = folder(tmp_path, uuid) / "run.json"
    path.unlink()
    make(path)
    asked = client(tmp_path)
    assert list(listed(asked)) == [whole]
    assert "run.json cannot be read" in problems(asked)[f"digits/{uuid}"]


def test_a_store_of_links_is_read(tmp_path):
    """As tools make it that keep large files elsewhere."""
    uuid = record(tmp_path / "real")
    place = folder(tmp_path / "real", uuid)
    linked = tmp_path / "runs" / "digits" / uuid
    linked.mkdir(parents=True)
    for path in place.iterdir():
        (linked / path.name).symlink_to(path)
    asked = client(tmp_path / "runs")
    assert listed(asked)[uuid]["step"] == 20
    assert asked.get(f"/api/runs/{uuid}/curves").json()["curves"]


def test_the_same_uuid_in_two_experiments_is_a_problem(tmp_path):
    uuid = record(tmp_path, "digits")
    shutil.copytree(tmp_path / "digits", tmp_path / "copied")
    asked = client(tmp_path)
    assert len(asked.get("/api/runs").json()["runs"]) == 1
    assert [m for m in problems(asked).values() if "the same UUID" in m]
    assert set(everything(asked, uuid).values()) == {200}


def test_what_is_no_run_is_passed_over(tmp_path):
    uuid = record(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / ".hidden" / ("b" * 32)).mkdir(parents=True)
    (tmp_path / "digits" / "tables").mkdir()
    asked = client(tmp_path)
    assert list(listed(asked)) == [uuid]
    assert problems(asked) == {}


def test_reading_while_others_write_and_delete_never_fails(tmp_path):
    asked = client(tmp_path)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            uuid = record(tmp_path, curves={"loss.train": [0.5] * 20})
            runs.remove(uuid, root=tmp_path)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            answer = asked.get("/api/runs")
            assert answer.status_code == 200
            for run in answer.json()["runs"]:
                assert set(everything(asked, run["uuid"]).values()) <= {200, 404}
    finally:
        stop.set()
        writer.join()
