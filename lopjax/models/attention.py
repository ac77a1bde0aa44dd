"""Multi-head self-attention whose heads are a unit space."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lopjax.models.initialisation import INITIALISATIONS, float_type
from lopjax.models.labels import labelled, tap
from lopjax.models.layers import Dense, along_units, dropout
from lopjax.wiring import In, Out


class HeadProjection(nn.Module):
    """Queries, keys or values: `y[..., h, d] = sum over k of x[..., k] W[k, h, d] + b[h, d]`.

    The axis along the width of a head does not index units: its coordinates are mixed by the products of queries with
    keys, and scaled by their number, so a head can only be cloned as a whole.
    """

    reads: str
    writes: str
    heads: int
    head_width: int
    site: str
    initialisation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`(batch, tokens, units)` to `(batch, tokens, heads, head_width)`."""
        shape = (self.heads, self.head_width)
        init = INITIALISATIONS[self.initialisation](x.shape[-1], self.heads * self.head_width)
        kernel_init = labelled(init.kernel, In(self.reads), Out(self.writes), None, site=self.site)
        bias_init = labelled(init.bias, Out(self.writes), None, site=self.site)
        kernel = self.param("kernel", kernel_init, (x.shape[-1], *shape), float_type())
        bias = self.param("bias", bias_init, shape, float_type())
        return jnp.tensordot(x, kernel.astype(x.dtype), 1) + along_units(bias.astype(x.dtype), x)


class SelfAttention(nn.Module):
    """`softmax(q k' / sqrt(head_width)) v` per head, tapped, then summed over heads into the stream.

    Attributes:
        stream: unit space read and written.
        width: its number of units.
        heads_space: unit space of the heads, and the site where their outputs are observed.
        heads: number of heads.
        head_width: number of coordinates of a head.
        site: site of the stream that follows the residual sum.
        dropout: rate on the attention weights.
        initialisation: its name.
    """

    stream: str
    width: int
    heads_space: str
    heads: int
    head_width: int
    site: str
    dropout: float
    initialisation: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: Any = None) -> jax.Array:
        """`(batch, tokens, units)` to the same shape."""
        query, key, value = (self._project(name)(x) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * self.head_width**-0.5
        # The softmax of 16-bit scores in float32: its sum runs over all tokens.
        weights = jax.nn.softmax(scores.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)
        weights = dropout(self, weights, self.dropout, dropout_rate, train)
        # Units last, so the coordinates of a head count as samples of it.
        outputs = jnp.einsum("bhqk,bkhd->bqdh", weights, value)
        outputs = tap(self, self.heads_space, self.heads_space, "identity", outputs)
        return Dense(
            self.heads_space, self.stream, self.width, self.site, None, self.initialisation, contract=2, name="out"
        )(outputs)

    def _project(self, name: str) -> HeadProjection:
        return HeadProjection(
            self.stream, self.heads_space, self.heads, self.head_width, self.heads_space, self.initialisation, name=name
        )
