"""Probe: how far the pairwise correlations of a layer's units have moved towards 0 or 1."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from lopjax.arguments.numbers import takes_numbers
from lopjax.theory.moments import rounding_of


class CorrelationReport(NamedTuple):
    """Distribution of the pairwise |correlations| r of a layer, as averages over pairs of units that are not constant.

    Attributes:
        polarisation: mean of |2r - 1|: 1 if every r is 0 or 1, 0 if every r is 1/2, 1/2 if r is uniform.
        mean: mean of r.
        near_zero: fraction of pairs with r below the margin: independent features.
        near_one: fraction of pairs with r above 1 - margin: near copies, close to a cloned-unit manifold.
        num_pairs: number of pairs. If it is 0, the averages are 0 and have no meaning.
        constant_fraction: fraction of the units that do not vary over the samples; they have no correlation.
    """

    polarisation: Float[Array, ""]
    mean: Float[Array, ""]
    near_zero: Float[Array, ""]
    near_one: Float[Array, ""]
    num_pairs: Float[Array, ""]
    constant_fraction: Float[Array, ""]


@takes_numbers(activations=2)
def correlation_report(
    activations: Shaped[Array | np.ndarray, "samples units"], margin: float = 0.1
) -> CorrelationReport:
    """Measure how far pairwise unit correlations have moved towards {0, 1}.

    The paper's tension: features that generalise are either independent (r = 0) or copies of each other (r = 1), and
    copies trap training later. `near_zero` and `near_one` distinguish the two. With finite samples even independent
    units have r of about sqrt(2 / (pi samples)), so `samples` should be a few hundred.

    Args:
        activations: one row per sample, one column per unit; reshape feature maps and tokens first. Integers, booleans
            and 16-bit floats are computed in float32.
        margin: distance that counts as near, between 0 and 1/2.

    Returns:
        A report of scalars; usable under jit and vmap. All are NaN if an activation is not finite.

    Raises:
        ValueError: the margin is out of range, or there are no samples or no units.

    Example:
        >>> copies = jnp.array([[0.0, 0.0, 5.0], [1.0, -2.0, 5.0], [2.0, -4.0, 5.0]])
        >>> report = correlation_report(copies)  # two copies (one negated), one constant unit
        >>> float(report.near_one), float(report.num_pairs), round(float(report.constant_fraction), 3)
        (1.0, 1.0, 0.333)

    References:
        arXiv 2510.00304, section 5 (tension between generalisation and plasticity).
    """
    if not 0 < margin < 0.5:
        raise ValueError(f"margin={margin}: must lie between 0 and 1/2")
    array = jnp.asarray(activations)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"activations of shape {array.shape}: must be (samples, units), at least one of each")
    activations = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    is_finite = jnp.all(jnp.isfinite(activations))
    # Scaled first, so that sums of large values stay finite: by a power of 2, which is exact, in two steps, because its
    # reciprocal may not be a normal number.
    exponent = jnp.frexp(jnp.max(jnp.abs(activations), axis=0))[1]
    half = exponent // 2
    scaled = activations * jnp.exp2(-half.astype(activations.dtype))
    scaled = scaled * jnp.exp2((half - exponent).astype(activations.dtype))
    centred = scaled - scaled.mean(axis=0)
    # Rounding of the mean makes a constant unit vary by a few ulps; smaller deviations would underflow when squared.
    spread = jnp.max(jnp.abs(centred), axis=0)
    is_varying = spread > jnp.maximum(8 * jnp.finfo(activations.dtype).eps, rounding_of(array) / 4)
    centred = jnp.where(is_varying, centred / jnp.where(is_varying, spread, 1), 0)
    norm = jnp.linalg.norm(centred, axis=0)
    unit = centred / jnp.where(is_varying, norm, 1)
    r = jnp.clip(jnp.abs(unit.T @ unit), 0, 1)
    is_pair = jnp.triu(is_varying[:, None] & is_varying[None, :], k=1)
    num_pairs = jnp.sum(is_pair).astype(r.dtype)

    def average(values: Float[Array, "units units"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(is_pair, values, 0)) / jnp.maximum(num_pairs, 1)

    report = CorrelationReport(
        polarisation=average(jnp.abs(2 * r - 1)),
        mean=average(r),
        near_zero=average((r < margin).astype(r.dtype)),
        near_one=average((r > 1 - margin).astype(r.dtype)),
        num_pairs=num_pairs,
        constant_fraction=jnp.mean((~is_varying).astype(r.dtype)),
    )
    return CorrelationReport(*(jnp.where(is_finite, value, jnp.nan) for value in report))
