"""Gaussian moments of an activation and its derivative, with an error if they do not exist or are not resolved."""

from functools import partial
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lopjax.activation_checks import find_kinks
from lopjax.arguments.numbers import takes_numbers
from lopjax.theory.hermite import (
    TAIL,
    Function,
    gaussian_density,
    kinks_of,
    panel_nodes,
    require_float64,
    split_edges,
)

TOLERANCE = 1e-9
"""Largest admissible relative change of a moment when the order of its integral is doubled."""


class Moments(NamedTuple):
    """Moments of g(z) = f(scale z + shift), z standard normal; the derivative is g'(z) = scale f'(scale z + shift).

    `error` is the largest relative change of a moment under doubling the order plus the relative mass in the outermost
    panels and the largest unexplained jump; infinite if something is not finite.
    """

    mean: Float[Array, "..."]
    second_moment: Float[Array, "..."]
    variance: Float[Array, "..."]
    derivative_second_moment: Float[Array, "..."]
    error: Float[Array, "..."]


def name_of(f: Function) -> str:
    """Return the name of an activation in messages and tables."""
    return str(getattr(f, "name", getattr(f, "__name__", f)))


def derivative(f: Function) -> Function:
    """Return the elementwise derivative of an elementwise function, by forward-mode autodiff."""
    return lambda z: jax.jvp(lambda x: f(x), (z,), (jnp.ones_like(z),))[1]


def bends(f: Function, scale: Float[Array, ""] | float, shift: Float[Array, ""] | float) -> Float[Array, " points"]:
    """Return the points where f(scale z + shift) bends: its kinks, or the image of 0 if it is smooth."""
    return (jnp.asarray(kinks_of(f) or (0.0,), float) - shift) / scale


def is_traced(*arrays) -> bool:
    """Return whether a value is traced by a JAX transformation, so that no error can be raised about it."""
    return any(isinstance(array, jax.core.Tracer) for array in jax.tree.leaves(arrays))


def rounding_of(given: Array | np.ndarray) -> float:
    """Return 8 eps of an array's type, by which arithmetic may exceed a range; 0 for integers."""
    return 8 * float(jnp.finfo(given.dtype).eps) if jnp.issubdtype(given.dtype, jnp.floating) else 0.0


class _Samples(NamedTuple):
    """An activation and its slope at the nodes of every panel, with Lebesgue and Gaussian weights."""

    nodes: Float[Array, "panels order"]
    lengths: Float[Array, "panels order"]
    weights: Float[Array, "panels order"]
    value: Float[Array, "panels order"]
    slope: Float[Array, "panels order"]


def _sample(f: Function, scale, shift, edges: Float[Array, " edges"], order: int) -> _Samples:
    z, lengths = panel_nodes(edges, order)
    value, slope = jax.jvp(lambda x: f(scale * x + shift), (z,), (jnp.ones_like(z),))
    return _Samples(z, lengths, lengths * gaussian_density(z), value, slope)


def _integrate(samples: _Samples) -> Float[Array, " moments"]:
    """Return mean, second moment, variance, and the second moment of the slope."""
    _, _, weights, value, slope = samples
    mean = jnp.sum(weights * value)
    return jnp.stack([mean, *(jnp.sum(weights * g**2) for g in (value, value - mean, slope))])


def _largest_jump(
    samples: _Samples, ends: Float[Array, " edges"], rounding: Float[Array, " edges"], second_moment: Float[Array, ""]
) -> Float[Array, ""]:
    """Return the largest rise over a panel that neither the integral of the derivative nor rounding explains, relative.

    Autodiff sees slope 0 on both sides of a jump; the true derivative there is not a square-integrable function.
    """
    # The steepest slope anywhere: in a very short panel at a kink the slope of the other side may be missing.
    steepest = jnp.max(jnp.abs(samples.slope))
    unexplained = jnp.abs(jnp.diff(ends) - jnp.sum(samples.lengths * samples.slope, axis=1))
    unexplained = jnp.maximum(unexplained - 4 * steepest * (rounding[1:] + rounding[:-1]), 0.0)
    size = jnp.abs(ends[1:]) + jnp.abs(ends[:-1]) + jnp.max(jnp.abs(samples.value), axis=1)
    size += 1e-6 * jnp.sqrt(second_moment)  # where f itself underflows, its rounding is not a jump
    return jnp.max(jnp.where(size > 0, unexplained / jnp.where(size > 0, size, 1.0), 0.0))


def _moments(f: Function, scale: Float[Array, ""], shift: Float[Array, ""], order: int) -> Moments:
    edges = split_edges(bends(f, scale, shift))
    samples = _sample(f, scale, shift, edges, 2 * order)
    fine, coarse = _integrate(samples), _integrate(_sample(f, scale, shift, edges, order))
    outer = jnp.where(jnp.abs(samples.nodes) > TAIL - 1, samples.weights, 0.0)
    tail, slope_tail = jnp.sum(outer * samples.value**2), jnp.sum(outer * samples.slope**2)
    # A mean of 0 has no relative error, so it is compared with the root mean square.
    size = jnp.stack([jnp.sqrt(fine[1]), fine[1], fine[1], fine[3]])
    change = jnp.abs(fine - coarse) + jnp.stack([jnp.zeros(()), tail, tail, slope_tail])
    relative = jnp.where(size > 0, change / jnp.where(size > 0, size, 1.0), change)
    # Rounding of scale * z + shift, in z: near a kink panels can be as short as that.
    rounding = jnp.finfo(edges.dtype).eps * (jnp.abs(edges) + jnp.abs(shift / scale))
    jump = _largest_jump(samples, f(scale * edges + shift), rounding, fine[1])
    error = jnp.max(relative) + jnp.where(jump > 1e-6, jump, 0.0)
    return Moments(*fine, error=jax.lax.stop_gradient(jnp.where(jnp.isfinite(error), error, jnp.inf)))


@partial(jax.jit, static_argnums=(0, 3))
def _all_moments(f: Function, scale: Float[Array, "..."], shift: Float[Array, "..."], order: int) -> Moments:
    # A tuple inside: where an axis has one entry, `vectorize` hands back no named tuple.
    return Moments(*jnp.vectorize(lambda a, b: tuple(_moments(f, a, b, order)))(scale, shift))


@takes_numbers(scale=None, shift=None)
def activation_moments(
    f: Function, scale: Float[Array, "..."] | float = 1.0, shift: Float[Array, "..."] | float = 0.0, order: int = 32
) -> Moments:
    """Compute mean, second moment and variance of f(scale z + shift), and the second moment of its derivative in z.

    Args:
        f: activation, elementwise; the derivative is taken by autodiff, integrals are split at `f.kinks`.
        scale: standard deviation of the pre-activation, not 0. Broadcast against `shift`.
        shift: mean of the pre-activation.
        order: nodes per panel of the cheaper of the two rules compared.

    Returns:
        The moments, of the broadcast shape of `scale` and `shift` and differentiable in both. Under `jit`, `vmap` and
        `grad` no error can be raised: check `error` instead.

    Raises:
        ValueError: `f` or its derivative is not finite somewhere, is not square-integrable, jumps, or is not resolved
            to 1e-9; or a scale is 0.
        RuntimeError: double precision is off.

    Example:
        >>> with jax.enable_x64(True):
        ...     moments = activation_moments(jax.numpy.exp)
        >>> round(float(moments.mean**2), 9) == round(float(np.e), 9)  # (E exp(z))² = e
        True
    """
    require_float64()
    scale, shift = jnp.asarray(scale, float), jnp.asarray(shift, float)
    if not is_traced(scale, shift) and not np.all(np.isfinite(scale) & np.isfinite(shift) & (np.asarray(scale) != 0)):
        raise ValueError(f"scale={scale}, shift={shift}: must be finite, and a scale must not be 0")
    moments = _all_moments(f, scale, shift, order)
    if not is_traced(moments.error, scale, shift):
        _refuse_bad_moments(f, scale, shift, moments.error, order)
    return moments


def spread_of(f: Function, moments: Moments, centred: bool) -> Float[Array, "..."]:
    """Return the variance if centred, else the second moment, after refusing 0.

    Raises:
        ValueError: it is 0 up to rounding, so that it cannot be a divisor.
    """
    spread = moments.variance if centred else moments.second_moment
    if not is_traced(spread) and not np.all(np.asarray(spread) > 1e-28 * np.asarray(moments.mean) ** 2):
        what = "variance" if centred else "second moment"
        raise ValueError(f"{name_of(f)} has {what} 0 under this Gaussian: neither correlation nor alpha exists")
    return spread


def _refuse_bad_moments(
    f: Function, scale: Float[Array, "..."], shift: Float[Array, "..."], error: Float[Array, "..."], order: int
) -> None:
    """Find out why the moments of an activation are not reliable, and raise an error with the reason."""
    scales, shifts, errors = (np.ravel(x) for x in np.broadcast_arrays(scale, shift, error))
    if errors.size == 0 or np.max(errors) <= TOLERANCE:
        return
    worst = int(np.argmax(errors))
    a, b = float(scales[worst]), float(shifts[worst])
    samples = _sample(f, a, b, split_edges(bends(f, a, b)), order)
    z, weights = np.asarray(samples.nodes), np.asarray(samples.weights)
    for what, given in ((name_of(f), samples.value), (f"the derivative of {name_of(f)}", samples.slope)):
        array = np.asarray(given)
        if not np.all(np.isfinite(array)):
            first = np.argmax(~np.isfinite(array.ravel()))
            where = a * z.ravel()[first] + b
            raise ValueError(f"{what} is {array.ravel()[first]} at {where:.6g}: must be finite on the real line")
        parts = weights * array**2
        tail = np.sum(parts[np.abs(z) > TAIL - 1]) / max(np.sum(parts), np.finfo(float).tiny)
        if tail > TOLERANCE:
            raise ValueError(
                f"{what} is not square-integrable under a standard Gaussian, or is concentrated in its far tail: "
                f"{tail:.1%} of its second moment lies beyond |z| = {TAIL - 1:g} (scale {a:g}, shift {b:g})"
            )
    unknown = [kink for kink in find_kinks(f) or () if not np.isclose(kink, kinks_of(f), rtol=0, atol=1e-6).any()]
    where = f", as at {', '.join(f'{kink:.6g}' for kink in unknown[:3])}" if unknown else ""
    raise ValueError(
        f"the moments of {name_of(f)} at scale {a:g}, shift {b:g} have a relative error of about {errors[worst]:.1e} "
        f"at order {order}: it jumps or is singular, or has kinks that are not listed{where} (Activation(name, "
        "function, kinks)), or oscillates and needs a higher order"
    )
