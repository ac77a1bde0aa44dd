"""Muon on the kernels of any wiring."""

from typing import Any

import jax
import optax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers
from optax.contrib import muon as optax_muon

from lopjax.optim.checks import check, check_is_wiring, keep_dtypes
from lopjax.optim.matrices import MatrixAxes, matrix_axes
from lopjax.wiring import Wiring


def muon_dimension_numbers(wiring: Wiring, params: PyTree, by_head: bool = True, spare_ends: bool = False) -> Any:
    """The axes of every kernel that Optax's Muon treats as rows and columns; None for arrays left to Adam.

    By default, `optax.contrib.muon` takes every array with two axes, including position embeddings and the biases of
    heads, and leaves kernels with more axes, those of convolutions and of heads, to Adam.

    Args:
        wiring: wiring of the network.
        params: its parameters, or a tree like them.
        by_head: whether each head is a separate matrix (see `lopjax.optim.matrix_axes`); otherwise all heads of a layer
            form one.
        spare_ends: whether to leave kernels that read the inputs or write the outputs to Adam, as Muon's author
            recommends for embeddings and heads of language models.

    Returns:
        A tree like `params` of `optax.contrib.MuonDimensionNumbers` or None.
    """
    ends = wiring.fixed if spare_ends else frozenset()

    def numbers(label: Any, kind: MatrixAxes | None) -> MuonDimensionNumbers | None:
        if kind is None or ends & {*label.reads(), *label.writes()}:
            return None
        return MuonDimensionNumbers(kind.rows, kind.columns)

    labels = iter(wiring.labels_of(params, partial=True))
    axes = matrix_axes(wiring, params, by_head)
    return jax.tree.map(
        lambda kind: numbers(next(labels), kind),
        axes,
        is_leaf=lambda node: node is None or isinstance(node, MatrixAxes),
    )


def muon(
    learning_rate: optax.ScalarOrSchedule,
    wiring: Wiring,
    *,
    momentum: jax.typing.ArrayLike = 0.95,
    weight_decay: jax.typing.ArrayLike = 0.0,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    by_head: bool = True,
    spare_ends: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Muon on kernels, whose rows and columns are read from the wiring, and Adam on all other arrays.

    The update of a kernel is :math:`-\alpha \sqrt{\max(1, \mathrm{columns}/\mathrm{rows})}\, UV'` with
    :math:`U S V'` the momentum as a matrix, singular values between about 0.7 and 1.2 (five Newton-Schulz steps). A
    kernel of a convolution is one matrix of `(height * width * inputs) x units`; each head is one. For 16-bit
    parameters it computes, and keeps its moments, in float32.

    Args:
        learning_rate: :math:`\alpha`, a number or a schedule.
        wiring: wiring of the network.
        momentum: decay of the average that is orthogonalised, with Nesterov's look-ahead.
        weight_decay: decoupled weight decay, multiplied by the learning rate; applies to kernels and to the arrays left
            to Adam.
        adam_learning_rate: learning rate of the arrays that are not kernels; `None` for the same.
        by_head: see `muon_dimension_numbers`.
        spare_ends: see `muon_dimension_numbers`.

    Returns:
        The optimizer.

    Raises:
        ValueError: a concrete number is out of its range, or parameters do not match the wiring.

    References:
        Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024; `optax.contrib.muon`.
    """
    check_is_wiring(wiring)
    if not callable(learning_rate):
        check("learning_rate", learning_rate, minimum=0.0)
    if adam_learning_rate is not None and not callable(adam_learning_rate):
        check("adam_learning_rate", adam_learning_rate, minimum=0.0)
    check("momentum", momentum, minimum=0.0, maximum=1.0)
    check("weight_decay", weight_decay, minimum=0.0)
    transform = optax_muon(
        learning_rate,
        beta=momentum,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        adam_learning_rate=adam_learning_rate,
        muon_weight_dimension_numbers=lambda params: muon_dimension_numbers(wiring, params, by_head, spare_ends),
    )
    return keep_dtypes(transform, is_widened=True)
