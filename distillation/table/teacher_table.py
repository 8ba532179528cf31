"""`TeacherTable`: a teacher whose outputs are kept by `(sample, view)`, computed at most once.

Most of an online distillation step is the teacher's forward pass, paid again by every student,
seed and temperature. The table pays it once. Reading an entry back gives the teacher's own output
rounded to fp16, to the bit; nothing is approximated and no other view's output is ever used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillation.errors import ShapeError, TeacherError
from distillation.frozen_teacher import TeacherSource
from distillation.table.codecs import Codec, Dense
from distillation.table.compute import Execution, has_tensor
from distillation.table.entries import Entries
from distillation.table.inputs import Inputs
from distillation.teacher import as_teacher

KEYS = (
    "a teacher table answers by key: it must be told which (sample, view) each image is. "
    "TensorLoader's batches carry both, as batch.sample and batch.view; a loop of your own passes "
    "them on: model.compute_kd_loss(…, sample=…, view=…), or distiller.forward(images, sample=…, "
    "view=…)"
)


class TeacherTable(TeacherSource):
    """The outputs of `teacher` for the keys of `inputs`, kept in `folder`.

    Called with `(images, sample=…, view=…)` (int64 `[batch]` each; `view` may be left out when
    there is one view) it looks stored entries up and runs the teacher on the others only, which
    are stored and synced before they are returned. Values are float32, on the device of the keys.

    teacher       whatever `as_teacher` takes; None opens a table to be read only (then layers and
                  codec are those of the table)
    execution     precision, memory format and batch size of the teacher's runs
    layers        names of hidden layers whose outputs are kept too: `recorded` after a call
    codec         storage form of the output: `Dense()`, `TopK(k)` or `Sampled(k)`
    on_mismatch   what to do when `folder` holds a table of something else: "error", or "new" for
                  a table beside it, in a folder named after its identity
    announce      is given the size estimate before a table with layers is made
    under         `folder` holds many tables, each in a folder named after its identity

    One entry is `width` half floats; a full table takes `samples · views · (width + 1) · 2` bytes
    and a new one nothing (the files are sparse): 178 MB for CIFAR-10 and all 162 views. Entries lie
    at their place in the whole view group, so K = 4, 16 or all views share one table.
    Any number of processes may use one folder.

    A table that is opened is compared with its teacher: two stored entries are computed again, at
    the first call where only the caller has the inputs. Changed weights are noticed before every
    batch that is computed.

    Raises `TeacherError` when the table belongs to another teacher, data, views, … (all parts that
    differ are named), when the teacher was trained while the table was open, when it cannot be
    tabled (outputs that depend on the neighbours, that are no tensor, or do not fit fp16),
    `DataError` for damaged files and full disks.
    """

    #: needs the keys of a batch: the caller may give them with the inputs or with the loss
    keyed = True

    def __init__(
        self,
        teacher: object | None,
        folder: str | Path,
        inputs: Inputs,
        *,
        execution: Execution | None = None,
        layers: Sequence[str] = (),
        codec: Codec | None = None,
        on_mismatch: str = "error",
        announce: Callable[[str], None] = print,
        under: bool = False,
    ):
        source = None if teacher is None else as_teacher(teacher)
        try:
            self.entries = Entries(
                source,
                Path(folder),
                inputs,
                execution=execution or Execution(),
                layers=layers,
                codec=codec or Dense(),
                on_mismatch=on_mismatch,
                announce=announce,
                under=under,
            )
        except BaseException:
            if source is not None:
                source.release()
            raise
        self._holds = [0]
        self._take_hold()

    def _take_hold(self) -> None:
        self._holds[0] += 1
        self.released = False
        self.recorded: dict[str, Tensor] = {}
        self.hits = self.misses = 0

    @torch.compiler.disable(reason="a look-up reads files; the student is compiled around it")
    def __call__(
        self,
        *args: Any,
        sample: Tensor | None = None,
        view: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if self.released:
            raise TeacherError("this teacher table was released and cannot be used any more")
        inputs = self.entries.inputs
        if sample is None or (view is None and inputs.views > 1):
            raise TeacherError(KEYS)
        samples = host_key(sample, "sample", inputs.samples)
        if view is None:
            views = np.zeros_like(samples)
        else:
            views = host_key(view, "view", inputs.views, inputs.advice)
        inputs.check(samples, views, args, kwargs)
        missing = self.entries.missing(samples, views)
        if not self.entries.compared and has_tensor(args, kwargs):
            missing = self._compared(missing, samples, views, args, kwargs)
        rows = np.flatnonzero(missing)
        if len(rows):
            self.entries.compute(samples[rows], views[rows], rows, args, kwargs, beside=samples)
        self.misses += len(rows)
        self.hits += len(samples) - len(rows)
        output, self.recorded = self.entries.read(samples, views, sample.device)
        return output

    def _compared(self, missing, samples, views, args, kwargs) -> np.ndarray:
        """`missing`, once stored entries of this batch were found to be this teacher's."""
        entries = self.entries
        while not (entries.compared or missing.all()):
            there = np.flatnonzero(~missing)
            entries.compare_given(samples[there], views[there], there, args, kwargs)
            missing = entries.missing(samples, views)
        return missing

    # -- what a teacher source is asked for

    @property
    def teacher(self) -> TeacherSource | None:
        """The teacher behind the table, for inputs that have no key (validation images)."""
        return self.entries.teacher

    @property
    def layers(self) -> tuple[str, ...]:
        """The hidden layers whose outputs are stored: what a layer pair may name."""
        return self.entries.layers

    @property
    def fingerprint(self) -> str:
        """That of the teacher: a student trained from the table was trained by this teacher."""
        return self.entries.identity["teacher"]

    @property
    def reference(self):
        return None if self.teacher is None else self.teacher.reference

    @property
    def run_uuid(self) -> str | None:
        if self.teacher is not None:
            return self.teacher.run_uuid
        return self.entries.manifest.facts.get("teacher_run")

    @property
    def run_step(self) -> int | None:
        return None if self.teacher is None else self.teacher.run_step

    @property
    def module(self) -> nn.Module | None:
        """None: no module runs, so no layer can be captured; stored ones are in `recorded`."""
        return None

    def describe(self) -> dict[str, Any] | None:
        """That of the teacher: what restores a student needs no table."""
        return None if self.teacher is None else self.teacher.describe()

    def refuse_student(self, student: nn.Module) -> None:
        if self.teacher is not None:
            self.teacher.refuse_student(student)

    def share(self) -> TeacherTable:
        """Another hold on the same entries, with `recorded`, `hits` and `misses` of its own."""
        if self.released:
            raise TeacherError("this teacher table was released and cannot be shared any more")
        other = object.__new__(type(self))
        other.entries, other._holds = self.entries, self._holds
        other._take_hold()
        return other

    def release(self) -> None:
        """End this hold; the last one syncs and closes the files and releases the teacher."""
        if self.released:
            return
        self.released = True
        self._holds[0] -= 1
        if not self._holds[0]:
            self.entries.close()

    def __enter__(self) -> TeacherTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"TeacherTable({self.folder}, {self.count():,} entries)"

    # -- the table itself

    @property
    def folder(self) -> Path:
        return self.entries.folder

    @property
    def inputs(self) -> Inputs:
        return self.entries.inputs

    def count(self) -> int:
        """How many entries are stored."""
        return 0 if self.entries.storage is None else self.entries.storage.count()

    def present(self) -> tuple[int, int]:
        """How many entries that the inputs will ever show are stored, and how many there are."""
        from distillation.table.filling import present

        return present(self.entries)

    def fill(self, samples: Sequence[int] | None = None, **options: Any) -> int:
        """Compute ahead every entry that the inputs will ever show; see `filling.fill`."""
        from distillation.table.filling import fill

        return fill(self.entries, samples, **options)

    def repair(self) -> int:
        """Forget entries that do not fit their checksum; returns how many there were."""
        from distillation.table.filling import repair

        return repair(self.entries)


def host_key(index: Tensor, name: str, size: int, advice: str = "") -> np.ndarray:
    """The numbers of a key, `[batch]`.

    Raises `ShapeError` for no int64, and, with `advice`, for one outside the table.
    """
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        kind = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else type(index)
        raise ShapeError(f"{name} must be an int64 tensor [batch], got {kind}")
    values = index.detach().cpu().numpy()
    wrong = (values < 0) | (values >= size)
    if wrong.any():
        raise ShapeError(
            f"{name} {values[wrong][0]} is outside the table, which has {size}{advice}"
        )
    return values
