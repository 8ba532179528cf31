"""
# What distillation bought: the table and the pictures

Accuracy, size, computation and latency of the models of a chain, side by side, as Markdown and PNG.
"""

from pathlib import Path
from typing import Any

import torch

from distillation.checkpoint import atomic_json, atomic_write
from distillation.data import ImageSet, TensorLoader
from distillation.models.facts import cpu_latency, model_facts
from distillation.runs import Run
from experiments.chain import Part

COLUMNS = {
    "accuracy": "accuracy",
    "parameters": "parameters",
    "macs": "MACs",
    "file_bytes": "file size",
    "latency_ms": "CPU latency",
    "agreement": "agreement with teacher",
}


@torch.no_grad()
def predictions(run: Run, test: ImageSet, mean: tuple, std: tuple) -> torch.Tensor:
    """
    ### Classes that a recorded model gives the test images, `[images]`
    """
    model = run.load_model()
    loader = TensorLoader(test, 500, shuffle=False, mean=mean, std=std)
    return torch.cat([model(batch.images).argmax(dim=-1) for batch in loader])


def measure(
    parts: list[Part], found: dict[str, Run], train: ImageSet, test: ImageSet
) -> list[dict[str, Any]]:
    """
    ### One row a run
    """
    rows, choices = [], {}
    for part in parts:
        run = found[part.key]
        choices[part.key] = choice = predictions(run, test, train.mean, train.std)
        model = run.load_model()
        facts = model_facts(model, tuple(test.images.shape[1:]))
        # What is exported: the weights of the last checkpoint
        weights = run.path / "checkpoints" / str(run.checkpoints[-1]) / "model.safetensors"
        # Agreement is with the chain's large model for all, so that students can be compared
        teacher = choices[part.learns_from or parts[0].key]
        rows.append(
            {
                "key": part.key,
                "title": part.title,
                "run": run.uuid,
                "teacher": run.parent_uuid,
                "accuracy": float((choice == test.labels).double().mean()),
                "accuracy_per_class": {
                    name: float((choice[test.labels == i] == i).double().mean())
                    for i, name in enumerate(test.classes)
                },
                "agreement": float((choice == teacher).double().mean()),
                "parameters": facts["parameters"],
                "macs": facts["macs"],
                "file_bytes": weights.stat().st_size,
                "latency_ms": cpu_latency(model, tuple(test.images.shape[1:]))["median"],
                "epochs": run.config["epochs"],
                "seed": run.seed,
                "without_classes": run.config["without_classes"],
            }
        )
    return rows


def _cell(key: str, value: Any) -> str:
    if key in ("accuracy", "agreement"):
        return f"{100 * value:.2f} %"
    if key == "file_bytes":
        return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"
    if key == "latency_ms":
        return f"{value:.2f} ms"
    return f"{value:,}"


def table(rows: list[dict[str, Any]]) -> str:
    """
    ### The table, as Markdown that also reads well as it is
    """
    cells = [["model", *COLUMNS.values()]]
    cells += [[row["title"], *(_cell(k, row[k]) for k in COLUMNS)] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]

    def line(values: list[str]) -> str:
        first, *others = values
        padded = [first.ljust(widths[0])]
        padded += [v.rjust(w) for v, w in zip(others, widths[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(
        "-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)
    )
    return "\n".join([line(cells[0]), rule + "|", *map(line, cells[1:])])


def pictures(
    folder: Path,
    rows: list[dict[str, Any]],
    found: dict[str, Run],
    more: dict[str, list[float]] | None = None,
) -> None:
    """
    ### Curves and bars

    `more` are further panels of bars: a value for each row, by what they count.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for row in rows:
        run = found[row["key"]]
        steps, values = run.curve("accuracy.test")
        per_epoch = max(steps) / max(len(steps), 1)
        axes.plot(
            [s / per_epoch for s in steps],
            [100 * v for v in values],
            marker=".",
            label=row["title"],
        )
    axes.set(xlabel="epoch", ylabel="test accuracy, %", title="Accuracy after each epoch")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "curves.png", dpi=120)
    plt.close(figure)

    # All bars begin at zero, so that their lengths can be compared: error rather than accuracy
    panels = {
        "test error, %": [100 * (1 - row["accuracy"]) for row in rows],
        "parameters": [row["parameters"] for row in rows],
        **(more or {}),
    }
    titles = [row["title"] for row in rows]
    colors = ["tab:blue" if row["teacher"] else "tab:gray" for row in rows]
    figure, all_axes = plt.subplots(
        1,
        len(panels),
        sharey=True,
        figsize=(3.2 * len(panels) + 1, 0.45 * len(rows) + 1.2),
        layout="constrained",
    )
    for axes, (name, values) in zip(all_axes, panels.items(), strict=True):
        bars = axes.barh(titles, values, color=colors)
        texts = [f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" for v in values]
        axes.bar_label(bars, texts, padding=3)
        axes.set(xlabel=name, xlim=(0, 1.35 * max(values)))
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].invert_yaxis()
    figure.savefig(folder / "bars.png", dpi=120)
    plt.close(figure)


def write_report(
    folder: Path,
    title: str,
    rows: list[dict[str, Any]],
    found: dict[str, Run],
    remark: str = "",
    bars: dict[str, list[float]] | None = None,
) -> str:
    """
    ### Write `report.md`, `report.json`, `curves.png` and `bars.png`; returns the table

    `remark` is a paragraph below the table, `bars` are further panels of the picture.
    """
    shown = table(rows)
    facts = next(iter(found.values())).info
    lines = [
        f"# {title}",
        "",
        shown,
        "",
        *([remark, ""] if remark else []),
        "Accuracies are of the last epoch, on all test images; nothing was chosen on them. One "
        f"seed ({rows[0]['seed']}): differences of a point are within the noise of a seed. "
        f"Latency is for one image on one CPU thread. torch {facts['versions']['torch']}, "
        f"{facts['threads']} threads.",
        "",
        "![curves](curves.png)",
        "",
        "![bars](bars.png)",
        "",
        "| model | run | teacher |",
        "|---|---|---|",
        *[f"| {r['title']} | `{r['run']}` | {r['teacher'] or ''} |" for r in rows],
        "",
    ]
    pictures(folder, rows, found, bars)
    atomic_json(folder / "report.json", {"title": title, "rows": rows})
    atomic_write(folder / "report.md", "\n".join(lines))
    return shown
