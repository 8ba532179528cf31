r"""
# The record

The table of the [labml_nn tutorial](https://nn.labml.ai/distillation/), made again on the 50,000
training images of CIFAR-10 and its 10,000 test images, with several seeds, and with the controls
that tell distillation from mere training. The [protocol](protocol.html) says what is run.

    python -m experiments.record --data path/to/cifar10
    python -m experiments.record --check records/2026-11-21_seed_table
    python -m experiments.record --smoke
"""

NAME = "cifar10"
