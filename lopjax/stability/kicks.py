"""Free kicks: changes of outgoing weights that leave every activation unchanged, and what follows from them."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lopjax.arguments.numbers import check_numbers
from lopjax.cloning import Partition
from lopjax.cloning.rounding import parameter_tolerance
from lopjax.curvature import extreme_eigenvalues, hvp
from lopjax.curvature.products import Loss, Params
from lopjax.manifolds import check_partition, tree_norm
from lopjax.optim.checks import widened
from lopjax.stability.blocks.coordinates import block_constant_residual, clone_counts, make_lift, unit_columns
from lopjax.wiring import Wiring

Aim = Literal["next gradient", "escape"]


class FreeKick(NamedTuple):
    """Result of `free_kick`.

    Attributes:
        direction: unit vector, a tree like the parameters: the pattern (+, -)/sqrt(2) over two clones times r in their
            outgoing parameters. Zero where no direction helps.
        response: the incoming pattern `B_j r`, in the same form: what a kick of length 1 adds to the next gradient.
        gain: length of the response, in units of the loss per squared parameter; for "next gradient" the largest
            singular value of B_j.
        residual: an eigenvalue of the matrix that Lanczos worked on lies within this of the one it found.
        rate: -lambda, with lambda the smallest eigenvalue of M_j: a deviation along its eigenvector grows by `1 + eta
            rate` per step. NaN for "next gradient", which does not compute it.
    """

    direction: Params
    response: Params
    gain: Float[Array, ""]
    residual: Float[Array, ""]
    rate: Float[Array, ""]


def free_kick(
    loss: Loss,
    params: Params,
    wiring: Wiring,
    partition: Partition,
    space: str,
    unit: int,
    *,
    aim: Aim = "next gradient",
    num_steps: int = 64,
    key: Key[Array, ""] | None = None,
) -> FreeKick:
    """The parameter change that leaves all activations unchanged and drives a cloned unit off the manifold the most.

    Outgoing patterns r on the clones of unit j, of any size, leave the function unchanged. The next gradient has `B_j
    r` on their incoming weights, with B_j the coupling in the unit's block `M_j = [[A_j, B_j], [B_j', 0]]`. Two unit
    directions r are optimal, for different goals:

    - "next gradient": the top right singular vector of B_j makes the next gradient on the incoming weights largest.
    - "escape": the outgoing part of the lowest eigenvector of M_j has the largest component along the direction that
        grows fastest, and so reaches any *large* distance first. The other arrives later where A_j != 0 (by up to 36 %
        at a cosine of 0.09 between the two, in 24 blocks); for piecewise linear units, with A_j = 0, the two coincide.

    Both are computed by Lanczos from Hessian-vector products, for any wiring.

    Args:
        loss: `params -> scalar`, a mean over samples.
        params: parameters of the cloned network, block constant on the clusters; 16-bit ones are taken to float32.
        wiring: its wiring.
        partition: cluster id of every unit, per space.
        space: space of the unit.
        unit: its index in the base network, whose units are the clusters in order of first appearance.
        aim: "next gradient" or "escape".
        num_steps: Lanczos steps; two Hessian-vector products each for "next gradient", one for "escape".
        key: random key of the start vector, `jax.random.key(0)` by default.

    Returns:
        The direction; scale it as you like. It is zero if no small outgoing change frees the unit: B_j = 0, or for
        "escape" no negative eigenvalue.

    Raises:
        ValueError: parameters off BC; a space without clones; a unit that does not exist or has no clone; another aim.

    References:
        The zero block of outgoing patterns extends Fukumizu and Amari, Neural Networks 13 (2000), to any wiring.
    """
    if aim not in get_args(Aim):
        raise ValueError(f"aim={aim!r}: must be one of {list(get_args(Aim))}")
    check_numbers("params", params)
    params = widened(params)
    clusters = check_partition(wiring, partition)
    _check_unit(clone_counts(clusters), space, unit)
    _check_block_constant(params, wiring, clusters)
    lift, zero = make_lift(params, wiring, clusters)

    def embed(row: Array) -> Params:
        return lift({**zero, space: zero[space].at[unit].set(row)})

    def product(row: Array) -> Array:
        """`[[A, B], [B', 0]] row`."""
        return jax.linear_transpose(embed, row)(hvp(loss, params, embed(row)))[0]

    is_incoming = jnp.arange(zero[space].shape[1]) < _split(params, wiring, clusters, space)
    best = _top_singular if aim == "next gradient" else _lowest_mode

    @jax.jit
    def run(key: Key[Array, ""]) -> FreeKick:
        right, residual, rate = best(product, is_incoming, zero[space][unit], num_steps, key)
        response = embed(jnp.where(is_incoming, product(right), 0))
        return FreeKick(embed(right), response, tree_norm(response), residual, rate)

    return run(jax.random.key(0) if key is None else key)


BestRow = tuple[Array, Array, Array]
"""Outgoing row of length 1 or 0, residual, rate."""


def _top_singular(product: Callable[[Array], Array], is_incoming: Array, zero: Array, num_steps: int, key) -> BestRow:
    """Top right singular vector of B, from `[[0, B], [B', 0]]`.

    Args:
        product: the block times a row `(d,)`.
        is_incoming: which coordinates are those of incoming weights.
        zero: a row of zeros.
        num_steps: number of Lanczos steps.
        key: random key of the start vector.
    """

    def coupling(row: Array) -> Array:
        incoming, outgoing = jnp.where(is_incoming, row, 0), jnp.where(is_incoming, 0, row)
        return jnp.where(is_incoming, product(outgoing), product(incoming))

    pairs = extreme_eigenvalues(coupling, zero, num_steps, key)
    right = jnp.where(is_incoming, 0, pairs.eigenvectors[-1])
    return _unit_or_zero(right, pairs.eigenvalues[-1] > 0), pairs.residuals[-1], jnp.asarray(jnp.nan, zero.dtype)


def _lowest_mode(product: Callable[[Array], Array], is_incoming: Array, zero: Array, num_steps: int, key) -> BestRow:
    """Outgoing part of the lowest eigenvector of the block."""
    pairs = extreme_eigenvalues(product, zero, num_steps, key)
    right = jnp.where(is_incoming, 0, pairs.eigenvectors[0])
    return _unit_or_zero(right, pairs.eigenvalues[0] < 0), pairs.residuals[0], -pairs.eigenvalues[0]


def _unit_or_zero(row: Array, is_wanted: Array) -> Array:
    length = jnp.linalg.norm(row)
    return jnp.where(is_wanted & (length > 0), row / jnp.where(length > 0, length, 1), 0)


class RankCeiling(NamedTuple):
    """Result of `rank_ceiling`.

    Attributes:
        ceiling: `sum_j min(n_j - 1, rank B_j)`, counting singular values that cannot be distinguished from zero as
            nonzero.
        coupling_ranks: rank of every B_j, counted in the same way, `(units,)`.
        singular_values: singular values of every B_j, descending, `(units, min(p, q))`, in units of the loss per
            squared parameter.
        threshold: singular values up to this count as zero, in the same units.
    """

    ceiling: int
    coupling_ranks: np.ndarray
    singular_values: np.ndarray
    threshold: float


def rank_ceiling(
    loss: Loss, params: Params, wiring: Wiring, partition: Partition, space: str, *, zero_level: float = 1e-9
) -> RankCeiling:
    """How much rank a free kick can restore to the activations of cloned units, to first order.

    After a kick along outgoing patterns r_c and one gradient step the clones of unit j differ by B_j r_c in their
    incoming parameters, so the new directions among their activations are `f'(z_j) phi' B_j r_c`: at most as many as
    there are patterns, n_j - 1, and at most rank B_j. The sum over units bounds the gain of rank. Steps after the
    first, and orders beyond the first in the size of the kick, can add more.

    At a critical point of the base, rank B_j <= q - 1 for a unit with q outgoing weights that are not all 0: the
    ceiling is 0 with one output, and K - 2 per unit before a softmax over K classes.

    Args:
        loss: `params -> scalar`, a mean over samples.
        params: parameters of the cloned network, block constant on the clusters.
        wiring: its wiring.
        partition: cluster id of every unit, per space.
        space: the space of the activations.
        zero_level: singular values up to this fraction of the largest |eigenvalue| of the whole Hessian count as zero.
            For a base that is only near a critical point the level must exceed its gradient over the length of the
            outgoing weights.

    Returns:
        The ceiling and the ranks. Takes q Hessian-vector products, one per outgoing parameter of a unit.

    Raises:
        ValueError: parameters off BC; a space without clones; a level outside [0, 1).
    """
    if not 0 <= zero_level < 1:
        raise ValueError(f"zero_level={zero_level}: must lie in [0, 1), a share of the largest eigenvalue")
    check_numbers("params", params)
    params = widened(params)
    clusters = check_partition(wiring, partition)
    counts = clone_counts(clusters)
    _check_unit(counts, space, int(np.argmax(counts.get(space, np.zeros(1)))))
    _check_block_constant(params, wiring, clusters)
    lift, zero = make_lift(params, wiring, clusters)
    split, (units, width) = _split(params, wiring, clusters, space), zero[space].shape

    def column(index: Array) -> Array:
        """`B_j e_k` of all units at once, which do not couple."""
        rows = {**zero, space: jnp.broadcast_to(jax.nn.one_hot(index, width, dtype=zero[space].dtype), (units, width))}
        return jax.linear_transpose(lift, zero)(hvp(loss, params, lift(rows)))[0][space][:, :split]

    @jax.jit
    def measure() -> tuple[Array, Array]:
        couplings = jnp.moveaxis(jax.lax.map(column, jnp.arange(split, width)), 0, -1)
        ends = extreme_eigenvalues(lambda v: hvp(loss, params, v), params, 12, jax.random.key(0)).eigenvalues
        return jnp.linalg.svd(couplings, compute_uv=False), jnp.max(jnp.abs(ends))

    values, size = (np.asarray(each, np.float64) for each in measure())
    threshold = float(zero_level * size)
    # Units without a clone have no pattern and give zero here.
    ranks = np.where(counts[space] > 1, (values > threshold).sum(axis=1), 0)
    return RankCeiling(int(np.minimum(counts[space] - 1, ranks).sum()), ranks, values, threshold)


def _split(params: Params, wiring: Wiring, clusters, space: str) -> int:
    """First outgoing coordinate of the units of a space."""
    return min(place.start for place in unit_columns(params, wiring, clusters)[space] if place.is_outgoing)


def _check_block_constant(params: Params, wiring: Wiring, clusters) -> None:
    residual = block_constant_residual({"params": params}, wiring, clusters)
    allowed = parameter_tolerance(params)
    if not residual <= allowed:
        raise ValueError(
            f"params are not block constant on these clusters: residual {residual:.3g}, allowed {allowed:.3g}. "
            "Elsewhere units couple and have no blocks of their own: give parameters of exact clones, such as "
            "clone_variables makes"
        )


def _check_unit(counts: dict[str, np.ndarray], space: str, unit: int) -> None:
    if space not in counts:
        raise ValueError(f"space={space!r} has no clones: those with clones are {list(counts)}")
    if not 0 <= unit < len(counts[space]):
        raise ValueError(f"unit={unit}: {space!r} has clusters 0..{len(counts[space]) - 1}")
    if counts[space][unit] < 2:
        raise ValueError(f"unit={unit} of {space!r} has no clone to form a pattern with: choose one that has")
