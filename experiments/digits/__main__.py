r"""
# The main job on digits

A large model is trained and recorded; a small one is trained alone; the same small one is trained
again from the large one, which it finds by run UUID. Then both are trained once more without having
seen a 3, [the paper's most striking experiment](distill.html).

    python -m experiments.digits
"""

from distillation.data import digits
from experiments.chain import Part, run_chain
from experiments.command_line import run_main
from experiments.digits import NAME
from experiments.report import measure, write_report

# No 3 in the transfer set; many passes, for the small probabilities to sink in
NO_3 = {"without_classes": "[3]", "epochs": "40"}
# The labels know nothing of a 3; a high temperature makes its small probability count
SOFT_TARGETS_ALONE = {
    "temperature": "20",
    "soft_targets_weight": "1",
    "label_loss_weight": "0",
}

PARTS = [
    Part("large", "Large", "experiments.digits.large"),
    Part("small", "Small, alone", "experiments.digits.small"),
    Part("distill", "Small, distilled", "experiments.digits.distill", learns_from="large"),
    Part(
        "small_no_3",
        "Small, alone, no 3 seen",
        "experiments.digits.small",
        values=NO_3,
        fixed=("without_classes",),
    ),
    Part(
        "distill_no_3",
        "Small, distilled, no 3 seen",
        "experiments.digits.distill",
        learns_from="large",
        values={**NO_3, **SOFT_TARGETS_ALONE},
        fixed=("without_classes",),
    ),
]


def main(arguments: list[str] | None = None):
    """
    ## Train the five, and report
    """
    # Each run in a process of its own
    folder, found = run_chain(NAME, PARTS, arguments, "The main job on digits.")
    # The test images, 3s among them
    train, test = digits()
    # Measure
    rows = measure(PARTS, found, train, test)
    # How many 3s are right
    threes = int((test.labels == 3).sum())
    right = {row["key"]: round(row["accuracy_per_class"][test.classes[3]] * threes) for row in rows}
    remark = (
        f"Of the {threes} 3s among the test images, the small model that saw no 3 gets "
        f"{right['small_no_3']} right when it is trained alone and {right['distill_no_3']} when it "
        f"is distilled (the large model, which saw 3s, {right['large']})."
    )
    bars = {f"3s right, of {threes}": [right[row["key"]] for row in rows]}
    print("\n" + write_report(folder, "Distillation on digits", rows, found, remark, bars))
    print("\n" + remark)
    print(f"\nreport: {folder / 'report.md'}")


#
if __name__ == "__main__":
    run_main(main)
