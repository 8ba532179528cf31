"""
# From runs to the record

Each part is trained, measured on the test images, written down, and never needed again.
"""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillation.checkpoint import atomic_json, atomic_write
from distillation.data import cifar10
from distillation.errors import ConfigError, DataError, TeacherError
from distillation.runs import Run
from experiments.record import results
from experiments.record.figures import draw
from experiments.record.page import page
from experiments.record.plan import plan, tried
from experiments.record.protocol import SEARCHES, Part, Scale
from experiments.record.training import Runs, differences

# What is not compared with the large model
_TEACHERS = ("large", "untrained")


class Maker:
    """
    ## The record in a folder, part by part

    * `folder` is the record's, `store` has the runs, `scale` says how much of everything
    * `only` are the groups or parts to run; empty is all of them
    * `images` is what the page says of the images, beside their number
    * `precision` is what the runs are computed in, if it is not the protocol's

    Several may work at one record, each at other parts.
    """

    def __init__(
        self,
        folder: Path,
        store: Runs,
        scale: Scale,
        only: set[str],
        images: str | None = None,
        precision: str | None = None,
    ):
        self.folder, self.store, self.scale, self.only = folder, store, scale, only
        self.precision = precision
        self.train, self.test = cifar10(store.data)
        self.found = results.read(folder)
        self.protocol = self._protocol(images)

    def _protocol(self, images: str | None) -> dict[str, Any]:
        """What the record is of; another one is not mixed with it"""
        mine = {
            "scale": asdict(self.scale),
            "data": {
                "train": len(self.train),
                "test": len(self.test),
                "classes": list(self.test.classes),
                "fingerprints": [self.train.fingerprint, self.test.fingerprint],
            },
            "labels": "".join(map(str, self.test.labels.tolist())),
        }
        file = self.folder / "record.json"
        there = json.loads(file.read_text()) if file.exists() else dict(mine)
        for key in mine:
            if there.get(key) != mine[key]:
                raise ConfigError(
                    f"{file} is of another protocol or other data ({key!r} differs), and a record "
                    "is not mixed; give another folder with --out"
                )
        there["images"] = there.get("images", "") if images is None else images
        atomic_json(file, there)
        return there

    def make(self) -> str:
        """
        ### Run what is missing; returns the page
        """
        done: set[str] = set()
        while part := self._next(done):
            self._record(part)
            done.add(part.key)
            # Another process may have recorded some, and a search that has ended tells of more
            self.found = results.read(self.folder)
        self._compare()
        for name in sorted(self.only):
            if not any(name in (part.group, part.key) for part in self._plan()):
                print(f"{name} was not run: the search that chooses its values has not ended")
        return self.write()

    def _plan(self) -> list[Part]:
        return plan(self.scale, self.found, self.precision)

    def _next(self, done: set[str]) -> Part | None:
        for part in self._plan():
            wanted = not self.only or self.only & {part.group, part.key}
            if wanted and part.key not in done:
                return part
        return None

    def _compare(self) -> None:
        """What was recorded before the large model was is now compared with it"""
        teacher = self._teacher_logits()
        for facts in self.found.values() if teacher is not None else ():
            if facts.get("agreement", 0) is None and facts["group"] not in _TEACHERS:
                run = self.store.recorded(facts["run"])
                if run is None:
                    print(f"{facts['key']} is not compared with its teacher: its run is gone")
                    continue
                logits = results.test_logits(run, self.train, self.test)
                facts |= results.measure(run, logits, self.test, teacher)
                results.write(self.folder, facts, run)

    def write(self) -> str:
        """
        ### Write figures and page
        """
        self.found = results.read(self.folder)
        draw(self.folder, self.found)
        text = page(self.protocol, self.found)
        atomic_write(self.folder / "README.md", text)
        return text

    def _record(self, part: Part) -> None:
        if part.key in self.found:
            self._unchanged(part)
            return
        teacher = None if part.learns_from is None else self._teacher(part.learns_from)
        self._write(part, self.store.train(part, teacher.uuid if teacher else None))

    def _write(self, part: Part, run: Run) -> None:
        """Measure a run that has ended, and write it down"""
        facts = results.describe(part, run, self.store)
        if part.learns_from in self.found:
            # The same teacher, though it may have been trained again
            facts["teacher"] = self.found[part.learns_from]["run"]
        if part.group in SEARCHES.values():
            # On held out images alone: a search does not look at the test images
            facts["tried"] = tried(part)
            facts["accuracy_valid"] = run.curve("accuracy.valid")[1][-1]
        else:
            logits = results.test_logits(run, self.train, self.test)
            if part.key == "large":
                self._keep(logits)
            reference = None if part.group in _TEACHERS else self._teacher_logits()
            facts |= results.measure(run, logits, self.test, reference)
        results.write(self.folder, facts, run)
        self.write()

    def _unchanged(self, part: Part) -> None:
        """A part that was recorded with other values is not this protocol's"""
        for line in differences(part, self.found[part.key]["config"]):
            raise ConfigError(
                f"{self.folder.name} has recorded {part.key!r} with {line}; give another folder "
                f"with --out, or remove runs/{part.key}.json to have it run again"
            )

    def _teacher(self, key: str) -> Run:
        """The run of a teacher: from the store, or made again where its weights are gone"""
        part = next(p for p in self._plan() if p.key == key)
        recorded = self.found.get(key)
        run = None if recorded is None else self.store.recorded(recorded["run"])
        run = run or self.store.train(part)
        if recorded is not None and run.uuid != recorded["run"] and not self._equals(run, recorded):
            # An untrained teacher costs minutes; a trained one has students to be compared
            if key == "large" or any(f["learns_from"] == key for f in self.found.values()):
                raise TeacherError(
                    f"run {run.uuid} has been trained in the place of {recorded['run']}, whose "
                    f"weights are not in {self.store.root}, and does not equal it (another "
                    "processor or version adds in another order). Students of two teachers do not "
                    "belong in one record: give another folder with --out"
                )
            self._write(part, run)
        return run

    def _equals(self, run: Run, recorded: dict[str, Any]) -> bool:
        """Whether a run that was trained again says what the recorded one said"""
        again = results.test_logits(run, self.train, self.test).argmax(dim=-1)
        return "".join(map(str, again.tolist())) == recorded["predictions"]

    def _keep(self, logits: torch.Tensor) -> None:
        """Keep the large model's test logits: later parts are compared with them"""
        data = io.BytesIO()
        np.save(data, logits.numpy())
        atomic_write(self.folder / "large_test_logits.npy", data.getvalue())

    def _teacher_logits(self) -> torch.Tensor | None:
        if "large" not in self.found:
            return None
        file = self.folder / "large_test_logits.npy"
        if not file.exists():
            raise DataError(
                f"{file} is gone, with which students are compared; have the large model measured "
                "again: remove runs/large.json"
            )
        return torch.from_numpy(np.load(file))
