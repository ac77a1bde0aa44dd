"""Getting out: how long a kick takes to grow, which kick costs nothing, what holds a network back, what noise does."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from lopjax.cloning import Partition
from lopjax.curvature import check_same_tree, extreme_eigenvalues, hvp
from lopjax.curvature.products import Loss, Params
from lopjax.manifolds import check_partition, tree_norm
from lopjax.stability.patterns import block_constant_residual, make_lift, unit_slots
from lopjax.stability.unit_blocks import UnitBlocks
from lopjax.wiring import Wiring

# Growth rates are averaged over this many stretches of a run, whose spread gives the standard error.
NUM_STRETCHES = 32


class FreeKick(NamedTuple):
    """Result of `free_kick`.

    Attributes:
        direction: unit vector, a tree like the parameters: the pattern (+, -)/sqrt(2) over two clones times r in their
            outgoing parameters. Zero where B_j is zero.
        response: the incoming pattern `B_j r`, likewise: what a kick of length 1 adds to the next gradient.
        gain: length of the response, the largest singular value of B_j, in units of the loss per squared parameter.
        residual: bound on the error of the gain.
    """

    direction: Params
    response: Params
    gain: Float[Array, ""]
    residual: Float[Array, ""]


class LyapunovEstimate(NamedTuple):
    """Growth rate of small deviations.

    Attributes:
        exponent: mean of `ln(|v_(t+1)| / |v_t|)` per step: positive means that the manifold repels. Minus infinity if
            a step maps the deviation to zero.
        standard_error: of the exponent, from the spread over stretches of the run, which may be correlated inside.
        num_steps: steps averaged over.
    """

    exponent: Float[Array, ""]
    standard_error: Float[Array, ""]
    num_steps: int


def kick_components(eigenvectors: Params, kick: Params) -> Float[Array, "pairs"]:
    """Components `c_k = <v_k, kick>` of a kick along unit eigenvectors.

    Args:
        eigenvectors: a tree like the parameters with a leading axis over pairs, as in `Eigenpairs`.
        kick: a tree like the parameters.

    Raises:
        ValueError: trees that do not match.
    """
    first = jax.tree.map(lambda leaf: leaf[0], eigenvectors)
    check_same_tree(first, kick, "kick")
    products = jax.tree.map(lambda vectors, leaf: jnp.tensordot(vectors, leaf, leaf.ndim), eigenvectors, kick)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def escape_time(
    eigenvalues: ArrayLike | Sequence[float],
    components: ArrayLike | Sequence[float],
    radius: float,
    learning_rate: float,
    *,
    continuous: bool = False,
) -> Float[Array, ""]:
    """Steps that a kick off a manifold takes to grow to a distance, by linear theory at a critical point.

    Along an eigenvector of the normal Hessian with lambda_k < 0 a step of gradient descent multiplies the component
    c_k by `1 + eta |lambda_k|`, so that

        t = min over k with lambda_k < 0 of  ln(R / |c_k|) / ln(1 + eta |lambda_k|),

    and `ln(1 + eta |lambda|)` becomes `eta |lambda|` for gradient flow. The component counts, not the length of the
    kick: an isotropic one of length e in d dimensions has |c_k| near e / sqrt(d). With noise in the gradient, see
    `transverse_lyapunov`.

    Args:
        eigenvalues: lambda_k, (pairs,), in units of the loss per squared parameter; those that are not negative are
            ignored, so overshooting (eta lambda > 2) is not covered.
        components: c_k, (pairs,), in units of parameters; see `kick_components`.
        radius: R, in units of parameters, small enough for the linear theory.
        learning_rate: eta.
        continuous: gradient flow in place of gradient descent, its time divided by eta.

    Returns:
        A number of steps, not rounded. 0 if a component has reached the radius; infinite if no unstable direction was
        kicked.

    Raises:
        ValueError: a radius or learning rate that is not positive; arrays of different lengths.

    >>> round(float(escape_time([-1.0, 2.0], [1e-3, 0.5], radius=0.1, learning_rate=0.1)), 1)
    48.3
    """
    if not (radius > 0 and learning_rate > 0):
        raise ValueError(f"radius={radius}, learning_rate={learning_rate}: both must be positive")
    rates, sizes = jnp.asarray(eigenvalues), jnp.abs(jnp.asarray(components))
    if rates.shape != sizes.shape or rates.ndim != 1:
        raise ValueError(f"eigenvalues {rates.shape} and components {sizes.shape}: give one component per eigenvalue")
    is_growing = (rates < 0) & (sizes > 0)
    per_step = learning_rate * jnp.where(is_growing, -rates, 1.0)
    growth = per_step if continuous else jnp.log1p(per_step)
    distances = jnp.log(radius) - jnp.log(jnp.where(is_growing, sizes, 1.0))
    times = jnp.where(is_growing, jnp.maximum(distances / growth, 0.0), jnp.inf)
    # A broken-off computation must not pass for a network that stays for ever.
    times = jnp.where(jnp.isnan(rates) | jnp.isnan(sizes), jnp.nan, times)
    return jnp.min(times, initial=jnp.inf)


def critical_weight_decay(smallest: UnitBlocks | ArrayLike | Sequence[float]) -> float:
    """The weight decay beyond which a cloned manifold attracts: `max(0, -min_j lambda_min(M_j))`.

    Decay adds `lambda/2 ||theta||²` to the loss and lambda to every eigenvalue. The blocks are those at the given
    point, and training with decay moves it. For positive-homogeneous units at a stationary point of the decayed loss
    this is never less than the decay, which therefore never strictly attracts there.

    Args:
        smallest: result of `unit_blocks`, or the smallest eigenvalues of the blocks. From "batched hvp" or Lanczos,
            which see the smallest eigenvalue from above, the result is a lower bound.

    Returns:
        In units of the loss per squared parameter; NaN if an eigenvalue is.

    Raises:
        ValueError: no eigenvalues.

    >>> critical_weight_decay([-0.25, 0.5])
    0.25
    """
    values = np.asarray(smallest.total.min_eigenvalue if isinstance(smallest, UnitBlocks) else smallest, np.float64)
    if not values.size:
        raise ValueError("no eigenvalues were given: pass the result of unit_blocks, or at least one number")
    return float(np.maximum(-values.min(), 0.0))


def free_kick(
    loss: Loss,
    params: Params,
    wiring: Wiring,
    partition: Partition,
    space: str,
    unit: int,
    *,
    num_steps: int = 64,
    key: Key[Array, ""] | None = None,
) -> FreeKick:
    """The change of parameters that changes no activation and yet frees a cloned unit the fastest.

    Outgoing patterns r on the clones of unit j, of any size, leave the function as it is. The next gradient has `B_j r`
    on their incoming weights, with B_j the coupling in the unit's block `M_j = [[A_j, B_j], [B_j', 0]]`. The best r is
    the top right singular vector, found by Lanczos on `[[0, B_j], [B_j', 0]]` from Hessian-vector products, so for any
    wiring.

    Args:
        loss: `params -> scalar`, a mean over samples.
        params: parameters of the cloned network, block constant on the clusters.
        wiring: its wiring.
        partition: cluster id of every unit, per space.
        space: space of the unit.
        unit: its index in the base network: clusters in the order in which they first appear.
        num_steps: Lanczos steps, two Hessian-vector products each.
        key: random key of the start vector, `jax.random.key(0)` by default.

    Returns:
        The direction; scale it as you like. A gain of 0 means that no small outgoing change frees the unit.

    Raises:
        ValueError: parameters off BC; a space without clones; a unit that does not exist or has no clone.

    References:
        The zero block of outgoing patterns extends Fukumizu and Amari, Neural Networks 13 (2000), to any wiring.
    """
    clusters = check_partition(wiring, partition)
    _check_unit({name: np.bincount(found.ids) for name, found in clusters.items()}, space, unit)
    residual = block_constant_residual({"params": params}, wiring, clusters)
    allowed = 64 * float(jnp.finfo(jnp.result_type(*jax.tree.leaves(params))).eps)
    if not residual <= allowed:
        raise ValueError(
            f"params are not block constant on these clusters: residual {residual:.3g}, allowed {allowed:.3g}. "
            "Elsewhere units couple and have no blocks of their own"
        )
    lift, zero = make_lift(params, wiring, clusters)
    split = min(slot.start for slot in unit_slots(params, wiring, clusters)[space] if slot.is_outgoing)

    def embed(row: Array) -> Params:
        return lift({**zero, space: zero[space].at[unit].set(row)})

    def coupled(row: Array) -> Array:
        """`[[A, B], [B', 0]] row`."""
        return jax.linear_transpose(embed, row)(hvp(loss, params, embed(row)))[0]

    is_incoming = jnp.arange(zero[space].shape[1]) < split

    def coupling(row: Array) -> Array:
        incoming, outgoing = jnp.where(is_incoming, row, 0), jnp.where(is_incoming, 0, row)
        return jnp.where(is_incoming, coupled(outgoing), coupled(incoming))

    @jax.jit
    def top_pair(key: Key[Array, ""]) -> FreeKick:
        pairs = extreme_eigenvalues(coupling, zero[space][unit], num_steps, key)
        right = jnp.where(is_incoming, 0, pairs.eigenvectors[-1])
        length = jnp.linalg.norm(right)
        is_coupled = (length > 0) & (pairs.eigenvalues[-1] > 0)
        right = jnp.where(is_coupled, right / jnp.where(length > 0, length, 1), 0)
        response = embed(coupling(right))
        return FreeKick(embed(right), response, tree_norm(response), pairs.residuals[-1])

    return top_pair(jax.random.key(0) if key is None else key)


def _check_unit(counts: dict[str, np.ndarray], space: str, unit: int) -> None:
    if space not in counts:
        raise ValueError(f"space={space!r} has no clones: those with clones are {list(counts)}")
    if not 0 <= unit < len(counts[space]):
        raise ValueError(f"unit={unit}: {space!r} has clusters 0..{len(counts[space]) - 1}")
    if counts[space][unit] < 2:
        raise ValueError(f"unit={unit} of {space!r} has no clone to form a pattern with: choose one that has")


def transverse_lyapunov(
    matvec: Callable[[PyTree, Params], Params],
    example: Params,
    batches: PyTree,
    learning_rate: float,
    key: Key[Array, ""],
    *,
    project: Callable[[Params], Params] | None = None,
    burn_in: int = 0,
) -> LyapunovEstimate:
    """Top Lyapunov exponent of stochastic gradient descent off a manifold, by renormalised products.

    A small deviation v follows `v <- (I - eta M_B) v` with M_B the normal Hessian on the minibatch B of the step; the
    exponent is the mean growth of ln |v| per step. Its sign decides whether the clones separate: noise attracts when
    all M_B share their eigenvectors, and can repel when they do not. To second order in eta one step adds
    `-eta v'M_B v + (eta²/2) (||M_B v||² - 2 (v'M_B v)²)` along the running unit direction v.

    Args:
        matvec: `(batch, v) -> M_B v`: `lambda batch, v: hvp(loss_of(batch), params, v)`, or `jnp.matmul` for explicit
            matrices. If the parameters move, make those of every step part of its batch.
        example: a tree like v; values are not used.
        batches: a tree of arrays whose first axis is the step, one minibatch each.
        learning_rate: eta.
        key: random key of the first deviation.
        project: orthogonal projector onto the normal space of an invariant manifold, applied after every step against
            rounding; None for the whole space.
        burn_in: first steps, left out of the mean while the deviation turns into its typical direction.

    Returns:
        The exponent and its standard error; NaN if a product is not finite.

    Raises:
        ValueError: a negative `burn_in`, or fewer than two steps after it; batches of different lengths.

    Example:
        >>> growing = jnp.broadcast_to(-jnp.eye(2), (10, 2, 2))
        >>> estimate = transverse_lyapunov(jnp.matmul, jnp.zeros(2), growing, 0.5, jax.random.key(0))
        >>> round(float(estimate.exponent), 4)  # ln(1 + 0.5)
        0.4055

    References:
        arXiv 2306.04251: stochastic collapse, where noise attracts. Estimator: Benettin et al., Meccanica 15 (1980).
    """
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(batches)}
    if len(lengths) != 1:
        raise ValueError(f"batches have first axes of length {sorted(lengths)}: all must count the same steps")
    num_steps = lengths.pop() - burn_in
    if burn_in < 0 or num_steps < 2:
        raise ValueError(f"burn_in={burn_in} leaves {num_steps} steps: must be at least 0, and leave at least two")
    leave = (lambda vector: vector) if project is None else project
    keys = jax.random.split(key, len(jax.tree.leaves(example)))
    leaves, tree = jax.tree.flatten(example)
    draw = [jax.random.normal(one, leaf.shape, leaf.dtype) for one, leaf in zip(keys, leaves, strict=True)]

    def step(vector: Params, batch: PyTree) -> tuple[Params, Array]:
        moved = jax.tree.map(lambda leaf, product: leaf - learning_rate * product, vector, matvec(batch, vector))
        return _normalised(leave(moved))

    start, _ = _normalised(leave(tree.unflatten(draw)))
    growth = np.asarray(jax.jit(lambda start, batches: jax.lax.scan(step, start, batches)[1])(start, batches))[burn_in:]
    stretches = np.array([part.mean() for part in np.array_split(growth, min(NUM_STRETCHES, num_steps))])
    if np.isneginf(growth).any() and not np.isnan(growth).any():
        return LyapunovEstimate(jnp.asarray(-jnp.inf), jnp.asarray(0.0), num_steps)
    error = stretches.std(ddof=1) / len(stretches) ** 0.5
    return LyapunovEstimate(jnp.asarray(growth.mean()), jnp.asarray(error), num_steps)


def _normalised(vector: Params) -> tuple[Params, Array]:
    norm = tree_norm(vector)
    return jax.tree.map(lambda leaf: leaf / jnp.where(norm == 0, 1, norm).astype(leaf.dtype), vector), jnp.log(norm)
