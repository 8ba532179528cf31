"""A teacher, its table on the disk, and the rule between them: what is missing is computed once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from distillation.errors import ConfigError, DataError, ShapeError, TeacherError, unknown
from distillation.frozen_teacher import TeacherSource
from distillation.table.codecs import Codec, codec_of, to_half
from distillation.table.compute import (
    BATCH_SIZE,
    OUTPUT,
    Execution,
    FixedBatch,
    batch_rows,
    place,
)
from distillation.table.inputs import ImageInputs, Inputs
from distillation.table.manifest import (
    COMPUTED_BY,
    Manifest,
    beside,
    digest,
    refuse_changed,
    refuse_other,
)
from distillation.table.storage import LOCK, TableStorage
from distillation.table.weights import WeightsWatch

#: stored entries that are computed again when a table is opened
COMPARED = 2
#: batches that are only read, between two looks at the teacher's weights
WATCHED = 64


def architecture(teacher: TeacherSource) -> str:
    """Digest of how the teacher is built: equal weights under another activation differ here.

    It is that of the modules' printed form. Numbers that a module keeps without printing them
    (`self.scale = 2`) are not in it; they show in the entries, some of which are compared when a
    table is opened.
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
        self.execution = execution.with_batch_size(None)
        self.layers = tuple(sorted(set(layers)))  # one table, in whatever order they are named
        self._announce, self._asked, self._on_mismatch = announce, execution, on_mismatch
        self._run = self._weights = None
        self._reads = 0
        self.storage: TableStorage | None = None
        self.manifest: Manifest | None = None
        #: whether stored entries may be read before some were computed again and compared
        self.compared = teacher is None
        if teacher is not None:
            _refuse(teacher)
            self._weights = WeightsWatch(teacher)
            self.identity = self._identity(None)
            if under:
                # Whatever the batch size of its fills: a reader takes that of the table.
                folder = folder / digest(self.identity | {"batch_size": BATCH_SIZE})[:24]
        elif (found := Manifest.read(folder)) is None:
            raise TeacherError(f"there is no teacher table in {folder}")
        else:
            self.layers = tuple(found.identity["layers"])
            self.codec = codec_of(found.identity["codec"])
            self.identity = self._identity(found)
        self._places = beside(folder, digest(self.identity)[:12])
        try:
            self._open_next()
        except BaseException:
            self._close_files()
            if self._run is not None:
                self._run.close()
            raise

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
        beside: np.ndarray | None = None,
    ) -> None:
        """Run the teacher on these keys and store what it says, batch by batch.

        `rows` are the places of the keys in `args` and `kwargs`, which only `GivenInputs` reads.
        With `beside`, sample numbers, other views of these samples take the places that would be
        padded in the last batch.
        """
        if self._run is None:
            raise TeacherError(
                f"the table has no entry for {len(sample)} of the keys asked for (sample "
                f"{int(sample[0])}, view {int(view[0])}, …) and was opened without a teacher"
            )
        size = self.execution.batch_size
        if beside is not None and self.inputs.cheap_to_render and len(sample) % size:
            sample, view = self._filled_up(sample, view, beside)
            rows = None
        rows = np.arange(len(sample)) if rows is None else rows
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

    def _filled_up(
        self, sample: np.ndarray, view: np.ndarray, beside: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """These keys, and empty ones of `beside` up to whole batches.

        A batch costs the same however few of its rows are asked for. When most of a table is
        there, a training would otherwise pay a whole one for the few that its batch lacks.
        """
        width, free = self.inputs.views, -len(sample) % self.execution.batch_size
        asked, samples = sample * width + view, np.unique(beside)
        others = (samples[:, None] * width + self.inputs.choices(samples)).T.reshape(-1)
        others = others[self.missing(others // width, others % width) & ~np.isin(others, asked)]
        keys = np.concatenate([asked, others[:free]])
        return keys // width, keys % width

    def read(
        self, sample: np.ndarray, view: np.ndarray, device: torch.device
    ) -> tuple[Any, dict[str, Tensor]]:
        """The output and the layers of these keys, all of which must be there."""
        if self.storage is None:
            raise ShapeError(
                "a batch without a key: the table is new, and the shape of the teacher's output is "
                "known from its first entry on"
            )
        self._reads += 1
        if self._weights is not None and self._reads % WATCHED == 0:
            # Every batch would cost a small student's step some percent
            self._weights.check()
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

    def close(self) -> None:
        """Sync the marks, close the files, take the hooks off, release the teacher."""
        self._close_files()
        if self._run is not None:
            self._run.close()
        if self.teacher is not None:
            self.teacher.release()

    def _close_files(self) -> None:
        if self.storage is not None:
            self.storage.close()
            self.storage = None

    def _identity(self, manifest: Manifest | None) -> dict[str, object]:
        """What is asked for; without a teacher, how entries were computed is as `manifest` says."""
        identity = self.inputs.identity()
        if manifest is not None:
            identity |= {part: manifest.identity.get(part) for part in COMPUTED_BY}
        else:
            identity |= {"teacher": self._weights.fingerprint, "teacher_mode": "eval"}
            identity |= {"architecture": architecture(self.teacher)}
            identity |= self.execution.identity(*place(self.teacher.module))
        identity |= {"layers": list(self.layers), "codec": self.codec.describe()}
        return json.loads(json.dumps(identity))

    def _open_next(self) -> None:
        """Open the table in the next place, or, by option, the first that holds what is asked for.

        A place without a table ends the search: a new one is made there.
        """
        for folder in self._places:
            self._close_files()
            self.folder = folder
            self.manifest = Manifest.read(self.folder)
            self._take_batch_size()
            if self.manifest is None:
                return
            new = self._on_mismatch == "new"
            if not new:
                refuse_other(self.folder, self.manifest.identity, self.identity)
            elif self.identity != self.manifest.identity:
                continue
            self.storage = TableStorage(self.folder, self.manifest.shape)
            if self.compared or not isinstance(self.inputs, ImageInputs):
                return
            different = self._compare()
            if different is None:
                return
            if not new:
                refuse_changed(self.folder, different, self.manifest.facts)

    def _take_batch_size(self) -> None:
        """Run as the table was filled, where no batch size was asked for."""
        if self.teacher is None:
            return
        found = None if self.manifest is None else self.manifest.identity.get("batch_size")
        self.execution = self._asked.with_batch_size(found if isinstance(found, int) else None)
        self.identity |= {"batch_size": self.execution.batch_size}
        if self._run is None or self._run.execution != self.execution:
            if self._run is not None:
                self._run.close()
            self._run = FixedBatch(self._weights, self.execution, self.layers)

    def _compare(self) -> tuple[int, int] | None:
        """Compute some stored entries again; the first key whose entry differs, or None."""
        sample, view = self.storage.sound(COMPARED)
        if not len(sample):
            different = None
        else:
            args, kwargs = self.inputs.take(np.arange(len(sample)), sample, view, (), {})
            different = self._differing(sample, view, args, kwargs)
        self.compared = different is None
        return different

    def _differing(
        self, sample: np.ndarray, view: np.ndarray, args: tuple, kwargs: dict
    ) -> tuple[int, int] | None:
        """The first of these keys whose stored entry is not, to the bit, what the teacher says."""
        try:
            computed = self._encode(self._run(args, kwargs), sample, view)
        except ShapeError:
            return int(sample[0]), int(view[0])
        stored = self.storage.read(sample, view)
        wrong = (computed.view(np.uint16) != stored.view(np.uint16)).any(axis=1)
        rows = np.flatnonzero(wrong)
        return (int(sample[rows[0]]), int(view[rows[0]])) if len(rows) else None

    def compare_given(
        self, sample: np.ndarray, view: np.ndarray, rows: np.ndarray, args: tuple, kwargs: dict
    ) -> bool:
        """Compare two stored entries of a call with what the teacher says of its inputs.

        For inputs that only a call brings. False: the table was another teacher's, and by option
        another one is open now, which does not hold these keys. Else raises `TeacherError`.
        """
        part = slice(COMPARED)
        given = self.inputs.take(rows[part], sample[part], view[part], args, kwargs)
        different = self._differing(sample[part], view[part], *given)
        if different is None:
            self.compared = True
            return True
        if self._on_mismatch == "error":
            refuse_changed(self.folder, different, self.manifest.facts)
        self._open_next()
        return False

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
        with self._making():
            self.manifest = Manifest.read(self.folder)
            own = self.manifest is None
            if own:
                if self.layers:
                    self._announce(estimate(made))
                TableStorage.create(self.folder, made.shape)
                made.write(self.folder)
                self.manifest = made
        refuse_other(self.folder, self.manifest.identity, self.identity)
        self.storage = TableStorage(self.folder, self.manifest.shape)
        self.compared = own
        if not own and isinstance(self.inputs, ImageInputs):
            different = self._compare()
            if different is not None:
                refuse_changed(self.folder, different, self.manifest.facts)

    @contextmanager
    def _making(self) -> Iterator[None]:
        """Make the folder and hold its lock; `DataError` where that cannot be."""
        lock = FileLock(self.folder / LOCK)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise DataError(
                f"no teacher table can be made in {self.folder}: {error.strerror}; give "
                "teacher_table a folder that may be written, or run the teacher online "
                "(teacher_table=None)"
            ) from error
        try:
            yield
        finally:
            lock.release()

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
