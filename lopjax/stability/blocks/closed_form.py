"""Reports of all units from the closed form of their blocks: every eigenvalue is counted."""

from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lopjax.losses import Batch, check_mean_over_samples
from lopjax.manifolds import cloned_manifold
from lopjax.model import Model
from lopjax.stability.blocks.coordinates import clone_counts
from lopjax.stability.blocks.matrices import unit_matrices
from lopjax.stability.blocks.plain_spaces import PlainSpace
from lopjax.stability.blocks.products import coarsest_type
from lopjax.stability.blocks.results import (
    BlockOptions,
    ClonedNetwork,
    SpaceBlocks,
    UnitBlocks,
    at_least,
    repeated_reports,
)
from lopjax.stability.blocks.scales import Scales, unit_scales
from lopjax.stability.blocks.signals import downstream_sites, has_unknown_kinks, is_straight
from lopjax.stability.blocks.spectra import BlockError, block_inertia, structural_zeros, unit_eigenvalues
from lopjax.stability.verdicts import (
    SignCounts,
    StabilityReport,
    at_a_kink,
    counted_report,
    kinks_unknown,
    precision_note,
)
from lopjax.tolerance import CERTAIN_FROM, default_zero_level


def blocks_by_closed_form(
    network: ClonedNetwork, plain_spaces: Sequence[PlainSpace], batch: Batch, options: BlockOptions
) -> UnitBlocks:
    """Blocks and reports of every plain space, and the report of the whole normal space.

    Computed in double precision whatever the type of the parameters: the verdict is about their exact values.

    Args:
        network: base and clones.
        plain_spaces: the spaces with clones, all of them plain.
        batch: inputs and labels.
        options: the settings of `unit_blocks`.
    """
    spaces = {}
    with jax.enable_x64(True):
        model, variables = network.base_model, at_least(network.base, jnp.float64)
        size = min(options.batch_size, len(batch[0]))
        check_mean_over_samples(model, variables, batch, loss=options.loss, size=size)
        clones = clone_counts(network.clusters)
        counts = {space: jnp.asarray(number, jnp.float64) for space, number in clones.items()}
        compute_type = coarsest_type(model, variables, batch[0][:1])
        scales = unit_scales(model, variables, batch, options.loss, plain_spaces, counts, size, compute_type)
        for plain in plain_spaces:
            has_curvature = not is_straight(plain.activation)
            matrices = unit_matrices(model, variables, batch, options.loss, plain, counts, size, has_curvature)
            judged = _judge_space(plain, matrices, scales[plain.space], compute_type, options.near_critical)
            unknown = _sites_without_facts(model, plain)
            reports = tuple(kinks_unknown(report, unknown) for report in judged.reports) if unknown else judged.reports
            spaces[plain.space] = judged._replace(multiplicity=clones[plain.space] - 1, reports=reports)
    return UnitBlocks(spaces, _total(spaces, _gauge_dimension(network)))


def _sites_without_facts(model: Model, plain: PlainSpace) -> list[str]:
    """Sites of the space and downstream of it whose activations may have kinks that are not listed."""
    sites = (plain.site, *downstream_sites(model.wiring, plain.space))
    return [site for site in sites if has_unknown_kinks(model.wiring.site(site).activation)]


def _judge_space(
    plain: PlainSpace,
    matrices: Iterable[tuple[int, np.ndarray | None, np.ndarray]],
    scales: Scales,
    compute_type: DTypeLike,
    near_critical: bool,
) -> SpaceBlocks:
    """Reports of all the units of a space, each block counted once.

    Args:
        plain: the space.
        matrices: number, A (None if it is 0) and B of every unit.
        scales: sizes of these matrices and of their errors.
        compute_type: the coarsest type that the network computes in.
        near_critical: whether the caller asks about the nearby critical point of the base.
    """
    has_outgoing = scales.outgoing > 0
    gradient_residual = np.where(has_outgoing, scales.gradient / np.where(has_outgoing, scales.outgoing, 1), 0)
    reports, spectra = [], []
    for unit, curvature, coupling in matrices:
        spectra.append(unit_eigenvalues(curvature, coupling))
        off_critical = float(gradient_residual[unit]) if near_critical else 0.0
        reports.append(
            _judge_unit(scales, unit, curvature, coupling, spectra[-1], off_critical, compute_type, plain.space)
        )
    is_dead = (scales.slope == 0) & ~scales.kinks & is_straight(plain.activation)
    return SpaceBlocks(
        space=plain.space,
        multiplicity=np.ones(len(reports), int),
        dimension=len(spectra[0]),
        reports=tuple(reports),
        gradient_residual=gradient_residual,
        is_dead=is_dead,
        eigenvalues=np.stack(spectra),
    )


def _judge_unit(
    scales: Scales,
    unit: int,
    curvature: np.ndarray | None,
    coupling: np.ndarray,
    spectrum: np.ndarray,
    off_critical: float,
    compute_type: DTypeLike,
    space: str,
) -> StabilityReport:
    """The report of one block.

    Args:
        scales: sizes of the matrices of its space and of their errors.
        unit: the unit.
        curvature: A; None if it is 0.
        coupling: B.
        spectrum: eigenvalues of the block, ascending.
        off_critical: bound on the part of B that vanishes at a critical point of the base.
        compute_type: the coarsest type that the network computes in.
        space: name of the space in the report.
    """
    error = BlockError(float(scales.curvature_error[unit]), float(scales.coupling_error[unit]) + off_critical)
    scale = float(scales.curvature[unit] + scales.coupling[unit] + scales.residual[unit])
    # At the nearby critical point that the caller asks about, the part explained by the gradient is zero.
    zero_below = max(default_zero_level(compute_type) * scale, 2 * CERTAIN_FROM * error.total if off_critical else 0.0)
    by_shape = structural_zeros(coupling.shape[0], coupling.shape[1], curvature is not None)
    is_dead = curvature is None and not scales.slope[unit]
    structural = len(spectrum) if is_dead else by_shape
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
    # A kink of the unit's own activation makes the block itself one-sided, and a slope of 0 then does not mean a dead
    # unit: only the zeros that follow from the block's shape remain certain. A kink downstream of the unit, or of the
    # loss, changes the factors of the block, which does not matter where every eigenvalue is zero by structure.
    if scales.kinks[unit]:
        return at_a_kink(report._replace(structural=by_shape), "a pre-activation of the unit, on some row")
    if scales.later_kinks and structural < len(spectrum):
        return at_a_kink(report, f"pre-activations downstream of it, at {', '.join(scales.later_kinks)}")
    if scales.loss_kink and structural < len(spectrum):
        return at_a_kink(report, "the derivative of the loss with respect to the logits jumps on some sample")
    return report


def _gauge_dimension(network: ClonedNetwork) -> int:
    params = network.wide["params"]
    partition = {space: tuple(int(unit) for unit in each.ids) for space, each in network.clusters.items()}
    normals = cloned_manifold(params, network.wide_model.wiring, partition).normals
    assert normals is not None  # cloned manifolds have them
    return normals.gauge.dimension


def _total(spaces: Mapping[str, SpaceBlocks], gauge: int) -> StabilityReport:
    """Every block n_j - 1 times, and the gauge directions, along which the Hessian vanishes identically."""
    blocks = repeated_reports(spaces)
    reports = [report for report, _ in blocks]
    counts, structural = SignCounts(0, 0, gauge), gauge
    for report, multiplicity in blocks:
        block = SignCounts(report.n_plus, report.n_minus, report.n_zero, report.n_undecided)
        counts = counts.plus_counts(block.times(multiplicity))
        structural += multiplicity * report.structural
    zero = [0.0] if gauge else []
    return counted_report(
        counts,
        (
            min(zero + [report.min_eigenvalue for report in reports]),
            max(zero + [report.max_eigenvalue for report in reports]),
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
