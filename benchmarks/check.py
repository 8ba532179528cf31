"""Compare the committed figures with the targets, and write the table of `benchmarks/README.md`.

    python -m benchmarks.check            # exit 1 when a target is missed or a figure is missing
    python -m benchmarks.check --table    # write the table of README.md from the JSON files

The targets stand here and not in the JSON files: a benchmark cannot move its own goal. The check
also fails when the README's table is not the one that the JSON files give.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import HERE, RESULTS, SCHEMA

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
    Target("against_seed", "loss_difference_fp32", "≤", 1e-5),
    Target("against_seed", "loss_difference_fp32_table", "≤", 1e-4),
    Target("against_seed", "loss_difference_bf16", "≤", 2e-2),
    Target("script_door", "step_ratio", "≤", 1.05),
    Target("trainer_door", "step_ratio", "≤", 1.05),
    Target("trainer_door", "step_ratio_with_metric", "≤", 1.10),
    Target("loader", "speedup", "≥", 4.0),
    Target("table_rates", "fill_overhead", "≤", 1.10),
    Target("memory", "table_over_plain", "≤", 1.10),
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
    """What is wrong, in words: missing results, missing figures, missed targets."""
    wrong = []
    for target in targets:
        name = f"{target.benchmark}/{target.figure}"
        if target.benchmark not in results:
            wrong.append(f"{name}: no result; run `python -m benchmarks.{target.benchmark}` first")
            continue
        figures = results[target.benchmark]["figures"]
        if target.figure not in figures:
            wrong.append(f"{name}: not among the figures {sorted(figures)}")
            continue
        value = figures[target.figure]["median"]
        if not target.met(value):
            wrong.append(f"{name}: {value:g} misses the target {target}")
    return wrong


def table(results: Mapping[str, Mapping], targets: Sequence[Target] = TARGETS) -> str:
    """The figures as Markdown: one row a figure, and what each file was measured with."""
    goals = {(t.benchmark, t.figure): str(t) for t in targets}
    lines = [
        "| benchmark | figure | median | spread | target | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in sorted(results.items()):
        for figure, f in result["figures"].items():
            spread = f"{f['low']:g} … {f['high']:g}" if "low" in f else ""
            goal = goals.get((name, figure), "")
            lines.append(
                f"| [{name}]({name}.py) | `{figure}` | {f['median']:g} {f['unit']} | {spread} "
                f"| {goal} | {f['what']} |"
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
    for line in wrong:
        print(line)
    if not wrong:
        print(f"all {len(targets)} targets are met")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
