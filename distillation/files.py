"""Atomic files and strict JSON: what every record and every checkpoint is written with.

A reader sees the old content or the new one, never a part: content goes to a temporary sibling,
is flushed to the disk (fsync), takes the final name by a rename, and the rename is flushed too.
A temporary sibling that a killed process left behind is removed by the next write beside it.

No torch here: listing a thousand runs must not pay for its import.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from distillation.errors import CheckpointError, ConfigError

MANIFEST = "manifest.json"

_TEMPORARY = ".tmp"
_PREVIOUS = ".previous" + _TEMPORARY
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


# Writing ------------------------------------------------------------------------------------


def atomic_write(path: str | os.PathLike, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`, all of it or nothing.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written; whatever was at
            `path` before is still there, unchanged.
    """
    content = data.encode() if isinstance(data, str) else data
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)


def atomic_json(path: str | os.PathLike, value: object) -> None:
    """Write `value` as strict JSON (`jsonable` says what may be in it), all of it or nothing."""
    atomic_write(path, dumps(value, indent=2) + "\n")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; on a clean exit it becomes `path`.

    Raises:
        CheckpointError: the operating system refused a write; `path` is as it was.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clean(path.parent)
        temporary = temporary_name(path)
        try:
            yield temporary
            sync_file(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill(temporary)` write files into a new folder, which then becomes `folder`.

    Where `folder` exists already it steps aside under a name that `locate` knows, so that at
    every moment a complete one can be found.
    """
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover(folder)
        clean(folder.parent)
        temporary = temporary_name(folder)
        try:
            temporary.mkdir()
            fill(temporary)
            for file in temporary.iterdir():
                sync_file(file)
            sync_folder(temporary)
            if folder.exists():
                folder.rename(_previous(folder))
            temporary.rename(folder)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            recover(folder)
            if isinstance(error, CheckpointError):  # name what the caller knows
                message = str(error).replace(str(temporary), str(folder))
                raise CheckpointError(message) from error.__cause__
            raise
        sync_folder(folder.parent)
        if _previous(folder).exists():
            remove_folder(_previous(folder))


def locate(folder: Path) -> Path | None:
    """Where the complete content of `folder` lies now: itself, or what it is replacing."""
    for candidate in (folder, _previous(folder)):
        if (candidate / MANIFEST).is_file():
            return candidate
    return None


def recover(folder: Path) -> None:
    """Finish, or undo, a replacement of `folder` that a killed process began."""
    previous = _previous(folder)
    if not previous.exists():
        return
    if folder.exists():
        remove_folder(previous)
    else:
        previous.rename(folder)


def folders(parent: Path) -> list[str]:
    """Names of the complete folders (those with a manifest) in `parent`, sorted."""
    if not parent.is_dir():
        return []
    names = set()
    for entry in os.scandir(parent):
        name = entry.name
        if name.startswith("."):
            if not name.endswith(_PREVIOUS):
                continue
            name = name[1 : -len(_PREVIOUS)]
        if locate(parent / name) is not None:
            names.add(name)
    return sorted(names)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a kill on the way never leaves a half of it under its name."""
    clean(folder.parent)
    condemned = temporary_name(folder)
    folder.rename(condemned)
    shutil.rmtree(condemned)


def clean(parent: Path) -> None:
    """Remove the temporary files and folders in `parent` whose writer is no longer alive."""
    for entry in list(os.scandir(parent)):
        name = entry.name
        if not name.startswith(".") or not name.endswith(_TEMPORARY) or _writer_alive(name):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            Path(entry.path).unlink(missing_ok=True)


def tidy(parent: Path) -> None:
    """`clean`, and `recover` for every folder in `parent`; only for who alone writes there."""
    if not parent.is_dir():
        return
    clean(parent)
    for entry in parent.glob(f".*{_PREVIOUS}"):
        recover(parent / entry.name[1 : -len(_PREVIOUS)])


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other writer uses; it tells who is writing."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def sync_file(path: Path) -> None:
    """Flush a file that is written and closed to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk; a no-op where folders cannot be opened (Windows)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into a CheckpointError that says what is left."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> CheckpointError:
    """The message for a write to `path` that failed."""
    advice = " Free some space and save again." if error.errno in _FULL else ""
    reason = error.strerror or str(error)
    return CheckpointError(
        f"cannot save {path}: {reason}; what was there before is unchanged.{advice}"
    )


def existing(path: Path) -> Path:
    """`path`, which must be a file."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    return path


def damaged(path: Path, why: str) -> CheckpointError:
    """The error for a file that is not as it was written."""
    return CheckpointError(f"{path} is damaged: {why.splitlines()[0] if why else 'unreadable'}")


def sha256_of(path: Path, length: int | None = None) -> str:
    """SHA-256 (hex) of a file's bytes, or of its first `length` bytes."""
    digest = hashlib.sha256()
    left = path.stat().st_size if length is None else length
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{_PREVIOUS}")


def _host() -> str:
    return "".join(c for c in socket.gethostname() if c.isalnum())[:24] or "host"


def _writer_alive(temporary: str) -> bool:
    """Whether the process named in a temporary file's name may still be writing it."""
    try:
        host, pid, _ = temporary[: -len(_TEMPORARY)].rsplit(".", 1)[1].split("-")
        number = int(pid)
    except ValueError:
        return True  # not a name of ours
    if host != _host():
        return True  # another machine's writer cannot be asked
    if number == os.getpid() or os.name == "nt":  # there a signal of 0 would end the process
        return True
    with suppress(ProcessLookupError, OverflowError):
        try:
            os.kill(number, 0)
        except PermissionError:
            return True
        return True
    return False


# Strict JSON --------------------------------------------------------------------------------


def dumps(value: object, *, indent: int | None = None) -> str:
    """Strict JSON text of `value`: NaN and infinities become null; see `jsonable`."""
    return json.dumps(jsonable(value), indent=indent, allow_nan=False)


def jsonable(value: object, where: str = "") -> object:
    """`value` as what JSON knows: dict with str keys, list, str, int, finite float, bool, None.

    NaN and infinities become None. Paths, dtypes and devices become their names, classes and
    functions `module:qualname`, sets sorted lists, scalar arrays and tensors numbers; an object
    with `to_json()` says itself what it is.

    Raises:
        ConfigError: something else; the message names where it stands.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return _json_object(value, where)
    if isinstance(value, (list, tuple)):
        return [jsonable(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted((jsonable(v, where) for v in value), key=repr)
    if hasattr(value, "to_json"):
        return jsonable(value.to_json(), where)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return jsonable(value.item(), where)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    place = f" at {where.lstrip('.')!r}" if where else ""
    raise ConfigError(
        f"a {type(value).__name__}{place} cannot be written as JSON; give its name or its values"
    )


def _json_object(value: Mapping, where: str) -> dict:
    result = {}
    for key, item in value.items():
        name = key if isinstance(key, str) else str(jsonable(key, where))
        if name in result:
            raise ConfigError(f"two keys at {where.lstrip('.') or 'the top'!r} are {name!r}")
        result[name] = jsonable(item, f"{where}.{name}")
    return result
