"""Students that stop and go on: exactly as they were, but for what is given anew."""

from __future__ import annotations

import shutil
import signal

import pytest
import torch
from many_kit import cosine, make_loader, make_student, make_students, make_teacher, weights

from distillation import runs
from distillation.data import TensorLoader
from distillation.errors import CheckpointError, ConfigError, TeacherError
from distillation.many import distill_many
from distillation.models.digits import DigitsLargeModel
from distillation.precision import resolve_precision


class Interrupted(TensorLoader):
    """A stream that breaks off at one batch."""

    at = (1, 3)

    def batch(self, epoch, i):
        if (epoch, i) == self.at:
            raise KeyboardInterrupt
        return super().batch(epoch, i)


@pytest.mark.parametrize("lost_one", [False, True])
def test_stopped_in_an_epoch_and_resumed_equals_uninterrupted(tmp_path, lost_one):
    whole = make_students()
    expected = distill_many(whole, make_teacher(), make_loader(), epochs=2)
    breaking = make_loader()
    breaking.__class__ = Interrupted
    with pytest.raises(KeyboardInterrupt):
        distill_many(
            make_students(), make_teacher(), breaking, epochs=2, root=tmp_path, save_seconds=0
        )
    found = {run.name: run for run in runs.list(tmp_path)}
    assert {run.status for run in found.values()} == {"interrupted"}
    if lost_one:  # as after a kill between two students' checkpoints
        run = found["warm"]
        shutil.rmtree(run.path / "checkpoints" / str(run.checkpoints[-1]))

    students = make_students()
    results = distill_many(
        students,
        make_teacher(),
        make_loader(),
        epochs=2,
        root=tmp_path,
        resume={name: run.uuid for name, run in found.items()},
    )
    for name, student in students.items():
        assert torch.equal(weights(student), weights(whole[name])), name
        assert results[name].metrics == expected[name].metrics
        assert len(runs.find(found[name].uuid, tmp_path).metrics) == 2


class Signalled(TensorLoader):
    """A stream during whose batch somebody presses Ctrl-C."""

    at = (1, 3)

    def batch(self, epoch, i):
        if (epoch, i) == self.at:
            signal.raise_signal(signal.SIGINT)
        return super().batch(epoch, i)


def test_ctrl_c_in_an_epoch_saves_the_work_until_then(tmp_path):
    whole = make_student()
    distill_many({"a": whole}, make_teacher(), make_loader(), epochs=2)
    signalled = make_loader()
    signalled.__class__ = Signalled
    with pytest.raises(KeyboardInterrupt):
        distill_many({"a": make_student()}, make_teacher(), signalled, epochs=2, root=tmp_path)
    (run,) = runs.list(tmp_path)
    assert (run.status, run.checkpoints[-1]) == ("interrupted", 200 + 4 * 32)

    student = make_student()
    resumed = {"epochs": 2, "root": tmp_path, "resume": {"a": run.uuid}}
    distill_many({"a": student}, make_teacher(), make_loader(), **resumed)
    assert torch.equal(weights(student), weights(whole))


@pytest.mark.parametrize(("epochs", "status"), [(2, "completed"), (3, "interrupted")])
def test_ctrl_c_at_the_last_batch_lets_the_epoch_end(tmp_path, epochs, status):
    signalled = make_loader()
    signalled.__class__ = type("AtTheEnd", (Signalled,), {"at": (1, 6)})
    with pytest.raises(KeyboardInterrupt):
        distill_many({"a": make_student()}, make_teacher(), signalled, epochs=epochs, root=tmp_path)
    (run,) = runs.list(tmp_path)
    assert (run.status, run.checkpoints[-1], len(run.metrics)) == (status, 400, 2)


def trained_run(root):
    """UUID of the run of one student, after one epoch."""
    students = {"a": make_student()}
    return distill_many(students, make_teacher(), make_loader(), epochs=1, root=root)["a"].run_uuid


def test_hyper_parameters_given_anew_on_resume_win(tmp_path):
    uuid, schedules = trained_run(tmp_path), []
    again = make_student()
    again.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9)

    def kept(optimizer, steps):
        schedules.append(cosine(optimizer, steps))
        return schedules[-1]

    again.schedule = kept
    resumed = {"epochs": 2, "root": tmp_path, "resume": {"a": uuid}}
    distill_many({"a": again}, make_teacher(), make_loader(), **resumed)
    assert (schedules[0].T_max, schedules[0].base_lrs) == (2 * len(make_loader()), [0.01])


def test_resume_records_what_was_given_anew(tmp_path):
    uuid = trained_run(tmp_path)
    resumed = {"epochs": 2, "root": tmp_path, "resume": {"a": uuid}, "precision": "bf16"}
    distill_many({"a": make_student()}, make_teacher(), make_loader(), **resumed)
    run = runs.find(uuid, tmp_path)
    assert run.config["precision"] == "bf16"
    assert run.info["resumed"][-1]["changed"] == {"precision": ["fp32", "bf16"]}


def test_precision_auto_is_recorded_as_what_it_was(tmp_path):
    results = distill_many(
        {"a": make_student()},
        make_teacher(),
        make_loader(),
        epochs=1,
        root=tmp_path,
        precision="auto",
    )
    run = runs.find(results["a"].run_uuid, tmp_path)
    assert run.config["precision"] == resolve_precision("auto", "cpu")


def test_resume_refuses_another_kind_of_optimizer(tmp_path):
    uuid = trained_run(tmp_path)
    again = make_student()
    again.optimizer = torch.optim.AdamW
    resumed = {"epochs": 2, "root": tmp_path, "resume": {"a": uuid}}
    with pytest.raises(CheckpointError, match="trained with SGD and cannot go on with AdamW"):
        distill_many({"a": again}, make_teacher(), make_loader(), **resumed)


def test_resume_refuses_another_teacher_and_runs_without_a_common_checkpoint(tmp_path):
    students = {"a": make_student(), "b": make_student(seed=1)}
    results = distill_many(students, make_teacher(), make_loader(), epochs=1, root=tmp_path)
    uuids = {name: result.run_uuid for name, result in results.items()}
    options = {"epochs": 2, "root": tmp_path, "resume": uuids}
    with pytest.raises(TeacherError, match="teacher of other weights"):
        distill_many(students, DigitsLargeModel(), make_loader(), **options)
    shutil.rmtree(runs.find(uuids["b"], tmp_path).path / "checkpoints" / "200")
    with pytest.raises(CheckpointError, match=r"no checkpoint in common \(a: .*200\]; b: \[.*\]\)"):
        distill_many(students, make_teacher(), make_loader(), **options)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"optimizer": torch.optim.AdamW}, CheckpointError, "cannot go on with AdamW"),
        ({"config": {"views": object()}}, ConfigError, "views"),
    ],
    ids=["optimizer", "config"],
)
def test_a_refused_resume_leaves_all_runs_as_they_were(tmp_path, change, error, said):
    students = {"a": make_student(), "b": make_student(seed=1)}
    results = distill_many(students, make_teacher(), make_loader(), epochs=2, root=tmp_path)
    uuids = {name: result.run_uuid for name, result in results.items()}
    # As after a kill between two students' checkpoints: "a" would have to go back
    run = runs.find(uuids["b"], tmp_path)
    shutil.rmtree(run.path / "checkpoints" / str(run.checkpoints[-1]))
    before = {name: files_of(runs.find(uuid, tmp_path)) for name, uuid in uuids.items()}
    for name, value in change.items():  # refused after the run of "a" was accepted
        setattr(students["b"], name, value)
    with pytest.raises(error, match=said):
        distill_many(students, make_teacher(), make_loader(), epochs=3, root=tmp_path, resume=uuids)
    after = {name: files_of(runs.find(uuid, tmp_path)) for name, uuid in uuids.items()}
    assert after == before


def test_a_run_of_another_training_is_refused_and_left_alone(tmp_path):
    mine = runs.find(trained_run(tmp_path), tmp_path)
    with runs.create("digits", root=tmp_path) as alone:
        pass
    with runs.create("digits", root=tmp_path) as other:
        other.update(teacher=mine.info["teacher"])
        state = {"epoch": 1, "batch": 0}
        other.save_checkpoint(mine.checkpoints[-1], mine.checkpoint().weights, state)
    for recorder, said in ((alone, "has learned from no teacher"), (other, "another training")):
        again = {"epochs": 2, "root": tmp_path, "resume": {"a": recorder.uuid}}
        with pytest.raises(CheckpointError, match=said):
            distill_many({"a": make_student()}, make_teacher(), make_loader(), **again)
        assert runs.find(recorder.uuid, tmp_path).status == "completed"


def files_of(run):
    return {
        file.relative_to(run.path): file.read_bytes()
        for file in run.path.rglob("*")
        if file.is_file()
    }
