"""What the entries of a table are, written beside them, and the comparison with what is asked for.

A table's identity has one part for everything an entry depends on. A table whose identity differs
in any part is never read: `TeacherError` names the parts that differ.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from distillation.errors import DataError, TeacherError
from distillation.files import atomic_json
from distillation.table.storage import ENTRIES

MANIFEST = "manifest.json"
FORMAT = 1
ADVICE = (
    "Use the teacher, data and options it was made with, or another folder; teacher_table='auto' "
    "finds the folder by all of these, and on_mismatch='new' makes a new table beside it. Delete "
    "it if it is of no more use."
)

# part of the identity -> its name in messages, in the order they are reported
PARTS = {
    "teacher": "teacher weights",
    "architecture": "teacher architecture",
    "teacher_mode": "teacher mode",
    "data": "data",
    "views": "views",
    "normalisation": "normalisation",
    "precision": "precision",
    "memory_format": "memory format",
    "device": "device",
    "batch_size": "batch size of the fills",
    "layers": "layers",
    "codec": "storage form",
}
# Parts that only matter to whoever computes entries; a table opened without a teacher ignores them.
COMPUTED_BY = (
    *("teacher", "architecture", "teacher_mode"),
    *("precision", "memory_format", "device", "batch_size"),
)


@dataclass(frozen=True)
class Manifest:
    """Identity (`PARTS`), shape of the arrays, where in an entry each output lies, and facts.

    `outputs` is a list of `{"name", "shape", "start", "size"}` in half floats. `facts` say who made
    the table (versions, run UUID of the teacher) and are not compared.
    """

    identity: Mapping[str, object]
    samples: int
    views: int
    width: int
    outputs: tuple[Mapping[str, object], ...]
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.samples, self.views, self.width

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, all of it or nothing."""
        atomic_json(
            folder / MANIFEST,
            {
                "format": FORMAT,
                "identity": dict(self.identity),
                "samples": self.samples,
                "views": self.views,
                "width": self.width,
                "outputs": [dict(output) for output in self.outputs],
                "facts": dict(self.facts),
            },
        )

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder, None when it has none.

        Raises `DataError` for one that cannot be read, is damaged, or is something else's.
        """
        path = Path(folder) / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
        try:
            found = json.loads(text)
            identity = dict(found["identity"])
            if found["format"] != FORMAT:
                raise DataError(
                    f"{path} has format {found['format']!r}; this version reads format {FORMAT}"
                )
            return cls(
                identity=identity,
                samples=int(found["samples"]),
                views=int(found["views"]),
                width=int(found["width"]),
                outputs=tuple(found["outputs"]),
                facts=dict(found["facts"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            if not (path.parent / ENTRIES).exists():
                raise DataError(
                    f"{path} is not that of a teacher table, but of something else, such as a "
                    "checkpoint; give the table a folder of its own"
                ) from error
            raise DataError(
                f"{path} is damaged ({error!r}); delete the folder to start the table again"
            ) from error


def digest(identity: Mapping[str, object]) -> str:
    """64 hex characters that name an identity, whatever the order of its parts."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(
    found: Mapping[str, object], asked: Mapping[str, object]
) -> list[tuple[str, object, object]]:
    """`(name for people, found, asked)` of every part that differs, in the order of `PARTS`."""
    names = [*PARTS, *sorted((set(found) | set(asked)) - set(PARTS))]
    return [
        (PARTS.get(name, name), found.get(name), asked.get(name))
        for name in names
        if found.get(name) != asked.get(name)
    ]


def beside(folder: Path, name: str) -> Iterator[Path]:
    """The folder of a table, then those beside it that `on_mismatch="new"` looks in."""
    yield folder
    yield folder.with_name(f"{folder.name}-{name}")
    for number in itertools.count(2):
        yield folder.with_name(f"{folder.name}-{name}-{number}")


def refuse_changed(folder: Path, key: tuple[int, int], facts: Mapping[str, object]) -> NoReturn:
    """Raise `TeacherError`: a teacher with the table's fingerprint gives another entry for `key`.

    `facts` are those of the table's manifest.
    """
    import torch

    made = f"torch {facts.get('torch')}, {facts.get('threads')} threads"
    now = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    raise TeacherError(
        f"the teacher table in {folder} is not of this teacher: computed again, the entry of "
        f"sample {key[0]}, view {key[1]} has other bits than the stored one, though weights and "
        "architecture are the same. The teacher keeps something that it neither prints nor saves "
        "(a number, a function, a buffer with persistent=False) and that has changed, or this "
        f"machine computes otherwise than the table's (then: {made}; now: {now}).\n{ADVICE}"
    )


def refuse_other(folder: Path, found: Mapping[str, object], asked: Mapping[str, object]) -> None:
    """Raise `TeacherError` when the table in `folder` holds something else than is asked for."""
    differing = differences(found, asked)
    if not differing:
        return
    lines = "".join(f"\n  {name}: table {_short(a)}, asked {_short(b)}" for name, a, b in differing)
    raise TeacherError(
        f"the teacher table in {folder} was made for other "
        f"{', '.join(name for name, _, _ in differing)}:{lines}\n{ADVICE}"
    )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else f"{text[:57]}…"
