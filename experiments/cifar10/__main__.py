r"""
# The main job on CIFAR-10

A large model is trained and recorded; a small one is trained alone; the same small one is trained
again from the large one, which it finds by run UUID. A table and pictures say what it bought.

    python -m experiments.cifar10 --precision auto
"""

from distillation.data import cifar10
from experiments.chain import Part, run_chain
from experiments.cifar10 import NAME
from experiments.command_line import run_main
from experiments.report import measure, write_report

PARTS = [
    Part("large", "Large", "experiments.cifar10.large"),
    Part("small", "Small, alone", "experiments.cifar10.small"),
    Part("distill", "Small, distilled", "experiments.cifar10.distill", learns_from="large"),
]


def main(arguments: list[str] | None = None):
    """
    ## Train the three, and report
    """
    # Each run in a process of its own
    folder, found = run_chain(NAME, PARTS, arguments, "The main job on CIFAR-10.")
    # The test images, all of them
    train, test = cifar10(found["large"].config["data"] or None)
    # Measure and write
    rows = measure(PARTS, found, train, test)
    print("\n" + write_report(folder, "Distillation on CIFAR-10", rows, found))
    print(f"\nreport: {folder / 'report.md'}")


#
if __name__ == "__main__":
    run_main(main)
