"""Training parameters of the optimizer and of the learning rate."""

# ruff: noqa: RUF009 (option() makes a dataclass field)
from __future__ import annotations

import dataclasses
from typing import Any

from distillation.trainer.schema import (
    at_least_zero,
    epochs_list,
    fraction,
    one_of,
    option,
    positive,
    rates,
)

WARMUPS = ("linear_epoch_step", "linear_batch_step", "LinearEpochLRWarmup", "LinearBatchLRWarmup")
_OPT = {"group": "Optimizer"}
_LR = {"group": "Learning rate"}


@dataclasses.dataclass
class OptimizationParams:
    """What changes the weights, and how fast."""

    optimizer: Any = option(
        "SGD",
        (str, type, callable, object),
        "Name of a torch optimizer, a class, or an instance over the student's parameters. An "
        "instance keeps its own learning rates and weight decay.",
        example='"AdamW"',
        valid="a name of torch.optim, a class, or an instance",
        **_OPT,
    )
    optimizer_params: dict = option(
        {},
        (dict,),
        "Arguments of the optimizer's constructor. `fused` is taken by itself on CUDA; given on a "
        "CPU it makes SGD with momentum, Adam and AdamW about three times as fast, with other "
        "rounding.",
        example='{"momentum": 0.9, "weight_decay": 1e-4}',
        valid="arguments that the optimizer takes, without `lr`",
        **_OPT,
    )
    zero_weight_decay_on_bias_and_bn: bool = option(
        False,
        (bool,),
        "Biases and the parameters of normalisation layers get no weight decay.",
        example="True",
        valid="True or False",
        **_OPT,
    )
    finetune: Any = option(
        False,
        (bool, list),
        "Train only a part of the student. A list of parameter-name prefixes: all else is frozen. "
        "True: the model's `get_finetune_lr_dict(lr)` gives the learning rate of each prefix, "
        "and what it does not name is frozen. Running statistics of batch norms follow the data "
        "everywhere.",
        example='["classifier"]',
        valid="True, False, or a list of prefixes that match something",
        **_OPT,
    )
    initial_lr: Any = option(
        0.1,
        (float, dict),
        "Learning rate after the warm-up; or one by prefix of the student's parameter names, the "
        "longest prefix wins and `default` takes the rest.",
        example='{"features": 0.01, "default": 0.1}',
        valid="a number of at least 0, or a dict of them whose prefixes all match something",
        check=rates,
        **_LR,
    )
    lr_mode: Any = option(
        None,
        (str, dict, type, None),
        "The schedule: `Step`, `Cosine`, `Poly`, `Exponential`, `Function`, `OneCycle`, the name "
        "or class of a torch scheduler, or `{torch scheduler: its arguments}` (with `phase`: "
        "`TRAIN_EPOCH_END` or `TRAIN_BATCH_STEP`, and `metric_name` for ReduceLROnPlateau, which "
        "counts validations).",
        example='"Cosine"',
        valid="a schedule's name, a torch scheduler, or None for a constant rate",
        **_LR,
    )
    lr_updates: list = option(
        [],
        (list,),
        "`Step`: the epochs, counted from 0, from which on the rate is multiplied once more.",
        example="[60, 80]",
        valid="a list of integers of at least 0",
        check=epochs_list,
        **_LR,
    )
    step_lr_update_freq: float | None = option(
        None,
        (float, None),
        "`Step`: multiply the rate every this many epochs as well.",
        example="2.4",
        valid="a number above 0, or None",
        check=positive,
        **_LR,
    )
    lr_decay_factor: float = option(
        0.1,
        (float,),
        "Factor of `Step` at each listed epoch, and of `Exponential` per epoch.",
        example="0.97",
        valid="a number above 0",
        check=positive,
        **_LR,
    )
    lr_schedule_function: Any = option(
        None,
        (callable, None),
        "`Function`: called with `initial_lr`, `epoch`, `iter`, `max_epoch` and "
        "`iters_per_epoch` (counted from the end of the warm-up), gives the learning rate.",
        example="lambda initial_lr, epoch, **_: initial_lr * 0.9**epoch",
        valid="a function with these keywords; needed by `Function` only",
        **_LR,
    )
    cosine_final_lr_ratio: float = option(
        0.01,
        (float,),
        "`Cosine`: the rate that it approaches, as a share of the initial rate.",
        example="0.0",
        valid="a number from 0 to 1",
        check=fraction,
        **_LR,
    )
    lr_warmup_epochs: int = option(
        0,
        (int,),
        "Epochs of linear warm-up: `initial * (e + 1) / (W + 1)` in epoch e.",
        example="5",
        valid="an integer of at least 0",
        check=at_least_zero,
        **_LR,
    )
    lr_warmup_steps: int = option(
        0,
        (int,),
        "Optimizer steps of linear warm-up.",
        example="500",
        valid="an integer of at least 0, and 0 when lr_warmup_epochs is given",
        check=at_least_zero,
        **_LR,
    )
    warmup_mode: str | None = option(
        "linear_epoch_step",
        (str, None),
        "`linear_epoch_step` holds the rate through an epoch, `linear_batch_step` changes it at "
        "every step of the warm-up. `lr_warmup_steps` is always by step. None: no warm-up.",
        example='"linear_batch_step"',
        valid=", ".join(f"`{w}`" for w in WARMUPS) + ", or None",
        check=one_of(*WARMUPS),
        **_LR,
    )
    warmup_initial_lr: Any = option(
        None,
        (float, dict, None),
        "Rate at the start of the warm-up, from which it rises in equal parts.",
        example="0.001",
        valid="a number of at least 0, a dict with the keys of initial_lr, or None",
        check=rates,
        **_LR,
    )
    lr_cooldown_epochs: int = option(
        0,
        (int,),
        "The last epochs keep the rate that the schedule ended with.",
        example="2",
        valid="an integer of at least 0",
        check=at_least_zero,
        **_LR,
    )
