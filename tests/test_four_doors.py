"""Same job, four doors.

The same student learns from the same teacher on the same batches through the experiment's step,
through `convert`, through `KDTrainer` and through the toolkit's call: after 20 updates on a CPU in
fp32 the weights are the same, bit for bit.
"""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from torch.nn import functional as F

from distillation import (
    KDTrainer,
    KnowledgeDistillationTraining,
    LogitsDistillationLoss,
    StaticLossBalancer,
    convert,
    export,
    runs,
)
from distillation.data import CropFlip, TensorLoader, digits
from distillation.models.digits import DigitsSmallModel
from experiments.command_line import run_main
from experiments.digits import distill, large

TEMPERATURE, SOFT, LABELS = 8.0, 0.9, 0.1
BATCH, UPDATES = 64, 20
# What the doors call it: experiment, torch, trainer, toolkit
OPTIMIZERS = {
    "sgd": ("SGD", torch.optim.SGD, "SGD", "sgd", 0.1),
    "adam": ("Adam", torch.optim.Adam, "Adam", "adam", 2e-3),
}


def experiment(main, *arguments, root):
    """An experiment's run, made in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
        run_main(main, [*arguments, "--runs", str(root)])
    assert not end.value.code
    return runs.find(out.getvalue().split()[-1], root)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The run of a large model, trained for two epochs."""
    torch.set_num_threads(1)
    return experiment(large.main, "--epochs", "2", root=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module", params=OPTIMIZERS)
def job(request, teacher):
    """(optimizer's names, the weights that the experiment's step gives)."""
    torch.set_num_threads(1)
    name, *_, rate = OPTIMIZERS[request.param]
    settings = {
        "epochs": 1,
        "batch_size": BATCH,
        "subset": BATCH * UPDATES,
        "channels_last": False,
        "schedule": "constant",
        "optimizer.optimizer": name,
        "optimizer.learning_rate": rate,
        "optimizer.momentum": 0,
        "optimizer.weight_decay": 0,
        "temperature": TEMPERATURE,
        "soft_targets_weight": SOFT,
        "label_loss_weight": LABELS,
    }
    sets = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    root = teacher.path.parent.parent
    run = experiment(distill.main, "--teacher", teacher.uuid, *sets, root=root)
    assert run.checkpoint().state["update"] == UPDATES
    return OPTIMIZERS[request.param], run.checkpoint(state=False).weights["model"]


def batches():
    train, _ = digits()
    train = train.subset(BATCH * UPDATES, seed=0)
    return TensorLoader(train, BATCH, views=CropFlip(padding=1, size=8, flip=False), seed=0)


def first_student():
    torch.manual_seed(0)
    return DigitsSmallModel()


def assert_same(student, expected):
    found = student.state_dict()
    assert found.keys() == expected.keys()
    differing = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not differing
    start = first_student().state_dict()
    assert not any(torch.equal(found[name], start[name]) for name in ("fc.weight", "fc.bias"))


def test_the_script_door(job, teacher):
    (_, optimizer_class, _, _, rate), expected = job
    model = convert(
        first_student(),
        teacher_model=teacher.load_model(),
        criterion=LogitsDistillationLoss(TEMPERATURE),
        loss_balancer=StaticLossBalancer(SOFT),
    )
    optimizer = optimizer_class(model.parameters(), lr=rate)
    model.train()
    for images, labels, *_ in batches():
        output = model(images)
        loss = model.compute_kd_loss(student_loss=F.cross_entropy(output, labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_same(export(model), expected)


def test_the_trainer_door(job, teacher, tmp_path):
    (_, _, optimizer, _, rate), expected = job
    student = first_student()
    KDTrainer("four_doors", tmp_path, device="cpu").train(
        student=student,
        teacher=teacher,
        training_params={
            "max_epochs": 1,
            "optimizer": optimizer,
            "initial_lr": rate,
            "loss": "KDLogitsLoss",
            "criterion_params": {
                "distillation_loss_coeff": SOFT,
                "temperature": TEMPERATURE,
            },
            "silent_mode": True,
        },
        train_loader=batches(),
    )
    assert_same(student, expected)


def test_the_toolkit_door(job, teacher, tmp_path):
    (_, _, _, optimizer, rate), expected = job
    training = KnowledgeDistillationTraining(
        train_data_loader=batches(),
        student_model=first_student(),
        teacher_model=teacher.load_model(),
        num_gpu_used=0,
        max_epoch=1,
        temperature=TEMPERATURE,
        optimize_method=optimizer,
        learning_rate=rate,
        final_loss_coeff_dict={"kd_loss": SOFT, "ce_loss": LABELS},
        ckpt_root_dir=tmp_path,
        silent_mode=True,
    )
    training.start_kd_training()
    assert_same(training.get_student_model(), expected)
