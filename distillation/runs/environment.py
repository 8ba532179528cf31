"""What a run records about where it ran: command, versions, threads, git commit."""

from __future__ import annotations

import os
import platform
import sys
from functools import lru_cache
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "accelerate", "timm", "labml")


def command() -> list[str]:
    """The command line, without the part of it that only holds on this machine."""
    original = list(getattr(sys, "orig_argv", None) or [sys.executable, *sys.argv])
    return ["python", *(_relative(part) for part in original[1:])]


def versions() -> dict[str, str]:
    """Versions of Python, this library and the packages that results depend on."""
    from importlib import metadata

    from distillation import __version__

    found = {"python": platform.python_version(), "distillation": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def threads() -> int | None:
    """How many threads torch computes with; None as long as torch is not imported."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else None


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit that is checked out where the program runs; None outside a repository."""
    import subprocess

    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    commit = answer.stdout.strip()
    return commit if answer.returncode == 0 and commit else None


def _relative(part: str) -> str:
    """A path to code (a script, a console script) as it is named below the working directory."""
    path = Path(part)
    if not path.is_absolute() or not (path.suffix == ".py" or os.access(path, os.X_OK)):
        return part
    if path.is_dir():
        return part
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return path.name
