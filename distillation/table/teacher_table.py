"""`TeacherTable`: a teacher whose outputs are kept by `(sample, view)`, computed at most once.

Most of an online distillation step is the teacher's forward pass, paid again by every student,
seed and temperature. The table pays it once. Reading an entry back gives the teacher's own output
rounded to fp16, to the bit; nothing is approximated and no other view's output is ever used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from distillation.errors import ConfigError, ShapeError, TeacherError, unknown
from distillation.table.codecs import Codec, Dense, codec_of, to_half
from distillation.table.compute import OUTPUT, Execution, FixedBatch, batch_rows
from distillation.table.inputs import Inputs
from distillation.table.manifest import COMPUTED_BY, Manifest, digest, refuse_other
from distillation.table.storage import LOCK, TableStorage
from distillation.teacher import TeacherSource, as_teacher

KEYS = (
    "A teacher table answers by key: the batch must say which (sample, view) each image is. "
    "TensorLoader's batches carry both as batch.sample and batch.view; a loop of your own passes "
    "them on: model(images, sample=…, view=…), or model.compute_kd_loss(…, sample=…, view=…)"
)


class TeacherTable(TeacherSource):
    """The outputs of `teacher` for the keys of `inputs`, kept in `folder`.

    Called with `(images, sample=…, view=…)` (int64 `[batch]` each; `view` may be left out when
    there is one view) it looks stored entries up and runs the teacher on the others only, which
    are stored and synced before they are returned. Gives float32 values on the device of the keys.

    teacher       whatever `as_teacher` takes; None opens a table to be read only (then layers and
                  codec are those of the table)
    execution     precision, memory format and batch size of the teacher's runs
    layers        names of hidden layers whose outputs are kept too (`recorded` after a call)
    codec         storage form of the output: `Dense()`, `TopK(k)` or `Sampled(k)`
    on_mismatch   what to do when `folder` holds a table of something else: "error", or "new" for
                  a table beside it, in a folder named after its identity
    announce      called with the size estimate before a table with layers is made

    One entry is `width` half floats; a full table takes `samples · views · width · 2` bytes and a
    new one nothing (the files are sparse). Entries lie at their place in the whole view group, so
    tables of K = 4, 16 or all views share one file. Any number of processes may use one folder.

    Raises `TeacherError` when the table belongs to another teacher, data, views, … (all parts that
    differ are named), when the teacher cannot be tabled (outputs that depend on the neighbours,
    that are no tensor, or do not fit fp16), and `DataError` for damaged files.
    """

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
    ):
        if on_mismatch not in ("error", "new"):
            raise ConfigError(unknown("on_mismatch", on_mismatch, ("error", "new")))
        self.teacher = None if teacher is None else as_teacher(teacher)
        self.inputs, self.codec = inputs, codec or Dense()
        self.execution = execution or Execution()
        self.layers = tuple(layers)
        self.recorded: dict[str, Tensor] = {}
        self._announce = announce
        self._run = None
        if self.teacher is not None:
            _refuse_training(self.teacher)
            self._run = FixedBatch(self.teacher, self.execution, self.layers)
        self.storage: TableStorage | None = None
        self.manifest: Manifest | None = None
        self.folder = Path(folder)
        self._open(on_mismatch)
        self.counts = {"hits": 0, "misses": 0}

    # -- what a teacher source is asked for

    @property
    def fingerprint(self) -> str:
        """That of the teacher: a student trained from the table was trained by this teacher."""
        return self._teacher_identity()["teacher"]

    @property
    def reference(self):
        return None if self.teacher is None else self.teacher.reference

    @property
    def run_uuid(self) -> str | None:
        if self.teacher is not None:
            return self.teacher.run_uuid
        return self.manifest.facts.get("teacher_run")

    @property
    def module(self) -> nn.Module | None:
        """None: no module runs, so no layer can be captured; stored ones are in `recorded`."""
        return None

    def to(self, *args: Any, **kwargs: Any) -> TeacherTable:
        """Values come on the device of the keys; this moves nothing."""
        return self

    def half(self) -> TeacherTable:
        return self

    def double(self) -> TeacherTable:
        return self

    def train_with(self, mode: bool) -> TeacherTable:
        """Entries are those of a teacher in evaluation; another mode is an error."""
        if mode:
            raise TeacherError(
                "a teacher table holds the outputs of a teacher in eval mode; "
                "teacher_mode='train' needs the teacher online (teacher_table=None)"
            )
        return self

    def release(self) -> None:
        """Sync and close the files, give the teacher its flags back."""
        self.close()
        if self.teacher is not None:
            self.teacher.release()

    def __call__(
        self,
        *args: Any,
        sample: Tensor | None = None,
        view: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if sample is None or (view is None and self.inputs.views > 1):
            raise TeacherError(KEYS)
        if view is None:
            view = torch.zeros_like(sample)
        samples, views = _key(sample, "sample"), _key(view, "view")
        if args or kwargs:
            self.inputs.check(samples, views, args, kwargs)
        missing = self.missing(samples, views)
        if missing.any():
            rows = np.flatnonzero(missing)
            self.compute(rows, samples[rows], views[rows], args, kwargs)
        self.counts["misses"] += int(missing.sum())
        self.counts["hits"] += int(len(missing) - missing.sum())
        return self._decode(self.storage.read(samples, views), sample.device)

    # -- filling

    def missing(self, sample: np.ndarray, view: np.ndarray) -> np.ndarray:
        """`[n]` bool: which of these keys have no entry."""
        if self.storage is None:
            return np.ones(len(sample), dtype=bool)
        return ~self.storage.filled(sample, view)

    def compute(
        self, rows: np.ndarray, sample: np.ndarray, view: np.ndarray, args: tuple, kwargs: dict
    ) -> None:
        """Run the teacher on these keys and store what it says, batch by batch.

        `rows` are the places of the keys in `args` and `kwargs`, which only `GivenInputs` reads.
        """
        if self._run is None:
            raise TeacherError(
                f"the table has no entry for {len(rows)} of the keys asked for (sample "
                f"{int(sample[0])}, view {int(view[0])}, …) and was opened without a teacher"
            )
        size = self.execution.batch_size
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            s, v = sample[part], view[part]
            inputs = self.inputs.take(rows[part], s, v, args, kwargs)
            if batch_rows(*inputs) != len(s):
                raise ShapeError(f"{len(s)} keys came with inputs of {batch_rows(*inputs)} rows")
            outputs = self._run.probe(*inputs) if self.storage is None else self._run(*inputs)
            if self.storage is None:
                self._create({name: tuple(value.shape[1:]) for name, value in outputs.items()})
            self.storage.write(s, v, self._encode(outputs, s, v))

    def estimate(self) -> str:
        """Size of the full table and of its parts in words; runs the teacher when it is new."""
        if self.manifest is None:
            self.compute(np.zeros(1, int), np.zeros(1, int), np.zeros(1, int), (), {})
        return _estimate(self.manifest)

    def close(self) -> None:
        """Sync the marks and close the files; the table may not be called afterwards."""
        if self.storage is not None:
            self.storage.close()
        if self._run is not None:
            self._run.close()

    def __enter__(self) -> TeacherTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside

    def identity(self) -> dict[str, object]:
        """Everything the entries depend on, by part; see `distillation.table.manifest.PARTS`."""
        identity = {**self.inputs.identity(), **self._teacher_identity()}
        identity |= {"layers": list(self.layers), "codec": self.codec.describe()}
        return json.loads(json.dumps(identity))

    def _teacher_identity(self) -> dict[str, object]:
        if self.teacher is None:
            return {part: self.manifest.identity[part] for part in COMPUTED_BY}
        return {
            "teacher": self.teacher.fingerprint,
            "teacher_mode": "eval",
            **self.execution.identity(self._run.device),
        }

    def _open(self, on_mismatch: str) -> None:
        self.manifest = Manifest.read(self.folder)
        if self.manifest is None:
            if self.teacher is None:
                raise TeacherError(f"there is no teacher table in {self.folder}")
            return
        if self.teacher is None:
            self.layers = tuple(self.manifest.identity["layers"])
            self.codec = codec_of(self.manifest.identity["codec"])
        asked = self.identity()
        if on_mismatch == "new" and asked != self.manifest.identity:
            self.folder = self.folder.with_name(f"{self.folder.name}-{digest(asked)[:12]}")
            self.manifest = Manifest.read(self.folder)
            if self.manifest is None:
                return
        self._refuse_other()
        self.storage = TableStorage(self.folder, self.manifest.shape)

    def _refuse_other(self) -> None:
        refuse_other(
            self.folder,
            self.manifest.identity,
            self.identity(),
            "Use the teacher, data and options it was made with, another folder, "
            "teacher_table='auto' (which finds the folder by all of these), or "
            "on_mismatch='new' for a new table beside it; delete it if it is of no more use",
        )

    def _create(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Make the folder, unless another process just did; the manifest comes last."""
        outputs, start = [], 0
        for name, shape in shapes.items():
            size = self.codec.width(shape) if name == OUTPUT else int(np.prod(shape))
            outputs.append({"name": name, "shape": list(shape), "start": start, "size": size})
            start += size
        facts = {
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "teacher_run": self.teacher.run_uuid,
        }
        made = Manifest(
            self.identity(),
            self.inputs.samples,
            self.inputs.views,
            start,
            tuple(outputs),
            facts,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / LOCK):
            self.manifest = Manifest.read(self.folder)
            if self.manifest is None:
                if self.layers:
                    self._announce(_estimate(made))
                TableStorage.create(self.folder, made.shape)
                made.write(self.folder)
                self.manifest = made
            self._refuse_other()
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

    def _decode(self, entries: np.ndarray, device: torch.device) -> Any:
        result = None
        for output in self.manifest.outputs:
            shape = tuple(output["shape"])
            part = entries[:, output["start"] : output["start"] + output["size"]]
            if output["name"] == OUTPUT:
                result = self.codec.decode(part, shape).to(device)
            else:
                value = torch.from_numpy(np.ascontiguousarray(part)).to(device)
                self.recorded[output["name"]] = value.float().reshape(len(part), *shape)
        return result


def table_folder(root: Path, table_identity: dict[str, object]) -> Path:
    """Where `teacher_table="auto"` keeps the table of this identity below `root`."""
    teacher = str(table_identity["teacher"])
    return Path(root) / teacher[:16] / digest(table_identity)[:16]


def _key(index: Tensor, name: str) -> np.ndarray:
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        kind = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else type(index)
        raise ShapeError(f"{name} must be an int64 tensor [batch], got {kind}")
    return index.detach().cpu().numpy()


def _refuse_training(teacher: TeacherSource) -> None:
    if isinstance(teacher, TeacherTable):
        raise TeacherError("the teacher of a table cannot be a table itself")
    if getattr(teacher, "mode", "eval") != "eval":
        raise TeacherError(
            "a teacher with teacher_mode='train' gives other outputs at every call: a table "
            "needs teacher_mode='eval'"
        )


def _estimate(manifest: Manifest) -> str:
    keys = manifest.samples * manifest.views
    lines = [f"teacher table of {manifest.samples:,} samples × {manifest.views:,} views:"]
    for output in manifest.outputs:
        size = keys * output["size"] * 2
        lines.append(f"  {output['name']} {output['shape']}: {size / 1e6:,.1f} MB when full")
    lines.append(f"  marks: {keys * 2 / 1e6:,.1f} MB when full")
    return "\n".join(lines)
