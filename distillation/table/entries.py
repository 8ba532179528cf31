"""A teacher, its table on the disk, and the rule between them: what is missing is computed once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from distillation.errors import ConfigError, ShapeError, TeacherError, unknown
from distillation.frozen_teacher import TeacherSource
from distillation.table.codecs import Codec, codec_of, to_half
from distillation.table.compute import OUTPUT, Execution, FixedBatch, batch_rows
from distillation.table.inputs import Inputs
from distillation.table.manifest import COMPUTED_BY, Manifest, digest, refuse_other
from distillation.table.storage import LOCK, TableStorage

ADVICE = (
    "Use the teacher, data and options it was made with, or another folder; teacher_table='auto' "
    "finds the folder by all of these, and on_mismatch='new' makes a new table beside it. Delete "
    "it if it is of no more use."
)


def architecture(teacher: TeacherSource) -> str:
    """Digest of how the teacher is built: equal weights under another activation differ here.

    It is that of the modules' printed form, so numbers that a module keeps without printing them
    (`self.scale = 2`) are not in it.
    """
    module = teacher.module
    printed = repr(getattr(module, "_orig_mod", module))  # torch.compile's wrapper changes nothing
    printed = f"{type(teacher).__name__} {re.sub(r' at 0x[0-9a-fA-F]+', '', printed)}"
    return hashlib.sha256(printed.encode()).hexdigest()


class Entries:
    """The entries of one table, for one process; see `TeacherTable` for the arguments.

    With `under`, the table lies in a folder below `folder` that is named after its identity.
    `storage` and `manifest` are None until the first entry of a new table is computed, since only
    then the shape of the teacher's output is known.
    """

    def __init__(
        self,
        teacher: TeacherSource | None,
        folder: Path,
        inputs: Inputs,
        *,
        execution: Execution,
        layers: Sequence[str],
        codec: Codec,
        on_mismatch: str,
        announce: Callable[[str], None],
        under: bool = False,
    ):
        if on_mismatch not in ("error", "new"):
            raise ConfigError(unknown("on_mismatch", on_mismatch, ("error", "new")))
        self.teacher, self.inputs, self.codec = teacher, inputs, codec
        self.execution, self.layers = execution, tuple(layers)
        self._announce = announce
        self._run = None
        self.storage: TableStorage | None = None
        if teacher is not None:
            _refuse(teacher)
            self._run = FixedBatch(teacher, execution, self.layers)
            self.identity = self._identity(None)
            if under:
                folder = folder / digest(self.identity)[:24]
        self.folder, self.manifest = folder, Manifest.read(folder)
        if teacher is None:
            if self.manifest is None:
                raise TeacherError(f"there is no teacher table in {folder}")
            self.layers = tuple(self.manifest.identity["layers"])
            self.codec = codec_of(self.manifest.identity["codec"])
            self.identity = self._identity(self.manifest)
        if self.manifest is not None:
            self._open(on_mismatch)

    def missing(self, sample: np.ndarray, view: np.ndarray) -> np.ndarray:
        """`[n]` bool: which of these keys have no entry."""
        if self.storage is None:
            return np.ones(len(sample), dtype=bool)
        return ~self.storage.filled(sample, view)

    def compute(
        self,
        sample: np.ndarray,
        view: np.ndarray,
        rows: np.ndarray | None = None,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> None:
        """Run the teacher on these keys and store what it says, batch by batch.

        `rows` are the places of the keys in `args` and `kwargs`, which only `GivenInputs` reads.
        """
        if self._run is None:
            raise TeacherError(
                f"the table has no entry for {len(sample)} of the keys asked for (sample "
                f"{int(sample[0])}, view {int(view[0])}, …) and was opened without a teacher"
            )
        rows = np.arange(len(sample)) if rows is None else rows
        size = self.execution.batch_size
        for start in range(0, len(sample), size):
            part = slice(start, start + size)
            s, v = sample[part], view[part]
            inputs = self.inputs.take(rows[part], s, v, args, kwargs or {})
            if batch_rows(*inputs) != len(s):
                raise ShapeError(f"{len(s)} keys came with inputs of {batch_rows(*inputs)} rows")
            if self.storage is None:
                outputs = self._run.probe(*inputs)
                self._create({name: tuple(value.shape[1:]) for name, value in outputs.items()})
            else:
                outputs = self._run(*inputs)
            self.storage.write(s, v, self._encode(outputs, s, v))

    def read(
        self, sample: np.ndarray, view: np.ndarray, device: torch.device
    ) -> tuple[Any, dict[str, Tensor]]:
        """The output and the layers of these keys, all of which must be there."""
        entries = self.storage.read(sample, view)
        result, layers = None, {}
        for output in self.manifest.outputs:
            shape = tuple(output["shape"])
            part = entries[:, output["start"] : output["start"] + output["size"]]
            if output["name"] == OUTPUT:
                result = self.codec.decode(part, shape).to(device)
            else:
                value = torch.from_numpy(np.ascontiguousarray(part)).to(device)
                layers[output["name"]] = value.float().reshape(len(part), *shape)
        return result, layers

    def estimate(self) -> str:
        """Size of the full table and of its parts in words."""
        if self.manifest is None:
            first = np.zeros(1, dtype=np.int64)
            self.compute(first, first)
        return estimate(self.manifest)

    def close(self) -> None:
        """Sync the marks, close the files, take the hooks off, release the teacher."""
        if self.storage is not None:
            self.storage.close()
        if self._run is not None:
            self._run.close()
        if self.teacher is not None:
            self.teacher.release()

    def _identity(self, manifest: Manifest | None) -> dict[str, object]:
        """What is asked for; without a teacher, how entries were computed is as `manifest` says."""
        identity = self.inputs.identity()
        if manifest is not None:
            identity |= {part: manifest.identity.get(part) for part in COMPUTED_BY}
        else:
            identity |= {"teacher": self.teacher.fingerprint, "teacher_mode": "eval"}
            identity |= {"architecture": architecture(self.teacher)}
            identity |= self.execution.identity(self._run.device, self._run.dtype)
        identity |= {"layers": list(self.layers), "codec": self.codec.describe()}
        return json.loads(json.dumps(identity))

    def _open(self, on_mismatch: str) -> None:
        if on_mismatch == "new" and self.identity != self.manifest.identity:
            self.folder = self.folder.with_name(f"{self.folder.name}-{digest(self.identity)[:12]}")
            self.manifest = Manifest.read(self.folder)
            if self.manifest is None:
                return
        refuse_other(self.folder, self.manifest.identity, self.identity, ADVICE)
        self.storage = TableStorage(self.folder, self.manifest.shape)

    def _create(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Make the folder, unless another process just did; the manifest comes last."""
        outputs, start = [], 0
        for name, shape in shapes.items():
            size = self.codec.width(shape) if name == OUTPUT else int(np.prod(shape))
            outputs.append({"name": name, "shape": list(shape), "start": start, "size": size})
            start += size
        made = Manifest(
            self.identity,
            self.inputs.samples,
            self.inputs.views,
            start,
            tuple(outputs),
            facts={
                "torch": str(torch.__version__),
                "threads": torch.get_num_threads(),
                "teacher_run": self.teacher.run_uuid,
            },
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / LOCK):
            self.manifest = Manifest.read(self.folder)
            if self.manifest is None:
                if self.layers:
                    self._announce(estimate(made))
                TableStorage.create(self.folder, made.shape)
                made.write(self.folder)
                self.manifest = made
        refuse_other(self.folder, self.manifest.identity, self.identity, ADVICE)
        self.storage = TableStorage(self.folder, self.manifest.shape)

    def _encode(self, outputs: dict[str, Tensor], sample: np.ndarray, view: np.ndarray):
        parts = []
        for output in self.manifest.outputs:
            name, value = output["name"], outputs[output["name"]]
            if list(value.shape[1:]) != output["shape"]:
                raise ShapeError(
                    f"the teacher's {name} has shape {list(value.shape[1:])} for sample "
                    f"{int(sample[0])}; the table holds {output['shape']}: all must be alike"
                )
            if name == OUTPUT:
                parts.append(self.codec.encode(value, sample, view))
            else:
                parts.append(to_half(value, f"layer {name!r}", sample, view))
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def estimate(manifest: Manifest) -> str:
    """What the parts of a full table take on the disk, in words."""
    keys = manifest.samples * manifest.views
    lines = [f"teacher table of {manifest.samples:,} samples × {manifest.views:,} views, when full"]
    for output in manifest.outputs:
        lines.append(f"  {output['name']} {output['shape']}: {keys * output['size'] * 2:,} bytes")
    lines.append(f"  marks: {keys * 2:,} bytes")
    return "\n".join(lines)


def _refuse(teacher: TeacherSource) -> None:
    """A table needs a teacher whose output is the same at every call."""
    if getattr(teacher, "keyed", False):
        raise TeacherError("the teacher of a table cannot be a table itself")
    if getattr(teacher, "mode", "eval") != "eval":
        raise TeacherError(
            f"a teacher with teacher_mode={teacher.mode!r} gives other outputs at every call: a "
            "table needs teacher_mode='eval'"
        )
    for member in getattr(teacher, "sources", ()):
        _refuse(member)
