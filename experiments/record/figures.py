"""
# The record's figures
"""

import csv
import io
from pathlib import Path
from typing import Any

from distillation.checkpoint import atomic_write
from experiments.record.plan import members
from experiments.record.protocol import GROUPS

# What is drawn, and in which colour; `longer` would take most of the figure for itself
_COLORS = {
    "large": "black",
    "small": "tab:gray",
    "distilled": "tab:blue",
    "all_views": "tab:purple",
    "smoothing": "tab:olive",
    "from_untrained": "tab:red",
    "labml": "tab:green",
}


def curve(folder: Path, key: str, column: str) -> tuple[list[int], list[float]]:
    """
    ### Epochs and values of one column of a recorded curve
    """
    with (folder / "curves" / f"{key}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(column)]
    return [int(row["epoch"]) for row in rows], [float(row[column]) for row in rows]


def draw(folder: Path, found: dict[str, dict[str, Any]]) -> None:
    """
    ### Test accuracy after each epoch: a line for each run, a colour for each group
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for group, color in _COLORS.items():
        for i, facts in enumerate(members(found, group)):
            epochs, values = curve(folder, facts["key"], "accuracy.test")
            label = GROUPS[group] if i == 0 else None
            axes.plot(epochs, [100 * v for v in values], color=color, lw=1.1, label=label)
    axes.set(xlabel="epoch", ylabel="test accuracy, %")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="lower right")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    atomic_write(folder / "figures" / "curves.png", data.getvalue())
