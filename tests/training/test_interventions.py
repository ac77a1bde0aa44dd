"""The contract of interventions, by one that re-zeroes the head where a task starts and counts what it has done."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.cloning.config import Config
from experiments.cloning.lane import make_program
from experiments.cloning.setup import build
from experiments.kit.methods import METHODS, Method
from experiments.kit.networks import MLP
from lopjax.losses import mean_cross_entropy
from lopjax.models import mlp
from lopjax.training import (
    Drawn,
    Intervention,
    Report,
    Setting,
    Task,
    epochs,
    init_state,
    intervene,
    logs_of,
    make_chunk,
    start_intervention,
    start_lanes,
    tasks,
    train_step,
)

MODEL, OPTIMIZER = mlp((3,), (4,), 2, activation="tanh"), optax.sgd(0.1)
SETTING = Setting(MODEL, OPTIMIZER, mean_cross_entropy)
GENERATOR = np.random.default_rng(0)
DATA = GENERATOR.normal(size=(12, 3)).astype(np.float32), GENERATOR.integers(0, 2, 12).astype(np.int32)


def zero_head(setting, own, state, observed, key, step):
    """At the start of a task; the update of that step is lost, as the head is zeroed after it."""
    is_start = observed.task.is_start
    params = dict(state.variables["params"])
    params["classes"] = jax.tree.map(lambda leaf: jnp.where(is_start, 0, leaf), params["classes"])
    touched = {"classes": jnp.broadcast_to(is_start, (setting.model.wiring.size("classes"),))}
    state = state._replace(variables={**state.variables, "params": params})
    return state, own + is_start, Report(touched, is_start.astype(jnp.int32))


HEAD = Intervention(lambda setting, state: jnp.int32(0), zero_head, needs_boundaries=True)


@pytest.mark.parametrize("cuts", [(9,), (1, 3, 5)])
def test_it_acts_after_the_update_and_keeps_its_state_in_every_lane(cuts):
    stream = tasks([epochs(*DATA, 4)], 4)  # tasks of four steps

    def step(state, drawn, key, index):
        state, seen = train_step(MODEL, OPTIMIZER, state, drawn.batch, task=drawn.task)
        state, report = intervene(HEAD, SETTING, state, seen, key, index)
        head = jnp.max(jnp.abs(state.variables["params"]["classes"]["kernel"]))
        return state, logs_of(seen, "loss", head=lambda seen: head, reset=lambda seen: report.reason)

    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    start = jax.vmap(lambda key: start_intervention(HEAD, SETTING, init_state(MODEL.init(key), OPTIMIZER)))
    lanes, done, heads = start_lanes(start(keys)), 0, []
    chunk = make_chunk(step, stream)
    for length in cuts:
        lanes, logs = chunk(lanes, keys, done, length, stream.data)
        done += length
        heads.append(np.asarray(logs["head"]))
    np.testing.assert_array_equal(lanes.state.own, [3, 3])  # steps 0, 4 and 8
    np.testing.assert_array_equal(lanes.state.variables["params"]["classes"]["kernel"], 0)
    if cuts[0] == 1:
        np.testing.assert_array_equal(heads[0], 0)  # zeroed by the first step
        assert (heads[1] > 0).all()  # and trained by the next three: the control


@pytest.mark.slow
def test_a_method_of_the_cloning_experiment_may_have_one(monkeypatch):
    """It acts on the clone alone, after every step."""

    def shrink(setting, own, state, observed, key, step):
        params = jax.tree.map(lambda leaf: 0.5 * leaf, state.variables["params"])
        return state._replace(variables={**state.variables, "params": params}), own + 1, Report({}, 1)

    halving = Intervention(lambda setting, state: jnp.int32(0), shrink)
    row = Method("halving", METHODS["sgd"].optimizer, ("learning_rate",), lambda numbers: halving)
    monkeypatch.setitem(METHODS, "halving", row)
    config = Config(dataset="digits", augment=False, net=MLP(widths=(4,), norm="none"), methods=("sgd", "halving"))
    setup = build(config)
    images, labels = setup.test
    examples = jnp.asarray(images[:8]), jnp.asarray(labels[:8])
    batch = Drawn(examples, Task(jnp.int32(0), jnp.bool_(True)))
    pairs = {}
    for group in setup.groups:
        program = make_program(setup, group)
        pair = program.clone(program.start(setup.base.init(jax.random.key(0)), jax.random.key(1), {}))
        pairs[group.methods[0]], _ = program.step(pair, batch, jax.random.key(2), jnp.int32(0))
    plain, halved = pairs["sgd"], pairs["halving"]
    jax.tree.map(np.testing.assert_array_equal, plain.base, halved.base)
    expected = jax.tree.map(lambda leaf: 0.5 * leaf, plain.clone.variables["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), halved.clone.variables["params"], expected)
    assert halved.clone.own == 1
    assert plain.clone.own == ()
