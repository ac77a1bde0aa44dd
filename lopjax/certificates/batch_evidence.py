"""Evidence from a batch about units: activations, backward signals and gradients, each cluster on its own scale."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.losses import Batch
from lopjax.manifolds import Clusters, Manifold, normal_part
from lopjax.model import Model, Params, Taps, Variables, samples_by_units
from lopjax.signals import observe
from lopjax.wiring import tree_paths, unit_rows

Loss = Callable[[jax.Array, jax.Array], jax.Array]


class SignalResiduals(NamedTuple):
    """Differences inside clusters at one site on the batch, for the worst pair of units, relative to the smaller one.

    Attributes:
        forward: difference of the activations, relative to the unit's activations or, if larger, its pre-activations.
        backward: difference of dL/d(pre-activation), relative to the unit's own.
    """

    forward: float
    backward: float


class Pass(NamedTuple):
    """One pass over a batch: loss, gradient of the parameters, backward signals (as taps) and taps."""

    loss: jax.Array
    gradient: Params
    backward: Taps
    taps: Taps


def run(model: Model, variables: Variables, batch: Batch, loss: Loss, train: bool) -> Pass:
    """Loss, gradients and signals on a batch, without dropout; compiled once per model, not once per certificate."""
    return _run(model, variables, (jnp.asarray(batch[0]), batch[1]), loss, train)


@partial(jax.jit, static_argnames=("model", "loss", "train"))
def _run(model: Model, variables: Variables, batch: Batch, loss: Loss, train: bool) -> Pass:
    seen = observe(model, variables, batch, loss=loss, train=train, dropout_rate=0.0)
    assert seen.signals is not None
    return Pass(seen.loss, seen.gradient, seen.signals, seen.taps)


def signal_residuals(clusters: Mapping[str, Clusters], seen: Pass) -> dict[str, SignalResiduals]:
    """Residuals at every site of a space with clusters."""
    residuals = {}
    for site, tap in seen.taps.items():
        if tap.space in clusters:
            ids, post, pre = clusters[tap.space].ids, _rows(tap.post), _rows(tap.pre)
            back = _rows(seen.backward[site].pre)
            residuals[site] = SignalResiduals(_spread(ids, post, post, pre), _spread(ids, back, back))
    return residuals


def _rows(signal: jax.Array) -> np.ndarray:
    return np.asarray(samples_by_units(signal), np.float64).T


def _spread(ids: np.ndarray, rows: np.ndarray, *scales: np.ndarray) -> float:
    """Largest distance of a unit from the first one of its cluster, relative to the norm of the smaller of the two."""
    _, leaders = np.unique(ids, return_index=True)
    largest = max((float(np.abs(each).max(initial=0)) for each in scales), default=0.0) or 1.0
    first = leaders[ids]
    distances = np.linalg.norm((rows - rows[first]) / largest, axis=1)
    norms = np.maximum.reduce([np.linalg.norm(each / largest, axis=1) for each in scales])
    pairs = np.stack([norms, norms[first]])
    own = np.where(pairs.min(axis=0) > 0, pairs.min(axis=0), pairs.max(axis=0))
    with np.errstate(invalid="ignore"):
        return float(np.max(np.where(distances == 0, 0.0, distances / np.where(own == 0, 1.0, own))))


def gradient_shares(leaf: Manifold, clusters: Mapping[str, Clusters], gradient: Params) -> dict[str, float]:
    """Per array: the gradient's part normal to the leaf in one cluster's slices, over that cluster's whole gradient.

    The share of the worst cluster is returned. A cluster's gradient is that of all its incoming and outgoing parameters
    together: the gradient of one array alone may be zero (a key bias), and its value then is rounding error.

    Args:
        leaf: the cloned manifold.
        clusters: its clusters.
        gradient: gradient of the parameters.
    """
    labels = leaf.structure.wiring.labels_of(gradient)
    leaves = [np.asarray(each, np.float64) for each in jax.tree.leaves(gradient)]
    largest = max(float(np.abs(each).max(initial=0)) for each in leaves) or 1.0
    normals = [np.asarray(each, np.float64) / largest for each in jax.tree.leaves(normal_part(leaf, gradient))]
    squares = {space: np.zeros(len(own.leaders)) for space, own in clusters.items()}
    parts: list[dict[str, np.ndarray]] = []
    for label, array, normal in zip(labels, leaves, normals, strict=True):
        parts.append({})
        for axis, space, _ in label.unit_axes(clusters):
            ids = clusters[space].ids
            squares[space] += _by_cluster(np.square(array / largest), axis, ids)
            parts[-1][space] = _by_cluster(np.square(normal), axis, ids)
    return {
        "/".join(("params", *path)): max(
            (float(np.sqrt(np.max(each / np.where(squares[s] == 0, 1.0, squares[s])))) for s, each in part.items()),
            default=0.0,
        )
        for path, part in zip(tree_paths(gradient), parts, strict=True)
    }


def _by_cluster(squares: np.ndarray, axis: int, ids: np.ndarray) -> np.ndarray:
    return np.bincount(ids, unit_rows(squares, axis).sum(axis=1))
