"""Weighted, signed and vanished clones: units whose incoming and outgoing weights are multiples of each other's."""

from collections.abc import Mapping, Sequence

import numpy as np

from lopjax.cloning import Clusters, Partition, check_partition, make_clusters
from lopjax.manifolds.affine import AffineStructure, build
from lopjax.manifolds.manifold import Manifold, ManifoldKind, Params
from lopjax.wiring import Wiring

Multiples = Mapping[str, Sequence[float]]
"""Per unit space, the factor `c_t` between each unit and a common unit of its cluster; 0 for a vanished unit."""


def weighted_manifold(
    params: Params, wiring: Wiring, partition: Partition, multiples: Multiples, space: str = "leaf"
) -> Manifold:
    """The manifold through a point on which the units of each cluster are fixed multiples of one unit.

    With (w_t, b_t, a_t) the incoming weights, bias and outgoing weights of unit t, the units of a cluster are
    `c_t (w, b, a)`:

    - *weighted*, `c_t > 0`, for a positive-homogeneous activation such as ReLU: `f(c z) = c f(z)`;
    - *signed*, `c_t = ±1`, for an odd one such as tanh: `f(-z) = -f(z)`;
    - *vanished*, `c_t = 0`, for one with `f(0) = 0`: `w = b = a = 0`, a saddle if its coupling is not 0.

    Then activations and backward signals are `c_t` times those of one unit, and so is every gradient: gradient descent
    with or without momentum never leaves, whatever the data. Coordinate-wise updates such as Adam's keep `c_t` in
    {-1, 0, 1} only. The projector is that of equal clones (`cloned_manifold`) with P the projection onto multiples, and
    as there only the incoming and outgoing totals must be multiples: `space="leaf"` is `W + BC`, "V" the family of all
    leaves. `certify_weighted` tests the assumptions about the network.

    Args:
        params: the point.
        wiring: wiring of the network.
        partition: cluster id of every unit, per space; a space that is absent has no clones.
        multiples: `c_t` of every unit, per space; a space that is absent has equal clones. Only their ratios inside a
            cluster matter, and which are 0.
        space: "leaf" or "V".

    Raises:
        ValueError: as `cloned_manifold`, for spaces that are cloneable; multiples that are not one finite number for
            each unit.

    Example:
        >>> import jax
        >>> from lopjax.models import mlp
        >>> model = mlp((2,), (3,), 1)
        >>> params = model.init(jax.random.key(0))["params"]
        >>> pair = weighted_manifold(params, model.wiring, {"hidden_0": (0, 0, 1)}, {"hidden_0": (1.0, 2.0, 1.0)})
        >>> pair.tangent_dimension, pair.space
        (9, 'weighted leaf')

    References:
        This library's own; for equal clones see arXiv 2510.00304, section 4.
    """
    if space not in ("leaf", "V"):
        raise ValueError(f"space={space!r}: must be 'leaf' or 'V'")
    clusters, factors = check_multiples(wiring, partition, multiples)
    return build(params, AffineStructure(wiring, clusters, {}, factors), ManifoldKind(space))


def check_multiples(
    wiring: Wiring, partition: Partition, multiples: Multiples
) -> tuple[dict[str, Clusters], dict[str, tuple[float, ...]]]:
    """Clusters of every space that has clones or multiples, and the multiples as floats.

    Args:
        wiring: wiring of the network.
        partition: as in `weighted_manifold`.
        multiples: as in `weighted_manifold`.

    Raises:
        ValueError: see `weighted_manifold`.
    """
    clusters = check_partition(wiring, partition, wiring.cloneable)
    factors = {}
    for space, given in multiples.items():
        size, values = wiring.size(space), np.asarray(given)
        if space not in wiring.cloneable:
            raise ValueError(
                f"multiples of {space!r}: it is {wiring.why_not_cloneable(space)}; cloneable spaces are "
                f"{list(wiring.cloneable)}"
            )
        if values.shape != (size,) or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
            raise ValueError(f"multiples of {space!r}: {given!r}; must be {size} finite numbers, one for each unit")
        factors[space] = tuple(float(value) for value in values)
        clusters.setdefault(space, make_clusters(tuple(range(size))))
    return clusters, factors
