"""Killed at any moment and resumed by its UUID alone, a run ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
import torch
from experiment_case import last_weights, rows, wait_for

from distillation import runs

MOMENTS = ("while it starts", "after an epoch", "within an epoch")
IMAGES = 1437  # training images of the digits, so samples of an epoch
QUICK = ["--set", "save_seconds=0.05", "--set", "log_every=5"]


def killed_at_random(warm, name, arguments, root, kills, seed, moments=MOMENTS):
    """The run's UUID, and at which batch of an epoch its lives ended, after so many SIGKILLs."""
    chance = random.Random(seed)
    uuid, batches = None, []
    for _ in range(kills):
        job = warm.start(name, *(["--resume", uuid] if uuid else arguments), root=root)
        wait_for(lambda job=job: job.printed("recording run"))
        uuid = job.out.read_text().split("recording run ")[1].split()[0]
        moment = chance.choice(moments)
        if moment == "while it starts":
            time.sleep(chance.uniform(0.0, 0.15))
        elif moment == "after an epoch":
            wait_for(lambda job=job: job.printed("epoch "))
            time.sleep(chance.uniform(0.0, 0.15))
        else:
            known = runs.find(uuid, root=root).checkpoints
            wait_for(lambda known=known, uuid=uuid: saved_within_an_epoch(root, uuid, known))
        os.kill(job.pid, signal.SIGKILL)
        assert job.wait().code == -signal.SIGKILL, "it had ended before it was killed"
        run = runs.find(uuid, root=root)
        assert run.status == "interrupted"
        if run.checkpoints:
            batches.append(run.checkpoint(state=False).info["batch"])
    return uuid, batches


def saved_within_an_epoch(root, uuid, known):
    run = runs.find(uuid, root=root)
    new = [step for step in run.checkpoints if step not in known]
    return any(step % IMAGES for step in new)


def assert_same_run(resumed, whole):
    mine, other = last_weights(resumed), last_weights(whole)
    assert list(mine) == list(other)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert resumed.config == whole.config
    assert rows(resumed) == rows(whole)
    assert resumed.status == whole.status == "completed"
    for key in ("model", "facts", "teacher", "parent", "seed", "summary", "evaluation"):
        assert resumed.info.get(key) == whole.info.get(key), key
    measured = [(run.path / "evaluation.json").read_bytes() for run in (resumed, whole)]
    assert measured[0] == measured[1]


def test_a_student_killed_at_ten_random_moments_is_bit_identical(warm, store, trained):
    arguments = ["--teacher", trained.uuid[:8], "--epochs", "8", *QUICK]
    whole = warm.run("digits.distill", *arguments, root=store).uuid
    uuid, batches = killed_at_random(warm, "digits.distill", arguments, store, kills=10, seed=3)
    assert any(batches), "no life ended in the middle of an epoch"
    assert warm.run("digits.distill", "--resume", uuid, root=store).uuid == uuid
    assert_same_run(runs.find(uuid, root=store), runs.find(whole, root=store))


def test_a_teacher_with_dropout_and_a_best_checkpoint_is_too(warm, tmp_path):
    arguments = ["--epochs", "4", "--holdout", "200", "--set", "accumulate=2", *QUICK]
    whole = runs.find(warm.run("digits.large", *arguments, root=tmp_path).uuid, root=tmp_path)
    uuid, _ = killed_at_random(
        warm, "digits.large", arguments, tmp_path, kills=2, seed=2, moments=MOMENTS[1:]
    )
    warm.run("digits.large", "--resume", uuid, root=tmp_path)
    resumed = runs.find(uuid, root=tmp_path)
    assert_same_run(resumed, whole)
    assert (resumed.best_step, resumed.checkpoints) == (whole.best_step, whole.checkpoints)


def test_ctrl_c_saves_says_how_to_go_on_and_that_is_exact(warm, store, trained):
    arguments = ["--teacher", trained.uuid, "--epochs", "4", "--set", "log_every=5"]
    whole = warm.run("digits.distill", *arguments, root=store).uuid
    job = warm.start("digits.distill", *arguments, root=store)
    wait_for(lambda: job.printed("epoch "))
    os.kill(job.pid, signal.SIGINT)
    done = job.wait()
    assert done.code == 130
    assert "Traceback" not in done.err
    advice = done.err.splitlines()[-1].split()
    assert advice[:3] == ["python", "-m", "experiments.digits.distill"]
    assert advice[3] == "--resume"
    uuid = advice[4]
    assert advice[5:] == ["--runs", str(store)]
    assert runs.find(uuid, root=store).status == "interrupted"
    assert warm.run("digits.distill", "--resume", uuid, root=store).uuid == uuid
    assert_same_run(runs.find(uuid, root=store), runs.find(whole, root=store))


def test_what_is_given_anew_wins_and_is_recorded(warm, store, trained):
    first = warm.run("digits.distill", "--teacher", trained.uuid, "--epochs", "1", root=store)
    first_rate = runs.find(first.uuid, root=store).config["optimizer.learning_rate"]
    again = ["--resume", first.uuid, "--epochs", "2", "--set", "optimizer.learning_rate=0.02"]
    assert warm.run("digits.distill", *again, root=store).code == 0
    run = runs.find(first.uuid, root=store)
    assert (run.config["epochs"], run.config["optimizer.learning_rate"]) == (2, 0.02)
    assert [row["epoch"] for row in run.metrics if "accuracy.test" in row] == [0, 1]
    changed = run.info["resumed"][-1]["changed"]
    assert changed == {
        "epochs": [1, 2],
        "optimizer.learning_rate": [first_rate, 0.02],
    }


def test_a_run_that_has_ended_is_not_given_another_past(warm, store, trained):
    done = warm.run("digits.large", "--resume", trained.uuid, "--seed", "3", root=store)
    assert done.code == 2
    assert f"run {trained.uuid} has ended with seed=0, and nothing is left to train" in done.err
    assert runs.find(trained.uuid, root=store).info == trained.info
    assert runs.find(trained.uuid, root=store).config == trained.config


def test_a_run_that_has_ended_stays_as_it_is(warm, store, trained):
    run = runs.find(trained.uuid, root=store)
    before = rows(run), {k: v.clone() for k, v in last_weights(run).items()}
    assert warm.run("digits.large", "--resume", trained.uuid, root=store).uuid == trained.uuid
    again = runs.find(trained.uuid, root=store)
    assert rows(again) == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in last_weights(again).items())
    assert again.status == "completed"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_real_images_too(warm, tmp_path, cifar_archive):
    arguments = ["--data", str(cifar_archive), "--subset", "1024", "--epochs", "3", *QUICK]
    whole = warm.run("cifar10.small", *arguments, root=tmp_path).uuid
    uuid, _ = killed_at_random(
        warm, "cifar10.small", arguments, tmp_path, kills=2, seed=3, moments=MOMENTS[1:2]
    )
    warm.run("cifar10.small", "--resume", uuid, root=tmp_path)
    assert_same_run(runs.find(uuid, root=tmp_path), runs.find(whole, root=tmp_path))
