"""The one training loop.

It owns the order of the data, gradient accumulation, precision, devices, the schedule, evaluation,
checkpoints and exact resume; what a training step *is* stays with whoever passes `step`: an
experiment, a trainer, a script. A step sees a batch and calls back:

```python
def step(batch, batch_idx):
    with engine.autocast():
        output = model(batch[0])
    loss = loss_func(output.float(), batch[1])
    engine.log({"loss": loss}, n=len(batch[1]))
    if engine.is_train:
        engine.backward(loss)
        engine.optimizer_step()
        engine.zero_grad()
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from distillation.devices import make_accelerator
from distillation.errors import ConfigError
from distillation.hooks import HookList, Hooks
from distillation.interrupts import StopSignals
from distillation.meters import Meters
from distillation.processes import ManyProcesses
from distillation.replay import BatchIndex, Replay, groups, own_generators, samples_in
from distillation.resume import Resumable
from distillation.rng import set_rng_state, without_trace
from distillation.run_log import run_log
from distillation.step_calls import StepCalls

__all__ = ["BatchIndex", "Engine"]


class Engine(StepCalls, Resumable, ManyProcesses):
    """Trains `modules` by calling `step` on each batch of `train_loader` for `epochs` epochs.

    Arguments:
        step: `step(batch, batch_idx)`, called for training and for evaluation batches alike.
        modules: what is checkpointed, by name; weights are loaded strictly by name.
        optimizer, scheduler: torch's, or alike; the scheduler steps after each optimizer update.
        train_loader, valid_loaders: loaders; `valid_loaders` by split name (`{"test": loader}`).
        epochs: number of passes over `train_loader`.
        recorder: of the run store; None records nothing.
        accumulate: micro-batches a group; their losses are averaged, weighted by samples.
        clip_grad_norm: largest 2-norm of the gradient, or None.
        precision, device: names as in `distillation.devices`, or an `accelerator` instead.
        save_seconds: a checkpoint is written at least this often, and after every epoch.
        log_every: a row of running means (split `train_step`) is of this many batches of one
            epoch; what is left of the epoch is in its own row alone. 0: none.
        validate_every: epochs between evaluations; the last epoch is always evaluated.
        watch, watch_mode: metric that chooses the best checkpoint (`accuracy.valid`, "max").
        states: further objects with `state_dict` / `load_state_dict`. One with `per_process =
            True` has a state on each process; of the others the main process's is for all.
        hooks: called at the places named in `distillation.hooks`.
        samples_of: batch -> number of samples; by default the length of its first tensor.
    """

    def __init__(
        self,
        step: Callable[[Any, BatchIndex], None],
        *,
        modules: Mapping[str, nn.Module],
        optimizer: Any,
        train_loader: Iterable,
        epochs: int,
        scheduler: Any = None,
        valid_loaders: Mapping[str, Iterable] | None = None,
        recorder: Any = None,
        accumulate: int = 1,
        clip_grad_norm: float | None = None,
        precision: str = "fp32",
        device: str | None = None,
        accelerator: Accelerator | None = None,
        save_seconds: float = 45.0,
        log_every: int = 50,
        validate_every: int = 1,
        max_train_batches: int | None = None,
        max_valid_batches: int | None = None,
        watch: str | None = None,
        watch_mode: str = "max",
        states: Mapping[str, Any] | None = None,
        hooks: Iterable[Hooks] = (),
        samples_of: Callable[[Any], int] = samples_in,
        batch_index: Callable[[int | None], Any] = BatchIndex,
    ):
        for name, value, least in (
            ("epochs", epochs, 0),
            ("accumulate", accumulate, 1),
            ("validate_every", validate_every, 1),
            ("log_every", log_every, 0),
            ("max_train_batches", 1 if max_train_batches is None else max_train_batches, 1),
            ("max_valid_batches", 1 if max_valid_batches is None else max_valid_batches, 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}: {value!r}")
        if clip_grad_norm is not None and not clip_grad_norm > 0:
            raise ConfigError(f"clip_grad_norm must be above 0, or None: {clip_grad_norm!r}")
        if watch_mode not in ("max", "min"):
            raise ConfigError(f"watch_mode must be 'max' or 'min', got {watch_mode!r}")
        self.step, self.modules, self.optimizer = step, dict(modules), optimizer
        self.scheduler, self.epochs, self.recorder = scheduler, epochs, recorder
        self.train_loader, self.valid_loaders = train_loader, dict(valid_loaders or {})
        self.accumulate, self.clip_grad_norm = accumulate, clip_grad_norm
        self.accelerator = accelerator or make_accelerator(device, precision)
        self.device = self.accelerator.device
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.accelerator.mixed_precision == "fp16"
        )
        self.save_seconds, self.log_every = save_seconds, log_every
        self.validate_every = validate_every
        self.max_train_batches, self.max_valid_batches = max_train_batches, max_valid_batches
        self.watch, self.watch_mode = watch, watch_mode
        self.states, self.samples_of = dict(states or {}), samples_of
        logs = run_log(recorder, self.accelerator.is_main_process)
        self.hooks, self.batch_index = HookList([*hooks, *logs]), batch_index
        self.wrapped: dict[str, nn.Module] = {}

        self.is_train, self.split = False, "train"
        self.epoch = self.batch = self.samples = self.update = 0
        self.stop_training = self.interrupted = False
        self.best: dict[str, float] | None = None
        self.metrics: dict[str, float] = {}
        self.epoch_meters, self.step_meters = Meters(), Meters()
        self._extra: dict[str, float] = {}
        self._weight, self._group_end = None, True
        self._remember_hyperparameters()

    def fit(self, resume: bool = False) -> dict[str, float]:
        """Train to the last epoch; with `resume`, from the recorder's last checkpoint on.

        Returns the metrics of the last epoch. Ctrl-C and SIGTERM save at the next update, then
        raise KeyboardInterrupt; in what is left of a last epoch they wait for its end, and
        `interrupted` says that one came.
        """
        if resume:
            self.load_last()
        self._saved = time.monotonic()
        with closing(self.hooks), StopSignals() as self._signals:
            self.hooks.on_train_start(self)
            if resume and self._step_rng is not None:
                set_rng_state(self._step_rng)  # whatever the hooks have drawn
            while self.epoch < self.epochs and not self.stop_training:
                self._train_epoch()
                self._finish_epoch()
            self.hooks.on_train_end(self)
            self._stop_is_asked()
        return self.metrics

    def _train_epoch(self) -> None:
        self.is_train, self.split = True, "train"
        if self._epoch_trained:  # resumed between the last batch and the evaluation
            self.hooks.on_epoch_start(self)
            set_rng_state(self._step_rng)
            return
        replay = Replay(self.train_loader, self.epoch, self.batch, self._epoch_rng)
        self.hooks.on_epoch_start(self)
        self._epoch_rng = replay.rng
        index = self.batch_index(replay.total(self.max_train_batches))
        index.idx = self.batch
        if self.batch:
            replay.go_on_with(self._step_rng)
        for group in groups(replay, self.accumulate, self.batch, self.max_train_batches):
            self._train_group(group.batches, index)
            if self.stop_training:
                return
            # The end of the epoch has its own checkpoint, after the evaluation
            if not group.is_last and self._save_is_due():
                self.save()
                if self.interrupted:
                    raise KeyboardInterrupt
        if not self.batch:
            raise ConfigError(
                f"the training loader gave no batch in epoch {self.epoch + 1} of {self.epochs}: "
                "give one that can be iterated once an epoch (a generator ends with the first), "
                "and with drop_last=True a batch_size of at most the number of samples"
            )
        self._save_before_evaluation()

    def _train_group(self, batches: list[Any], index: Any) -> None:
        counts = [self.samples_of(batch) for batch in batches]
        total, everywhere = self._group_total(counts)
        for i, (batch, n) in enumerate(zip(batches, counts, strict=True)):
            self._group_end = i + 1 == len(counts)
            self._weight = None if total is None else n / total
            self._sync_gradients(self._group_end)
            self.hooks.on_batch_start(self, batch)
            self._count(n, everywhere[i])
            self.step(batch, index)
            self.hooks.on_batch_end(self, batch)
            index.idx += 1
            self.batch += 1
            if self.log_every and self.batch % self.log_every == 0:
                self._write_row(self.step_meters, "train_step")

    def evaluate(self, loader: Iterable, split: str) -> dict[str, float]:
        """Metrics of one pass over `loader` without gradients; leaves no trace in the training."""
        with self._evaluating(loader, split):
            self._share_buffers()
            self.hooks.on_validate_start(self, split)
            index = self.batch_index(None)
            with torch.no_grad():
                replay = Replay(loader, 0, 0, None, evaluation=True)
                index.total = replay.total(self.max_valid_batches)
                for group in groups(replay, 1, 0, self.max_valid_batches):
                    self.step(group.batches[0], index)
                    self.hooks.on_validate_batch_end(self, split, group.batches[0])
                    index.idx += 1
            means = self.epoch_meters.compute(self._reduce)
            metrics = {f"{name}.{split}": value for name, value in means.items()}
            self.hooks.on_validate_end(self, split, metrics)
        return metrics

    @contextmanager
    def _evaluating(self, loader: Iterable, split: str) -> Iterator[None]:
        """Puts back what an evaluation changes: random states and training flags among it."""
        before = self.is_train, self.split, self.epoch_meters
        own = [(generator, generator.get_state()) for generator in own_generators(loader)]
        self.is_train, self.split, self.epoch_meters = False, split, Meters()
        try:
            with without_trace(self.modules.values()):
                yield
        finally:
            self.is_train, self.split, self.epoch_meters = before
            for generator, state in own:  # the training loader may have the same
                generator.set_state(state)

    def _validates(self) -> bool:
        """Whether this epoch ends with an evaluation."""
        done = self.epoch + 1
        return done >= self.epochs or self.stop_training or done % self.validate_every == 0

    def _finish_epoch(self) -> None:
        self._settle_samples()
        metrics = {f"{n}.train": v for n, v in self.epoch_meters.compute(self._reduce).items()}
        metrics.update(self._extra)
        self.hooks.on_train_epoch_end(self, metrics)
        validated = self._validates()
        began = time.monotonic()
        if validated:
            for split, loader in self.valid_loaders.items():
                metrics.update(self.evaluate(loader, split))
            self._evaluation_seconds = time.monotonic() - began
        self.hooks.on_epoch_end(self, metrics)
        self.metrics = metrics
        if self.recorder is not None:
            self.recorder.log(self.samples, self.epoch, metrics)
        best = self._is_best(metrics)
        self.epoch += 1
        self.batch, self._epoch_rng, self._epoch_trained = 0, None, False
        self._extra = {}
        self.epoch_meters.reset()
        self.step_meters.reset()
        self.save(best)
        if validated:
            self._refuse_unmeasured(metrics)  # only now: the epoch is not lost
        if self._stop_is_asked() and self.epoch < self.epochs:
            raise KeyboardInterrupt
