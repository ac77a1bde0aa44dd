"""Multi-head self-attention: the heads are a unit space, and so are the coordinates of a head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lopjax.models.initialisation import INITIALISATIONS, float_type
from lopjax.models.labels import coordinates, labelled, permutable, tap
from lopjax.models.layers import Dense, along_units, dropout, product
from lopjax.wiring import In, Out

QUERIES_MEET_KEYS = "queries meet keys: the products of clones would add up"


class HeadProjection(nn.Module):
    """Queries, keys or values: `y[..., h, d] = sum over k of x[..., k] W[k, h, d] + b[h, d]`.

    Attributes:
        reads: unit space of the stream.
        writes: unit space of the heads.
        coordinates: unit space of the coordinates of a head, shared by all heads.
        heads: number of heads.
        width: number of coordinates of a head.
        site: site of the heads' outputs.
        initialisation: its name.
    """

    reads: str
    writes: str
    coordinates: str
    heads: int
    width: int
    site: str
    initialisation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`(batch, tokens, units)` to `(batch, tokens, heads, width)`."""
        shape, axes = (self.heads, self.width), (Out(self.writes), Out(self.coordinates))
        init = INITIALISATIONS[self.initialisation](x.shape[-1], self.heads * self.width)
        kernel_init = labelled(init.kernel, In(self.reads), *axes, site=self.site)
        bias_init = labelled(init.bias, *axes, site=self.site)
        kernel = self.param("kernel", kernel_init, (x.shape[-1], *shape), float_type())
        bias = self.param("bias", bias_init, shape, float_type())
        return product(x, kernel.astype(x.dtype), 1) + along_units(bias.astype(x.dtype), x)


class SelfAttention(nn.Module):
    """`softmax(q k' / sqrt(head_width)) v` per head, tapped, then summed over heads into the stream.

    Two more unit spaces index the coordinates of the heads. Those of the values, `<heads_space>_values`, are summed
    over and can be cloned. Those of queries and keys, `<heads_space>_queries`, are multiplied with each other: they can
    be exchanged, but the products of clones would add up, and their scale is not a parameter.

    Attributes:
        stream: unit space read and written.
        width: its number of units.
        heads_space: unit space of the heads, and the site where their outputs are observed.
        heads: number of heads.
        head_width: number of coordinates of the queries and keys of a head.
        value_width: number of coordinates of its values.
        site: site of the stream that follows the residual sum.
        dropout: rate on the attention weights.
        initialisation: its name.
        is_causal: whether a token attends only to itself and earlier tokens, or to all.
    """

    stream: str
    width: int
    heads_space: str
    heads: int
    head_width: int
    value_width: int
    site: str
    dropout: float
    initialisation: str
    is_causal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: Any = None) -> jax.Array:
        """`(batch, tokens, units)` to the same shape."""
        queries, values = f"{self.heads_space}_queries", f"{self.heads_space}_values"
        coordinates(self, queries)
        coordinates(self, values)
        permutable(self, queries, QUERIES_MEET_KEYS)
        query, key = (self._project(queries, self.head_width, name)(x) for name in ("query", "key"))
        value = self._project(values, self.value_width, "value")(x)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * self.head_width**-0.5
        if self.is_causal:
            is_past = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
            scores = jnp.where(is_past, scores, -jnp.inf)
        # The softmax of 16-bit scores in float32: its sum runs over all tokens.
        weights = jax.nn.softmax(scores.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)
        weights = dropout(self, weights, self.dropout, dropout_rate, train)
        # Units last, so that the coordinates of a head count as samples.
        outputs = jnp.einsum("bhqk,bkhd->bqdh", weights, value)
        outputs = tap(self, self.heads_space, self.heads_space, "identity", outputs)
        reads = (values, self.heads_space)
        return Dense(reads, self.stream, self.width, self.site, None, self.initialisation, name="out")(outputs)

    def _project(self, coordinates: str, width: int, name: str) -> HeadProjection:
        heads = self.heads_space
        return HeadProjection(self.stream, heads, coordinates, self.heads, width, heads, self.initialisation, name=name)
