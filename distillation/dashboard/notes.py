"""What a reader writes about a run: a note, and whether it is hidden. Nothing else is written."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from distillation.dashboard.reading import read_json
from distillation.errors import ConfigError, RunError
from distillation.files import atomic_json
from distillation.runs.places import RUN

FILE = "note.json"  # in the run's folder: it goes where the run goes
LONGEST = 10_000  # characters

_guard = threading.Lock()


def read(folder: Path, problems: list[str] | None = None) -> dict:
    """{"text": str, "hidden": bool} of the run in `folder`; a damaged file is a problem."""
    try:
        found = read_json(folder / FILE)
        if not isinstance(found, dict):
            raise RunError(f"{FILE} holds no object")
    except FileNotFoundError:
        found = {}
    except RunError as error:
        found = {}
        if problems is not None:
            problems.append(str(error))
    text = found.get("text")
    return {"text": text if isinstance(text, str) else "", "hidden": found.get("hidden") is True}


def write(folder: Path, *, text: object = None, hidden: object = None) -> None:
    """Set the note's text, or whether the run is hidden; what is None stays as it is.

    Raises:
        ConfigError: a text that is none or longer than 10,000 characters, a `hidden` that is no
            bool.
        RunError: the run is gone.
        CheckpointError: the folder cannot be written.
    """
    if text is not None and not isinstance(text, str):
        raise ConfigError(f"a note is a text, not {text!r}"[:200])
    if text is not None and len(text) > LONGEST:
        raise ConfigError(f"a note has at most {LONGEST:,} characters; this has {len(text):,}")
    if hidden is not None and not isinstance(hidden, bool):
        raise ConfigError(f"hidden is true or false, not {hidden!r}"[:200])
    with _guard:
        if not (folder / RUN).is_file():
            raise RunError("the run is gone")
        now = read(folder)
        now["text"] = now["text"] if text is None else text
        now["hidden"] = now["hidden"] if hidden is None else hidden
        atomic_json(folder / FILE, now)
        if not (folder / RUN).is_file():  # removed meanwhile: leave no folder with only a note
            with suppress(OSError):
                (folder / FILE).unlink()
                folder.rmdir()
            raise RunError("the run is gone")
