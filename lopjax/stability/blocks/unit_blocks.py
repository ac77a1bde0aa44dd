"""Is a network of clones trapped at a saddle? One small block for every unit answers for the whole normal space.

At a point of BC the Hessian on the normal space of the leaf is `sum_j I_(n_j - 1) x M_j + 0(gauge)`.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Key

from lopjax.cloning import Factor, Partition, clone_variables, uniform_partition, widen
from lopjax.losses import Batch, check_batch, check_mean_over_samples
from lopjax.manifolds import Clusters, check_partition, cloned_manifold
from lopjax.model import Model, Variables
from lopjax.rounding import parameter_tolerance
from lopjax.stability.blocks.coordinates import block_constant_residual, clone_counts, collapse
from lopjax.stability.blocks.matrices import LossOfLogits, unit_matrices
from lopjax.stability.blocks.plain_spaces import PlainSpace, plain_space
from lopjax.stability.blocks.products import Curved, UnitExtremes, coarsest_type, hessian_size, unit_extremes
from lopjax.stability.blocks.scales import Scales, unit_scales
from lopjax.stability.blocks.signals import downstream_sites, has_unknown_kinks, is_straight, kinks_of, sites_at_kinks
from lopjax.stability.blocks.spectra import BlockError, block_eigenvalues, block_inertia, structural_zeros
from lopjax.stability.verdicts import (
    SignCounts,
    Stability,
    StabilityReport,
    at_a_kink,
    counted_report,
    kinks_unknown,
    precision_note,
    witnessed_report,
)
from lopjax.tolerance import GAP, default_zero_level, rounding_tolerance

METHODS = ("auto", "closed form", "batched hvp")


class SpaceBlocks(NamedTuple):
    """The blocks M_j of all units of one unit space, as arrays over the units of the base network.

    Attributes:
        space: name of the unit space.
        multiplicity: n_j - 1, how often the block occurs in the normal Hessian.
        dimension: of one block: incoming plus outgoing parameters of the base unit.
        reports: one report per unit, of its block counted once.
        gradient_residual: `|diag(sqrt n_i, 1) g_j| / |diag(sqrt n_k) w_out|` with g_j the base gradient by the unit's
            incoming parameters: at most this much of B_j's smallest singular value is owed to the base not being at a
            critical point. NaN where unknown, 0 where the outgoing weights are 0.
        is_dead: units whose block is zero term by term, as those of a unit that is dead on all data.
        eigenvalues: the whole spectrum of every block, `(units, dimension)`, ascending; from Lanczos the Ritz values,
            `(units, steps)`, NaN where there is none.
    """

    space: str
    multiplicity: np.ndarray
    dimension: int
    reports: tuple[StabilityReport, ...]
    gradient_residual: np.ndarray
    is_dead: np.ndarray
    eigenvalues: np.ndarray

    def of_units(self, field: str) -> np.ndarray:
        """One field of the reports as an array over units, such as `of_units("min_eigenvalue")`."""
        if field not in StabilityReport._fields:
            raise ValueError(f"field={field!r}: must be one of {list(StabilityReport._fields)}")
        return np.array([getattr(report, field) for report in self.reports])


class UnitBlocks(NamedTuple):
    """Result of `unit_blocks`.

    Attributes:
        spaces: per unit space with clones, its blocks.
        total: the report of the whole normal space of the leaf: every block n_j - 1 times, and the gauge directions.
    """

    spaces: Mapping[str, SpaceBlocks]
    total: StabilityReport


def unit_blocks(
    model: Model,
    variables: Variables,
    loss: LossOfLogits,
    batch: Batch,
    factor: Factor,
    *,
    method: str = "auto",
    batch_size: int = 500,
    near_critical: bool = False,
    train: bool = False,
    num_steps: int = 32,
    key: Key[Array, ""] | None = None,
) -> UnitBlocks:
    """Stability of the network that `clone_variables(variables, model.wiring, factor)` makes, unit by unit.

    Args:
        model: the *base* network.
        variables: its variables.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        batch: inputs and labels, all the data: it is streamed.
        factor: number of clones of every unit, or `{space: number}`.
        method: "closed form" counts every eigenvalue, and needs plain layers: kernel, bias, activation, with nothing
            in between (convolutions and flatten are plain). "batched hvp" takes any network, bounds the ends of every
            spectrum and counts nothing. "auto" takes the closed form where it applies.
        batch_size: samples per pass.
        near_critical: take the point for an approximation of a critical point of the base network, at which B_j is
            rank deficient, and add `gradient_residual` to the tolerance. By default the report is about the point.
        train: whether batch norm uses the statistics of the batch (all of it at once; "batched hvp" only).
        num_steps: Lanczos steps of "batched hvp".
        key: random key of its start vectors, `jax.random.key(0)` by default.

    Returns:
        Reports and spectra per unit, and the report of the whole.

    Raises:
        ValueError: see `clone_factors`; a factor that clones nothing; an unknown method; the closed form where it does
            not apply, or in train mode.

    Example:
        >>> from lopjax.losses import mean_cross_entropy
        >>> from lopjax.models import mlp
        >>> base, batch = mlp((4,), (3,), 2), (jnp.ones((5, 4)), jnp.array([0, 1, 0, 0, 1]))
        >>> blocks = unit_blocks(base, base.init(jax.random.key(0)), mean_cross_entropy, batch, factor=2)
        >>> len(blocks.spaces["hidden_0"].reports), blocks.spaces["hidden_0"].dimension
        (3, 7)

    References:
        arXiv 2510.00304, definition 4 and section 4; the decomposition into unit blocks is this library's own.
    """
    wide_model = widen(model, factor)
    clusters = check_partition(wide_model.wiring, uniform_partition(wide_model.wiring, factor))
    wide = clone_variables(variables, model.wiring, factor)
    options = _Options(loss, batch_size, near_critical, train, num_steps, key)
    return _blocks(_Networks(model, variables, wide_model, wide, clusters), batch, method, options)


def unit_blocks_of_clones(
    wide_model: Model,
    wide_variables: Variables,
    loss: LossOfLogits,
    batch: Batch,
    partition: Partition,
    *,
    bc_tolerance: float | None = None,
    method: str = "auto",
    batch_size: int = 500,
    near_critical: bool = False,
    train: bool = False,
    num_steps: int = 32,
    key: Key[Array, ""] | None = None,
) -> UnitBlocks:
    """Stability of a cloned network from its own variables: checks that they are on BC, then as `unit_blocks`.

    Clusters of one space may have different sizes.

    Args:
        wide_model: the cloned network.
        wide_variables: its variables.
        loss: as in `unit_blocks`, like the arguments after `bc_tolerance`.
        batch: inputs and labels.
        partition: cluster id of every unit, per space with clones.
        bc_tolerance: largest `||W - P W|| / ||W||`, on the slices of one cluster, that passes as block constant;
            default `lopjax.rounding.parameter_tolerance`.
        method: see `unit_blocks`.
        batch_size: see `unit_blocks`.
        near_critical: see `unit_blocks`.
        train: see `unit_blocks`.
        num_steps: see `unit_blocks`.
        key: see `unit_blocks`.

    Raises:
        ValueError: variables that are not block constant: on the rest of V units couple, and blocks would be wrong.
            Also as in `unit_blocks`, and for partitions that are none.
    """
    clusters = check_partition(wide_model.wiring, partition)
    residual = block_constant_residual(wide_variables, wide_model.wiring, clusters)
    allowed = parameter_tolerance(wide_variables["params"]) if bc_tolerance is None else bc_tolerance
    if not residual <= allowed:
        raise ValueError(
            f"the variables are not block constant on these clusters: residual {residual:.3g}, allowed {allowed:.3g}. "
            "Off BC the units couple and their blocks would give wrong eigenvalues; use "
            "classify(loss, params, cloned_manifold(params, wiring, partition), method='dense' or 'lanczos')"
        )
    base_model = wide_model.resize({space: len(found.leaders) for space, found in clusters.items()})
    base = collapse(wide_variables, wide_model.wiring, clusters)
    options = _Options(loss, batch_size, near_critical, train, num_steps, key)
    return _blocks(_Networks(base_model, base, wide_model, wide_variables, clusters), batch, method, options)


class _Networks(NamedTuple):
    base_model: Model
    base: Variables
    wide_model: Model
    wide: Variables
    clusters: dict[str, Clusters]


class _Options(NamedTuple):
    loss: LossOfLogits
    batch_size: int
    near_critical: bool
    train: bool
    num_steps: int
    key: Key[Array, ""] | None


def _blocks(networks: _Networks, batch: Batch, method: str, options: _Options) -> UnitBlocks:
    if method not in METHODS:
        raise ValueError(f"method={method!r}: must be one of {list(METHODS)}")
    if not networks.clusters:
        raise ValueError("no unit has a clone: pass a factor of at least 2, or clusters of two or more units")
    if options.batch_size < 1 or options.num_steps < 1:
        wrong = ("batch_size", options.batch_size) if options.batch_size < 1 else ("num_steps", options.num_steps)
        raise ValueError(f"{wrong[0]}={wrong[1]}: must be a positive integer")
    check_batch(options.loss, networks.base_model, networks.base, batch, options.batch_size)
    plans = [plain_space(networks.base_model.wiring, space) for space in networks.clusters]
    reasons = [plan for plan in plans if isinstance(plan, str)]
    if options.train and networks.wide.get("batch_stats"):
        reasons.append("train=True: batch norm couples the samples")
    if method == "closed form" and reasons:
        raise ValueError(f"the closed form does not apply: {'; '.join(reasons)}. Use method='batched hvp'")
    if method == "batched hvp" or reasons:
        spaces = _by_products(networks, batch, options)
        return UnitBlocks(spaces, _total_witnessed(spaces))
    spaces = _by_closed_form(networks, [plan for plan in plans if isinstance(plan, PlainSpace)], batch, options)
    return UnitBlocks(spaces, _total_counted(spaces, _gauge_dimension(networks)))


def _by_closed_form(
    networks: _Networks, plans: Sequence[PlainSpace], batch: Batch, options: _Options
) -> dict[str, SpaceBlocks]:
    """In double precision, whatever the type of the parameters: the verdict is about their exact values."""
    with jax.enable_x64(True):
        model, variables = networks.base_model, _at_least(networks.base, jnp.float64)
        size = min(options.batch_size, len(batch[0]))
        check_mean_over_samples(options.loss, model, variables, batch, size)
        clones = clone_counts(networks.clusters)
        counts = {space: jnp.asarray(number, jnp.float64) for space, number in clones.items()}
        compute_type = coarsest_type(model, variables, batch[0][:1])
        scales = unit_scales(model, variables, options.loss, batch, plans, counts, size, compute_type)
        found = {}
        for plan in plans:
            is_bent = not is_straight(plan.activation)
            matrices = unit_matrices(model, variables, options.loss, batch, plan, counts, size, is_bent)
            judged = _judge_space(plan, matrices, scales[plan.space], compute_type, options.near_critical)
            unknown = _sites_without_facts(model, plan)
            reports = tuple(kinks_unknown(report, unknown) for report in judged.reports) if unknown else judged.reports
            found[plan.space] = judged._replace(multiplicity=clones[plan.space] - 1, reports=reports)
        return found


def _sites_without_facts(model: Model, plan: PlainSpace) -> list[str]:
    """Sites of the space and behind it whose activation may have kinks that nobody has told."""
    sites = (plan.site, *downstream_sites(model.wiring, plan.space))
    return [site for site in sites if has_unknown_kinks(model.wiring.site(site).activation)]


def _judge_space(
    plan: PlainSpace,
    matrices: Iterable[tuple[int, np.ndarray | None, np.ndarray]],
    scales: Scales,
    compute_type: DTypeLike,
    near_critical: bool,
) -> SpaceBlocks:
    """Reports of all the units of a space, each block counted once."""
    has_outgoing = scales.outgoing > 0
    gradient_residual = np.where(has_outgoing, scales.gradient / np.where(has_outgoing, scales.outgoing, 1), 0)
    reports, spectra = [], []
    for unit, curvature, coupling in matrices:
        spectra.append(block_eigenvalues(curvature, coupling))
        owed = float(gradient_residual[unit]) if near_critical else 0.0
        reports.append(_counted(scales, unit, curvature, coupling, spectra[-1], owed, compute_type, plan.space))
    is_dead = (scales.slope == 0) & ~scales.kinks & is_straight(plan.activation)
    return SpaceBlocks(
        space=plan.space,
        multiplicity=np.ones(len(reports), int),
        dimension=len(spectra[0]),
        reports=tuple(reports),
        gradient_residual=gradient_residual,
        is_dead=is_dead,
        eigenvalues=np.stack(spectra),
    )


def _counted(
    scales: Scales,
    unit: int,
    curvature: np.ndarray | None,
    coupling: np.ndarray,
    spectrum: np.ndarray,
    owed: float,
    compute_type: DTypeLike,
    space: str,
) -> StabilityReport:
    """The report of one block; `owed` is what B may owe to the base not being at a critical point."""
    error = BlockError(float(scales.curvature_error[unit]), float(scales.coupling_error[unit]) + owed)
    scale = float(scales.curvature[unit] + scales.coupling[unit] + scales.residual[unit])
    # At the critical point that is meant, what the gradient explains is zero.
    zero_below = max(default_zero_level(compute_type) * scale, 2 * GAP * error.total if owed else 0.0)
    structural = structural_zeros(coupling.shape[0], coupling.shape[1], curvature is not None)
    if curvature is None and not scales.slope[unit]:
        structural = len(spectrum)
    report = counted_report(
        block_inertia(curvature, coupling, error, zero_below, structural),
        (float(spectrum[0]), float(spectrum[-1])),
        tolerance=error.total,
        residual=0.0,
        structural=structural,
        method="closed form",
        space=space,
        note=precision_note(compute_type),
        zero_level=zero_below / scale if scale > 0 else default_zero_level(compute_type),
        scale=scale,
        radius=float(scales.radius[unit]),
    )
    if scales.kinks[unit]:
        known = structural_zeros(coupling.shape[0], coupling.shape[1], curvature is not None)
        return at_a_kink(report._replace(structural=known), "a pre-activation of the unit, on some row")
    if scales.later_kinks and structural < len(spectrum):
        return at_a_kink(report, f"pre-activations behind it, at {', '.join(scales.later_kinks)}")
    return report


def _by_products(networks: _Networks, batch: Batch, options: _Options) -> dict[str, SpaceBlocks]:
    samples = len(batch[0])
    size = samples if options.train else min(options.batch_size, samples)
    curved = Curved(networks.wide_model, options.loss, options.train, size)
    wide = _at_least(networks.wide, jnp.float32)
    check_mean_over_samples(options.loss, networks.base_model, networks.base, batch, size)
    key_scale, key_start = jax.random.split(jax.random.key(0) if options.key is None else options.key)
    scale = float(hessian_size(curved, wide, batch, key_scale))
    compute_type = coarsest_type(networks.wide_model, wide, batch[0][:1])
    tolerance = float(rounding_tolerance(compute_type, samples, scale))
    found = unit_extremes(curved, wide, batch, networks.clusters, options.num_steps, key_start)
    base = _at_least(networks.base, jnp.float32)
    wiring = networks.base_model.wiring
    untold = [name for name, site in wiring.sites if has_unknown_kinks(site.activation)]
    kinks = sites_at_kinks(networks.base_model, base, batch, size, options.train, compute_type)
    counts = clone_counts(networks.clusters)
    spaces = {}
    for space, extremes in found.items():
        sites = (wiring.site(site) for site in wiring.sites_of(space))
        is_smooth = not any(kinks_of(site.activation) or has_unknown_kinks(site.activation) for site in sites)
        radius = np.inf if is_smooth else np.nan
        judge = partial(_witnessed, tolerance=tolerance, scale=scale, dtype=compute_type, space=space)
        reports = tuple(judge(extremes, unit, kinks, radius) for unit in range(len(extremes.extremes)))
        reports = tuple(kinks_unknown(report, untold) for report in reports) if untold else reports
        is_dead = np.array([report.verdict is Stability.NEUTRAL for report in reports])
        residual = np.full(len(reports), np.nan)
        spaces[space] = SpaceBlocks(
            space, counts[space] - 1, extremes.dimension, reports, residual, is_dead, extremes.ritz_values
        )
    return spaces


def _witnessed(
    found: UnitExtremes,
    unit: int,
    kinks: Sequence[str],
    radius: float,
    *,
    tolerance: float,
    scale: float,
    dtype: DTypeLike,
    space: str,
) -> StabilityReport:
    low, high = (float(end) for end in found.extremes[unit])
    report = witnessed_report(
        (low, high),
        tolerance=tolerance,
        residual=float(found.residuals[unit].max()),
        method="batched hvp",
        space=space,
        is_zero=bool(found.is_zero[unit]) and not kinks,
        zero_level=default_zero_level(dtype),
        scale=scale,
        radius=radius,
    )
    remarks = [report.note, precision_note(dtype)]
    if kinks:
        remarks.append(
            f"some pre-activations at {', '.join(kinks)} lie at a kink, up to rounding: derivatives of one side"
        )
    return report._replace(note="; ".join(filter(None, remarks)))


def _gauge_dimension(networks: _Networks) -> int:
    params = networks.wide["params"]
    partition = {space: tuple(int(unit) for unit in found.ids) for space, found in networks.clusters.items()}
    normals = cloned_manifold(params, networks.wide_model.wiring, partition).normals
    assert normals is not None  # cloned manifolds have them
    return normals.gauge.dimension


def _repeated(spaces: Mapping[str, SpaceBlocks]) -> list[tuple[StabilityReport, int]]:
    """Report and multiplicity of every block that occurs."""
    return [
        (report, int(multiplicity))
        for blocks in spaces.values()
        for report, multiplicity in zip(blocks.reports, blocks.multiplicity, strict=True)
        if multiplicity
    ]


def _total_counted(spaces: Mapping[str, SpaceBlocks], gauge: int) -> StabilityReport:
    """Every block n_j - 1 times, and the gauge directions, along which the Hessian vanishes by algebra."""
    blocks = _repeated(spaces)
    reports = [report for report, _ in blocks]
    counts, structural = SignCounts(0, 0, gauge), gauge
    for report, multiplicity in blocks:
        block = SignCounts(report.n_plus, report.n_minus, report.n_zero, report.n_undecided)
        counts = counts.plus_counts(block.times(multiplicity))
        structural += multiplicity * report.structural
    ends = [0.0] if gauge else []
    return counted_report(
        counts,
        (
            min(ends + [report.min_eigenvalue for report in reports]),
            max(ends + [report.max_eigenvalue for report in reports]),
        ),
        tolerance=max(report.tolerance for report in reports),
        residual=max(report.residual for report in reports),
        structural=structural,
        method="closed form",
        space="leaf",
        note="; ".join(dict.fromkeys(report.note for report in reports if report.note)),
        zero_level=max(report.zero_level for report in reports),
        scale=max(report.scale for report in reports),
        radius=min(report.radius for report in reports),
    )


def _total_witnessed(spaces: Mapping[str, SpaceBlocks]) -> StabilityReport:
    blocks = [report for report, _ in _repeated(spaces)]
    # A block of no dimension has no eigenvalues: NaN.
    lowest = min(blocks, key=lambda report: np.nan_to_num(report.min_eigenvalue, nan=np.inf))
    highest = max(blocks, key=lambda report: np.nan_to_num(report.max_eigenvalue, nan=-np.inf))
    total = witnessed_report(
        (lowest.min_eigenvalue, highest.max_eigenvalue),
        tolerance=lowest.tolerance,
        residual=max(lowest.residual, highest.residual),
        method="batched hvp",
        space="leaf",
        is_zero=all(report.verdict is Stability.NEUTRAL for report in blocks),
        zero_level=lowest.zero_level,
        scale=lowest.scale,
        radius=float(np.min([report.radius for report in blocks])),
    )
    remarks = [total.note, *(report.note for report in blocks if report.verdict is total.verdict)]
    return total._replace(note="; ".join(dict.fromkeys(filter(None, remarks))))


def _at_least(tree: Variables, dtype: DTypeLike) -> Variables:
    """The floating-point arrays of a tree in a type at least as fine."""

    def widen_array(leaf: Array | np.ndarray) -> Array:
        array = jnp.asarray(leaf)
        is_float = jnp.issubdtype(array.dtype, jnp.floating)
        return array.astype(jnp.promote_types(array.dtype, dtype)) if is_float else array

    return jax.tree.map(widen_array, tree)
