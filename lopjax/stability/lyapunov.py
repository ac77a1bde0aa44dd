"""The effect of noise near a manifold: growth rates of small deviations under stochastic gradients."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from lopjax.arguments.integers import as_integer
from lopjax.arguments.numbers import takes_numbers
from lopjax.curvature.products import Params
from lopjax.manifolds import tree_norm

# Growth rates are averaged over this many segments of a run, whose spread gives the standard error.
NUM_STRETCHES = 32


class LyapunovEstimate(NamedTuple):
    """Growth rate of small deviations.

    Attributes:
        exponent: mean of `ln(|v_(t+1)| / |v_t|)` per step; positive if the manifold repels. Minus infinity if a step
            maps the deviation to zero.
        standard_error: standard error of the exponent, from the spread over segments of the run, within which steps may
            be correlated.
        num_steps: number of steps averaged over.
    """

    exponent: Float[Array, ""]
    standard_error: Float[Array, ""]
    num_steps: int


def noise_exponent(p: int, q: int) -> float:
    """Exact Lyapunov exponent, divided by eta², near clones driven by isotropic noise alone, as eta -> 0.

    The products of `v <- (I - eta M) v`, `M = [[0, B], [B', 0]]`, the entries of B, p x q, independent N(0, 1) at every
    step: the block of a unit with p incoming and q outgoing parameters whose mean coupling vanishes, as on a fitted
    task. With v = (u, w), p >= q, the drift of `ln |u|²` is `eta² (p - 2) |w|² / |u|²` per step, and |w| < |u| in the
    long run. So the exponent is `eta² (p - 2)/2 E[|w|² / |u|²]`, and has the sign of max(p, q) - 2. For p > q the ratio
    is (t - 1)/(t + 1) with `t = |v|² / (|u|² - |w|²)`, whose stationary density on t > 1 is

        (t + 1)^(p/2 - 1) (t - 1)^(q/2 - 1) e^(-(p - q) t / 4),   up to a constant,

    because the difference of squares has no noise, `d(|u|² - |w|²) = eta² (p |w|² - q |u|²)` per step; for p = q the
    ratio tends to 1. Symmetric in p and q. Proof: docs/theory/stability.md.

    Entries of size s multiply it by s²; weight decay lambda lowers the exponent by eta lambda, so noise alone frees
    fitted clones iff `lambda < eta s² noise_exponent(p, q)`. Valid for isotropic noise only: with one large input among
    small ones the sign can differ from what the effective dimension suggests.

    Args:
        p: number of incoming parameters of the unit, its bias included.
        q: number of its outgoing parameters.

    Returns:
        The exponent per step divided by eta² (and s²): negative where noise attracts, which happens only at p = q = 1;
        exactly 0 at (2, 1), (1, 2) and (2, 2).

    Raises:
        ValueError: dimensions that are not positive integers.

    Example:
        >>> noise_exponent(1, 1), noise_exponent(2, 1), round(noise_exponent(3, 1), 4), noise_exponent(4, 4)
        (-0.5, 0.0, 0.1418, 1.0)
    """
    for name, value in (("p", p), ("q", q)):
        as_integer(value, 1, f"{name}={value!r}: must be a positive integer, a number of parameters")
    more, less = max(p, q), min(p, q)
    if more == less:
        return more / 2 - 1
    # s = t - 1 on a logarithmic grid, where the trapezoid rule converges geometrically: the integrand is analytic in a
    # strip of width pi and decays at both ends.
    step = 0.25 / math.sqrt(1 + more / 4)
    logs = np.arange(-160 / less, math.log(4 * (800 + 10 * more) / (more - less)), step)
    s = np.exp(logs)
    log_weights = (more / 2 - 1) * np.log(s + 2) + less / 2 * logs - (more - less) / 4 * s
    weights = np.exp(log_weights - log_weights.max())
    return float((more / 2 - 1) * (weights @ (s / (s + 2))) / weights.sum())


@takes_numbers(example=None)
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
    """Top Lyapunov exponent of stochastic gradient descent normal to a manifold, by renormalised products.

    A small deviation v follows `v <- (I - eta M_B) v` with M_B the normal Hessian on the minibatch B of the step; the
    exponent is the mean growth of ln |v| per step. Its sign decides whether the clones separate. To second order in eta
    one step adds `-eta v'M_B v + (eta²/2) (||M_B v||² - 2 (v'M_B v)²)` along the running unit direction v. Where all
    M_B share their eigenvectors and have mean zero this is `-(eta²/2) E m²`, and noise attracts as long as eta m is
    small (eigenvalues eta m = +-3, each half of the time, give +1.04). If eigenvectors differ, noise can repel: see
    `noise_exponent`.

    Args:
        matvec: `(batch, v) -> M_B v`: `lambda batch, v: hvp(loss_of(batch), params, v)`, or `jnp.matmul` for explicit
            matrices. If the parameters move, include those of every step in its batch.
        example: a tree like v; values are not used.
        batches: a tree of arrays whose first axis is the step, one minibatch each.
        learning_rate: eta.
        key: random key of the first deviation.
        project: orthogonal projector onto the normal space of an invariant manifold, applied after every step to remove
            rounding errors; None for the whole space.
        burn_in: number of first steps left out of the mean, while the deviation turns into its typical direction.

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
        raise ValueError(f"batches have first axes of length {sorted(lengths)}: all must have the same number of steps")
    num_steps = lengths.pop() - burn_in
    if burn_in < 0 or num_steps < 2:
        raise ValueError(f"burn_in={burn_in} leaves {num_steps} steps: must be at least 0, and leave at least two")
    leave = (lambda vector: vector) if project is None else project
    keys = jax.random.split(key, len(jax.tree.leaves(example)))
    leaves, tree = jax.tree.flatten(example)
    draw = [jax.random.normal(one, leaf.shape, leaf.dtype) for one, leaf in zip(keys, leaves, strict=True)]

    def step(vector: Params, batch: PyTree) -> tuple[Params, Array]:
        moved = jax.tree.map(lambda leaf, product: leaf - learning_rate * product, vector, matvec(batch, vector))
        return normalised(leave(moved))

    start, _ = normalised(leave(tree.unflatten(draw)))
    growth = np.asarray(jax.jit(lambda start, batches: jax.lax.scan(step, start, batches)[1])(start, batches))[burn_in:]
    return estimate_of(growth)


def estimate_of(growth: np.ndarray) -> LyapunovEstimate:
    """The exponent from what `ln |v|` has grown by at every step, `(steps,)`."""
    num_steps = len(growth)
    stretches = np.array([part.mean() for part in np.array_split(growth, min(NUM_STRETCHES, num_steps))])
    if np.isneginf(growth).any() and not np.isnan(growth).any():
        return LyapunovEstimate(jnp.asarray(-jnp.inf), jnp.asarray(0.0), num_steps)
    error = stretches.std(ddof=1) / len(stretches) ** 0.5
    return LyapunovEstimate(jnp.asarray(growth.mean()), jnp.asarray(error), num_steps)


def normalised(vector: Params) -> tuple[Params, Array]:
    """A tree over its length, and the logarithm of that; a tree of zeros as it is."""
    norm = tree_norm(vector)
    return jax.tree.map(lambda leaf: leaf / jnp.where(norm == 0, 1, norm).astype(leaf.dtype), vector), jnp.log(norm)
