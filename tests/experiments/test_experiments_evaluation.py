"""What each evaluation of a classification run measures and writes down."""

from __future__ import annotations

import contextlib
import io
import json
import re

import pytest
import torch
from experiment_case import command
from torch import nn
from torch.nn import functional as F

from distillation import cli, runs
from distillation.data import TensorLoader, digits
from distillation.errors import TeacherError
from distillation.teacher import as_teacher
from distillation.transfer_hook import TransferHook
from experiments.evaluation import ComputedOnce


def written(run: runs.Run) -> dict:
    return json.loads((run.path / "evaluation.json").read_text())


def trained_student(root, *options: str) -> runs.Run:
    uuid = command("digits.distill", "--subset", "640", *options, root=root).uuid
    return runs.find(uuid, root=root)


@pytest.fixture(scope="module")
def student(trained):
    """A student of two epochs."""
    root = trained.path.parent.parent
    return trained_student(root, "--epochs", "2", "--teacher", trained.uuid)


def distill(*arguments: str) -> str:
    """What `distill …` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    assert not end.value.code
    return out.getvalue()


def logits_and_labels(run: runs.Run):
    """A recorded model's logits of the test images, one image after the other."""
    train, test = digits()
    loader = TensorLoader(test, 360, shuffle=False, mean=train.mean, std=train.std)
    images, labels, *_ = next(iter(loader))
    with torch.no_grad():
        return run.load_model()(images).double(), labels


def test_what_is_written_is_what_the_saved_models_say(student, trained):
    (logits, labels), (large, _) = logits_and_labels(student), logits_and_labels(trained)
    told = written(student)
    chosen = logits.argmax(1)
    assert told["accuracy"] == pytest.approx((chosen == labels).double().mean().item())
    assert told["agreement"] == pytest.approx((chosen == large.argmax(1)).double().mean().item())
    p, log_p, log_q = large.softmax(1), large.log_softmax(1), logits.log_softmax(1)
    assert told["kl"] == pytest.approx((p * (log_p - log_q)).sum(1).mean().item(), rel=1e-4)
    for true in range(10):
        for predicted in range(10):
            count = ((labels == true) & (chosen == predicted)).sum().item()
            assert told["confusion"][true][predicted] == count
    assert told["classes"] == [str(digit) for digit in range(10)]
    assert (told["split"], told["epoch"], told["step"]) == ("test", 2, 1280)


def test_the_error_follows_from_the_bins_that_are_written(student):
    told = written(student)
    assert len(told["bins"]) == 15
    assert sum(row["count"] for row in told["bins"]) == 360
    gaps = [
        row["count"] * abs(row["confidence"] - row["accuracy"])
        for row in told["bins"]
        if row["count"]
    ]
    assert told["ece"] == pytest.approx(sum(gaps) / 360)


def test_each_epoch_has_its_measures_among_the_metrics(student):
    for name in ("ece", "agreement", "kl"):
        steps, values = student.curve(f"{name}.test")
        assert steps == [640, 1280]
        assert values[-1] == pytest.approx(written(student)[name])
    # An untrained student is less like its teacher
    first, last = student.curve("kl.test")[1]
    assert last < first


def test_distill_evaluate_and_show_tell_the_same(student):
    place = ["--runs", str(student.path.parent.parent)]
    told = json.loads(distill("evaluate", student.uuid[:8], "--json", *place))
    last = written(student)
    for name in ("accuracy", "ece", "agreement", "kl"):
        assert told[name] == pytest.approx(last[name], rel=1e-4)
    assert told["teacher"] == student.parent_uuid
    distill("evaluate", student.uuid, "--save", *place)
    for name in ("split", "epoch", "step", "classes", "images", "confusion"):
        assert written(student)[name] == last[name]
    shown = distill("show", student.uuid, *place)
    compared = distill("compare", student.uuid, student.parent_uuid, *place)
    for name, better in (("ece", "lowest"), ("kl", "lowest"), ("agreement", "highest")):
        assert re.search(rf"^{name}\.test +0?\.?\d", shown, re.MULTILINE)
        assert f"{name}.test ({better})" in compared


def test_a_run_without_a_teacher_agrees_with_none(trained):
    told = written(trained)
    assert (told["agreement"], told["kl"]) == (None, None)
    assert trained.summary["ece.test"] == told["ece"]
    assert not {"agreement.test", "kl.test"} & set(trained.summary)


def test_held_out_images_are_measured_and_the_test_images_written(store, trained):
    run = trained_student(store, "--epochs=1", "--holdout=200", "--teacher", trained.uuid)
    for name in ("ece", "agreement", "kl"):
        assert f"{name}.valid" in run.summary
    assert sum(map(sum, written(run)["confusion"])) == 360


def test_a_teacher_table_is_compared_with_like_the_teacher(store, trained):
    run = trained_student(
        store, "--epochs=1", "--teacher", trained.uuid, "--set", "teacher_table=auto"
    )
    (logits, _), (large, _) = logits_and_labels(run), logits_and_labels(trained)
    kl = F.kl_div(logits.log_softmax(1), large.softmax(1), reduction="batchmean").item()
    assert written(run)["kl"] == pytest.approx(kl, rel=1e-3)  # the table rounds to fp16


class Counting(nn.Module):
    """A teacher that knows how many images it has seen."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return F.one_hot(images.flatten(1).argmax(1) % 10, 10).float()


def test_the_teacher_sees_each_test_image_once():
    _, test = digits()
    loader = TensorLoader(test, 100, shuffle=False)
    model = Counting()
    once = ComputedOnce(as_teacher(model), loader)
    for _ in range(3):
        for batch in loader:
            logits = once(batch.images, sample=batch.sample, view=batch.view)
            assert torch.equal(logits, model(batch.images))
            model.seen -= len(batch.images)
    assert model.seen == 360
    assert once.fingerprint == as_teacher(model).fingerprint
    with pytest.raises(TeacherError, match="sample="):
        once(batch.images)


def test_one_process_of_two_asks_for_its_share_only():
    _, test = digits()
    loader = TensorLoader(test, 100, shuffle=False, rank=1, world_size=2)
    model = Counting()
    once = ComputedOnce(as_teacher(model), loader)
    for batch in loader:
        assert not once(batch.images, sample=batch.sample).isnan().any()
    assert model.seen == 180


def test_a_step_that_adds_nothing_has_no_such_measures():
    metrics = {"loss.test": 0.5}
    evaluation = TransferHook(["a", "b"])
    evaluation.on_validate_start(None, "test")
    evaluation.on_validate_end(None, "test", metrics)
    assert metrics == {"loss.test": 0.5}
