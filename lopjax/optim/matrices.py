"""Which axes of a kernel are rows and which are columns, read from the wiring."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lopjax.optim.checks import Params
from lopjax.wiring import In, Label, Out, Wiring


class MatrixAxes(NamedTuple):
    """How an array is read as a matrix or a batch of matrices.

    Attributes:
        batch: axes that index matrices: heads.
        rows: axes that are summed over: inputs and the positions of a kernel.
        columns: axes that are written.
    """

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def matrix_axes(wiring: Wiring, params: PyTree, by_head: bool = True) -> PyTree[MatrixAxes | None]:
    """The rows and columns of every kernel; None for an array that reads no unit space (bias, norm, positions).

    A kernel `(height, width, channels, units)` is a matrix of `height * width * channels` rows. A head is a unit with
    coordinates, which are the axis after it in the arrays that write it, `(inputs, heads, width of a head)`: each head
    has its own matrix on both sides, `inputs x width` for a query, `width x outputs` for an array that reads it. An
    axis that `nn.scan` puts before stacked layers cannot be distinguished from a position.

    Args:
        wiring: wiring of the network.
        params: parameters, or a tree like them, from which some arrays may be missing (`optax.masked`).
        by_head: whether heads have matrices of their own; if not, they are rows or columns like any unit.
    """
    heads = _spaces_with_coordinates(wiring)

    def axes(label: Label, array: Any) -> MatrixAxes | None:
        if not label.reads():
            return None
        written = set(label.output_axes)
        # The axis after a head that is written holds its coordinates.
        written |= {index + 1 for index in written if label.axes[index] in {Out(space) for space in heads}}
        of_heads = {axis.index for axis in label.unit_axes(heads)}
        batch = tuple(sorted(of_heads)) if by_head else ()
        columns = tuple(index for index in sorted(written) if index not in batch)
        rows = tuple(index for index in range(len(label.axes)) if index not in written and index not in batch)
        return MatrixAxes(batch, rows, columns) if rows and columns else None

    return wiring.map(axes, params, partial=True)


def map_matrices(
    function: Callable[..., Array], axes: PyTree[MatrixAxes | None], tree: Params, *rest: PyTree, others: Callable
) -> Params:
    """Apply `function(matrices, *rest)`, `(batch, rows, columns)` to the same shape, to every kernel.

    Args:
        function: called with a batch of matrices, and with the further trees' nodes unchanged.
        axes: result of `matrix_axes`.
        tree: tree whose arrays are reshaped and passed first.
        rest: further trees, of which `axes` is a prefix.
        others: applied to `(array, *rest)` for every array that is not a kernel.
    """

    def apply(kind: MatrixAxes | None, array: Array, *nodes: PyTree) -> Array:
        if kind is None:
            return others(array, *nodes)
        matrices, restore = as_matrices(array, kind)
        return restore(function(matrices, *nodes))

    return jax.tree.map(apply, axes, tree, *rest, is_leaf=_is_kind)


def as_matrices(array: Array, axes: MatrixAxes) -> tuple[Float[Array, "batch rows columns"], Callable[[Array], Array]]:
    """The matrices of an array, and the inverse map."""
    order = (*axes.batch, *axes.rows, *axes.columns)
    moved = jnp.transpose(array, order)
    shape = tuple(prod(array.shape[index] for index in part) for part in axes)
    back = tuple(order.index(index) for index in range(array.ndim))
    return moved.reshape(shape), lambda matrices: jnp.transpose(matrices.reshape(moved.shape), back)


def _is_kind(node: object) -> bool:
    return node is None or isinstance(node, MatrixAxes)


def _spaces_with_coordinates(wiring: Wiring) -> frozenset[str]:
    """Spaces whose units are followed by an axis of coordinates in some kernel that writes them."""
    return frozenset(
        units.space
        for _, label in wiring.labels
        for units, behind in zip(label.axes[-2:-1], label.axes[-1:], strict=False)
        if label.reads() and isinstance(units, Out) and not isinstance(behind, In) and wiring.is_coordinate(behind)
    )
