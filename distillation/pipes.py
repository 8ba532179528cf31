"""A program whose output nobody reads any more (`… | head -1`) ends without a traceback."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

READER_GONE = 141  # what a shell reports of a program that SIGPIPE has ended


@contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """Raise `SystemExit(141)` where the reader of stdout or stderr has gone.

    What is still in a buffer is written on the way out. A broken pipe that is neither of the two
    is an error like any other.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if _unread(stream)]
        if not gone:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in gone:  # so that the interpreter's own last flush finds no broken pipe
            os.dup2(nowhere, stream.fileno())
        raise SystemExit(READER_GONE) from None


def _unread(stream: object) -> bool:
    """Whether `stream` writes into a pipe whose other end is closed."""
    try:
        number = stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
    if not hasattr(select, "poll"):  # Windows: there is no asking
        return True
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
