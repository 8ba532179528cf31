"""Short recipes on digits."""

from __future__ import annotations

from typing import Any

# Added to `distill train digits`: seconds instead of half a minute
SHORT = [
    "dataset.subset=128",
    "training_hyperparams.max_epochs=1",
    "teacher_training_hyperparams.max_epochs=1",
]


def recipe(root, **changes: Any) -> dict[str, Any]:
    """A distillation of one epoch on 128 digits, whose teacher is trained for one epoch."""
    params = {
        "max_epochs": 1,
        "initial_lr": 0.1,
        "valid_metrics_list": ["Accuracy"],
        "silent_mode": True,
    }
    return {
        "experiment_name": "kd",
        "ckpt_root_dir": str(root),
        "dataset": {"name": "digits", "batch_size": 32, "subset": 128, "holdout": 237},
        "student_architecture": "digits_small_model",
        "teacher_architecture": "digits_large_model",
        "teacher_training_hyperparams": dict(params),
        "training_hyperparams": {**params, "loss": "KDLogitsLoss"},
        **changes,
    }


def plain(root, **changes: Any) -> dict[str, Any]:
    """The student's training alone."""
    whole = recipe(root)
    kept = ("ckpt_root_dir", "dataset")
    return {
        **{key: whole[key] for key in kept},
        "experiment_name": "plain",
        "architecture": "digits_small_model",
        "training_hyperparams": whole["teacher_training_hyperparams"],
        **changes,
    }
