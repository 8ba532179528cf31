"""Training parameters of checkpoints, and of what is watched and told."""

# ruff: noqa: RUF009 (option() makes a dataclass field)
from __future__ import annotations

import dataclasses

from distillation.trainer.schema import at_least_zero, epochs_list, option, positive

_CKPT = {"group": "Checkpoints and resume"}
_WATCH = {"group": "What is watched and told"}


@dataclasses.dataclass
class RecordParams:
    """What is kept and resumed, what is printed, who is told."""

    save_ckpt_epoch_list: list = option(
        [],
        (list,),
        "Epochs, counted from 1, after which `ckpt_epoch_N.pth` is kept.",
        example="[10, 20]",
        valid="a list of integers from 1 to max_epochs",
        check=lambda value: epochs_list(value) and all(v >= 1 for v in value),
        **_CKPT,
    )
    save_teacher: bool = option(
        True,
        (bool,),
        "`ckpt_latest.pth` and `ckpt_epoch_N.pth` hold the teacher's weights too, under "
        "`teacher.`. False leaves them out. (KDTrainer)",
        example="False",
        valid="True or False",
        **_CKPT,
    )
    save_seconds: float = option(
        60.0,
        (float,),
        "A checkpoint to resume from is written at least this often, and at every epoch's end.",
        example="600.0",
        valid="a number of at least 0",
        check=at_least_zero,
        **_CKPT,
    )
    resume: bool = option(
        False,
        (bool,),
        "Go on with the newest run of this experiment, in its folder. The parameters given now "
        "win over those of the checkpoint.",
        example="True",
        valid="True or False",
        **_CKPT,
    )
    resume_path: str | None = option(
        None,
        (object, None),
        "Go on with this run: its UUID, its folder, or a `ckpt_latest.pth` or `ckpt_epoch_N.pth` "
        "in it. An epoch's file goes back to that epoch.",
        example='"logs/my_experiment/3f2a.../ckpt/ckpt_latest.pth"',
        valid="a run UUID or a path into a run's folder",
        **_CKPT,
    )
    allow_changed_teacher: bool = option(
        False,
        (bool,),
        "Resume although the teacher is not the one that the run began with. (KDTrainer)",
        example="True",
        valid="True or False",
        **_CKPT,
    )
    silent_mode: bool = option(
        False,
        (bool,),
        "Print nothing; the run is recorded all the same.",
        example="True",
        valid="True or False",
        **_WATCH,
    )
    log_every: int = option(
        50,
        (int,),
        "Training losses are recorded every this many batches; losses and metrics for each epoch.",
        example="10",
        valid="an integer of at least 1",
        check=positive,
        **_WATCH,
    )
    phase_callbacks: list = option(
        [],
        (list,),
        "`distillation.trainer.Callback` objects, called in this order at each phase.",
        example="[MyCallback()]",
        valid="a list of Callback objects",
        **_WATCH,
    )
    early_stopping: dict | None = option(
        None,
        (dict, None),
        "Stop when the watched metric has not improved by `min_delta` (0) for `patience` (3) "
        "validations; `monitor` names another metric and `mode` (`min`, `max`) its direction.",
        example='{"patience": 5}',
        valid="a dict with patience, min_delta, monitor, mode; or None",
        **_WATCH,
    )
    trackers: list = option(
        [],
        (list,),
        "Outside trackers, through Accelerate: `tensorboard`, `wandb`, `comet_ml`, `mlflow`, "
        "`trackio`, or `GeneralTracker` objects. One that cannot start is a warning; the run "
        "store is always written.",
        example='["tensorboard"]',
        valid="a list of names that Accelerate knows, or of its GeneralTracker objects",
        **_WATCH,
    )
