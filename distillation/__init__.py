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
    "DistillationModel": "meta_model",
    "Distiller": "distiller",
    "EnsembleTeacher": "teacher",
    "KDLogitsLoss": "losses",
    "KDLossConfig": "meta_model",
    "KDModule": "kd_module",
    "KDOutput": "kd_module",
    "KDTrainer": "trainer",
    "KnowledgeDistillationTraining": "toolkit",
    "LayerLoss": "criterion",
    "LogitsDistillationLoss": "losses",
    "MFTLoss": "losses",
    "MGDLoss": "losses",
    "NormalizationAdapter": "kd_module",
    "STUDENT_LOSS_KEY": "losses",
    "ScheduledLossBalancer": "losses",
    "SegKDLoss": "losses",
    "StaticLossBalancer": "losses",
    "TeacherTable": "table",
    "Trainer": "trainer",
    "UncertaintyLossBalancer": "losses",
    "convert": "meta_model",
    "distill_many": "many",
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
