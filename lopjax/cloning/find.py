"""Finding the clones in any network from its activations on data and, independently, from its variables."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.arguments.batches import as_numbers, check_tolerance
from lopjax.arguments.networks import check_network
from lopjax.arguments.numbers import takes_numbers
from lopjax.arguments.precision import all_digits
from lopjax.cloning.equality import totals
from lopjax.cloning.rounding import (
    CERTAIN_FROM,
    at_least_float32,
    check_precision,
    parameter_tolerance,
    signal_tolerance,
)
from lopjax.losses import check_inputs
from lopjax.model import Model, Tap, Variables, samples_by_units
from lopjax.models.check import check_labels
from lopjax.wiring import Out, Wiring


class ClonesFound(NamedTuple):
    """Clusters of one unit space, found in three ways, each given as a tuple of cluster ids, one per unit.

    Attributes:
        activations: units with the same activations on the batch.
        parameters: units that stay clones under training whatever the data: the coarsest clusters for which RE and CE
            (arXiv 2510.00304, appendix A.2) hold in every array at once. Sufficient, not necessary: units may also be
            trapped because of differences that the loss does not see, which `certify_cloned` takes into account.
        proportional: units that are redundant in the function, though perhaps not in the parameters: their activations
            agree up to a factor (ReLU units up to scale, odd units up to sign), or, for attention heads, their outputs
            agree up to a linear map of their coordinates. Units that are zero on the whole batch form one cluster here.
        silent: number of units whose activation is zero on the whole batch: equal for a trivial reason.
        agree: whether activations and parameters give the same clusters.
    """

    activations: tuple[int, ...]
    parameters: tuple[int, ...]
    proportional: tuple[int, ...]
    silent: int
    agree: bool


@all_digits()
def find_clones(
    model: Model,
    variables: Variables,
    batch: jax.Array | np.ndarray | tuple[jax.Array | np.ndarray, Any],
    tolerance: float | None = None,
) -> dict[str, ClonesFound]:
    """Find the clones in a network from its activations and, independently, from its variables.

    Args:
        model: any model.
        variables: its variables, evaluated in eval mode; 16-bit ones in float32.
        batch: inputs `(batch, *input_shape)`, or `(inputs, labels)`, whose labels are not used; more samples than
            clusters make accidents unlikely.
        tolerance: relative distance below which two units count as equal. By default it lies between what
            `certify_cloned` counts as zero and as nonzero (sqrt(10) times its tolerances), so that the two never
            contradict each other. Relative to the smaller unit of the two (its activations, or its pre-activations if
            those are larger), and for parameters as in `refine_partition`.

    Returns:
        A `ClonesFound` for every cloneable space that is observed at some site. Where `agree` is false, units act alike
        on this batch without equal totals (or the tolerance is too tight); `certify_cloned` decides whether they are
        trapped.

    Raises:
        ValueError: inputs that the network does not take; parameters or activations that are not finite; a network
            that computes in 16 bits; see also `Wiring.labels_of`.
    """
    check_network(model, variables)
    variables = at_least_float32(variables)
    params, wiring = variables["params"], model.wiring
    inputs = as_numbers("inputs", batch[0] if isinstance(batch, tuple) else batch)
    check_tolerance(tolerance)
    check_inputs(model, variables, inputs)
    check_labels(model, variables, inputs)
    taps = model.apply(variables, inputs).taps
    if unseen := [site for site, _ in wiring.sites if site not in taps]:
        # A traced network finds its sites by the axis of samples, which an axis of size 1 does not show.
        raise ValueError(f"{len(inputs)} inputs: site {unseen[0]!r} cannot be observed on them; give several samples")
    check_precision(taps)
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((variables, taps))):
        raise ValueError("parameters or activations are not finite: they must be, for units to be compared")
    shared = (
        CERTAIN_FROM**0.5 * parameter_tolerance(params),
        CERTAIN_FROM**0.5 * signal_tolerance(params, wiring, taps),
    )
    limits = shared if tolerance is None else (tolerance, tolerance)
    from_parameters = refine_partition(variables, wiring, limits[0])
    clones = {}
    for space in wiring.cloneable:
        seen = [taps[site] for site in wiring.sites_of(space)]
        if not seen:
            continue
        by_activation = _by_activation(seen, limits[1])
        clones[space] = ClonesFound(
            activations=by_activation,
            parameters=from_parameters[space],
            proportional=_up_to_a_map(seen, unit_coordinates(params, wiring, space), limits[1]),
            silent=int(np.all([np.all(_rows(tap.post) == 0, axis=1) for tap in seen], axis=0).sum()),
            agree=by_activation == from_parameters[space],
        )
    return clones


def _rows(signal: jax.Array) -> np.ndarray:
    """`(units, samples)` in float64."""
    return np.asarray(samples_by_units(signal), np.float64).T


def _by_activation(taps: list[Tap], limit: float) -> tuple[int, ...]:
    """Units that agree at every site, relative to the size of the two units compared."""
    clusters = None
    for tap in taps:
        rows = _rows(tap.post)
        sizes = np.maximum(np.linalg.norm(rows, axis=1), np.linalg.norm(_rows(tap.pre), axis=1))
        clusters = cluster_rows(rows, limit * sizes, clusters)
    assert clusters is not None
    return clusters


def _up_to_a_map(taps: list[Tap], width: int, limit: float) -> tuple[int, ...]:
    """Units whose activations are multiples of each other or, with several coordinates, linear images of each other."""
    if width > 1:
        clusters = None
        for tap in taps:
            units = np.moveaxis(np.asarray(tap.post, np.float64), -1, 0).reshape(tap.post.shape[-1], -1, width)
            clusters = _cluster_spans(units, limit, clusters)
        assert clusters is not None
        return clusters
    activations = np.concatenate([_rows(tap.post) / (float(np.abs(_rows(tap.post)).max()) or 1.0) for tap in taps], 1)
    norms = np.linalg.norm(activations, axis=1)
    directions = activations / np.where(norms == 0, 1.0, norms)[:, None]
    # The sign of a generic projection: the sign of the largest entry flips where two entries tie.
    sign = np.where(directions @ np.random.default_rng(0).normal(size=directions.shape[1]) < 0, -1.0, 1.0)
    return cluster_rows(directions * sign[:, None], np.full(len(norms), limit))


def unit_coordinates(tree: Any, wiring: Wiring, space: str) -> int:
    """How many coordinates a unit has: 1, or the length of the axis after it in the arrays that write it.

    A head of width d is written by arrays with axes `(..., heads, d)`; no axis follows a channel or a unit. Where
    queries and values differ in width, the width of the values counts, because they make up a head's output.

    Args:
        tree: parameters or variables.
        wiring: their wiring.
        space: the units.
    """
    widths = set()
    for label, leaf in zip(wiring.labels_of(tree), jax.tree.leaves(tree), strict=True):
        for axis, *_ in label.unit_axes((space,), is_read=False)[:1]:
            behind = label.axes[axis + 1 :]
            if len(behind) == 1 and isinstance(behind[0], Out) and behind[0].space not in wiring.cloneable:
                continue  # queries and keys: only the products within their own head see their coordinates
            widths.add(leaf.shape[-1] if len(behind) == 1 and wiring.is_coordinate(behind[0]) else 1)
    return widths.pop() if len(widths) == 1 else 1


def _cluster_spans(units: np.ndarray, limit: float, within: tuple[int, ...] | None) -> tuple[int, ...]:
    """Clusters of units `(units, samples, coordinates)` whose columns span the same space.

    Two heads give the same outputs up to a linear map of their coordinates if and only if their columns span the same
    space, so each is projected onto the span of the other: the remainder, relative to its size, is their distance.
    """
    if units.shape[1] <= units.shape[2]:  # Too few samples: everything spans everything.
        return within or tuple(range(len(units)))
    bases = []
    for unit in units:
        left, sizes, _ = np.linalg.svd(unit, full_matrices=False)
        bases.append(left[:, sizes > limit * sizes[0]])

    def outside(unit: int, other: int) -> float:
        rest = units[unit] - bases[other] @ (bases[other].T @ units[unit])
        return float(np.linalg.norm(rest) / (np.linalg.norm(units[unit]) or 1.0))

    leaders: list[int] = []
    clusters = []
    for unit in range(len(units)):
        alike = [
            cluster
            for cluster, leader in enumerate(leaders)
            if (within is None or within[leader] == within[unit])
            and bases[unit].shape == bases[leader].shape
            and max(outside(unit, leader), outside(leader, unit)) <= limit
        ]
        if not alike:
            alike = [len(leaders)]
            leaders.append(unit)
        clusters.append(alike[0])
    return tuple(clusters)


def refine_partition(tree: Any, wiring: Wiring, tolerance: float) -> dict[str, tuple[int, ...]]:
    """The coarsest partition with RE and CE in every array, by refinement: split whatever can be told apart.

    Starts from one cluster per space. Two units stay together while, in every array, they get the same totals from
    each source cluster (RE), give the same totals to each target cluster (CE), and have equal biases and norm
    parameters. This is the coarsest equitable partition of a weighted graph. It exists and refinement finds it: units
    that share a cluster of any equitable partition can never be told apart by totals over unions of its clusters.

    Args:
        tree: parameters, or variables: running statistics then count like biases.
        wiring: their wiring.
        tolerance: largest difference between two totals that counts as zero, relative to the size of their block (see
            `lopjax.cloning.equality.block_sizes`): totals that cancel are rounding noise and do not separate units, and
            a unit with large entries does not hide another.

    Returns:
        `{space: cluster id of every unit}` for all spaces; those that are not cloneable have singletons.
    """
    labels = wiring.labels_of(tree)
    arrays = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    may = wiring.cloneable
    partition = {space: (0,) * size if space in may else tuple(range(size)) for space, size in wiring.sizes}
    # Each round splits clusters whose units have different totals over the present clusters, and never merges any, so
    # it ends, at the latest when all units are alone. Once a round changes nothing, no total distinguishes the units of
    # a cluster. Comparisons have a tolerance, so clusters are split by the distance to their first unit and not sorted
    # by exact totals, as in partition refinement of graphs; with few units that is just as fast.
    while True:
        ids = {space: np.asarray(clusters) for space, clusters in partition.items() if space in may}
        refined = {
            space: _split(space, list(zip(labels, arrays, strict=True)), ids, tolerance)
            if space in may
            else partition[space]
            for space in wiring.spaces
        }
        if refined == partition:
            return partition
        partition = refined


def _split(space: str, arrays: list[tuple[Any, np.ndarray]], ids: Mapping[str, np.ndarray], limit: float) -> tuple:
    """Clusters of one space split by the totals of its units in every array."""
    features = [np.zeros((len(ids[space]), 1))]
    for label, array in arrays:
        for axis, *_ in label.unit_axes((space,)):
            means, sizes = totals(array, label, axis, ids)
            features.append(np.where(sizes == 0, 0.0, means / np.where(sizes == 0, 1.0, sizes)))
    rows = np.concatenate(features, axis=1)
    return cluster_rows(rows, np.full(len(rows), limit), tuple(int(each) for each in ids[space]), order=np.inf)


@takes_numbers(rows=2, limits=1)
def cluster_rows(
    rows: np.ndarray, limits: np.ndarray, within: tuple[int, ...] | None = None, order: float = 2
) -> tuple[int, ...]:
    """Cluster ids, numbered by first appearance, of rows that agree with the first row of their cluster.

    Args:
        rows: `(units, features)`.
        limits: `(units,)`: two rows agree when their distance is at most the smaller of their limits.
        within: only units with the same id here may share a cluster.
        order: order of the norm that measures distances.
    """
    leaders: list[int] = []
    clusters = []
    for unit, row in enumerate(rows):
        close = np.linalg.norm(rows[leaders] - row, order, axis=1) <= np.minimum(limits[leaders], limits[unit])
        candidates = [
            cluster for cluster in np.flatnonzero(close) if within is None or within[leaders[cluster]] == within[unit]
        ]
        if not candidates:
            candidates = [len(leaders)]
            leaders.append(unit)
        clusters.append(int(candidates[0]))
    return tuple(clusters)
