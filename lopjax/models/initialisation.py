"""The initialisations that models offer by name, as `(kernel, bias)` initialisers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers

# Standard deviation of a standard normal variable truncated to [-2, 2].
TRUNCATED_DEVIATION = 0.87962566103423978


class Initialisation(NamedTuple):
    """Initialisers of one layer.

    Attributes:
        kernel: `(key, shape, dtype) -> array`.
        bias: the same, with the fans of the layer already bound.
    """

    kernel: Callable[..., jax.Array]
    bias: Callable[..., jax.Array]


def truncated_normal(deviation: float) -> Callable[..., jax.Array]:
    """Normal, truncated at two standard deviations, with the given standard deviation *after* truncation."""
    return initializers.truncated_normal(deviation / TRUNCATED_DEVIATION)


def _pytorch(fan_in: int, fan_out: int) -> Initialisation:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for kernels and biases: the default of torch.nn.Linear and Conv2d."""
    bound = fan_in**-0.5

    def uniform(key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Initialisation(uniform, uniform)


def _lecun(fan_in: int, fan_out: int) -> Initialisation:
    """Truncated normal of variance 1/fan_in, zero bias: the default of Flax."""
    return Initialisation(truncated_normal(fan_in**-0.5), initializers.zeros)


def _he(fan_in: int, fan_out: int) -> Initialisation:
    """Normal of variance 2/fan_in, zero bias (He et al., arXiv 1502.01852)."""
    return Initialisation(initializers.normal((2 / fan_in) ** 0.5), initializers.zeros)


def _he_fan_out(fan_in: int, fan_out: int) -> Initialisation:
    """Normal of variance 2/fan_out, zero bias, usual for residual networks (the same paper, section 2.2)."""
    return Initialisation(initializers.normal((2 / fan_out) ** 0.5), initializers.zeros)


def _truncated_normal(fan_in: int, fan_out: int) -> Initialisation:
    """Truncated normal of standard deviation 0.02 whatever the fans, zero bias, usual for transformers."""
    return Initialisation(truncated_normal(0.02), initializers.zeros)


INITIALISATIONS: dict[str, Callable[[int, int], Initialisation]] = {
    "pytorch": _pytorch,
    "lecun": _lecun,
    "he": _he,
    "he_fan_out": _he_fan_out,
    "truncated_normal": _truncated_normal,
}
"""By name: `(fan_in, fan_out) -> Initialisation`. The fans count kernel positions as well as units."""


def float_type() -> jnp.dtype:
    """Floating point type of new parameters: float32, or float64 under `jax.enable_x64`."""
    return jnp.dtype(jax.dtypes.canonicalize_dtype(float))
