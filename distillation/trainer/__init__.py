"""The trainer door: `Trainer`, `KDTrainer`, their parameters and callbacks."""

from __future__ import annotations

import importlib

from distillation.errors import no_other

_PUBLIC = {
    "Accuracy": "metrics",
    "Callback": "callbacks",
    "Context": "callbacks",
    "EarlyStopping": "callbacks",
    "KDTrainer": "kd_trainer",
    "Predictions": "prediction",
    "StudentEMA": "ema",
    "Top5": "metrics",
    "Trainer": "trainer",
    "TrainingParams": "params",
    "loss_names": "criteria",
    "metric_names": "metrics",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        no_other(__name__, __all__)(name)
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value
