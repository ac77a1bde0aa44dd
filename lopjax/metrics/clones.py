"""How close units are to clones: the fraction of the variance between units that their clusters explain."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.arguments.integers import as_integer
from lopjax.metrics.scaling import Samples, Scalar, as_samples, on_one_scale, scaled, times_power_of_two


def cloning_r2(h: Samples, factor: int) -> Scalar:
    """Fraction of the variance between units that is explained by clusters of `factor` adjacent clones.

    `partition_r2` with clusters `0, ..., 0, 1, ..., 1, ...`: 1 for perfect clones, about `1 / factor`
    for independent units. Call it with the backward signal of a layer for the backward R².

    Args:
        h: activations or backward signals, `(samples, units)`; the clones of a unit are adjacent.
        factor: number of clones of each unit.

    Returns:
        R² in [0, 1]; 1 if all units are equal on each sample (an all-zero `h` included).

    Raises:
        ValueError: `factor` is not a positive integer that divides the number of units.

    Example:
        >>> import jax.numpy as jnp
        >>> base = jnp.array([[1.0, 2.0], [3.0, -1.0]])
        >>> print(cloning_r2(jnp.repeat(base, 2, axis=1), factor=2), cloning_r2(jnp.tile(base, 2), factor=2))
        1.0 0.0
    """
    h = as_samples(h)
    units = h.shape[1]
    refusal = f"factor={factor!r}: must be a positive integer that divides the number of units, {units}"
    number = as_integer(factor, 1, refusal)
    if units % number:
        raise ValueError(refusal)
    return partition_r2(h, np.arange(units) // number)


def partition_r2(h: Samples, clusters: Sequence[int] | np.ndarray) -> Scalar:
    r"""R² of a partition of the units into clusters of clones, of any sizes.

    .. math:: R^2 = 1 - \frac{\sum_x \sum_u (h_{xu} - \bar h_{x,c(u)})^2}{\sum_x \sum_u (h_{xu} - \bar h_x)^2}

    with the mean over the cluster of unit u above and the mean over all units of the same sample below: the
    within-cluster and the total variance across units, both with 1/units, pooled over the samples. (The code of
    arXiv 2510.00304 divides standard deviations instead; variances with 1/(n - 1) would double 1 - R² of pairs.)
    Independent units of equal mean and variance give `(clusters - 1) / (units - 1)` on average, not 0.

    Args:
        h: activations or backward signals, `(samples, units)`.
        clusters: cluster id of each unit; static, hence a tuple or an array that is not traced.

    Returns:
        R² in [0, 1]; 1 if all units are equal on each sample (an all-zero `h` included) or all are singletons.

    Raises:
        ValueError: `clusters` does not name one cluster for each unit.
    """
    h = as_samples(h)
    if np.shape(clusters) != h.shape[1:]:
        raise ValueError(
            f"clusters has {' x '.join(map(str, np.shape(clusters)))} entries: must name one cluster for each of "
            f"{h.shape[1]} units"
        )
    _, first, cluster, sizes = np.unique(
        np.asarray(clusters), return_index=True, return_inverse=True, return_counts=True
    )
    # Relative to one unit of their cluster, exact clones are exactly zero: R² is then exactly 1 at any scale.
    rows, exponents = scaled(h, axis=1)
    shifted, shift = on_one_scale(rows - rows[:, :1], exponents, axis=1)
    relative = times_power_of_two(rows - rows[:, first[cluster]], shift)
    sums = jax.ops.segment_sum(relative.T, cluster, len(sizes)).T
    means = sums / jnp.asarray(sizes, h.dtype)[None]
    within = ((relative - means[:, cluster]) ** 2).sum()
    total = ((shifted - shifted.mean(axis=1, keepdims=True)) ** 2).sum()
    return 1 - within / jnp.where(total == 0, 1, total)
