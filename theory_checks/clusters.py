"""Clusters of clones in NumPy, from the definitions: points of BC, V and RE, and what leaves them.

The checks measure with these, not with the library's projectors: two roads to one number, and nothing to compile.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.cloning import Partition
from lopjax.model import Variables
from lopjax.wiring import In, Label, Out, Wiring


def unequal_partition(wiring: Wiring) -> dict[str, tuple[int, ...]]:
    """Clusters of 1, 3, 5, ... adjacent units in every space that is cloned by default."""
    return {space: tuple(isqrt(unit) for unit in range(wiring.size(space))) for space in wiring.cloned_by_default}


def averaging_matrix(ids: tuple[int, ...]) -> np.ndarray:
    """`P[i, j] = 1 / |cluster|` where units i and j share a cluster, else 0."""
    same = np.equal.outer(ids, ids)
    return same / same.sum(axis=1, keepdims=True)


class Decomposition(NamedTuple):
    """A tree split into four orthogonal parts, array by array; P averages along the axes of one side, Q = I - P.

    Attributes:
        constant: `P_in P_out`, equal inside every block: BC, the tangent space of every leaf.
        incoming: `P_in Q_out`, unequal totals of receiving clones; zero on RE.
        outgoing: `Q_in P_out`, unequal totals of sending clones; zero on CE.
        gauge: `Q_in Q_out`, redistributions that change no total.
    """

    constant: Any
    incoming: Any
    outgoing: Any
    gauge: Any


def split(wiring: Wiring, partition: Partition, tree: Any) -> Decomposition:
    """Split parameters, variables or an update, in the dtype of its arrays."""

    def decompose(label: Label, leaf: Any) -> Decomposition:
        array = np.asarray(leaf)
        mean_in, mean_out = (_averages(array, label, side, partition) for side in (In, Out))
        constant = _averages(mean_in, label, Out, partition)
        return Decomposition(constant, mean_in - constant, mean_out - constant, array - mean_in - mean_out + constant)

    return _transposed(wiring.map(decompose, tree))


def _transposed(tree: Any) -> Decomposition:
    """From a tree of decompositions, a decomposition into trees."""
    return Decomposition(
        *(
            jax.tree.map(lambda p, i=i: p[i], tree, is_leaf=lambda node: isinstance(node, Decomposition))
            for i in range(4)
        )
    )


def _averages(array: np.ndarray, label: Label, side: type[In] | type[Out], partition: Partition) -> np.ndarray:
    for index, axis in enumerate(label.axes):
        if isinstance(axis, side) and axis.space in partition:
            averages = averaging_matrix(partition[axis.space]).astype(array.dtype)
            array = np.moveaxis(np.tensordot(averages, array, (1, index)), 0, index)
    return array


def take(tree: Any, *index: int) -> Any:
    """The entries of every array at an index of its leading axes."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def norm(*trees: Any) -> float:
    """Euclidean norm of all entries of all trees, accumulated in float64."""
    leaves = [np.asarray(leaf, np.float64) for tree in trees for leaf in jax.tree.leaves(tree)]
    return float(np.sqrt(sum(np.sum(leaf**2) for leaf in leaves)))


class Departure(NamedTuple):
    """Share of an update that leaves the leaf `W + BC`, and that leaves V = RE and CE; 0 for a zero update."""

    leaf: float
    v: float


def departure(wiring: Wiring, partition: Partition, update: Any) -> Departure:
    """`||P_N u|| / ||u||` for the normal spaces of the leaf and of V."""
    decomposition, size = split(wiring, partition, update), norm(update) or 1.0
    normal = norm(decomposition.incoming, decomposition.outgoing)
    return Departure(leaf=float(np.hypot(normal, norm(decomposition.gauge))) / size, v=normal / size)


def spread(signal: Any, ids: tuple[int, ...]) -> float:
    """Share of a signal `(..., units)` that differs inside clusters."""
    array = np.asarray(signal, np.float64)
    return norm(array - array @ averaging_matrix(ids)) / (norm(array) or 1.0)


class Points(NamedTuple):
    """Where a claim about clones is tested; each a tree of variables.

    Attributes:
        bc: block-constant: clones with equal weights.
        v: RE and CE but not BC: clones with unequal weights and equal totals.
        re: RE alone: units with equal activations and unequal outgoing totals.
        off: nothing holds.
    """

    bc: Variables
    v: Variables
    re: Variables
    off: Variables


def cloned_points(wiring: Wiring, partition: Partition, variables: Variables) -> Points:
    """Points of BC, V, RE and none of these, by leaving out parts of given variables; statistics count like biases."""
    constant, _, outgoing, gauge = split(wiring, partition, variables)

    def total(*trees: Mapping[str, Any]) -> Variables:
        return jax.tree.map(lambda *leaves: jnp.asarray(sum(leaves)), *trees)

    return Points(total(constant), total(constant, gauge), total(constant, gauge, outgoing), variables)
