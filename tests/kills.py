"""Kills at chosen moments, for tests of what they leave behind."""

from __future__ import annotations

import os
import signal
import sys

_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


def die_at(operation: int) -> None:
    """Have this process kill itself before its n-th change of the file system, counted from 1.

    SIGKILL: nothing is cleaned up. Python announces each change (`sys.addaudithook`).
    """
    count = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
        if writing or event in _CHANGES:
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
