"""The causal transformer of language models (GPT-2): token after token, each from those before it."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import zeros

from lopjax.model import Model
from lopjax.models.constructors import recorded
from lopjax.models.initialisation import float_type, truncated_normal
from lopjax.models.labels import labelled, permutable
from lopjax.models.layers import Dense, add_to_units, product, to_compute_type
from lopjax.models.linen import from_linen
from lopjax.models.network import common_fields
from lopjax.models.options import check_options
from lopjax.models.transformer import Transformer, transformer_fields
from lopjax.wiring import Out

TABLE_READS_AND_WRITES = "the token embedding both writes and reads it, so it cannot be divided for reading alone"


class GPT(Transformer):
    """Token and position embeddings, then causal blocks; logits of the next token at every position.

    Attributes:
        length: number of positions.
        is_tied: whether the logits are products with the token embeddings themselves.
    """

    length: int
    is_tied: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: Any = None) -> jax.Array:
        """Tokens `(batch, time)`, integers, to `(batch, time, vocabulary)`."""
        self._check(x)
        (width, vocabulary), small = (dict(self.sizes)[name] for name in ("width", "classes")), truncated_normal(0.02)
        # A tied table also makes the logits: not all of its effects pass through the embedding.
        axes, site = ((Out("classes"), Out("width")), None) if self.is_tied else ((None, Out("width")), "embedding")
        token_init = labelled(small, *axes, site=site, scales=False)
        position_init = labelled(small, None, Out("width"), site="embedding", scales=False)
        table = self.param("tokens", token_init, (vocabulary, width), float_type())
        positions = self.param("positions", position_init, (self.length, width), float_type())
        embedded = table[x] + positions[None, : x.shape[1]]
        stream = self.blocks(to_compute_type(embedded, self.compute_dtype), train, dropout_rate, is_causal=True)
        stream = stream.astype(float_type())
        if not self.is_tied:
            head = Dense("width", "classes", vocabulary, "classes", None, self.initialisation, name="classes")
            return head(stream)
        permutable(self, "width", TABLE_READS_AND_WRITES)
        bias_init = labelled(zeros, Out("classes"), site="classes", scales=False)
        bias = self.param("bias", bias_init, (vocabulary,), float_type())
        return add_to_units(product(stream, table.T, 1), bias)

    def _check(self, x: jax.Array) -> None:
        if not jnp.issubdtype(x.dtype, jnp.integer) or x.ndim != 2 or x.shape[1] > self.length:
            raise ValueError(
                f"inputs: {x.dtype}{list(x.shape)}; must be tokens, integers (batch, time), of at most {self.length} "
                "positions"
            )


@recorded
def gpt(
    input_shape: Sequence[int],
    num_classes: int,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    mlp_ratio: float = 4.0,
    tied: bool = True,
    activation: str | Callable = "gelu",
    norm: str = "layer",
    affine: bool = True,
    dropout: float = 0.0,
    attention_dropout: float | None = None,
    init: str = "truncated_normal",
    compute_dtype: str = "float32",
) -> Model:
    """Build a causal transformer with learned positions and norms before attention and MLP.

    Inputs are tokens, integers `(batch, time)`, logits those of the next token, `(batch, time, vocabulary)`: position t
    is computed from the tokens up to t. Unit spaces and sites are those of `vit`. With tied embeddings the stream
    `width` can be permuted but not cloned, because one array both writes and reads it; equal units still stay equal.

    Args:
        input_shape: `(length,)`, the number of positions; shorter inputs are allowed.
        num_classes: size of the vocabulary, the number of logits. Tokens outside it are not refused: JAX clips them to
            the nearest index.
        width: number of units of the residual stream, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads of each block.
        mlp_ratio: units of each MLP over units of the stream.
        tied: whether the logits are products of the stream with the token embeddings, plus a bias; else a dense layer.
        activation: activation of the MLPs, as in `vit`.
        norm: `"layer"` (per token), `"none"`, or `"batch"` (over samples and positions: in train mode its statistics
            see later tokens, and the network is causal in eval mode only).
        affine: whether the norm has a scale and an offset per unit.
        dropout: rate on the embedding, on the outputs of attention and MLP, and after the MLP's activation.
        attention_dropout: as in `vit`.
        init: as in `vit`. The embeddings always have the standard deviation 0.02.
        compute_dtype: as in `mlp`.

    Returns:
        The model; the same arguments give the same object.

    Raises:
        ValueError: a bad argument; names it, what was given and what is allowed.

    Example:
        >>> from lopjax.models import gpt
        >>> gpt((16,), 50, width=8, depth=1, heads=2).wiring.cloneable
        ('heads_0', 'mlp_0', 'heads_0_values')
        >>> gpt((16,), 50, width=8, depth=1, heads=2, tied=False).wiring.cloneable
        ('width', 'heads_0', 'mlp_0', 'heads_0_values')

    References:
        Radford et al., "Language models are unsupervised multitask learners", 2019; without its smaller initial weights
        in deeper blocks.
    """
    sizes = {"width": (width,), "depth": (depth,), "heads": (heads,)}
    check_options(input_shape, num_classes, activation, norm, dropout, init, compute_dtype, **sizes)
    if len(input_shape) != 1:
        raise ValueError(f"input_shape={input_shape!r}: must be (length,), the number of positions")
    module = GPT(
        length=int(input_shape[0]),
        is_tied=bool(tied),
        **transformer_fields(width, depth, heads, mlp_ratio, num_classes, dropout, attention_dropout),
        **common_fields(activation, norm, affine, dropout, init, compute_dtype),
    )
    return from_linen(module, (int(input_shape[0]),), input_dtype=jnp.int32)
