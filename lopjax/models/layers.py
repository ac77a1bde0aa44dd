"""Labelled layers: every array says which unit space each of its axes reads or writes.

A layer computes in the floating point type of its input and casts its parameters to it, so a model chooses the type
once, with `to_compute_type` on its input.
"""

from math import prod
from numbers import Real
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lopjax.models.convolution import convolve
from lopjax.models.initialisation import INITIALISATIONS, float_type
from lopjax.models.labels import labelled
from lopjax.wiring import In, Out, Window

COMPUTE_DTYPES = ("float32", "bfloat16")


class Dense(nn.Module):
    """`y = x W + b`, summed over the last axis of `x`, or over its last few.

    Flattening a map and multiplying is `reads=(None, None, "channels")`, with a kernel of shape `(height, width,
    channels, units)`.

    Attributes:
        reads: unit space of the last axis of the input, or one for each of the axes that are summed over; `None` for an
            axis that indexes no units.
        writes: unit space of the output.
        size: number of units of the output.
        site: site that every path from this layer passes through (see `lopjax.wiring.Label`).
        source: site, or input space, read directly, if the output is the pre-activation of `site` (see there).
        initialisation: its name.
    """

    reads: str | tuple[str | None, ...]
    writes: str
    size: int
    site: str | None = None
    source: str | None = None
    initialisation: str = "pytorch"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`(batch, ..., *summed)` to `(batch, ..., units)`."""
        reads = (self.reads,) if isinstance(self.reads, str) else self.reads
        summed = x.shape[x.ndim - len(reads) :]
        init = INITIALISATIONS[self.initialisation](prod(summed), self.size)
        axes = (*(None if space is None else In(space) for space in reads), Out(self.writes))
        kernel_init = labelled(init.kernel, *axes, site=self.site, source=self.source, scales=False)
        bias_init = labelled(init.bias, Out(self.writes), site=self.site, scales=False)
        kernel = self.param("kernel", kernel_init, (*summed, self.size), float_type())
        bias = self.param("bias", bias_init, (self.size,), float_type())
        return add_to_units(product(x, kernel.astype(x.dtype), len(reads)), bias)


class Conv(nn.Module):
    """Convolution with a square kernel of odd size, centred, zeros outside the map (PyTorch: `padding=size // 2`).

    Attributes:
        reads: unit space of the channels of the input.
        writes: unit space of the output.
        size: number of units of the output.
        kernel_size: height and width of the kernel.
        stride: step between the positions of the kernel, along both axes.
        site: as in `Dense`.
        source: as in `Dense`; a kernel with a source also carries its `Window`.
        initialisation: its name.
        use_bias: whether there is a bias.
    """

    reads: str
    writes: str
    size: int
    kernel_size: int = 3
    stride: int = 1
    site: str | None = None
    source: str | None = None
    initialisation: str = "pytorch"
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`(batch, height, width, channels)` to `(batch, ceil(height / stride), ceil(width / stride), units)`."""
        half = self.kernel_size // 2
        window = Window((self.stride, self.stride), ((half, half), (half, half)))
        positions, channels = self.kernel_size**2, x.shape[-1]
        init = INITIALISATIONS[self.initialisation](positions * channels, positions * self.size)
        kernel_init = labelled(
            init.kernel,
            *(None, None, In(self.reads), Out(self.writes)),
            site=self.site,
            source=self.source,
            window=None if self.source is None else window,
            scales=False,
        )
        shape = (self.kernel_size, self.kernel_size, channels, self.size)
        y = convolve(x, self.param("kernel", kernel_init, shape, float_type()).astype(x.dtype), window)
        if not self.use_bias:
            return y
        bias_init = labelled(init.bias, Out(self.writes), site=self.site, scales=False)
        return add_to_units(y, self.param("bias", bias_init, (self.size,), float_type()))


def product(x: jax.Array | np.ndarray, kernel: jax.Array | np.ndarray, summed: int) -> jax.Array:
    """`jnp.tensordot(x, kernel, summed)`, as a product of two matrices: all samples and positions are rows.

    With the axes of a sequence or a map left apart, XLA transposes the gradient of the output, a copy of every row, to
    make that of the kernel; of a residual stream it even computes the whole sum again for each such copy.

    Args:
        x: `(batch, ..., *summed axes)`.
        kernel: `(*summed axes, ...)`, in the type of `x`.
        summed: number of axes to sum over.

    Returns:
        `(batch, ..., ...)`: the axes that are left of `x`, then those of `kernel`.
    """
    kept, written = x.shape[: x.ndim - summed], kernel.shape[summed:]
    size = prod(kernel.shape[:summed])
    rows = jnp.matmul(x.reshape(prod(kept), size), kernel.reshape(size, prod(written)))
    return rows.reshape(*kept, *written)


def add_to_units(x: jax.Array, shift: jax.Array | np.ndarray) -> jax.Array:
    """Add one number to each unit of the last axis, in the type of `x`."""
    return x + along_units(shift.astype(x.dtype), x)


def along_units(vector: jax.Array | np.ndarray, x: jax.Array) -> jax.Array:
    """One number per unit, `(units,)`, reshaped to the axes of `x` without implicit rank promotion."""
    return jnp.expand_dims(vector, range(x.ndim - 1))


def to_compute_type(x: jax.Array, compute_dtype: str) -> jax.Array:
    """Cast a network's input to the type in which it computes.

    Args:
        x: any real array.
        compute_dtype: `"bfloat16"`, or `"float32"` for the type of the parameters (float64 under `jax.enable_x64`).
    """
    return x.astype(jnp.bfloat16 if compute_dtype == "bfloat16" else float_type())


def dropout(module: nn.Module, x: jax.Array, rate: float, override: Any, train: bool) -> jax.Array:
    """Inverted dropout: in training each entry is 0 with probability `rate`, otherwise divided by `1 - rate`.

    Args:
        module: the calling module; draws from its `"dropout"` stream.
        x: activations.
        rate: the model's own rate. With the Python number 0, nothing is drawn.
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
    # In bfloat16 a rate of 0.001 would round to 0, and 0.999 to 1.
    keep = 1.0 - jnp.asarray(rate, jnp.promote_types(x.dtype, jnp.float32))
    key = module.make_rng("dropout")
    # A traced rate may be 0 in some lanes: these draw nothing.
    kept = jax.lax.cond(keep < 1, lambda: jax.random.bernoulli(key, keep, x.shape), lambda: jnp.ones(x.shape, bool))
    return jnp.where(kept, x / keep, 0.0).astype(x.dtype)
