"""What the cloning experiment can be asked to do: the config and its presets. Nothing here imports JAX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from experiments.kit.configs import ImageConfig, OnCNN, OnGPT, OnMLP, OnResNet18, OnViT
from experiments.kit.grid import Grid
from experiments.kit.methods import METHODS
from experiments.kit.networks import CNN, GPT, MLP, ResNet18, ViT

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]


@dataclass(frozen=True)
class Config(ImageConfig):
    """Everything that decides the result."""

    dataset: str = "cifar10"
    """"digits" or any prepared TFDS image classification set."""
    label_noise: float = 0.0
    """Fraction of the training labels redrawn at random."""
    augment: bool = True
    """Random crops (4 pixels of padding) and horizontal flips."""
    factor: int = 2
    """Clones of every unit."""
    methods: tuple[MethodName, ...] = ("sgd", "noisy_sgd", "dropout", "adam")
    """What to train with, side by side."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds, one run per seed."""
    unit: Literal["epochs", "steps"] = "epochs"
    """Unit of the lengths below."""
    base_length: int = 20
    """Training of the base before cloning."""
    clone_length: int = 500
    """Training of base and clone side by side."""
    record_every: int = 1
    """How often symptoms are measured."""
    release_at: int = 0
    """How long after cloning SGD's clones, verified to be trapped, go on by every method, SGD among them; 0: the
    methods train from the start."""
    learning_rate: float = 0.01
    """Learning rate of SGD, with and without noise or dropout; there is no momentum and no weight decay."""
    noise_decay: float = 0.999
    """Noisy SGD: factor on the noise per step."""
    fused: bool = False
    """Compile SGD, noisy SGD and dropout as one program: half the compilation, but all three pay for drawing noise."""
    grid: Grid = ()
    """Axis of a grid over learning_rate, adam_learning_rate, noise_scale, noise_decay or dropout, run as lanes of one
    program; once per axis: noise_scale=0.01,0.02."""


@dataclass(frozen=True)
class MLPConfig(OnMLP, Config):
    """Cloning of a multilayer perceptron."""


@dataclass(frozen=True)
class CNNConfig(OnCNN, Config):
    """Cloning of a convolutional network."""


@dataclass(frozen=True)
class ResNet18Config(OnResNet18, Config):
    """Cloning of a residual network."""


@dataclass(frozen=True)
class ViTConfig(OnViT, Config):
    """Cloning of a vision transformer."""


@dataclass(frozen=True)
class GPTConfig(OnGPT, Config):
    """Cloning of a causal transformer."""

    dataset: str = "topics"
    """A text that ships with Python: topics, docstrings, or a package of the standard library."""
    augment: bool = False
    """Not for text."""
    num_words: int = 256
    """Tokens: the most frequent words and marks, all others being one; 0 for bytes."""
    length: int = 32
    """Inputs of a window of text; the labels are the tokens one place on."""
    num_windows: int = 512
    """Windows on which it is trained."""
    test_windows: int = 128
    """Windows on which it is tested; they follow the others in the text."""


_QUICK: dict[str, Any] = {
    "dataset": "digits", "label_noise": 0.5, "augment": False, "seeds": (0, 1), "unit": "steps",
    "batch_size": 32, "learning_rate": 0.1, "fused": True,
}  # fmt: skip
_SHORT = {**_QUICK, "base_length": 300, "clone_length": 1800, "record_every": 150}

PRESETS: dict[str, dict[str, Config]] = {
    "mlp": {
        "quick": MLPConfig(net=MLP(widths=(32,) * 5), base_length=500, clone_length=4000, record_every=250, **_QUICK),
        "paper": MLPConfig(),
        "reference": MLPConfig(augment=False, seeds=(0, 1, 2), base_length=5, clone_length=10),
    },
    "cnn": {"quick": CNNConfig(net=CNN(channels=(8, 16), dense=32), **_SHORT), "paper": CNNConfig()},
    "resnet18": {
        "quick": ResNet18Config(net=ResNet18(width=8, blocks=(1, 1)), **_SHORT),
        "paper": ResNet18Config(),
    },
    "vit": {
        "quick": ViTConfig(
            net=ViT(patch=4, width=32, depth=2, heads=4, mlp_ratio=2.0),
            adam_learning_rate=0.001,
            **{**_SHORT, "learning_rate": 0.3},
        ),
        "paper": ViTConfig(),
    },
    "gpt": {
        "quick": GPTConfig(
            net=GPT(width=16, depth=1, heads=2, activation="relu", tied=False),
            probe_samples=32,
            **{**_SHORT, "dataset": "topics", "label_noise": 0.0, "batch_size": 8, "learning_rate": 0.5},
        ),
    },
}
"""By model, then by name; the first of each is the default."""


def methods_of(methods: Sequence[str], release_at: int) -> tuple[str, ...]:
    """The methods of a run. Clones that SGD has trapped go on by methods of its kind; Adam's state is a different one.

    Example:
        >>> methods_of(("sgd", "dropout", "adam"), release_at=100)
        ('sgd', 'dropout')
    """
    kind = METHODS["sgd"].optimizer
    return tuple(method for method in methods if not release_at or METHODS[method].optimizer is kind)
