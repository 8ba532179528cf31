"""
# The chain: large model, small model, small model distilled from the large one

Each is a run of its own in a process of its own; the next one finds the teacher by its run UUID.
"""

import argparse
import importlib
import json
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from distillation import runs
from distillation.checkpoint import atomic_json
from distillation.errors import ConfigError, DistillationError, unknown
from distillation.runs.store import by_uuid
from experiments.command_line import Parser, add_options, given_values
from experiments.config_check import check, fields, refuse
from experiments.resuming import ANY_TIME
from experiments.warm import start_training


@dataclass
class Part:
    """
    ### A run of the chain

    * `key` names it in the report, `module` is the experiment that trains it
    * `learns_from` is the key of its teacher's part
    * `values` are configuration values of its own, `fixed` those of them that make it this part
    """

    key: str
    title: str
    module: str
    learns_from: str | None = None
    values: dict[str, str] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()


class ChainError(DistillationError):
    """A run of the chain that did not end well"""


def _parse(title: str, parts: list[Part], arguments: list[str] | None):
    helps = dict.fromkeys(f"  python -m {part.module} --help" for part in parts)
    parser = Parser(
        description=title,
        epilog="\n".join(["The keys of --set are listed by", *helps]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="go on with the last chain, or with that of a run of it",
    )
    refused = [getattr(configs, "_refused", {}) for configs in _configs(parts).values()]
    add_options(parser, {key for keys in refused for key in keys}, has_teacher=True)
    return parser.parse_args(arguments)


def _configs(parts: list[Part]) -> dict[str, type]:
    """The configuration class of each part, by its key"""
    return {p.key: importlib.import_module(p.module).Configs for p in parts}


def _commands(parts: list[Part], options, given: dict[str, str]) -> dict[str, list[str]]:
    """Arguments of each part; a value goes to the parts that know its key"""
    known = _configs(parts)
    everything = {key for configs in known.values() for key in fields(configs)}
    for key in given:
        for configs in known.values():
            refuse(configs, key)
        if key not in everything:
            raise ConfigError(unknown("configuration key", key, everything, "--help of a part"))
    commands = {}
    for part in parts:
        for key in part.fixed:
            if key in given:
                raise ConfigError(
                    f"{part.title!r} is about {key}={part.values[key]}, so the chain cannot have "
                    f"another; train such a run by itself: python -m {part.module}"
                )
        mine = {k: v for k, v in given.items() if k in fields(known[part.key])}
        # Checked now: a misspelt value of the last run must not wait for the first one's end
        check(known[part.key], {**part.values, **mine})
        sets = [f"--set={k}={v}" for k, v in {**part.values, **mine}.items()]
        commands[part.key] = ["--runs", str(runs.root(options.runs)), *sets]
        if part.learns_from and options.allow_weak_teacher:
            commands[part.key].append("--allow-weak-teacher")
    return commands


def _refuse_too_late(part: Part, run: runs.Run, given: dict[str, str]) -> None:
    """A value given anew holds for runs to come; one that has ended had another"""
    configs = importlib.import_module(part.module).Configs
    known = fields(configs)
    for key, value in check(configs, {k: v for k, v in given.items() if k in known}).items():
        had = run.config.get(key)
        if had != value and key not in ANY_TIME:
            raise ConfigError(
                f"{part.title!r} has ended with {key}={had!r} (run {run.uuid}), so the chain "
                f"cannot go on with {key}={value!r}; begin a new one, without --resume"
            )


def _noted(folder: Path, run: str) -> Path:
    """The notes of the chain that has a run, by the beginning of its UUID; else the newest"""
    # One from before there were several is beside them
    chains = [*folder.glob("*.json"), *folder.parent.glob("chain.json")]
    chains.sort(key=lambda file: file.stat().st_mtime_ns)
    if not chains:
        raise ChainError(f"there is no chain to go on with in {folder.parent}")
    if not run:
        return chains[-1]
    known = {file: json.loads(file.read_text())["runs"].values() for file in chains}
    found = [file for file, uuids in known.items() if any(u.startswith(run) for u in uuids)]
    if len(found) != 1:
        which = "no chain has" if not found else f"{len(found)} chains have"
        raise ChainError(
            f"{which} a run {run!r} in {folder.parent}; --resume alone goes on with the newest"
        )
    return found[0]


def train(
    title: str,
    module: str,
    arguments: list[str],
    started: Callable[[str], None],
    ended: Callable[[float], None] = lambda seconds: None,
) -> str:
    """
    ### Train one part in a process of its own

    Its output is passed on as it comes; `started` is told the run's UUID, `ended` the CPU seconds
    that the process took, however it ended. Returns the UUID.
    """
    print(f"\n{title}: python -m {module}", flush=True)
    process = start_training(module, arguments)
    uuid = ""
    # Ctrl-C reaches the run by itself; a request to end is passed on, for it to save
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        for line in process.lines:
            print(line, end="", flush=True)
            if line.startswith(("run: ", "recording run ")):
                uuid = line.split()[1 if line.startswith("run: ") else 2]
                started(uuid)
    finally:
        try:
            code, seconds = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
        ended(seconds)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise ChainError(f"{title} ended with exit code {code}; its message is above")
    return uuid


def run_chain(
    experiment: str, parts: list[Part], arguments: list[str] | None, title: str
) -> tuple[Path, dict[str, runs.Run]]:
    """
    ### Train all parts, one after the other

    Returns the report's folder and the runs by key. What has been trained, and with which values
    of the command line, is noted in a file of `report/chains`, from where `--resume` goes on.
    """
    options = _parse(title, parts, arguments)
    root = runs.root(options.runs)
    folder = root / experiment / "report"
    notes = folder / "chains" / f"{uuid4().hex}.json"
    given, done = given_values(options), {}
    if options.resume is not None:
        notes = _noted(notes.parent, options.resume)
        noted = json.loads(notes.read_text())
        options.allow_weak_teacher |= noted.get("allow_weak_teacher", False)
        # A run that was removed, or refused before it began, is trained anew
        found = {k: by_uuid(uuid, root) for k, uuid in noted["runs"].items()}
        done = {k: run.uuid for k, run in found.items() if run}
        for part in parts:
            if part.key in done and found[part.key].status == "completed":
                _refuse_too_late(part, found[part.key], given)
        given = {**noted["values"], **given}
    commands = _commands(parts, options, given)
    facts = {"values": given, "allow_weak_teacher": options.allow_weak_teacher, "runs": done}
    notes.parent.mkdir(parents=True, exist_ok=True)
    atomic_json(notes, facts)

    for part in parts:
        extra = list(commands[part.key])
        uuid = done.get(part.key)
        if uuid and runs.find(uuid, root=root).status == "completed":
            continue
        if uuid:
            extra += ["--resume", uuid]
        if part.learns_from:
            extra += ["--teacher", done[part.learns_from]]

        def started(uuid: str, key: str = part.key) -> None:
            done[key] = uuid
            atomic_json(notes, facts)

        try:
            train(part.title, part.module, extra, started)
        except KeyboardInterrupt:
            this = next(iter(done.values()), "")
            print(
                f"or with the whole chain:\n  python -m experiments.{experiment} "
                f"--runs {shlex.quote(str(root))} --resume {this}".rstrip(),
                file=sys.stderr,
            )
            raise
    return folder, {part.key: runs.find(done[part.key], root=root) for part in parts}
