"""Are these units dead, how safely, and does anything that can still change keep them dead?"""

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.activations import Activation
from lopjax.activations import activation as activation_function
from lopjax.certificates.dead_units import (
    PlainLayer,
    apply_layer,
    dead_by_sign,
    interval_bounds,
    plain_layer,
    revival_radius,
    source_norms,
)
from lopjax.certificates.text import number, table
from lopjax.losses import Batch, check_batch, mean_cross_entropy
from lopjax.manifolds import FrozenUnits, resolve_frozen_units, tree_norm
from lopjax.model import Model, Params, Tap, Taps, Variables, samples_by_units
from lopjax.rounding import GAP, signal_tolerance
from lopjax.wiring import Out, Wiring


class FrozenVerdict(Enum):
    """What a frozen-unit certificate concludes; the value is the sentence shown to the user. Ordered by strength."""

    ALIVE = "alive: the unit is active on some sample"
    UNDECIDED = "undecided: activity within rounding of zero, or no evidence was asked for that could decide"
    SLOW = "saturated: gradients are small but not zero, a slow manifold; see the time scale"
    FROZEN = "frozen on this data: inactive on every sample, incoming parameters have zero gradient"
    FROZEN_EVERYWHERE = "frozen on every input considered: by the signs of its weights, or over the whole input box"


class UnitEvidence(NamedTuple):
    """Evidence about one unit; `None` where it was not asked for or the architecture does not allow it.

    Attributes:
        site: where the unit is.
        unit: its index.
        verdict: the conclusion for this unit.
        largest: largest pre-activation on the batch.
        radius: change of (w, b), with h_prev fixed, that first wakes a ReLU unit: `min -z / ||(h_prev, 1)||`.
        source_radius: change of h_prev, with (w, b) fixed, below which it stays dead: `min -z / ||w||`.
        gradient: norm of the loss gradient on the unit's incoming parameters.
        time_scale: norm of these parameters over `gradient`: time of gradient flow (steps times learning rate) in which
            they change by their own size. Infinite for a gradient of zero.
        box_upper: upper bound on the pre-activation over the input box.
        by_sign: whether signs alone prove it dead: h_prev >= 0, w <= 0, b < 0.
        depends_on: what must not change for the verdict to last; empty means trapped, by gradients alone, for good.
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


class FrozenCertificate(NamedTuple):
    """Result of `certify_frozen`; `str` gives a report.

    Attributes:
        verdict: the weakest verdict of all units.
        units: evidence per unit.
        tolerance: relative size of a pre-activation (over `||(w,b)|| ||(h_prev,1)||`) that counts as zero.
        notes: what a reader must know besides.
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
        lines = [f"Frozen units: {self.verdict.name}", f"  {self.verdict.value}", f"  tolerance {self.tolerance:.1e}"]
        return "\n".join([*lines, *table(header, rows), *(f"  note: {note}" for note in self.notes)])


def _lasts(unit: UnitEvidence) -> str:
    if unit.verdict not in (FrozenVerdict.FROZEN, FrozenVerdict.FROZEN_EVERYWHERE):
        return "-"
    return "while unchanged: " + ", ".join(unit.depends_on) if unit.depends_on else "for good"


class _OnBatch(NamedTuple):
    """What one pass over the batch shows: taps, gradient, and the inputs."""

    taps: dict[str, Tap]
    gradient: Params
    inputs: jax.Array


class _SiteEvidence(NamedTuple):
    """Evidence for all units of a site at once; arrays `(units,)` or `None`."""

    largest: np.ndarray | None
    activity: np.ndarray | None
    slope: np.ndarray | None
    radius: np.ndarray | None
    source_radius: np.ndarray | None
    gradient: np.ndarray | None
    size: np.ndarray
    box_upper: np.ndarray | None
    by_sign: np.ndarray


def certify_frozen(
    model: Model,
    variables: Variables,
    frozen_units: FrozenUnits,
    batch: Batch | None = None,
    input_box: tuple[jax.Array, jax.Array] | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = mean_cross_entropy,
    *,
    train: bool = False,
    slope_threshold: float = 1e-4,
    tolerance: float | None = None,
) -> FrozenCertificate:
    """Certify that units are frozen: dead, so that gradients leave their incoming parameters where they are.

    Three independent proofs: on a batch (with the radius up to which it holds), over a box of inputs by interval
    bounds, and without any data by signs. A first-layer unit that is dead on fixed data is trapped, and so is one dead
    by signs; any other only while the layers below leave it dead: `depends_on` says so for every unit. Weight decay and
    stored momentum move frozen parameters too.

    Args:
        model: the network.
        variables: its variables.
        frozen_units: per site, or per unit space with a single site, the indices of the units.
        batch: `(inputs, labels)`.
        input_box: lower and upper bounds, each shaped like one input.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        train: run the batch in train mode; dropout stays off.
        slope_threshold: a unit of a smooth activation is saturated if `|f'(z)|` is at most this on every sample.
        tolerance: relative pre-activation that counts as zero; default `signal_tolerance`.

    Raises:
        ValueError: units that do not exist; a box that does not fit, or that cannot be propagated to the unit.
    """
    params, wiring = variables["params"], model.wiring
    frozen = resolve_frozen_units(wiring, frozen_units)
    if not frozen:
        raise ValueError("frozen_units names no unit: give indices per site")
    _check_box(input_box, batch)
    seen = None
    if batch is not None:
        check_batch(loss, model, variables, batch)
        taps, gradient = _run(model.apply, loss, train, variables, batch)
        seen = _OnBatch(taps, gradient, batch[0])
    if tolerance is None:
        tolerance = signal_tolerance(params, wiring, _tap_shapes(model, variables, batch, input_box))
    notes, units = [], []
    for site, indices in frozen.items():
        layer = plain_layer(params, wiring, site)
        evidence = _gather(params, wiring, site, layer, seen, input_box, tolerance)
        depends_on = _upstream(wiring, site, layer)
        units += [_judge(wiring, site, unit, evidence, depends_on, tolerance, slope_threshold) for unit in indices]
        if layer is None:
            mode = (
                "any batch norm used this batch's statistics" if train else "any batch norm used its running statistics"
            )
            notes.append(f"{site}: a norm, pooling or a sum feeds it, so there is no radius and no sign proof; {mode}")
        notes += _missing_facts(wiring, site)
    order = list(FrozenVerdict)
    verdict = min((unit.verdict for unit in units), key=order.index)
    return FrozenCertificate(verdict, tuple(units), tolerance, tuple(notes))


def _check_box(input_box: tuple[jax.Array, jax.Array] | None, batch: Batch | None) -> None:
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


def _tap_shapes(
    model: Model, variables: Variables, batch: Batch | None, input_box: tuple[jax.Array, jax.Array] | None
) -> Taps | None:
    """Shapes and dtypes of what the sites carry, if anything says what an input looks like."""
    if batch is not None:
        inputs = batch[0]
    elif input_box is not None:
        inputs = jnp.asarray(input_box[0])[None]
    else:
        return None
    return jax.eval_shape(lambda: model.apply(variables, inputs, dropout_rate=0.0)[2])


# Compiled once per model, not once per certificate.
@partial(jax.jit, static_argnames=("apply", "loss", "train"))
def _run(
    apply: Callable[..., tuple],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    train: bool,
    variables: Variables,
    batch: Batch,
) -> tuple[dict[str, Tap], Params]:
    """Taps and gradient on a batch."""

    def objective(params: Params) -> tuple[jax.Array, dict[str, Tap]]:
        logits, _, taps = apply({**variables, "params": params}, batch[0], train=train, dropout_rate=0.0)
        return loss(logits, batch[1]), taps

    gradient, taps = jax.grad(objective, has_aux=True)(variables["params"])
    return taps, gradient


def _gather(
    params: Params,
    wiring: Wiring,
    site: str,
    layer: PlainLayer | None,
    seen: _OnBatch | None,
    input_box: tuple[jax.Array, jax.Array] | None,
    limit: float,
) -> _SiteEvidence:
    size = _incoming_norms(params, wiring, site)
    largest = activity = slope = radius = source_radius = gradient = upper = None
    by_sign = np.zeros(len(size), bool)
    if layer is not None:
        by_sign = dead_by_sign(layer, wiring, input_box)
    if input_box is not None:
        upper = np.asarray(interval_bounds(params, wiring, site, input_box, limit)[1]).reshape(-1, len(size)).max(0)
    if seen is not None:
        pre = samples_by_units(seen.taps[site].pre)
        function = activation_function(wiring.site(site).activation)
        slope = np.asarray(jnp.max(jnp.abs(jax.jvp(function, (pre,), (jnp.ones_like(pre),))[1]), axis=0))
        largest = np.asarray(jnp.max(pre, axis=0))
        gradient = _incoming_norms(seen.gradient, wiring, site)
        activity = largest / max(float(jnp.max(jnp.abs(pre))), float(jnp.finfo(pre.dtype).tiny))
        if layer is not None:
            norms = _checked_norms(layer, wiring, site, seen, limit)
            radius = np.asarray(revival_radius(pre, norms))
            weights = np.linalg.norm(np.asarray(layer.kernel).reshape(-1, len(size)), axis=0)
            source_radius = np.where(weights > 0, -largest / np.where(weights > 0, weights, 1), np.inf)
            activity = -radius / np.where(size > 0, size, 1)
    return _SiteEvidence(largest, activity, slope, radius, source_radius, gradient, size, upper, by_sign)


def _incoming_norms(tree: Params, wiring: Wiring, site: str) -> np.ndarray:
    """Norm of every unit's slice of the arrays that belong to its site alone."""
    space = wiring.site(site).space
    squares = np.zeros(wiring.size(space))
    for label, leaf in zip(wiring.labels_of(tree), jax.tree.leaves(tree), strict=True):
        if label.site == site and Out(space) in label.axes:
            rows = np.moveaxis(np.asarray(leaf, np.float64), label.axes.index(Out(space)), -1)
            squares += np.square(rows).reshape(-1, len(squares)).sum(axis=0)
    return np.sqrt(squares)


def _checked_norms(layer: PlainLayer, wiring: Wiring, site: str, seen: _OnBatch, limit: float) -> jax.Array:
    """`||(h_prev, 1)||`, after making sure that the labelled source really produces the pre-activation."""
    source = layer.label.source
    read = seen.taps[source].post if source in seen.taps else seen.inputs
    pre = seen.taps[site].pre
    rebuilt = jnp.reshape(apply_layer(layer, layer.kernel, read) + layer.bias, pre.shape)
    scale = tree_norm(apply_layer(layer, jnp.abs(layer.kernel), jnp.abs(read)) + jnp.abs(layer.bias))
    if not float(tree_norm(rebuilt - pre)) <= GAP * limit * float(scale):
        raise ValueError(
            f"site {site!r}: its kernel applied to {source!r} does not give its pre-activation; fix the label"
        )
    return source_norms(layer, read)


def _upstream(wiring: Wiring, site: str, layer: PlainLayer | None) -> tuple[str, ...]:
    """What can bring a unit back to life: parameters at earlier sites, and what stands between layer and unit."""
    if layer is None:
        names = [name for name, _ in wiring.sites]
        return (*names[: names.index(site)], "norm and sum before it")
    upstream: tuple[str, ...] = ()
    source = layer.label.source
    if source in dict(wiring.sites):
        names = [name for name, _ in wiring.sites]
        upstream = tuple(names[: names.index(source) + 1])
    return upstream


def _missing_facts(wiring: Wiring, site: str) -> list[str]:
    """Facts about a site's activation without which its units stay undecided."""
    entry = activation_function(wiring.site(site).activation)
    missing = [fact for fact in ("flat", "saturates") if getattr(entry, fact) is None]
    if not missing:
        return []
    return [f"{site}: activation {entry.name!r} comes without {' and '.join(missing)}: undecided; pass an Activation"]


def _judge(
    wiring: Wiring,
    site: str,
    unit: int,
    evidence: _SiteEvidence,
    depends_on: tuple[str, ...],
    limit: float,
    slope_threshold: float,
) -> UnitEvidence:
    def of(values: np.ndarray | None) -> float | None:
        return None if values is None else float(values[unit])

    entry = activation_function(wiring.site(site).activation)
    is_relu = bool(entry.is_zero_below_zero)
    by_sign = bool(evidence.by_sign[unit])
    upper, gradient, size = of(evidence.box_upper), of(evidence.gradient), float(evidence.size[unit])
    if is_relu:
        verdict = _judge_relu(evidence, unit, limit, by_sign)
    elif evidence.slope is None:
        verdict = FrozenVerdict.UNDECIDED
    else:
        verdict = _judge_slope(entry, float(evidence.slope[unit]), slope_threshold)
    return UnitEvidence(
        site=site,
        unit=unit,
        verdict=verdict,
        largest=of(evidence.largest),
        radius=of(evidence.radius) if is_relu else None,
        source_radius=of(evidence.source_radius) if is_relu else None,
        gradient=gradient,
        time_scale=None if gradient is None else size / gradient if gradient > 0 else float("inf"),
        box_upper=upper,
        by_sign=by_sign and is_relu,
        depends_on=() if by_sign else depends_on,
    )


def _judge_slope(entry: Activation, slope: float, threshold: float) -> FrozenVerdict:
    """The verdict on a unit that is no ReLU, from its steepest slope on the batch."""
    if slope > threshold or entry.saturates == ():
        return FrozenVerdict.ALIVE
    is_known = entry.flat is not None and entry.saturates is not None
    return FrozenVerdict.SLOW if is_known else FrozenVerdict.UNDECIDED


def _judge_relu(evidence: _SiteEvidence, unit: int, limit: float, by_sign: bool) -> FrozenVerdict:
    is_boxed_in = evidence.box_upper is not None and evidence.box_upper[unit] < 0
    if evidence.activity is None or evidence.largest is None or evidence.gradient is None:
        return FrozenVerdict.FROZEN_EVERYWHERE if by_sign or is_boxed_in else FrozenVerdict.UNDECIDED
    activity = float(evidence.activity[unit])
    if activity >= GAP * limit:
        # Above zero, too, a function such as ReLU6 may be flat.
        is_flat = evidence.slope is not None and evidence.slope[unit] == 0
        return FrozenVerdict.UNDECIDED if is_flat else FrozenVerdict.ALIVE
    if by_sign or is_boxed_in:
        return FrozenVerdict.FROZEN_EVERYWHERE
    is_dead = activity <= -GAP * limit and evidence.gradient[unit] == 0
    return FrozenVerdict.FROZEN if is_dead else FrozenVerdict.UNDECIDED
