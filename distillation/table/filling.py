"""Filling a table ahead of training: every view that the data will ever show, resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from distillation.data import Restricted
from distillation.errors import ConfigError
from distillation.table.entries import Entries
from distillation.table.inputs import ImageInputs


def pending(table: Entries, samples: Sequence[int] | None = None) -> tuple[np.ndarray, int]:
    """Keys `[n, 2]` (sample, view) that are still empty, and the number of all keys.

    `samples` are row numbers, all of them by default. Their views are those that the table's
    inputs ever show: K of each image when its views are restricted to K.
    """
    inputs = table.inputs
    if not isinstance(inputs, ImageInputs):
        raise ConfigError(
            f"a table with {type(inputs).__name__} cannot be filled ahead: only its caller knows "
            "the inputs; it fills while a student trains"
        )
    every = np.arange(inputs.samples) if samples is None else np.asarray(samples, dtype=np.int64)
    left, total = [], 0
    for part in np.array_split(every, max(1, len(every) // 4096)):
        views = inputs.choices(part)
        total += views.size
        keys = np.stack([np.repeat(part, views.shape[1]), views.reshape(-1)], axis=1)
        left.append(keys[table.missing(keys[:, 0], keys[:, 1])])
    return np.concatenate(left), total


def present(table: Entries) -> tuple[int, int]:
    """How many of the entries that the inputs will ever show are stored, and how many these are."""
    inputs = table.inputs
    group = getattr(inputs, "view_group", None)
    if group is None or not isinstance(group, Restricted):
        stored = 0 if table.storage is None else table.storage.count()
        return stored, inputs.samples * inputs.views
    stored = total = 0
    for part in np.array_split(np.arange(inputs.samples), max(1, inputs.samples // 4096)):
        views = inputs.choices(part)
        total += views.size
        keys = np.repeat(part, views.shape[1]), views.reshape(-1)
        stored += int(np.count_nonzero(~table.missing(*keys)))
    return stored, total


def fill(
    table: Entries,
    samples: Sequence[int] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    limit: int | None = None,
    worker: tuple[int, int] = (0, 1),
) -> int:
    """Compute every empty entry that the table's inputs will ever be asked for.

    Stopped at any moment and started again it goes on where it was. `progress(done, total)` is
    called after every batch, `done` counting what was stored before too. `limit` bounds the number
    of new entries. Several processes fill together with `worker=(i, n)`: each starts at its own
    share of the keys and then helps with what the others have left.

    Returns the number of entries this call computed.
    """
    i, n = worker
    if not 0 <= i < n:
        raise ConfigError(f"worker={worker}: take (i, n) with 0 ≤ i < n")
    keys, total = pending(table, samples)
    done = total - len(keys)
    if progress is not None:
        progress(done, total)
    keys = np.roll(keys, -(len(keys) * i // n), axis=0)
    made, size = 0, table.execution.batch_size
    for start in range(0, len(keys), size):
        if limit is not None and made >= limit:
            break
        batch = keys[start : start + size]
        # Another worker may have been here since the keys were listed.
        empty = batch[table.missing(batch[:, 0], batch[:, 1])]
        if limit is not None:
            empty = empty[: limit - made]
        if len(empty):
            table.compute(empty[:, 0], empty[:, 1])
            made += len(empty)
        done += len(batch)
        if progress is not None:
            progress(min(done, total), total)
    if table.storage is not None:
        table.storage.flush()
    return made


def repair(table: Entries) -> int:
    """Look at every entry, forget those that do not fit their checksum; returns how many."""
    if table.storage is None:
        return 0
    damaged = np.array(list(table.storage.damaged()), dtype=np.int64).reshape(-1, 2)
    if len(damaged):
        table.storage.forget(damaged[:, 0], damaged[:, 1])
    return len(damaged)
