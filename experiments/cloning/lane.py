"""Pure functions of one lane: how it starts, is cloned, is released, and takes a step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax

from experiments.cloning.setup import Setup
from experiments.kit.methods import METHODS, OFF, Group, Method
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


@dataclass(frozen=True)
class _Training:
    """How the networks of a group's pairs are trained; all methods of a fused group have the same optimizer."""

    setup: Setup
    group: Group

    @property
    def method(self) -> Method:
        return METHODS[self.group.methods[0]]

    def numbers(self, pair: Pair) -> dict[str, Any]:
        """The settings of a lane; numbers that all lanes have in common are constants of the program."""
        return {**self.group.constants, **pair.numbers}

    def without_noise(self, pair: Pair) -> optax.GradientTransformation:
        """The optimizer of the bases; the quotient's is made from it."""
        return self.method.optimizer({**self.numbers(pair), "noise_scale": OFF["noise_scale"]}, None)

    def with_noise(self, pair: Pair) -> optax.GradientTransformation:
        """The optimizer of the clones."""
        return self.method.optimizer(self.numbers(pair), pair.noise_key)

    def of_quotient(self, pair: Pair) -> optax.GradientTransformation:
        """The optimizer under which a base network trains as its trapped clone does."""
        return quotient_optimizer(self.without_noise(pair), self.setup.base.wiring, self.setup.config.factor)

    def intervention(self, pair: Pair) -> Intervention | None:
        """What acts on the clone after its optimizer has."""
        return None if self.method.intervention is None else self.method.intervention(self.numbers(pair))

    def setting(self, pair: Pair) -> Setting:
        """The static setting of a clone's intervention."""
        return Setting(self.setup.wide, self.with_noise(pair), mean_cross_entropy)

    def started(self, pair: Pair, variables: Variables) -> TrainState:
        """A clone at the start of training by the method, its intervention included."""
        state, intervention = init_state(variables, self.with_noise(pair)), self.intervention(pair)
        return state if intervention is None else start_intervention(intervention, self.setting(pair), state)


def make_program(setup: Setup, group: Group) -> Program:
    """The functions of a group."""
    config, training = setup.config, _Training(setup, group)

    def start(variables: Variables, noise_key: jax.Array, numbers: Mapping[str, Any]) -> Pair:
        pair = Pair(TrainState(variables, ()), None, None, noise_key, numbers)
        return pair._replace(base=init_state(variables, training.without_noise(pair)))

    def clone(pair: Pair) -> Pair:
        variables = clone_variables(pair.base.variables, setup.base.wiring, config.factor)
        quotient = init_state(pair.base.variables, training.of_quotient(pair)) if config.release_at else None
        return pair._replace(clone=training.started(pair, variables), quotient=quotient)

    def release(pair: Pair, noise_key: jax.Array, numbers: Mapping[str, Any]) -> Pair:
        assert pair.clone is not None
        variables, pair = pair.clone.variables, pair._replace(noise_key=noise_key, numbers=numbers)
        # Plain SGD has no state that could be lost here.
        return pair._replace(clone=training.started(pair, variables))

    def step(pair: Pair, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[Pair, Logs]:
        images, labels = drawn.batch
        augment_key, base_key, clone_key = jax.random.split(key, 3)
        batch = setup.preprocess.inputs(images, augment_key if config.augment else None), labels
        rate = training.numbers(pair)["dropout"]
        optimizer = training.without_noise(pair)
        base, observed = train_step(setup.base, optimizer, pair.base, batch, base_key, dropout_rate=rate)
        logs = _named("base", observed)
        if pair.clone is None:
            return pair._replace(base=base), logs
        task, intervention, optimizer = drawn.task, training.intervention(pair), training.with_noise(pair)
        cloned, observed = train_step(setup.wide, optimizer, pair.clone, batch, clone_key, dropout_rate=rate, task=task)
        if intervention is not None:
            own_key = jax.random.fold_in(clone_key, 1)
            cloned, _ = intervene(intervention, training.setting(pair), cloned, observed, own_key, index)
        pair, logs = pair._replace(base=base, clone=cloned), logs | _named("clone", observed)
        if pair.quotient is None:
            return pair, logs
        # What the clone would do if it were still trapped: neither noise nor dropout.
        quotient, observed = train_step(setup.base, training.of_quotient(pair), pair.quotient, batch, dropout_rate=0.0)
        return pair._replace(quotient=quotient), logs | _named("quotient", observed)

    return Program(start, clone, release, step)


def _named(network: str, observed: Any) -> Logs:
    return {f"{network}/train_{name}": value for name, value in logs_of(observed, "loss", "accuracy").items()}
