"""A run is held by the process that writes it; when that dies, the system lets go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distillation.errors import RunError
from distillation.runs.places import LOCK

if TYPE_CHECKING:
    from filelock import FileLock

_PATIENCE = 0.5  # seconds; whoever only asks whether a run is held lets go at once


def hold(folder: Path) -> FileLock:
    """Take the run in `folder`, until released or until this process ends.

    Raises:
        RunError: another process (or another recorder of this one) holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=_PATIENCE, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"run {folder.name[:8]} is running: another process writes it. "
            "Wait for it, or stop it, first."
        ) from None
    return lock


def is_free(folder: Path) -> bool:
    """Whether no living process holds the run in `folder`."""
    from filelock import FileLock, Timeout

    path = folder / LOCK
    if not path.exists():
        return True
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except (Timeout, PermissionError):
        return False  # whose it is cannot be asked; it is left alone
    lock.release()
    return True
