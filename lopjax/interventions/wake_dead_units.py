"""Waking dead units: new incoming weights and zero outgoing ones, so that the function is preserved."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from lopjax.interventions.checks import Spaces, check_every, check_state, is_due, spaces_of
from lopjax.interventions.compensation import biases
from lopjax.interventions.reasons import CHANGED, NO_UNIT_CHOSEN, NOT_ITS_STEP, NOT_PRESERVED
from lopjax.interventions.slices import no_units, reset_units
from lopjax.model import Tap, Variables, samples_by_units
from lopjax.optim.checks import check
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState
from lopjax.wiring import Axis, In, Label, Path, Wiring, tree_paths


class Constant(NamedTuple):
    """Activations of the units of a space that are constant on a batch.

    Attributes:
        value: smallest activation, at the last of the space's sites.
        is_dead: whether the unit takes only this value, at every site.
    """

    value: Float[Array, " units"]
    is_dead: Bool[Array, " units"]


class _Attempt(NamedTuple):
    """The state after waking some units, and the resulting change of the logits."""

    state: TrainState
    units: dict[str, Bool[Array, " units"]]
    change: Float[Array, ""]


def wake_dead_units(
    every: ArrayLike = 1000,
    tolerance: ArrayLike = 0.0,
    function_tolerance: ArrayLike = 1e-6,
    spaces: Spaces = None,
) -> Intervention:
    r"""Re-initialise units that are constant on the batch, without changing the function.

    A unit is dead on the batch if its activation is the same number c at every sample and position: a ReLU that never
    fires (c = 0), or a unit that is saturated for good. It has no gradient on its incoming weights, and its outgoing
    weights act as a second bias. Its constant is moved into the layers that it feeds, :math:`b_k \leftarrow b_k + c
    \sum W_{jk}` (the running mean of a batch norm where the layer has no bias); outgoing weights become 0, incoming
    ones are drawn anew from the initial distribution of their array, and statistics and the optimizer's state for both
    are reset. The next gradient acts on the outgoing weights alone.

    A unit of a residual stream is dead if it is 0 at all sites of the stream. Spaces over whose units a layer norm
    averages are left out: there a dead unit still affects the others (redrawing one changed logits by 0.45). At the
    edge of a convolution's map, a nonzero constant is padded with zeros and so is not constant. Instead of relying on
    such rules, the logits on the batch are compared in eval mode: if they would change by more than
    `function_tolerance`, only units with c = 0 are woken, and if that is still too much, none.

    "Dead" means dead on this batch; for how far a unit is from waking up by itself see the radius in
    `lopjax.certificates.certify_frozen`.

    Args:
        every: number of steps between two actions.
        tolerance: largest range (largest minus smallest activation) of a unit that counts as constant; 0 for exactly
            constant ones.
        function_tolerance: largest change of a logit, relative to the largest logit of the batch.
        spaces: unit spaces; None for all that can be reset and whose units no norm couples.

    Returns:
        The intervention; it has no state of its own. The report's logs contain `change`, the change of the logits in
        these units.

    Raises:
        ValueError: a number out of range; on `init`, an unknown or fixed space, one whose units a norm couples, or a
            state of another optimizer.

    References:
        This library's own; fresh incoming and zero outgoing weights are those of a reset in arXiv 2302.12902 (ReDo).
    """
    check_every(every)
    check("tolerance", tolerance, minimum=0.0)
    check("function_tolerance", function_tolerance, minimum=0.0)

    def init(setting: Setting, state: TrainState) -> tuple[()]:
        _uncoupled(setting.model.wiring, spaces)
        check_state(setting, state)
        return ()

    def apply(
        setting: Setting, own: tuple[()], state: TrainState, observed: Observed, key: jax.Array, step: Any
    ) -> tuple[TrainState, tuple[()], Report]:
        chosen, due = _uncoupled(setting.model.wiring, spaces), is_due(step, every)
        nothing = _Attempt(state, no_units(setting, chosen), jnp.zeros_like(observed.logits, shape=()))

        def act(_: _Attempt) -> tuple[_Attempt, Array]:
            return _best_attempt(setting, nothing, observed.batch[0], key, tolerance, function_tolerance)

        attempt, reason = jax.lax.cond(due, act, lambda none: (none, jnp.int32(NOT_ITS_STEP)), nothing)
        return attempt.state, own, Report(attempt.units, reason, {"change": attempt.change})

    return Intervention(init, apply)


def constant_units(taps: Sequence[Tap], tolerance: ArrayLike = 0.0) -> Constant:
    """Which units are constant on a batch. At several sites (a residual stream) only the constant 0 counts.

    Args:
        taps: pre- and post-activations of all sites of one space.
        tolerance: a unit whose largest and smallest activation differ by at most this much is constant.

    Returns:
        Which units these are, and the smallest activation of each unit (at the last site), both `(units,)`.
    """
    is_dead, value = jnp.bool_(True), jnp.zeros(())
    for tap in taps:
        posts = samples_by_units(tap.post)
        value = jnp.min(posts, axis=0)
        is_dead = is_dead & (jnp.max(posts, axis=0) - value <= tolerance)
        is_dead = is_dead & ((value == 0) | (len(taps) == 1))
    return Constant(value, is_dead)


def constants_moved(
    wiring: Wiring, variables: Variables, space: str, constants: Float[ArrayLike, " units"]
) -> Variables:
    """Add the contributions of units at constant activations to the biases of the arrays that read them.

    The weights are unchanged. If a kernel has no bias in its module, the running mean of the norm after it takes the
    constant; if there is neither, the constant is lost.

    Args:
        wiring: wiring of the network.
        variables: parameters and statistics.
        space: the units' space.
        constants: activation of every unit; 0 for units that are to be ignored.
    """
    labels, leaves = dict(wiring.labels), jax.tree.leaves(dict(variables))
    new, beside = list(leaves), biases(wiring)
    place = {path: index for index, path in enumerate(tree_paths(dict(variables)))}
    for path, label in wiring.labels:
        if In(space) not in label.axes or (absorber := beside.get(path) or _running_mean(wiring, path)) is None:
            continue
        kernel = leaves[place[path]]
        fed = jnp.moveaxis(kernel, label.axes.index(In(space)), -1) @ jnp.asarray(constants, kernel.dtype)
        kept = _kept_axes(labels[absorber], [axis for axis in label.axes if axis != In(space)])
        total = jnp.sum(fed, axis=tuple(index for index in range(fed.ndim) if index not in kept))
        new[place[absorber]] = new[place[absorber]] + (total if absorber[0] == "params" else -total)
    return jax.tree.unflatten(jax.tree.structure(dict(variables)), new)


def _uncoupled(wiring: Wiring, spaces: Spaces) -> tuple[str, ...]:
    """The spaces on which the method acts."""
    if spaces is None:
        spaces = [s for s in wiring.cloned_by_default if s not in wiring.coupled and wiring.sites_of(s)]
    if coupled := [space for space in spaces if space in wiring.coupled]:
        raise ValueError(
            f"spaces={list(spaces)}: a norm averages over the units of {coupled}, so a dead one cannot be redrawn "
            "without a change of the function; leave them out, or reset them with redo"
        )
    return spaces_of(wiring, spaces)


def _best_attempt(
    setting: Setting,
    nothing: _Attempt,
    inputs: Any,
    key: jax.Array,
    tolerance: ArrayLike,
    function_tolerance: ArrayLike,
) -> tuple[_Attempt, Array]:
    """Wake all dead units, those at 0, or none: the first of these that preserves the function."""
    wiring, state = setting.model.wiring, nothing.state
    logits, _, taps = setting.model.apply(state.variables, inputs, dropout_rate=0.0)
    constant = {s: constant_units([taps[site] for site in wiring.sites_of(s)], tolerance) for s in nothing.units}
    everyone = {space: one.is_dead for space, one in constant.items()}
    at_zero = {space: one.is_dead & (one.value == 0) for space, one in constant.items()}
    tries = [_attempt(setting, state, constant, units, inputs, logits, key) for units in (everyone, at_zero)]
    keeps_function = [one.change <= function_tolerance for one in tries]
    anyone = [jnp.any(jnp.concatenate(list(one.units.values()))) for one in tries]
    good = [is_kept & is_any for is_kept, is_any in zip(keeps_function, anyone, strict=True)]
    choice = jnp.where(good[0], 0, jnp.where(good[1], 1, 2))
    # Log the change that was too large.
    nothing = nothing._replace(change=jnp.where(anyone[0], tries[0].change, 0).astype(tries[0].change.dtype))
    best = jax.lax.switch(choice, [lambda: tries[0], lambda: tries[1], lambda: nothing])
    reason = jnp.where(anyone[0], jnp.where(choice < 2, CHANGED, NOT_PRESERVED), NO_UNIT_CHOSEN)
    return best, reason.astype(jnp.int32)


def _attempt(
    setting: Setting,
    state: TrainState,
    constants: Mapping[str, Constant],
    units: dict[str, Bool[Array, " units"]],
    inputs: Any,
    logits: Array,
    key: jax.Array,
) -> _Attempt:
    variables = state.variables
    for space, chosen in units.items():
        value = jnp.where(chosen, constants[space].value, 0)
        variables = constants_moved(setting.model.wiring, variables, space, value)
    woken = reset_units(setting, state._replace(variables=variables), units, key)
    after = setting.model.apply(woken.variables, inputs, dropout_rate=0.0)[0]
    largest = jnp.max(jnp.abs(logits))
    return _Attempt(woken, units, jnp.max(jnp.abs(after - logits)) / jnp.where(largest > 0, largest, 1))


def _running_mean(wiring: Wiring, kernel: Path) -> Path | None:
    """The running mean of the norm after a kernel without a bias: in a module next to that of the kernel."""
    written, around = dict(wiring.labels)[kernel].writes(), kernel[1:-2]
    means = [
        path
        for path, label in wiring.labels
        if path[0] != "params" and path[-1] == "mean" and path[1:-2] == around and label.writes() == written
    ]
    return means[0] if len(means) == 1 else None


def _kept_axes(bias: Label, rest: Sequence[Axis]) -> list[int]:
    """The axes of a kernel, apart from the one that reads the units, that the bias shares, in its order."""
    written = next(axis for axis in bias.axes if axis is not None)
    start = rest.index(written)
    return list(range(start, start + len(bias.axes) - bias.axes.index(written)))
