"""
# labml, kept to what it is good at

Configuration and tracking are labml's. It also prints to the screen with escape codes, whatever
the screen is, and notes the computer in a file of the home folder under an identifier that holds
its network address. The run store and the progress display do the former, nobody needs the latter.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# labml opens a browser and a network connection when this is set by another project
os.environ.pop("LABML_APP_URL", None)

import yaml
from labml import experiment, lab
from labml.internal import util
from labml.internal.computer import configs as computer_configs
from labml.internal.configs.config_item import ConfigItem
from labml.internal.logger import logger_singleton


class _NoComputer:
    """Stands for labml's record of this computer, and writes none."""

    def add_project(self, path: Path) -> None:
        """Nothing is noted in the home folder."""


def _yaml(value: Any) -> str:
    """As labml writes YAML, in C: it writes all values again whenever one is computed"""
    dumper = yaml.CDumper if yaml.__with_libyaml__ else yaml.Dumper
    return yaml.dump(value, Dumper=dumper, default_flow_style=False)


def _quiet() -> None:
    """labml's lines and colours are not shown, and nothing is noted in the home folder"""
    logger_singleton()._Logger__destinations = []
    computer_configs.computer_singleton = _NoComputer
    util.yaml_dump = _yaml


@contextmanager
def own_items(configs: type) -> Iterator[None]:
    """
    ### Items of its own for a configuration that is made

    labml writes the values of a class into the items of the classes it extends, and so the digits'
    temperature into CIFAR-10's. It gets copies to write into.
    """
    kept = [
        (owner, name, item)
        for owner in configs.__mro__
        for name, item in vars(owner).items()
        if isinstance(item, ConfigItem)
    ]
    for owner, name, item in kept:
        setattr(owner, name, copy.copy(item))
    try:
        yield
    finally:
        for owner, name, item in kept:
            setattr(owner, name, item)


def join_experiment() -> None:
    """
    ### labml's experiment in a process that does not record
    """
    _quiet()
    experiment.evaluate()


def create_experiment(uuid: str, name: str, comment: str, root: Path, *, log: bool = True) -> None:
    """
    ### Create labml's experiment for a run of the store

    labml's own files (`run.yaml`, `configs.yaml`, `log.jsonl`, `source.diff`) come to lie beside
    the store's, in the same folder; the store never reads them. Without `log` there is no
    `log.jsonl`.
    """
    _quiet()
    # The runs' root; labml takes a relative one from itself, `logs/logs`
    root = root.absolute()
    lab.configure({"path": str(root), "experiments_path": str(root)})
    # A run that was killed leaves its process id behind, and labml would refuse to go on
    (root / name / uuid / "run.pid").unlink(missing_ok=True)
    # The default writers store no metric
    experiment.create(uuid=uuid, name=name, comment=comment, writers={"file"} if log else set())
