"""Labelled normalisation layers, with PyTorch's conventions and statistics in at least float32."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import ones, zeros
from jaxtyping import Array, Float

from lopjax.models.initialisation import float_type
from lopjax.models.labels import couple, labelled
from lopjax.models.layers import along_units
from lopjax.wiring import Out

NORMS = ("none", "batch", "layer")


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's conventions (arXiv 1502.03167).

    Variance in two passes (the one-pass formula loses all digits at large means); running statistics are
    `0.9 old + 0.1 new`, the running variance unbiased; eps 1e-5. Flax's own layer differs in each of these, and its
    statistics carry no labels.
    """

    space: str
    site: str | None = None
    affine: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`(batch, ..., units)` to the same shape; updates the running statistics when `train`."""
        size = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", self._labelled(jnp.zeros), size, float_type())
        running_var = self.variable("batch_stats", "var", self._labelled(jnp.ones), size, float_type())
        if train:
            samples = x.size // x.shape[-1]
            y, mean, var = standardise(_widened(x), tuple(range(x.ndim - 1)), self.epsilon)
            if not self.is_initializing():
                running_mean.value = self._updated(running_mean.value, mean.reshape(size))
                running_var.value = self._updated(
                    running_var.value, var.reshape(size) * (samples / max(samples - 1, 1))
                )
        else:
            mean, var = along_units(running_mean.value, x), along_units(running_var.value, x)
            y = (_widened(x) - mean) * jax.lax.rsqrt(var + self.epsilon)
        return (_affine(self, y) if self.affine else y).astype(x.dtype)

    def _updated(self, running: jax.Array, new: jax.Array) -> jax.Array:
        return (self.momentum * running + (1 - self.momentum) * new).astype(running.dtype)

    def _labelled(self, init: Any) -> Any:
        return labelled(init, Out(self.space), site=self.site)


class LayerNorm(nn.Module):
    """Layer normalisation over the last `num_axes` axes (all of one sample's map: group norm with one group), eps 1e-5.

    Scale and offset are per unit. The layer couples the units, so only its own scale and offset belong to `site`.
    """

    space: str
    site: str | None = None
    affine: bool = True
    num_axes: int = 1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`(batch, ..., units)` to the same shape."""
        couple(self, self.space)
        y, *_ = standardise(_widened(x), tuple(range(x.ndim - self.num_axes, x.ndim)), self.epsilon)
        return (_affine(self, y) if self.affine else y).astype(x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def standardise(
    x: Float[Array, "..."], axes: tuple[int, ...], epsilon: float
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """`y = (x - mean) / sqrt(var + epsilon)`, mean and biased variance over `axes`.

    One sample, or the largest entry, is subtracted first: the rounded mean of equal large numbers would leave
    differences that the division by sqrt(epsilon) magnifies. So a constant becomes exactly 0, whatever its size.

    The derivative is `dy = (dx - mean(dx) - y mean(y dx)) / sqrt(var + epsilon)` (arXiv 1502.03167, section 3, as one
    formula). Differentiating the value instead adds two sums over memory, one of which is zero.

    Args:
        x: float32 or float64, any shape.
        axes: the axes to average over.
        epsilon: positive.

    Returns:
        `y`, with the shape of `x`; mean and variance with `axes` of size 1.
    """
    # Over units, their largest: a symmetric function of all units, whose rounding does not single out the first one.
    of_units = x.ndim - 1 in axes
    sample = tuple(slice(1) if axis in axes else slice(None) for axis in range(x.ndim))
    first = jnp.max(x, axes, keepdims=True) if of_units else x[sample]
    shifted = x - first
    mean = jnp.mean(shifted, axes, keepdims=True)
    deviation = shifted - mean
    var = jnp.mean(jnp.square(deviation), axes, keepdims=True)
    return deviation * jax.lax.rsqrt(var + epsilon), first + mean, var


@standardise.defjvp
def _(axes: tuple[int, ...], epsilon: float, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x,), (dx,) = primals, tangents
    y, mean, var = standardise(x, axes, epsilon)
    inverse = jax.lax.rsqrt(var + epsilon)
    dmean = jnp.mean(dx, axes, keepdims=True)
    slope = jnp.mean(y * dx, axes, keepdims=True)
    # Factors of one unit are multiplied before they are broadcast over the batch, which saves passes over memory.
    return (y, mean, var), (inverse * dx - inverse * dmean - y * (inverse * slope), dmean, 2 * slope / inverse)


def normalise(
    x: jax.Array, norm: str, space: str, site: str | None, affine: bool, train: bool, name: str, num_axes: int = 1
) -> jax.Array:
    """Apply the normalisation with a given name as a submodule; call this inside a module's compact method.

    Args:
        x: `(batch, ..., units)`.
        norm: one of `NORMS`.
        space: the unit space of the last axis.
        site: site that every path from the layer's scale and offset passes through.
        affine: whether there are a scale and an offset per unit.
        train: whether batch norm uses the statistics of this batch and updates its running ones.
        name: name of the submodule.
        num_axes: number of trailing axes that layer norm averages over.

    Returns:
        An array of the shape and dtype of `x`; `x` itself where `norm` is `"none"`.
    """
    if norm == "batch":
        return BatchNorm(space, site, affine, name=name)(x, train)
    if norm == "layer":
        return LayerNorm(space, site, affine, num_axes, name=name)(x)
    return x


def kernel_site(norm: str, site: str) -> str | None:
    """The site of a kernel and bias before a norm: `None` before layer norm, which couples the units.

    Under layer norm a unit that is dead at the site still affects mean and variance for the others, so its kernel has
    gradients. Batch norm acts on each unit separately.
    """
    return None if norm == "layer" else site


def _widened(x: jax.Array) -> jax.Array:
    """Statistics of 16-bit activations are computed in float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _affine(module: BatchNorm | LayerNorm, x: jax.Array) -> jax.Array:
    """Multiply by the unit's scale and add its offset."""
    size, dtype = (x.shape[-1],), float_type()
    scale = module.param("scale", labelled(ones, Out(module.space), site=module.site, scales=True), size, dtype)
    offset = module.param("offset", labelled(zeros, Out(module.space), site=module.site, scales=False), size, dtype)
    return x * along_units(scale, x) + along_units(offset, x)
