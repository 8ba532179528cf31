"""
# The record's page

The README of a record is computed from its per-run files and from nothing else, so that it can be
computed again.
"""

from typing import Any

import numpy as np

from experiments.record.plan import chosen, members, sizes
from experiments.record.protocol import (
    EARLIER,
    GROUPS,
    PUBLISHED,
    SEARCHES,
    TARGETS,
    TUTORIAL,
    Scale,
)
from experiments.record.results import classes, right
from experiments.record.statistics import Margin, Spread, margin, spread

# The groups that tell distillation from mere training
CONTROLS = ("all_views", "longer", "smoothing", "from_untrained", "labml")

Facts = dict[str, Any]


def page(protocol: Facts, found: dict[str, Facts]) -> str:
    """
    ### The whole page

    `protocol` is the record's `record.json`, `found` its runs by key.
    """
    parts = [
        "# The record: CIFAR-10, large, small, distilled",
        _introduction(protocol, found),
        table(protocol, found),
        _targets(protocol, found),
        _margin(protocol, found),
        _searches(protocol, found),
        _transferred(protocol, found),
        "## Curves\n\n![test accuracy after each epoch](figures/curves.png)",
        _runs(found),
        _again(protocol, found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def title(protocol: Facts, group: str, runs: list[Facts]) -> str:
    """
    ### What the table calls runs of a group: with their precision, if it is not the protocol's
    """
    used = {facts["precision"] for facts in runs}
    if used <= {protocol["scale"]["precision"]}:
        return GROUPS[group]
    return f"{GROUPS[group]} ({' and '.join(sorted(used))})"


def table(protocol: Facts, found: dict[str, Facts]) -> str:
    """
    ### The table, which stands at the top of the project's README too
    """
    lines = [
        "| model | parameters | epochs | seeds | test accuracy | the tutorial's |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for group in ("large", "small", "distilled"):
        lines.append(
            _row(protocol, group, members(found, group), f"{100 * PUBLISHED[group]:.0f} %")
        )
    for group in CONTROLS:
        lines.append(_row(protocol, group, members(found, group), ""))
    return "\n".join(lines)


def _row(protocol: Facts, group: str, runs: list[Facts], published: str) -> str:
    if not runs:
        return f"| {GROUPS[group]} | | | | not run yet | {published} |"
    shown = percent(spread([facts["accuracy"] for facts in runs]))
    first = runs[0]
    return (
        f"| {title(protocol, group, runs)} | {first['parameters']:,} | {first['config']['epochs']} "
        f"| {len(runs)} | {shown} | {published} |"
    )


def percent(value: Spread) -> str:
    """
    ### Mean ± standard deviation, in percent or points
    """
    mean = f"**{100 * value.mean:.2f} %**"
    if value.deviation is None:
        return mean
    # No line ends within it
    return f"{mean} ± {100 * value.deviation:.2f}".replace(" ", "\u00a0")


def images(protocol: Facts) -> str:
    """
    ### What the images are, in brackets, where the record says it
    """
    said = protocol.get("images")
    return f" ({said})" if said else ""


def precisions(protocol: Facts, found: dict[str, Facts]) -> str:
    """
    ### What the marks of another precision mean, as a sentence, where there are such
    """
    usual = protocol["scale"]["precision"]
    if {facts["precision"] for facts in found.values()} <= {usual}:
        return ""
    return f"Computed in {usual}, but for what is marked: not every processor is fast at it. "


def _introduction(protocol: Facts, found: dict[str, Facts]) -> str:
    data, scale = protocol["data"], protocol["scale"]
    lines = [
        "The tutorial that this framework grew from publishes what a large model, a small one and "
        f"a distilled one reach on CIFAR-10. Here it is measured again. {TUTORIAL}",
        f"{data['train']:,} training images, {data['test']:,} test images{images(protocol)}. "
        "Accuracies are of the last epoch, on all test images. ± is the standard deviation over "
        f"the seeds. {precisions(protocol, found)}Hyper-parameters were chosen on "
        f"{scale['holdout']:,} held out training images ([the search](#the-search)): "
        f"{scale['trials']} trials of the plain student chose learning rate and weight decay of "
        f"all students but the one with the tutorial's recipe, {scale['trials']} of the distilled "
        "one its temperature and weights; the models were then trained on all training images. "
        f"Plain and distilled students see the same {scale['views']} views of each image, so that "
        "the teacher is asked once for each; a control sees all views there are. All seeds have "
        "one teacher and one choice of views: what other teachers would do, the spread does not "
        "say.",
        EARLIER,
    ]
    missing = [
        f"{GROUPS[group]} ({there} of {size})"
        for group, size in sizes(Scale(**scale)).items()
        if (there := len(members(found, group))) < size
    ]
    if missing:
        lines.append(
            "**Parts that have not been run yet:** "
            + "; ".join(missing)
            + ". `python -m experiments.record` runs what is missing, and leaves what is here."
        )
    return "\n\n".join(lines)


def targets(protocol: Facts, found: dict[str, Facts]) -> list[tuple[str, str, str, bool]]:
    """
    ### What was hoped for: (of what, at least, measured, whether it was reached)
    """
    rows = []
    for group in ("large", "distilled"):
        runs = members(found, group)
        if runs:
            mean = spread([facts["accuracy"] for facts in runs]).mean
            rows.append((title(protocol, group, runs), TARGETS[group], mean, "%", ""))
    result = paired(protocol, found, "distilled", "small")
    if result is not None:
        what = _difference(protocol, found, "small")
        rows.append((what, TARGETS["margin"], result.over_seeds.mean, "points", "+"))
    return [
        (what, f"{100 * least:{sign}.2f} {unit}", f"{100 * x:{sign}.2f} {unit}", x >= least)
        for what, least, x, unit, sign in rows
    ]


def _targets(protocol: Facts, found: dict[str, Facts]) -> str:
    rows = targets(protocol, found)
    if not rows:
        return ""
    lines = [
        "## What was hoped for",
        "",
        "Set before anything was run, and not moved since.",
        "",
        "| | at least | measured | |",
        "|---|---:|---:|---|",
    ]
    for what, least, measured, met in rows:
        lines.append(f"| {what} | {least} | {measured} | {'reached' if met else '**missed**'} |")
    return "\n".join(lines)


def paired(protocol: Facts, found: dict[str, Facts], first: str, second: str) -> Margin | None:
    """
    ### The margin of one group over another, for the seeds that both have
    """
    one = {facts["seed"]: facts for facts in members(found, first)}
    two = {facts["seed"]: facts for facts in members(found, second)}
    seeds = sorted(one.keys() & two.keys())
    if not seeds:
        return None
    labels = protocol["labels"]
    return margin([right(one[s], labels) for s in seeds], [right(two[s], labels) for s in seeds])


def _margin(protocol: Facts, found: dict[str, Facts]) -> str:
    lines = []
    for other in ("small", *CONTROLS):
        result = paired(protocol, found, "distilled", other)
        if result is not None:
            lines.append(_margin_row(_difference(protocol, found, other), result))
    if not lines:
        return ""
    head = [
        "## The margin",
        "The same seeds, compared pair by pair. SE (seeds) is the standard error of the mean "
        "difference over seeds, with the p-value of a paired t-test; SE (images) is the standard "
        "error over test images for these very models, with the p-value of McNemar's exact test "
        "for each seed.",
        "| difference | seeds | margin, points | SE (seeds) | p (t-test) | SE (images) "
        "| only the first right | only the second | p (McNemar) |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n\n".join(head) + "\n" + "\n".join(lines)


def _difference(protocol: Facts, found: dict[str, Facts], other: str) -> str:
    pair = (title(protocol, group, members(found, group)) for group in ("distilled", other))
    return " − ".join(pair)


def _margin_row(what: str, m: Margin) -> str:
    error = "" if m.over_seeds.error is None else f"{100 * m.over_seeds.error:.2f}"
    p_images = ", ".join(map(p_value, m.p_images))
    p_seeds = "" if m.p_seeds is None else p_value(m.p_seeds)
    return (
        f"| {what} | {m.over_seeds.n} | **{100 * m.over_seeds.mean:+.2f}** | {error} | {p_seeds} "
        f"| {100 * m.image_error:.2f} | {m.gained} | {m.lost} | {p_images} |"
    )


def p_value(value: float) -> str:
    """
    ### A p-value to four places; a bound where these are zeros
    """
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _searches(protocol: Facts, found: dict[str, Facts]) -> str:
    lines = []
    for group, search in SEARCHES.items():
        trials = members(found, search)
        for facts in trials:
            mark = " ←" if facts is chosen(trials) else ""
            tried = ", ".join(f"{k}={v}" for k, v in facts["tried"].items())
            model = title(protocol, group, [facts])
            lines.append(f"| {model} | {tried} | {100 * facts['accuracy_valid']:.2f} %{mark} |")
    if not lines:
        return ""
    head = (
        "## The search\n\nOne seed each, on held out training images, in shorter trainings; the "
        "arrow marks what was taken. The distilled students' teacher had been trained on the "
        "images held out here, which flatters them.\n\n"
        "| model | tried | accuracy on held out images |\n|---|---|---:|\n"
    )
    return head + "\n".join(lines)


def _transferred(protocol: Facts, found: dict[str, Facts]) -> str:
    rows, teacher = [], found.get("large")
    for group in ("large", "small", "distilled", *CONTROLS):
        runs = members(found, group)
        if runs:
            rows.append((group, runs))
    if teacher is None or len(rows) < 2:
        return ""
    lines = [
        "## What was transferred",
        "Agreement is the share of test images where a student says what the large model says; KL "
        "is KL(large ‖ student) on the test images, in nats, at T = 1; ECE is the expected "
        "calibration error with 15 bins. Means over the seeds.",
        "| model | agreement with the large model | KL | ECE |\n|---|---:|---:|---:|\n"
        + "\n".join(_transfer_row(title(protocol, group, runs), runs) for group, runs in rows),
        "### Accuracy per class",
        _per_class(protocol, rows),
    ]
    return "\n\n".join(lines)


def _transfer_row(model: str, runs: list[Facts]) -> str:
    def mean(key: str, text: str) -> str:
        values = [facts[key] for facts in runs if facts[key] is not None]
        return text.format(spread(values).mean) if values else ""

    agreement = mean("agreement", "{:.2%}").replace("%", " %")
    ece = mean("ece", "{:.2%}").replace("%", " %")
    return f"| {model} | {agreement} | {mean('kl', '{:.3f}')} | {ece} |"


def _per_class(protocol: Facts, rows: list[tuple[str, list[Facts]]]) -> str:
    labels = classes(protocol["labels"])
    head = "| class | " + " | ".join(title(protocol, *row) for row in rows) + " |"
    lines = [head, "|---|" + "---:|" * len(rows)]
    for index, name in enumerate(protocol["data"]["classes"]):
        of_class = labels == index
        cells = []
        for _, runs in rows:
            shares = [float(right(f, protocol["labels"])[of_class].mean()) for f in runs]
            cells.append(f"{100 * float(np.mean(shares)):.1f} %")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _runs(found: dict[str, Facts]) -> str:
    lines = [
        "## Every run",
        "",
        "Wall and CPU time are of all processes of a run, on a machine that did other work beside "
        "it: they tell the order of magnitude. A part links to its file, with configuration, "
        "versions and predictions; its curve is beside it.",
        "",
        "| part | curve | run | seed | epochs | accuracy | wall | CPU | commit |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for facts in (f for group in GROUPS for f in members(found, group)):
        accuracy = facts["accuracy_valid"] if "accuracy" not in facts else facts["accuracy"]
        held_out = " (held out)" if "accuracy" not in facts else ""
        lines.append(
            f"| [{facts['key']}](runs/{facts['key']}.json) | [CSV](curves/{facts['key']}.csv) "
            f"| `{facts['run'][:8]}` | {facts['seed']} "
            f"| {facts['config']['epochs']} | {100 * accuracy:.2f} %{held_out} "
            f"| {_minutes(facts['wall_seconds'])} | {_minutes(facts['cpu_seconds'])} "
            f"| {', '.join(commit[:8] for commit in facts['commits'])} |"
        )
    return "\n".join(lines)


def _minutes(seconds: float | None) -> str:
    return "not noted" if seconds is None else f"{seconds / 60:.1f} min"


def _again(protocol: Facts, found: dict[str, Facts]) -> str:
    machines = {_machine(facts) for facts in found.values()}
    lines = [
        "## Made with",
        "",
        *sorted(f"* {m}" for m in machines),
        "",
        "Again: `python -m experiments.record --out FOLDER`, or run by run, with the images in "
        "`DISTILLATION_DATA`; each command's last line names its run, for `LARGE` and `UNTRAINED`:",
        "",
        "```bash",
        *[found[k]["command"] for g in GROUPS for k in [f["key"] for f in members(found, g)]],
        "```",
    ]
    return "\n".join(lines)


def _machine(facts: Facts) -> str:
    machine, versions = facts["machine"], facts["versions"]
    gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
    without = "" if machine["bf16"] or gpu else "without bf16 instructions, "
    return (
        f"{gpu}{machine['processor']}, {facts['threads']} of {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, {without}{facts['precision']}, torch {versions['torch']}, "
        f"Python {versions['python']}"
    )
