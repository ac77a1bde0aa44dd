"""What the escape experiment can be asked to do: the config, its grid and its presets. Nothing here imports JAX."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from experiments.kit.configs import ModelName, OnCNN, OnMLP, OnViT
from experiments.kit.networks import CNN, MLP, Network, ViT

AXES = {
    "noise_scale": "noise_scales",
    "noise_decay": "noise_decays",
    "dropout": "dropouts",
    "learning_rate": "learning_rates",
    "momentum": "momenta",
    "weight_decay": "weight_decays",
}
"""The numbers of a lane, and the fields of the config that list their values."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    dataset: str = "digits"
    """"digits" or any prepared TFDS image classification set."""
    label_noise: float = 0.5
    """Fraction of the training labels redrawn at random: where a task is fitted, no gradient is left to escape with."""
    model: ModelName = "mlp"
    """Architecture."""
    net: Network = field(default_factory=MLP)
    factor: int = 2
    """Clones of every unit."""
    noise_scales: tuple[float, ...] = (0.0, 0.02, 0.05)
    """Axis of the grid: initial noise on the gradient, per entry, relative to the norm of the gradient array."""
    noise_decays: tuple[float, ...] = (0.99, 1.0)
    """Axis of the grid: factor on the noise per step."""
    dropouts: tuple[float, ...] = (0.0, 0.05)
    """Axis of the grid: dropout rate."""
    learning_rates: tuple[float, ...] = (0.05, 0.15)
    """Axis of the grid: learning rate of SGD."""
    momenta: tuple[float, ...] = (0.0, 0.7)
    """Axis of the grid: heavy-ball momentum of SGD."""
    weight_decays: tuple[float, ...] = (0.0,)
    """Axis of the grid: coupled weight decay on all parameters."""
    seeds: tuple[int, ...] = tuple(range(20))
    """Seeds, one base network each, with one clone at every point of the grid."""
    batch_size: int = 16
    """Examples per step."""
    base_steps: int = 500
    """Training of the base before cloning, without noise, dropout, momentum or decay."""
    base_learning_rate: float = 0.1
    """Learning rate of the base."""
    clone_steps: int = 500
    """Training of the clones."""
    record_every: int = 25
    """Steps between two measurements of R²."""
    probe_samples: int = 200
    """Examples on which R² is measured."""
    linear: bool = False
    """Run every clone's linear theory beside it: same batches and dropout masks, other noise; not with batch norm."""


@dataclass(frozen=True)
class MLPConfig(OnMLP, Config):
    """Escape of a multilayer perceptron."""


@dataclass(frozen=True)
class CNNConfig(OnCNN, Config):
    """Escape of a convolutional network."""


@dataclass(frozen=True)
class ViTConfig(OnViT, Config):
    """Escape of a vision transformer."""


# Six points: noise of two sizes that stays or dies away; dropout; nothing.
_SIX: dict[str, Any] = {
    "noise_decays": (0.99, 1.0), "noise_scales": (0.0, 0.02), "dropouts": (0.0, 0.1), "learning_rates": (0.1,),
    "momenta": (0.0,), "base_steps": 300, "clone_steps": 800,
}  # fmt: skip

_MLP = MLPConfig(net=MLP(widths=(10, 10), activation="tanh", norm="none"))

PRESETS: dict[str, dict[str, Config]] = {
    "mlp": {
        "quick": replace(_MLP, clone_steps=350),
        "full": replace(_MLP, noise_decays=(0.95, 0.99, 1.0), clone_steps=800),
        "linear": replace(_MLP, noise_decays=(0.95, 0.99, 1.0), linear=True),
    },
    "cnn": {"quick": CNNConfig(net=CNN(channels=(4, 8), dense=16), **_SIX)},
    "vit": {
        "quick": ViTConfig(net=ViT(patch=4, width=16, depth=1, heads=2, mlp_ratio=2.0), **_SIX),
    },
}
"""By model, then by name; the first of each is the default."""

Point = tuple[tuple[str, float], ...]
"""A point of the grid: `(("noise_scale", 0.01), ("noise_decay", 0.99), ...)`."""


def points_of(config: Config | Mapping[str, Any]) -> list[Point]:
    """The points of the grid, each once: without noise the decay makes no difference, and only the last is kept.

    Args:
        config: the dataclass, or the JSON of a run folder.
    """
    return [point for point in _product(config) if dict(point)["noise_scale"] > 0 or _is_last_decay(config, point)]


def values_of(config: Config | Mapping[str, Any], name: str) -> tuple[float, ...]:
    """The values of one axis."""
    field_name = AXES[name]
    return tuple(config[field_name] if isinstance(config, Mapping) else getattr(config, field_name))


def _product(config: Config | Mapping[str, Any]) -> Iterator[Point]:
    axes = ([(name, value) for value in values_of(config, name)] for name in AXES)
    return itertools.product(*axes)


def _is_last_decay(config: Config | Mapping[str, Any], point: Point) -> bool:
    return dict(point)["noise_decay"] == values_of(config, "noise_decay")[-1]
