"""How long a kick normal to a manifold takes to grow, by linear theory at a critical point."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lopjax.arguments.numbers import takes_numbers
from lopjax.curvature import check_same_tree
from lopjax.curvature.products import Params

# Halvings of a bracket: more than a double has binary digits.
_BISECTIONS = 80


@takes_numbers(eigenvectors=None, kick=None)
def kick_components(eigenvectors: Params, kick: Params) -> Float[Array, "pairs"]:
    """Components `c_k = <v_k, kick>` of a kick along unit eigenvectors.

    Args:
        eigenvectors: a tree like the parameters with a leading axis over pairs, as in `Eigenpairs`.
        kick: a tree like the parameters.

    Raises:
        ValueError: trees that do not match.
    """
    if any(jnp.ndim(leaf) == 0 or not len(leaf) for leaf in jax.tree.leaves(eigenvectors)):
        raise ValueError("eigenvectors hold no pair: must have a leading axis over at least one")
    first = jax.tree.map(lambda leaf: leaf[0], eigenvectors)
    check_same_tree(first, kick, "kick")
    products = jax.tree.map(lambda vectors, leaf: jnp.tensordot(vectors, leaf, leaf.ndim), eigenvectors, kick)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


@takes_numbers(eigenvalues=(0, 1), components=(0, 1))
def escape_time(
    eigenvalues: ArrayLike | Sequence[float],
    components: ArrayLike | Sequence[float],
    radius: float,
    learning_rate: float,
    *,
    multiplicities: ArrayLike | Sequence[int] | None = None,
    momentum: float = 0.0,
    continuous: bool = False,
    tolerance: float = 0.0,
) -> Float[Array, ""]:
    """Steps that a kick normal to a manifold takes to reach a distance, by linear theory at a critical point.

    Along an eigenvector of the normal Hessian with eigenvalue lambda_k a step of gradient descent multiplies the
    component c_k by `1 - eta lambda_k`, and the distance is the root of the sum of squares over all directions that
    grow: the result is

        the smallest t with  sum_k m_k c_k² g_k(t)² >= R²,    g_k(t) = |1 - eta lambda_k|^t  without momentum.

    With momentum beta, `g(t) = |a r1^t + (1 - a) r2^t|`, r1 and r2 the roots of `r² - (1 + beta - eta lambda) r + beta`
    and `a = (1 - eta lambda - r2) / (r1 - r2)`, for a start with zero momentum. A direction grows if lambda < 0, or by
    overshooting, if `eta lambda > 2 (1 + beta)`. The components along the other directions are left out: they decay, or
    stay as small as they were. Where they are small compared with R, the result agrees with `escape_time_along`.

    This is a law for eigenvalues that are not 0: the time grows with the logarithm of R over the kick. Where the lowest
    eigenvalue is 0 (a NEUTRAL normal Hessian, as at small weights where there are more than two bottleneck layers)
    a kick can still grow by higher orders, in a time that is a power of its size (arXiv 2605.01288). Linear theory does
    not see that: an infinite result then means that linear theory predicts no growth, not that there is none. An
    eigenvalue that is 0 but for rounding would make a law of its own; `tolerance` leaves it out.

    The component counts, not the length of the kick: an isotropic one of length e in d dimensions has |c_k| near
    e / sqrt(d). With noise in the gradient, see `transverse_lyapunov` and `escape_probability`.

    Args:
        eigenvalues: lambda_k, (pairs,), in units of the loss per squared parameter.
        components: c_k, (pairs,), in units of parameters; see `kick_components`.
        radius: R, in units of parameters, small enough for the linear theory.
        learning_rate: eta.
        multiplicities: m_k, (pairs,): the number of times an eigenvalue occurs, with c_k the root mean square of its
            components; 1 by default. Among n_j clones every eigenvalue of the block M_j occurs n_j - 1 times.
        momentum: beta in [0, 1), of heavy-ball momentum as in `optax.sgd`.
        continuous: gradient flow instead of gradient descent, with time divided by eta: `g(t) = exp(-eta lambda t)`.
        tolerance: eigenvalues of at most this size are rounding and count as 0; see `StabilityReport.tolerance`.

    Returns:
        A number of steps, not rounded. 0 if the growing part of the kick has reached the radius; infinite if no
        direction that grows in linear theory was kicked; NaN if a component is NaN or an eigenvalue is not finite.

    Raises:
        ValueError: a radius or learning rate that is not positive; momentum outside [0, 1), or nonzero with gradient
            flow; a negative tolerance; arrays of different lengths.

    Example:
        >>> round(float(escape_time([-1.0, 2.0], [1e-3, 0.5], radius=0.1, learning_rate=0.1)), 1)
        48.3
        >>> round(float(escape_time([-1.0], [1e-3], 0.1, 0.1, multiplicities=[100])), 1)
        24.2
    """
    if not (radius > 0 and learning_rate > 0):
        raise ValueError(f"radius={radius}, learning_rate={learning_rate}: both must be positive")
    if not 0 <= momentum < 1 or (momentum and continuous):
        raise ValueError(f"momentum={momentum}: must lie in [0, 1), and be 0 with continuous=True")
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance}: must be at least 0")
    values, sizes, times = _pairs(eigenvalues, components, multiplicities)
    if not values.size:
        return jnp.asarray(jnp.inf)
    # A failed computation must not be mistaken for a network that never escapes.
    is_unknown = jnp.any(~jnp.isfinite(values) | jnp.isnan(sizes))
    values = jnp.where(jnp.abs(values) <= tolerance, 0.0, values)
    modes = _growing_modes(values, sizes, times, learning_rate, momentum, continuous)
    return jnp.where(is_unknown, jnp.nan, _first_time(modes, jnp.log(radius)))


def _pairs(eigenvalues: Any, components: Any, multiplicities: Any) -> tuple[Array, Array, Array]:
    """Eigenvalues, absolute components and multiplicities, one of each for every pair; arguments of `escape_time`."""
    values, sizes = _at_least_single(eigenvalues), jnp.abs(_at_least_single(components))
    times = jnp.ones_like(sizes) if multiplicities is None else jnp.asarray(multiplicities)
    if values.ndim != 1 or not values.shape == sizes.shape == times.shape:
        raise ValueError(
            f"eigenvalues {values.shape}, components {sizes.shape} and multiplicities {times.shape}: "
            "give one component per eigenvalue, and one multiplicity"
        )
    return values, sizes, times


class _Modes(NamedTuple):
    """Modes of a kick, of which only the growing ones count; each field has shape `(pairs,)`.

    Attributes:
        is_growing: which modes count.
        starts: `ln(sqrt(m_k) |c_k|)`.
        per_step: `ln |r1|`.
        second: `|r2 / r1|`.
        share: a.
    """

    is_growing: Array
    starts: Array
    per_step: Array
    second: Array
    share: Array

    def log_distance(self, t: ArrayLike) -> Array:
        """Logarithm of the distance after t steps."""
        growth = t * self.per_step + jnp.log(self.share + (1 - self.share) * self.second**t)
        return 0.5 * jax.nn.logsumexp(jnp.where(self.is_growing, 2 * (self.starts + growth), -jnp.inf))


def _growing_modes(
    values: Array, sizes: Array, times: Array, learning_rate: float, momentum: float, continuous: bool
) -> _Modes:
    """How each mode grows; placeholders for the modes that do not grow.

    Args:
        values: eigenvalues, `(pairs,)`.
        sizes: |c_k|.
        times: multiplicities m_k.
        learning_rate: eta.
        momentum: beta.
        continuous: gradient flow instead of gradient descent.
    """
    excess = _excess(learning_rate * values, momentum, continuous)
    is_growing = (excess > 0) & (sizes > 0) & (times > 0)
    excess = jnp.where(is_growing, excess, 1.0)
    per_step, second, share = _roots(excess, values < 0, momentum)
    per_step = jnp.where(is_growing, excess if continuous else per_step, 1.0)
    starts = jnp.log(jnp.where(is_growing, sizes, 1.0)) + 0.5 * jnp.log(jnp.where(is_growing, times, 1))
    return _Modes(is_growing, starts, per_step, second, share)


def _first_time(modes: _Modes, log_radius: Array) -> Array:
    """The smallest t at which the distance has reached the radius, by bisection; infinite without a growing mode."""
    # Each mode alone has grown to at least min(share, 1) |c| r1^t, so together they reach the radius no later.
    alone = (log_radius - modes.starts - jnp.log(jnp.minimum(modes.share, 1.0))) / modes.per_step
    latest = jnp.maximum(jnp.min(jnp.where(modes.is_growing, alone, jnp.inf)), 0.0)

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        early, late = bracket
        middle = jnp.asarray(0.5 * (early + late))
        is_out = modes.log_distance(middle) >= log_radius
        return jnp.where(is_out, early, middle), jnp.where(is_out, middle, late)

    crossing = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(latest), latest))[1]
    is_out_at_once = modes.log_distance(jnp.zeros_like(latest)) >= log_radius
    return jnp.where(jnp.isinf(latest), jnp.inf, jnp.where(is_out_at_once, 0.0, crossing))


def _at_least_single(numbers: ArrayLike | Sequence[float]) -> Array:
    """The numbers in at least float32: 16 bits would round a number of steps to two or three digits."""
    array = jnp.asarray(numbers)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _excess(rates: Array, momentum: float, continuous: bool) -> Array:
    """Positive where a direction grows: -eta lambda if lambda < 0, else eta lambda - 2 (1 + beta), for overshooting."""
    if continuous:
        return -rates
    return jnp.where(rates < 0, -rates, rates - 2 * (1 + momentum))


def _roots(excess: Array, is_downhill: Array, momentum: float) -> tuple[Array, Array, Array]:
    """`(ln|r1|, |r2 / r1|, a)` of heavy-ball momentum.

    Downhill both roots are positive, of `r² - (1 + beta + x) r + beta`. When overshooting, both are negative, and their
    absolute values solve the same equation with x the excess over the threshold.
    """
    root = jnp.sqrt((1 - momentum) ** 2 + 2 * excess * (1 + momentum) + excess**2)
    gap = 1 - momentum - excess
    # r1 - 1, in whichever of two equal forms does not cancel.
    beyond = jnp.where(gap > 0, 2 * excess / (root + jnp.maximum(gap, 0)), (root - gap) / 2)
    first = 1 + beyond
    ratio = momentum / first**2
    share = (1 - jnp.where(is_downhill, 1, -1) * momentum / first) / (1 - ratio)
    return jnp.log1p(beyond), ratio, share
