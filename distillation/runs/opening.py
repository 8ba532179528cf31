"""Opening a run to write it: a new one, or one that goes on. Both give a `Recorder`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from uuid import uuid4

from distillation import files
from distillation.errors import ConfigError, RunError
from distillation.runs import environment, lock, places, store
from distillation.runs.places import CONFIG, RUN
from distillation.runs.recorder import Recorder, checked_keep, parent_uuid
from distillation.runs.run import Run


def create(
    experiment: str,
    *,
    name: str | None = None,
    comment: str = "",
    config: Mapping | None = None,
    parent: Run | str | None = None,
    seed: int | None = None,
    model: object = None,
    root: str | os.PathLike | None = None,
    uuid: str | None = None,
    keep: int = 1,
) -> Recorder:
    """Begin a run in `<root>/<experiment>/<uuid>/`; the caller holds it until the recorder ends.

    `parent` is the run of the teacher (a Run, a UUID or a prefix), `model` the reference (or its
    dict) that says how the model is made, `keep` how many of the last checkpoints stay beside the
    best. Any number of processes may create runs under one root.

    Raises:
        ConfigError: a name that makes no folder, a UUID that is none or is taken, `keep` below 1.
        RunError: there is no such parent, or the root cannot be written.
    """
    places.checked_experiment(experiment)
    if uuid is not None and not places.is_uuid(uuid):
        raise ConfigError(f"{uuid!r} is no run UUID: 32 hex characters, small letters")
    base = places.root(root)
    info = {
        "uuid": uuid or uuid4().hex,
        "name": name,
        "comment": comment,
        "status": "running",
        "started": places.now(),
        "ended": None,
        "command": environment.command(),
        "versions": environment.versions(),
        "threads": environment.threads(),
        "git_commit": environment.git_commit(),
        "seed": seed,
        "parent": parent_uuid(parent, base),
        "summary": {},
        "model": files.jsonable(model, "model"),
        "facts": {},
        "best_step": None,
        "keep": checked_keep(keep),
    }
    folder = base / experiment / info["uuid"]
    settings = files.dumps(dict(config or {}), indent=2)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        if folder.is_dir():
            raise ConfigError(f"there is a run {info['uuid']} already; resume it") from None
        raise RunError(
            f"no runs can be kept in {base}: {error.strerror or error}; "
            "name another folder with --runs ROOT or DISTILLATION_RUNS"
        ) from error
    held = lock.hold(folder)
    try:
        files.atomic_write(folder / CONFIG, settings + "\n")
        files.atomic_json(folder / RUN, info)
        return Recorder(folder, info, held)
    except BaseException:
        held.release()
        raise


def resume(
    uuid_or_prefix: str, root: str | os.PathLike | None = None, *, keep: int | None = None
) -> Recorder:
    """Go on with a run, in its own folder.

    Raises:
        RunError: there is no such run, or another process is writing it.
    """
    run = store.find_whole(uuid_or_prefix, root)
    held = lock.hold(run.path)
    try:
        before = Run.read(run.path).info  # as the last writer left it
        again = {
            "started": places.now(),
            "command": environment.command(),
            "git_commit": environment.git_commit(),
            "threads": environment.threads(),
        }
        resumed = [*before.get("resumed", []), again]
        info = {**before, "status": "running", "ended": None, "resumed": resumed}
        info.pop("error", None)
        if keep is not None:
            info["keep"] = checked_keep(keep)
        files.atomic_json(run.path / RUN, info)
        return Recorder(run.path, info, held, before)
    except BaseException:
        held.release()
        raise
