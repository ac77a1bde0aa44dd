"""The contract of interventions: changes to a network after the optimizer's step, such as resets of units.

A function of gradients and parameters alone is an optax transform (`lopjax.optim`). An intervention may also use
activations, backward signals and the task. It consists of two pure functions, works under jit, vmap and scan, and
changes no shapes.
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
    """The static setting of a training run.

    Attributes:
        model: the network.
        optimizer: its optimizer.
        loss: `(logits, labels) -> scalar`, a mean over samples.
    """

    model: Model
    optimizer: optax.GradientTransformation
    loss: Callable[[jax.Array, Any], jax.Array]


class Report(NamedTuple):
    """The actions of an intervention in one step.

    Attributes:
        touched: by unit space, the units that it has changed.
        reason: a code, also if nothing was done; `lopjax.interventions.REASONS` has a sentence for each code of this
            library.
        logs: further numbers, such as the number of mature units; the run's step decides which of them are logged.
    """

    touched: Mapping[str, Bool[Array, " units"]]
    reason: Int32[Array, ""] | int
    logs: Mapping[str, jax.Array] = {}


class Intervention(NamedTuple):
    """An intervention. Constructors take numbers only, which may be traced.

    Attributes:
        init: `(setting, state) -> own`, its own state at the start of training.
        apply: `(setting, own, state, observed, key, step) -> (state, own, report)`, after the update of a step;
            `observed` is what was observed before the update.
        needs_boundaries: whether it uses `observed.task.is_start`.
    """

    init: Callable[[Setting, TrainState], PyTree]
    apply: Callable[..., tuple[TrainState, PyTree, Report]]
    needs_boundaries: bool = False


def start_intervention(intervention: Intervention, setting: Setting, state: TrainState) -> TrainState:
    """A network at the start of training, with the intervention's own state in `state.own`.

    Raises:
        ValueError: `state` is not a `TrainState`.
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
    """Apply an intervention after a training step.

    Args:
        intervention: the intervention; its own state is in `state.own`.
        setting: model, optimizer and loss of the step.
        state: state after the step.
        observed: what the step observed.
        key: random key of its draws.
        step: number of the step.

    Returns:
        The state after the intervention, and its report.

    Raises:
        ValueError: a state that is not a `TrainState` or has not been started, or no key.
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
    """Refuse a state without the intervention's own state; interventions without a state of their own pass."""
    own = jax.eval_shape(lambda state: intervention.init(setting, state), state)
    if jax.tree.structure(own) != jax.tree.structure(()):
        raise ValueError(
            "state.own is empty, and this intervention keeps a state of its own: begin with "
            "start_intervention(intervention, setting, state)"
        )
