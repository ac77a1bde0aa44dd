"""The matrices A_j and B_j of every unit of a plain network, from one forward and backward pass of the *base* network.

With base activations h, pre-activations z, `e = dL/dh`, `delta = dL/dz` (L is a mean over samples, so both carry 1/N):

    phi = ( sqrt(n_i) h_i for each source unit i , 1 )
    A_j = (1/n_j) sum_x e_j f''(z_j) phi phi'
    B_j = sum_x f'(z_j) phi delta_next' ,   column k divided by sqrt(n_k)

For convolutions the sums also run over positions. The Hessian of the cloned network is never formed.
"""

from collections.abc import Iterator
from functools import partial
from math import ceil

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lopjax.curvature import mean_over_batches
from lopjax.losses import Batch
from lopjax.model import Model, Variables
from lopjax.stability.blocks.plain_spaces import PlainSpace
from lopjax.stability.blocks.rows import Counts, Rows, unit_rows
from lopjax.stability.blocks.scales import Scales, unit_scales
from lopjax.stability.blocks.signals import LossOfLogits, exact_signals

__all__ = ["Counts", "LossOfLogits", "Scales", "unit_matrices", "unit_scales"]

# Approximate memory of the matrices accumulated for one group of units and of one batch's factor in their products.
GROUP_BYTES = 96 * 2**20


def unit_matrices(
    model: Model,
    variables: Variables,
    batch: Batch,
    loss: LossOfLogits,
    space: PlainSpace,
    counts: Counts,
    size: int,
    has_curvature: bool,
) -> Iterator[tuple[int, np.ndarray | None, np.ndarray]]:
    """`(j, A_j, B_j)` of every unit of a space, one at a time; A_j is `None` unless `has_curvature`.

    Units are handled in groups, so that memory does not grow with the width.

    Args:
        model: the base model.
        variables: its variables.
        batch: inputs and labels.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        space: the plain space.
        counts: number of clones of every unit, per space.
        size: samples per batch.
        has_curvature: whether some `e_j f''` may be nonzero.
    """
    first = _rows.eval_shape(model, variables, jax.tree.map(lambda leaf: leaf[:size], batch), loss, space, counts)
    rows, p = first.features.shape
    per_unit = max(rows, p) * max(first.signals.shape[1], p if has_curvature else 0) * first.features.dtype.itemsize
    units = first.slope.shape[1]
    num_groups = ceil(units / max(1, GROUP_BYTES // per_unit))
    group = ceil(units / num_groups)
    for start in range(0, units, group):
        begin = min(start, units - group)
        curvatures, couplings = _accumulate_matrices(
            model, variables, batch, loss, space, counts, size, group, has_curvature, jnp.asarray(begin)
        )
        curvatures, couplings = None if curvatures is None else np.asarray(curvatures), np.asarray(couplings)
        for unit in range(start, min(start + group, units)):
            curvature = None if curvatures is None else curvatures[:, unit - begin].astype(np.float64)
            yield unit, curvature, couplings[:, unit - begin].astype(np.float64)


@partial(jax.jit, static_argnames=("model", "loss", "space"))
def _rows(
    model: Model, variables: Variables, batch: Batch, loss: LossOfLogits, space: PlainSpace, counts: Counts
) -> Rows:
    return unit_rows(model, variables, batch, space, counts, exact_signals(model, variables, batch, loss))


@partial(jax.jit, static_argnames=("model", "loss", "space", "size", "group", "has_curvature"))
def _accumulate_matrices(model, variables, batch, loss, space, counts, size, group, has_curvature, begin):
    """A and B of `group` units from `begin` on, the unit as middle axis: `(p, group, p)` and `(p, group, q)`.

    Args:
        model: the base model.
        variables: its variables.
        batch: inputs and labels.
        loss: `(logits, labels) -> scalar`.
        space: the plain space.
        counts: number of clones of every unit, per space.
        size: samples per batch.
        group: number of units, static.
        has_curvature: whether there is an A; None in its place otherwise.
        begin: first unit, traced, so that all groups share a program.
    """

    def batch_means(part: Batch):
        rows = _rows(model, variables, part, loss, space, counts)
        slope = jax.lax.dynamic_slice_in_dim(rows.slope, begin, group, axis=1)
        curvature = jax.lax.dynamic_slice_in_dim(rows.curvature, begin, group, axis=1)
        curvature = _weighted_products(rows.features, curvature, rows.features) if has_curvature else None
        return curvature, _weighted_products(rows.features, slope, rows.signals)

    return mean_over_batches(batch_means, batch, size)


def _weighted_products(left: Array, weights: Array, right: Array) -> Array:
    """`sum_x left_xa weights_xj right_xb` as one matrix product: `(a, j, b)`."""
    factor = (weights[:, :, None] * right[:, None, :]).reshape(len(right), -1)
    products = jnp.matmul(left.T, factor, precision=jax.lax.Precision.HIGHEST)
    return products.reshape(left.shape[1], weights.shape[1], right.shape[1])
