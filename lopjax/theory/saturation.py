"""Rank-recovery strength alpha of an activation, and the frozen fraction, under scale and shift of its input."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopjax.theory.hermite import Function, require_float64, split_edges
from lopjax.theory.moments import activation_moments, bends, derivative, is_traced, spread_of

_CELLS = 32
"""Cells per panel in which each level of f' is looked for once."""


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
        centred: variance instead of second moment. Goes with centred kernel maps: never mix the two.
        order: nodes per panel.

    Returns:
        alpha, of the broadcast shape; differentiable in scale and shift (`alpha_gradient`).

    Raises:
        ValueError: if f is not integrable, not resolved, or constant.
        RuntimeError: if double precision is off.

    References:
        arXiv 2510.00304, Definition of alpha_f in section 4. The values printed there (ReLU 0.5, tanh 0.6667,
        GELU 0.5449) are not those of this definition, centred or not.

    >>> from lopjax.activations import activation
    >>> with jax.enable_x64(True):
    ...     [round(float(alpha(activation("relu"), centred=c)), 6) + 0.0 for c in (False, True)]
    [0.0, 0.466942]
    """
    moments = activation_moments(f, scale, shift, order)
    return moments.derivative_second_moment / spread_of(f, moments, centred) - 1


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
        ValueError: as `alpha`.
        RuntimeError: if double precision is off.
    """
    alpha(f, scale, shift, centred, order)  # Under grad nothing can be refused.
    point = jnp.asarray(scale, float), jnp.asarray(shift, float)
    return jax.grad(lambda a, b: alpha(f, a, b, centred, order), argnums=(0, 1))(*point)


def shifted_relu_alpha(offset: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """Evaluate alpha of ReLU(a z + b), uncentred, in closed form: `Phi(c) / ((1 + c²) Phi(c) + c phi(c)) - 1`, c = b/a.

    It cancels for c far below 0, where alpha grows like c²/2: there use `alpha`.

    Args:
        offset: c, mean over standard deviation of the pre-activation.

    Returns:
        alpha, of the shape of `offset`.
    """
    c = jnp.asarray(offset)
    mass, density = jax.scipy.stats.norm.cdf(c), jax.scipy.stats.norm.pdf(c)
    return mass / ((1 + c**2) * mass + c * density) - 1


def frozen_fraction(
    f: Function,
    scale: Float[Array, "..."] | float = 1.0,
    shift: Float[Array, "..."] | float = 0.0,
    threshold: float = 1e-4,
) -> Float[Array, "..."]:
    """Compute `P(|g'(z)| < threshold)` for g(z) = f(scale z + shift), z standard normal.

    The set is found, not sampled: the levels +threshold and -threshold of g' are bracketed on a grid and bisected to
    machine precision (also where g' jumps), and the normal mass between the crossings is added up.

    Args:
        f: activation.
        scale: standard deviation of the pre-activation, not 0. Broadcast against `shift`.
        shift: its mean.
        threshold: derivatives smaller than this in modulus count as frozen; positive.

    Returns:
        The fraction in [0, 1], of the broadcast shape; NaN where g' is not finite. Not differentiable.

    Raises:
        ValueError: if the threshold is not positive, or f is not integrable or not resolved.
        RuntimeError: if double precision is off.

    >>> from lopjax.activations import activation
    >>> with jax.enable_x64(True):
    ...     round(float(frozen_fraction(activation("relu"), shift=-1.0)), 6)  # Phi(1)
    0.841345
    """
    require_float64()
    if not threshold > 0:
        raise ValueError(f"threshold={threshold}: must be positive")
    scale, shift = jnp.asarray(scale, float), jnp.asarray(shift, float)
    if not is_traced(scale, shift):
        activation_moments(f, scale, shift)  # Refuses what is not finite or not resolved.
    return _frozen_fraction(f, scale, shift, jnp.asarray(threshold, float))


@partial(jax.jit, static_argnums=0)
def _frozen_fraction(f: Function, scale, shift, threshold) -> Float[Array, "..."]:
    def one(scale: Float[Array, ""], shift: Float[Array, ""]) -> Float[Array, ""]:
        def slope(z):
            return scale * derivative(f)(scale * z + shift)

        edges = split_edges(bends(f, scale, shift))
        length = jnp.diff(edges)[:, None]
        z = edges[:-1, None] + length * jnp.linspace(0.0, 1.0, _CELLS + 1)
        below, far_below = jax.vmap(lambda level: _mass_below(slope, z, level))(jnp.stack([threshold, -threshold]))
        return jnp.where(jnp.all(jnp.isfinite(slope(z))), jnp.clip(below - far_below, 0.0, 1.0), jnp.nan)

    return jnp.vectorize(one)(scale, shift)


def _mass_below(slope: Function, z: Float[Array, "panels points"], level: Float[Array, ""]) -> Float[Array, ""]:
    """Return the normal mass of {slope < level}, if the slope crosses the level at most once in a cell.

    No cell contains 0 inside, so the mass between two points of a cell is the difference of their tails, which is
    accurate far out as well.
    """
    is_below = slope(z) < level
    starts_below, ends_below = is_below[:, :-1], is_below[:, 1:]

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        is_before = (slope(middle) < level) == starts_below
        return jnp.where(is_before, middle, low), jnp.where(is_before, high, middle)

    low, high = jax.lax.fori_loop(0, 45, halve, (z[:, :-1], z[:, 1:]))
    tail, crossing_tail = (jax.scipy.special.ndtr(-jnp.abs(x)) for x in (z, (low + high) / 2))
    # A cell without a crossing is below or above as a whole.
    split = jnp.where(starts_below == ends_below, tail[:, 1:], crossing_tail)
    before, after = jnp.abs(tail[:, :-1] - split), jnp.abs(split - tail[:, 1:])
    return jnp.sum(jnp.where(starts_below, before, 0.0) + jnp.where(ends_below, after, 0.0))
