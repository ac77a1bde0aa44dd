"""The initialisations a model can ask for by name, as `(kernel, bias)` initialisers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers


class Initialisation(NamedTuple):
    """Initialisers of a layer whose kernel has the given input axes.

    Attributes:
        kernel: `(key, shape, dtype) -> array`.
        bias: the same; the fan-in of the layer is already known to it.
    """

    kernel: Callable[..., jax.Array]
    bias: Callable[..., jax.Array]


def _pytorch(input_axes: Sequence[int], fan_in: int) -> Initialisation:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for kernels and biases: the default of torch.nn.Linear and Conv2d."""
    bound = fan_in**-0.5

    def uniform(key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Initialisation(uniform, uniform)


def _lecun(input_axes: Sequence[int], fan_in: int) -> Initialisation:
    """Truncated normal of variance 1/fan_in, zero bias: the default of Flax."""
    return Initialisation(initializers.lecun_normal(in_axis=tuple(input_axes)), initializers.zeros)


def _he(input_axes: Sequence[int], fan_in: int) -> Initialisation:
    """Normal of variance 2/fan_in, zero bias (He et al., arXiv 1502.01852)."""
    return Initialisation(initializers.variance_scaling(2.0, "fan_in", "normal", tuple(input_axes)), initializers.zeros)


INITIALISATIONS: dict[str, Callable[[Sequence[int], int], Initialisation]] = {
    "pytorch": _pytorch,
    "lecun": _lecun,
    "he": _he,
}


def float_type() -> jnp.dtype:
    """Floating point type of new parameters: float32, or float64 under `jax.enable_x64`."""
    return jnp.dtype(jax.dtypes.canonicalize_dtype(float))
