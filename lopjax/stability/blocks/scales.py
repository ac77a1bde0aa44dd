"""How large the terms of a unit's block are, how far rounding can move them, and how close the next kink is."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from lopjax.losses import Batch
from lopjax.model import Model, Variables
from lopjax.stability.blocks.plain_spaces import PlainSpace
from lopjax.stability.blocks.rows import Counts, Rows, counts_of, kernel_at, unit_rows
from lopjax.stability.blocks.signals import (
    LossOfLogits,
    RoundingDraw,
    downstream_sites,
    draw_roundings,
    is_at_loss_kink,
    kinks_of,
    perturbed_signals,
    signals_and_gradient,
    tap_shapes,
)
from lopjax.tolerance import CERTAIN_FROM, rounding_unit
from lopjax.wiring import at_path

# Number of draws of rounding errors, each used with both signs.
_DRAWS = 2


class Scales(NamedTuple):
    """Sizes of the sums and of their errors, per unit, without cancellation between terms.

    Attributes:
        curvature: `sum_x |e_j f''| ||phi||² / n_j`, of A_j.
        coupling: `2 sum_x |f'| ||phi|| ||delta_next||`, of B_j and its transpose.
        residual: the same two sums for a backward signal as large as the terms that cancel in dL/d(logits), that is,
            the size of the block on other labels. Measured against it, the block of a fitted network is flat.
        curvature_error: how far A_j moves when the rounding of every factor of every term changes by 64 eps.
        coupling_error: the same for B_j.
        gradient: length of `diag(sqrt n_i, 1) dL/d(w_j, b_j) = B_j diag(sqrt n_k) w_out`.
        outgoing: length of `diag(sqrt n_k) w_out`.
        slope: `sum_x |f'|`: for a piecewise linear function, 0 for a unit that is dead on all rows.
        radius: `min_x |z - kink| / ||phi||`: shorter changes of the incoming parameters cross no kink; infinite for
            smooth functions.
        kinks: units with a pre-activation that lies within rounding of a kink.
        later_kinks: downstream sites with a pre-activation that lies within rounding of a kink.
        loss_kink: whether the derivative of the loss with respect to the logits jumps within rounding on some sample.
    """

    curvature: np.ndarray
    coupling: np.ndarray
    residual: np.ndarray
    curvature_error: np.ndarray
    coupling_error: np.ndarray
    gradient: np.ndarray
    outgoing: np.ndarray
    slope: np.ndarray
    radius: np.ndarray
    kinks: np.ndarray
    later_kinks: tuple[str, ...]
    loss_kink: bool


class _Sums(NamedTuple):
    """Means over one batch; the last four fields are not means, they describe the closest kink."""

    sizes: tuple[Array, Array, Array]
    residual: Array
    errors: tuple[Array, Array]
    gradient: tuple[Any, Any]
    radius: Any
    kinks: Any
    later_kinks: Any
    loss_kink: Any


class _Errors(NamedTuple):
    """Largest change of every factor of a term, over the draws."""

    features: Array
    signals: Array
    slope: Array
    curvature: Array


def num_rows(model: Model, variables: Variables, inputs: Array, site: str) -> int:
    """Number of terms in the sums of a site: samples times positions."""
    return int(np.prod(tap_shapes(model, variables, inputs)[site].pre.shape[:-1]))


def unit_scales(
    model: Model,
    variables: Variables,
    batch: Batch,
    loss: LossOfLogits,
    spaces: Sequence[PlainSpace],
    counts: Counts,
    size: int,
    dtype: DTypeLike | None = None,
) -> dict[str, Scales]:
    """Sizes of the blocks of all unit spaces and of their rounding errors, free of cancellation, in batches of `size`.

    Args:
        model: the base model.
        variables: its variables.
        batch: inputs and labels.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        spaces: the plain spaces; one program serves all.
        counts: number of clones of every unit, per space.
        size: samples per batch.
        dtype: the coarsest type that the network computes in; by default that of the parameters.
    """
    dtype = jnp.result_type(*jax.tree.leaves(variables["params"])) if dtype is None else dtype
    roots = {space.space: num_rows(model, variables, batch[0], space.site) ** 0.5 for space in spaces}
    moves, parts = draw_roundings(dtype, _DRAWS), []
    for start in range(0, len(batch[0]), size):
        part = jax.tree.map(lambda leaf, start=start: leaf[start : start + size], batch)
        sums = _batch_sums(model, variables, part, loss, tuple(spaces), counts, moves, rounding_unit(dtype), roots)
        share = len(part[0]) / len(batch[0])
        parts.append((share, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), sums)))
    return {
        space.space: _collect(model, variables, space, counts, [(share, sums[space.space]) for share, sums in parts])
        for space in spaces
    }


def _collect(
    model: Model, variables: Variables, space: PlainSpace, counts: Counts, parts: list[tuple[float, _Sums]]
) -> Scales:
    """Scales of all the data from those of its batches.

    Args:
        model: the base model.
        variables: its variables.
        space: the plain space.
        counts: number of clones of every unit, per space.
        parts: share of the samples and sums of every batch.
    """
    means = jax.tree.map(
        lambda *leaves: sum(share * leaf for (share, _), leaf in zip(parts, leaves, strict=True)),
        *[sums._replace(radius=None, kinks=None, later_kinks=None, loss_kink=None) for _, sums in parts],
    )
    (read,) = dict(model.wiring.labels)["params", *space.kernel].reads()
    along = np.sqrt(np.asarray(counts_of(model.wiring, counts, read), np.float64))
    kernel, bias = means.gradient
    gradient = np.linalg.norm((kernel * along[:, None]).reshape(-1, kernel.shape[-1]), axis=0)
    return Scales(
        curvature=means.sizes[0],
        coupling=means.sizes[1],
        residual=means.residual,
        curvature_error=means.errors[0],
        coupling_error=means.errors[1],
        gradient=gradient if bias is None else np.hypot(gradient, bias),
        outgoing=_outgoing_length(model, variables, space, counts),
        slope=means.sizes[2],
        radius=np.min([sums.radius for _, sums in parts], axis=0),
        kinks=np.any([sums.kinks for _, sums in parts], axis=0),
        later_kinks=tuple(site for site in parts[0][1].later_kinks if any(sums.later_kinks[site] for _, sums in parts)),
        loss_kink=any(bool(sums.loss_kink) for _, sums in parts),
    )


def _outgoing_length(model: Model, variables: Variables, space: PlainSpace, counts: Counts) -> np.ndarray:
    squares = np.zeros(model.wiring.size(space.space))
    for path in space.readers:
        (written,) = dict(model.wiring.labels)["params", *path].writes()
        root = np.sqrt(np.asarray(counts_of(model.wiring, counts, written), np.float64))
        weights = np.asarray(kernel_at(model.wiring, variables, path), np.float64) * root
        squares = np.hypot(squares, np.linalg.norm(np.moveaxis(weights, -2, 0).reshape(len(squares), -1), axis=1))
    return squares


@partial(jax.jit, static_argnames=("model", "loss", "spaces"))
def _batch_sums(model, variables, batch, loss, spaces, counts, moves, unit, roots) -> dict[str, _Sums]:
    """Sizes of the terms of A and B and of their errors, the gradient of the base network, and the closest kinks.

    Args:
        model: the base model.
        variables: its variables.
        batch: inputs and labels of one batch.
        loss: `(logits, labels) -> scalar`.
        spaces: the plain spaces.
        counts: number of clones of every unit, per space.
        moves: draws of rounding errors, with a leading axis.
        unit: rounding of one operation of the coarsest type.
        roots: per space, the square root of the number of terms in a sum.
    """
    exact, other, gradient = signals_and_gradient(model, variables, batch, loss)
    rows = {space: unit_rows(model, variables, batch, space, counts, exact) for space in spaces}
    kinky = {site: kinks_of(tap.activation) for site, tap in exact.taps.items() if kinks_of(tap.activation)}

    def moved(move: RoundingDraw) -> tuple[dict[str, _Errors], dict[str, Array]]:
        rounded = perturbed_signals(model, variables, batch, loss, exact, move)
        errors = {
            space.space: _distance(unit_rows(model, variables, batch, space, counts, rounded, move), rows[space])
            for space in spaces
        }
        return errors, {site: jnp.abs(rounded.taps[site].pre - exact.taps[site].pre) for site in kinky}

    errors, reach = _largest(moved, moves)
    loss_kink = is_at_loss_kink(loss, exact.logits, batch[1], jax.tree.map(lambda leaf: leaf[0], moves))
    at_kink = {site: _is_at_kink(exact.taps[site].pre, reach[site], kinks) for site, kinks in kinky.items()}
    sums = {}
    for space in spaces:
        own, sizes = errors[space.space], _sizes(rows[space])
        tau = jnp.asarray(unit * roots[space.space], own.slope.dtype)
        curvature, coupling = _errors_of_products(rows[space], own)
        elsewhere = _sizes(unit_rows(model, variables, batch, space, counts, other))
        later = [site for site in downstream_sites(model.wiring, space.space) if site in kinky]
        sums[space.space] = _Sums(
            sizes=sizes,
            residual=elsewhere[0] + elsewhere[1],
            # The terms change with their factors, and each sum of them adds one more tau of rounding.
            errors=(curvature + tau * sizes[0], coupling + tau * sizes[1] / 2),
            gradient=(
                kernel_at(model.wiring, {"params": gradient}, space.kernel),
                None if space.bias is None else at_path(gradient, space.bias),
            ),
            radius=_kink_radius(rows[space], kinks_of(space.activation)),
            kinks=_at_own_kink(rows[space], at_kink.get(space.site)),
            later_kinks={site: jnp.any(at_kink[site]) for site in later},
            loss_kink=loss_kink,
        )
    return sums


def _sizes(rows: Rows) -> tuple[Array, Array, Array]:
    """Sums of the sizes of the terms of A_j, of B_j with its transpose, and of |f'|, per unit."""
    length = jnp.linalg.norm(rows.features, axis=1)
    products = length * jnp.linalg.norm(rows.signals, axis=1)
    return (
        jnp.sum(jnp.abs(rows.curvature) * length[:, None] ** 2, axis=0),
        2 * jnp.sum(jnp.abs(rows.slope) * products[:, None], axis=0),
        jnp.sum(jnp.abs(rows.slope), axis=0),
    )


def _errors_of_products(rows: Rows, errors: _Errors) -> tuple[Array, Array]:
    """Sums of the changes of the terms of A_j and of B_j when all their factors change, to all orders."""
    length, feature = jnp.linalg.norm(rows.features, axis=1)[:, None], errors.features[:, None]
    signal, moved = jnp.linalg.norm(rows.signals, axis=1)[:, None], errors.signals[:, None]
    curvature, slope = jnp.abs(rows.curvature), jnp.abs(rows.slope)
    of_square = feature * (2 * length + feature)
    of_product = length * moved + feature * (signal + moved)
    return (
        jnp.sum(errors.curvature * (length**2 + of_square) + curvature * of_square, axis=0),
        jnp.sum(errors.slope * (length * signal + of_product) + slope * of_product, axis=0),
    )


def _distance(moved: Rows, rows: Rows) -> _Errors:
    return _Errors(
        jnp.linalg.norm(moved.features - rows.features, axis=1),
        jnp.linalg.norm(moved.signals - rows.signals, axis=1),
        jnp.abs(moved.slope - rows.slope),
        jnp.abs(moved.curvature - rows.curvature),
    )


def _largest(function: Callable[[RoundingDraw], PyTree], moves: RoundingDraw) -> PyTree:
    """The largest value of every number over the draws, one draw at a time."""

    def step(so_far: PyTree, move: RoundingDraw) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.maximum, so_far, function(move)), None

    shapes = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], moves))
    return jax.lax.scan(step, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), moves)[0]


def _kink_radius(rows: Rows, kinks: tuple[float, ...]) -> Array:
    """`min_x |z - kink| / ||phi||` per unit; rows without features cannot change."""
    distance = jnp.full(rows.pre.shape, jnp.inf)
    for kink in kinks:
        distance = jnp.minimum(distance, jnp.abs(rows.pre - kink))
    length = jnp.linalg.norm(rows.features, axis=1)[:, None]
    return jnp.min(jnp.where(length > 0, distance / jnp.where(length > 0, length, 1), jnp.inf), axis=0)


def _at_own_kink(rows: Rows, at_kink: Array | None) -> Array:
    """Units with a row at a kink, apart from rows without features, which no incoming parameter changes."""
    if at_kink is None:
        return jnp.zeros(rows.pre.shape[1], bool)
    return jnp.any(at_kink.reshape(rows.pre.shape) & jnp.any(rows.features != 0, axis=1)[:, None], axis=0)


def _is_at_kink(pre: Array, error: Array, kinks: tuple[float, ...]) -> Array:
    """Which pre-activations lie within rounding of a kink."""
    near = jnp.zeros(pre.shape, bool)
    for kink in kinks:
        near = near | (jnp.abs(pre - kink) <= CERTAIN_FROM * error)
    return near
