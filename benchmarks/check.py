"""Compare the committed figures with the targets, and write the table of `benchmarks/README.md`.

    python -m benchmarks.check            # exit 1 when a target is missed
    python -m benchmarks.check --table    # write the table of README.md from the JSON files
    python -m benchmarks.check --strict   # exit 1 for each remark as well

The targets stand here and not in the JSON files: a benchmark cannot move its own goal. The check
also fails when the README's table is not the one that the JSON files give.

Remarks do not fail the check: what is not measured yet, figures of a commit since which a file has
changed that the benchmark uses, and a target that is met by less than the figure is sure of.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import HERE, RESULTS, SCHEMA, spread_text
from benchmarks.sources import changed_since, files_of

HELPERS = {"check", "common", "doors", "pair", "sources"}
README = HERE / "README.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclass(frozen=True)
class Target:
    """The median of `figure` in `<benchmark>.json` must be at most, or at least, `bound`."""

    benchmark: str
    figure: str
    sense: str  # "≤" or "≥"
    bound: float

    def met(self, value: float) -> bool:
        return value <= self.bound if self.sense == "≤" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"


TARGETS = (
    Target("warm_table", "step_ratio", "≤", 1.05),
    Target("against_seed", "warm_speedup", "≥", 6.0),
    Target("against_seed", "cold_speedup", "≥", 1.8),
    Target("against_seed", "online_speedup", "≥", 1.8),
    Target("against_seed", "loss_difference_fp32", "≤", 1e-5),
    Target("against_seed", "loss_difference_fp32_table", "≤", 1e-4),
    Target("against_seed", "loss_difference_bf16", "≤", 2e-2),
    Target("script_door", "step_ratio", "≤", 1.05),
    Target("trainer_door", "step_ratio", "≤", 1.05),
    Target("trainer_door", "step_ratio_with_metric", "≤", 1.10),
    # It logs each of its losses, as the trainer does with a metric; the loop by hand logs nothing
    Target("toolkit_door", "step_ratio", "≤", 1.10),
    Target("experiment_door", "step_ratio_same_metrics", "≤", 1.05),
    Target("experiment_door", "step_ratio", "≤", 1.10),
    Target("loader", "speedup", "≥", 4.0),
    Target("table_rates", "fill_overhead", "≤", 1.10),
    # Opening a table runs the teacher on one batch, to compare what is stored
    Target("memory", "table_over_plain", "≤", 1.15),
)


def load(folder: Path) -> dict[str, dict]:
    """The JSON files of a folder by benchmark name. `ValueError` for one that is not ours."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result.get("schema") != SCHEMA or result.get("benchmark") != path.stem:
            raise ValueError(f"{path.name} is not the result of benchmark {path.stem!r}")
        found[path.stem] = result
    return found


def problems(results: Mapping[str, Mapping], targets: Sequence[Target] = TARGETS) -> list[str]:
    """The targets that are missed, in words."""
    wrong = []
    for target in targets:
        name, figure = f"{target.benchmark}/{target.figure}", _figure(results, target)
        if figure is not None and not target.met(figure["median"]):
            wrong.append(f"{name}: {figure['median']:g} misses the target {target}")
    return wrong


def remarks(results: Mapping[str, Mapping], targets: Sequence[Target] = TARGETS) -> list[str]:
    """What a reader must know of figures that miss no target, in words."""
    noted = [
        f"{name}: not measured; run `python -m benchmarks.{name}`"
        for name in sorted({*benchmarks(), *(t.benchmark for t in targets)} - set(results))
    ]
    for target in targets:
        name, figure = f"{target.benchmark}/{target.figure}", _figure(results, target)
        if target.benchmark in results and figure is None:
            figures = sorted(results[target.benchmark]["figures"])
            noted.append(f"{name}: not measured; the figures are {figures}")
        elif figure is not None and target.met(figure["median"]):
            far = figure.get("upper" if target.sense == "≤" else "lower", figure["median"])
            if not target.met(far):
                noted.append(
                    f"{name}: {figure['median']:g} meets the target {target}, but the median is "
                    f"only known to lie in {figure['lower']:g} … {figure['upper']:g}"
                )
    for name, result in sorted(results.items()):
        changed = changed_since(result["commit"], files_of(name))
        if changed is None:
            noted.append(f"{name}: measured at {result['commit']}, with which git cannot compare")
        elif changed:
            some = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
            noted.append(
                f"{name}: measured at {result['commit']}; {len(changed)} of its files have "
                f"changed since: {some}"
            )
    return noted


def benchmarks() -> set[str]:
    """Names of the benchmarks: the files here that are no helpers."""
    return {path.stem for path in HERE.glob("*.py")} - HELPERS


def _figure(results: Mapping[str, Mapping], target: Target) -> Mapping | None:
    return results.get(target.benchmark, {"figures": {}})["figures"].get(target.figure)


def script_of(result: str) -> str:
    """The benchmark that wrote a result: `views_cost_subset` is one of `views_cost`."""
    owners = [name for name in benchmarks() if result == name or result.startswith(f"{name}_")]
    return max(owners, key=len, default=result)


def table(results: Mapping[str, Mapping], targets: Sequence[Target] = TARGETS) -> str:
    """The figures as Markdown: one row a figure, and what each file was measured with."""
    goals = {(t.benchmark, t.figure): str(t) for t in targets}
    lines = [
        "| benchmark | figure | median | spread | target | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in sorted(results.items()):
        for figure, f in result["figures"].items():
            spread = spread_text(f) if "low" in f else ""
            goal = goals.get((name, figure), "")
            lines.append(
                f"| [{name}]({script_of(name)}.py) | `{figure}` | {f['median']:g} {f['unit']} "
                f"| {spread} | {goal} | {f['what']} |"
            )
    lines += ["", "| benchmark | question | machine | versions | commit | made |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, result in sorted(results.items()):
        machine = result["machine"]
        hardware = f"{machine['processor']}, {machine['cores']} cores"
        hardware += f", {machine['threads']} thread(s)" if "threads" in machine else ""
        versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        lines.append(
            f"| {name} | {result['question']} | {hardware} | {versions} "
            f"| `{result['commit']}` | {result['made'][:10]} |"
        )
    return "\n".join(lines)


def with_table(readme: str, text: str) -> str:
    """The README with `text` between its two marks. `ValueError` when it has none."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None, targets: Sequence[Target] = TARGETS) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--table", action="store_true", help="write the README's table")
    parser.add_argument("--strict", action="store_true", help="remarks fail as well")
    options = parser.parse_args(argv)
    results = load(options.results)
    readme = options.readme.read_text(encoding="utf-8")
    current = with_table(readme, table(results, targets))
    if options.table:
        options.readme.write_text(current, encoding="utf-8")
        print(f"wrote the figures of {len(results)} benchmarks into {options.readme.name}")
        return 0
    wrong = problems(results, targets)
    if current != readme:
        wrong.append("README.md: its table is not that of the JSON files; run with --table")
    noted = remarks(results, targets)
    for line in (*wrong, *(f"remark: {line}" for line in noted)):
        print(line)
    if not wrong:
        measured = sum(_figure(results, target) is not None for target in targets)
        print(f"{measured} of {len(targets)} targets are measured, and met")
    return 1 if wrong or (options.strict and noted) else 0


if __name__ == "__main__":
    sys.exit(main())
