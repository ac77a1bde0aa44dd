"""Pure functions of one lane: how it starts, is cloned, is released, and takes a step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from experiments.cloning.setup import Setup
from experiments.kit.methods import METHODS, OFF, Group
from lopjax.cloning import clone_variables
from lopjax.cloning.quotient import quotient_optimizer
from lopjax.losses import mean_cross_entropy
from lopjax.model import Variables
from lopjax.training import (
    Drawn,
    Intervention,
    Logs,
    Setting,
    TrainState,
    init_state,
    intervene,
    logs_of,
    start_intervention,
    train_step,
)


class Pair(NamedTuple):
    """A base and its clone in training.

    Attributes:
        base: the base network.
        clone: None before cloning.
        quotient: from cloning on, the base trained by the quotient dynamics of the trapped clone: the same loss
            curve, computed on the small network. None unless the clone is to be released.
        noise_key: key for what the method draws.
        numbers: the numbers of the method that differ between the lanes of its program.
    """

    base: TrainState
    clone: TrainState | None
    quotient: TrainState | None
    noise_key: jax.Array
    numbers: Mapping[str, Any]


class Program(NamedTuple):
    """The pure functions of one group of lanes.

    Attributes:
        start: `(variables, noise_key, numbers) -> Pair`, from an initialised base network.
        clone: `Pair -> Pair`, the base cloned.
        release: `(Pair, noise_key, numbers) -> Pair`: lets the networks of another program go on in this one.
        step: `(Pair, drawn, key, index) -> (Pair, logs)`.
    """

    start: Callable[[Variables, jax.Array, Mapping[str, Any]], Pair]
    clone: Callable[[Pair], Pair]
    release: Callable[[Pair, jax.Array, Mapping[str, Any]], Pair]
    step: Callable[[Pair, Drawn, jax.Array, jax.Array], tuple[Pair, Logs]]


def make_program(setup: Setup, group: Group) -> Program:
    """The functions of a group; numbers that all its lanes have in common are constants of the program."""
    config = setup.config
    method = METHODS[group.methods[0]]  # all methods of a fused group have the same optimizer

    def numbers_of(pair: Pair) -> dict[str, Any]:
        return {**group.constants, **pair.numbers}

    def quiet(pair: Pair) -> optax.GradientTransformation:
        """The method without noise, which trains the bases and the quotient."""
        return method.optimizer({**numbers_of(pair), "noise_scale": OFF["noise_scale"]}, None)

    def loud(pair: Pair) -> optax.GradientTransformation:
        return method.optimizer(numbers_of(pair), pair.noise_key)

    def started(pair: Pair, variables: Variables) -> TrainState:
        """A clone at the start of training by the method, its intervention included."""
        state, intervention = init_state(variables, loud(pair)), intervention_of(pair)
        return state if intervention is None else start_intervention(intervention, setting(pair), state)

    def intervention_of(pair: Pair) -> Intervention | None:
        return None if method.intervention is None else method.intervention(numbers_of(pair))

    def setting(pair: Pair) -> Setting:
        return Setting(setup.wide, loud(pair), mean_cross_entropy)

    def start(variables: Variables, noise_key: jax.Array, numbers: Mapping[str, Any]) -> Pair:
        pair = Pair(TrainState(variables, ()), None, None, noise_key, numbers)
        return pair._replace(base=init_state(variables, quiet(pair)))

    def quotient_of(pair: Pair) -> optax.GradientTransformation:
        return quotient_optimizer(quiet(pair), setup.base.wiring, config.factor)

    def clone(pair: Pair) -> Pair:
        variables = clone_variables(pair.base.variables, setup.base.wiring, config.factor)
        quotient = init_state(pair.base.variables, quotient_of(pair)) if config.release_at else None
        return pair._replace(clone=started(pair, variables), quotient=quotient)

    def release(pair: Pair, noise_key: jax.Array, numbers: Mapping[str, Any]) -> Pair:
        assert pair.clone is not None
        variables, pair = pair.clone.variables, pair._replace(noise_key=noise_key, numbers=numbers)
        # Plain SGD has no state that could be lost here.
        return pair._replace(clone=started(pair, variables))

    def step(pair: Pair, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[Pair, Logs]:
        images, labels = drawn.batch
        augment_key, base_key, clone_key = jax.random.split(key, 3)
        batch = setup.preprocess.inputs(images, augment_key if config.augment else None), labels
        rate = numbers_of(pair)["dropout"]
        base, observed = train_step(setup.base, quiet(pair), pair.base, batch, base_key, dropout_rate=rate)
        logs = _named("base", observed)
        if pair.clone is None:
            return pair._replace(base=base), logs
        task, intervention = drawn.task, intervention_of(pair)
        cloned, observed = train_step(
            setup.wide, loud(pair), pair.clone, batch, clone_key, dropout_rate=rate, task=task
        )
        if intervention is not None:
            own_key = jax.random.fold_in(clone_key, 1)
            cloned, _ = intervene(intervention, setting(pair), cloned, observed, own_key, index)
        pair, logs = pair._replace(base=base, clone=cloned), logs | _named("clone", observed)
        if pair.quotient is None:
            return pair, logs
        # What the clone would do if it were still trapped: neither noise nor dropout.
        quotient, observed = train_step(setup.base, quotient_of(pair), pair.quotient, batch, dropout_rate=0.0)
        return pair._replace(quotient=quotient), logs | _named("quotient", observed)

    return Program(start, clone, release, step)


def _named(network: str, observed: Any) -> Logs:
    return {f"{network}/train_{name}": value for name, value in logs_of(observed, "loss", "accuracy").items()}
