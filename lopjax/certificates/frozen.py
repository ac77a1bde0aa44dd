"""Are these units dead, by what margin, and does their death depend on anything that can still change?"""

from enum import Enum
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from lopjax.activations import Activation, activation
from lopjax.arguments.batches import as_batch, check_tolerance
from lopjax.arguments.networks import check_network
from lopjax.arguments.order import no_batch, takes_old_order, third_is_mapping_or_no_batch
from lopjax.arguments.precision import all_digits
from lopjax.arguments.promotion import standard_promotion
from lopjax.certificates.batch_evidence import Loss, run
from lopjax.certificates.dead_units import PlainLayer, plain_layer
from lopjax.certificates.frozen_evidence import Observations, SiteEvidence, gather, slice_norms
from lopjax.certificates.tables import number, table
from lopjax.cloning.programs import check_programs
from lopjax.cloning.rounding import at_least_float32
from lopjax.losses import Batch, check_batch, check_inputs, mean_cross_entropy
from lopjax.manifolds import FrozenUnits, resolve_frozen_units
from lopjax.model import Model, Variables
from lopjax.models.check import check_labels
from lopjax.wiring import Wiring


class FrozenVerdict(Enum):
    """What a frozen-unit certificate concludes; the value is the sentence shown to the user. Ordered by strength."""

    ALIVE = "alive: the unit is active on some sample"
    UNDECIDED = (
        "undecided: activity within rounding of zero, a turning point of the activation, or no evidence was asked for "
        "that could decide"
    )
    SLOW = (
        "saturated: the activation is flat on every sample and beyond, so gradients are small, or vanish in this "
        "precision: a slow manifold; see the time scale"
    )
    FROZEN = (
        "frozen on this data: inactive (its activation is constant) on every sample, so that the parameters named "
        "below have gradient zero"
    )
    FROZEN_EVERYWHERE = (
        "frozen on every input considered, by the signs of its weights or over the whole input box: the parameters "
        "named below have gradient zero"
    )


class UnitEvidence(NamedTuple):
    """Evidence about one unit; `None` where it was not requested or the architecture does not allow it.

    Attributes:
        site: the unit's site.
        unit: its index.
        verdict: the conclusion for this unit.
        largest: largest pre-activation on the batch.
        radius: smallest change of (w, b), with h_prev fixed, that can wake a ReLU unit: `min -z / ||(h_prev, 1)||`, or
            `min -z / ||h_prev||` for a layer without bias. What rounding may have hidden in z comes off.
        source_radius: changes of h_prev, with (w, b) fixed, below this norm leave it dead: `min -z / ||w||`.
        gradient: norm of the loss gradient on the unit's slices of `arrays`.
        time_scale: norm of these slices over `gradient`: time of gradient flow (steps times learning rate) in which
            they change by their own size. Infinite for a gradient of zero; `None` at a turning point of the activation,
            where the present gradient says nothing about the next step.
        box_upper: upper bound on the pre-activation over the input box.
        by_sign: whether signs alone prove it dead: h_prev >= 0, w <= 0, b <= 0.
        depends_on: what must not change for the verdict to last; if empty, gradients alone never free the unit.
        arrays: paths of the parameters that the verdict is about: those whose every path to the output passes the
            unit. After a layer norm these are its scale and offset, not the weights before it.
    """

    site: str
    unit: int
    verdict: FrozenVerdict
    largest: float | None
    radius: float | None
    source_radius: float | None
    gradient: float | None
    time_scale: float | None
    box_upper: float | None
    by_sign: bool
    depends_on: tuple[str, ...]
    arrays: tuple[str, ...] = ()


class FrozenCertificate(NamedTuple):
    """Result of `certify_frozen`; `str` gives a report.

    Attributes:
        verdict: the weakest verdict of all units.
        units: evidence per unit.
        tolerance: relative size of a pre-activation that counts as zero, over `|w| |h_prev| + |b|` (after a norm: over
            the unit's largest pre-activation); the largest over the sites.
        notes: anything else the reader needs to know.
    """

    verdict: FrozenVerdict
    units: tuple[UnitEvidence, ...]
    tolerance: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """A report: one row per unit."""
        header = ("unit", "verdict", "max z", "radius", "source radius", "gradient", "time scale", "box max z", "lasts")
        rows = [
            (
                f"{u.site}[{u.unit}]",
                u.verdict.name,
                *map(number, (u.largest, u.radius, u.source_radius, u.gradient, u.time_scale, u.box_upper)),
                _lasts(u),
            )
            for u in self.units
        ]
        parameters = dict.fromkeys((u.site, u.arrays) for u in self.units)
        lines = [
            f"Frozen units: {self.verdict.name}",
            f"  {self.verdict.value}",
            f"  tolerance {self.tolerance:.1e}",
            *(f"  parameters at {site}: {', '.join(arrays)}" for site, arrays in parameters),
        ]
        return "\n".join([*lines, *table(header, rows), *(f"  note: {note}" for note in self.notes)])


def _lasts(unit: UnitEvidence) -> str:
    if unit.verdict not in (FrozenVerdict.FROZEN, FrozenVerdict.FROZEN_EVERYWHERE):
        return "-"
    return "while unchanged: " + ", ".join(unit.depends_on) if unit.depends_on else "for good"


@takes_old_order("model variables frozen_units batch input_box loss", third_is_mapping_or_no_batch, no_batch)
@standard_promotion()
@all_digits()
def certify_frozen(
    model: Model,
    variables: Variables,
    batch: Batch | None,
    frozen_units: FrozenUnits,
    *,
    input_box: tuple[ArrayLike, ArrayLike] | None = None,
    loss: Loss = mean_cross_entropy,
    train: bool = False,
    slope_threshold: float = 1e-4,
    tolerance: float | None = None,
) -> FrozenCertificate:
    """Certify that units are frozen: dead, so that gradients leave their incoming parameters where they are.

    There are three independent proofs: on a batch (with the radius up to which it holds), over a box of inputs by
    interval bounds, and by signs without any data. A first-layer unit that is dead on fixed data is trapped, and so
    is one dead by signs, or one that reads dead and trapped units only; any other is trapped only while the layers
    below leave it dead, as `depends_on` says for every unit. The frozen parameters are those named in `arrays`; weight
    decay and stored momentum still move them.

    Args:
        model: the network.
        variables: its variables; 16-bit ones are judged in float32.
        batch: `(inputs, labels)`; `None` for the proofs without data, by signs or over `input_box`.
        frozen_units: per site, or per unit space with a single site, the indices of the units.
        input_box: lower and upper bounds, each shaped like one input.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        train: run the batch in train mode; dropout stays off.
        slope_threshold: a unit of a smooth activation is saturated if |f'| is at most this on every sample and from
            there on outwards (and |f''| at most ten times this): see `lopjax.certificates.saturation`.
        tolerance: relative pre-activation that counts as zero; by default its rounding error, `(n + 2) eps` for n
            summands and as much for each layer below.

    Raises:
        ValueError: units that do not exist; a box that does not fit, or that cannot be propagated to the unit.
    """
    check_network(model, variables)
    wiring, variables = model.wiring, at_least_float32(variables)
    frozen = resolve_frozen_units(wiring, frozen_units)
    if not frozen:
        raise ValueError("frozen_units names no unit: give indices per site")
    _check_box(input_box, batch)
    check_tolerance(tolerance)
    if batch is not None:
        batch = as_batch(batch)
        check_inputs(model, variables, batch[0])
    check_labels(model, variables, None if batch is None else batch[0])
    seen = inputs = None
    if batch is not None:
        check_batch(model, variables, batch, loss=loss)
        check_programs(model, variables, batch, loss)
        seen, inputs = run(model, variables, batch, loss, train), jnp.asarray(batch[0])
    observations = Observations(variables["params"], wiring, seen, inputs, input_box, tolerance, slope_threshold)
    notes, units, levels = [], [], []
    for site, indices in frozen.items():
        layer, evidence = plain_layer(observations.params, wiring, site), gather(observations, site)
        depends_on = _upstream(wiring, site, layer)
        units += [_judge(wiring, site, unit, evidence, depends_on) for unit in indices]
        notes += _notes(observations, site, layer, evidence, units[-len(indices) :], train)
        levels.append(evidence.level)
    order = list(FrozenVerdict)
    verdict = min((unit.verdict for unit in units), key=order.index)
    return FrozenCertificate(verdict, tuple(units), max(levels), tuple(notes))


def _check_box(input_box: tuple[ArrayLike, ArrayLike] | None, batch: Batch | None) -> None:
    if input_box is None:
        return
    lower, upper = (np.asarray(bound) for bound in input_box)
    shape = lower.shape if batch is None else np.shape(batch[0])[1:]
    if lower.shape != shape or upper.shape != shape:
        raise ValueError(
            f"input_box of shapes {lower.shape}, {upper.shape}: both must be shaped like one input, {shape}"
        )
    if not (lower <= upper).all():
        raise ValueError("input_box: a lower bound exceeds its upper bound (or is not a number)")


def _upstream(wiring: Wiring, site: str, layer: PlainLayer | None) -> tuple[str, ...]:
    """What can revive a unit: parameters at earlier sites, and anything that stands between the layer and the unit."""
    if layer is None:
        return (*wiring.upstream(site), "norm and sum before it")
    source = layer.label.source
    return (*wiring.upstream(source), source) if source is not None and source in dict(wiring.sites) else ()


def _notes(
    observations: Observations,
    site: str,
    layer: PlainLayer | None,
    evidence: SiteEvidence,
    units: list[UnitEvidence],
    train: bool,
) -> list[str]:
    """What a reader of a certificate should know about one site.

    Args:
        observations: what was seen of the network.
        site: the site.
        layer: the plain layer that makes its pre-activation; None if something else stands between.
        evidence: evidence about all units of the site.
        units: what was judged of the frozen units.
        train: whether the batch was run in train mode.
    """
    entry = activation(observations.wiring.site(site).activation)
    missing, notes = [fact for fact in ("flat", "saturates") if getattr(entry, fact) is None], []
    if missing:
        what = " and ".join(missing)
        notes.append(f"{site}: activation {entry.name!r} comes without {what}: undecided; pass an Activation")
    if layer is None:
        mode = "this batch's statistics" if train else "its running statistics"
        notes.append(
            f"{site}: a norm, pooling or a sum feeds it, so there is no radius and no sign proof; any batch norm used "
            f"{mode}"
        )
    if evidence.others:
        size = ""
        if observations.seen is not None:
            norms = slice_norms(observations.seen.gradient, observations.wiring, site, evidence.others)
            size = f" (gradient of these units' slices up to {max(norms[u.unit] for u in units):.1e})"
        notes.append(
            f"{site}: not frozen with it, as they act past the site as well: {', '.join(evidence.others)}{size}"
        )
    for u in units:
        if u.verdict is FrozenVerdict.FROZEN and u.largest == 0:
            notes.append(f"{site}[{u.unit}]: z reaches 0, the kink: frozen since JAX's derivative at 0 is 0")
        if u.verdict is FrozenVerdict.UNDECIDED and u.time_scale is None and u.gradient is not None and not missing:
            notes.append(
                f"{site}[{u.unit}]: f' is small on every sample but not beyond: a turning point of the activation, "
                "which any small change of the weights leaves, not saturation"
            )
    return notes


def _judge(wiring: Wiring, site: str, unit: int, evidence: SiteEvidence, depends_on: tuple[str, ...]) -> UnitEvidence:
    """The verdict about one unit, with its numbers.

    Args:
        wiring: wiring of the network.
        site: the site.
        unit: the unit.
        evidence: evidence about all units of the site.
        depends_on: the sites whose activations its verdict takes as given, unless it needs none of them.
    """

    def of(values: np.ndarray | None) -> float | None:
        return None if values is None else float(values[unit])

    entry = activation(wiring.site(site).activation)
    is_relu = bool(entry.is_zero_below_zero)
    by_sign = is_relu and bool(evidence.by_sign[unit])
    # Flat pieces first: on them the gradient is exactly zero. A small slope counts only where flat pieces do not
    # decide, and never for a ReLU, whose slope is 0 or 1; it then counts as slow, not as frozen.
    is_boxed_in = is_relu and evidence.box_upper is not None and _is_dead_up_to(evidence.box_upper[unit], entry)
    everywhere = FrozenVerdict.FROZEN_EVERYWHERE if by_sign or is_boxed_in else None
    verdict = _judge_flat(evidence, unit, everywhere) if entry.flat else FrozenVerdict.UNDECIDED
    if verdict is FrozenVerdict.UNDECIDED and not is_relu:
        verdict = _judge_slope(evidence, unit, entry.flat is not None)
    gradient, size = of(evidence.gradient), float(evidence.size[unit])
    # A unit that is flat above zero, like ReLU6, would wake from the other side.
    is_flat_above = verdict is FrozenVerdict.FROZEN and evidence.largest is not None and evidence.largest[unit] > 0
    has_radius = is_relu and not is_flat_above
    is_turning = not is_relu and verdict is FrozenVerdict.UNDECIDED
    return UnitEvidence(
        site=site,
        unit=unit,
        verdict=verdict,
        largest=of(evidence.largest),
        radius=of(evidence.radius) if has_radius else None,
        source_radius=of(evidence.source_radius) if has_radius else None,
        gradient=gradient,
        time_scale=None if gradient is None or is_turning else size / gradient if gradient > 0 else float("inf"),
        box_upper=of(evidence.box_upper),
        by_sign=by_sign,
        depends_on=() if by_sign or evidence.is_trapped[unit] else depends_on,
        arrays=evidence.arrays,
    )


def _is_dead_up_to(largest: Any, entry: Activation) -> bool:
    """Whether the derivative is 0 at all pre-activations up to this one."""
    return bool(largest < 0 or (largest == 0 and entry.slope_at(0) == 0))


def _judge_flat(evidence: SiteEvidence, unit: int, everywhere: FrozenVerdict | None) -> FrozenVerdict:
    """The verdict on a unit whose activation is constant on some interval; UNDECIDED if that does not decide."""
    if evidence.is_active is None or evidence.is_flat is None or evidence.gradient is None:
        return everywhere or FrozenVerdict.UNDECIDED
    if evidence.is_active[unit]:
        return FrozenVerdict.ALIVE
    if evidence.gradient[unit] != 0:  # whatever is said of the activation: a unit with a gradient is not dead
        return FrozenVerdict.UNDECIDED
    return everywhere or (FrozenVerdict.FROZEN if evidence.is_flat[unit] else FrozenVerdict.UNDECIDED)


def _judge_slope(evidence: SiteEvidence, unit: int, is_known: bool) -> FrozenVerdict:
    """The verdict from the slope of the activation; saturation needs facts about the activation."""
    if evidence.slopes is None:
        return FrozenVerdict.UNDECIDED
    if evidence.slopes.largest[unit] > evidence.threshold:
        return FrozenVerdict.ALIVE
    return FrozenVerdict.SLOW if is_known and evidence.slopes.is_saturated[unit] else FrozenVerdict.UNDECIDED
