"""
# The run of an experiment

A session is one run of the store, opened anew or taken up again, with the devices and processes
that train it.
"""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from distillation import runs
from distillation.devices import make_accelerator
from distillation.errors import DistillationError
from distillation.hooks import Hooks
from experiments.command_line import Options
from experiments.labml_bridge import create_experiment, join_experiment
from experiments.trackers import check_trackers, start_trackers


@dataclass
class Session(Hooks):
    """
    ### One run, and where it is trained

    * `recorder` writes the run; it is `None` in all processes but the first
    * `root` is the root of the run store
    * `config` is the whole configuration
    * `resumed` says whether the run goes on from a checkpoint
    * `notes` are facts for `run.json`, written when the training begins
    """

    accelerator: Any
    recorder: Any
    root: Path
    uuid: str
    command: str
    config: dict[str, Any]
    resumed: bool
    notes: dict[str, Any] = field(default_factory=dict)
    begun: bool = False

    @property
    def device(self) -> torch.device:
        """Where the model and the images are"""
        return self.accelerator.device

    @property
    def rank(self) -> int:
        """Number of this process"""
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        """Number of processes"""
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints"""
        return self.accelerator.is_main_process

    def update(self, **fields: Any) -> None:
        """Note facts in `run.json`"""
        if self.recorder is not None:
            self.recorder.update(**fields)

    def on_train_start(self, engine) -> None:
        """
        ### The training begins

        Only now does the run take over what the command line says: whatever could be refused, a
        checkpoint that does not fit included, has been accepted.
        """
        self.begun = True
        if self.recorder is not None:
            self.recorder.set_config(self.config)
            self.recorder.update(**self.notes)
            start_trackers(self.recorder, self.config["tracker"])

    def __enter__(self):
        if self.recorder is not None:
            self.recorder.__enter__()
        return self

    def __exit__(self, kind, error, trace):
        if self.recorder is not None:
            self.recorder.__exit__(kind, error, trace)
            # A command that was refused leaves no run behind; one that goes on is as it was
            if isinstance(error, DistillationError) and not (self.begun or self.resumed):
                runs.remove(self.uuid, force=True, root=self.root)
        if not self.is_main:
            return
        if kind is None:
            print(f"run: {self.uuid}", flush=True)
        elif issubclass(kind, KeyboardInterrupt):
            place = "" if self.root == runs.root() else f" --runs {shlex.quote(str(self.root))}"
            print(
                f"interrupted and saved; go on with:\n  {self.command} --resume {self.uuid}{place}",
                file=sys.stderr,
                flush=True,
            )


def open_session(
    options: Options,
    experiment: str,
    name: str,
    *,
    teacher: runs.Run | None = None,
    evaluation: dict[str, Any] | None = None,
) -> Session:
    """
    ### Open the run

    A new one with a fresh UUID, or the one to resume. labml's experiment gets the same UUID.
    """
    check_trackers(options.config["tracker"])
    # Devices, precision and processes
    accelerator = make_accelerator(options.config["device"], options.config["precision"])
    recorder, notes = None, {}
    threads = options.config["threads"]
    if threads:
        torch.set_num_threads(threads)
    if accelerator.is_main_process:
        if options.resume:
            recorder = runs.resume(options.resume, root=options.root)
            # The same number of threads adds in the same order
            recorded = recorder.run.info.get("threads")
            if recorded and not threads:
                torch.set_num_threads(recorded)
            if options.comment is not None:
                notes["comment"] = options.comment
        else:
            recorder = runs.create(
                experiment,
                name=name,
                comment=options.comment or "",
                config=options.config,
                parent=teacher.uuid if teacher else None,
                seed=options.config["seed"],
                root=options.root,
            )
            # As it runs: fp16 becomes bf16 on a CPU, auto becomes a device
            precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
            recorder.update(
                evaluation=evaluation or {}, device=str(accelerator.device), precision=precision
            )
        create_experiment(
            recorder.uuid, experiment, name, options.root, log="file" in options.config["tracker"]
        )
        print(f"recording run {recorder.uuid} in {recorder.path}", flush=True)
    else:
        # Only one process records
        join_experiment()
    return Session(
        accelerator=accelerator,
        recorder=recorder,
        root=options.root,
        uuid=recorder.uuid if recorder else "",
        command=f"python -m experiments.{experiment}.{name}",
        config=options.config,
        resumed=options.resume is not None,
        notes=notes,
    )
