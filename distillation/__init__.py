"""Knowledge distillation for PyTorch: the names that users import.

Heavy modules are imported on first use, so `import distillation` and `distill runs` stay fast.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

# public name -> module that defines it
_PUBLIC = {
    "ChannelWiseKnowledgeDistillationLoss": "losses",
    "DistillationLossBalancer": "losses",
    "KDLogitsLoss": "losses",
    "LogitsDistillationLoss": "losses",
    "MFTLoss": "losses",
    "MGDLoss": "losses",
    "STUDENT_LOSS_KEY": "losses",
    "SegKDLoss": "losses",
    "StaticLossBalancer": "losses",
    "Distiller": "distiller",
    "KDModule": "kd_module",
    "KDOutput": "kd_module",
    "KDTrainer": "trainer",
    "NormalizationAdapter": "kd_module",
    "Trainer": "trainer",
    "DistillationModel": "meta_model",
    "KDLossConfig": "meta_model",
    "convert": "meta_model",
    "export": "meta_model",
    "restore": "meta_model",
    "save": "meta_model",
}
_MODULES = ("data", "losses", "models", "runs")

__all__ = sorted([*_PUBLIC, *_MODULES, "__version__"])


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        module = importlib.import_module(f"distillation.{_PUBLIC[name]}")
        value = getattr(module, name)
    elif name in _MODULES:
        value = importlib.import_module(f"distillation.{name}")
    else:
        from distillation.errors import unknown

        raise AttributeError(unknown("name in distillation:", name, __all__))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
