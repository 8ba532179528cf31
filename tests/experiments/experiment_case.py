"""What the experiments' tests share: commands in this process and in killable forks."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillation import runs
from experiments.command_line import run_main

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def uuid(self) -> str:
        """The run that the last line names."""
        assert self.code == 0, self.err
        word, uuid = self.out.splitlines()[-1].split()
        assert word == "run:"
        return uuid


def command(name: str, *arguments: str, root: Path) -> Done:
    """`python -m experiments.<name> …` in this process."""
    out, err = io.StringIO(), io.StringIO()
    main = importlib.import_module(f"experiments.{name}").main
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_main(main, [*arguments, "--runs", str(root)])
    except SystemExit as end:
        return Done(int(end.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("run_main came back")


def rows(run: runs.Run) -> list[dict[str, Any]]:
    """What was recorded, but for when."""
    return [{k: v for k, v in row.items() if k != "time"} for row in run.metrics]


def last_weights(run: runs.Run) -> dict[str, Any]:
    """Tensors of the last checkpoint."""
    return run.checkpoint(state=False).weights["model"]


def wait_for(condition, seconds: float = 60.0):
    """What `condition()` gives as soon as that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s in vain")


class Warm:
    """Starts experiments in forks of a process that has imported everything already.

    A start costs a few milliseconds instead of seconds, so that a training can be killed often.
    The fork has its own process group, files, limits and signals: what a shell would start.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm_server.py"))],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started = 0

    def start(self, name: str, *arguments: str, root: Path, **options: Any) -> Job:
        """Begin `python -m experiments.<name> …`."""
        self.started += 1
        job = {
            "name": name,
            "arguments": [*arguments, "--runs", str(root)],
            "out": str(self.folder / f"{self.started}.out"),
            "err": str(self.folder / f"{self.started}.err"),
            **options,
        }
        Path(job["out"]).touch()
        Path(job["err"]).touch()
        pid = self._ask(job)
        return Job(self, pid, Path(job["out"]), Path(job["err"]))

    def run(self, name: str, *arguments: str, root: Path, **options: Any) -> Done:
        """The same, to its end."""
        return self.start(name, *arguments, root=root, **options).wait()

    def _ask(self, question: dict[str, Any]) -> int:
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(30)


@dataclass
class Job:
    """An experiment that runs in a fork."""

    warm: Warm
    pid: int
    out: Path
    err: Path

    def wait(self) -> Done:
        code = self.warm._ask({"wait": self.pid})
        return Done(code, self.out.read_text(), self.err.read_text())

    def printed(self, text: str) -> int:
        return self.out.read_text().count(text)
