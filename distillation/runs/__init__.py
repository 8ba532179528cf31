"""The run store: every run is recorded, can be found by its UUID, compared and resumed.

A run lives in `<root>/<experiment>/<uuid>/`:

    run.json        what it is: status, command, versions, seed, parent (the teacher), summary
    config.json     every configuration value
    metrics.jsonl   {"step", "epoch", "time", <name>: value} per row; steps count samples
    checkpoints/    <step>/: weights, state and manifest

    with runs.create("digits_small", config=config, seed=1) as recorder:
        recorder.log(step, epoch, {"loss.train": 0.3})
        recorder.save_checkpoint(step, {"model": model.state_dict()})

    teacher = runs.find("3fa9").load_model()
"""

from __future__ import annotations

from distillation.errors import no_other
from distillation.runs.compare import Comparison, compare
from distillation.runs.opening import create, resume
from distillation.runs.places import parse, root
from distillation.runs.recorder import Recorder
from distillation.runs.run import Run
from distillation.runs.store import children, experiments, find, remove, scan
from distillation.runs.store import list_runs as list

__all__ = [
    "Comparison",
    "Recorder",
    "Run",
    "children",
    "compare",
    "create",
    "experiments",
    "find",
    "list",
    "parse",
    "remove",
    "resume",
    "root",
    "scan",
]

__getattr__ = no_other(__name__, __all__)
