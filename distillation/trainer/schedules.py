"""Learning-rate schedules: warm-up, then a curve, then a cooldown, counted in optimizer updates.

Our own curves are closed forms over `torch.optim.lr_scheduler.LambdaLR`, so resuming is exact;
any torch scheduler takes their place. With S updates between warm-up and cooldown, s of them
done, initial rate L and E updates in an epoch:

- `Cosine`: L·(r + (1 - r)·(1 + cos(π·s/S))/2), r = cosine_final_lr_ratio (Loshchilov & Hutter 2017)
- `Poly`: L·(1 - s/S)^0.9 (Chen et al. 2018, DeepLab)
- `Exponential`: L·f^(s/E), f = lr_decay_factor
- `Step`: L·f^(number of listed epochs that have begun), epochs of the whole training
- `Function`: what `lr_schedule_function` gives
- `OneCycle`: torch's `OneCycleLR` with L as its maximum (Smith & Topin 2018)

Warm-up over W epochs: L·(e + 1)/(W + 1) in epoch e, or w + e·(L - w)/W from `warmup_initial_lr` w;
over N steps the same with steps. In the cooldown the rate stays what it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer, lr_scheduler

from distillation.errors import ConfigError, unknown
from distillation.trainer.params import PAGE, TrainingParams

CURVES = ("Step", "Cosine", "Poly", "Exponential", "Function", "OneCycle")
_SPELLINGS = {
    "exp": "Exponential",
    **{name.lower(): name for name in CURVES},
    **{f"{name.lower()}lrscheduler": name for name in CURVES},
    "explrscheduler": "Exponential",
}
PHASES = ("TRAIN_EPOCH_END", "TRAIN_BATCH_STEP")
_PER_STEP = ("OneCycleLR", "CyclicLR")

# update counted from the end of the warm-up, base rate -> rate
Curve = Callable[[int, float], float]


class Schedule:
    """The learning rate of every parameter group after each optimizer update.

    `step()` once per optimizer update, `epoch_end(metrics)` after each epoch that has results to
    compare (only `ReduceLROnPlateau` listens). `state_dict()` holds counters and plain numbers.
    Loading keeps the initial rates and options that the schedule was made with: parameters given
    anew win.
    """

    def __init__(self, optimizer: Optimizer, params: TrainingParams, updates_per_epoch: int):
        self.optimizer = optimizer
        self.params = params
        self.updates_per_epoch = max(1, updates_per_epoch)
        self.updates = 0
        self.base = [float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups]
        self.warmup_updates = self._warmup_updates()
        total = params.max_epochs * self.updates_per_epoch
        self.end = total - params.lr_cooldown_epochs * self.updates_per_epoch
        self.main_updates = max(1, self.end - self.warmup_updates)
        self.start = _warmup_start(optimizer, params)
        self.per_epoch = False
        # a curve of ours: a LambdaLR, too, as a user's may be
        self.closed_form = False
        self.metric_name: str | None = None
        self.main = self._main()
        self._set()

    def step(self) -> None:
        """Count one optimizer update and set the rates of the next."""
        self.updates += 1
        if self.closed_form:
            self._closed_form()
            return
        done = self.updates - self.warmup_updates
        due = not self.per_epoch or self.updates % self.updates_per_epoch == 0
        if done > 0 and self.updates < self.end and due and not self._plateau:
            self.main.step()
        self._set()

    def epoch_end(self, metrics: Mapping[str, float]) -> None:
        """Tell a `ReduceLROnPlateau` the metric that it follows."""
        if not self._plateau or not self.warmup_updates <= self.updates < self.end:
            return
        if self.metric_name not in metrics:
            raise ConfigError(unknown("metric of lr_mode", str(self.metric_name), metrics))
        self.main.step(metrics[self.metric_name])

    @property
    def _plateau(self) -> bool:
        return isinstance(self.main, lr_scheduler.ReduceLROnPlateau)

    def rates(self) -> list[float]:
        """The rates of the next update, one per parameter group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _set(self) -> None:
        groups = self.optimizer.param_groups
        if self.updates < self.warmup_updates:
            rates = [self._warm(b, s) for b, s in zip(self.base, self.start, strict=True)]
        elif self.updates == self.warmup_updates:
            rates = self.base if self._plateau else self.main.get_last_lr()
        else:
            return  # the scheduler has set them
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    def _warm(self, base: float, start: float | None) -> float:
        if self.params.lr_warmup_steps or self._by_batch:
            done, whole = self.updates, self.warmup_updates
        else:
            done, whole = self.updates // self.updates_per_epoch, self.params.lr_warmup_epochs
        if start is None:
            return base * (done + 1) / (whole + 1)
        return start + done * (base - start) / whole

    @property
    def _by_batch(self) -> bool:
        return self.params.warmup_mode in ("linear_batch_step", "LinearBatchLRWarmup")

    def _warmup_updates(self) -> int:
        if self.params.warmup_mode is None:
            return 0
        if self.params.lr_warmup_steps:
            return self.params.lr_warmup_steps
        return self.params.lr_warmup_epochs * self.updates_per_epoch

    # -- the part between warm-up and cooldown

    def _main(self) -> Any:
        name, options = split_mode(self.params.lr_mode)
        if name in (None, *CURVES) and name != "OneCycle":
            if options:
                raise ConfigError(
                    f"training parameter 'lr_mode': {name} has no arguments of its own "
                    f"({sorted(options)}); its options are training parameters, see {PAGE}."
                )
            curve = self._curve(name)
            factors = [_factor(curve, base) for base in self.base]
            self.closed_form = True
            return lr_scheduler.LambdaLR(self.optimizer, factors)
        if name == "OneCycle":
            name, options = "OneCycleLR", {"max_lr": list(self.base), **options}
            options.setdefault("total_steps", self.main_updates)
        cls = name if isinstance(name, type) else _torch_scheduler(name)
        options = dict(options)
        phase = options.pop("phase", PHASES[cls.__name__ in _PER_STEP])
        if phase not in PHASES:
            raise ConfigError(unknown("phase of lr_mode", phase, PHASES))
        self.per_epoch = phase == PHASES[0]
        if cls is lr_scheduler.ReduceLROnPlateau:
            self.metric_name = options.pop("metric_name", "Loss")
        try:
            return cls(self.optimizer, **options)
        except TypeError as error:
            raise ConfigError(
                f"training parameter 'lr_mode': {cls.__name__} does not take {options!r} ({error})."
            ) from error

    def _curve(self, name: str | None) -> Curve:
        p, each, whole = self.params, self.updates_per_epoch, self.main_updates
        if name == "Cosine":
            r = p.cosine_final_lr_ratio
            return lambda s, base: base * (r + (1 - r) * 0.5 * (1 + math.cos(math.pi * s / whole)))
        if name == "Poly":
            return lambda s, base: base * max(0.0, 1 - s / whole) ** 0.9
        if name == "Exponential":
            return lambda s, base: base * p.lr_decay_factor ** (s / each)
        if name == "Step":
            drops = self._drops()
            return lambda s, base: (
                base
                * p.lr_decay_factor
                ** sum(epoch <= (s + self.warmup_updates) // each for epoch in drops)
            )
        if name == "Function":
            return self._function()
        return lambda s, base: base

    def _drops(self) -> list[int]:
        p = self.params
        drops = list(p.lr_updates)
        if p.step_lr_update_freq:
            every = (math.ceil(p.step_lr_update_freq * i) for i in range(1, p.max_epochs + 1))
            drops += [epoch for epoch in every if epoch < p.max_epochs]
        if not drops:
            raise ConfigError(
                "training parameter 'lr_mode' is 'Step', which needs 'lr_updates' (the epochs "
                "at which the rate drops) or 'step_lr_update_freq'."
            )
        return drops

    def _function(self) -> Curve:
        p, each = self.params, self.updates_per_epoch
        function = p.lr_schedule_function
        if function is None:
            raise ConfigError(
                "training parameter 'lr_mode' is 'Function', which needs 'lr_schedule_function'."
            )
        epochs = self.main_updates // each
        return lambda s, base: float(
            function(
                initial_lr=base,
                epoch=s // each,
                iter=s % each,
                max_epoch=epochs,
                iters_per_epoch=each,
            )
        )

    # -- resume

    def state_dict(self) -> dict[str, Any]:
        """Counters, the present and the initial rates, as plain numbers."""
        main = self.main.state_dict()
        state = {
            "updates": self.updates,
            "main": {k: main[k] for k in _COUNTERS if k in main},
            "rates": None,
            "base": None,
        }
        if self.updates:
            state.update(rates=self.rates(), base=list(self.base))
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after `state["updates"]` updates.

        Closed forms are computed anew. Other schedulers go on from the rates that were reached;
        where the initial rates differ now, from those in the optimizer, which its owner scaled.
        """
        self.updates = int(state["updates"])
        if self.closed_form:
            self._closed_form()
            return
        self.main.load_state_dict({**self.main.state_dict(), **state["main"]})
        if state["base"] == self.base:
            for group, rate in zip(self.optimizer.param_groups, state["rates"], strict=True):
                group["lr"] = rate
        if not self._plateau:
            self.main._last_lr = self.rates()

    def _closed_form(self) -> None:
        self.main.last_epoch = max(0, min(self.updates, self.end - 1) - self.warmup_updates)
        rates = [
            factor(self.main.last_epoch) * base
            for factor, base in zip(self.main.lr_lambdas, self.main.base_lrs, strict=True)
        ]
        self.main._last_lr = list(rates)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._set()


# what a torch scheduler learns on the way; all else is an option, and options given anew win
_COUNTERS = (
    "last_epoch",
    "_step_count",
    "best",
    "num_bad_epochs",
    "cooldown_counter",
    "T_cur",
    "T_i",
)


def _factor(curve: Curve, base: float) -> Callable[[int], float]:
    if base == 0:
        return lambda s: 1.0
    return lambda s: curve(s, base) / base


def split_mode(mode: Any) -> tuple[Any, dict[str, Any]]:
    """The scheduler that an `lr_mode` names, or its class, and its arguments."""
    options: dict[str, Any] = {}
    if isinstance(mode, Mapping):
        if len(mode) != 1:
            raise ConfigError(
                f"training parameter 'lr_mode' must name one scheduler, not {sorted(mode)}."
            )
        ((mode, options),) = mode.items()
    if isinstance(mode, str):
        mode = _SPELLINGS.get(mode.replace("_", "").lower(), mode)
    return mode, dict(options or {})


def _torch_schedulers() -> dict[str, type]:
    base = lr_scheduler.LRScheduler
    return {
        name: cls
        for name, cls in vars(lr_scheduler).items()
        if isinstance(cls, type) and issubclass(cls, base) and cls is not base
    }


def _torch_scheduler(name: str) -> type:
    classes = _torch_schedulers()
    if name not in classes:
        raise ConfigError(unknown("lr_mode", name, [*CURVES, *classes], PAGE))
    return classes[name]


def _warmup_start(optimizer: Optimizer, params: TrainingParams) -> list[float | None]:
    start = params.warmup_initial_lr
    if start is None:
        return [None] * len(optimizer.param_groups)
    if not isinstance(start, Mapping):
        return [float(start)] * len(optimizer.param_groups)
    keys = {group.get("name", "default") for group in optimizer.param_groups}
    for key in start:
        if key not in keys:
            raise ConfigError(unknown("prefix in warmup_initial_lr", key, keys))
    return [start.get(group.get("name", "default")) for group in optimizer.param_groups]
