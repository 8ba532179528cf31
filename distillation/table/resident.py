"""A filled table as one tensor on the device: a look-up without a word to the host.

`TeacherTable` reads its files on the host, so its keys must come there first. On a GPU that stalls
the step and keeps it out of a CUDA graph. A filled table is small (162 MB for CIFAR-10 and all its
views), so it can live beside the images and be indexed there.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillation.errors import ConfigError, TeacherError
from distillation.frozen_teacher import TeacherSource
from distillation.table.codecs import Dense
from distillation.table.filling import present
from distillation.table.inputs import Inputs
from distillation.table.teacher_table import KEYS, TeacherTable, host_key

# Of the device's free memory, where it tells; the rest is the student's.
_SHARE = 0.25


class ResidentTable(TeacherSource):
    """The entries of `table` on `device`, as soon as all that its inputs show are there.

    Until then the table itself answers, and computes what is missing; whether it is full is looked
    at once for every round through its samples. The first call is always the table's, which
    compares the pictures with their keys. From then on a call with `(sample=…, view=…)`, int64
    `[batch]`, is one gather on the device; a key that no entry belongs to gives NaN, never
    another's output. Where keys are on the host, one outside the table is a `ShapeError`, as the
    table has it. Values are float32, those the table gives, on `device`.

    Takes `table` over: `release()` releases it. Raises `ConfigError` for a table with layers or
    with another storage form than `Dense()`, and for one that does not fit the device.
    """

    keyed = True
    layers = ()

    def __init__(self, table: TeacherTable, device: torch.device | str):
        reason = unfit(table, device)
        if reason:
            raise ConfigError(f"the entries of this table cannot live on {device}: {reason}")
        self.table, self.device = table, torch.device(device)
        self.values: Tensor | None = None
        self._several = table.inputs.views > 1
        self._samples, self._views = table.inputs.samples, table.inputs.views
        self._asked, self._next_look = 0, 1

    def __call__(
        self, *args: Any, sample: Tensor | None = None, view: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if self.values is None:
            return self._ask(args, kwargs, sample, view)
        if sample is None or (view is None and self._several):
            raise TeacherError(KEYS)
        place = self._place(sample, view).to(self.device, non_blocking=True)
        return self.values.index_select(0, place).float()

    def _place(self, sample: Tensor, view: Tensor | None) -> Tensor:
        """The rows of these keys, `[batch]`; of one outside the table the last, which is NaN."""
        view = torch.zeros_like(sample) if view is None else view
        if sample.device.type == "cpu" and not torch.compiler.is_compiling():
            host_key(sample, "sample", self._samples)
            host_key(view, "view", self._views, self.inputs.advice)
        inside = (sample >= 0) & (sample < self._samples) & (view >= 0) & (view < self._views)
        place = sample * self._views + view
        return place.where(inside, self._samples * self._views)

    @torch.compiler.disable(reason="a look-up reads files; the student is compiled around it")
    def _ask(self, args: tuple, kwargs: dict, sample: Any, view: Any) -> Tensor:
        output = self.table(*args, sample=sample, view=view, **kwargs).to(self.device)
        self._asked += len(sample)
        if self._asked >= self._next_look:
            self._next_look = self._asked + self.table.inputs.samples
            stored, total = present(self.table.entries)
            # A new table had no size yet when this was made
            if stored >= total and unfit(self.table, self.device) is None:
                self.values = self._moved()
        return output

    def _moved(self) -> Tensor:
        """All stored entries, read and checked once, at their places on the device."""
        entries = self.table.entries
        samples, views, width = entries.manifest.shape
        # One row more: that of keys outside the table
        values = np.full((samples * views + 1, width), np.nan, dtype=np.float16)
        keys = np.argwhere(entries.storage.filled_map())
        for part in np.array_split(keys, max(1, len(keys) // 65_536)):
            flat = part[:, 0] * views + part[:, 1]
            values[flat] = entries.storage.read(part[:, 0], part[:, 1])
        shape = entries.manifest.outputs[0]["shape"]
        return torch.from_numpy(values).to(self.device).reshape(-1, *shape)

    # -- what is the table's

    @property
    def recorded(self) -> dict[str, Tensor]:
        """No layers are kept."""
        return {}

    @property
    def teacher(self) -> TeacherSource | None:
        """The teacher behind the table, for inputs that have no key."""
        return self.table.teacher

    @property
    def inputs(self) -> Inputs:
        return self.table.inputs

    @property
    def fingerprint(self) -> str:
        return self.table.fingerprint

    @property
    def reference(self):
        return self.table.reference

    @property
    def run_uuid(self) -> str | None:
        return self.table.run_uuid

    @property
    def run_step(self) -> int | None:
        return self.table.run_step

    def describe(self) -> dict[str, Any] | None:
        return self.table.describe()

    def refuse_student(self, student: nn.Module) -> None:
        self.table.refuse_student(student)

    def share(self) -> ResidentTable:
        """Another hold on the same entries; what is on the device is there once."""
        other = copy.copy(self)
        other.table = self.table.share()
        return other

    def release(self) -> None:
        """End this hold on the table, and on the memory of the device."""
        self.table.release()
        self.values = None

    def __repr__(self) -> str:
        where = f"on {self.device}" if self.values is not None else f"not yet on {self.device}"
        return f"ResidentTable({self.table}, {where})"


def unfit(table: TeacherTable, device: torch.device | str) -> str | None:
    """Why the entries of `table` cannot live on `device`; None when they can."""
    entries, device = table.entries, torch.device(device)
    if not isinstance(entries.codec, Dense) or entries.layers:
        return "that takes whole outputs, Dense() and no layers"
    if entries.manifest is not None and device.type == "cuda":
        size = 2 * int(np.prod(entries.manifest.shape))
        free = torch.cuda.mem_get_info(device)[0]
        if size > _SHARE * free:
            return f"they take {size:,} bytes, more than {_SHARE:.0%} of the {free:,} that are free"
    return None
