"""Expectations under a standard Gaussian: Gauss-Hermite and split quadrature, Hermite coefficients.

Everything in `lopjax.theory` works in float64 and raises an error otherwise: its verdicts depend on small differences,
such as alpha_relu = 0 exactly, that float32 would hide.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lopjax.activation_checks import find_kinks
from lopjax.activations import activation
from lopjax.arguments.numbers import takes_numbers

TAIL = 16.0
"""Integrals stop at |z| = TAIL, where the Gaussian density is 1e-56."""

_GRADING = 2.0 * 4.0 ** -np.arange(11.0)
"""Distances from a kink at which panels end: down to 2e-6, so that a bend of any width is resolved."""

Function = Callable[[Float[Array, "..."]], Float[Array, "..."]]


class Rule(NamedTuple):
    """Nodes and weights with `sum(weights * g(nodes))` approximating `E g(z)`, z standard normal."""

    nodes: Float[Array, " nodes"]
    weights: Float[Array, " nodes"]


class Expectation(NamedTuple):
    """A Gaussian expectation, and its change when the order of the rule is doubled (infinite if it failed)."""

    value: Float[Array, ""]
    error: Float[Array, ""]


def require_float64() -> None:
    """Refuse to compute in single precision.

    Raises:
        RuntimeError: double precision is off.
    """
    if jnp.zeros(()).dtype != jnp.float64:
        raise RuntimeError(
            "lopjax.theory computes in float64, and JAX is set to float32: call "
            'jax.config.update("jax_enable_x64", True) first, or work inside `with jax.enable_x64(True):`'
        )


def kinks_of(f: Function) -> tuple[float, ...]:
    """Return the known kinks of a function; `()` if nothing is known."""
    return tuple(activation(f).kinks or ())


def located_kinks(f: Function) -> tuple[float, ...]:
    """Return the known kinks of a function or, if nothing is known, those found by bisection."""
    kinks = activation(f).kinks
    return tuple(kinks) if kinks is not None else find_kinks(f) or ()


def gauss_hermite_rule(order: int) -> Rule:
    """Return the Gauss-Hermite rule of a standard normal: exact for polynomials of degree 2 order - 1.

    With the physicists' nodes x (weight exp(-x²)), the nodes are sqrt(2) x. For a function analytic within distance
    d of the real line the error falls like exp(-2 d sqrt(order)): tanh (d = pi/2) needs about 100 nodes.

    Args:
        order: number of nodes.

    Raises:
        ValueError: `order` is not positive.
        RuntimeError: double precision is off.
    """
    require_float64()
    if order < 1:
        raise ValueError(f"order={order}: must be a positive number of nodes")
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    return Rule(jnp.asarray(nodes), jnp.asarray(weights / weights.sum()))


def split_edges(
    kinks: Sequence[float] | Float[Array, " kinks"], panel: float = 1.0, graded: bool = True
) -> Float[Array, " edges"]:
    """Return the panel ends of `split_rule`, in ascending order; panels may be empty."""
    uniform = np.linspace(-TAIL, TAIL, round(2 * TAIL / panel) + 1)
    offsets = np.concatenate([-_GRADING, [0.0], _GRADING[::-1]]) if graded else np.zeros(1)
    cuts = (jnp.asarray(kinks, float)[:, None] + offsets).ravel()
    return jnp.sort(jnp.concatenate([jnp.asarray(uniform), jnp.clip(cuts, -TAIL, TAIL)]))


def panel_nodes(
    edges: Float[Array, " edges"], order: int
) -> tuple[Float[Array, "panels order"], Float[Array, "panels order"]]:
    """Return the Gauss-Legendre nodes and weights of every panel, without a density."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    half = jnp.diff(edges)[:, None] / 2
    return edges[:-1, None] + half * (1 + nodes), half * weights


def gaussian_density(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the standard normal density."""
    return jnp.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


@takes_numbers(kinks=1)
def split_rule(
    kinks: Sequence[float] | Float[Array, " kinks"], order: int, panel: float = 1.0, graded: bool = True
) -> Rule:
    """Return a Gauss-Legendre rule on panels that end at the kinks, weighted by the Gaussian density.

    The panels are those of a uniform grid on [-TAIL, TAIL], cut at the kinks and, if graded, at distances 2, 1/2, 1/8,
    ..., 2e-6 on both sides of each, so that a bend of any width there is resolved. The nodes move with the kinks: the
    rule is differentiable in them, and the derivative of an integral across a moving kink is correct.

    Args:
        kinks: points where the integrand is not smooth; may be traced; those outside [-TAIL, TAIL] are ignored.
        order: number of nodes on each panel.
        panel: length of the uniform panels.
        graded: whether to refine towards the kinks.

    Returns:
        Nodes in ascending order, panel by panel, and their weights.

    Raises:
        ValueError: `order` is not positive, or a kink is not finite.
        RuntimeError: double precision is off.
    """
    require_float64()
    if not isinstance(kinks, jax.core.Tracer) and not np.isfinite(np.asarray(kinks, float)).all():
        raise ValueError(f"kinks={kinks}: must be finite")
    if order < 1:
        raise ValueError(f"order={order}: must be a positive number of nodes")
    z, lengths = panel_nodes(split_edges(kinks, panel, graded), order)
    return Rule(z.ravel(), (lengths * gaussian_density(z)).ravel())


@takes_numbers(kinks=1)
def gaussian_expectation(
    integrand: Function, kinks: Sequence[float] | Float[Array, " kinks"] | None = None, order: int = 64
) -> Expectation:
    """Compute `E g(z)` for a standard normal z, with an error estimate by doubling the order.

    Smooth integrands use Gauss-Hermite, integrands with kinks split panels.

    Args:
        integrand: elementwise function g; differentiable parameters may be closed over.
        kinks: points where g or a derivative jumps; by default the known kinks of the function
            (`lopjax.activations.activation(integrand).kinks`).
        order: nodes of the cheaper of the two rules compared, per panel if the integral is split.

    Returns:
        The value at twice the order, and its distance to the value at `order`: for split integrals, plus the mass of
        the two outermost panels. An integral that is not finite has an infinite error.

    Raises:
        RuntimeError: double precision is off.

    Example:
        >>> with jax.enable_x64(True):
        ...     value, error = gaussian_expectation(lambda z: z**4)
        >>> abs(float(value) - 3) < 1e-12, float(error) < 1e-12
        (True, True)

    References:
        Gauss-Hermite: Golub & Welsch, Calculation of Gauss quadrature rules (1969).
    """
    require_float64()
    kinks = kinks_of(integrand) if kinks is None else kinks
    is_smooth = len(kinks) == 0
    rules = [gauss_hermite_rule(n) if is_smooth else split_rule(kinks, n) for n in (order, 2 * order)]
    coarse, fine = (jnp.sum(rule.weights * integrand(rule.nodes)) for rule in rules)
    error = jnp.abs(fine - coarse)
    if not is_smooth:
        is_outer = jnp.abs(rules[1].nodes) > TAIL - 1
        error += jnp.sum(jnp.where(is_outer, jnp.abs(rules[1].weights * integrand(rules[1].nodes)), 0.0))
    return Expectation(fine, jnp.where(jnp.isfinite(fine) & jnp.isfinite(error), error, jnp.inf))


def hermite_functions(z: Float[Array, " nodes"], degree: int) -> Float[Array, "degrees nodes"]:
    """Evaluate the orthonormal Hermite polynomials h_k = He_k / sqrt(k!) for k = 0, ..., degree."""

    def step(pair, k):
        previous, current = pair
        following = (z * current - jnp.sqrt(k) * previous) / jnp.sqrt(k + 1)
        return (current, following), current

    _, values = jax.lax.scan(step, (jnp.zeros_like(z), jnp.ones_like(z)), jnp.arange(degree + 1.0))
    return values


def hermite_coefficients(f: Function, degree: int, order: int = 64) -> Float[Array, " degrees"]:
    """Compute the Hermite coefficients `a_k = E f(z) h_k(z)`, h_k = He_k / sqrt(k!), for k = 0, ..., degree.

    They are orthonormal coordinates: `sum_k a_k² = E f²`, so the deficit of that sum bounds the truncation error of any
    series in them. For a function with a kink a_k² falls only like k^(-5/2).

    Args:
        f: activation; integrals are split at its kinks, which are searched for if they are not known.
        degree: the last k.
        order: nodes per panel.

    Returns:
        `degree + 1` coefficients. Differentiable in what `f` closes over.

    Raises:
        ValueError: `degree` is negative, or f is not finite somewhere.
        RuntimeError: double precision is off.

    Example:
        >>> with jax.enable_x64(True):
        ...     coefficients = hermite_coefficients(lambda z: z**2, degree=3)
        >>> [round(float(a), 6) + 0.0 for a in coefficients]  # z² = 1 + sqrt(2) h_2
        [1.0, 0.0, 1.414214, 0.0]
    """
    if degree < 0:
        raise ValueError(f"degree={degree}: must not be negative")
    rule = split_rule(located_kinks(f) or (0.0,), order)
    values = f(rule.nodes)
    if not isinstance(values, jax.core.Tracer) and not bool(jnp.isfinite(values).all()):
        first = int(jnp.argmin(jnp.isfinite(values)))
        raise ValueError(
            f"the activation is {values[first]} at {rule.nodes[first]:.6g}: must be finite on the real line"
        )
    return hermite_functions(rule.nodes, degree) @ (rule.weights * values)
