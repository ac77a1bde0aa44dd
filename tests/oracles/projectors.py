"""Projectors of cloned manifolds in numpy, float64: averaging matrices and Kronecker products, or means of runs."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.model import Model
from lopjax.wiring import In, Label, Out

# --- Any clusters: dense matrices --------------------


def averaging(ids):
    """P[i, j] = 1/|cluster| if i and j share a cluster."""
    same = np.equal.outer(ids, ids).astype(float)
    return same / same.sum(axis=1)


def kron_pieces(axes, shape, partition):
    """BC, incoming, outgoing, gauge as dense matrices on the flattened array."""
    means = {}
    for side in (In, Out):
        factors = [
            averaging(partition[axis.space]) if isinstance(axis, side) and axis.space in partition else np.eye(size)
            for axis, size in zip(axes, shape)
        ]
        means[side] = reduce(np.kron, factors)
    P, Q, identity = means[In], means[Out], np.eye(int(np.prod(shape)))
    return P @ Q, P @ (identity - Q), (identity - P) @ Q, (identity - P) @ (identity - Q)


def v_point(params, wiring, partition, scale=1.0):
    """A random point of V by numpy: BC plus gauge of random parameters; `scale` sets the gauge part."""

    def project(label, leaf):
        bc, _, _, gauge = kron_pieces(label.axes, leaf.shape, partition)
        return jnp.asarray(((bc + scale * gauge) @ np.asarray(leaf, np.float64).ravel()).reshape(leaf.shape))

    return wiring.map(project, params)


def block_diagonal(blocks):
    total = sum(len(block) for block in blocks)
    out, at = np.zeros((total, total)), 0
    for block in blocks:
        out[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return out


# --- Adjacent clones: means of runs --------------------


def block_mean(array: np.ndarray, label: Label, factors: Mapping[str, int]) -> np.ndarray:
    """Average over runs of adjacent clones along every cloned axis, in plain NumPy."""
    mean = np.asarray(array, np.float64)
    for index, axis in enumerate(label.axes):
        n = factors.get(axis.space, 1) if axis is not None else 1
        runs = [mean.take(range(i, i + n), index).mean(index, keepdims=True) for i in range(0, mean.shape[index], n)]
        mean = np.concatenate([np.repeat(run, n, index) for run in runs], index)
    return mean


def normal_fraction(model: Model, tree: Any, factors: Mapping[str, int]) -> float:
    """`||T - block mean of T|| / ||T||` over a whole tree of parameters or statistics."""
    labels, arrays = model.wiring.labels_of(tree), [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    normal = sum(np.sum((a - block_mean(a, label, factors)) ** 2) for a, label in zip(arrays, labels, strict=True))
    return float(np.sqrt(normal / sum(np.sum(a**2) for a in arrays)))


def block_constant_dimension(model: Model, params: Any, factors: Mapping[str, int]) -> int:
    """Trace of the block mean: what each entry of each array keeps of itself."""
    labels, arrays = model.wiring.labels_of(params), jax.tree.leaves(params)
    shares = 0.0
    for array, label in zip(arrays, labels, strict=True):
        for index in np.ndindex(array.shape):
            unit = np.zeros(array.shape)
            unit[index] = 1.0
            shares += block_mean(unit, label, factors)[index]
    return round(shares)
