"""Reports of all units from Hessian-vector products: curvature is witnessed, never counted."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lopjax.losses import Batch, check_mean_over_samples
from lopjax.stability.blocks.coordinates import clone_counts
from lopjax.stability.blocks.products import (
    HessianProduct,
    UnitExtremes,
    coarsest_type,
    hessian_size,
    unit_extremes,
)
from lopjax.stability.blocks.results import (
    BlockOptions,
    ClonedNetwork,
    SpaceBlocks,
    UnitBlocks,
    at_least,
    repeated_reports,
)
from lopjax.stability.blocks.signals import (
    THE_LOSS,
    downstream_sites,
    has_unknown_kinks,
    kinks_of,
    places_at_kinks,
)
from lopjax.stability.blocks.ties import spaces_with_ties
from lopjax.stability.verdicts import (
    Stability,
    StabilityReport,
    at_a_kink,
    kinks_unknown,
    precision_note,
    witnessed_report,
)
from lopjax.tolerance import default_zero_level, rounding_tolerance
from lopjax.wiring import Wiring


def blocks_by_products(network: ClonedNetwork, batch: Batch, options: BlockOptions) -> UnitBlocks:
    """Ends of the spectrum of every block, for any wiring, and the report on the whole normal space.

    Args:
        network: base and clones.
        batch: inputs and labels.
        options: the settings of `unit_blocks`.
    """
    samples = len(batch[0])
    size = samples if options.train else min(options.batch_size, samples)
    product = HessianProduct(network.wide_model, options.loss, options.train, size)
    wide, base = at_least(network.wide, jnp.float32), at_least(network.base, jnp.float32)
    check_mean_over_samples(network.base_model, network.base, batch, loss=options.loss, size=size)
    key_scale, key_start = jax.random.split(jax.random.key(0) if options.key is None else options.key)
    scale = float(hessian_size(product, wide, batch, key_scale))
    compute_type = coarsest_type(network.wide_model, wide, batch[0][:1])
    judge = partial(
        _judge_unit,
        tolerance=float(rounding_tolerance(compute_type, samples, scale)),
        scale=scale,
        dtype=compute_type,
    )
    kinks = places_at_kinks(
        network.base_model, base, batch, options.loss, size=size, train=options.train, dtype=compute_type
    )
    ties = spaces_with_ties(network.wide_model, network.wide, batch, network.clusters, size, options.train)
    spaces, wiring = {}, network.base_model.wiring
    for space, ends in unit_extremes(product, wide, batch, network.clusters, options.num_steps, key_start).items():
        met = [
            place for place in kinks if place in (*wiring.sites_of(space), *downstream_sites(wiring, space), THE_LOSS)
        ]
        met += (
            [f"an order or a maximum that the network takes of units of {space}, whose clones tie"]
            if space in ties
            else []
        )
        judge_unit = partial(judge, ends, space=space, radius=_radius(wiring, space), kinks=met)
        reports = tuple(judge_unit(unit=unit) for unit in range(len(ends.extremes)))
        reports = _with_unknown_kinks(reports, wiring)
        spaces[space] = SpaceBlocks(
            space=space,
            multiplicity=clone_counts(network.clusters)[space] - 1,
            dimension=ends.dimension,
            reports=reports,
            gradient_residual=np.full(len(reports), np.nan),
            is_dead=np.array([report.verdict is Stability.NEUTRAL for report in reports]),
            eigenvalues=ends.ritz_values,
        )
    return UnitBlocks(spaces, _total(spaces))


def _radius(wiring: Wiring, space: str) -> float:
    """Infinite for smooth activations; with kinks, Hessian products do not show how far away the next one is."""
    entries = [wiring.site(site).activation for site in wiring.sites_of(space)]
    return np.nan if any(kinks_of(entry) or has_unknown_kinks(entry) for entry in entries) else np.inf


def _with_unknown_kinks(reports: tuple[StabilityReport, ...], wiring: Wiring) -> tuple[StabilityReport, ...]:
    unknown = [name for name, site in wiring.sites if has_unknown_kinks(site.activation)]
    return tuple(kinks_unknown(report, unknown) for report in reports) if unknown else reports


def _judge_unit(
    ends: UnitExtremes,
    *,
    unit: int,
    kinks: Sequence[str],
    radius: float,
    tolerance: float,
    scale: float,
    dtype: DTypeLike,
    space: str,
) -> StabilityReport:
    """The report of one block, whose ends alone were computed.

    Args:
        ends: extreme eigenvalues of all blocks of the space.
        unit: the unit.
        kinks: places where some pre-activation is at a kink, up to rounding.
        radius: distance to the nearest kink.
        tolerance: rounding of an eigenvalue.
        scale: size of the whole Hessian.
        dtype: the coarsest type of the computation.
        space: name of the space in the report.
    """
    low, high = (float(end) for end in ends.extremes[unit])
    report = witnessed_report(
        (low, high),
        tolerance=tolerance,
        residual=float(ends.residuals[unit].max()),
        method="batched hvp",
        space=space,
        is_zero=bool(ends.is_zero[unit]),
        zero_level=default_zero_level(dtype),
        scale=scale,
        radius=radius,
    )
    if kinks:
        return at_a_kink(report, f"up to rounding, {', '.join(kinks)}")
    return report._replace(note="; ".join(filter(None, (report.note, precision_note(dtype)))))


def _total(spaces: Mapping[str, SpaceBlocks]) -> StabilityReport:
    """The ends over all blocks; blocks at a kink are not witnesses, and rule out a verdict about all of them."""
    blocks = [report for report, _ in repeated_reports(spaces)]
    smooth = [report for report in blocks if report.radius != 0]
    # A block of dimension 0 has no eigenvalues: NaN.
    lowest = min(smooth or blocks, key=lambda report: np.nan_to_num(report.min_eigenvalue, nan=np.inf))
    highest = max(smooth or blocks, key=lambda report: np.nan_to_num(report.max_eigenvalue, nan=-np.inf))
    total = witnessed_report(
        (lowest.min_eigenvalue, highest.max_eigenvalue),
        tolerance=lowest.tolerance,
        residual=max(lowest.residual, highest.residual),
        method="batched hvp",
        space="leaf",
        is_zero=all(report.verdict is Stability.NEUTRAL for report in blocks),
        zero_level=lowest.zero_level,
        scale=lowest.scale,
        radius=float(np.min([report.radius for report in blocks])) if len(smooth) == len(blocks) else 0.0,
    )
    if not smooth:
        return blocks[0]._replace(min_eigenvalue=total.min_eigenvalue, max_eigenvalue=total.max_eigenvalue)
    remarks = [total.note, *(report.note for report in blocks if report.verdict is total.verdict)]
    return total._replace(note="; ".join(dict.fromkeys(filter(None, remarks))))
