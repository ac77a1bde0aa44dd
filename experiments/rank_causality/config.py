"""What the experiment can be asked for: the config and its presets. Nothing here imports JAX."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from experiments.rank_causality.arms import ARMS

if TYPE_CHECKING:
    TasksName = ActivationName = ArmName = str
else:
    TasksName = Literal["random_labels", "permuted_pixels", "permuted_labels", "gaussian_mixtures"]
    ActivationName = Literal["tanh", "relu"]
    ArmName = Literal[tuple(ARMS)]


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    tasks: tuple[TasksName, ...] = ("random_labels",)
    """What the tasks are; the first of a sequence makes the checkpoint. random_labels: digits with their true labels at
    first, then with labels drawn at random, to be learnt by heart."""
    activations: tuple[ActivationName, ...] = ("tanh",)
    """Of the units."""
    widths: tuple[int, ...] = (12,)
    """Units of each of the two hidden layers of a checkpoint; every case is a task, an activation and a width."""
    arms: tuple[ArmName, ...] = tuple(ARMS)
    """What is made of the checkpoint."""
    seeds: tuple[int, ...] = tuple(range(20))
    """A checkpoint each, and one network an arm."""
    num_tasks: int = 1
    """How many tasks come after the checkpoint."""
    steps: int = 2000
    """Steps of each task, the checkpoint's included."""
    batch_size: int = 20
    """Examples a step."""
    learning_rate: float = 0.075
    """Of SGD without momentum."""
    num_images: int = 200
    """Of random_labels: the first so many training images, to be learnt by heart."""
    regulariser: float = 0.3
    """Coefficient of the rank regulariser."""
    records: int = 10
    """Measurements a task, besides that at its start; a divisor of the steps."""
    probe_samples: int = 200
    """Examples on which rank is measured, the same for the whole run."""


PRESETS = {
    "quick": Config(seeds=tuple(range(10)), steps=1500),
    "paper": Config(tasks=("random_labels", "permuted_pixels"), activations=("tanh", "relu"), widths=(12, 24)),
    "mixtures": Config(tasks=("gaussian_mixtures",), activations=("tanh", "relu")),
}
"""By name; the first is the default."""


class Case(NamedTuple):
    """One sequence of tasks met by one network.

    Attributes:
        tasks: kind of the tasks.
        activation: activation of the units.
        width: units of each hidden layer of the checkpoint.
    """

    tasks: str
    activation: str
    width: int

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.tasks.replace('_', ' ')}, {self.activation}, {self.width}-{self.width} units"


def cases_of(config: Config | Mapping[str, Any]) -> list[Case]:
    """The cases of a config, be it the dataclass or the JSON of a run folder."""
    fields = config if isinstance(config, Mapping) else vars(config)
    return [Case(*one) for one in itertools.product(fields["tasks"], fields["activations"], fields["widths"])]
