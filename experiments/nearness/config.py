"""What the nearness experiment can be asked to do, and what it measures. Nothing here imports JAX."""

from dataclasses import dataclass
from typing import Literal

Rule = Literal["sgd", "adam"]
NETWORKS = ("mlp tanh", "mlp relu", "vit gelu")
"""What is trained: two hidden layers, or one block with four heads."""
DISTANCES = {
    "equal": "equal clone",
    "signed": "sign clone",
    "weighted": "weighted clone",
    "size": "vanished unit",
    "level": "level set",
    "heads": "equal head",
}
"""Distances by name, and the words for what they are distances to; not every network has all of them."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    rules: tuple[Rule, ...] = ("sgd", "adam")
    """Optimizers: gradient descent without momentum, and Adam."""
    learning_rates: tuple[float, ...] = (0.1, 0.003)
    """Of the optimizers, in their order."""
    width: int = 16
    """Units of each hidden layer, and of the residual stream."""
    samples: int = 256
    """Training examples, all in every step: digits."""
    tasks: int = 10
    """Tasks; every one permutes the classes anew."""
    steps: int = 300
    """Steps of a task."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One initial network and one sequence of tasks each."""


PRESETS = {
    "quick": Config(tasks=3, seeds=(0, 1)),
    "full": Config(),
    "long": Config(tasks=40, steps=500, seeds=tuple(range(10))),
}
"""By name; the first is the default."""


def distances_of(network: str) -> tuple[str, ...]:
    """Names of what is measured of a network."""
    own = {"mlp tanh": ("equal", "signed", "size"), "mlp relu": ("equal", "weighted", "size", "level")}
    return own.get(network, ("heads",))
