"""The contract of interventions: what acts on a network after the optimizer has, such as resets of units.

What is only a function of gradients and parameters is an optax transform (`lopjax.optim`). An intervention may see
more: activations, backward signals, the task. It is two pure functions, works under jit, vmap and scan, and changes no
shape.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Bool, Int32, PyTree

from lopjax.model import Model
from lopjax.signals import Observed
from lopjax.training.steps import TrainState


class Setting(NamedTuple):
    """What does not change while a network is trained; static.

    Attributes:
        model: the network.
        optimizer: what trains it.
        loss: `(logits, labels) -> scalar`, a mean over samples.
    """

    model: Model
    optimizer: optax.GradientTransformation
    loss: Callable[[jax.Array, Any], jax.Array]


class Report(NamedTuple):
    """What an intervention has done at one step.

    Attributes:
        touched: by unit space, which units it has changed.
        reason: a code; those of this library have a sentence each in `lopjax.interventions.REASONS`, nothing done
            included.
        logs: further numbers, such as how many units are mature; what a run logs of them is up to its step.
    """

    touched: Mapping[str, Bool[Array, " units"]]
    reason: Int32[Array, ""] | int
    logs: Mapping[str, jax.Array] = {}


class Intervention(NamedTuple):
    """An intervention. Constructors take numbers only, which may be traced.

    Attributes:
        init: `(setting, state) -> own`, its own state at the start of training.
        apply: `(setting, own, state, observed, key, step) -> (state, own, report)`, after the update of a step;
            `observed` is what was seen before it.
        needs_boundaries: whether it looks at `observed.task.is_start`.
    """

    init: Callable[[Setting, TrainState], PyTree]
    apply: Callable[..., tuple[TrainState, PyTree, Report]]
    needs_boundaries: bool = False


def start_intervention(intervention: Intervention, setting: Setting, state: TrainState) -> TrainState:
    """A network at the start of training, with the intervention's own state in `state.own`.

    Raises:
        ValueError: no state of a network in training.
    """
    _check_state(state)
    return state._replace(own=intervention.init(setting, state))


def intervene(
    intervention: Intervention,
    setting: Setting,
    state: TrainState,
    observed: Observed,
    key: jax.Array,
    step: Int32[Array, ""] | int,
) -> tuple[TrainState, Report]:
    """Let an intervention act after a training step.

    Args:
        intervention: the intervention; its own state is in `state.own`.
        setting: model, optimizer and loss of the step.
        state: after the step.
        observed: from the step.
        key: for what it draws.
        step: number of the step.

    Returns:
        The state after it, and what it has done.

    Raises:
        ValueError: no state of a network in training, one that has not been started, or no key.
    """
    _check_state(state)
    if not isinstance(key, jax.Array):
        raise ValueError(f"key={key!r}: must be a key, such as jax.random.key(0)")
    if type(state.own) is tuple and not state.own:
        _check_started(intervention, setting, state)
    state, own, report = intervention.apply(setting, state.own, state, observed, key, step)
    return state._replace(own=own), report


def _check_state(state: Any) -> None:
    if not isinstance(state, TrainState):
        raise ValueError(
            f"state is a {type(state).__name__}: must be a TrainState; make one with "
            "lopjax.training.init_state(variables, optimizer)"
        )


def _check_started(intervention: Intervention, setting: Setting, state: TrainState) -> None:
    """Refuse a state without the intervention's own; those that have none of their own pass."""
    own = jax.eval_shape(lambda state: intervention.init(setting, state), state)
    if jax.tree.structure(own) != jax.tree.structure(()):
        raise ValueError(
            "state.own is empty, and this intervention keeps a state of its own: begin with "
            "start_intervention(intervention, setting, state)"
        )
