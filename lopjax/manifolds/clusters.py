"""Averages over clusters of units along one axis of an array: the building block of every cloned-unit projector."""

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.arguments.numbers import takes_numbers
from lopjax.cloning import Clusters, check_partition, make_clusters, mean_over_clusters
from lopjax.wiring import along

__all__ = ["Clusters", "check_partition", "cluster_mean", "has_average", "make_clusters", "weighted_mean"]


@takes_numbers(array=None)
def cluster_mean(array: jax.Array, axis: int, clusters: Clusters) -> jax.Array:
    """Replace every slice along an axis by the mean over its cluster.

    The mean is taken of the differences from the cluster's first unit, so an array that is constant on clusters is
    returned bit for bit, whatever the cluster size. It uses gathers and reshapes only: no scatter (slow on CPU), no
    units-by-units matrix.

    Args:
        array: any floating point array.
        axis: the axis that indexes the units.
        clusters: clusters of those units.
    """
    if not jnp.shape(array)[axis]:
        raise ValueError(f"array has shape {jnp.shape(array)}: must have at least one unit along axis {axis}")
    if clusters.run:
        return _mean_of_runs(array, axis, clusters.run)
    leader = jnp.take(array, clusters.leaders[clusters.ids], axis=axis)
    difference = array - leader
    means, position = [], np.zeros(len(clusters.leaders), int)
    for units in clusters.members.values():
        position[clusters.ids[units[:, 0]]] = sum(mean.shape[axis] for mean in means) + np.arange(len(units))
        means.append(jnp.mean(jnp.take(difference, units, axis=axis), axis=axis + 1))
    return leader + jnp.take(jnp.concatenate(means, axis=axis), position[clusters.ids], axis=axis)


def weighted_mean(
    array: jax.Array, axis: int, clusters: Clusters, multiples: tuple[float, ...] | None = None
) -> jax.Array:
    """The nearest array whose slices in each cluster are `c_t` times one slice: `c_t sum_s c_s a_s / sum_s c_s²`.

    This is an orthogonal projection, equal to `cluster_mean` for equal multiples. Slices of units with the multiple 0
    become 0.

    Args:
        array: any floating point array.
        axis: the axis that indexes the units.
        clusters: clusters of those units.
        multiples: `c_t`, one for each unit; `None` for ones.
    """
    if multiples is None:
        return cluster_mean(array, axis, clusters)
    factors = np.asarray(multiples, np.float64)
    squares = mean_over_clusters(factors**2, 0, clusters)
    back = np.divide(factors, squares, out=np.zeros_like(factors), where=squares > 0)
    there, back = (along(jnp.asarray(each, array.dtype), axis, array.ndim) for each in (factors, back))
    return back * cluster_mean(there * array, axis, clusters)


def has_average(clusters: Clusters, multiples: tuple[float, ...] | None) -> np.ndarray:
    """Which clusters have a unit whose multiple is not 0."""
    if multiples is None:
        return np.ones(len(clusters.leaders), bool)
    return mean_over_clusters(np.asarray(multiples, np.float64) ** 2, 0, clusters)[clusters.leaders] > 0


def _mean_of_runs(array: jax.Array, axis: int, run: int) -> jax.Array:
    """`cluster_mean` for adjacent units in clusters of equal size: sums of strided slices, at the cost of a copy.

    Measured on a (3, 3, 512, 512) kernel with pairs along the last axis, 2 CPU cores: 0.6 ms, against 13 ms for a mean
    over a reshaped axis, 60 ms for a matrix product and 50 to 90 ms for gathers.
    """
    shape = array.shape
    runs = jnp.reshape(array, (*shape[:axis], shape[axis] // run, run, *shape[axis + 1 :]))
    first, *others = (jax.lax.slice_in_dim(runs, unit, unit + 1, axis=axis + 1) for unit in range(run))
    total = sum((other - first for other in others), jnp.zeros((), array.dtype))
    return jnp.reshape(jnp.broadcast_to(first + total / run, runs.shape), shape)
