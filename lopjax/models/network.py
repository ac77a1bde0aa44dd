"""The fields shared by all architectures of the library, and how they are made from arguments."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from lopjax.activations import Activation, activation_key


class Network(nn.Module):
    """The fields of every architecture.

    Attributes:
        sizes: `(unit space, number of units)`, in the order of the forward pass; the last one is that of the logits.
        activation: name of the activation function, or an `Activation`.
        norm: name of the normalisation.
        affine: whether norms have a scale and an offset per unit.
        dropout: rate.
        initialisation: its name.
        compute_dtype: name of the floating point type of the activations.
    """

    sizes: tuple[tuple[str, int], ...]
    activation: str | Activation
    norm: str
    affine: bool
    dropout: float
    initialisation: str
    compute_dtype: str


def common_fields(
    activation: str | Callable, norm: str, affine: bool, dropout: float, init: str, compute_dtype: str
) -> dict[str, Any]:
    """The fields of a `Network` except its sizes, from arguments that `check_options` has accepted."""
    return {
        "activation": activation_key(activation),
        "norm": norm,
        "affine": bool(affine),
        "dropout": float(dropout),
        "initialisation": init,
        "compute_dtype": compute_dtype,
    }
