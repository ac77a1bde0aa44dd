"""The terms summed by the blocks of one unit space: features, derivatives, signals; a row per sample and position."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopjax.losses import Batch
from lopjax.model import Model, Variables
from lopjax.stability.blocks.features import incoming_features, outgoing_signals
from lopjax.stability.blocks.plain_spaces import PlainSpace
from lopjax.stability.blocks.signals import RoundingDraw, Signals, derivative_error, derivatives, is_straight
from lopjax.wiring import Path, Wiring, at_path, standard_layout

Counts = Mapping[str, Float[Array, "units"]]


class Rows(NamedTuple):
    """One row per sample and position.

    Attributes:
        features: phi.
        signals: delta_next of all readers, scaled and concatenated.
        slope: `f'(z_j)`.
        curvature: `e_j f''(z_j) / n_j`.
        pre: z_j.
    """

    features: Float[Array, "rows p"]
    signals: Float[Array, "rows q"]
    slope: Float[Array, "rows units"]
    curvature: Float[Array, "rows units"]
    pre: Float[Array, "rows units"]


def unit_rows(
    model: Model,
    variables: Variables,
    batch: Batch,
    space: PlainSpace,
    counts: Counts,
    observed: Signals,
    move: RoundingDraw | None = None,
) -> Rows:
    """The rows of one unit space, from the signals of a batch.

    Args:
        model: the base model.
        variables: its variables.
        batch: inputs and labels.
        space: the plain space.
        counts: number of clones of every unit, per space.
        observed: signals of the batch.
        move: perturbs the derivatives of the space's own activation, too.
    """
    wired = dict(model.wiring.labels)
    writer = wired["params", *space.kernel]
    pre, error = observed.taps[space.site].pre, observed.gradients[space.site].post
    slope, curvature = derivatives(space.activation, pre)
    if move is not None and not is_straight(space.activation):
        slope = slope + derivative_error(pre, move, 97)
        curvature = curvature + derivative_error(pre, move, 98)
    heard = observed.taps.get(writer.source or "")
    source = batch[0].astype(pre.dtype) if heard is None else heard.post
    signals = []
    for path in space.readers:
        label = wired["params", *path]
        reads = label.site is not None and label.site in observed.gradients
        delta = observed.gradients[label.site].pre if reads and label.site else observed.output
        target_counts = counts_of(model.wiring, counts, label.writes()[0]).astype(pre.dtype)
        shape = kernel_at(model.wiring, variables, path).shape
        signals.append(outgoing_signals(delta, shape, label.window, pre.shape[1:-1], target_counts))
    source_counts = counts_of(model.wiring, counts, writer.reads()[0]).astype(pre.dtype)
    kernel_shape = kernel_at(model.wiring, variables, space.kernel).shape
    units = pre.shape[-1]
    return Rows(
        incoming_features(source, kernel_shape, writer.window, source_counts, space.bias is not None),
        jnp.concatenate(signals, axis=1),
        slope.reshape(-1, units),
        (error * curvature / counts[space.space].astype(pre.dtype)).reshape(-1, units),
        pre.reshape(-1, units),
    )


def counts_of(wiring: Wiring, counts: Counts, space: str) -> Array:
    """Number of clones of every unit of a space."""
    return counts.get(space, jnp.ones(wiring.size(space)))


def kernel_at(wiring: Wiring, variables: Variables, path: Path) -> Array:
    """The kernel at a path, as `(..., sources, units)`."""
    return standard_layout(dict(wiring.labels)["params", *path], at_path(variables["params"], path))
