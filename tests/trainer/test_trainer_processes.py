"""Two processes train what one process trains."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from trainer_kit import effect_of, make, trained

from distillation import runs
from distillation.errors import ConfigError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(root):
    """What two gloo processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    common = {
        **os.environ,
        "PYTHONPATH": path,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(HERE / "processes.py"), str(root / "runs"), str(root / "two.pt")]
    started = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return torch.load(root / "two.pt", weights_only=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process finds."""
    return processes.everything(tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize("name", ["weights", "ema", "accumulated", "dealt", "layers", "resumed"])
def test_the_weights_agree_after_twenty_steps(one, two, name):
    assert (one[name] - two[name]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "name",
    ["loss.train", "loss.valid", "accuracy.train", "accuracy.valid", "test", "test on one image"],
)
def test_metrics_are_gathered(one, two, name):
    assert two[name] == pytest.approx(one[name], abs=1e-5)


@pytest.mark.parametrize("name", ["ece.valid", "agreement.valid", "kl.valid"])
def test_what_was_taken_over_is_gathered(one, two, name):
    assert two[name] == pytest.approx(one[name], abs=1e-5)


def test_metrics_of_an_epoch_that_was_taken_up_halfway_count_each_sample_once(two):
    assert two["halfway"] == two["halfway whole"]


@pytest.mark.parametrize("name", ["validated", "averaged", "tested"])
def test_every_process_evaluates_with_the_batch_statistics_that_are_saved(two, name):
    together, alone = two[name]
    assert together == pytest.approx(alone, abs=1e-6)


def test_a_run_whose_last_checkpoint_is_its_best_goes_on(two):
    assert two["epochs after the best"] == 2


def test_each_image_is_counted_once_in_the_evaluation(one, two):
    assert one["evaluated"] == two["evaluated"] == two["fsdp evaluated"] == 64


def test_samples_are_counted_over_all_processes(one, two):
    assert two["samples"] == one["samples"]


@effect_of("sync_bn")
def test_batch_norm_sees_its_own_part_unless_it_is_synchronised(one, two):
    assert (one["sync_bn"] - two["sync_bn"]).abs().max() < 1e-4
    assert (one["batch norm"] - two["batch norm"]).abs().max() > 1e-3


def test_the_teacher_is_not_in_what_the_processes_share(two):
    assert two["held"] == len(list(make().parameters()))


def test_one_run_is_recorded_for_each_training(two, root):
    assert len(runs.list(root / "runs", experiment="plain")) == 1
    assert len(runs.list(root / "runs", experiment="stopped")) == 1
    assert {run.status for run in runs.list(root / "runs")} == {"completed"}


def test_the_main_process_alone_writes_the_log(two, root):
    (run,) = runs.list(root / "runs", experiment="plain")
    lines = (run.path / "train.log").read_text().splitlines()
    assert sum("begins, 10 epochs" in line for line in lines) == 1


@effect_of("fsdp")
def test_sharded_student_and_teacher_train_to_the_same_weights(one, two):
    assert (one["weights"] - two["fsdp"]).abs().max() < 1e-5
    assert (one["weights"] - two["fsdp resumed"]).abs().max() < 1e-5
    assert two["fsdp loss.valid"] > 0
    assert two["fsdp same object"] == "Net"
    assert {key.split(".")[0] for key in two["fsdp keys"]} == {"student", "teacher"}
    assert two["fsdp best"].keys() == make().state_dict().keys()


@pytest.mark.parametrize("more", [{}, {"ema": True}])
def test_sharding_needs_several_processes(tmp_path, more):
    with pytest.raises(ConfigError, match="there is one"):
        trained(tmp_path, fsdp=True, **more)
