"""Elementwise activation functions by name, each with the points where it is not smooth."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Activation(NamedTuple):
    """An elementwise function that can be called, hashed and passed as a static argument of `jax.jit`.

    The kinks are what a numerical integral has to know: `lopjax.theory` splits its integrals there. A plain
    Python function works wherever an activation is expected and counts as smooth.

    Attributes:
        name: what tables, figures and messages call it.
        function: the elementwise function, differentiable by JAX.
        kinks: the points at which the function or one of its derivatives jumps, in ascending order; `()` if
            smooth.
    """

    name: str
    function: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    kinks: tuple[float, ...] = ()

    def __call__(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """Apply the function to every entry of `z`."""
        return self.function(z)


def _leaky_relu(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Slope 0.01 below zero, and at zero as in PyTorch (`jax.nn.leaky_relu` has slope 1 there)."""
    return jnp.where(z > 0, z, 0.01 * z)


def _exact_gelu(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """The GELU with the exact normal distribution function: PyTorch's default, not JAX's."""
    return jax.nn.gelu(z, approximate=False)


def _identity(z: Float[Array, "..."]) -> Float[Array, "..."]:
    return z


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Activation("relu", jax.nn.relu, (0.0,)),
            Activation("leaky_relu", _leaky_relu, (0.0,)),
            Activation("tanh", jnp.tanh),
            Activation("sigmoid", jax.nn.sigmoid),
            Activation("gelu", _exact_gelu),
            Activation("elu", jax.nn.elu, (0.0,)),
            Activation("selu", jax.nn.selu, (0.0,)),
            Activation("silu", jax.nn.silu),
            Activation("identity", _identity),
            Activation("erf", jax.scipy.special.erf),
            Activation("softplus", jax.nn.softplus),
            Activation("sin", jnp.sin),
            Activation("exp", jnp.exp),
        )
    }
)
"""Every named activation. The last four serve the theory; networks use the others."""


def activation(name: str) -> Activation:
    """Look an activation up by name.

    Args:
        name: one of `ACTIVATIONS`: "relu" (derivative 0 at 0), "leaky_relu" (slope 0.01), "tanh", "sigmoid",
            "gelu" (exact), "elu" (alpha 1), "selu", "silu", "identity", "erf", "softplus", "sin", "exp".

    Returns:
        The activation: call it on an array.

    Raises:
        ValueError: if there is no activation of that name.

    >>> activation("relu")(jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    >>> activation("relu").kinks
    (0.0,)
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r}: must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
