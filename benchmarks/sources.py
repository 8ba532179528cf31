"""What a benchmark measures: the files it imports, and whether they are still what was measured."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("benchmarks", "distillation", "experiments")
CHILDREN = {"views_cost": ("experiments.cifar10.distill", "experiments.digits.distill")}


def files_of(benchmark: str) -> set[str]:
    """Paths, relative to the repository's root, of all files that a benchmark can import.

    Imports inside functions count. Our packages import their names when they are asked for, from a
    table of names and modules: of `from distillation import X` the module that defines X counts;
    of a whole package (`from distillation import models`) all of its table. Programs that a
    benchmark starts as processes of their own count as well.
    """
    found: set[str] = set()
    open_ = [f"benchmarks.{benchmark}", *CHILDREN.get(benchmark, ())]
    while open_:
        module = open_.pop()
        path = _path(module)
        if path is None or path in found:
            continue
        found.add(path)
        parents = module.split(".")[:-1]
        open_ += [".".join(parents[: i + 1]) for i in range(len(parents))]
        open_ += _imported(path)
    return found


def changed_since(commit: str, files: set[str]) -> list[str] | None:
    """Those of `files` that are not as they were at `commit`; None when git cannot tell."""
    if not files:
        return []
    if commit.endswith("+changes") or commit == "unknown":
        return None
    command = ["git", "diff", "--name-only", commit, "--", *sorted(files)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[:-1]


def _path(module: str) -> str | None:
    if module.partition(".")[0] not in PACKAGES:
        return None
    stem = module.replace(".", "/")
    for path in (f"{stem}.py", f"{stem}/__init__.py"):
        if (ROOT / path).is_file():
            return path
    return None


def _imported(path: str) -> Iterator[str]:
    """Modules that a file imports; names that are none are left to `_path`."""
    package = path.rpartition("/")[0].replace("/", ".")
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield module
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield from (inner, *_table(inner).values())
                defining = module
                while _table(defining).get(alias.name, defining) != defining:
                    defining = _table(defining)[alias.name]
                    yield defining


@cache
def _table(module: str) -> dict[str, str]:
    """Name -> full name of the module that defines it, from the dicts of names in `module`."""
    path, found = _path(module), {}
    if path is None:
        return found
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
            continue
        try:
            names = ast.literal_eval(node.value)
        except ValueError:
            continue
        for name, value in names.items():
            for package in (module, module.partition(".")[0]):
                if isinstance(value, str) and _path(f"{package}.{value}") is not None:
                    found.setdefault(name, f"{package}.{value}")
    return found
