"""Rank-recovery strength alpha of an activation, and the frozen fraction, under scale and shift of its input."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lopjax.arguments.numbers import takes_numbers
from lopjax.theory.hermite import Function, require_float64, split_edges
from lopjax.theory.moments import activation_moments, bends, derivative, is_traced, name_of, spread_of

_CELLS = 32
"""Cells per panel, on each of which f' may have one extremum."""

_CELL = 1 / _CELLS
"""Length of the longest cells, in standard deviations of the pre-activation."""

_LOOKS = 5
"""Number of parts of each cell, at whose ends the sign of f'' is evaluated."""

_WIDTH = 1e-9
"""Largest distance between the bounds for which a frozen fraction is returned as a number."""


@takes_numbers(scale=None, shift=None)
def alpha(
    f: Function,
    scale: Float[Array, "..."] | float = 1.0,
    shift: Float[Array, "..."] | float = 0.0,
    centred: bool = False,
    order: int = 32,
) -> Float[Array, "..."]:
    """Compute `alpha = E g'(z)² / E g(z)² - 1` for g(z) = f(scale z + shift), z standard normal.

    Centred, the variance of g replaces E g²; then alpha >= 0 by the Gaussian Poincaré inequality, with equality for
    linear f only. The derivative is in z: `g' = scale f'(scale z + shift)`. alpha is the rate at which the activation
    separates units that are nearly copies: `1 - kappa_f(1 - eps) = (1 + alpha) eps + ...`.

    Args:
        f: activation.
        scale: standard deviation of the pre-activation, not 0. Broadcast against `shift`.
        shift: its mean.
        centred: variance instead of second moment. Use it with centred kernel maps only.
        order: nodes per panel.

    Returns:
        alpha, of the broadcast shape; differentiable in scale and shift (`alpha_gradient`).

    Raises:
        ValueError: f is not integrable, not resolved, or constant.
        RuntimeError: double precision is off.

    Example:
        >>> from lopjax.activations import activation
        >>> with jax.enable_x64(True):
        ...     [round(float(alpha(activation("relu"), centred=c)), 6) + 0.0 for c in (False, True)]
        [0.0, 0.466942]

    References:
        arXiv 2510.00304, Definition of alpha_f in section 4. The values printed there (ReLU 0.5, tanh 0.6667,
        GELU 0.5449) do not follow from this definition, centred or not.
    """
    moments = activation_moments(f, scale, shift, order)
    return moments.derivative_second_moment / spread_of(f, moments, centred) - 1


@takes_numbers(scale=0, shift=0)
def alpha_gradient(
    f: Function, scale: float = 1.0, shift: float = 0.0, centred: bool = False, order: int = 32
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Differentiate alpha in the scale and shift of the pre-activation, by autodiff through the quadrature.

    Args:
        f: activation.
        scale: standard deviation of the pre-activation, not 0.
        shift: its mean.
        centred: variance instead of second moment.
        order: nodes per panel.

    Returns:
        (d alpha / d scale, d alpha / d shift).

    Raises:
        ValueError: as in `alpha`.
        RuntimeError: double precision is off.
    """
    alpha(f, scale, shift, centred, order)  # Under grad no error could be raised.
    point = jnp.asarray(scale, float), jnp.asarray(shift, float)
    return jax.grad(lambda a, b: alpha(f, a, b, centred, order), argnums=(0, 1))(*point)


@takes_numbers(offset=None)
def shifted_relu_alpha(offset: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """Evaluate alpha of ReLU(a z + b), uncentred, in closed form: `Phi(c) / ((1 + c²) Phi(c) + c phi(c)) - 1`, c = b/a.

    The sum cancels for c far below 0, where alpha grows like c²/2: relative error about 1e-16 c⁴.

    Args:
        offset: c, mean over standard deviation of the pre-activation, at least -100.

    Returns:
        alpha, of the shape of `offset`.

    Raises:
        ValueError: an offset is below -100 or not a number.
        RuntimeError: double precision is off.
    """
    require_float64()
    c = jnp.asarray(offset, float)
    if not is_traced(c) and not np.all(np.asarray(c) >= -100):
        raise ValueError(f"offset={offset}: must be at least -100, below which the closed form cancels")
    # Both are divided by the density where it underflows, and not divided where Phi(c)/phi(c) would overflow.
    low = jnp.minimum(c, 0.0)
    ratio = jnp.exp(jax.scipy.special.log_ndtr(low) - jax.scipy.stats.norm.logpdf(low))
    mass, density = jax.scipy.stats.norm.cdf(c), jax.scipy.stats.norm.pdf(c)
    mass, density = jnp.where(c < 0, ratio, mass), jnp.where(c < 0, 1.0, density)
    # At c = inf, ReLU is the identity with a mean of c: alpha = -1.
    return jnp.where(jnp.isposinf(c), -1.0, mass / ((1 + c**2) * mass + c * density) - 1)


class FrozenBounds(NamedTuple):
    """Bounds on a frozen fraction.

    Attributes:
        lower: the mass found below the threshold, minus the mass of all undecided cells.
        upper: the mass found below the threshold, plus the mass of the undecided cells.
        resolution: distance between the points at which g'' is evaluated, in standard deviations of the pre-activation.
            The bounds hold for functions whose second derivative does not change its sign twice between two of them.
    """

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]
    resolution: float


@takes_numbers(scale=None, shift=None)
def frozen_fraction(
    f: Function,
    scale: Float[Array, "..."] | float = 1.0,
    shift: Float[Array, "..."] | float = 0.0,
    threshold: float = 1e-4,
) -> Float[Array, "..."]:
    """Compute `P(|g'(z)| < threshold)` for g(z) = f(scale z + shift), z standard normal, to an accuracy of 1e-9.

    This is the midpoint of `frozen_fraction_bounds`.

    Args:
        f: activation.
        scale: standard deviation of the pre-activation, not 0. Broadcast against `shift`.
        shift: its mean.
        threshold: derivatives smaller than this in modulus count as frozen; positive.

    Returns:
        The fraction in [0, 1], of the broadcast shape; NaN where g' is not finite. Not differentiable.

    Raises:
        ValueError: the threshold is not positive, f is not integrable or not resolved, or the bounds are more than
            1e-9 apart. Under `jit` no error can be raised: check the bounds instead.
        RuntimeError: double precision is off.

    Example:
        >>> from lopjax.activations import activation
        >>> with jax.enable_x64(True):
        ...     round(float(frozen_fraction(activation("relu"), shift=-1.0)), 6)  # Phi(1)
        0.841345
    """
    lower, upper, resolution = frozen_fraction_bounds(f, scale, shift, threshold)
    if not is_traced(lower) and bool(jnp.any(upper - lower > _WIDTH)):
        worst = int(jnp.argmax(upper - lower))
        raise ValueError(
            f"the frozen fraction of {name_of(f)} lies between {float(lower.ravel()[worst]):.6g} and "
            f"{float(upper.ravel()[worst]):.6g}: its slope stays at the threshold {threshold:g} somewhere, or turns "
            f"more than once within {_CELL:g} (looked at every {resolution:g}); choose another threshold, or take "
            "frozen_fraction_bounds"
        )
    return (lower + upper) / 2


@takes_numbers(scale=None, shift=None)
def frozen_fraction_bounds(
    f: Function,
    scale: Float[Array, "..."] | float = 1.0,
    shift: Float[Array, "..."] | float = 0.0,
    threshold: float = 1e-4,
) -> FrozenBounds:
    """Bound `P(|g'(z)| < threshold)` from both sides.

    The line is cut into cells of 1/32, finer at kinks. If g'' changes its sign in a cell, the cell is cut there, so
    that g' is monotone on both pieces and crosses each level at most once on each; the crossing is bisected to machine
    precision (also where g' jumps). So two crossings in one cell are found, as when g' dips below the threshold and
    returns. A cell is *undecided*, and widens the bounds by its mass, if g'' changes its sign more than once among four
    inner points and g' comes as close to a level as its own variation there, or if g' equals a level up to rounding
    throughout.

    Args:
        f: activation.
        scale: standard deviation of the pre-activation, not 0. Broadcast against `shift`.
        shift: its mean.
        threshold: derivatives smaller than this in modulus count as frozen; positive and finite.

    Returns:
        The bounds, of the broadcast shape (NaN where g' is not finite), and the resolution at which they hold. The
        convergence of the moments of f checks that it is resolved.

    Raises:
        ValueError: the threshold is not positive, or f is not integrable or not resolved.
        RuntimeError: double precision is off.

    Example:
        >>> with jax.enable_x64(True):
        ...     snake = frozen_fraction_bounds(lambda z: z + jnp.sin(3 * z) ** 2 / 3)  # slope 0 at (3/4 + k) pi / 3
        >>> round(float(snake.lower), 6), round(float(snake.upper), 6)
        (0.004502, 0.004502)
    """
    require_float64()
    if not 0 < threshold < float("inf"):
        raise ValueError(f"threshold={threshold}: must be positive")
    scale, shift = jnp.asarray(scale, float), jnp.asarray(shift, float)
    if not is_traced(scale, shift):
        activation_moments(f, scale, shift)  # Refuses functions that are not finite or not resolved.
    lower, upper = _frozen_fraction(f, scale, shift, jnp.asarray(threshold, float))
    return FrozenBounds(lower, upper, _CELL / _LOOKS)


@partial(jax.jit, static_argnums=0)
def _frozen_fraction(f: Function, scale, shift, threshold) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    def one(scale: Float[Array, ""], shift: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        def slope(z):
            return scale * derivative(f)(scale * z + shift)

        bend = derivative(slope)
        edges = split_edges(bends(f, scale, shift))
        z = edges[:-1, None] + jnp.diff(edges)[:, None] * jnp.linspace(0.0, 1.0, _CELLS + 1)
        cut = _monotone_pieces(bend, z)
        levels = jnp.stack([threshold, -threshold])
        below, far_below = jax.vmap(lambda level: _mass_below(slope, cut, level))(levels)
        known = jnp.clip(below - far_below, 0.0, 1.0)
        lost = _undecided_mass(slope, bend, z, threshold)
        is_finite = jnp.all(jnp.isfinite(slope(z)))
        bounds = jnp.maximum(known - lost, 0.0), jnp.minimum(known + lost, 1.0)
        return jnp.where(is_finite, bounds[0], jnp.nan), jnp.where(is_finite, bounds[1], jnp.nan)

    return jnp.vectorize(one)(scale, shift)


def _bisected(
    is_left: Callable[[Array], Array], low: Float[Array, "..."], high: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The point where a predicate that holds at `low` ceases to hold, if it does so once."""

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        goes_on = is_left(middle)
        return jnp.where(goes_on, middle, low), jnp.where(goes_on, high, middle)

    low, high = jax.lax.fori_loop(0, 45, halve, (low, high))
    return (low + high) / 2


def _monotone_pieces(bend: Function, z: Float[Array, "panels points"]) -> Float[Array, "panels pieces"]:
    """The grid with one additional point in every cell: where g'' changes its sign, or else the cell's end."""
    starts, ends = bend(z[:, :-1]) >= 0, bend(z[:, 1:]) >= 0
    turn = _bisected(lambda x: (bend(x) >= 0) == starts, z[:, :-1], z[:, 1:])
    turn = jnp.where(starts == ends, z[:, 1:], turn)
    pairs = jnp.stack([turn, z[:, 1:]], axis=-1).reshape(len(z), -1)
    return jnp.concatenate([z[:, :1], pairs], axis=1)


def _undecided_mass(
    slope: Function, bend: Function, z: Float[Array, "panels points"], threshold: Float[Array, ""]
) -> Float[Array, ""]:
    """Normal mass of the cells in which g' may cross a level more than once on either side of one extremum."""
    length = jnp.diff(z, axis=1)
    looks = z[:, :-1, None] + length[..., None] * jnp.linspace(0.0, 1.0, _LOOKS + 1)
    steepness, curvature = slope(looks), bend(looks)
    turns = jnp.sum(jnp.diff(curvature >= 0, axis=-1), axis=-1)
    nearest = jnp.min(jnp.abs(jnp.abs(steepness) - threshold), axis=-1)
    farthest = jnp.max(jnp.abs(jnp.abs(steepness) - threshold), axis=-1)
    is_near = nearest <= 2 * length * jnp.max(jnp.abs(curvature), axis=-1)
    is_level = farthest <= 8 * jnp.finfo(z.dtype).eps * threshold
    mass = jnp.abs(jnp.diff(jax.scipy.special.ndtr(-jnp.abs(z)), axis=1))
    return jnp.sum(jnp.where(((turns > 1) & is_near) | is_level, mass, 0.0))


def _mass_below(slope: Function, z: Float[Array, "panels points"], level: Float[Array, ""]) -> Float[Array, ""]:
    """Return the normal mass of {slope < level}, if the slope crosses the level at most once between two points.

    No cell contains 0 inside, so the mass between two points of a cell is the difference of their tails, which is
    accurate in the far tails as well.
    """
    is_below = slope(z) < level
    starts_below, ends_below = is_below[:, :-1], is_below[:, 1:]
    crossing = _bisected(lambda x: (slope(x) < level) == starts_below, z[:, :-1], z[:, 1:])
    tail, crossing_tail = (jax.scipy.special.ndtr(-jnp.abs(x)) for x in (z, crossing))
    # A cell without a crossing is below or above as a whole.
    split = jnp.where(starts_below == ends_below, tail[:, 1:], crossing_tail)
    before, after = jnp.abs(tail[:, :-1] - split), jnp.abs(split - tail[:, 1:])
    return jnp.sum(jnp.where(starts_below, before, 0.0) + jnp.where(ends_below, after, 0.0))
