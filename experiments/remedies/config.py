"""The options of the table of remedies: the config and its presets. Nothing here imports JAX."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from experiments.remedies.methods import METHODS

if TYPE_CHECKING:
    StreamName = MethodName = str
else:
    StreamName = Literal["upgd", "mixtures", "random_labels", "bit_flipping", "permuted_labels", "permuted_pixels"]
    MethodName = Literal[tuple(METHODS)]


@dataclass(frozen=True)
class StreamConfig:
    """One stream of tasks, and the network that meets it."""

    num_tasks: int
    """How many tasks."""
    steps: int
    """Steps of each task."""
    batch_size: int
    """Examples per step."""
    learning_rate: float
    """Learning rate of the plain optimizer, and of all methods that do not tune it."""
    widths: tuple[int, ...]
    """Hidden units of each layer."""
    tasks_per_record: int = 1
    """A record holds means over this many tasks; a divisor of num_tasks."""
    num_images: int = 0
    """For streams on digits: how many of the training images are used, the first ones; 0 for all."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    streams: tuple[StreamName, ...] = ("upgd", "mixtures", "random_labels", "bit_flipping")
    """Which streams of tasks."""
    methods: tuple[MethodName, ...] = tuple(METHODS)
    """Which remedies."""
    tuning_seeds: tuple[int, ...] = (100, 101)
    """Seeds on which every setting of a method is tried."""
    seeds: tuple[int, ...] = (200, 201, 202, 203, 204, 205, 206, 207)
    """Seeds on which the best setting is run, none a tuning seed; if there are as many as lanes in tuning, both share a
    program."""
    upgd: StreamConfig = field(default_factory=lambda: StreamConfig(300, 200, 1, 0.02, (60, 30), 20))
    """Regression whose relevant inputs change (arXiv 2404.00781, appendix H): a linear network, SGD."""
    mixtures: StreamConfig = field(default_factory=lambda: StreamConfig(10, 300, 100, 0.003, (32,) * 10))
    """Pairs of mixtures of Gaussians in the plane: a deep tanh network, Adam."""
    random_labels: StreamConfig = field(default_factory=lambda: StreamConfig(30, 400, 16, 0.003, (32, 32), 3, 160))
    """Digits with labels drawn anew for every task, to be learnt by heart: a ReLU network, Adam."""
    bit_flipping: StreamConfig = field(default_factory=lambda: StreamConfig(40, 10_000, 1, 0.01, (5,), 5))
    """Online regression on bits, all slow ones drawn anew at every task: one hidden layer of ReLU units, SGD."""
    permuted_labels: StreamConfig = field(default_factory=lambda: StreamConfig(40, 200, 16, 0.003, (32, 32), 4))
    """Digits whose classes are renamed at every task: a ReLU network, Adam."""
    permuted_pixels: StreamConfig = field(default_factory=lambda: StreamConfig(40, 300, 16, 0.003, (32, 32), 4))
    """Digits whose pixels are permuted at every task: a ReLU network, Adam."""


_FULL = Config()
PRESETS = {
    # As many seeds as settings x tuning seeds: tuning and evaluation then share a compiled program.
    "quick": replace(
        _FULL,
        streams=("upgd",),
        methods=("learning_rate", "nap"),
        tuning_seeds=(100,),
        seeds=(0, 1, 2, 3),
        upgd=replace(_FULL.upgd, num_tasks=80, tasks_per_record=8),
    ),
    "full": _FULL,
}
"""By name; the first is the default."""
