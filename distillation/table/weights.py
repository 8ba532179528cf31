"""Whether a teacher's weights are still those that its fingerprint was taken of."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from distillation.errors import TeacherError
from distillation.frozen_teacher import TeacherSource

_UNSAVED = " (not saved)"


class WeightsWatch:
    """Notices weights that were changed in place, or replaced, since `fingerprint` was taken.

    Torch counts the changes of every tensor, so `check()` reads no value and waits for no device.
    Only when a count has moved the weights are hashed again: loading the same weights is no change.

    A change through `tensor.data`, or by a fused optimizer, is not counted by torch; it shows when
    the table is opened again, by its fingerprint.
    """

    def __init__(self, teacher: TeacherSource):
        self.teacher = teacher
        # Counted first: a change while the weights are hashed is then noticed, and not missed.
        self._changes = self._all_changes()
        self._counts = self._count()
        self.fingerprint = teacher.fingerprint

    def check(self) -> None:
        """Raise `TeacherError` when the teacher has other weights than at first."""
        changes = self._all_changes()
        if changes == self._changes:
            return
        now = self._count()
        changed = [name for name in now | self._counts if now.get(name) != self._counts.get(name)]
        # The fingerprint says nothing of buffers that are not saved: any change of theirs counts.
        unsaved = [name for name in changed if name.endswith(_UNSAVED)]
        if unsaved or self.teacher.fingerprint != self.fingerprint:
            names = unsaved or changed
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise TeacherError(
                "the teacher's weights changed since its table was opened (it was trained, or "
                f"other weights were loaded): {', '.join(names[:3])}{more}. Entries of both would "
                "stand in one table. Open the table again for the new weights, or run this "
                "teacher online (teacher_table=None)"
            )
        self._changes, self._counts = changes, now

    def _all_changes(self) -> list[tuple[int, int]]:
        """What `_count` counts, without the names: for every batch, so it must cost little."""
        found, left = [], _modules(self.teacher)
        while left:
            part = left.pop()
            for tensors in (part._parameters, part._buffers):
                found += [_changes(tensor) for tensor in tensors.values() if tensor is not None]
            left += [child for child in part._modules.values() if child is not None]
        return found

    def _count(self) -> dict[str, tuple[int, int]]:
        """Identity and number of changes of each parameter and buffer."""
        counts = {}
        for prefix, part in _parts(self.teacher):
            for name, tensor in part._parameters.items():
                if tensor is not None:
                    counts[prefix + name] = _changes(tensor)
            for name, tensor in part._buffers.items():
                if tensor is not None:
                    kind = _UNSAVED if name in part._non_persistent_buffers_set else ""
                    counts[prefix + name + kind] = _changes(tensor)
        return counts


def _parts(teacher: TeacherSource, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every submodule of the teacher, or of the members of an ensemble, and how names begin."""
    if teacher.module is not None:
        for name, part in teacher.module.named_modules():
            yield prefix + (f"{name}." if name else ""), part
        return
    for number, member in enumerate(getattr(teacher, "sources", ())):
        yield from _parts(member, f"{prefix}{number}.")


def _modules(teacher: TeacherSource) -> list[nn.Module]:
    if teacher.module is not None:
        return [teacher.module]
    return [part for member in getattr(teacher, "sources", ()) for part in _modules(member)]


def _changes(tensor: Tensor) -> tuple[int, int]:
    # Tensors made in inference mode are not counted; they cannot be changed outside of it.
    return id(tensor), -1 if tensor.is_inference() else tensor._version
