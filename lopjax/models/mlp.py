"""The multilayer perceptron of the paper: [dense, norm, activation, dropout] x depth, then a dense layer."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from lopjax.model import Model
from lopjax.models.constructors import recorded
from lopjax.models.initialisation import float_type
from lopjax.models.labels import tap
from lopjax.models.layers import Dense, dropout, to_compute_type
from lopjax.models.linen import from_linen
from lopjax.models.network import Network, common_fields
from lopjax.models.norms import kernel_site, normalise
from lopjax.models.options import check_options


class MLP(Network):
    """Hidden layer k reads `hidden_{k-1}` and writes `hidden_k`; the first reads `input`, the last writes `classes`."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: Any = None) -> jax.Array:
        """`(batch, *input_shape)` to `(batch, classes)`; the input is flattened in C order."""
        x = to_compute_type(x.reshape((x.shape[0], -1)), self.compute_dtype)
        reads = "input"
        for space, size in self.sizes[:-1]:
            source = reads if self.norm == "none" else None
            x = Dense(reads, space, size, kernel_site(self.norm, space), source, self.initialisation, name=space)(x)
            x = normalise(x, self.norm, space, space, self.affine, train, name=f"{space}_norm")
            x = tap(self, space, space, self.activation, x)
            x = dropout(self, x, self.dropout, dropout_rate, train)
            reads = space
        space, size = self.sizes[-1]
        return Dense(reads, space, size, space, reads, self.initialisation, name=space)(x.astype(float_type()))


@recorded
def mlp(
    input_shape: Sequence[int],
    widths: Sequence[int],
    num_classes: int,
    activation: str | Callable = "relu",
    norm: str = "none",
    affine: bool = True,
    dropout: float = 0.0,
    init: str = "pytorch",
    compute_dtype: str = "float32",
) -> Model:
    """Build a multilayer perceptron. Unit spaces and sites: `hidden_0`, `hidden_1`, ...; fixed: `input`, `classes`.

    Args:
        input_shape: shape of one input, `(32, 32, 3)` for CIFAR-10; flattened.
        widths: number of units of each hidden layer.
        num_classes: number of logits.
        activation: a name in `lopjax.activations.ACTIVATIONS` or any elementwise function. Reuse the same function
            object: it identifies the model. Pass an `Activation` if verdicts need facts about it.
        norm: `"none"`, `"batch"` or `"layer"`, between the dense layer and the activation.
        affine: whether the norm has a scale and an offset per unit.
        dropout: rate after each activation, in [0, 1).
        init: `"pytorch"` (uniform +-1/sqrt(fan_in), biases too), or, with zero biases, `"lecun"`, `"he"`,
            `"he_fan_out"` or `"truncated_normal"` (see `lopjax.models.initialisation`).
        compute_dtype: `"float32"` (the parameters' own type, float64 under x64) or `"bfloat16"`: activations and matrix
            products in bfloat16; parameters, statistics of norms and logits stay float32. Not suitable for verdicts.

    Returns:
        The model; the same arguments give the same object.

    Raises:
        ValueError: a bad argument; names it, what was given and what is allowed.

    Example:
        >>> from lopjax.models import mlp
        >>> model = mlp((8, 8, 1), (32, 32), 10, activation="tanh")
        >>> model.wiring.cloneable
        ('hidden_0', 'hidden_1')

    References:
        arXiv 2510.00304, section 2 and appendix C: 5 x 128, ReLU, batch norm.
    """
    check_options(input_shape, num_classes, activation, norm, dropout, init, compute_dtype, widths=widths)
    sizes = tuple((f"hidden_{index}", int(width)) for index, width in enumerate(widths))
    module = MLP(
        sizes=(*sizes, ("classes", int(num_classes))),
        **common_fields(activation, norm, affine, dropout, init, compute_dtype),
    )
    return from_linen(module, tuple(int(size) for size in input_shape))
