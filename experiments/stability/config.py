"""The options of the stability experiment. Nothing here imports JAX."""

from dataclasses import dataclass, field, replace

from experiments.kit.networks import MLP


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    dataset: str = "cifar10"
    """"digits" or any prepared TFDS image classification set."""
    net: MLP = field(default_factory=lambda: MLP(norm="none"))
    """The base network."""
    factor: int = 2
    """Clones of every unit."""
    epochs: tuple[int, ...] = (0, 1, 2, 5, 10)
    """Epochs on the first labels at which stability is measured; the last one ends the first task."""
    epochs_after: tuple[int, ...] = (0, 1, 2, 5)
    """The same after every label has been redrawn at random."""
    num_images: int = 10_000
    """Training images over which M_j is averaged."""
    learning_rate: float = 0.05
    """Learning rate of SGD, without momentum."""
    batch_size: int = 128
    """Examples per step."""
    seed: int = 0
    """Seed of the initialisation, the batches and the new labels."""


PRESETS = {
    "quick": Config(
        dataset="digits", net=MLP(widths=(32,) * 3, norm="none"), epochs=(0, 5, 10, 20, 40, 80),
        epochs_after=(0, 5, 10, 20, 40), num_images=1000, learning_rate=0.1, batch_size=32,
    ),
    "cifar10": Config(),
    "cifar10-batch-norm": replace(
        Config(), net=MLP(norm="batch"), epochs=(0, 1, 5), epochs_after=(0, 1), num_images=2000, learning_rate=0.01
    ),
}  # fmt: skip
