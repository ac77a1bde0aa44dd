"""Evidence about the units of one site: how far below zero they are, why, and on what that depends."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from lopjax.activations import activation
from lopjax.certificates.batch_evidence import Pass
from lopjax.certificates.dead_units import (
    PlainLayer,
    apply_layer,
    dead_by_sign,
    interval_bounds,
    plain_layer,
    rounding_level,
    source_norms,
    summand_sizes,
)
from lopjax.certificates.saturation import Slopes, slopes
from lopjax.cloning.rounding import CERTAIN_FROM, signal_tolerance
from lopjax.manifolds import tree_norm
from lopjax.model import Params, samples_by_units
from lopjax.wiring import Wiring, tree_paths, unit_rows


class Observations(NamedTuple):
    """The inputs of a certificate.

    Attributes:
        params: parameters.
        wiring: their wiring.
        seen: one pass over the batch, if there is a batch.
        inputs: inputs of that batch.
        input_box: bounds on inputs, if given.
        tolerance: relative pre-activation that counts as zero, if given.
        slope_threshold: largest slope of a saturated unit.
    """

    params: Params
    wiring: Wiring
    seen: Pass | None
    inputs: jax.Array | None
    input_box: tuple[ArrayLike, ArrayLike] | None
    tolerance: float | None
    slope_threshold: float


class SiteEvidence(NamedTuple):
    """Evidence for all units of a site at once; arrays `(units,)`, or `None` if not requested or unknown.

    Attributes:
        level: relative pre-activation that counts as zero.
        threshold: largest slope of a saturated unit.
        largest: largest pre-activation.
        is_active: whether the activation is not flat on some sample, beyond rounding.
        is_flat: whether it is flat on every sample, beyond rounding.
        slopes: slopes of the activation.
        radius: see `revival_radius`.
        source_radius: `min -z / ||w||`.
        gradient: norm of the gradient on `arrays`.
        size: norm of `arrays`.
        box_upper: upper bound over the box.
        by_sign: dead by signs.
        is_trapped: dead on the batch, and kept dead by things that cannot change on it.
        arrays: paths of the parameters whose every path to the output passes the unit.
        others: paths of other parameters that write the unit's space.
    """

    level: float
    threshold: float
    largest: np.ndarray | None
    is_active: np.ndarray | None
    is_flat: np.ndarray | None
    slopes: Slopes | None
    radius: np.ndarray | None
    source_radius: np.ndarray | None
    gradient: np.ndarray | None
    size: np.ndarray
    box_upper: np.ndarray | None
    by_sign: np.ndarray
    is_trapped: np.ndarray
    arrays: tuple[str, ...]
    others: tuple[str, ...]


def gather(observations: Observations, site: str) -> SiteEvidence:
    """All evidence about the units of a site."""
    params, wiring = observations.params, observations.wiring
    layer = plain_layer(params, wiring, site)
    arrays, others = incoming_arrays(wiring, site)
    entry = activation(wiring.site(site).activation)
    size = slice_norms(params, wiring, site, arrays)
    largest = active = flat = gradient = radius = source_radius = upper = steepness = None
    if observations.input_box is not None:
        bounds = interval_bounds(params, wiring, site, observations.input_box)
        upper = np.asarray(bounds[1]).reshape(-1, len(size)).max(axis=0)
    if observations.seen is not None:
        pre = samples_by_units(observations.seen.taps[site].pre)
        largest = np.asarray(jnp.max(pre, axis=0))
        gradient = slice_norms(observations.seen.gradient, wiring, site, arrays)
        steepness = slopes(entry, pre, observations.slope_threshold)
        active, flat = _flatness(observations, site, layer, entry.flat or ())
    if observations.seen is not None and layer is not None and largest is not None:
        # What rounding may have hidden comes off: a radius that is too large would promise too much.
        exact = np.asarray(pre, np.float64)
        at_most = np.where(exact <= 0, np.minimum(exact + _noise(observations, site, layer, exact), 0), exact)
        norms = np.asarray(source_norms(layer, _read(observations, layer)), np.float64)[:, None]
        radius = np.where(norms > 0, -at_most / np.where(norms > 0, norms, 1), np.inf).min(axis=0)
        weights = np.linalg.norm(np.asarray(layer.kernel, np.float64).reshape(-1, len(size)), axis=0)
        source_radius = np.where(weights > 0, -at_most.max(axis=0) / np.where(weights > 0, weights, 1), np.inf)
    return SiteEvidence(
        level=_level(observations, site, layer),
        threshold=observations.slope_threshold,
        largest=largest,
        is_active=active,
        is_flat=flat,
        slopes=steepness,
        radius=radius,
        source_radius=source_radius,
        gradient=gradient,
        size=size,
        box_upper=upper,
        by_sign=np.zeros(len(size), bool)
        if layer is None
        else dead_by_sign(layer, wiring, observations.input_box, is_dead_at_zero=entry.slope_at(0) == 0),
        is_trapped=_trapped(observations, site),
        arrays=arrays,
        others=others,
    )


def incoming_arrays(wiring: Wiring, site: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths of the parameters that are frozen when units are dead at a site, and of others that write the same units.

    The others also reach the output by paths that bypass the site: a kernel before layer norm, an earlier writer of a
    stream.
    """
    space = wiring.site(site).space
    writers = [(path, label) for path, label in wiring.labels if path[0] == "params" and space in label.writes()]
    own = tuple("/".join(path[1:]) for path, label in writers if label.site == site)
    return own, tuple("/".join(path[1:]) for path, label in writers if label.site != site)


def slice_norms(tree: Params, wiring: Wiring, site: str, names: tuple[str, ...]) -> np.ndarray:
    """Norm of every unit's slice of some arrays, `(units,)`, in float64.

    Args:
        tree: parameters, or a gradient.
        wiring: wiring of the network.
        site: the site at whose space the units are.
        names: paths of the arrays, "hidden_0/kernel", each of which writes that space once.
    """
    space = wiring.site(site).space
    squares = np.zeros(wiring.size(space))
    for path, label, leaf in zip(tree_paths(tree), wiring.labels_of(tree), jax.tree.leaves(tree), strict=True):
        if "/".join(path) in names:
            (axis,) = label.unit_axes((space,), is_read=False)
            squares += np.square(unit_rows(np.asarray(leaf, np.float64), axis.index)).sum(axis=1)
    return np.sqrt(squares)


def _read(observations: Observations, layer: PlainLayer) -> jax.Array:
    """The activations that a layer reads on the batch."""
    assert observations.seen is not None
    source = str(layer.label.source)
    if source in observations.seen.taps:
        return observations.seen.taps[source].post
    assert observations.inputs is not None
    return observations.inputs


def _level(observations: Observations, site: str, layer: PlainLayer | None) -> float:
    """Relative pre-activation that counts as zero: rounding of this layer and as much for each layer below it."""
    if observations.tolerance is not None:
        return observations.tolerance
    taps = None if observations.seen is None else observations.seen.taps
    if layer is None:
        return signal_tolerance(observations.params, observations.wiring, taps)
    kinds = [layer.kernel.dtype] if taps is None else [layer.kernel.dtype, taps[site].pre.dtype]
    eps = max(float(jnp.finfo(kind).eps) for kind in kinds)
    depth, below = 1, layer
    while below is not None and below.label.source in dict(observations.wiring.sites):
        depth, below = depth + 1, plain_layer(observations.params, observations.wiring, str(below.label.source))
    return depth * rounding_level(layer, eps)


def _flatness(
    observations: Observations, site: str, layer: PlainLayer | None, intervals: Sequence[tuple[float, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether some sample lies outside all of these intervals by more than rounding, and whether all lie inside.

    An end point belongs to its interval if JAX's derivative there is that of the flat side.

    Args:
        observations: what was seen of the network, with a batch.
        site: the site.
        layer: the plain layer that makes its pre-activation, or None.
        intervals: where the activation is flat.

    Returns:
        Two arrays of bool `(units,)`.
    """
    assert observations.seen is not None
    entry = activation(observations.wiring.site(site).activation)
    pre = np.asarray(samples_by_units(observations.seen.taps[site].pre), np.float64)
    noise = _noise(observations, site, layer, pre)
    is_inside, is_outside = np.zeros(pre.shape, bool), np.ones(pre.shape, bool)
    for low, high in intervals:
        above, below = (np.greater_equal if entry.slope_at(end) == 0 else np.greater for end in (low, high))
        is_inside |= above(pre, low + noise) & below(high - noise, pre)
        is_outside &= (pre < low - noise) | (pre > high + noise)
    return np.any(is_outside, axis=0), np.all(is_inside, axis=0)


def _noise(observations: Observations, site: str, layer: PlainLayer | None, pre: np.ndarray) -> np.ndarray:
    """Bound on the rounding error of each pre-activation.

    Raises:
        ValueError: the labelled source does not produce the pre-activation.
    """
    assert observations.seen is not None
    tap, level = observations.seen.taps[site], _level(observations, site, layer)
    if layer is None:
        # After a norm or a sum nothing bounds the rounding: each unit is measured by its own size, or by the eps of an
        # ordinary unit; a unit does not come out 0 on every sample by rounding.
        own = np.abs(pre).max(axis=0)
        floor = float(jnp.finfo(tap.pre.dtype).eps) * np.median(own)
        return np.broadcast_to(np.where(own == 0, 0.0, np.maximum(level * own, floor)), pre.shape)
    read = _read(observations, layer)
    sizes = samples_by_units(summand_sizes(layer, read))
    rebuilt = samples_by_units(apply_layer(layer, layer.kernel, read) + layer.bias)
    difference = np.abs(np.asarray(rebuilt, np.float64) - pre)
    limit = signal_tolerance(observations.params, observations.wiring, observations.seen.taps)
    if not np.linalg.norm(difference) <= CERTAIN_FROM * limit * float(tree_norm(sizes)):
        source = layer.label.source
        raise ValueError(
            f"site {site!r}: its kernel applied to {source!r} does not give its pre-activation; fix the label"
        )
    # The difference between two ways of computing the same sum is rounding, too: matrix units may be coarser than their
    # type.
    return np.maximum(level * np.asarray(sizes, np.float64), difference)


def _trapped(observations: Observations, site: str) -> np.ndarray:
    """Units that are dead on the batch and that no change during training can wake.

    In the first layer units read only the data. Higher up they are trapped by their signs, or because every unit that
    they read with the other sign is itself dead and trapped.
    """
    wiring = observations.wiring
    size = wiring.size(wiring.site(site).space)
    layer = plain_layer(observations.params, wiring, site)
    entry = activation(wiring.site(site).activation)
    if layer is None or observations.seen is None or not entry.is_zero_below_zero:
        return np.zeros(size, bool)
    # A dead unit need not be trapped: its inputs may change and wake it. Data do not change, nor do units that are dead
    # and trapped themselves, which is found by recursion into the layer below. The recursion ends at the input, or at a
    # site not computed by a plain layer, about which nothing is claimed.
    gradient = slice_norms(observations.seen.gradient, wiring, site, incoming_arrays(wiring, site)[0])
    is_dead = _flatness(observations, site, layer, ((-np.inf, 0.0),))[1] & (gradient == 0)
    if layer.label.source not in dict(wiring.sites):
        return is_dead
    silent = _trapped(observations, str(layer.label.source))
    return is_dead & dead_by_sign(layer, wiring, observations.input_box, silent, entry.slope_at(0) == 0)
