"""The harness that the benchmarks share: alternating rounds, CPU and wall time, one JSON file.

A benchmark is a file that answers one question and runs alone (`python -m benchmarks.my_door`):

    from benchmarks.common import Result, measure, ratio

    timings = measure({"plain": plain, "ours": ours}, rounds=9, calls=10)
    result = Result("my_door", "What does my door cost over a bare loop?")
    result.timings = timings
    result.figure("step_ratio", ratio(timings, "ours", "plain"))
    result.write()                                   # benchmarks/results/my_door.json

`measure` runs A B A B ... in one process, so that a change of the machine's speed meets every
variant alike; figures are ratios of the same round. `benchmarks/check.py` holds the targets and
compares the committed files with them.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SCHEMA = 1


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and extremes of repeated measurements.

    lower, upper    95 % confidence interval of the median from order statistics, which assumes no
                    distribution; None for fewer than six measurements, which have none
    """

    median: float
    low: float
    high: float
    q1: float
    q3: float
    n: int
    lower: float | None = None
    upper: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        values = sorted(values)
        if len(values) > 1:
            q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive")
        else:
            q1 = q3 = values[0]
        middle, n = statistics.median(values), len(values)
        place = _median_rank(n)
        interval = () if place is None else (values[place], values[n - 1 - place])
        return cls(middle, values[0], values[-1], q1, q3, n, *interval)

    def to_json(self) -> dict[str, float]:
        known = {name: value for name, value in vars(self).items() if value is not None}
        return {name: _rounded(value) for name, value in known.items()}


def spread_text(figure: Mapping[str, float]) -> str:
    """Extremes of a written figure, and where the median lies with 95 % confidence if known."""
    text = f"{figure['low']:g} … {figure['high']:g}"
    if "lower" in figure:
        text += f" (median {figure['lower']:g} … {figure['upper']:g})"
    return text


def _median_rank(n: int) -> int | None:
    """Place of the lower end of the median's 95 % interval among n sorted values, from 0.

    How many of n values lie below the median is binomial (n, 1/2); the interval between the places
    k and n-1-k misses it with twice the probability that at most k do.
    """
    below, found = 0, None
    for k in range(n // 2):
        below += math.comb(n, k)
        if below > 0.025 * 2**n:
            break
        found = k
    return found


@dataclass
class Timing:
    """Seconds per call of one variant, one entry a round, in the order they were taken."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        return {
            "cpu_s": Spread.of(self.cpu).to_json(),
            "wall_s": Spread.of(self.wall).to_json(),
            "cpu_s_rounds": [_rounded(v) for v in self.cpu],
        }


def cpu_seconds(children: bool = False) -> float:
    """CPU seconds of all threads of this process so far, with `children` those of ended ones too.

    A child's time counts only once it was waited for, so close a DataLoader's workers first.
    """
    spent = time.process_time()
    if children:
        times = os.times()
        spent += times.children_user + times.children_system
    return spent


def measure(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    calls: int = 1,
    warmup: int = 1,
    children: bool = False,
) -> dict[str, Timing]:
    """Time each variant once a round, in an order that turns around every round.

    A variant is a function without arguments that does one unit of work; a round calls it `calls`
    times and records the mean. `warmup` untimed rounds go first. The garbage collector runs
    between variants and not inside them.
    """
    timings = {name: Timing() for name in variants}
    names = list(variants)
    for round_ in range(-warmup, rounds):
        for name in names if round_ % 2 == 0 else reversed(names):
            run = variants[name]
            gc.collect()
            gc.disable()
            try:
                cpu, wall = cpu_seconds(children), time.perf_counter()
                for _ in range(calls):
                    run()
                wall = time.perf_counter() - wall
                cpu = cpu_seconds(children) - cpu
            finally:
                gc.enable()
            if round_ >= 0:
                timings[name].cpu.append(cpu / calls)
                timings[name].wall.append(wall / calls)
    return timings


def ratio(timings: Mapping[str, Timing], over: str, under: str, clock: str = "cpu") -> Spread:
    """Spread of the ratio `over / under`, taken round by round. `clock` is "cpu" or "wall"."""
    above, below = getattr(timings[over], clock), getattr(timings[under], clock)
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


@dataclass
class Result:
    """What a benchmark found; `write` adds machine, versions and commit.

    `figures` are the few numbers the benchmark is about, which targets are set for; `settings`
    says what was measured (batch size, model, data); `notes` what a reader must know; `elsewhere`
    that all was measured in processes of its own, so that this one's threads are no fact.
    """

    name: str
    question: str
    settings: dict[str, object] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)
    figures: dict[str, dict[str, object]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    elsewhere: bool = False

    def figure(self, name: str, value: Spread | float, unit: str = "×", what: str = "") -> None:
        """Record one figure: a `Spread` or a number, with its unit and one line of meaning."""
        numbers = value.to_json() if isinstance(value, Spread) else {"median": _rounded(value)}
        self.figures[name] = {**numbers, "unit": unit, "what": what}

    def to_json(self) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "benchmark": self.name,
            "question": self.question,
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine(with_threads=not self.elsewhere),
            "versions": versions(),
            "settings": self.settings,
            "figures": self.figures,
            "timings": {name: timing.to_json() for name, timing in self.timings.items()},
            "notes": self.notes,
        }

    def write(self, folder: Path | None = None) -> Path:
        """Print the figures, write `<folder>/<name>.json` (default benchmarks/results)."""
        folder = RESULTS if folder is None else Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
        print(self.question)
        for name, figure in self.figures.items():
            spread = f"  [{spread_text(figure)}]" if "low" in figure else ""
            print(f"  {name:<28} {figure['median']} {figure['unit']}{spread}  {figure['what']}")
        return path


def arguments(
    description: str | None,
    rounds: int,
    argv: Sequence[str] | None = None,
    steps: int | None = None,
):
    """The options every benchmark takes: `--rounds`, `--threads`, `--out`, `--quick`.

    With `steps`, the default, `--steps` as well.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="timed rounds of A B")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--quick", action="store_true", help="two rounds: does it run at all?")
    if steps is not None:
        parser.add_argument("--steps", type=int, default=steps, help="steps of a run, over 20")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds = 2
        if steps is not None:
            options.steps = min(options.steps, 30)
    if options.rounds < 1 or (steps is not None and options.steps <= 20):
        parser.error("at least one round, and more than 20 steps")
    import torch

    torch.set_num_threads(options.threads)
    return options


def machine(with_threads: bool = True) -> dict[str, object]:
    """What bears on speed: processor, cores, memory, system. No host name, no path, no user."""
    import torch

    from distillation.precision import computes_bf16

    facts: dict[str, object] = {
        "processor": _processor(),
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "bf16": computes_bf16("cpu"),
    }

    if with_threads:
        facts["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
    return facts


def versions() -> dict[str, str]:
    """Python and the packages that are imported here and bear on speed."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "PIL", "accelerate", "safetensors"):
        module = sys.modules.get(name)
        if module is not None and getattr(module, "__version__", None):
            found[name.replace("PIL", "pillow")] = str(module.__version__)
    return found


def commit() -> str:
    """The commit measured, with `+changes` when files under version control differ from it."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *args], cwd=HERE, capture_output=True, text=True, check=True, timeout=30
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return "unknown"
    # Results of earlier benchmarks do not change what is measured.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "..", ":!results")
    return head + ("+changes" if changed else "")


def _rounded(value: float) -> float:
    """Four significant digits: the spread is larger than what is cut off."""
    return value if isinstance(value, int) else float(f"{value:.4g}")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
