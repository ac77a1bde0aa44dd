"""What the activation theory experiment can be asked to do. Nothing here imports JAX."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """Alpha, kernel maps, rank recovery and frozen fractions of activations, and correlations of a trained MLP."""

    num_samples: int = 10_000
    """Samples of the hard-rank experiment."""
    num_units: int = 50
    """Units of the hard-rank experiment."""
    rank: int = 10
    """Rank of their pre-activations."""
    num_equicorrelated: int = 100
    """Units of the effective-rank experiment."""
    grid: int = 19
    """Points per axis of the heat maps over scale and shift."""
    depth: int = 30
    """Layers over which kernel maps are iterated."""
    train_steps: int = 2_000
    """SGD steps of the MLP on the digits."""
    seed: int = 0
    """Seed of the samples, the initialisation and the batches."""


PRESETS = {"quick": Config()}
