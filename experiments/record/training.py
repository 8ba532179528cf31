"""
# The parts as runs of the store

A part is trained by its experiment's own command, in a process of its own. A run that the store
already has with the same configuration and teacher is taken as it is, or taken up again.
"""

import importlib
import json
import time
from pathlib import Path
from typing import Any

from distillation import runs
from distillation.checkpoint import atomic_json
from distillation.runs.store import by_uuid
from experiments.chain import train
from experiments.command_line import expand
from experiments.config_check import check, resolve
from experiments.record import NAME
from experiments.record.protocol import Part
from experiments.resuming import ANY_TIME


def configuration(part: Part) -> dict[str, Any]:
    """
    ### Every configuration value of a part, defaults included
    """
    configs = importlib.import_module(part.module).Configs
    return resolve(configs, expand(configs, check(configs, dict(part.values))))


def arguments(part: Part, teacher: str | None = None) -> list[str]:
    """
    ### What follows `python -m module` on the part's command line
    """
    listed = [f"--set={key}={value}" for key, value in part.values.items()]
    if teacher is None:
        return listed
    return ["--teacher", teacher, *_weak(part), *listed]


def differences(part: Part, config: dict[str, Any]) -> list[str]:
    """
    ### Where a recorded configuration is not the part's, a text for each value
    """
    wanted = configuration(part)
    return [
        f"{key}={config[key]!r}, and the protocol says {wanted[key]!r}"
        for key in part.values
        if key in config and config[key] != wanted[key]
    ]


def _weak(part: Part) -> list[str]:
    return ["--allow-weak-teacher"] if part.weak_teacher else []


class Runs:
    """
    ## The runs of the protocol in one run store

    `report/record/<run>.json` beside the runs notes what each process of a run took: a run that was
    interrupted has several.
    """

    def __init__(self, root: Path, data: str | None):
        self.root, self.data = root, data

    def find(self, part: Part, teacher: str | None) -> runs.Run | None:
        """
        ### The newest run with the part's configuration and teacher; one that has ended wins
        """
        wanted = configuration(part)
        # A run from before a key was added has it at its default
        defaults = resolve(importlib.import_module(part.module).Configs, {})
        found = []
        for run in runs.list(self.root, experiment=NAME):
            same = all(
                run.config.get(key, defaults[key]) == value
                for key, value in wanted.items()
                if key not in ANY_TIME
            )
            made_by = f"experiments.{run.experiment}.{run.name}"
            if same and made_by == part.module and run.parent_uuid == teacher:
                found.append(run)
        ended = [run for run in found if run.status == "completed"]
        return next(iter(ended or found), None)

    def train(self, part: Part, teacher: str | None = None) -> runs.Run:
        """
        ### The part's run: found, taken up again, or trained
        """
        run = self.find(part, teacher)
        if run is not None and run.status == "completed":
            return run
        given = arguments(part, teacher)
        if run is not None:
            given = ["--resume", run.uuid, *_weak(part)]
        given += ["--runs", str(self.root), *(["--data", self.data] if self.data else [])]

        notes: list[Path] = []
        began = time.perf_counter()

        # A process that was killed has cost its time, too
        def ended(cpu: float) -> None:
            if notes:
                took = {"wall": time.perf_counter() - began, "cpu": cpu}
                atomic_json(notes[0], [*_processes(notes[0]), took])

        def started(uuid: str) -> None:
            notes[:] = [self._notes(uuid)]

        uuid = train(part.key, part.module, given, started, ended)
        return runs.find(uuid, root=self.root)

    def recorded(self, uuid: str) -> runs.Run | None:
        """
        ### A recorded run that still has its weights here, or `None`
        """
        run = by_uuid(uuid, self.root)
        return run if run is not None and run.checkpoints else None

    def seconds(self, run: runs.Run, kind: str) -> float | None:
        """
        ### Seconds that the run's processes took, `wall` or `cpu`; `None` if nothing was noted
        """
        processes = _processes(self._notes(run.uuid))
        return round(sum(p[kind] for p in processes), 1) if processes else None

    def _notes(self, uuid: str) -> Path:
        return self.root / NAME / "report" / "record" / f"{uuid}.json"


def _processes(notes: Path) -> list[dict[str, float]]:
    return json.loads(notes.read_text()) if notes.exists() else []
