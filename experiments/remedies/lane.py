"""Pure functions of one lane: how it starts, and a step with everything that is measured in it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.remedies.methods import Remedy
from experiments.remedies.streams import Bench
from lopjax.model import Variables
from lopjax.training import Drawn, Logs, Setting, TrainState, init_state, intervene, start_intervention, train_step

# A network is also tested on the tasks this many tasks ago.
LAGS = (1, 2, 4)


class Keys(NamedTuple):
    """What a seed decides; every method has the same.

    Attributes:
        init: key for the networks; that of task k is drawn from `fold_in(init, k)`.
        own: key for what a method draws.
        lane: key for the tasks and the order of their examples.
    """

    init: jax.Array
    own: jax.Array
    lane: jax.Array


class Learner(NamedTuple):
    """A network in training.

    Attributes:
        net: its variables, and those of its optimizer and its intervention.
        keys: random keys of its seed.
        setting: which setting of its method it has.
        own_scores: scores on the last tasks when each ended, newest first, `(max(LAGS),)`.
        total: sum of the mean online scores of those records by which settings are compared.
    """

    net: TrainState
    keys: Keys
    setting: jax.Array
    own_scores: jax.Array
    total: jax.Array


class Program(NamedTuple):
    """The pure functions of one method on one stream.

    Attributes:
        start: `(keys, setting) -> Learner`.
        step: `(Learner, drawn, key, index) -> (Learner, logs)`.
    """

    start: Callable[[Keys, jax.Array], Learner]
    step: Callable[[Learner, Drawn, jax.Array, jax.Array], tuple[Learner, Logs]]


def keys_of(seed: jax.Array) -> Keys:
    """The keys of one seed."""
    return Keys(*jax.random.split(jax.random.key(seed, impl="philox4x32"), 3))


def make_program(bench: Bench, remedy: Remedy) -> Program:
    """The functions of a method. The number of a setting is in the lane, so that all settings share one program."""
    bench = bench.with_network(remedy)
    model, table = bench.model, _columns(remedy.settings[bench.base])
    measure = make_measure(bench)

    def setting_of(keys: Keys, number: jax.Array) -> tuple[Setting, Any]:
        numbers = {name: column[number] for name, column in table.items()}
        setting = Setting(model, bench.optimizer(remedy, numbers, keys.own), bench.loss)
        return setting, None if remedy.intervention is None else remedy.intervention({**numbers, "probe": bench.probe})

    def drawn_anew(keys: Keys, number: jax.Array, task: Any) -> TrainState:
        setting, intervention = setting_of(keys, number)
        net = init_state(model.init(jax.random.fold_in(keys.init, task)), setting.optimizer)
        return net if intervention is None else start_intervention(intervention, setting, net)

    def start(keys: Keys, number: jax.Array) -> Learner:
        return Learner(drawn_anew(keys, number, 0), keys, number, jnp.zeros(max(LAGS)), jnp.zeros(()))

    def step(lane: Learner, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[Learner, Logs]:
        setting, intervention = setting_of(lane.keys, lane.setting)
        net, task = lane.net, drawn.task
        if "is_fresh" in table:
            is_new = jnp.asarray(task.is_start) & (index > 0) & table["is_fresh"][lane.setting]
            net = jax.lax.cond(is_new, lambda: drawn_anew(lane.keys, lane.setting, task.index), lambda: net)
        step_key, own_key = jax.random.split(key)
        batch = bench.inputs(drawn.batch[0]), drawn.batch[1]
        # Only a method with dropout draws its numbers.
        rate = table["dropout"][lane.setting] if "dropout" in table else None
        net, observed = train_step(
            model, setting.optimizer, net, batch, step_key, loss=bench.loss, dropout_rate=rate, task=task
        )
        touched, own = jnp.zeros(()), {}
        if intervention is not None:
            net, report = intervene(intervention, setting, net, observed, own_key, index)
            touched = touched + sum(jnp.sum(units) for units in report.touched.values())
            own = {f"own/{name}": value * jnp.ones(()) for name, value in report.logs.items()}
        is_end = (index + 1) % bench.sizes.steps == 0
        key = jax.random.split(lane.keys.lane)[0]  # the key of the stream, as `make_chunk` splits it
        own_scores, logs = jax.lax.cond(
            is_end,
            lambda: measure(net.variables, lane.own_scores, key, task.index),
            lambda: (lane.own_scores, nothing_measured()),
        )
        logs = {"online": bench.score(observed.logits, drawn.batch[1]), "touched": touched, **own, **logs}
        return lane._replace(net=net, own_scores=own_scores), logs

    return Program(start, step)


def make_measure(bench: Bench) -> Callable[[Variables, jax.Array, jax.Array, Any], tuple[jax.Array, Logs]]:
    """What is measured where a task ends, in eval mode.

    Returns:
        `(variables, own_scores, stream_key, task) -> (own_scores, logs)`: `end`, the score on the task's test examples;
        `transfer`, the sum over lags of the score on an earlier task minus what it was when that task ended, and
        `transfers`, how many lags there are. All are multiplied by the steps of a task: the logs of a chunk of whole
        tasks are means over its steps, and become means over its tasks.
    """
    lags = jnp.array([0, *LAGS])

    def measure(
        variables: Variables, own_scores: jax.Array, key: jax.Array, task: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        def score(lag: jax.Array) -> jax.Array:
            stored, labels = bench.test(bench.test_data, key, jnp.maximum(task - lag, 0))
            return bench.score(bench.model.apply(variables, bench.inputs(stored)).logits, labels)

        scores = jax.lax.map(score, lags)
        is_there = lags[1:] <= task
        changes = jnp.where(is_there, scores[1:] - own_scores[lags[1:] - 1], 0)
        scored = {"end": scores[0], "transfer": jnp.sum(changes), "transfers": jnp.sum(is_there) * 1.0}
        logs = {name: (value * bench.sizes.steps).astype(own_scores.dtype) for name, value in scored.items()}
        return jnp.concatenate([scores[:1].astype(own_scores.dtype), own_scores[:-1]]), logs

    return measure


def nothing_measured() -> Logs:
    """The logs of a step at which no task ends."""
    return dict.fromkeys(("end", "transfer", "transfers"), jnp.zeros(()))


def _columns(settings: tuple[Mapping[str, Any], ...]) -> dict[str, jax.Array]:
    """Every number of the settings as an array over them."""
    return {name: jnp.array([setting[name] for setting in settings]) for name in settings[0]}
