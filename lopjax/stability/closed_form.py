"""The matrices A_j and B_j of every unit of a plain network, from one forward and backward pass of the *base* network.

With base activations h, pre-activations z, `e = dL/dh`, `delta = dL/dz` (L is a mean over samples, so both carry 1/N):

    phi = ( sqrt(n_i) h_i for each source unit i , 1 )
    A_j = (1/n_j) sum_x e_j f''(z_j) phi phi'
    B_j = sum_x f'(z_j) phi delta_next' ,   column k divided by sqrt(n_k)

Convolutions sum over positions too. The Hessian of the cloned network is never formed.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import ceil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lopjax.activations import activation
from lopjax.curvature import mean_over_batches
from lopjax.losses import Batch
from lopjax.model import Model, Variables
from lopjax.stability.features import incoming_features, outgoing_signals
from lopjax.stability.plain import PlainSpace
from lopjax.wiring import Path, Wiring

Counts = Mapping[str, Float[Array, "units"]]
LossOfLogits = Callable[[Array, Array], Array]

# Accumulated matrices of one group of units, and the factor that one batch multiplies into them, take about this much.
GROUP_BYTES = 96 * 2**20


class Rows(NamedTuple):
    """Everything the blocks of one unit space sum over, one row per sample and position.

    Attributes:
        features: phi.
        signals: delta_next of every reader side by side, scaled.
        slope: `f'(z_j)`.
        bend: `e_j f''(z_j) / n_j`.
    """

    features: Float[Array, "rows p"]
    signals: Float[Array, "rows q"]
    slope: Float[Array, "rows units"]
    bend: Float[Array, "rows units"]


class Scales(NamedTuple):
    """Sizes of the sums, free of cancellation, per unit: zero exactly where every term is.

    Attributes:
        curvature: `sum_x |e_j f''| ||phi||² / n_j`, of A_j.
        coupling: `2 sum_x |f'| ||phi|| ||delta_next||`, of B_j and its transpose.
        residual: the same two sums for a backward signal as large as what the terms that cancel in dL/d(logits) are
            rounded by, in units of eps: a fitted network's residuals are differences of large numbers.
        gradient: length of `diag(sqrt n_i, 1) dL/d(w_j, b_j) = B_j diag(sqrt n_k) w_out`.
        outgoing: length of `diag(sqrt n_k) w_out`.
    """

    curvature: np.ndarray
    coupling: np.ndarray
    residual: np.ndarray
    gradient: np.ndarray
    outgoing: np.ndarray


def num_rows(model: Model, variables: Variables, inputs: Array, site: str) -> int:
    """Number of terms in the sums of a site: samples times positions."""
    shape = jax.eval_shape(lambda v, x: model.apply(v, x, dropout_rate=0.0)[2][site].pre, variables, inputs).shape
    return int(np.prod(shape[:-1]))


def unit_scales(
    model: Model, variables: Variables, loss: LossOfLogits, batch: Batch, space: PlainSpace, counts: Counts, size: int
) -> Scales:
    """Cancellation-free scales of the blocks of one unit space, over all the data in batches of `size`."""
    (curvature, coupling), residual, (kernel, bias) = _accumulate_scales(
        model, variables, loss, batch, space, counts, size
    )
    root = np.sqrt(np.asarray(_count_along(model.wiring, counts, space.kernel, -2), np.float64))
    squares = np.sum((np.asarray(kernel, np.float64) * root[:, None]) ** 2, axis=tuple(range(kernel.ndim - 1)))
    if bias is not None:
        squares = squares + np.asarray(bias, np.float64) ** 2
    outgoing = 0.0
    for path in space.readers:
        root = np.sqrt(np.asarray(_count_along(model.wiring, counts, path, -1), np.float64))
        weights = (np.asarray(_leaf(variables, path), np.float64) * root) ** 2
        outgoing = outgoing + weights.sum(axis=(*range(weights.ndim - 2), -1))
    return Scales(
        curvature=np.asarray(curvature, np.float64),
        coupling=np.asarray(coupling, np.float64),
        residual=np.asarray(residual[0] + residual[1], np.float64),
        gradient=np.sqrt(squares),
        outgoing=np.sqrt(outgoing),
    )


def unit_matrices(
    model: Model,
    variables: Variables,
    loss: LossOfLogits,
    batch: Batch,
    space: PlainSpace,
    counts: Counts,
    size: int,
    is_bent: bool,
) -> Iterator[tuple[int, np.ndarray | None, np.ndarray]]:
    """`(j, A_j, B_j)` of every unit of a space in turn; A_j is `None` unless `is_bent`.

    Units are handled in groups, so that memory does not grow with the width.

    Args:
        model: the base model.
        variables: its variables.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        batch: inputs and labels.
        space: the plain space.
        counts: number of clones of every unit, per space.
        size: samples per batch.
        is_bent: whether some `e_j f''` is not zero.
    """
    inputs, labels = batch
    first = jax.eval_shape(
        lambda v, x, y: _rows(model, v, loss, (x, y), space, counts), variables, inputs[:size], labels[:size]
    )
    rows, p = first.features.shape
    per_unit = max(rows, p) * max(first.signals.shape[1], p if is_bent else 0) * first.features.dtype.itemsize
    units = first.slope.shape[1]
    num_groups = ceil(units / max(1, GROUP_BYTES // per_unit))
    group = ceil(units / num_groups)
    for start in range(0, units, group):
        begin = min(start, units - group)
        bends, couplings = _accumulate_matrices(
            model, variables, loss, batch, space, counts, size, group, is_bent, jnp.asarray(begin)
        )
        bends, couplings = None if bends is None else np.asarray(bends), np.asarray(couplings)
        for unit in range(start, min(start + group, units)):
            curvature = None if bends is None else bends[:, unit - begin].astype(np.float64)
            yield unit, curvature, couplings[:, unit - begin].astype(np.float64)


@partial(jax.jit, static_argnames=("model", "loss", "space", "size"))
def _accumulate_scales(model, variables, loss, batch, space, counts, size):
    """Scales of A and B, and the gradient of the base loss by the space's kernel and bias."""

    def batch_means(part: Batch):
        sums = _sizes(_rows(model, variables, loss, part, space, counts, as_sizes=True))
        residual = _sizes(_rows(model, variables, loss, part, space, counts, of_rounding=True, as_sizes=True))
        gradient = jax.grad(lambda params: loss(model.apply({**variables, "params": params}, part[0])[0], part[1]))
        tree = {"params": gradient(variables["params"])}
        bias = None if space.bias is None else _leaf(tree, space.bias)
        return sums, residual, (_leaf(tree, space.kernel), bias)

    return mean_over_batches(batch_means, batch, size)


def _sizes(rows: Rows) -> tuple[Array, Array]:
    """Sums of the sizes of the terms of A_j, and of B_j with its transpose, per unit."""
    length = jnp.linalg.norm(rows.features, axis=1)
    products = length * jnp.linalg.norm(rows.signals, axis=1)
    return (
        jnp.sum(jnp.abs(rows.bend) * length[:, None] ** 2, axis=0),
        2 * jnp.sum(jnp.abs(rows.slope) * products[:, None], axis=0),
    )


@partial(jax.jit, static_argnames=("model", "loss", "space", "size", "group", "is_bent"))
def _accumulate_matrices(model, variables, loss, batch, space, counts, size, group, is_bent, begin):
    """A and B of `group` units from `begin` on, the unit as middle axis: `(p, group, p)` and `(p, group, q)`."""

    def batch_means(part: Batch):
        rows = _rows(model, variables, loss, part, space, counts)
        slope = jax.lax.dynamic_slice_in_dim(rows.slope, begin, group, axis=1)
        bend = jax.lax.dynamic_slice_in_dim(rows.bend, begin, group, axis=1)
        curvature = _weighted_products(rows.features, bend, rows.features) if is_bent else None
        return curvature, _weighted_products(rows.features, slope, rows.signals)

    return mean_over_batches(batch_means, batch, size)


def _weighted_products(left: Array, weights: Array, right: Array) -> Array:
    """`sum_x left_xa weights_xj right_xb` as one matrix product: `(a, j, b)`."""
    factor = (weights[:, :, None] * right[:, None, :]).reshape(len(right), -1)
    products = jnp.matmul(left.T, factor, precision=jax.lax.Precision.HIGHEST)
    return products.reshape(left.shape[1], weights.shape[1], right.shape[1])


def _rows(
    model: Model,
    variables: Variables,
    loss: LossOfLogits,
    batch: Batch,
    space: PlainSpace,
    counts: Counts,
    of_rounding: bool = False,
    as_sizes: bool = False,
) -> Rows:
    """Activations and backward signals of one batch, as rows; or the signals of what rounding does to the residuals.

    With `as_sizes`, derivatives are at least as large as what their rounding is counted for, see `_derivative_floor`.
    """
    taps, gradients, output_delta = _signals(model, variables, loss, batch, of_rounding)
    wired = dict(model.wiring.labels)
    writer = wired["params", *space.kernel]
    pre, error = taps[space.site].pre, gradients[space.site].post
    slope, bend = _derivatives(space.activation, pre)
    if as_sizes:
        floor = _derivative_floor(space.activation)
        slope, bend = jnp.maximum(jnp.abs(slope), floor), jnp.maximum(jnp.abs(bend), floor)
    source = taps[writer.source].post if writer.source in taps else batch[0].astype(pre.dtype)
    signals = []
    for path in space.readers:
        label = wired["params", *path]
        delta = gradients[label.site].pre if label.site in gradients else output_delta
        target_counts = _count_along(model.wiring, counts, path, -1).astype(pre.dtype)
        shape = _leaf(variables, path).shape
        signals.append(outgoing_signals(delta, shape, label.window, pre.shape[1:-1], target_counts))
    source_counts = _count_along(model.wiring, counts, space.kernel, -2).astype(pre.dtype)
    kernel_shape = _leaf(variables, space.kernel).shape
    units = pre.shape[-1]
    return Rows(
        incoming_features(source, kernel_shape, writer.window, source_counts, space.bias is not None),
        jnp.concatenate(signals, axis=1),
        slope.reshape(-1, units),
        (error * bend / counts[space.space].astype(pre.dtype)).reshape(-1, units),
    )


def _signals(model: Model, variables: Variables, loss: LossOfLogits, batch: Batch, of_rounding: bool):
    """Taps, the loss's derivatives by every pre- and post-activation, and by the logits."""
    inputs, labels = batch
    taps = jax.eval_shape(lambda v, x: model.apply(v, x, dropout_rate=0.0), variables, inputs)[2]
    shifts = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), taps)

    def shifted(shifts):
        logits, _, taps = model.apply(variables, inputs, perturbations=shifts, dropout_rate=0.0)
        return logits, taps

    logits, pull_back, taps = jax.vjp(shifted, shifts, has_aux=True)
    output_delta = _cancelling_terms(loss, logits, labels) if of_rounding else jax.grad(loss)(logits, labels)
    return taps, pull_back(output_delta)[0], output_delta


def _cancelling_terms(loss: LossOfLogits, logits: Array, labels: Array) -> Array:
    """Size of the terms that dL/d(logits) is the difference of, with random signs.

    Outputs minus targets for real targets, probabilities minus indicators for classes; to first order these are the
    Hessian in the logits times logits and targets, and 1/N.
    """

    def delta(logits: Array) -> Array:
        return jax.grad(loss)(logits, labels)

    size = jnp.abs(jax.jvp(delta, (logits,), (logits,))[1])
    if labels.shape == logits.shape and jnp.issubdtype(labels.dtype, jnp.floating):
        size += jnp.abs(jax.jvp(delta, (logits,), (labels.astype(logits.dtype),))[1])
    else:
        size += 1 / len(logits)
    return size * jax.random.rademacher(jax.random.key(0), size.shape, size.dtype)


def _derivative_floor(function: Callable) -> float:
    """Size below which the rounding of f' and f'' no longer shrinks with them.

    Where tanh, sigmoid, GELU or SiLU saturate, their derivatives are differences such as 1 - tanh² of numbers near 1:
    wrong by a few eps, and exactly 0 in float32 where they are 1e-9. With this floor the tolerance, 64 eps times the
    sizes, allows for 4 eps. Functions made of exact pieces need none.
    """
    entry = activation(function)
    return 0.0 if entry.kinks or entry.name == "identity" else 1 / 16


def _derivatives(function: Callable, z: Array) -> tuple[Array, Array]:
    """First and second derivative of an elementwise function."""
    one = jnp.ones_like(z)

    def slope(z: Array) -> Array:
        return jax.jvp(function, (z,), (one,))[1]

    return jax.jvp(slope, (z,), (one,))


def _count_along(wiring: Wiring, counts: Counts, path: Path, axis: int) -> Array:
    """Number of clones of the units along one axis of an array."""
    label = dict(wiring.labels)["params", *path].axes[axis]
    assert label is not None  # plain kernels read and write unit spaces
    return counts.get(label.space, jnp.ones(wiring.size(label.space)))


def _leaf(variables: Variables, path: Path) -> Array:
    leaf = variables["params"]
    for key in path:
        leaf = leaf[key]
    return leaf
