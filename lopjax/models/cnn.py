"""The convolutional network of the paper: [convolution, norm, activation, pooling] x depth, dense layer, head."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from lopjax.model import Model
from lopjax.models.constructors import recorded
from lopjax.models.convolution import average_pool, max_pool
from lopjax.models.initialisation import float_type
from lopjax.models.labels import tap
from lopjax.models.layers import Conv, Dense, dropout, to_compute_type
from lopjax.models.linen import from_linen
from lopjax.models.network import Network, common_fields
from lopjax.models.norms import kernel_site, normalise
from lopjax.models.options import check_choice, check_image_shape, check_options

POOLINGS = ("max", "average", "none")


class CNN(Network):
    """Convolution k writes `conv_k`; the dense layer reads all positions of the last map, unit by unit."""

    pooling: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: Any = None) -> jax.Array:
        """`(batch, height, width, channels)` to `(batch, classes)`."""
        *convolutions, (dense, dense_size), (classes, num_classes) = self.sizes
        x = to_compute_type(x, self.compute_dtype)
        # Pooling does not mix units, so sites are unaffected; but the next kernel no longer reads the site itself.
        reads, source = "input", "input"
        for space, size in convolutions:
            x = Conv(
                reads,
                space,
                size,
                site=kernel_site(self.norm, space),
                source=source if self.norm == "none" else None,
                initialisation=self.initialisation,
                name=space,
            )(x)
            x = normalise(x, self.norm, space, space, self.affine, train, f"{space}_norm", num_axes=3)
            x = _pool(tap(self, space, space, self.activation, x), self.pooling)
            reads, source = space, space if self.pooling == "none" else None
        x = Dense((None, None, reads), dense, dense_size, dense, source, self.initialisation, name=dense)(x)
        x = tap(self, dense, dense, self.activation, x)
        x = dropout(self, x, self.dropout, dropout_rate, train).astype(float_type())
        return Dense(dense, classes, num_classes, classes, dense, self.initialisation, name=classes)(x)


def _pool(x: jax.Array, pooling: str) -> jax.Array:
    return {"max": max_pool, "average": average_pool}[pooling](x) if pooling != "none" else x


@recorded
def cnn(
    input_shape: Sequence[int],
    num_classes: int,
    channels: Sequence[int] = (64, 128, 256),
    dense: int = 512,
    activation: str | Callable = "relu",
    norm: str = "none",
    affine: bool = True,
    dropout: float = 0.0,
    init: str = "pytorch",
    pooling: str = "max",
    compute_dtype: str = "float32",
) -> Model:
    """Build a convolutional network. Unit spaces and sites: `conv_0`, `conv_1`, ..., `dense`.

    Kernels are 3x3 with stride 1 and one row of zeros on every side; each activation is followed by 2x2 pooling. The
    dense layer has no norm; it reads every position of the last map, kernel `(height, width, channels, units)`.

    Args:
        input_shape: `(height, width, channels)` of one input, `(32, 32, 3)` for CIFAR-10.
        num_classes: number of logits.
        channels: number of units of each convolution.
        dense: number of units of the dense layer.
        activation: a name in `lopjax.activations.ACTIVATIONS` or any elementwise function. Reuse the same function
            object: it identifies the model. Pass an `Activation` if verdicts need facts about it.
        norm: `"none"`, `"batch"`, or `"layer"` (over units and positions: group norm with one group), between each
            convolution and its activation.
        affine: whether the norm has a scale and an offset per unit.
        dropout: rate after the dense layer's activation, in [0, 1).
        init: as in `mlp`.
        pooling: `"max"`, `"average"` or `"none"`; without pooling (and norm) the stability blocks of every layer have a
            closed form.
        compute_dtype: as in `mlp`.

    Returns:
        The model; the same arguments give the same object.

    Raises:
        ValueError: a bad argument; names it, what was given and what is allowed.

    Example:
        >>> from lopjax.models import cnn
        >>> model = cnn((8, 8, 1), 10, channels=(8, 16), dense=32, norm="batch")
        >>> model.wiring.cloneable
        ('conv_0', 'conv_1', 'dense')

    References:
        arXiv 2510.00304, appendix C.
    """
    check_image_shape(input_shape)
    check_options(
        input_shape, num_classes, activation, norm, dropout, init, compute_dtype, channels=channels, dense=(dense,)
    )
    check_choice("pooling", pooling, POOLINGS)
    smallest = 1 if pooling == "none" else 2 ** len(channels)
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            f"input_shape={input_shape!r}: {len(channels)} times 2x2 pooling needs at least {smallest} x {smallest} "
            "pixels; give fewer channels or pooling='none'"
        )
    convolutions = tuple((f"conv_{index}", int(size)) for index, size in enumerate(channels))
    module = CNN(
        sizes=(*convolutions, ("dense", int(dense)), ("classes", int(num_classes))),
        pooling=pooling,
        **common_fields(activation, norm, affine, dropout, init, compute_dtype),
    )
    return from_linen(module, tuple(int(size) for size in input_shape))
