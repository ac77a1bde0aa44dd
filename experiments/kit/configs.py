"""Fields shared by the configs of experiments: seeds, optimizer and, for images, data and architecture.

Nothing here imports JAX. An experiment on images adds its own fields in a subclass `Config(ImageConfig)`, and has one
config per architecture: `class CNNConfig(OnCNN, Config)`, whose `--net.*` flags are those of the architecture.
"""

from dataclasses import dataclass, field
from typing import Literal

from experiments.kit.networks import CNN, GPT, MLP, Network, ResNet18, ViT

ModelName = Literal["mlp", "cnn", "resnet18", "vit", "gpt"]


@dataclass(frozen=True)
class TrainingConfig:
    """Training of networks, with and without noise or dropout."""

    seeds: tuple[int, ...] = (0,)
    """Seeds, one run per seed."""
    batch_size: int = 128
    """Examples per step."""
    learning_rate: float = 0.1
    """Learning rate of SGD, without momentum or weight decay."""
    adam_learning_rate: float = 0.001
    """Of Adam."""
    noise_scale: float = 0.01
    """Initial noise on the gradient, per entry, relative to the norm of the gradient array."""
    noise_decay: float = 1.0
    """Factor by which the noise on the gradient changes per step."""
    dropout: float = 0.1
    """Rate of the dropout method; the other methods have no dropout."""
    probe_samples: int = 500
    """Number of examples on which symptoms are measured."""
    metrics: tuple[str, ...] = ()
    """Your own metrics to record in addition: package.module:function, of a lopjax.metrics.SiteActivity."""


@dataclass(frozen=True)
class ImageConfig(TrainingConfig):
    """Training of networks on images."""

    dataset: str = "digits"
    """"digits" or any prepared TFDS image classification set."""
    augment: bool = False
    """Random crops (an eighth of the image's height as padding) and horizontal flips."""
    model: ModelName = "mlp"
    """Architecture."""
    net: Network = field(default_factory=MLP)
    """The network."""


@dataclass(frozen=True)
class OnMLP:
    """On a multilayer perceptron."""

    net: MLP = field(default_factory=MLP)
    """The network."""


@dataclass(frozen=True)
class OnCNN:
    """On a convolutional network."""

    model: ModelName = "cnn"
    """Architecture."""
    net: CNN = field(default_factory=CNN)
    """The network."""


@dataclass(frozen=True)
class OnResNet18:
    """On a residual network."""

    model: ModelName = "resnet18"
    """Architecture."""
    net: ResNet18 = field(default_factory=ResNet18)
    """The network."""


@dataclass(frozen=True)
class OnViT:
    """On a vision transformer."""

    model: ModelName = "vit"
    """Architecture."""
    net: ViT = field(default_factory=ViT)
    """The network."""
    adam_learning_rate: float = 1e-4
    """Of Adam."""


@dataclass(frozen=True)
class OnGPT:
    """On a causal transformer, and text."""

    model: ModelName = "gpt"
    """Architecture."""
    net: GPT = field(default_factory=GPT)
    """The network."""
