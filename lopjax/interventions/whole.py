"""Resets that do not depend on measures of units: whole layers, and the optimizer."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool

from lopjax.interventions.checks import check_every, check_state, is_due, is_start
from lopjax.interventions.reasons import NOT_ITS_STEP, OPTIMIZER_STARTED, reason_of
from lopjax.interventions.slices import draw_units, is_written
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState


def reset_layer(spaces: Sequence[str], every: ArrayLike | None = None) -> Intervention:
    """Draw every array that writes a unit space anew: a head at every new task, or any layer at regular intervals.

    Outgoing weights are kept, so the function changes. The optimizer's state for the new weights is reset. The
    intervention acts after the update of a step, which is lost on these layers; without `every`, it does not act after
    the first step of a run.

    Args:
        spaces: unit spaces that are written: hidden ones or the outputs (`"classes"`).
        every: number of steps between two resets, and before the first; None for the first step of every task but the
            first.

    Returns:
        The intervention; without `every` it needs boundaries.

    Raises:
        ValueError: a number out of range, no space; on `init`, an unknown space or one that nothing writes, or a state
            of another optimizer; in a step, a stream without task boundaries.

    References:
        Nikishin et al., *The Primacy Bias in Deep Reinforcement Learning*, arXiv 2205.07802.
    """
    _check_every_or_none(every)
    if isinstance(spaces, str):
        raise ValueError(f"spaces={spaces!r}: must be a sequence of names, such as [{spaces!r}]")
    if not spaces:
        raise ValueError(f"spaces={spaces!r}: must name at least one unit space, such as ['classes']")

    def init(setting: Setting, state: TrainState) -> tuple[()]:
        for space in spaces:
            setting.model.wiring.size(space)
            if not is_written(setting, space):
                raise ValueError(f"unit space {space!r} holds the inputs: no layer writes it")
        check_state(setting, state)
        return ()

    def apply(
        setting: Setting, own: tuple[()], state: TrainState, observed: Observed, key: jax.Array, step: Any
    ) -> tuple[TrainState, tuple[()], Report]:
        due = _is_time(observed, step, every, "reset_layer")
        units = {space: jnp.broadcast_to(due, (setting.model.wiring.size(space),)) for space in spaces}
        state = jax.lax.cond(due, lambda s: draw_units(setting, s, units, key), lambda s: s, state)
        return state, own, Report(units, reason_of(due, units))

    return Intervention(init, apply, needs_boundaries=every is None)


def reset_optimizer(every: ArrayLike | None = None) -> Intervention:
    """Re-initialise the optimizer: moments, step counts and everything else in its state but injected hyperparameters.

    Hyperparameters held by `optax.inject_hyperparams` are settings and are kept. Schedules start again; noise drawn
    with a key in the state repeats itself; the anchor of an L2 penalty moves to the current parameters.

    Args:
        every: as in `reset_layer`.

    Returns:
        The intervention; without `every` it needs task boundaries. It acts on no units.

    Raises:
        ValueError: as `reset_layer`.

    References:
        Asadi, Fakoor & Sabach, *Resetting the Optimizer in Deep RL*, arXiv 2306.17833.
    """
    _check_every_or_none(every)

    def init(setting: Setting, state: TrainState) -> tuple[()]:
        check_state(setting, state)
        return ()

    def apply(
        setting: Setting, own: tuple[()], state: TrainState, observed: Observed, key: jax.Array, step: Any
    ) -> tuple[TrainState, tuple[()], Report]:
        due = _is_time(observed, step, every, "reset_optimizer")

        def act(state: TrainState) -> TrainState:
            fresh = setting.optimizer.init(state.variables["params"])
            return state._replace(opt_state=_with_hyperparameters_of(state.opt_state, fresh))

        state = jax.lax.cond(due, act, lambda state: state, state)
        return state, own, Report({}, jnp.where(due, OPTIMIZER_STARTED, NOT_ITS_STEP).astype(jnp.int32))

    return Intervention(init, apply, needs_boundaries=every is None)


def _with_hyperparameters_of(old: Any, fresh: Any) -> Any:
    """A fresh state with the hyperparameters injected into an old one, wherever they are in a chain."""

    def is_injected(node: Any) -> bool:
        return hasattr(node, "hyperparams") and hasattr(node, "inner_state")

    def one(before: Any, after: Any) -> Any:
        if not is_injected(before):
            return after
        inner = _with_hyperparameters_of(before.inner_state, after.inner_state)
        return after._replace(hyperparams=before.hyperparams, inner_state=inner)

    return jax.tree.map(one, old, fresh, is_leaf=is_injected)


def _check_every_or_none(every: Any) -> None:
    if every is not None:
        check_every(every)


def _is_time(observed: Observed, step: Any, every: Any, name: str) -> Bool[Array, ""]:
    """Whether to act: after every `every` steps, or at the start of a task, but not at the start of training."""
    if every is not None:
        return is_due(step, every)
    return is_start(observed, name) & (jnp.asarray(step) > 0)
