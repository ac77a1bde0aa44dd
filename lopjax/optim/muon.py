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
    """Which axes of every kernel Optax's Muon takes for rows and columns; None for what it leaves to Adam.

    Left to itself, `optax.contrib.muon` takes every array of two axes, position embeddings and the biases of heads
    among them, and leaves kernels of more axes, of convolutions and of heads, to Adam.

    Args:
        wiring: wiring of the network.
        params: its parameters, or a tree like them.
        by_head: a head is a matrix of its own (see `lopjax.optim.matrix_axes`). If not, all heads of a layer are one.
        spare_ends: leave kernels that read the inputs or write the outputs to Adam, as Muon's author recommends for
            embeddings and heads of language models.

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
    r"""Muon, told by the wiring which axes of each kernel are rows and columns; Adam for all other arrays.

    The update of a kernel is :math:`-\alpha \sqrt{\max(1, \mathrm{columns}/\mathrm{rows})}\, UV'` with
    :math:`U S V'` the momentum as a matrix, singular values between about 0.7 and 1.2 (five Newton-Schulz steps). A
    kernel of a convolution is one matrix of `(height * width * inputs) x units`; each head is one.

    Args:
        learning_rate: :math:`\alpha`, a number or a schedule.
        wiring: wiring of the network.
        momentum: decay of the average that is orthogonalised, with Nesterov's look-ahead.
        weight_decay: decoupled, times the rate; of the kernels and of what Adam has.
        adam_learning_rate: learning rate of the arrays that are not kernels; `None` for the same.
        by_head: see `muon_dimension_numbers`.
        spare_ends: see `muon_dimension_numbers`.

    Returns:
        The optimizer.

    Raises:
        ValueError: If a concrete number is out of its range, or parameters are not the wiring's.

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
    return keep_dtypes(transform)
