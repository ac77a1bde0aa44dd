"""The vision transformer (arXiv 2010.11929): one residual stream `width`, heads and an MLP per block."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lopjax.model import Model
from lopjax.models.constructors import recorded
from lopjax.models.initialisation import float_type, truncated_normal
from lopjax.models.labels import labelled
from lopjax.models.layers import Dense, to_compute_type
from lopjax.models.linen import from_linen
from lopjax.models.network import common_fields
from lopjax.models.options import check_image_shape, check_options
from lopjax.models.transformer import Transformer, transformer_fields
from lopjax.wiring import Out


class PatchEmbedding(nn.Module):
    """Tokens of the stream: a class token, then one projection per patch in reading order, each plus its position."""

    patch: int
    width: int
    initialisation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`(batch, height, width, channels)` to `(batch, 1 + patches, units)`."""
        batch, height, width, channels = x.shape
        rows, columns = height // self.patch, width // self.patch
        patches = x.reshape(batch, rows, self.patch, columns, self.patch, channels).swapaxes(2, 3)
        reads = (None, None, "input")
        projection = Dense(reads, "width", self.width, "embedding", None, self.initialisation, name="patches")
        tokens = projection(patches).reshape(batch, rows * columns, self.width)
        small = truncated_normal(0.02)
        class_init = labelled(small, Out("width"), site="embedding", scales=False)
        position_init = labelled(small, None, Out("width"), site="embedding", scales=False)
        class_token = self.param("class_token", class_init, (self.width,), float_type())
        positions = self.param("positions", position_init, (1 + rows * columns, self.width), float_type())
        class_tokens = jnp.broadcast_to(class_token.astype(x.dtype), (batch, 1, self.width))
        return jnp.concatenate([class_tokens, tokens], axis=1) + positions.astype(x.dtype)[None]


class ViT(Transformer):
    """Image patches as tokens, then the blocks, then a dense layer on the class token."""

    patch: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: Any = None) -> jax.Array:
        """`(batch, height, width, channels)` to `(batch, classes)`."""
        sizes = dict(self.sizes)
        x = to_compute_type(x, self.compute_dtype)
        x = PatchEmbedding(self.patch, sizes["width"], self.initialisation, name="embedding")(x)
        x = self.blocks(x, train, dropout_rate, is_causal=False)[:, 0].astype(float_type())
        return Dense("width", "classes", sizes["classes"], "classes", None, self.initialisation, name="classes")(x)


@recorded
def vit(
    input_shape: Sequence[int],
    num_classes: int,
    patch: int = 8,
    width: int = 384,
    depth: int = 6,
    heads: int = 6,
    mlp_ratio: float = 4.0,
    activation: str | Callable = "gelu",
    norm: str = "layer",
    affine: bool = True,
    dropout: float = 0.0,
    attention_dropout: float | None = None,
    init: str = "truncated_normal",
    compute_dtype: str = "float32",
) -> Model:
    """Build a vision transformer with class token, learned positions and norms before attention and MLP.

    Unit spaces: `width` (the residual stream), `heads_k` and `mlp_k` of each block, and the coordinates of its heads.
    The width of a head is `width / heads` and does not change when the stream or the heads are cloned. Its values'
    coordinates, `heads_k_values`, are cloned only if a factor names them; those of queries and keys, `heads_k_queries`,
    can be exchanged but not cloned. Sites: `heads_k` (`(batch, tokens, value width, heads)`), `mlp_k`, and, of the
    stream, `embedding`, `attention_k`, `block_k` after each write. The last layer reads the class token after a last
    norm.

    Args:
        input_shape: `(height, width, channels)` of one input; multiples of `patch`.
        num_classes: number of logits.
        patch: height and width of a patch.
        width: number of units of the residual stream, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads of each block.
        mlp_ratio: units of each MLP over units of the stream.
        activation: activation of the MLPs, a name in `lopjax.activations.ACTIVATIONS` or any elementwise function.
            Reuse the same function object: it identifies the model. Pass an `Activation` if verdicts need facts about
            it.
        norm: `"layer"` (per token), `"batch"` (over samples and tokens) or `"none"`.
        affine: whether the norm has a scale and an offset per unit.
        dropout: rate on the embedding, on the outputs of attention and MLP, and after the MLP's activation.
        attention_dropout: rate on the attention weights; `None` for the same rate. The `dropout_rate` argument of
            `Model.apply` replaces both rates.
        init: as in `mlp`; `"truncated_normal"` (standard deviation 0.02) is usual for transformers. Class token and
            positions are always drawn from it.
        compute_dtype: as in `mlp`.

    Returns:
        The model; the same arguments give the same object.

    Raises:
        ValueError: a bad argument; names it, what was given and what is allowed.

    Example:
        >>> from lopjax.models import vit
        >>> model = vit((8, 8, 3), 10, patch=4, width=8, depth=1, heads=2)
        >>> model.wiring.cloneable
        ('width', 'heads_0', 'mlp_0', 'heads_0_values')
        >>> model.wiring.cloned_by_default
        ('width', 'heads_0', 'mlp_0')

    References:
        arXiv 2010.11929, section 3.1; arXiv 2510.00304, appendix C.
    """
    check_image_shape(input_shape)
    shape = {"patch": (patch,), "width": (width,), "depth": (depth,), "heads": (heads,)}
    check_options(input_shape, num_classes, activation, norm, dropout, init, compute_dtype, **shape)
    if any(size % patch for size in input_shape[:2]):
        raise ValueError(f"patch={patch}: must divide the height and width of input_shape={input_shape!r}")
    module = ViT(
        patch=int(patch),
        **transformer_fields(width, depth, heads, mlp_ratio, num_classes, dropout, attention_dropout),
        **common_fields(activation, norm, affine, dropout, init, compute_dtype),
    )
    return from_linen(module, tuple(int(size) for size in input_shape))
