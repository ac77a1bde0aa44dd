"""Validation of the options that all architectures share, before anything is built or compiled."""

from collections.abc import Sequence
from numbers import Integral, Real

from lopjax.models.initialisation import INITIALISATIONS
from lopjax.models.layers import NORMS

ACTIVATIONS = ("relu", "leaky_relu", "tanh", "sigmoid", "gelu", "elu", "selu", "silu", "identity")


def check_options(
    input_shape: Sequence[int],
    num_classes: int,
    activation: str,
    norm: str,
    dropout: float,
    init: str,
    **sizes: Sequence[int],
) -> None:
    """Raise ValueError, naming the field, its value and what is allowed, for the first option that is not valid.

    Args:
        input_shape: shape of one input.
        num_classes: number of logits.
        activation: name of the activation function.
        norm: name of the normalisation.
        dropout: rate in [0, 1).
        init: name of the initialisation.
        sizes: further fields, each a non-empty sequence of positive integers.
    """
    for field, values in {"input_shape": input_shape, "num_classes": (num_classes,), **sizes}.items():
        check_positive(field, values)
    for field, value, allowed in (
        ("activation", activation, ACTIVATIONS),
        ("norm", norm, NORMS),
        ("init", init, tuple(INITIALISATIONS)),
    ):
        if value not in allowed:
            raise ValueError(f"{field}={value!r}: must be one of {list(allowed)}")
    if isinstance(dropout, bool) or not isinstance(dropout, Real) or not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout!r}: must be in [0, 1)")


def check_positive(field: str, values: Sequence[int]) -> None:
    """Raise ValueError unless `values` is a non-empty sequence of positive integers."""
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) == 0:
        raise ValueError(f"{field}={values!r}: must be a non-empty sequence of positive integers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{field}={values!r}: {value!r} is not allowed; must be positive integers")
