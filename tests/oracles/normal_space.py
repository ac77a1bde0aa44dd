"""Dense oracle for the stability of clones: the Hessian of the cloned network on the normal space, in numpy.

The normal space is written down as Kronecker products of cluster means and clone differences, one array at a time. It
shares nothing with the library but the labels of the arrays and the network itself.
"""

from functools import cache, reduce
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lopjax.wiring import In


class Normal(NamedTuple):
    """Hessian on the normal space of the leaf, how many of its directions are gauge, and the size of all of it."""

    hessian: np.ndarray
    basis: np.ndarray
    num_gauge: int
    size: float  # Frobenius norm of the whole Hessian, which its rounding is proportional to

    @property
    def eigenvalues(self):
        return np.linalg.eigvalsh((self.hessian + self.hessian.T) / 2)


def mean_vectors(ids):
    """Orthonormal indicator vectors of the clusters, one column each."""
    columns = np.equal.outer(np.asarray(ids), np.unique(ids)).astype(float)
    return columns / np.linalg.norm(columns, axis=0)


def difference_vectors(ids):
    """Orthonormal vectors that sum to zero in every cluster: (1, -1, 0, ...), (1, 1, -2, 0, ...), normalised."""
    ids, columns = np.asarray(ids), []
    for cluster in np.unique(ids):
        members = np.flatnonzero(ids == cluster)
        for k in range(1, len(members)):
            column = np.zeros(len(ids))
            column[members[:k]], column[members[k]] = 1.0, -k
            columns.append(column / np.linalg.norm(column))
    return np.array(columns).reshape(-1, len(ids)).T


def array_basis(axes, shape, partition):
    """Normal directions of one array, and how many are gauge: differences along a read *and* a written axis."""
    choices = [
        [(mean_vectors(partition[axis.space]), None), (difference_vectors(partition[axis.space]), type(axis))]
        if axis is not None and axis.space in partition
        else [(np.eye(size), None)]
        for axis, size in zip(axes, shape, strict=True)
    ]
    columns, num_gauge = [np.zeros((int(np.prod(shape)), 0))], 0
    for choice in product(*choices):
        sides = {side for _, side in choice if side is not None}
        if sides:
            columns.append(reduce(np.kron, [matrix for matrix, _ in choice]))
            num_gauge += columns[-1].shape[1] * (len(sides) == 2)
    return np.concatenate(columns, axis=1), num_gauge


def normal_basis(params, wiring, partition):
    """Orthonormal columns in the order of `ravel_pytree(params)`, and the number of gauge directions."""
    labels, blocks, num_gauge = dict(wiring.labels), [], 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        axes = labels["params", *(key.key for key in path)].axes
        block, gauge = array_basis(axes, leaf.shape, partition)
        blocks.append(block)
        num_gauge += gauge
    basis = np.zeros((sum(len(block) for block in blocks), sum(block.shape[1] for block in blocks)))
    row = column = 0
    for block in blocks:
        basis[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return basis, num_gauge


@cache
def compiled_hessian(model, loss, train):
    """`(params, statistics, batch) -> dense Hessian`, compiled once per network."""

    def hessian(params, statistics, batch):
        flat, unravel = ravel_pytree(params)

        def loss_of(flat):
            variables = {"params": unravel(flat), **statistics}
            return loss(model.apply(variables, batch[0], train=train).logits, batch[1])

        return jax.hessian(loss_of)(flat)

    return jax.jit(hessian)


def dense_normal(model, variables, loss, batch, partition, train=False):
    """The Hessian of the loss of a cloned network, restricted to the normal space of its leaf, in float64."""

    def to_double(leaf):
        return jnp.asarray(leaf, jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    variables, batch = jax.tree.map(to_double, (dict(variables), batch))
    params = variables.pop("params")
    full = np.asarray(compiled_hessian(model, loss, train)(params, variables, batch))
    assert full.dtype == np.float64
    basis, num_gauge = normal_basis(params, model.wiring, partition)
    return Normal(basis.T @ full @ basis, basis, num_gauge, float(np.linalg.norm(full)))


def clone_by_hand(params, wiring, partition):
    """Base parameters to those of a network with these clusters: repeated along every axis, divided along read ones."""
    labels = dict(wiring.labels)

    def clone(path, leaf):
        leaf = np.asarray(leaf)
        for index, axis in enumerate(labels["params", *(key.key for key in path)].axes):
            if axis is not None and axis.space in partition:
                ids = np.asarray(partition[axis.space])
                leaf = np.take(leaf, ids, axis=index)
                if isinstance(axis, In):
                    shape = [-1 if other == index else 1 for other in range(leaf.ndim)]
                    leaf = leaf / np.bincount(ids)[ids].astype(leaf.dtype).reshape(shape)
        return jnp.asarray(leaf)

    return jax.tree_util.tree_map_with_path(clone, params)


def repeated_spectrum(blocks, num_gauge):
    """What the blocks say the normal spectrum is: every block n_j - 1 times, and a zero per gauge direction."""
    parts = [np.zeros(num_gauge)]
    for found in blocks.spaces.values():
        for values, times in zip(found.eigenvalues, found.multiplicity, strict=True):
            parts += [values] * int(times)
    return np.sort(np.concatenate(parts))
