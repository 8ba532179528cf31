"""The teacher's outputs, kept by (sample, view) and computed once.

Names are imported on first use: the files of a table can be looked at without torch.
"""

from __future__ import annotations

import importlib

_PUBLIC = {
    "Dense": "codecs",
    "Execution": "compute",
    "GivenInputs": "inputs",
    "ImageInputs": "inputs",
    "ResidentTable": "resident",
    "Sampled": "codecs",
    "SampledDistillationLoss": "codecs",
    "SampledTargets": "codecs",
    "TableStorage": "storage",
    "TeacherTable": "teacher_table",
    "TopK": "codecs",
    "fill": "filling",
    "repair": "filling",
    "with_table": "attach",
    "with_tables": "attach",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        from distillation.errors import unknown

        raise AttributeError(unknown("name in distillation.table:", name, __all__))
    module = importlib.import_module(f"distillation.table.{_PUBLIC[name]}")
    globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return __all__
