"""
# From runs to the record

Each part is trained, measured on the test images, written down, and never needed again.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillation.checkpoint import atomic_json, atomic_write
from distillation.data import cifar10
from distillation.errors import ConfigError, TeacherError
from distillation.models import get
from distillation.models.facts import model_facts
from distillation.runs import Run
from experiments.record import results
from experiments.record.figures import draw
from experiments.record.page import chosen, members, page
from experiments.record.protocol import (
    DISTILLED_TRIALS,
    SEARCHES,
    SMALL_TRIALS,
    Part,
    Scale,
    controls,
    large,
    searches,
    students,
)
from experiments.record.training import Runs, configuration


class Maker:
    """
    ## The record in a folder, part by part

    * `folder` is the record's, `store` has the runs, `scale` says how much of everything
    * `only` are the groups or parts to run; empty is all of them

    Several may work at one record, each at other parts.
    """

    def __init__(self, folder: Path, store: Runs, scale: Scale, only: set[str]):
        self.folder, self.store, self.scale, self.only = folder, store, scale, only
        self.train, self.test = cifar10(store.data)
        self.found = results.read(folder)
        self.protocol = self._protocol()

    def _protocol(self) -> dict[str, Any]:
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
        if not file.exists():
            atomic_json(file, mine)
        there = json.loads(file.read_text())
        for key in mine:
            if there.get(key) != mine[key]:
                raise ConfigError(
                    f"{file} is of another protocol or other data ({key!r} differs), and a record "
                    "is not mixed; give another folder with --out"
                )
        return there

    def make(self) -> str:
        """
        ### Run what is missing; returns the page
        """
        # The teacher comes first, and the searches before what they choose for
        self._group([large(self.scale)])
        for group in ("distilled", "small"):
            self._group(searches(self.scale, group))
            found = self._chosen(group)
            if found is not None:
                self._group(students(self.scale, group, found))
        both = {group: self._chosen(group) or {} for group in SEARCHES}
        rest = controls(self.scale, both, _cost_ratio())
        # A control has the values that its students' search has chosen
        waits = {"smoothing", "all_views", "longer"} if not both["small"] else set()
        waits |= {"from_untrained"} if not both["distilled"] else set()
        self._group([part for part in rest if part.group not in waits])
        return self.write()

    def write(self) -> str:
        """
        ### Write figures and page
        """
        self.found = results.read(self.folder)
        draw(self.folder, self.found)
        text = page(self.protocol, self.found)
        atomic_write(self.folder / "README.md", text)
        return text

    def _group(self, parts: list[Part]) -> None:
        for part in parts:
            if not self.only or self.only & {part.group, part.key}:
                self._record(part)
        # Another process may have recorded some of them
        self.found = results.read(self.folder)

    def _chosen(self, group: str) -> Mapping[str, Any] | None:
        """What the search has found, or `None` as long as a trial is missing"""
        trials = members(self.found, SEARCHES[group])
        return chosen(trials)["tried"] if len(trials) == self.scale.trials else None

    def _record(self, part: Part) -> None:
        if part.key in self.found:
            self._unchanged(part)
            return
        teacher = None if part.learns_from is None else self._teacher(part.learns_from)
        run = self.store.train(part, teacher.uuid if teacher else None)
        facts = results.describe(part, run, self.store)
        if part.group in SEARCHES.values():
            # On held out images alone: a search does not look at the test images
            facts["tried"] = _tried(part)
            facts["accuracy_valid"] = run.curve("accuracy.valid")[1][-1]
        else:
            logits = results.test_logits(run, self.train, self.test)
            if part.key == "large":
                self._keep(logits)
            reference = None if part.group in ("large", "untrained") else self._teacher_logits()
            facts |= results.measure(run, logits, self.test, reference)
        results.write(self.folder, facts, run)
        self.write()

    def _unchanged(self, part: Part) -> None:
        """A part that was recorded with other values is not this protocol's"""
        had = self.found[part.key]["config"]
        for key, value in configuration(part).items():
            if key in had and had[key] != value and key in part.values:
                raise ConfigError(
                    f"{self.folder.name} has recorded {part.key!r} with {key}={had[key]!r}, and "
                    f"the protocol says {value!r}; give another folder with --out, or remove "
                    f"runs/{part.key}.json to have it run again"
                )

    def _teacher(self, key: str) -> Run:
        """The run of a teacher: from the store, or made again where its weights are gone"""
        nothing = {group: {} for group in SEARCHES}
        teachers = [large(self.scale), *controls(self.scale, nothing, 1)]
        part = next(p for p in teachers if p.key == key)
        gone = self.store.find(part, None) is None
        run = self.store.train(part)
        if gone and key in self.found:
            again = results.test_logits(run, self.train, self.test).argmax(dim=-1)
            if "".join(map(str, again.tolist())) != self.found[key]["predictions"]:
                raise TeacherError(
                    f"run {run.uuid} has been trained in the place of {self.found[key]['run']}, "
                    f"whose weights are not in {self.store.root}, and does not equal it (another "
                    "processor or version adds in another order). Students of two teachers do not "
                    "belong in one record: give another folder with --out"
                )
        return run

    def _keep(self, logits: torch.Tensor) -> None:
        """Keep the large model's test logits: later parts are compared with them"""
        data = io.BytesIO()
        np.save(data, logits.numpy().astype(np.float16))
        atomic_write(self.folder / "large_test_logits.npy", data.getvalue())

    def _teacher_logits(self) -> torch.Tensor | None:
        file = self.folder / "large_test_logits.npy"
        return torch.from_numpy(np.load(file).astype(np.float32)) if file.exists() else None


def _tried(part: Part) -> dict[str, Any]:
    trials = SMALL_TRIALS if part.group == SEARCHES["small"] else DISTILLED_TRIALS
    return dict(trials[int(part.key.rpartition("_")[2]) - 1])


def _cost_ratio() -> float:
    """MACs of the large model over those of the small one, for one image"""
    shape = (3, 32, 32)
    macs = [
        model_facts(get(f"{size}_model", num_classes=10), shape)["macs"]
        for size in ("large", "small")
    ]
    return macs[0] / macs[1]
