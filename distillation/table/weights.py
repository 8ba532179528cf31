"""Whether a teacher's weights are still those that its fingerprint was taken of."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from distillation.errors import TeacherError
from distillation.frozen_teacher import TeacherSource


class WeightsWatch:
    """Notices weights that were changed in place, or replaced, since `fingerprint` was taken.

    Torch counts the changes of every tensor, so `check()` reads no value and waits for no device.
    Only when a count has moved the weights are hashed again: loading the same weights is no change.

    A change through `tensor.data` is not counted by torch; it shows when the table is opened
    again, by its fingerprint.
    """

    def __init__(self, teacher: TeacherSource):
        self.teacher = teacher
        # Counted first: a change while the weights are hashed is then noticed, and not missed.
        self._counts = self._count()
        self.fingerprint = teacher.fingerprint

    def check(self) -> None:
        """Raise `TeacherError` when the teacher has other weights than at first."""
        now = self._count()
        if now == self._counts:
            return
        # The fingerprint says nothing of buffers that are not saved: their counts must stand.
        if now[1] != self._counts[1] or self.teacher.fingerprint != self.fingerprint:
            raise TeacherError(
                "the teacher's weights changed since its table was opened (it was trained, or "
                "other weights were loaded): entries of both would stand in one table. Open the "
                "table again for the new weights, or run this teacher online (teacher_table=None)"
            )
        self._counts = now

    def _count(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(identity, changes) of each saved tensor, and of each buffer that is not saved."""
        saved, others = [], []
        for part in _parts(self.teacher):
            saved += [_changes(p) for p in part._parameters.values() if p is not None]
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    hidden = name in part._non_persistent_buffers_set
                    (others if hidden else saved).append(_changes(buffer))
        return saved, others


def _parts(teacher: TeacherSource) -> Iterator[nn.Module]:
    """Every submodule of the teacher, or of the members of an ensemble."""
    if teacher.module is not None:
        yield from teacher.module.modules()
        return
    for member in getattr(teacher, "sources", ()):
        yield from _parts(member)


def _changes(tensor: Tensor) -> tuple[int, int]:
    # Tensors made in inference mode are not counted; they cannot be changed outside of it.
    return id(tensor), -1 if tensor.is_inference() else tensor._version
