"""
# What may be another when a run goes on

A run that was interrupted may be given other values; its record says which and since when. One
that has ended is what it was trained to be.
"""

from typing import Any

from distillation.errors import ConfigError
from distillation.runs import Run

# Where and how, not what
ANY_TIME = ("data", "device", "save_seconds", "log_every", "tracker")


def refuse_other_values(run: Run, config: dict[str, Any]) -> None:
    """
    ## Refuse values that nothing is left to train with

    Raises `ConfigError` for a run that has ended, unless it is to be trained for more epochs.
    """
    if run.status != "completed" or config["epochs"] > run.config.get("epochs", 0):
        return
    for key, value in config.items():
        had = run.config.get(key, value)
        if had != value and key not in ANY_TIME:
            raise ConfigError(
                f"run {run.uuid} has ended with {key}={had!r}, and nothing is left to train with "
                f"{key}={value!r}; begin a new run, without --resume, or train it further with "
                f"--epochs above {run.config['epochs']}"
            )
