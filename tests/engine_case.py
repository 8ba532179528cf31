"""A small training on the digits that the engine's tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from distillation import runs
from distillation.data import TensorLoader, digits
from distillation.engine import Engine
from distillation.hooks import Hooks
from distillation.rng import seed_everything


class Killed(Exception):
    """Stands for the end of a process in the middle of a training."""


class KillAt(Hooks):
    """Ends the training after the batch of this number (from 1 on, over all epochs)."""

    def __init__(self, batch: int):
        self.left = batch

    def on_batch_start(self, engine: Engine, batch: Any) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


def perceptron(dropout: float = 0.0) -> nn.Module:
    """A small network without batch statistics, always with the same initial weights."""
    seed_everything(5)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10)
    )


def images(n: int = 320) -> tuple[torch.Tensor, torch.Tensor]:
    """So many digits and their labels, normalised, with one channel of 8×8 pixels."""
    train, _ = digits()
    batch = TensorLoader(train, n, seed=1).batch(0, 0)
    return batch.images, batch.labels


def digits_loader(n: int = 320, batch_size: int = 32, **options: Any) -> TensorLoader:
    """Batches of so many digits."""
    train, _ = digits()
    return TensorLoader(train.subset(n, seed=0), batch_size, **options)


def make_engine(
    loader: Any = None,
    *,
    model: nn.Module | None = None,
    optimizer: Callable[[Any], Any] | None = None,
    scheduler: Callable[[Any], Any] | None = None,
    epochs: int = 2,
    **options: Any,
) -> Engine:
    """An engine that trains `model` on the labels of the batches of `loader`."""
    model = perceptron() if model is None else model
    made = (optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)))(model.parameters())

    def step(batch: Any, batch_idx: Any) -> None:
        model.train(engine.is_train)
        target = batch[1]
        with engine.autocast():
            output = model(batch[0])
        loss = nn.functional.cross_entropy(output.float(), target)
        accuracy = (output.argmax(dim=-1) == target).float().mean()
        engine.log({"loss": loss, "accuracy": accuracy}, n=len(target))
        if engine.is_train:
            engine.backward(loss)
            engine.optimizer_step()
            engine.zero_grad()

    options.setdefault("device", "cpu")
    engine = Engine(
        step,
        modules={"model": model},
        optimizer=made,
        scheduler=scheduler(made) if scheduler else None,
        train_loader=digits_loader() if loader is None else loader,
        epochs=epochs,
        **options,
    )
    return engine


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    """Copies of the trained weights, by name."""
    return {k: v.clone() for k, v in engine.modules["model"].state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are bit-identical."""
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def train_until_killed(tmp_path: Any, at: int, make: Callable[..., Engine] = make_engine) -> str:
    """Train with a checkpoint after every update and die after batch `at`; the run's UUID."""
    try:
        with runs.create("engine", root=tmp_path) as recorder:
            make(recorder=recorder, save_seconds=-1.0, hooks=[KillAt(at)]).fit()
    except Killed:
        return recorder.uuid
    raise AssertionError("the training ended before it was killed")


def resume(tmp_path: Any, uuid: str, make: Callable[..., Engine] = make_engine) -> Engine:
    """Go on with a run to its end."""
    with runs.resume(uuid, root=tmp_path) as recorder:
        engine = make(recorder=recorder)
        engine.fit(resume=True)
    return engine
