"""Splitting clones without changing the function: a small push from which gradient descent drives them apart."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from lopjax.arguments.integers import as_integer
from lopjax.curvature import extreme_eigenvalues, hvp
from lopjax.detection import activation_rows, multiples_by_parameters, nearest_units
from lopjax.interventions.checks import Spaces, check_every, check_state, is_due, spaces_of
from lopjax.interventions.pairs import Pair, Rows, merged, outgoing_part, parting, places_of, push_length, zero_rows
from lopjax.interventions.reasons import (
    AS_IT_WAS,
    CHANGED,
    NO_ESCAPE,
    NO_UNIT_CHOSEN,
    NOT_ITS_STEP,
    NOT_PRESERVED,
)
from lopjax.interventions.slices import no_units
from lopjax.losses import of_parameters
from lopjax.model import Model, Variables
from lopjax.optim.checks import check
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState


class _Escape(NamedTuple):
    """Coordinates of the kick of each space, their total length, and whether the loss decreases along it."""

    rows: Rows
    sizes: Float[Array, " spaces"]
    is_downhill: Bool[Array, ""]


def split_clones(
    tolerance: ArrayLike = 0.01,
    every: ArrayLike = 1000,
    size: ArrayLike = 0.1,
    loss_tolerance: ArrayLike = 1e-3,
    num_steps: int = 24,
    spaces: Spaces = None,
) -> Intervention:
    r"""Separate one pair of clones without changing the function, so that the next gradient differs between them.

    In every space the nearest pair by activations (`lopjax.detection.clone_distances`) is a candidate if it is within
    `tolerance`. At the nearest point at which the two are clones, each pair has a block of second derivatives
    :math:`M_j` for the changes that separate them; candidates of different spaces do not couple, so Lanczos finds the
    lowest eigenvector over all of them with one product per step. The pair it belongs to is moved to its point of
    equality, if that changes the loss by less than `loss_tolerance`, and its *outgoing* weights are pushed along the
    outgoing part r of the eigenvector, :math:`(r, -c r)` for units that are (c, 1) times the same unit. The two changes
    cancel, so no activation and no logit changes, whatever the size of the push; the gradient there has :math:`B_j r`
    on the incoming weights, and the units separate at the rate of the eigenvalue.

    If the lowest eigenvalue is not negative within its error (clones on a fitted task, or dead ones) nothing is done.
    Away from a critical point this is a good direction, not one proven to be the best. A pair with unequal outgoing
    weights, which is not trapped, is made a pair of clones and then separated. The optimizer's state is kept.

    Args:
        tolerance: relative distance of activations up to which two units are near; 0 for exact clones only.
        every: number of steps between two splits of one pair each.
        size: positive; length of the push relative to that of one unit's outgoing weights or, if these are zero, as
            after a reset, of its incoming ones.
        loss_tolerance: largest change of the loss, on the batch and in eval mode, that moving to the point of equality
            and the push may cause; 0 allows no change, not even by rounding.
        num_steps: number of Lanczos steps, each a Hessian-vector product of the batch's loss.
        spaces: unit spaces; None for all that can be cloned.

    Returns:
        The intervention; it has no state of its own.

    Raises:
        ValueError: a number out of range; on `init`, an unknown space or one that cannot be cloned, an array that reads
            and writes one space, or a state of another optimizer.

    References:
        The zero block of outgoing patterns: Fukumizu & Amari, Neural Networks 13 (2000); its extension to any wiring,
        and the method, are this library's own (see `lopjax.stability.free_kick`).
    """
    for name, value in {"tolerance": tolerance, "size": size, "loss_tolerance": loss_tolerance}.items():
        check(name, value, minimum=0.0)
    if not isinstance(size, jax.core.Tracer) and not np.all(np.asarray(size) > 0):
        raise ValueError(f"size={size!r}: must be positive: a push of length 0 separates nothing")
    check_every(every)
    num_steps = as_integer(num_steps, 1, f"num_steps={num_steps!r}: must be a positive integer")

    options = _Options(tolerance, every, size, loss_tolerance, num_steps, spaces)
    return Intervention(partial(_check_spaces, spaces), partial(_apply, options))


class _Options(NamedTuple):
    """The arguments of `split_clones`."""

    tolerance: ArrayLike
    every: ArrayLike
    size: ArrayLike
    loss_tolerance: ArrayLike
    num_steps: int
    spaces: Spaces


def _check_spaces(spaces: Spaces, setting: Setting, state: TrainState) -> tuple[()]:
    """Refuse spaces whose units cannot be split; the intervention has no state of its own."""
    for space in spaces_of(setting.model.wiring, spaces):
        if space not in setting.model.wiring.cloneable:
            why = setting.model.wiring.why_not_cloneable(space)
            raise ValueError(f"unit space {space!r}: {why}, so a push would change the function")
        places_of(setting.model.wiring, state.variables["params"], space)
    check_state(setting, state)
    return ()


def _apply(
    options: _Options,
    setting: Setting,
    own: tuple[()],
    state: TrainState,
    observed: Observed,
    key: jax.Array,
    step: Any,
) -> tuple[TrainState, tuple[()], Report]:
    """Part one pair at the steps at which that is due; see `Intervention.apply`."""
    chosen = spaces_of(setting.model.wiring, options.spaces)

    def act(variables: Variables) -> tuple[Variables, dict[str, Array], Array]:
        pairs = _candidates(setting.model, variables, observed.batch[0], chosen, options.tolerance)
        escape = _escape(setting, variables, observed.batch, pairs, options.num_steps, key)
        return _parted(setting, variables, observed.batch, pairs, escape, options.size, options.loss_tolerance)

    def rest(variables: Variables) -> tuple[Variables, dict[str, Array], Array]:
        return variables, no_units(setting, chosen), jnp.int32(NOT_ITS_STEP)

    variables, touched, reason = jax.lax.cond(is_due(step, options.every), act, rest, dict(state.variables))
    return state._replace(variables=variables), own, Report(touched, reason)


def _candidates(
    model: Model, variables: Variables, inputs: Any, spaces: tuple[str, ...], tolerance: ArrayLike
) -> dict[str, Pair]:
    """The nearest pair of every space, in eval mode at the current parameters."""
    taps = model.apply(variables, inputs, dropout_rate=0.0)[2]
    pairs = {}
    for space in spaces:
        rows = activation_rows([taps[site] for site in model.wiring.sites_of(space)])
        nearest = nearest_units(rows, multiples_by_parameters(model.wiring, space))
        first = jnp.argmin(nearest.distance)
        is_near = nearest.distance[first] <= tolerance
        pairs[space] = Pair(first, nearest.unit[first], nearest.multiple[first], is_near)
    return pairs


def _escape(
    setting: Setting, variables: Variables, batch: Any, pairs: dict[str, Pair], num_steps: int, key: jax.Array
) -> _Escape:
    """The lowest eigenvector over all candidates, at the point where all are clones, and its outgoing part."""
    wiring = setting.model.wiring
    for space, pair in pairs.items():
        variables = merged(wiring, variables, space, pair)
    params = variables["params"]
    loss = of_parameters(setting.model, variables, batch, loss=setting.loss, train=True)
    zero = zero_rows(wiring, params, tuple(pairs))

    def embed(rows: Rows) -> Any:
        return parting(wiring, params, pairs, rows)

    def product(rows: Rows) -> Rows:
        return jax.linear_transpose(embed, rows)(hvp(loss, params, embed(rows)))[0]

    modes = extreme_eigenvalues(product, zero, num_steps, key)
    lowest = jax.tree.map(lambda leaf: leaf[0], modes.eigenvectors)
    rows = outgoing_part(wiring, params, lowest)
    sizes = jnp.stack(
        [jnp.where(pairs[s].is_near, jnp.sqrt(sum(jnp.sum(jnp.square(row)) for row in rows[s])), 0.0) for s in pairs]
    )
    return _Escape(rows, sizes, modes.eigenvalues[0] + modes.residuals[0] < 0)


def _parted(
    setting: Setting,
    variables: Variables,
    batch: Any,
    pairs: dict[str, Pair],
    escape: _Escape,
    size: ArrayLike,
    loss_tolerance: ArrayLike,
) -> tuple[Variables, dict[str, Array], Array]:
    """The pair with the longest outgoing part of the eigenvector, made equal and pushed apart, or nothing."""
    wiring = setting.model.wiring
    names, best = list(pairs), jnp.argmax(escape.sizes)
    pairs = {s: pair._replace(is_near=pair.is_near & (best == index)) for index, (s, pair) in enumerate(pairs.items())}
    equal = variables
    for space in names:
        equal = merged(wiring, equal, space, pairs[space])
    params, longest = equal["params"], escape.sizes[best]
    lengths = jnp.stack([push_length(wiring, params, space, pairs[space].second) for space in names])
    scale = jnp.asarray(size, longest.dtype) * lengths[best] / jnp.where(longest > 0, longest, 1)
    push = parting(wiring, params, pairs, jax.tree.map(lambda row: scale * row, escape.rows))
    pushed = {**equal, "params": jax.tree.map(jnp.add, params, push)}

    def loss_of(variables: Variables) -> Array:
        return setting.loss(setting.model.apply(variables, batch[0], dropout_rate=0.0)[0], batch[1])

    is_any = jnp.any(jnp.stack([pair.is_near for pair in pairs.values()]))
    has_length = (scale > 0) & (longest > 0)
    is_kept = jnp.abs(loss_of(pushed) - loss_of(variables)) <= loss_tolerance
    acts = is_any & escape.is_downhill & has_length & is_kept
    reason = jnp.where(has_length, jnp.where(is_kept, CHANGED, NOT_PRESERVED), AS_IT_WAS)
    reason = jnp.where(escape.is_downhill, reason, NO_ESCAPE)
    reason = jnp.where(is_any, reason, NO_UNIT_CHOSEN).astype(jnp.int32)
    touched = {
        space: acts & pair.is_near & ((units == pair.first) | (units == pair.second))
        for space, pair in pairs.items()
        for units in [jnp.arange(wiring.size(space))]
    }
    return jax.tree.map(lambda new, old: jnp.where(acts, new, old), pushed, variables), touched, reason
