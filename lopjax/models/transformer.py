"""The common part of this library's transformers: a residual stream, with attention and an MLP in each block."""

from math import isfinite
from numbers import Real
from typing import Any

import jax

from lopjax.models.attention import SelfAttention
from lopjax.models.labels import tap
from lopjax.models.layers import Dense, dropout
from lopjax.models.network import Network
from lopjax.models.norms import normalise
from lopjax.models.options import check_rate


class Transformer(Network):
    """Block k adds attention with heads `heads_k`, then an MLP `mlp_k`, to the stream `width`; norms come first.

    Every write to the stream is observed: sites `embedding`, `attention_0`, `block_0`, `attention_1`, ... of the space
    `width`, without an activation. What is written at a site passes through it unit by unit; earlier writes pass
    through it too, but also through the attention or MLP in between.
    """

    depth: int
    head_width: int
    attention_dropout: float

    def blocks(self, x: jax.Array, train: bool, dropout_rate: Any, is_causal: bool) -> jax.Array:
        """Embedded tokens through all blocks and a last norm; call it inside a compact method.

        Args:
            x: `(batch, tokens, units)`.
            train: as in `Model.apply`.
            dropout_rate: as in `Model.apply`.
            is_causal: whether a token attends only to itself and earlier tokens, or to all.
        """
        sizes = dict(self.sizes)

        def drop(values: jax.Array) -> jax.Array:
            return dropout(self, values, self.dropout, dropout_rate, train)

        def norm(values: jax.Array, name: str) -> jax.Array:
            return normalise(values, self.norm, "width", None, self.affine, train, name)

        x = drop(tap(self, "embedding", "width", "identity", x))
        for k in range(self.depth):
            attention = self._attention(k, sizes, is_causal)
            x = x + drop(attention(norm(x, f"heads_{k}_norm"), train=train, dropout_rate=dropout_rate))
            x = tap(self, f"attention_{k}", "width", "identity", x)
            space = f"mlp_{k}"
            # Without a norm the first layer of the MLP reads the stream directly.
            source = f"attention_{k}" if self.norm == "none" else None
            hidden = Dense("width", space, sizes[space], space, source, self.initialisation, name=space)
            out = Dense(space, "width", sizes["width"], f"block_{k}", None, self.initialisation, name=f"{space}_out")
            h = tap(self, space, space, self.activation, hidden(norm(x, f"{space}_norm")))
            x = tap(self, f"block_{k}", "width", "identity", x + drop(out(drop(h))))
        return norm(x, "norm")

    def _attention(self, k: int, sizes: dict[str, int], is_causal: bool) -> SelfAttention:
        return SelfAttention(
            "width",
            sizes["width"],
            f"heads_{k}",
            sizes[f"heads_{k}"],
            self.head_width,
            sizes[f"heads_{k}_values"],
            f"attention_{k}",
            self.attention_dropout,
            self.initialisation,
            is_causal,
            name=f"heads_{k}",
        )


def transformer_fields(
    width: int, depth: int, heads: int, mlp_ratio: float, num_classes: int, dropout: float, attention_dropout: Any
) -> dict[str, Any]:
    """The fields of a `Transformer` that follow from its sizes, which `check_options` has accepted.

    Raises:
        ValueError: heads that do not divide the width, an MLP without units, a rate out of range.
    """
    rate = dropout if attention_dropout is None else attention_dropout
    check_rate("attention_dropout", rate)
    if width % heads:
        raise ValueError(f"heads={heads}: must divide width={width}")
    mlp_size = _mlp_size(width, mlp_ratio)
    blocks = [
        (space, int(size))
        for k in range(depth)
        for space, size in ((f"heads_{k}", heads), (f"heads_{k}_values", width // heads), (f"mlp_{k}", mlp_size))
    ]
    return {
        "sizes": (("width", int(width)), *blocks, ("classes", int(num_classes))),
        "depth": int(depth),
        "head_width": int(width) // int(heads),
        "attention_dropout": float(rate),
    }


def _mlp_size(width: int, mlp_ratio: float) -> int:
    is_number = isinstance(mlp_ratio, Real) and not isinstance(mlp_ratio, bool) and isfinite(mlp_ratio)
    if not is_number or width * mlp_ratio < 1:
        raise ValueError(f"mlp_ratio={mlp_ratio!r}: must be positive, with at least one unit for width={width}")
    return int(width * mlp_ratio)
