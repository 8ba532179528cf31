"""A filled table as one tensor on the device: a look-up without a word to the host.

`TeacherTable` reads its files on the host, so its keys must come there first. On a GPU that stalls
the step and keeps it out of a CUDA graph. A filled table is small (162 MB for CIFAR-10 and all its
views), so it can live beside the images and be indexed there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillation.errors import ConfigError, TeacherError
from distillation.frozen_teacher import TeacherSource
from distillation.table.codecs import Dense
from distillation.table.filling import pending
from distillation.table.teacher_table import TeacherTable


class ResidentTable(TeacherSource):
    """The entries of `table`, which must be filled for all views its inputs show, on `device`.

    Called with `(sample=…, view=…)`, int64 `[batch]` on that device, it gives the float32 values
    that the table itself gives; every call is one gather. Keys are not checked against images, as
    that would need the host: a key that no entry belongs to gives NaN, never another's output.

    Raises `TeacherError` when entries are missing, `ConfigError` for a table with another storage
    form than `Dense()`.
    """

    keyed = True

    def __init__(self, table: TeacherTable, device: torch.device | str):
        entries = table.entries
        if not isinstance(entries.codec, Dense) or entries.layers:
            raise ConfigError("a resident table holds whole outputs: Dense() and no layers")
        missing, total = pending(entries)
        if len(missing):
            raise TeacherError(
                f"{len(missing):,} of {total:,} entries are missing: fill the table first "
                "(table.fill(), or `distill cache`)"
            )
        self.source = table
        self.run_uuid, self.run_step = table.run_uuid, table.run_step
        self.reference = table.reference
        samples, self.views, width = entries.manifest.shape
        shape = entries.manifest.outputs[0]["shape"]
        values = np.full((samples * self.views, width), np.nan, dtype=np.float16)
        keys = np.argwhere(entries.storage.filled_map())
        for part in np.array_split(keys, max(1, len(keys) // 65_536)):
            flat = part[:, 0] * self.views + part[:, 1]
            values[flat] = entries.storage.read(part[:, 0], part[:, 1])
        self.values = torch.from_numpy(values).to(device).reshape(-1, *shape)

    def __call__(
        self, *args: Any, sample: Tensor | None = None, view: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if sample is None or (view is None and self.views > 1):
            raise TeacherError("a resident table is asked by sample=… and view=…, on its device")
        place = sample * self.views if view is None else sample * self.views + view
        return self.values.index_select(0, place).float()

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    def describe(self) -> dict[str, Any] | None:
        return self.source.describe()

    def refuse_student(self, student: torch.nn.Module) -> None:
        self.source.refuse_student(student)
