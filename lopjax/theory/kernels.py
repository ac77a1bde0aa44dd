"""Kernel maps: how an activation changes the correlation of two Gaussian pre-activations.

For standard normal x, y of correlation rho, `kappa_f(rho) = E f(x) f(y) / E f(x)²`, and centred
`Cov(f(x), f(y)) / Var f(x)`. Both are power series in rho with non-negative coefficients that sum to 1
(`a_k²`, the normalised squared Hermite coefficients), on which `lopjax.theory.depth` is based.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lopjax.arguments.numbers import takes_numbers
from lopjax.theory.hermite import Function, gauss_hermite_rule, located_kinks, require_float64, split_rule
from lopjax.theory.moments import Moments, activation_moments, derivative, is_traced, name_of, rounding_of, spread_of

_SMOOTH_ORDER = 192
"""Gauss-Hermite nodes in each of the two directions for a smooth activation."""

_OTHER_ORDER = 175
"""Nodes of the rule that it is compared with. Odd: a kink at 0 is a node here and lies between two nodes there."""

_PANEL = 2.0
"""Panel length for an activation with kinks: coarser than in one dimension, as the cost is squared."""


def _arc_cosine(rho: Float[Array, "..."]) -> Float[Array, "..."]:
    """E relu(x) relu(y) (Cho & Saul 2009, n = 1)."""
    return (jnp.sqrt((1 - rho) * (1 + rho)) + rho * (jnp.pi - jnp.arccos(rho))) / (2 * jnp.pi)


# name -> (E f(x) f(y) as a function of rho, (E f)²)
_CLOSED_FORMS: dict[str, tuple[Callable[[Float[Array, "..."]], Float[Array, "..."]], float]] = {
    "relu": (_arc_cosine, 1 / (2 * np.pi)),
    "erf": (lambda rho: (2 / jnp.pi) * jnp.arcsin(2 * rho / 3), 0.0),
    "sin": (lambda rho: jnp.sinh(rho) / np.e, 0.0),
    "exp": (lambda rho: jnp.exp(1 + rho), np.e),
    "identity": (lambda rho: rho, 0.0),
}


@takes_numbers(rho=None)
def closed_form_kernel(name: str, rho: Float[Array, "..."] | float, centred: bool = False) -> Float[Array, "..."]:
    """Evaluate a kernel map known in closed form.

    - relu: `(sqrt(1 - rho²) + rho (pi - arccos rho)) / pi`
    - erf: `arcsin(2 rho / 3) / arcsin(2 / 3)`
    - sin: `sinh(rho) / sinh(1)`
    - exp: `exp(rho - 1)`
    - identity: `rho`

    Args:
        name: one of the five.
        rho: correlations in [-1, 1].
        centred: covariance over variance instead of second moments.

    Returns:
        kappa_f(rho), of the shape of `rho`.

    Raises:
        ValueError: an unknown name, or a correlation outside [-1, 1].
        RuntimeError: double precision is off.

    References:
        Cho & Saul, Kernel methods for deep learning (2009); Williams, Computing with infinite networks (1998).
    """
    if name not in _CLOSED_FORMS:
        raise ValueError(f"name={name!r}: closed forms are known for {', '.join(_CLOSED_FORMS)}; use kernel_map")
    rho = _correlations(rho)
    product, squared_mean = _CLOSED_FORMS[name]
    offset = squared_mean if centred else 0.0
    return (product(rho) - offset) / (product(jnp.ones(())) - offset)


@takes_numbers(rho=None)
def kernel_map(
    f: Function, rho: Float[Array, "..."] | float, centred: bool = False, order: int = 20
) -> Float[Array, "..."]:
    """Compute the kernel map kappa_f(rho) of any activation by integration over both pre-activations.

    With `y = rho x + sqrt(1 - rho²) w`: a tensor Gauss-Hermite rule if f is smooth; otherwise x is split at the kinks
    k of f, with panels shrinking towards them, and w where y meets a kink, at `(k - rho x) / sqrt(1 - rho²)`. A
    function with unknown kinks is searched for them (`lopjax.activation_checks.find_kinks`), and refused if two
    Gauss-Hermite rules still disagree on it.

    Args:
        f: activation. For a steep smooth activation, pass the point where it bends as a kink.
        rho: correlations in [-1, 1].
        centred: covariance over variance instead of second moments.
        order: nodes per panel, if f has kinks.

    Returns:
        kappa_f(rho), of the shape of `rho`. Differentiable for |rho| < 1; at the ends use `kernel_slope`.

    Raises:
        ValueError: a correlation is outside [-1, 1], or f is not integrable, not resolved or constant.
        RuntimeError: double precision is off.

    Example:
        >>> from lopjax.activations import activation
        >>> with jax.enable_x64(True):
        ...     generic, closed = (kernel_map(activation("relu"), 0.3), closed_form_kernel("relu", 0.3))
        >>> abs(float(generic - closed)) < 1e-12
        True

    References:
        arXiv 2510.00304, section 4; arXiv 1606.05340.
    """
    rho = _correlations(rho)
    moments = _usable_moments(f, centred)
    offset = moments.mean if centred else jnp.zeros(())
    return _integrated(f, "product", offset, 1 - rho, order) / spread_of(f, moments, centred)


@takes_numbers(eps=None)
def kernel_gap(
    f: Function, eps: Float[Array, "..."] | float, centred: bool = False, order: int = 20
) -> Float[Array, "..."]:
    """Compute `1 - kappa_f(1 - eps) = E (f(x) - f(y))² / (2 E f²)` without cancellation, for eps down to 1e-12.

    Args:
        f: activation.
        eps: distance of the correlation from 1, in [0, 2].
        centred: variance instead of second moment below the line.
        order: nodes per panel, if f has kinks.

    Returns:
        The gap, of the shape of `eps`; `(1 + alpha_f) eps` to first order.

    Raises:
        ValueError: eps is outside [0, 2], or f is not integrable, not resolved or constant.
        RuntimeError: double precision is off.
    """
    eps = _in_range("eps", eps, 0.0, 2.0)
    moments = _usable_moments(f, centred)
    return _integrated(f, "gap", jnp.zeros(()), eps, order) / spread_of(f, moments, centred)


@takes_numbers(rho=None)
def kernel_slope(
    f: Function, rho: Float[Array, "..."] | float, centred: bool = False, order: int = 20
) -> Float[Array, "..."]:
    """Compute the derivative of the kernel map by Price's theorem: `kappa_f'(rho) = E f'(x) f'(y) / E f²`.

    Args:
        f: activation.
        rho: correlations in [-1, 1], ends included.
        centred: variance instead of second moment below the line.
        order: nodes per panel, if f has kinks.

    Returns:
        The slope, of the shape of `rho`; at 1 it is `1 + alpha_f`.

    Raises:
        ValueError: a correlation is outside [-1, 1], or f is not integrable, not resolved or constant.
        RuntimeError: double precision is off.

    References:
        Price, A useful theorem for nonlinear devices having Gaussian inputs (1958).
    """
    rho = _correlations(rho)
    moments = _usable_moments(f, centred)
    return _integrated(f, "slope", jnp.zeros(()), 1 - rho, order) / spread_of(f, moments, centred)


@takes_numbers(coefficients=1, rho=None)
def kernel_series(
    coefficients: Float[Array, " degrees"], rho: Float[Array, "..."] | float, centred: bool = False
) -> Float[Array, "..."]:
    """Sum the kernel map's Hermite series, `sum_k a_k² rho^k / sum_k a_k²` (from k = 1 if centred).

    Args:
        coefficients: a_0, a_1, ... of `hermite_coefficients`; truncation causes an error of at most twice the missing
            part of E f².
        rho: correlations in [-1, 1].
        centred: covariance over variance.

    Returns:
        The truncated series, of the shape of `rho`.

    Raises:
        ValueError: a correlation is outside [-1, 1], or the coefficients are empty, not finite or all 0.
        RuntimeError: double precision is off.
    """
    rho = _correlations(rho)
    power = jnp.asarray(coefficients, float) ** 2
    if power.size == 0 or power.ndim != 1:
        raise ValueError(f"coefficients of shape {power.shape}: must be a_0, a_1, ..., at least one")
    power = power.at[0].set(0.0) if centred else power
    if not is_traced(power) and not 0 < float(jnp.sum(power)) < np.inf:
        raise ValueError("coefficients: must be finite, and not all 0 (from a_1 on if centred)")
    return jnp.polyval(power[::-1], rho) / jnp.sum(power)


def _integrand(f: Function, kind: str, offset: Float[Array, ""]) -> Callable[..., Float[Array, "..."]]:
    slope = derivative(f)
    return {
        "product": lambda x, y: (f(x) - offset) * (f(y) - offset),
        "gap": lambda x, y: (f(x) - f(y)) ** 2 / 2,
        "slope": lambda x, y: slope(x) * slope(y),
    }[kind]


def _integrated(
    f: Function, kind: str, offset: Float[Array, ""], eps: Float[Array, "..."], order: int
) -> Float[Array, "..."]:
    """Integrate over standard normal pairs of correlation 1 - eps."""
    kinks = located_kinks(f)
    return _over_pairs(f, kind, offset, eps, kinks, order if kinks else _SMOOTH_ORDER)


@partial(jax.jit, static_argnums=(0, 1, 4, 5))
def _over_pairs(
    f: Function, kind: str, offset: Float[Array, ""], eps: Float[Array, "..."], kinks: tuple[float, ...], order: int
) -> Float[Array, "..."]:
    """Integrate over pairs, one entry of eps at a time to save memory; `order` nodes, per panel if kinked."""
    integrand = _integrand(f, kind, offset)
    smooth_rule = gauss_hermite_rule(order)

    def one(eps: Float[Array, ""]) -> Float[Array, ""]:
        rho, width = 1 - eps, jnp.sqrt(eps * (2 - eps))

        def inner(x: Float[Array, ""]) -> Float[Array, ""]:
            meets = (jnp.asarray(kinks, float) - rho * x) / jnp.maximum(width, 1e-30)
            w, weights = split_rule(meets, order, _PANEL, graded=False) if kinks else smooth_rule
            return jnp.sum(weights * integrand(x, rho * x + width * w))

        outer = split_rule(kinks, order, _PANEL) if kinks else smooth_rule
        return jnp.sum(outer.weights * jax.vmap(inner)(outer.nodes))

    return jax.lax.map(one, eps.ravel()).reshape(eps.shape)


def _usable_moments(f: Function, centred: bool) -> Moments:
    """Moments of f at unit scale; refuses an f that is constant or too steep for the two-dimensional rule."""
    moments = activation_moments(f)
    if is_traced(spread_of(f, moments, centred)):
        return moments
    if not located_kinks(f):
        error = _smooth_rule_error(f, moments)
        if not error <= 1e-10:
            raise ValueError(
                f"{name_of(f)} is too steep for {_SMOOTH_ORDER} Gauss-Hermite nodes, or has kinks that were not found "
                f"(relative error {error:.1e}): give the points where it bends as kinks, Activation(name, function, "
                "kinks)"
            )
    return moments


def _smooth_rule_error(f: Function, moments: Moments) -> float:
    """Relative error of the Gauss-Hermite rule on E f'(x) f'(y), at correlation 1 and at 1/2.

    At 1 the one-dimensional split rule gives the answer. That is not enough: for a function with a kink at 0, such as
    |z|, the rule is exact there by symmetry. At 1/2 it is compared with a rule with other nodes.
    """
    ends = jnp.array([0.0, 0.5])
    by_rule, by_other = (_over_pairs(f, "slope", jnp.zeros(()), ends, (), n) for n in (_SMOOTH_ORDER, _OTHER_ORDER))
    exact = jnp.stack([moments.derivative_second_moment, by_other[1]])
    return float(jnp.max(jnp.abs(by_rule - exact)) / jnp.maximum(moments.derivative_second_moment, 1e-300))


def _correlations(rho: Float[Array, "..."] | float) -> Float[Array, "..."]:
    return _in_range("rho", rho, -1.0, 1.0)


def _in_range(name: str, value: Float[Array, "..."] | float, low: float, high: float) -> Float[Array, "..."]:
    """Return the value in float64, clipped to [low, high], after refusing values outside by more than rounding.

    The cosine of parallel vectors is often 1 + 2e-16; rounding means 8 eps of the given type.
    """
    require_float64()
    given = jnp.asarray(value)
    slack, value = rounding_of(given), given.astype(float)
    array = None if is_traced(value) else np.asarray(value)
    if array is not None and not np.all((array >= low - slack) & (array <= high + slack)):
        raise ValueError(f"{name}={value}: must lie in [{low:g}, {high:g}]")
    # Only if something is to be clipped: at the ends the derivative of a clip is not 1.
    return value if array is not None and np.all((array >= low) & (array <= high)) else jnp.clip(value, low, high)
