"""Are units fixed multiples of one another, and does that trap them? From the network, its parameters and a batch."""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.activations import activation
from lopjax.arguments.batches import as_batch, check_tolerance
from lopjax.arguments.networks import check_network
from lopjax.arguments.precision import all_digits
from lopjax.certificates.batch_evidence import Loss, Pass, run
from lopjax.certificates.tables import number, table
from lopjax.cloning import Clusters, Partition, mean_over_clusters
from lopjax.cloning.programs import check_programs
from lopjax.cloning.rounding import (
    CERTAIN_FROM,
    at_least_float32,
    check_precision,
    parameter_tolerance,
    signal_tolerance,
)
from lopjax.losses import Batch, check_batch, check_inputs, mean_cross_entropy
from lopjax.manifolds import (
    CloneNormals,
    Manifold,
    Multiples,
    normal_part,
    tangency_residual,
    tree_norm,
    weighted_manifold,
)
from lopjax.manifolds.level_sets import what_stands_between
from lopjax.manifolds.weighted import check_multiples
from lopjax.model import Model, Params, Variables
from lopjax.models.check import check_labels
from lopjax.wiring import Label, Wiring, along, tree_paths, unit_rows


class WeightedVerdict(Enum):
    """What `certify_weighted` concludes; the value is the sentence shown to the user."""

    WEIGHTED = (
        "clones up to fixed factors: each unit of a cluster is a multiple of one unit, in what it reads and in what it "
        "gives; trapped under gradient descent with or without momentum"
    )
    NOT_WEIGHTED = "not clones up to these factors: on this batch the gradient drives them apart"
    UNDECIDED = "undecided: residuals between rounding and signal, an unknown fact, or no difference on the batch"


class WeightedCertificate(NamedTuple):
    """Result of `certify_weighted`; `str` gives a report.

    Attributes:
        verdict: the conclusion.
        multiples: the factors that were given or fitted, per space.
        residuals: per array with such units, the largest `(incoming, outgoing)` deviation of a unit, relative to its
            slice.
        tangency: `||P_N g|| / ||g||` of the loss gradient; `None` without a batch.
        tolerance: tolerance of parameter residuals.
        signal_tolerance: tolerance of the tangency.
        notes: assumptions that do not hold or are not known, and which optimizers keep the factors.
    """

    verdict: WeightedVerdict
    multiples: Mapping[str, tuple[float, ...]]
    residuals: Mapping[str, tuple[float, float]]
    tangency: float | None
    tolerance: float
    signal_tolerance: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """A report of a few lines, one row per array."""
        rows = [(name, *map(number, pair)) for name, pair in self.residuals.items()]
        lines = [
            f"Weighted clones: {self.verdict.name}",
            f"  {self.verdict.value}",
            f"  tolerance {self.tolerance:.1e} for parameters, {self.signal_tolerance:.1e} for the gradient",
            *table(("array", "incoming", "outgoing"), rows),
        ]
        if self.tangency is not None:
            lines.append(f"  tangency residual of the gradient {self.tangency:.1e}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@all_digits()
def certify_weighted(
    model: Model,
    variables: Variables,
    batch: Batch | None,
    partition: Partition,
    multiples: Multiples | None = None,
    *,
    loss: Loss = mean_cross_entropy,
    tolerance: float | None = None,
) -> WeightedCertificate:
    """Certify that the units of each cluster are fixed multiples of one unit, and trapped as such.

    Three conditions must hold. The network: the activation is homogeneous if a factor is not 0 or ±1, odd if one is
    negative, and 0 at 0 if a unit has vanished, and the pre-activation is computed by a kernel and a bias alone. The
    parameters: incoming totals and outgoing amounts are multiples (`lopjax.manifolds.weighted_manifold`). A batch, if
    there is one: the gradient is tangent. Units are called unequal only if the gradient drives them apart. One
    assumption is not visible in the labels: whatever stands between the activation and the kernels that read it
    (pooling) commutes with positive factors; for negative ones a kernel must name the site as its `source`.

    Args:
        model: the network.
        variables: its variables; 16-bit ones are judged in float32.
        batch: `(inputs, labels)`; `None` to judge by the parameters alone.
        partition: cluster id of every unit, per space.
        multiples: the factor of every unit, per space; by default those that fit the incoming weights best.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        tolerance: relative residual that counts as zero; default `parameter_tolerance`.

    Raises:
        ValueError: nothing to certify; see also `weighted_manifold` and `certify_cloned`.

    References:
        This library's own; for equal clones see arXiv 2510.00304, section 4.
    """
    check_network(model, variables)
    wiring, variables = model.wiring, at_least_float32(variables)
    params = variables["params"]
    if multiples is None:
        multiples = fitted_multiples(params, wiring, check_multiples(wiring, partition, {})[0])
    clusters, factors = check_multiples(wiring, partition, multiples)
    factors = {space: _relative(each, clusters[space].ids) for space, each in factors.items()}
    if not clusters:
        raise ValueError(
            "no cluster of two or more units and no multiples: there is nothing to certify; give one, such as (0, 0, 1)"
        )
    check_tolerance(tolerance)
    if batch is not None:
        batch = as_batch(batch)
        check_inputs(model, variables, batch[0])
    check_labels(model, variables, None if batch is None else batch[0])
    leaf = weighted_manifold(params, wiring, partition, factors)
    assert leaf.normals is not None  # manifolds of clones have them
    residuals = _residuals(params, wiring, set(clusters), leaf.normals)
    limit = parameter_tolerance(params) if tolerance is None else tolerance
    signal_limit, seen = max(limit, signal_tolerance(params, wiring)), None
    if batch is not None:
        check_batch(model, variables, batch, loss=loss)
        check_precision(jax.eval_shape(lambda: model.apply(variables, jnp.asarray(batch[0])).taps))
        check_programs(model, variables, batch, loss)
        seen = _on_batch(leaf, run(model, variables, batch, loss, False), batch)
    missing = [each for space in clusters if (each := _missing(wiring, space, factors.get(space, (1.0,))))]
    verdict, notes = _judge(residuals, limit, seen, signal_limit, missing)
    tangency = None if seen is None else seen.tangency
    notes += _assumptions(wiring, factors)
    return WeightedCertificate(verdict, factors, residuals, tangency, limit, signal_limit, tuple(notes))


def _assumptions(wiring: Wiring, factors: Mapping[str, tuple[float, ...]]) -> list[str]:
    """What the labels cannot show, and which optimizers keep the factors."""
    assumed = [space for space in factors if _is_read_through_something(wiring, space)]
    notes = [f"assumed: operations between {space} and its readers (pooling) preserve factors" for space in assumed]
    if any(abs(c) not in (0, 1) for each in factors.values() for c in each):
        notes += ["factors other than 0, 1 and -1: coordinate-wise updates such as Adam's change them"]
    return notes


class _OnBatch(NamedTuple):
    """The gradient's normal part: `|P_N g| / |g|`, and `|P_N g|` over the size of the terms that cancel in g."""

    tangency: float
    share: float


def _on_batch(leaf: Manifold, seen: Pass, batch: Batch) -> _OnBatch:
    """Both ratios; near a critical point g is a remainder after cancellation, and its direction may be noise.

    By the Cauchy-Schwarz inequality the terms of an entry of g add up to at most |h| |delta|, norms over the samples;
    delta itself is a difference, at the outputs, of numbers of size 1 over the number of samples.
    """
    largest = max(float(jnp.linalg.norm(each)) for each in (batch[0], *(tap.post for tap in seen.taps.values())))
    back = sum(float(jnp.linalg.norm(tap.pre)) for tap in seen.backward.values()) + len(batch[0]) ** -0.5
    size, normal = float(tree_norm(seen.gradient)), float(tree_norm(normal_part(leaf, seen.gradient)))
    return _OnBatch(float(tangency_residual(leaf, seen.gradient)), normal / max(size, largest * back))


def _judge(
    residuals: Mapping[str, tuple[float, float]],
    limit: float,
    seen: _OnBatch | None,
    signal_limit: float,
    missing: list[str],
) -> tuple[WeightedVerdict, list[str]]:
    """The verdict; equality needs parameters, facts and batch, inequality needs the batch.

    Args:
        residuals: by array, the largest incoming and outgoing deviation.
        limit: residual up to which parameters count as equal.
        seen: what the batch shows; None without one.
        signal_limit: the same for what is seen.
        missing: facts that the law needs and that are unknown or false.

    Returns:
        The verdict, and notes.
    """
    worst = max((value if value == value else np.inf for pair in residuals.values() for value in pair), default=0.0)
    leaves = seen is not None and CERTAIN_FROM * signal_limit <= seen.share < np.inf
    stays = seen is None or seen.share < CERTAIN_FROM * signal_limit
    if worst <= limit and not missing:
        if stays:
            return WeightedVerdict.WEIGHTED, []
        return WeightedVerdict.UNDECIDED, ["the parameters fit, but the gradient leaves the manifold"]
    is_unequal = worst >= CERTAIN_FROM * limit
    why = [*missing, *([f"largest residual {worst:.1e}"] if worst > limit else [])]
    if leaves and (is_unequal or missing):
        return WeightedVerdict.NOT_WEIGHTED, why
    unshown = (
        "a batch would show whether the gradient drives them apart"
        if seen is None
        else "the gradient shows no difference"
    )
    return WeightedVerdict.UNDECIDED, [*why, unshown]


def fitted_multiples(params: Params, wiring: Wiring, clusters: Mapping[str, Clusters]) -> dict[str, tuple[float, ...]]:
    """The factors that fit the incoming weights of each unit best, relative to the largest unit of its cluster.

    Args:
        params: parameters.
        wiring: their wiring.
        clusters: clusters of every space that has clusters.

    Returns:
        Per space one factor for each unit: 1 for the largest, 0 for one whose incoming weights are all zero.
    """
    multiples: dict[str, tuple[float, ...]] = {}
    for space in (space for space in wiring.spaces if space in clusters):
        rows = np.concatenate([
            unit_rows(_totals(label, np.asarray(leaf, np.float64), clusters, multiples), axis)
            for label, leaf in zip(wiring.labels_of(params), jax.tree.leaves(params), strict=True)
            for axis, *_ in label.unit_axes((space,), is_read=False)
        ], axis=1)  # fmt: skip
        lengths, ids = np.linalg.norm(rows, axis=1), clusters[space].ids
        largest = np.array([max(np.flatnonzero(ids == own), key=lambda unit: lengths[unit]) for own in ids])
        squares = lengths[largest] ** 2
        products = np.sum(rows * rows[largest], axis=1)
        # Factors within rounding of 0 or ±1 are set to these: signs and vanished units are exact.
        factors = np.divide(products, squares, out=np.zeros(len(ids)), where=squares > 0)
        nearest = np.round(factors)
        multiples[space] = tuple(np.where(np.abs(factors - nearest) <= parameter_tolerance(params), nearest, factors))
    return multiples


def _relative(factors: tuple[float, ...], ids: np.ndarray) -> tuple[float, ...]:
    """Factors relative to the largest of their cluster: only ratios matter."""
    values = np.asarray(factors)
    largest = np.array([max(values[ids == own], key=abs) for own in ids])
    return tuple(values / np.where(largest == 0, 1.0, largest))


def _totals(
    label: Label, array: np.ndarray, clusters: Mapping[str, Clusters], multiples: Mapping[str, tuple[float, ...]]
) -> np.ndarray:
    """The totals over clusters that an array reads, weighted by their factors; the other entries are free."""
    for axis, space, _ in label.unit_axes(multiples, is_read=True):
        factors = along(np.asarray(multiples[space]), axis, array.ndim)
        squares = mean_over_clusters(np.square(factors), axis, clusters[space])
        mean = mean_over_clusters(factors * array, axis, clusters[space])
        array = factors * mean / np.where(squares > 0, squares, 1.0)
    return array


def _residuals(
    params: Params, wiring: Wiring, spaces: set[str], normals: CloneNormals
) -> dict[str, tuple[float, float]]:
    """Per array, the largest incoming and outgoing deviation of a unit, relative to the unit's own slice."""
    names = ["/".join(path) for path in tree_paths(params)]
    parts = [jax.tree.leaves(part.project(params)) for part in (normals.incoming, normals.outgoing)]
    residuals = {}
    leaves = zip(names, wiring.labels_of(params), jax.tree.leaves(params), *parts, strict=True)
    for name, label, leaf, *departures in leaves:
        axes = [axis for axis, *_ in label.unit_axes(spaces)]
        if axes:
            residuals[name] = tuple(max(_largest_share(part, leaf, axis) for axis in axes) for part in departures)
    return residuals


def _largest_share(part: jax.Array, whole: jax.Array, axis: int) -> float:
    """The largest `|part| / |whole|` of a unit's slice; of a slice that is zero, 0 or infinite."""
    sizes = [np.linalg.norm(unit_rows(np.asarray(each, np.float64), axis), axis=1) for each in (part, whole)]
    shares = np.divide(sizes[0], sizes[1], out=np.where(sizes[0] > 0, np.inf, 0.0), where=sizes[1] > 0)
    return float(shares.max(initial=0.0))


def _missing(wiring: Wiring, space: str, factors: tuple[float, ...]) -> str:
    """The first assumption about a space that does not hold or is not known; empty if all hold."""
    if all(c == 1 for c in factors):
        return ""
    sites = wiring.sites_of(space)
    if len(sites) != 1 or space in wiring.coupled:
        return f"{space}: its units are written at {len(sites)} sites, or a norm averages over them"
    if between := what_stands_between(wiring, space):
        return f"{space}: {between}"
    entry = activation(wiring.site(sites[0]).activation)
    has_other_sizes, has_signs = any(abs(c) not in (0, 1) for c in factors), any(c < 0 for c in factors)
    if has_other_sizes and not entry.is_homogeneous:
        return f"{space}: activation {entry.name} {_unless_known(entry.is_homogeneous, 'positive-homogeneous')}"
    if has_signs and not entry.is_odd:
        return f"{space}: activation {entry.name} {_unless_known(entry.is_odd, 'odd')}"
    if has_signs and _is_read_through_something(wiring, space):
        return f"{space}: an operation that need not be odd (pooling) may stand between its activation and its readers"
    if 0.0 in factors and not entry.is_zero_at_zero:
        return f"{space}: activation {entry.name} is not 0 at 0, so a unit without weights is not silent"
    return ""


def _is_read_through_something(wiring: Wiring, space: str) -> bool:
    """Whether some array that reads a space does not name the space's only site as its source."""
    labels, sites = dict(wiring.labels), wiring.sites_of(space)
    return any((labels[path].source,) != sites for path, _ in wiring.outgoing(space))


def _unless_known(fact: bool | None, what: str) -> str:
    return f"is not {what}" if fact is not None else f"does not say whether it is {what}"
