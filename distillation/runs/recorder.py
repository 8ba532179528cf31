"""A run as it is written; `distillation.runs.opening` opens one."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from distillation import files
from distillation.errors import ConfigError, DistillationError, RunError, unknown
from distillation.runs import environment, metrics, places, store
from distillation.runs.compare import changes
from distillation.runs.places import CHECKPOINTS, CONFIG, METRICS, RUN
from distillation.runs.run import Run, steps

if TYPE_CHECKING:
    from torch import Tensor

    from distillation.checkpoint import Checkpoint

_FLUSH_SECONDS = 2.0  # rows are promised to be on disk within 5 s
_FIXED = ("uuid", "started", "status", "ended", "summary", "best_step")
_ENDED = ("completed", "interrupted", "crashed")


class Recorder:
    """Writes one run. Use it as a context manager:

        with runs.create("digits_small", config=config) as recorder:
            recorder.log(step, epoch, {"loss.train": 0.3})

    On exit the run is `completed`, `interrupted` after Ctrl-C, `crashed` after another exception.
    Until then this process holds the run's lock; if it is killed, the run reads `interrupted`.
    A resumption that ends in an error of this library before a row, a checkpoint or a rewind leaves
    the run as it was: what `update` and `set_config` wrote is undone.
    Safe to use from several threads; in a training of several processes only the first has one.
    `listeners` are called with each row that is logged, as a reader of metrics.jsonl will see it.
    """

    def __init__(self, path: Path, info: dict, held, before: dict | None = None) -> None:
        self.path = path
        self._info, self._before = info, before
        file = path / CONFIG
        self._config_before = file.read_bytes() if before and file.exists() else None
        self._lock, self._written = held, False
        self._guard = threading.RLock()
        self._metrics = metrics.MetricsFile(path / METRICS)
        self.listeners: list[Callable[[dict], None]] = []
        self._failure: DistillationError | None = None
        self._stop = threading.Event()
        self._timer: threading.Thread | None = None
        self._summary = metrics.last_values(metrics.read(path / METRICS))
        files.tidy(path / CHECKPOINTS)  # what a killed writer left
        self._process = os.getpid()
        atexit.register(self._flush_at_exit)

    def __repr__(self) -> str:
        return f"Recorder({self.uuid[:8]}, {self.path.parent.name}, {self._info['status']})"

    @property
    def uuid(self) -> str:
        """The run's UUID: 32 hex characters."""
        return self._info["uuid"]

    @property
    def run(self) -> Run:
        """The run as a reader sees it now."""
        with self._guard:
            if self._timer is not None:
                self._flush()
        return Run.read(self.path)

    @property
    def open(self) -> bool:
        """Whether the run is still being written."""
        return self._lock is not None

    # Metrics --------------------------------------------------------------------------------

    def log(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Record metrics at `step` (in samples); on disk within five seconds.

        Values are numbers; NaN and infinities are written as null.

        Raises:
            ConfigError: a value is no number (a tensor, say), or a name is `step`, `epoch`, `time`.
            RunError: an earlier row could not be written (a full disk); nothing is lost as long as
                the process lives, and the next call tries again.
        """
        with self._guard:
            self._must_be_open()
            row = self._metrics.append(step, epoch, values)
            self._written = True
            self._summary.update((k, v) for k, v in row.items() if k not in metrics.KEYS)
            if self._failure is not None:
                self._failure = None
                self._flush()
            if self._timer is None:
                self._timer = threading.Thread(target=self._tick, name="metrics", daemon=True)
                self._timer.start()
        for listener in self.listeners:
            listener(row)

    def _tick(self) -> None:
        while not self._stop.wait(_FLUSH_SECONDS):
            with self._guard:
                if not self.open:
                    return
                try:
                    self._flush()
                except DistillationError as error:
                    self._failure = error  # the next log() tries again and raises

    def _flush(self) -> None:
        if self._metrics.flush():
            self._write_info(summary=dict(self._summary))

    def _flush_at_exit(self) -> None:
        if os.getpid() != self._process:
            return  # a forked child has a copy of the buffer, which is not its to write
        with self._guard:
            if self.open:
                self._flush()

    # Facts ----------------------------------------------------------------------------------

    def update(self, **fields: object) -> None:
        """Merge fields into run.json: `parent`, `model`, `seed`, `name`, `evaluation`, …

        `facts` is merged key by key, everything else replaced.

        Raises:
            ConfigError: a field that the recorder itself keeps, or a value that is no JSON.
        """
        fixed = sorted(set(fields) & set(_FIXED))
        if fixed:
            raise ConfigError(f"run.json: {', '.join(fixed)} cannot be set; the recorder keeps it")
        with self._guard:
            self._must_be_open()
            if "parent" in fields:
                fields["parent"] = parent_uuid(fields["parent"], self.path.parent.parent)
            if "keep" in fields:
                fields["keep"] = checked_keep(fields["keep"])
            if "facts" in fields:
                fields["facts"] = {**(self._info.get("facts") or {}), **fields["facts"]}
            self._write_info(**{k: files.jsonable(v, k) for k, v in fields.items()})

    def set_config(self, config: Mapping) -> None:
        """Record the configuration, every value resolved, in config.json.

        Of a run that goes on, run.json notes what has changed, `{key: [before, now]}`, under
        `changed` of the last entry of `resumed`.
        """
        with self._guard:
            self._must_be_open()
            now, before = files.jsonable(dict(config), "config"), Run.read(self.path).config
            files.atomic_json(self.path / CONFIG, now)
            again, changed = self._info.get("resumed"), changes(before, now)
            if again and changed:
                self._write_info(resumed=[*again[:-1], {**again[-1], "changed": changed}])

    def _write_info(self, **fields: object) -> None:
        changed = {**self._info, **fields}
        files.atomic_json(self.path / RUN, changed)
        self._info = changed

    # Checkpoints ----------------------------------------------------------------------------

    def save_checkpoint(
        self,
        step: int,
        weights: Mapping[str, Mapping[str, Tensor]],
        state: object = None,
        info: Mapping | None = None,
        best: bool = False,
    ) -> None:
        """Write `checkpoints/<step>/`, then prune: the last `keep` stay, and the best.

        Raises:
            CheckpointError: the disk is full, or something cannot be saved; the checkpoints that
                were there are unchanged.
        """
        from distillation.checkpoint import write_checkpoint

        step = metrics.whole("step", step)
        if step < 0:
            raise ConfigError(f"step must be a number of samples, not {step}")
        with self._guard:
            self._must_be_open()
            self._written = True
            self._metrics.sync()
            write_checkpoint(self.path / CHECKPOINTS / str(step), weights, state, info)
            fields: dict = {"summary": dict(self._summary)}
            if best:
                fields["best_step"] = step
            if self._info.get("threads") is None:
                fields["threads"] = environment.threads()
            self._write_info(**fields)
            self._prune()

    def last_step(self) -> int | None:
        """The step of the last complete checkpoint; None if there is none."""
        present = steps(self.path)
        return present[-1] if present else None

    def load_checkpoint(self, step: int | str = "last", device: str = "cpu") -> Checkpoint:
        """Read a checkpoint of this run. Errors as in `Run.checkpoint`."""
        return Run.read(self.path).checkpoint(step, device=device)

    def rewind(self, step: int | None, drop: Callable[[dict], bool] = lambda row: False) -> None:
        """Go back to `step`: metric rows and checkpoints past it are dropped; all for None.

        `drop(row)` says which rows up to `step` go too.
        """
        with self._guard:
            self._must_be_open()
            self._written = True
            rows = self._metrics.rewind(step, drop)
            self._summary = metrics.last_values(rows)
            for later in steps(self.path):
                if step is None or later > step:
                    files.remove_folder(self.path / CHECKPOINTS / str(later))
            fields: dict = {"summary": dict(self._summary)}
            best = self._info.get("best_step")
            if best is not None and (step is None or best > step):
                fields["best_step"] = None
            self._write_info(**fields)

    def _prune(self) -> None:
        present = steps(self.path)
        kept = {*present[-self._info["keep"] :], self._info.get("best_step")}
        for step in present:
            if step not in kept:
                files.remove_folder(self.path / CHECKPOINTS / str(step))

    # The end --------------------------------------------------------------------------------

    def finish(self, status: str = "completed", error: str | None = None) -> None:
        """End the run: completed, interrupted or crashed. A second call does nothing."""
        if status not in _ENDED:
            raise ConfigError(unknown("status", status, _ENDED))
        with self._guard:
            if not self.open:
                return
            try:
                self._metrics.sync()
                fields = {"status": status, "ended": places.now(), "summary": dict(self._summary)}
                if error is not None:
                    fields["error"] = error
                self._write_info(**fields)
            finally:
                self._let_go()

    def withdraw(self) -> None:
        """End a resumption that came to nothing: run.json and config.json are as before it."""
        with self._guard:
            try:
                if self._before is not None:
                    if self._config_before is None:
                        (self.path / CONFIG).unlink(missing_ok=True)
                    else:
                        files.atomic_write(self.path / CONFIG, self._config_before)
                    files.atomic_json(self.path / RUN, self._before)
                    self._info = self._before
            finally:
                self._let_go()

    def _let_go(self) -> None:
        self._lock.release()
        self._lock = None
        self._stop.set()
        atexit.unregister(self._flush_at_exit)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ended_well = kind is None or (isinstance(error, SystemExit) and not error.code)
        if ended_well:
            self.finish("completed")
        elif issubclass(kind, KeyboardInterrupt):
            self.finish("interrupted")
        else:
            refused = isinstance(error, DistillationError) and self._before is not None
            with self._guard:
                if refused and self.open and not self._written:
                    self.withdraw()
                else:
                    self.finish("crashed", f"{kind.__name__}: {error}")

    def _must_be_open(self) -> None:
        if not self.open:
            raise RunError(
                f"run {self.uuid[:8]} has ended ({self._info['status']}); "
                "runs.resume goes on with it"
            )


def parent_uuid(parent: object, root: Path) -> str | None:
    """The full UUID of a run that is named as a teacher."""
    if parent is None:
        return None
    if isinstance(parent, Run):
        return parent.uuid
    if not isinstance(parent, str):
        raise ConfigError(f"parent must be a run or its UUID, not a {type(parent).__name__}")
    name, _ = places.parse(parent)
    if places.is_uuid(places.normal(name)):
        return places.normal(name)  # perhaps a run of another store
    return store.find(name, root).uuid


def checked_keep(keep: object) -> int:
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise ConfigError(f"keep must be a whole number from 1 up, not {keep!r}")
    return keep
