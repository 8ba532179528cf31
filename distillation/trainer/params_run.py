"""Training parameters of the run, its loss and its metrics."""

# ruff: noqa: RUF009 (option() makes a dataclass field)
from __future__ import annotations

import dataclasses
from typing import Any

from distillation.trainer.schema import REQUIRED, at_least_zero, option, positive

_RUN = {"group": "The run"}
_LOSS = {"group": "Loss and metrics"}


@dataclasses.dataclass
class RunParams:
    """How long, on what seed, by which loss and metrics."""

    max_epochs: int = option(
        REQUIRED,
        (int,),
        "Number of passes over the training loader.",
        example="30",
        valid="an integer of at least 1",
        check=positive,
        **_RUN,
    )
    max_train_batches: int | None = option(
        None,
        (int, None),
        "An epoch ends after this many training batches.",
        example="100",
        valid="an integer of at least 1, or None for all",
        check=positive,
        **_RUN,
    )
    max_valid_batches: int | None = option(
        None,
        (int, None),
        "Validation ends after this many batches.",
        example="20",
        valid="an integer of at least 1, or None for all",
        check=positive,
        **_RUN,
    )
    run_validation_freq: int = option(
        1,
        (int,),
        "Validate after every this many epochs, and always after the last.",
        example="5",
        valid="an integer of at least 1",
        check=positive,
        **_RUN,
    )
    seed: int = option(
        42,
        (int,),
        "Seeds torch's, numpy's and Python's generators before the first step, and the order of "
        "the data. The generators get their earlier state back after the training.",
        example="1",
        valid="an integer of at least 0",
        check=at_least_zero,
        **_RUN,
    )
    loss: Any = option(
        None,
        (str, type, callable, None),
        "A module, class or name. `Trainer` calls it with `(student_output, target)`, `KDTrainer` "
        "with `(KDOutput, target)`. A name is that of a loss of `distillation.losses` or "
        "`torch.nn`. None: `CrossEntropyLoss`, and `KDLogitsLoss` over it for `KDTrainer`.",
        example='"CrossEntropyLoss"',
        valid="a torch.nn loss name, a class, a module, a function, or None",
        **_LOSS,
    )
    criterion_params: dict = option(
        {},
        (dict,),
        "Arguments of the loss's constructor when `loss` is a name or a class.",
        example='{"label_smoothing": 0.1}',
        valid="a dict of arguments that the constructor takes",
        **_LOSS,
    )
    train_metrics_list: list = option(
        [],
        (list,),
        "Metrics of the training batches: torchmetrics instances or classes, names (`Accuracy`, "
        "`Top5`, or any of torchmetrics), or `{name: arguments}`. They see the student's output.",
        example='["Accuracy"]',
        valid="a list of metrics",
        **_LOSS,
    )
    valid_metrics_list: list = option(
        [],
        (list,),
        "Metrics of the validation, given as those of the training.",
        example='["Accuracy", "Top5"]',
        valid="a list of metrics",
        **_LOSS,
    )
    metric_to_watch: str | None = option(
        None,
        (str, None),
        "What makes a checkpoint the best: a validation metric, `<Loss>/<component>`, or a "
        "component's short name. None: the first validation metric, else the loss.",
        example='"Accuracy"',
        valid="a name of the validation's results; an unknown one is an error with the list",
        **_LOSS,
    )
    greater_metric_to_watch_is_better: bool | None = option(
        None,
        (bool, None),
        "Whether the watched metric is maximised. None: what the metric itself says "
        "(`higher_is_better`), losses are minimised.",
        example="True",
        valid="True, False or None",
        **_LOSS,
    )
