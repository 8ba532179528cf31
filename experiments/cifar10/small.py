r"""
# Train the small model alone on CIFAR-10

This trains the small model on the labels alone: what the
[distilled one](distill.html) has to beat.

    python -m experiments.cifar10.small --precision auto
"""

from labml import experiment
from labml.configs import option
from torch import nn

from distillation.models.vgg import SmallModel
from experiments.cifar10 import EVALUATION, NAME, CIFAR10Configs
from experiments.classification import build_model
from experiments.command_line import parse, run_main
from experiments.labels import LabelConfigs
from experiments.session import open_session


class Configs(CIFAR10Configs, LabelConfigs):
    """
    ## Configurations

    The images are [`CIFAR10Configs`](index.html)', the step is [`LabelConfigs`](../labels.html)'.
    """

    _name = "small"

    # The small model
    model: nn.Module = "_small_model"


@option(Configs.model)
def _small_model(c: Configs):
    """
    ### Create small model
    """
    return build_model(c, SmallModel)


def main(arguments: list[str] | None = None):
    """
    ## Train the small model
    """
    # Read and check the command line
    options = parse(Configs, arguments, title="Train the small model alone on CIFAR-10.")
    # Open a run of the store, or go on with one
    with open_session(options, NAME, "small", evaluation=EVALUATION) as session:
        # Create configurations
        conf = Configs()
        # Set the run
        conf.session = session
        # Load configurations
        experiment.configs(conf, options.values)
        # Start the experiment and run the training loop
        with experiment.start():
            conf.run()


#
if __name__ == "__main__":
    run_main(main)
