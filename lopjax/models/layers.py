"""Labelled layers: every array says which unit space each of its axes reads or writes."""

from math import prod
from numbers import Real
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import ones, zeros

from lopjax.models.initialisation import INITIALISATIONS, float_type
from lopjax.models.labels import labelled
from lopjax.wiring import In, Out

NORMS = ("none", "batch", "layer")


class Dense(nn.Module):
    """`y = x W + b`, contracting the last `contract` axes of `x`; only the very last one is a unit axis.

    Flattening a map and multiplying is `contract=3` with a `(height, width, channels, units)` kernel.

    Attributes:
        reads: unit space of the last axis of the input.
        writes: unit space of the output.
        size: number of units of the output.
        site: site that every path from this layer passes (see `lopjax.wiring.Label`).
        source: site, or input space, read directly, if the output is the pre-activation of `site` (ditto).
        initialisation: its name.
        contract: number of trailing axes of the input to sum over.
    """

    reads: str
    writes: str
    size: int
    site: str | None = None
    source: str | None = None
    initialisation: str = "pytorch"
    contract: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`(batch, ..., *contracted)` to `(batch, ..., units)`."""
        contracted = x.shape[x.ndim - self.contract :]
        init = INITIALISATIONS[self.initialisation](range(self.contract), prod(contracted))
        axes = (*[None] * (self.contract - 1), In(self.reads), Out(self.writes))
        kernel_init = labelled(init.kernel, *axes, site=self.site, source=self.source)
        bias_init = labelled(init.bias, Out(self.writes), site=self.site)
        kernel = self.param("kernel", kernel_init, (*contracted, self.size), float_type())
        bias = self.param("bias", bias_init, (self.size,), float_type())
        return jnp.tensordot(x, kernel, self.contract) + bias


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
        size, dtype = (x.shape[-1],), float_type()
        running_mean = self.variable("batch_stats", "mean", self._labelled(jnp.zeros), size, dtype)
        running_var = self.variable("batch_stats", "var", self._labelled(jnp.ones), size, dtype)
        mean, var = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            samples = x.size // x.shape[-1]
            mean = jnp.mean(x, axes)
            var = jnp.mean(jnp.square(x - mean), axes)
            if not self.is_initializing():
                unbiased = var * (samples / max(samples - 1, 1))
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
        x = (x - mean) * jax.lax.rsqrt(var + self.epsilon)
        return _affine(self, x) if self.affine else x

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
        axes = tuple(range(x.ndim - self.num_axes, x.ndim))
        centred = x - jnp.mean(x, axes, keepdims=True)
        x = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + self.epsilon)
        return _affine(self, x) if self.affine else x


def _affine(module: BatchNorm | LayerNorm, x: jax.Array) -> jax.Array:
    """Multiply by the unit's scale and add its offset."""
    size, dtype = (x.shape[-1],), float_type()
    scale = module.param("scale", labelled(ones, Out(module.space), site=module.site), size, dtype)
    offset = module.param("offset", labelled(zeros, Out(module.space), site=module.site), size, dtype)
    return x * scale + offset


def dropout(module: nn.Module, x: jax.Array, rate: float, override: Any, train: bool) -> jax.Array:
    """Inverted dropout: in training each entry is 0 with probability `rate`, otherwise divided by `1 - rate`.

    Args:
        module: the calling module; draws from its `"dropout"` stream.
        x: activations.
        rate: the model's own rate. A rate that is the Python number 0 draws nothing.
        override: replaces it when not `None`; may be traced, so that several rates share one compiled program.
        train: whether to drop at all.
    """
    rate = rate if override is None else override
    if not train or (isinstance(rate, Real) and rate == 0):
        return x
    if isinstance(rate, Real) and not 0 < rate < 1:
        raise ValueError(f"dropout_rate={rate!r}: must be in [0, 1)")
    if not module.has_rng("dropout"):
        raise ValueError("train=True with dropout needs a random key: pass key=jax.random.key(...) to Model.apply")
    keep = 1.0 - jnp.asarray(rate, x.dtype)
    return jnp.where(jax.random.bernoulli(module.make_rng("dropout"), keep, x.shape), x / keep, 0.0)
