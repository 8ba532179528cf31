"""Two processes train what one process trains on the same global batches."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from engine_case import KillAt, Killed, digits_loader, perceptron, weights
from torch import nn

from distillation import runs
from distillation.engine import Engine
from distillation.hooks import Hooks
from distillation.interrupts import StopSignals

EPOCHS, BATCH = 2, 32


def engine_of(rank: int, world_size: int, **options) -> Engine:
    """The same training, on this rank's share of each batch; 200 digits leave an uneven tail."""
    model = perceptron()

    def step(batch, batch_idx):
        network = engine.wrap("model")
        network.train(engine.is_train)
        output = network(batch.images)
        loss = nn.functional.cross_entropy(output, batch.labels)
        engine.log({"loss": loss}, n=len(batch.labels))
        if engine.is_train:
            engine.backward(loss)
            engine.optimizer_step()
            engine.zero_grad()

    def loader(**more):
        return digits_loader(200, BATCH, rank=rank, world_size=world_size, **more)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    engine = Engine(
        step,
        modules={"model": model},
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8),
        train_loader=loader(),
        valid_loaders={"test": loader(shuffle=False)},
        epochs=EPOCHS,
        accumulate=2,
        device="cpu",
        **options,
    )
    return engine


class SaveAndKillAt(KillAt):
    """Ends the training after the batch of this number, with a checkpoint of that moment."""

    def on_batch_start(self, engine, batch):
        if self.left == 0:
            engine.save()
        super().on_batch_start(engine, batch)


class LoseTheNote(Hooks):
    """Ends the training after its last checkpoint, with no note of which one is the best."""

    def on_checkpoint(self, engine, best):
        if engine.epoch == EPOCHS:
            if engine.recorder is not None:
                engine.recorder._write_info(best_step=None)
            raise Killed


def in_a_process(rank: int, world_size: int, port: int, root: str) -> None:
    """What each of the processes does: an uninterrupted run, a killed and resumed one, a stop."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    folder = Path(root)
    whole = engine_of(rank, world_size)
    metrics = whole.fit()

    def recorder(uuid=None):
        if rank != 0:
            return None
        return runs.resume(uuid, root=folder) if uuid else runs.create("two", root=folder)

    def killed_and_resumed(hook, **options):
        record = recorder()
        try:
            engine_of(rank, world_size, recorder=record, hooks=[hook], **options).fit()
        except Killed:
            if record is not None:
                record.finish("interrupted")
        record = recorder(record.uuid if record else None)
        engine = engine_of(rank, world_size, recorder=record, **options)
        metrics = engine.fit(resume=True)
        if record is not None:
            record.finish()
        return engine, metrics, record

    # Killed in the middle of the second epoch, after the checkpoint that ended the first
    resumed, again, record = killed_and_resumed(KillAt(10))
    # The same, after a checkpoint there
    _, halfway, _ = killed_and_resumed(SaveAndKillAt(11))
    # Killed at the end, with the best checkpoint written, but not noted as the best
    watch = {"watch": "loss.test", "watch_mode": "min"}
    noted, _, best_record = killed_and_resumed(LoseTheNote(), **watch)

    # A signal that only the second process gets ends both
    stopped = engine_of(rank, world_size)
    stopped._signals = StopSignals()
    stopped._signals.received = rank == 1
    torch.save(
        {
            "whole": weights(whole),
            "metrics": metrics,
            "resumed": weights(resumed),
            "metrics again": again,
            "metrics halfway": halfway,
            "best": noted.best["step"],
            "best noted": best_record.run.best_step if best_record else None,
            "samples": whole.samples,
            "stopped": stopped._stop_is_asked(),
            "uuid": record.uuid if record else None,
        },
        folder / f"{rank}.pt",
    )
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two gloo processes has come to."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(in_a_process, args=(2, port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)], folder


@pytest.fixture(scope="module")
def one():
    engine = engine_of(0, 1)
    return engine, engine.fit()


def assert_close(a, b, tolerance):
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance)


def test_two_processes_train_the_weights_that_one_trains(two, one):
    for found in two[0]:
        assert_close(found["whole"], weights(one[0]), 1e-5)
        assert found["samples"] == one[0].samples == 400


def test_metrics_are_those_of_all_samples_on_every_process(two, one):
    for found in two[0]:
        assert found["metrics"] == pytest.approx(one[1], abs=1e-5)


def test_both_processes_hold_the_same_weights(two):
    assert_close(two[0][0]["whole"], two[0][1]["whole"], 0)


def test_a_resumed_training_of_two_processes_is_bit_identical(two):
    for found in two[0]:
        assert_close(found["resumed"], found["whole"], 0)
        assert found["metrics again"] == found["metrics"]


def test_metrics_of_an_epoch_that_was_taken_up_halfway_count_each_sample_once(two):
    for found in two[0]:
        assert found["metrics halfway"] == found["metrics"]


def test_the_last_checkpoint_is_noted_as_the_best_by_all_processes_together(two):
    assert [found["best"] for found in two[0]] == [400, 400]
    assert two[0][0]["best noted"] == 400


def test_a_signal_to_one_process_stops_all(two):
    assert [found["stopped"] for found in two[0]] == [True, True]


def test_one_process_cannot_go_on_with_the_run_of_two(two):
    from distillation.errors import CheckpointError

    found, folder = two
    with runs.resume(found[0]["uuid"], root=folder) as recorder:
        engine = engine_of(0, 1, recorder=recorder)
        with pytest.raises(CheckpointError, match="trained by 2 processes"):
            engine.fit(resume=True)
