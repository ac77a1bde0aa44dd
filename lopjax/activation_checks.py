"""Compare an activation with the facts stated about it, and find the kinks of one for which none are stated."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lopjax.activations import Activation

_REACH = 16.0
"""Kinks are looked for in [-16, 16]: under a standard Gaussian nothing beyond has any weight."""

_CELLS = 4096
"""Cells of that interval; each is searched for one jump of every order."""

_STRETCH = 64.0
"""Of facts that are checked kinks are looked for beyond it as well, in cells so many times as wide."""

_FAR = np.geomspace(8.1, 1000.0, 49)
_GRID = np.concatenate([-_FAR[::-1], np.linspace(-8.0, 8.0, 641) + 0.0037, _FAR])
_ROUNDING = 1e-5
_FACTORS = (1.7, 3.0)  # no powers of one number: f may scale with a single factor and its powers alone

_JUMP = {np.dtype("float64"): 1e-5, np.dtype("float32"): 0.05}
"""Smallest jump that counts, relative to the largest value of the same derivative no further than 4 beyond it."""


def _value_and_derivatives(f: Callable, z: Float[Array, " points"]) -> Float[Array, "3 points"]:
    """f, f' and f'' by nested forward mode."""

    def with_slope(z: Float[Array, " points"]) -> tuple[Array, Array]:
        return jax.jvp(lambda x: f(x), (z,), (jnp.ones_like(z),))

    (value, slope), (_, curvature) = jax.jvp(with_slope, (z,), (jnp.ones_like(z),))
    return jnp.stack([value, slope, curvature])


@partial(jax.jit, static_argnums=0)
def _largest_changes(f: Callable, stretch: Float[Array, ""] | float) -> tuple[Array, Array, Array]:
    """For f, f' and f'' in every cell: where it changes most, by how much there, and its size at the cell's ends."""
    # Ends off the round numbers at which people put kinks: a kink on an end would be seen in neither cell.
    edges = stretch * (jnp.linspace(-_REACH, _REACH, _CELLS + 1) + 1.37e-3)
    at_edges = _value_and_derivatives(f, edges)
    order = jnp.arange(3)[:, None]

    def halve(_, bracket):
        low, high, at_low, at_high = bracket
        middle = (low + high) / 2
        every = _value_and_derivatives(f, middle.ravel()).reshape(3, 3, _CELLS)
        at_middle = jnp.take_along_axis(every, order[None], axis=0)[0]
        lower = jnp.abs(at_middle - at_low) >= jnp.abs(at_high - at_middle)
        return (
            jnp.where(lower, low, middle),
            jnp.where(lower, middle, high),
            jnp.where(lower, at_low, at_middle),
            jnp.where(lower, at_middle, at_high),
        )

    ends = (jnp.tile(edges[:-1], (3, 1)), jnp.tile(edges[1:], (3, 1)))
    bits = jnp.finfo(edges.dtype).nmant  # until a cell's ends are a few floats apart
    low, high, at_low, at_high = jax.lax.fori_loop(0, bits - 12, halve, (*ends, at_edges[:, :-1], at_edges[:, 1:]))
    return jnp.where(jnp.abs(low) < jnp.abs(high), low, high), jnp.abs(at_high - at_low), jnp.abs(at_edges)


def find_kinks(function: Callable) -> tuple[float, ...] | None:
    """Find where a function or one of its first two derivatives jumps, by bisection.

    [-16, 16] is cut into 4096 cells, each halved towards the larger change until its ends are neighbours; a change that
    is still there is a jump. This is evidence, not proof: two opposite jumps within 1/128, jumps of higher derivatives
    and those below 1e-5 of the derivative itself are missed, and so is everything beyond 16. In float32 the places are
    good to 1e-5, and jumps count from 1/20 of the derivative on.

    Args:
        function: elementwise, of floats.

    Returns:
        The places in ascending order, to about 1e-12 (float64); `None` if the function depends on traced values.

    Example:
        >>> with jax.enable_x64(True):
        ...     [round(kink, 9) for kink in find_kinks(lambda z: abs(z - 0.3) + jax.nn.relu6(z) ** 2)]
        [0.0, 0.3, 6.0]
    """
    return _kinks(function, 1.0)


def _kinks(function: Callable, stretch: float) -> tuple[float, ...] | None:
    """The same on an interval so many times as long."""
    with jax.ensure_compile_time_eval():
        changes = _largest_changes(function, stretch)
    if any(isinstance(array, jax.core.Tracer) for array in changes):
        return None
    place, change, size = (np.asarray(array) for array in changes)
    # Derivatives that have died away, such as 1 - tanh(z)², leave steps of rounding: the level is set nearer to 0.
    outward = np.maximum.accumulate(np.maximum(size, size[:, ::-1])[:, _CELLS // 2 :], axis=1)
    steps = np.minimum((np.abs(place) / stretch + 4) * _CELLS / (2 * _REACH), _CELLS // 2).astype(int)
    level = _JUMP[place.dtype] * np.take_along_axis(outward, steps, axis=1)
    tolerance = stretch * (1e-9 if place.dtype == np.float64 else 1e-4)
    return _merged(place[change > level].tolist(), tolerance)


def _merged(places: list[float], tolerance: float) -> tuple[float, ...]:
    """Places in ascending order, those within rounding of each other counted once, and integers restored."""
    distinct: list[float] = []
    for place in sorted(places):
        nearest = float(round(place))
        place = nearest if abs(place - nearest) < tolerance else place
        if not distinct or place - distinct[-1] > 10 * tolerance:
            distinct.append(place)
    return tuple(distinct)


@lru_cache(maxsize=1024)
def check_activation(entry: Activation) -> None:
    """Refuse a function that is not elementwise, and facts that the function contradicts on a grid.

    A fact that passes is not proved: the grid has 641 points in [-8, 8] and 49 on each side out to 1000, values are
    compared to 1e-5, and kinks are looked for by `find_kinks`, beyond 16 in cells 64 times as wide. Run once for every
    activation of one's own before a network with it is built.

    Args:
        entry: the activation.

    Raises:
        ValueError: the function is not elementwise or changes the type, or a fact is wrong; the fact, the place and
            what was found there are named.

    Example:
        >>> check_activation(Activation("cube", lambda z: z**3, is_monotone=True))
    """
    with jax.ensure_compile_time_eval():
        z = jnp.asarray(_GRID, float)
        value = _checked_values(entry, z)
        slope = _checked_slopes(entry, z)
        seen = _Seen(*(np.asarray(each, np.float64) for each in (z, value, slope)))
        with np.errstate(invalid="ignore"):  # infinity minus infinity: nothing is known there
            _check_values(entry, seen)
    for low, high in entry.flat or ():
        if (tilted := (seen.z > low) & (seen.z < high) & (seen.slope != 0)).any():
            seen_slope = f"its slope at {seen.z[tilted][0]:.3g} is {seen.slope[tilted][0]:.3g}"
            _refuse(entry, f"flat=({low}, {high})", seen_slope)
    for end in entry.saturates or ():
        _check_saturation(entry, end)
    if entry.kinks is not None:
        _refuse_missed_kinks(entry, entry.kinks)


class _Seen(NamedTuple):
    """Points in ascending order, and what an activation and its derivative are there; `(points,)` in float64."""

    z: np.ndarray
    value: np.ndarray
    slope: np.ndarray


def _check_values(entry: Activation, seen: _Seen) -> None:
    """Refuse what the values contradict."""
    z, value = seen.z, seen.value
    rounding = _ROUNDING * (1 + np.abs(value))
    if entry.is_monotone and (falls := np.diff(value) < -rounding[1:]).any():
        _refuse(entry, "is_monotone=True", f"it falls near {z[:-1][falls][0]:.3g}")
    for factor in _FACTORS if entry.is_homogeneous else ():
        scaled = np.asarray(entry(jnp.asarray(factor * z, float)), np.float64)
        if (off := np.abs(scaled - factor * value) > factor * rounding).any():
            _refuse(entry, "is_homogeneous=True", f"f({factor:g} z) is not {factor:g} f(z) at z = {z[off][0]:.3g}")
    mirrored = np.asarray(entry(jnp.asarray(-z, float)), np.float64)
    if entry.is_odd and (off := np.abs(mirrored + value) > rounding).any():
        _refuse(entry, "is_odd=True", f"f(-z) is not -f(z) at z = {z[off][0]:.3g}")
    if entry.lower_bound is not None and (below := value < entry.lower_bound - rounding).any():
        _refuse(entry, f"lower_bound={entry.lower_bound}", f"f({z[below][0]:.3g}) = {value[below][0]:.3g}")


def _check_saturation(entry: Activation, end: float) -> None:
    """Refuse an end towards which the slope does not fall: at most 0.01 at 1000, and half of that at a million."""
    near, far = (abs(entry.slope_at(np.sign(end) * place)) for place in (1e3, 1e6))
    if not near < 1e-2:
        _refuse(entry, f"saturates at {end}", f"its slope at {np.sign(end) * 1e3:g} is {near:.3g}")
    if far > near / 2:
        _refuse(entry, f"saturates at {end}", f"its slope is {near:.3g} at {np.sign(end) * 1e3:g} and stays so")


def _checked_values(entry: Activation, z: Float[Array, " points"]) -> Float[Array, " points"]:
    """The function on a grid, after making sure that it treats every entry alike and keeps shape and type."""
    value, part = entry.function(z), entry.function(z[:5])
    if jnp.shape(value) != z.shape or jnp.result_type(value) != z.dtype:
        raise ValueError(
            f"activation {entry.name} turns {z.dtype}{list(z.shape)} into {jnp.result_type(value)}"
            f"{list(jnp.shape(value))}: must be elementwise and keep the type"
        )
    if not np.allclose(part, value[:5], rtol=1e-4, atol=1e-6, equal_nan=True):
        raise ValueError(f"activation {entry.name} is not elementwise: its value at one entry depends on the others")
    return value


def _checked_slopes(entry: Activation, z: Float[Array, " points"]) -> Float[Array, " points"]:
    """The derivative on a grid, after making sure that it is that of the values, where facts about it are stated.

    Where half of the points in [-8, 8] agree with no central difference, the rule is another function's: that of a
    rounding with the slope 1 (a straight-through estimator). At the few kinks and jumps a rule may say anything.
    """
    try:
        slope = jax.jvp(entry.function, (z,), (jnp.ones_like(z),))[1]
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise ValueError(
            f"activation {entry.name} has a derivative for reverse mode alone (jax.custom_vjp): use "
            "jax.custom_jvp, which gives both"
        ) from error
    if entry.kinks is None and entry.flat is None and entry.saturates is None:
        return slope  # of a plain function nothing is claimed; verdicts look at the network itself
    with jax.enable_x64(True):
        inner = np.asarray(z, np.float64)[np.abs(np.asarray(z)) <= 8]
        rule = np.asarray(jax.jvp(entry.function, (inner,), (np.ones_like(inner),))[1])
        off = np.full(len(inner), np.inf)
        for step in (1e-1, 1e-3, 1e-5):
            change = np.asarray(entry(jnp.asarray(inner + step)) - entry(jnp.asarray(inner - step))) / (2 * step)
            off = np.minimum(off, np.abs(change - rule) / (1e-3 + np.abs(rule) + np.abs(change)))
    if (wrong := off > 1e-2).mean() > 0.25:
        place = inner[wrong][0]
        raise ValueError(
            f"activation {entry.name}: its derivative at {place:.3g}, {rule[wrong][0]:.3g}, is not that of its "
            "values, as in a straight-through estimator; no fact about it can be checked: leave all facts out"
        )
    return slope


def _refuse_missed_kinks(entry: Activation, given: Sequence[float]) -> None:
    kinks = [*(find_kinks(entry.function) or ()), *_far_kinks(entry.function)]
    missed = [kink for kink in kinks if not np.isclose(kink, given, rtol=1e-4, atol=1e-3).any()]
    if missed:
        _refuse(entry, f"kinks={given}", f"it also jumps, or its slope or curvature does, at {missed[0]:.6g}")


def _far_kinks(function: Callable) -> list[float]:
    """Kinks from 16 to 1024 on both sides, where pre-activations of inputs that are not normalised may lie."""
    return [kink for kink in _kinks(function, _STRETCH) or () if abs(kink) > _REACH]


def _refuse(entry: Activation, fact: str, finding: str) -> None:
    raise ValueError(f"activation {entry.name}: {fact} is wrong, {finding}; correct the fact, or leave it out")
