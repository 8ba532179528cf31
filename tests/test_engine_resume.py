"""A training that was killed goes on as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
from functools import partial

import numpy as np
import pytest
import torch
from engine_case import (
    digits_loader,
    images,
    make_engine,
    perceptron,
    resume,
    same,
    train_until_killed,
    weights,
)
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler

from distillation import runs
from distillation.checkpoint import read_checkpoint
from distillation.errors import CheckpointError, ConfigError
from distillation.hooks import Hooks

DROPOUT = partial(perceptron, 0.3)


class Noisy(Dataset):
    """Digits under transforms that draw from the generators of python, numpy and torch."""

    def __init__(self):
        self.images, self.labels = images(80)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        noise = torch.randn(()) + random.random() + np.random.rand()  # noqa: NPY002
        return self.images[i] + 0.1 * noise.float(), self.labels[i]


class Stream(IterableDataset):
    """The same without a length."""

    def __iter__(self):
        data = Noisy()
        return (data[i] for i in torch.randperm(len(data)).tolist())


def own_generator_of_a_batch_sampler():
    sampler = RandomSampler(Noisy(), generator=torch.Generator().manual_seed(3))
    return DataLoader(Noisy(), batch_sampler=BatchSampler(sampler, 8, drop_last=False))


LOADERS = {
    "ours": lambda: digits_loader(80, 8),
    "a list": lambda: list(digits_loader(80, 8)),
    "torch's": lambda: DataLoader(Noisy(), batch_size=8, shuffle=True),
    "torch's with its own generator": lambda: DataLoader(
        Noisy(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "torch's with a batch sampler": own_generator_of_a_batch_sampler,
    "torch's without a length": lambda: DataLoader(Stream(), batch_size=8),
    "torch's with two workers": lambda: DataLoader(
        Noisy(), batch_size=8, shuffle=True, num_workers=2
    ),
}


# In the middle of the first epoch, between the two, and in the middle of the second one; for
# workers, which take a second to start, once
@pytest.mark.parametrize(
    ("kind", "at"),
    [(k, at) for k in LOADERS for at in (3, 10, 14) if at == 14 or "workers" not in k],
)
def test_weights_are_bit_identical_after_a_kill(tmp_path, kind, at):
    def make(**options):
        options.setdefault("save_seconds", 1e9)
        model = DROPOUT()
        return make_engine(
            LOADERS[kind](),
            model=model,
            scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
            log_every=3,
            **options,
        )

    whole = make()
    whole.fit()
    uuid = train_until_killed(tmp_path, at, make)
    resumed = resume(tmp_path, uuid, make)
    assert same(weights(resumed), weights(whole))
    assert resumed.metrics == whole.metrics
    assert (resumed.samples, resumed.update) == (whole.samples, whole.update) == (160, 20)


def test_rows_are_neither_lost_nor_doubled(tmp_path):
    make = partial(make_engine, valid_loaders={"test": [images(32)]}, log_every=2)

    def rows(uuid):
        found = runs.find(uuid, root=tmp_path).metrics
        return [{k: v for k, v in row.items() if k != "time"} for row in found]

    with runs.create("engine", root=tmp_path) as recorder:
        make(recorder=recorder).fit()
    killed = train_until_killed(tmp_path, 13, make)
    resume(tmp_path, killed, make)
    assert rows(killed) == rows(recorder.uuid)


def test_accumulated_groups_are_taken_up_between_two_updates(tmp_path):
    make = partial(make_engine, accumulate=3)
    whole = make()
    whole.fit()
    resumed = resume(tmp_path, train_until_killed(tmp_path, 8, make), make)
    assert same(weights(resumed), weights(whole))


def test_killed_before_the_first_checkpoint_it_starts_over(tmp_path):
    whole = make_engine()
    whole.fit()
    uuid = train_until_killed(tmp_path, 0)
    assert same(weights(resume(tmp_path, uuid)), weights(whole))


def test_what_hooks_draw_when_the_training_starts_changes_nothing(tmp_path):
    class Draws(Hooks):
        def on_train_start(self, engine):
            torch.rand(engine.samples)  # more when it is resumed

    def make(hooks=(), **options):
        return make_engine(model=DROPOUT(), hooks=[Draws(), *hooks], **options)

    whole = make()
    whole.fit()
    resumed = resume(tmp_path, train_until_killed(tmp_path, 10, make), make)
    assert same(weights(resumed), weights(whole))


def test_a_best_checkpoint_whose_note_was_lost_is_noted_again(tmp_path):
    class Dies(Exception):
        pass

    make = partial(make_engine, watch="loss.train", watch_mode="min")
    with pytest.raises(Dies), runs.create("engine", root=tmp_path) as recorder:
        write = recorder._write_info

        def dying(**fields):
            if "best_step" in fields and recorder.last_step() == 640:
                raise Dies
            write(**fields)

        recorder._write_info = dying
        make(epochs=2, recorder=recorder).fit()
    assert runs.find(recorder.uuid, root=tmp_path).best_step == 320
    with runs.resume(recorder.uuid, root=tmp_path) as again:
        engine = make(epochs=2, recorder=again)
        engine.fit(resume=True)
    run = runs.find(recorder.uuid, root=tmp_path)
    assert (engine.best["step"], run.best_step, run.checkpoints) == (640, 640, [640])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_the_run_can_be_resumed(tmp_path, number):
    class PressesCtrlC(Hooks):
        def on_update_end(self, engine):
            if engine.update == 13:
                os.kill(os.getpid(), number)

    whole = make_engine()
    whole.fit()
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), runs.create("engine", root=tmp_path) as recorder:
        make_engine(recorder=recorder, hooks=[PressesCtrlC()]).fit()
    run = runs.find(recorder.uuid, root=tmp_path)
    assert (run.status, run.checkpoints) == ("interrupted", [13 * 32])
    assert signal.getsignal(number) is handler
    assert same(weights(resume(tmp_path, recorder.uuid)), weights(whole))
    assert runs.find(recorder.uuid, root=tmp_path).status == "completed"


def test_a_second_ctrl_c_does_not_wait_for_the_update(tmp_path):
    class Impatient(Hooks):
        def on_batch_end(self, engine, batch):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second one was not heard")

    with pytest.raises(KeyboardInterrupt):
        make_engine(hooks=[Impatient()]).fit()


def test_a_loader_that_has_lost_batches_is_an_error(tmp_path):
    # Without a length nothing else can tell
    uuid = train_until_killed(tmp_path, 8, lambda **o: make_engine(iter_of(10), **o))
    with pytest.raises(ConfigError, match="gave 4 batches where the checkpoint has seen 8"):
        resume(tmp_path, uuid, lambda **o: make_engine(iter_of(4), **o))


def iter_of(n):
    class Batches:
        def __iter__(self):
            return iter([images(8)] * n)

    return Batches()


def test_another_number_of_processes_is_refused(tmp_path):
    uuid = train_until_killed(tmp_path, 5)
    found = read_checkpoint(runs.find(uuid, root=tmp_path).path / "checkpoints" / "160")
    engine = make_engine()
    before = weights(engine)
    with pytest.raises(CheckpointError, match="trained by 2 processes"):
        engine.load_state_dict(found.weights, {**found.state, "ranks": found.state["ranks"] * 2})
    assert same(weights(engine), before)


def test_a_checkpoint_from_before_each_process_kept_its_sums_is_taken_up(tmp_path):
    whole = make_engine()
    whole.fit()
    uuid = train_until_killed(tmp_path, 13)
    run = runs.find(uuid, root=tmp_path)
    found = run.checkpoint("last")
    state = found.state
    for rank in state["ranks"]:
        state["meters"] = rank.pop("meters")
        del rank["states"]
    engine = make_engine()
    engine.load_state_dict(found.weights, state)
    assert engine.fit() == whole.metrics


def test_other_modules_are_refused(tmp_path):
    uuid = train_until_killed(tmp_path, 5)

    def other(**options):
        engine = make_engine(**options)
        engine.modules = {"student": engine.modules["model"]}
        return engine

    with pytest.raises(CheckpointError, match=r"without 'student'.* and with 'model'"):
        resume(tmp_path, uuid, other)


def test_another_architecture_is_refused_by_name(tmp_path):
    uuid = train_until_killed(tmp_path, 5)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(CheckpointError, match=r"4\.weight"):
        resume(tmp_path, uuid, partial(make_engine, model=other))


def test_to_resume_takes_a_recorder():
    with pytest.raises(ConfigError, match="recorder"):
        make_engine().fit(resume=True)


def test_further_states_come_back(tmp_path):
    class Counter:
        def __init__(self):
            self.value = 0

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    def make(hooks=(), **options):
        counter = Counter()

        class Counts(Hooks):
            def on_update_end(self, engine):
                counter.value += 1

        engine = make_engine(states={"counter": counter}, hooks=[Counts(), *hooks], **options)
        engine.counter = counter
        return engine

    assert resume(tmp_path, train_until_killed(tmp_path, 7, make), make).counter.value == 20


class Dies(Exception):
    """Stands for the end of a process in an evaluation."""


class DiesInEvaluation(Hooks):
    """Ends the training in its first evaluation."""

    def on_validate_start(self, engine, split):
        raise Dies


def test_a_row_that_was_written_behind_the_last_checkpoint_is_not_doubled(tmp_path):
    make = partial(make_engine, valid_loaders={"test": [images(32)]}, log_every=5)

    def rows(recorder):
        found = runs.find(recorder.uuid, root=tmp_path).metrics
        return [{k: v for k, v in row.items() if k != "time"} for row in found]

    with runs.create("engine", root=tmp_path) as whole:
        make(recorder=whole).fit()
    with pytest.raises(Dies), runs.create("engine", root=tmp_path) as recorder:
        engine = make(recorder=recorder, save_seconds=1e-9)
        save = engine.save

        def dies_before_the_epoch_is_saved(best=False):
            if engine.epoch:
                raise Dies
            save(best)

        engine.save = dies_before_the_epoch_is_saved
        engine.fit()
    assert recorder.last_step() == 320
    resume(tmp_path, recorder.uuid, make)
    assert rows(recorder) == rows(whole)


@pytest.mark.parametrize("kind", LOADERS)
def test_killed_in_an_evaluation_it_goes_on_with_the_evaluation(tmp_path, kind):
    def make(**options):
        model = DROPOUT()
        engine = make_engine(
            LOADERS[kind](), model=model, valid_loaders={"test": [images(32)]}, **options
        )
        step = engine.step

        def logs_parameters(batch, batch_idx):
            step(batch, batch_idx)
            if engine.is_train and batch_idx.is_last:
                engine.log_parameters()

        engine.step = logs_parameters
        return engine

    whole = make()
    whole.fit()
    with pytest.raises(Dies), runs.create("engine", root=tmp_path) as recorder:
        # An evaluation of unknown length, and no time to lose
        make(recorder=recorder, save_seconds=1e-9, hooks=[DiesInEvaluation()]).fit()
    assert recorder.last_step() == 80
    resumed = resume(tmp_path, recorder.uuid, make)
    assert same(weights(resumed), weights(whole))
    assert resumed.metrics == whole.metrics
    assert (resumed.samples, resumed.update) == (160, 20)
    first, last = (r for r in runs.find(recorder.uuid, root=tmp_path).metrics if "loss.test" in r)
    assert set(first) == set(last)
