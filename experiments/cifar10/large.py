r"""
# Train the large model on CIFAR-10

This trains the large model of the [distillation experiment](distill.html), with dropout and on the
labels alone. Its run UUID, the last line that is printed, names it as the teacher:

    python -m experiments.cifar10.large --precision auto
"""

from labml import experiment
from labml.configs import option
from torch import nn

from distillation.models.vgg import LargeModel
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

    _name = "large"

    # The large model
    model: nn.Module = "_large_model"
    # Probability of dropping each input of a convolution
    dropout: float = 0.1
    # Passes over the training images
    epochs: int = 20


@option(Configs.model)
def _large_model(c: Configs):
    """
    ### Create large model
    """
    return build_model(c, LargeModel, dropout=c.dropout)


def main(arguments: list[str] | None = None):
    """
    ## Train the large model
    """
    # Read and check the command line
    options = parse(Configs, arguments, title="Train the large model on CIFAR-10.")
    # Open a run of the store, or go on with one
    with open_session(options, NAME, "large", evaluation=EVALUATION) as session:
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
