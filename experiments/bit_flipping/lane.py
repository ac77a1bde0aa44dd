"""One lane: its state, how it starts, and the library's own step on it, which `fused` has to reproduce."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.bit_flipping.methods import METHODS
from experiments.bit_flipping.rules import RULES, SPACE
from experiments.bit_flipping.setup import Setup, squared_error
from experiments.kit.methods import Group
from lopjax.model import Model
from lopjax.training import (
    Drawn,
    Logs,
    Setting,
    TrainState,
    init_state,
    intervene,
    start_intervention,
    train_step,
)


class Trainee(NamedTuple):
    """A network in training.

    Attributes:
        net: its variables, those of its optimizer and of its rule.
        dead: which units were dead on the probe at the last record; `(0,)` without units.
        noise_key: key for what the optimizer draws.
        numbers: the numbers of the method that differ between the lanes of its program.
    """

    net: TrainState
    dead: jax.Array
    noise_key: jax.Array
    numbers: Mapping[str, Any]


class Program(NamedTuple):
    """What all lanes of a group have in common.

    Attributes:
        model: the network.
        setting: `(numbers, noise_key) -> Setting`.
        numbers_of: `lane's numbers -> all numbers of its method`.
        method: its row of `METHODS`.
    """

    model: Model
    setting: Callable[[Mapping[str, Any], jax.Array], Setting]
    numbers_of: Callable[[Mapping[str, Any]], dict[str, Any]]
    method: Any


def make_program(setup: Setup, group: Group) -> Program:
    """The program of a group; numbers that all its lanes have in common are constants."""
    model, method = setup.model_of(group), METHODS[group.methods[0]]

    def setting(numbers: Mapping[str, Any], noise_key: jax.Array) -> Setting:
        return Setting(model, method.optimizer(numbers, noise_key), squared_error)

    return Program(model, setting, lambda own: {**group.constants, **own}, method)


def start(program: Program, init_key: jax.Array, noise_key: jax.Array, own: Mapping[str, Any]) -> Trainee:
    """A lane at the start of training."""
    numbers = program.numbers_of(own)
    setting = program.setting(numbers, noise_key)
    net = init_state(program.model.init(init_key), setting.optimizer)
    if program.method.rule is not None:
        net = start_intervention(RULES[program.method.rule].intervention(numbers), setting, net)
    width = 0 if program.method.is_linear else program.model.wiring.size(SPACE)
    return Trainee(net, jnp.zeros(width, bool), noise_key, own)


def plain_step(program: Program) -> Callable[[Trainee, Drawn, jax.Array, jax.Array], tuple[Trainee, Logs]]:
    """A step for `lopjax.training.make_chunk`, for methods that do not act between blocks: any network, any optimizer.

    It is what `fused.make_fused_chunk` does faster, and logs the same: `error`, and `replaced` units.
    """
    if program.method.act is not None:
        raise ValueError(f"{program.method.label}: acts between blocks, which a single step does not see")

    def step(lane: Trainee, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[Trainee, Logs]:
        numbers = program.numbers_of(lane.numbers)
        setting = program.setting(numbers, lane.noise_key)
        net, observed = train_step(
            program.model, setting.optimizer, lane.net, drawn.batch, loss=setting.loss, task=drawn.task
        )
        replaced = jnp.int32(0)
        if program.method.rule is not None:
            intervention = RULES[program.method.rule].intervention(numbers)
            net, report = intervene(intervention, setting, net, observed, key, index)
            replaced = jnp.sum(report.touched[SPACE], dtype=jnp.int32)
        return lane._replace(net=net), {"error": observed.loss, "replaced": replaced}

    return step
