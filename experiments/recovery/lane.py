"""Pure functions of one lane: what acts on it is a number, so that all methods and their strengths are one program."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.recovery.config import Config
from lopjax.detection import Status, pair_r2, symptoms_of, unit_nearness, unit_status
from lopjax.interventions.reasons import CHANGED, NOT_ITS_STEP
from lopjax.losses import accuracy, mean_cross_entropy
from lopjax.model import Model, Variables
from lopjax.recovery import Strengths, pull_to_start, recovery_controller
from lopjax.signals import Observed
from lopjax.training import (
    Drawn,
    Intervention,
    Logs,
    Report,
    Setting,
    TrainState,
    init_state,
    intervene,
    start_intervention,
    train_step,
)

METHODS = ("nothing", "fresh", "noise", "shrink_and_perturb", "controller")
LADDER = ("wake_dead_units", "shrink_and_perturb")


class Cost(NamedTuple):
    """What a method has cost a lane so far.

    Attributes:
        actions: how often it changed the network.
        change: sum of `|change of parameters| / |parameters|`.
        jump: largest relative rise of the loss of a batch by an action.
    """

    actions: jax.Array
    change: jax.Array
    jump: jax.Array


class Trainee(NamedTuple):
    """One lane: a network, its method's number and strength, and what that has cost."""

    net: TrainState
    method: jax.Array
    strength: jax.Array
    cost: Cost


class Program(NamedTuple):
    """The pure functions of all lanes."""

    start: Callable[[Variables, jax.Array, jax.Array], Trainee]
    step: Callable[[Trainee, Drawn, jax.Array, jax.Array], tuple[Trainee, Logs]]
    measure: Callable[[Trainee], Logs]


def make_program(config: Config, model: Model, probe: tuple[Any, Any]) -> Program:
    """The functions of a run."""
    optimizer = optax.adam(config.adam_learning_rate)
    setting = Setting(model, optimizer, mean_cross_entropy)
    batch = jax.tree.map(jnp.asarray, probe)

    def acting(lane: Trainee) -> Intervention:
        every = config.steps
        controller = recovery_controller(
            LADDER,
            probe=batch,
            every=config.look_every,
            cool_down=config.cool_down,
            on={"rank_collapse": config.rank_on},
            off={"rank_collapse": config.rank_off},
            budget_change=10.0,
            budget_every=config.steps,
            strengths=Strengths(shrink=config.controller_shrink),
        )
        single = pull_to_start(lane.strength, every)
        return one_of((still(), fresh(), noise(lane.strength), single, controller), lane.method)

    def start(variables: Variables, method: jax.Array, strength: jax.Array) -> Trainee:
        nothing = jnp.zeros(())
        lane = Trainee(init_state(variables, optimizer), method, strength, Cost(jnp.int32(0), nothing, nothing))
        return lane._replace(net=start_intervention(acting(lane), setting, lane.net))

    def step(lane: Trainee, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[Trainee, Logs]:
        before = jax.lax.cond(
            (lane.method == METHODS.index("fresh")) & drawn.task.is_start & (index > 0),
            lambda net: init_state(model.init(jax.random.fold_in(key, 1)), optimizer)._replace(own=net.own),
            lambda net: net,
            lane.net,
        )
        net, seen = train_step(model, optimizer, before, drawn.batch, task=drawn.task)
        acted, report = intervene(acting(lane), setting, net, seen, key, index)
        cost = jax.lax.cond(
            report.reason == CHANGED, lambda: _added(lane.cost, model, net, acted, drawn.batch), lambda: lane.cost
        )
        logs = {"online_accuracy": accuracy(seen.logits, drawn.batch[1]), "online_loss": seen.loss}
        return lane._replace(net=acted, cost=cost), logs

    def measure(lane: Trainee) -> Logs:
        variables = lane.net.variables
        near = unit_nearness(model, variables, batch)
        status = jnp.concatenate([unit_status(one) for one in near.values()])
        shares = [jnp.mean(status == kind, dtype=float) for kind in (Status.NEAR_CLONE, Status.DEAD, Status.SATURATED)]
        closest = jnp.mean(jnp.concatenate([one.activations.distance for one in near.values()]) < 0.1)
        logits = model.apply(variables, batch[0]).logits
        return {
            "near_clones": shares[0],
            "dead": shares[1],
            "saturated": shares[2],
            "within_ten_percent": closest,
            "pair_r2": pair_r2(near),
            "rank": jnp.asarray(symptoms_of(model, variables, near, batch[0]).effective_rank),
            "weight_norm": optax.tree.norm(variables["params"]),
            "probe_loss": mean_cross_entropy(logits, batch[1]),
            **{name: value for name, value in lane.cost._asdict().items()},
        }

    return Program(start, step, measure)


def _added(cost: Cost, model: Model, before: TrainState, after: TrainState, batch: tuple[Any, Any]) -> Cost:
    """The cost with one more action."""
    old, new = before.variables["params"], after.variables["params"]
    change = optax.tree.norm(optax.tree.sub(new, old)) / optax.tree.norm(old)
    losses = [
        mean_cross_entropy(model.apply(each.variables, batch[0], dropout_rate=0.0).logits, batch[1])
        for each in (before, after)
    ]
    jump = (losses[1] - losses[0]) / jnp.maximum(losses[0], 1e-6)
    return Cost(cost.actions + 1, cost.change + change, jnp.maximum(cost.jump, jump))


# --- Interventions of this experiment --------------------


def still() -> Intervention:
    """Nothing."""
    return Intervention(lambda setting, state: (), lambda setting, own, state, *_: (state, own, _quiet()))


def fresh() -> Intervention:
    """Nothing: the network is drawn anew before the first step of a task, in the step itself."""
    return still()


def noise(scale: jax.Array) -> Intervention:
    """Gaussian noise on every parameter at every step."""

    def apply(setting: Setting, own: Any, state: TrainState, observed: Observed, key: jax.Array, step: Any) -> Any:
        leaves, structure = jax.tree.flatten(state.variables["params"])
        keys = jax.random.split(key, len(leaves))
        noisy = [leaf + scale * jax.random.normal(one, leaf.shape) for leaf, one in zip(leaves, keys, strict=True)]
        variables = {**state.variables, "params": structure.unflatten(noisy)}
        return state._replace(variables=variables), own, Report({}, jnp.int32(CHANGED))

    return Intervention(lambda setting, state: (), apply)


def one_of(methods: Sequence[Intervention], number: jax.Array) -> Intervention:
    """The intervention of a number, by a branch for each; a lane pays for its own alone where lanes take turns."""

    def init(setting: Setting, state: TrainState) -> tuple[Any, ...]:
        return tuple(method.init(setting, state) for method in methods)

    def apply(
        setting: Setting, own: tuple[Any, ...], state: TrainState, observed: Observed, key: jax.Array, step: Any
    ) -> tuple[TrainState, tuple[Any, ...], Report]:
        bare = state._replace(own=())

        def branch(place: int) -> Callable[[], Any]:
            def run() -> Any:
                new, inner, report = methods[place].apply(setting, own[place], bare, observed, key, step)
                return new, (*own[:place], inner, *own[place + 1 :]), jnp.asarray(report.reason, jnp.int32)

            return run

        new, states, reason = jax.lax.switch(number, [branch(place) for place in range(len(methods))])
        return new._replace(own=state.own), states, Report({}, reason)

    return Intervention(init, apply)


def _quiet() -> Report:
    return Report({}, jnp.int32(NOT_ITS_STEP))
