"""Validation of the options shared by all architectures, before anything is built or compiled."""

from collections.abc import Callable, Sequence
from numbers import Real

import jax
import numpy as np

from lopjax.activation_checks import check_activation
from lopjax.activations import ACTIVATIONS as ALL_ACTIVATIONS
from lopjax.activations import Activation, activation_key
from lopjax.arguments.integers import as_integer
from lopjax.models.initialisation import INITIALISATIONS
from lopjax.models.layers import COMPUTE_DTYPES
from lopjax.models.norms import NORMS

ACTIVATIONS = ("relu", "leaky_relu", "tanh", "sigmoid", "gelu", "elu", "selu", "silu", "identity")
"""Names with which every architecture is tested; any elementwise function works (`lopjax.activations.activation`)."""


def check_options(
    input_shape: Sequence[int],
    num_classes: int,
    activation: str | Callable,
    norm: str,
    dropout: float,
    init: str,
    compute_dtype: str,
    **sizes: Sequence[int],
) -> None:
    """Raise ValueError, naming the field, its value and what is allowed, for the first option that is not valid.

    Args:
        input_shape: shape of one input.
        num_classes: number of logits.
        activation: name of the activation function, or an elementwise function.
        norm: name of the normalisation.
        dropout: rate in [0, 1).
        init: name of the initialisation.
        compute_dtype: name of the floating point type of the activations.
        sizes: further fields, each a non-empty sequence of positive integers.
    """
    for field, values in {"input_shape": input_shape, "num_classes": (num_classes,), **sizes}.items():
        check_positive(field, values)
    if isinstance(activation, str):
        check_choice("activation", activation, tuple(ALL_ACTIVATIONS))
    key = activation_key(activation)
    if isinstance(key, Activation):
        check_activation(key)
    check_choice("norm", norm, NORMS)
    check_choice("init", init, tuple(INITIALISATIONS))
    check_choice("compute_dtype", compute_dtype, COMPUTE_DTYPES)
    check_rate("dropout", dropout)


def check_image_shape(input_shape: Sequence[int]) -> None:
    """Raise ValueError unless `input_shape` is `(height, width, channels)`, three positive integers."""
    check_positive("input_shape", input_shape)
    if len(input_shape) != 3:
        raise ValueError(f"input_shape={input_shape!r}: must be (height, width, channels)")


def check_choice(field: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of the allowed names."""
    if value not in allowed:
        raise ValueError(f"{field}={value!r}: must be one of {list(allowed)}")


def check_rate(field: str, rate: float) -> None:
    """Raise ValueError unless `rate` is a number in [0, 1)."""
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0.0 <= rate < 1.0:
        raise ValueError(f"{field}={rate!r}: must be in [0, 1)")


def check_positive(field: str, values: Sequence[int]) -> None:
    """Raise ValueError unless `values` is a non-empty sequence of positive integers."""
    is_sequence = isinstance(values, Sequence | np.ndarray | jax.Array) and np.ndim(values) == 1
    if isinstance(values, str) or not is_sequence or len(values) == 0:
        raise ValueError(f"{field}={values!r}: must be a non-empty sequence of positive integers")
    for value in values:
        as_integer(value, 1, f"{field}={values!r}: {value!r} is not allowed; must be positive integers")
