"""Architectures as options of a command line, one dataclass each, whose fields are its constructor's arguments.

The defaults are the paper's (arXiv 2510.00304, appendix C). A new architecture needs a dataclass here and a config in
each experiment that offers it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lopjax.model import Model

Init = Literal["pytorch", "lecun", "he", "he_fan_out", "truncated_normal"]


@dataclass(frozen=True)
class Network:
    """Options of every architecture."""

    activation: str = "relu"
    """relu, leaky_relu, tanh, sigmoid, gelu, elu, selu, silu or identity."""
    norm: Literal["batch", "layer", "none"] = "batch"
    """Normalisation before the activation; in a ViT, before attention and MLP."""
    affine: bool = True
    """Whether the norm has scale and offset."""
    init: Init = "pytorch"
    """Initialisation."""


@dataclass(frozen=True)
class MLP(Network):
    """Multilayer perceptron."""

    widths: tuple[int, ...] = (128,) * 5
    """Units of each hidden layer."""


@dataclass(frozen=True)
class CNN(Network):
    """Convolutional network: 3x3 convolutions with 2x2 pooling, then a dense layer."""

    channels: tuple[int, ...] = (64, 128, 256)
    """Units of each convolution."""
    dense: int = 512
    """Units of the dense layer."""
    pooling: Literal["max", "average", "none"] = "max"
    """Pooling after each activation."""


@dataclass(frozen=True)
class ResNet18(Network):
    """Residual network of basic blocks."""

    init: Init = "he_fan_out"
    """Initialisation."""
    width: int = 64
    """Units of the first stage; each further stage has twice as many."""
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    """Blocks of each stage."""


@dataclass(frozen=True)
class ViT(Network):
    """Vision transformer."""

    activation: str = "gelu"
    """Activation of the MLPs: relu, leaky_relu, tanh, sigmoid, gelu, elu, selu, silu or identity."""
    norm: Literal["batch", "layer", "none"] = "layer"
    """Normalisation before attention and MLP."""
    init: Init = "truncated_normal"
    """Initialisation."""
    patch: int = 8
    """Height and width of a patch."""
    width: int = 384
    """Units of the residual stream."""
    depth: int = 6
    """Blocks."""
    heads: int = 6
    """Attention heads of a block."""
    mlp_ratio: float = 4.0
    """Ratio of the units of an MLP to those of the residual stream."""


@dataclass(frozen=True)
class GPT(Network):
    """Causal transformer."""

    activation: str = "gelu"
    """Of the MLPs: relu, leaky_relu, tanh, sigmoid, gelu, elu, selu, silu or identity."""
    norm: Literal["batch", "layer", "none"] = "layer"
    """Normalisation before attention and MLP; batch sees later tokens in training."""
    init: Init = "truncated_normal"
    """Initialisation."""
    width: int = 128
    """Units of the residual stream."""
    depth: int = 4
    """Blocks."""
    heads: int = 4
    """Attention heads of a block."""
    mlp_ratio: float = 4.0
    """Units of an MLP over units of the stream."""
    tied: bool = True
    """Whether the logits are products with the token embeddings."""


def build_network(
    name: str, options: Network, input_shape: Sequence[int], num_classes: int, dropout: float = 0.0
) -> "Model":
    """The network made by a constructor of `lopjax.models`.

    Raises:
        ValueError: an option is out of range; the message names it.
    """
    from lopjax import models

    return getattr(models, name)(input_shape, num_classes=num_classes, dropout=dropout, **asdict(options))
