"""Kernel maps iterated over depth: which activations collapse correlations to 1, and which drive them to 0.

The pre-activations of each layer are assumed standardised, so that every layer applies the same map.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopjax.arguments.numbers import takes_numbers
from lopjax.theory.hermite import Function
from lopjax.theory.kernels import kernel_map, kernel_slope

_MARGIN = 1e-9
"""A multiplier closer to 1 than this counts as 1; this is the precision required of the moments."""


class FixedPoint(NamedTuple):
    """A correlation that a kernel map leaves unchanged.

    Attributes:
        rho: the correlation.
        multiplier: the slope there, by which deviations are multiplied in each layer.
        kind: "attracting" (below 1), "repelling" (above 1), or "marginal" (1 to within 1e-9: a marginal fixed point at
            rho = 1 still attracts from below, but only as a power of the depth).
    """

    rho: float
    multiplier: float
    kind: Literal["attracting", "repelling", "marginal"]


@takes_numbers(rho=None)
def iterate_map(
    kernel: Callable[[Float[Array, "..."]], Float[Array, "..."]], rho: Float[Array, "..."] | float, depth: int
) -> Float[Array, "layers ..."]:
    """Apply a kernel map `depth` times and return the result of every layer.

    Args:
        kernel: the map, for example `lambda rho: kernel_map(f, rho)`.
        rho: correlations at the input, in [-1, 1].
        depth: number of layers.

    Returns:
        Correlations after 0, 1, ..., depth layers.

    Raises:
        ValueError: `depth` is negative, or the kernel refuses `rho`.

    Example:
        >>> [round(float(r), 4) for r in iterate_map(lambda rho: rho**2, 0.5, depth=2)]
        [0.5, 0.25, 0.0625]
    """
    if depth < 0:
        raise ValueError(f"depth={depth}: must not be negative")
    layers = [jnp.asarray(rho)]
    for _ in range(depth):
        # Rounding may exceed [-1, 1] by an ulp, which the next layer would refuse.
        layers.append(jnp.clip(kernel(layers[-1]), -1.0, 1.0))
    return jnp.stack(layers)


def fixed_points(f: Function, centred: bool = False) -> tuple[FixedPoint, ...]:
    """Find every fixed point of a kernel map, with its multiplier.

    `kappa(rho) = sum_k p_k rho^k` with p_k >= 0 and sum 1 leaves few possibilities (f not linear):
    1 always; 0 if p_0 = 0 (always when centred); one point in (0, 1) if p_0 > 0 and the slope at 1 exceeds 1, because
    kappa - rho is convex on [0, 1]; and -1 if f, without its mean when centred, is odd. There are no others: between -1
    and 0 the odd part is smaller than |rho|. The multiplier at 1 is 1 + alpha_f, at 0 it is p_1.

    Args:
        f: activation.
        centred: use the centred kernel map.

    Returns:
        The fixed points in ascending order.

    Raises:
        ValueError: every rho is fixed (f is linear, up to its mean when centred), or f is not integrable, not
            resolved or constant.
        RuntimeError: double precision is off.

    Example:
        >>> import jax
        >>> with jax.enable_x64(True):
        ...     [(round(p.rho, 6), round(p.multiplier, 6), p.kind) for p in fixed_points(jnp.exp)]
        [(1.0, 1.0, 'marginal')]
    """
    if abs(kernel_map(f, 0.5, centred) - 0.5) < 1e-12 and abs(kernel_map(f, -0.5, centred) + 0.5) < 1e-12:
        raise ValueError("the activation is linear: every correlation is a fixed point, of multiplier 1")
    points = [1.0]
    at_zero = 0.0 if centred else float(kernel_map(f, 0.0))
    if at_zero < 1e-14:
        points.append(0.0)
    elif kernel_slope(f, 1.0, centred) > 1 + _MARGIN:
        points.append(_inner_fixed_point(f))
    if abs(kernel_map(f, -1.0, centred) + 1) < 1e-12:
        points.append(-1.0)
    return tuple(_fixed_point(f, rho, centred) for rho in sorted(points))


def _fixed_point(f: Function, rho: float, centred: bool) -> FixedPoint:
    multiplier = float(kernel_slope(f, rho, centred))
    if abs(abs(multiplier) - 1) <= _MARGIN:
        return FixedPoint(rho, multiplier, "marginal")
    return FixedPoint(rho, multiplier, "attracting" if abs(multiplier) < 1 else "repelling")


def _inner_fixed_point(f: Function) -> float:
    """Newton's method from 0 for kappa(rho) = rho: monotone, because kappa - rho is convex and decreasing there."""
    rho = 0.0
    for _ in range(60):
        step = float((kernel_map(f, rho) - rho) / (1 - kernel_slope(f, rho)))
        rho += step
        if step < 1e-15:
            break
    return rho
