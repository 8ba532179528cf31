"""Epochs, evaluation, metrics, hooks and the best checkpoint."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from engine_case import digits_loader, images, make_engine, perceptron, resume, same, weights
from torch.utils.data import DataLoader, TensorDataset

from distillation import runs
from distillation.engine import BatchIndex
from distillation.errors import ConfigError
from distillation.hooks import Hooks


class Written(Hooks):
    """Writes down which hooks were called."""

    def __init__(self):
        self.calls = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda *args: self.calls.append((name, *[a for a in args if type(a) is str]))
        return super().__getattribute__(name)


def test_hooks_are_called_in_the_order_in_which_they_are_documented():
    written = Written()
    make_engine([images(8)], epochs=1, hooks=[written], valid_loaders={"test": [images(8)]}).fit()
    assert written.calls == [
        ("on_train_start",),
        ("on_epoch_start",),
        ("on_batch_start",),
        ("on_update_end",),
        ("on_batch_end",),
        ("on_train_epoch_end",),
        ("on_validate_start", "test"),
        ("on_validate_batch_end", "test"),
        ("on_validate_end", "test"),
        ("on_epoch_end",),
        ("on_checkpoint",),
        ("on_train_end",),
    ]
    assert {name for name, *_ in written.calls} == {n for n in vars(Hooks) if n.startswith("on_")}


def test_means_are_weighted_by_samples():
    engine = make_engine([], epochs=0)
    engine.log({"accuracy": torch.tensor(1.0)}, n=1)
    engine.log({"accuracy": torch.tensor(0.0)}, n=3)
    assert engine.epoch_meters.compute() == {"accuracy": 0.25}


def test_an_evaluation_counts_every_sample_once():
    data, labels = images(100)
    model = perceptron()
    uneven = [(data[:90], labels[:90]), (data[90:], labels[90:])]
    metrics = make_engine([], model=model, epochs=0).evaluate(uneven, "test")
    with torch.no_grad():
        right = (model(data).argmax(dim=-1) == labels).double().mean()
    assert metrics["accuracy.test"] == pytest.approx(float(right), abs=1e-7)


def test_an_evaluation_leaves_no_trace_in_the_training():
    class Drawing:
        """Batches whose making, and whose sight, draw from every generator."""

        def __iter__(self):
            for _ in range(3):
                data, labels = images(8)
                yield data + 0.1 * torch.randn(1) + random.random() + np.random.rand(), labels  # noqa: NPY002

    model = perceptron().train()
    model[3].eval()  # a part that the caller keeps in evaluation mode
    flags = [m.training for m in model.modules()]
    engine = make_engine([], model=model, epochs=0)
    engine.log({"loss": 1.0}, n=1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    before = weights(engine)
    engine.evaluate(Drawing(), "test")
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert [m.training for m in model.modules()] == flags
    assert engine.epoch_meters.compute() == {"loss": 1.0}
    assert same(weights(engine), before)
    assert torch.is_grad_enabled()


def test_an_evaluation_that_fails_leaves_no_trace_either():
    model = perceptron().train()
    engine = make_engine([], model=model, epochs=0)
    engine.is_train = True
    with pytest.raises(RuntimeError):
        engine.evaluate([(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long))], "test")
    assert engine.is_train
    assert engine.split == "train"
    assert model.training


def test_evaluating_more_often_does_not_change_the_training():
    class Drawing:
        def __iter__(self):
            data, labels = images(8)
            yield data + torch.randn(1), labels

    def trained(every: int):
        engine = make_engine(
            model=perceptron(0.5),
            epochs=3,
            validate_every=every,
            valid_loaders={"test": Drawing()},
        )
        engine.fit()
        return weights(engine)

    assert same(trained(1), trained(3))


def test_an_evaluation_leaves_a_generator_that_the_training_loader_shares():
    def trained(every: int):
        own = torch.Generator().manual_seed(3)
        loader = DataLoader(TensorDataset(*images(32)), 8, shuffle=True, generator=own)
        engine = make_engine(loader, epochs=3, validate_every=every, valid_loaders={"test": loader})
        engine.fit()
        return weights(engine)

    assert same(trained(1), trained(3))


def test_the_last_epoch_is_evaluated_whatever_validate_every_says():
    written = Written()
    loaders = {"test": [images(8)]}
    make_engine(
        [images(8)], epochs=5, validate_every=3, valid_loaders=loaders, hooks=[written]
    ).fit()
    names = [name for name, *_ in written.calls]
    epochs = [
        names[:i].count("on_epoch_start") for i, n in enumerate(names) if n == "on_validate_end"
    ]
    assert epochs == [3, 5]


def test_a_loader_with_its_own_generator_trains_as_in_a_plain_loop():
    def shuffled():
        own = torch.Generator().manual_seed(3)
        return DataLoader(TensorDataset(*images(32)), 8, shuffle=True, generator=own)

    engine = make_engine(shuffled(), epochs=3)
    engine.fit()
    model, loader = perceptron(), shuffled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        for data, labels in loader:
            torch.nn.functional.cross_entropy(model(data), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert same(weights(engine), model.state_dict())


def test_an_evaluation_can_be_cut_short():
    seen = Written()
    engine = make_engine([], epochs=0, max_valid_batches=2, hooks=[seen])
    engine.evaluate(digits_loader(320, 32), "valid")
    assert [name for name, *_ in seen.calls].count("on_validate_batch_end") == 2


def test_a_batch_knows_that_it_is_the_last():
    seen = []

    class Index(BatchIndex):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "idx" and value:
                seen.append((value, self.is_last))

    make_engine(digits_loader(96, 32), epochs=1, batch_index=Index).fit()
    assert seen == [(1, False), (2, True), (3, True)]


def test_a_loader_without_length_trains_to_its_end():
    data, labels = images(40)

    class Stream:
        def __iter__(self):
            for i in range(0, 40, 8):
                yield data[i : i + 8], labels[i : i + 8]

    engine = make_engine(Stream(), accumulate=2, epochs=1)
    engine.fit()
    assert (engine.samples, engine.update) == (40, 3)
    listed = make_engine(list(Stream()), accumulate=2, epochs=1)
    listed.fit()
    assert same(weights(engine), weights(listed))


def test_an_epoch_without_a_batch_says_what_to_do():
    dropped = DataLoader(TensorDataset(*images(6)), 8, drop_last=True)
    with pytest.raises(ConfigError, match=r"no batch in epoch 1 of 2.*drop_last"):
        make_engine(dropped).fit()
    once = (images(8) for _ in range(2))
    with pytest.raises(ConfigError, match=r"no batch in epoch 2 of 3.*a generator ends"):
        make_engine(once, epochs=3).fit()


def test_training_can_be_stopped_early_and_is_evaluated():
    class Stop(Hooks):
        def on_update_end(self, engine):
            engine.stop_training = engine.update == 3

    engine = make_engine(epochs=5, hooks=[Stop()], valid_loaders={"test": [images(32)]})
    metrics = engine.fit()
    assert engine.update == 3
    assert "accuracy.test" in metrics


def test_rows_of_running_means_and_of_epochs_are_recorded(tmp_path):
    with runs.create("engine", root=tmp_path) as recorder:
        make_engine(
            digits_loader(160, 32),
            epochs=2,
            recorder=recorder,
            log_every=2,
            valid_loaders={"test": [images(32)]},
        ).fit()
    run = runs.find(recorder.uuid, root=tmp_path)
    assert run.curve("loss.train_step")[0] == [64, 128, 224, 288]
    assert run.curve("loss.train")[0] == [160, 320]
    assert run.summary["accuracy.test"] == run.metrics[-1]["accuracy.test"]
    assert run.curve("loss.train")[1][1] < run.curve("loss.train")[1][0]


def test_a_row_of_running_means_is_of_one_epoch(tmp_path):
    class Counted(Hooks):
        def on_batch_start(self, engine, batch):
            engine.log({"batch": float(10 * engine.epoch + engine.batch)})

    with runs.create("engine", root=tmp_path) as recorder:
        make_engine([images(8)] * 3, recorder=recorder, log_every=2, hooks=[Counted()]).fit()
    rows = runs.find(recorder.uuid, root=tmp_path).curve("batch.train_step")[1]
    assert rows == [0.5, 10.5]


def test_the_best_checkpoint_is_the_one_that_watch_says(tmp_path):
    class Given(Hooks):
        values = iter([0.5, 0.9, float("nan"), 0.9, 0.7])

        def on_epoch_end(self, engine, metrics):
            metrics["accuracy.valid"] = next(self.values)

    with runs.create("engine", root=tmp_path) as recorder:
        engine = make_engine(
            digits_loader(64, 32),
            epochs=5,
            recorder=recorder,
            watch="accuracy.valid",
            hooks=[Given()],
        )
        engine.fit()
    run = runs.find(recorder.uuid, root=tmp_path)
    # The first of two equal ones; a NaN is never the best
    assert engine.best == {"value": 0.9, "step": 128, "epoch": 1}
    assert (run.best_step, run.checkpoints) == (128, [128, 320])
    assert run.metrics[2]["accuracy.valid"] is None


def test_a_loss_is_watched_downwards(tmp_path):
    with runs.create("engine", root=tmp_path) as recorder:
        engine = make_engine(epochs=3, recorder=recorder, watch="loss.train", watch_mode="min")
        engine.fit()
    losses = runs.find(recorder.uuid, root=tmp_path).curve("loss.train")[1]
    assert engine.best["value"] == min(losses)


def test_a_watched_metric_that_is_never_measured_is_an_error_with_those_there_are():
    engine = make_engine([images(8)], epochs=1, watch="acuracy.train")
    with pytest.raises(ConfigError, match=r"'acuracy\.train'.*did you mean 'accuracy\.train'"):
        engine.fit()


def test_an_epoch_is_not_lost_for_a_misspelt_metric_to_watch(tmp_path):
    with (
        pytest.raises(ConfigError, match="watch"),
        runs.create("engine", root=tmp_path) as recorder,
    ):
        make_engine(recorder=recorder, watch="acuracy.train").fit()
    assert runs.find(recorder.uuid, root=tmp_path).checkpoints == [320]
    whole = make_engine()
    whole.fit()
    assert same(weights(resume(tmp_path, recorder.uuid)), weights(whole))


def test_a_loss_that_is_not_a_number_is_recorded_as_such():
    data, labels = images(8)
    metrics = make_engine([(data * float("nan"), labels)], epochs=1).fit()
    assert math.isnan(metrics["loss.train"])


def test_a_batch_without_a_tensor_says_what_to_do():
    with pytest.raises(ConfigError, match="samples_of="):
        make_engine([["a", "b"]], epochs=1).fit()


def test_samples_are_counted_as_samples_of_says():
    engine = make_engine([images(8)], epochs=1, samples_of=lambda batch: 5)
    engine.fit()
    assert engine.samples == 5


def test_parameters_and_gradients_are_measured_in_the_row_of_the_epoch():
    engine = make_engine([images(8)], epochs=1)

    class Measure(Hooks):
        def on_update_end(self, engine):
            engine.log_parameters()

    engine.hooks.hooks.append(Measure())
    before = engine.modules["model"][1].weight.detach().clone()
    metrics = engine.fit()
    after = engine.modules["model"][1].weight
    assert metrics["param.1.weight.norm"] == pytest.approx(float(after.detach().norm()))
    # One step of plain SGD with momentum is the gradient times the rate
    assert metrics["grad.1.weight.norm"] * 0.1 == pytest.approx(
        float((after.detach() - before).norm()), rel=1e-4
    )
    assert {n.rsplit(".", 1)[1] for n in metrics if n.startswith("param.")} == {
        "norm",
        "mean",
        "std",
    }
