r"""
# Distillation on digits

The step is the one of [CIFAR-10](../cifar10/distill.html); only images and models are others.

    python -m experiments.digits.large
    python -m experiments.digits.distill --teacher d46cd53e

## A transfer set without a 3

The paper's most striking experiment leaves all 3s out of the transfer set: from the student's
perspective the 3 is a mythical digit that it has never seen. In the paper, on MNIST, it still
classifies most 3s correctly, because the soft targets of other digits say how much each of them
looks like a 3. Here, with 8×8 pixels and a smaller student, it gets 13 of the 37 3s; one that is
trained on the labels gets none.

    python -m experiments.digits.distill --teacher d46cd53e --set without_classes=[3] \
        --set temperature=20 --set soft_targets_weight=1 --set label_loss_weight=0 --epochs 40

The labels know nothing of a 3, so they are left out; and a high temperature makes the small
probabilities count. Both were chosen on the 3s of the training set, which no student trains on.
"""

from labml import experiment
from labml.configs import option
from torch import nn

from distillation.models.digits import DigitsSmallModel
from experiments.cifar10 import distill as cifar10_distill
from experiments.classification import build_model
from experiments.command_line import parse, run_main
from experiments.digits import EVALUATION, NAME, DigitsConfigs
from experiments.session import open_session
from experiments.teachers import check_teacher, find_teacher, load_teacher


class Configs(DigitsConfigs, cifar10_distill.Configs):
    """
    ## Configurations

    The images are [`DigitsConfigs`](index.html)', step and losses are those of
    [CIFAR-10](../cifar10/distill.html).
    """

    # The small model
    model: nn.Module = "_small_digits_student"
    # Temperature, $T$; chosen on 300 held out training images, as mean of three seeds
    temperature: float = 8.0

    _parts = (*cifar10_distill.Configs._parts, "data")


@option(Configs.model)
def _small_digits_student(c: Configs):
    """
    ### Create small model
    """
    return build_model(c, DigitsSmallModel)


def main(arguments: list[str] | None = None):
    """
    ## Train a small model with distillation
    """
    # Read and check the command line
    options = parse(
        Configs, arguments, title="Distil the large model into the small one.", has_teacher=True
    )
    # Find the large model's run
    teacher = find_teacher(options)
    # Open a run of the store, or go on with one
    with open_session(options, NAME, "distill", teacher=teacher, evaluation=EVALUATION) as session:
        # Create configurations
        conf = Configs()
        # Set the run, and the large model as it was saved
        conf.session = session
        conf.teacher = load_teacher(teacher, session, options)
        # Load configurations
        experiment.configs(conf, options.values)
        # The large model must know more than nothing
        check_teacher(conf, teacher, options)
        # Start the experiment and run the training loop
        with experiment.start():
            conf.run()


#
if __name__ == "__main__":
    run_main(main)
