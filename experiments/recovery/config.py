"""What the recovery experiment can be asked to do. Nothing here imports JAX."""

from dataclasses import dataclass, field
from typing import Literal

from experiments.kit.networks import MLP

Kind = Literal["gaussian_mixtures", "random_labels", "permuted_labels"]


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    tasks: Kind = "gaussian_mixtures"
    """What a task is; labels of the embedded digits in the other two."""
    num_tasks: int = 12
    """How many tasks."""
    steps: int = 150
    """Steps of each."""
    num_images: int = 400
    """Of the digits."""
    batch_size: int = 50
    """Examples a step."""
    adam_learning_rate: float = 0.003
    """Of Adam, which trains all lanes."""
    net: MLP = field(default_factory=lambda: MLP(widths=(32,) * 4, activation="tanh", norm="none", init="lecun"))
    """The network."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One run each of every method."""
    noise: tuple[float, ...] = (0.002,)
    """Constant noise: deviation on every parameter at every step; a lane each."""
    shrink: tuple[float, ...] = (0.5, 0.8)
    """Shrink and perturb, as often as there are tasks but not when they start: share that is kept; a lane each."""
    look_every: int = 50
    """Of the controller: steps between two looks."""
    cool_down: int = 100
    """Of the controller: steps between an action and its judgement."""
    controller_shrink: float = 0.5
    """Of the controller's last rung: share that is kept."""
    rank_on: float = 0.3
    """Fall of the effective rank from which the controller treats it."""
    rank_off: float = 0.15
    """Fall below which it has gone."""
    probe_samples: int = 200
    """Examples of the fixed batch on which symptoms are measured."""
    level: float = 0.05
    """Plasticity is lost when online accuracy stays this far below the fresh network's."""


_DIGITS = {"net": MLP(widths=(64, 64), norm="none", init="lecun"), "batch_size": 50, "adam_learning_rate": 0.003}

PRESETS = {
    "quick": Config(),
    "random_labels": Config(tasks="random_labels", **_DIGITS),
    "permuted_labels": Config(tasks="permuted_labels", **_DIGITS),
}
