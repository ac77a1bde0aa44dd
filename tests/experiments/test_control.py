"""Control with the environments of gymnax: one step against gymnasium's NumPy, drift, ends of episodes, learning."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gymnax", reason="the environments need gymnax, which the extra `rl` installs")

from experiments.control import EXPERIMENT
from experiments.control.__main__ import main
from experiments.control.config import PRESETS, ProblemConfig
from experiments.control.environments import DRIFTS, NAMES, make_world
from experiments.control.lane import keys_of, make_newborn, make_program
from experiments.control.measurements import make_evaluate
from experiments.control.setup import build
from experiments.kit.methods import Group, Lane
from lopjax.training import make_chunk, no_stream, over_lanes, start_lanes

# Names of the drifting parameter in gymnasium, and ranges of its states.
GYMNASIUM = {"cartpole": "gravity", "acrobot": "LINK_LENGTH_1", "mountain_car": "gravity"}
STATES = {
    "cartpole": ([-2.4, -2.0, -0.21, -2.0], [2.4, 2.0, 0.21, 2.0]),
    "acrobot": ([-3.1, -3.1, -4.0, -9.0], [3.1, 3.1, 4.0, 9.0]),
    "mountain_car": ([-1.2, -0.07], [0.6, 0.07]),
}
FIELDS = {
    "cartpole": ("x", "x_dot", "theta", "theta_dot"),
    "acrobot": ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2"),
    "mountain_car": ("position", "velocity"),
}
SAMPLES = 40


@pytest.mark.parametrize("name", NAMES)
def test_one_step_is_that_of_gymnasium(name, x64):
    """From random states, with random actions and a drifted parameter, in float64; another parameter is seen."""
    gymnasium = pytest.importorskip("gymnasium", reason="NumPy's environments, which the extra `rl` installs")
    random, low_high = np.random.default_rng(0), STATES[name]
    states = random.uniform(*low_high, size=(SAMPLES, len(low_high[0])))
    drift = next(drift for (own, _), drift in DRIFTS.items() if own == name)
    env = gymnasium.make(NAMES[name]).unwrapped
    value = (drift.low * drift.high) ** 0.5 * 1.1
    setattr(env, GYMNASIUM[name], value)
    expected, rewards, ends = [], [], []
    world = make_world(name, ProblemConfig())
    actions = random.integers(0, world.num_actions, SAMPLES)
    for state, action in zip(states, actions):
        env.reset(seed=0)
        env.state = state.copy()
        observation, reward, terminated, *_ = env.step(int(action))
        expected.append(observation)
        rewards.append(reward)
        ends.append(terminated)

    @jax.jit
    def step(changed):
        physics = world.physics(jax.random.key(0), jnp.int32(0))
        physics = physics._replace(params=physics.params.replace(**{drift.parameter: changed}))
        _, like = world.reset(jax.random.key(0), physics)

        def one(state, action):
            own = like.replace(**{field: state[place] for place, field in enumerate(FIELDS[name])})
            return world.step(jax.random.key(0), own, action, physics)

        move = jax.vmap(one)(jnp.asarray(states), jnp.asarray(actions))
        return move.final, move.reward, move.terminated

    final, reward, terminated = step(value)
    assert final.dtype == jnp.float64
    np.testing.assert_allclose(final, np.array(expected), atol=1e-6)  # gymnasium's observations are float32
    np.testing.assert_array_equal(terminated, ends)
    np.testing.assert_array_equal(reward, rewards)
    assert float(abs(step(0.9 * value)[0] - np.array(expected)).max()) > 1e-5


def test_limits_of_time_truncate_and_falls_terminate():
    world = make_world("cartpole", ProblemConfig(horizon=3))
    physics = world.physics(jax.random.key(0), jnp.int32(0))
    step = jax.jit(lambda state, key: world.step(key, state, jnp.int32(1), physics))
    _, state = world.reset(jax.random.key(1), physics)
    for time in range(3):
        move = step(state, jax.random.key(time))
        state, (terminated, truncated) = move.state, (bool(move.terminated), bool(move.truncated))
        assert (terminated, truncated) == (False, time == 2)
    assert int(state.time) == 0  # a new episode has begun, and what the step led to is kept apart
    assert float(abs(move.final - move.observation).max()) > 0.1
    falling = state.replace(theta=jnp.float32(0.2), theta_dot=jnp.float32(3.0), time=jnp.int32(2))
    move = step(falling, jax.random.key(0))
    assert (bool(move.terminated), bool(move.truncated)) == (True, False)


@pytest.mark.parametrize(("name", "kind"), [*DRIFTS, ("cartpole", "offset"), ("cartpole", "none")])
def test_drift_enters_and_is_decided_by_key_and_task(name, kind):
    world = make_world(name, ProblemConfig(drift=kind, offset=2.0))
    tasks = jax.jit(jax.vmap(world.physics, in_axes=(None, 0)))(jax.random.key(3), jnp.arange(40))
    again = world.physics(jax.random.key(3), jnp.int32(7))
    if (name, kind) in DRIFTS:
        drift, own = DRIFTS[name, kind], make_world(name, ProblemConfig()).physics(jax.random.key(3), jnp.int32(0))
        values = np.asarray(getattr(tasks.params, drift.parameter))
        assert values[0] == np.float32(getattr(own.params, drift.parameter))
        assert len(set(values)) == 40
        assert (values[1:] >= drift.low).all()
        assert (values[1:] <= drift.high).all()
        # Uniform in the logarithm: half of the tasks lie on either side of the geometric mean.
        assert 10 <= (values[1:] > (drift.low * drift.high) ** 0.5).sum() <= 30
        np.testing.assert_allclose(getattr(again.params, drift.parameter), values[7], rtol=1e-6)
    offsets = np.abs(tasks.offset)
    assert (offsets[0] == 0).all()
    assert bool((offsets[1:] > 0).all()) == (kind == "offset")
    assert offsets.max() <= 2.0
    moved, state = world.reset(jax.random.key(0), again)
    plain, _ = world.reset(jax.random.key(0), again._replace(offset=jnp.zeros_like(again.offset)))
    np.testing.assert_allclose(moved - plain, again.offset, atol=1e-6)
    move = world.step(jax.random.key(0), state, jnp.int32(0), again)
    bare = world.step(jax.random.key(0), state, jnp.int32(0), again._replace(offset=jnp.zeros_like(again.offset)))
    np.testing.assert_allclose(move.final - bare.final, again.offset, atol=1e-6)


SMALL = ProblemConfig(
    drift="gravity", num_tasks=2, iterations=2, num_envs=2, num_steps=4, epochs=1, minibatches=2, widths=(3,)
)
CONFIG = dataclasses.replace(PRESETS["quick"], methods=(), cartpole=SMALL, probe_samples=8, seeds=(0, 1))


@pytest.mark.parametrize(
    "methods",
    [
        ("l2_init", "noise", "redo", "continual_backprop", "self_normalized_resets"),
        # Tracing the controller's rungs takes long.
        pytest.param(("recovery",), marks=pytest.mark.slow),
    ],
)
def test_a_step_keeps_the_structure_of_every_method(methods):
    """Traced, not run: what is carried has the same shapes and types after an iteration."""
    bench = build(dataclasses.replace(CONFIG, methods=methods)).benches["cartpole"]
    newborn, key = jax.eval_shape(lambda: (make_newborn(bench)(jnp.int32(0), jnp.int32(0)), keys_of(jnp.int32(0))[1]))
    assert {name for group in bench.groups for name in group.methods} == {"fresh", "plain", *methods}
    for group in bench.groups:
        program = make_program(bench, group)
        numbers = {name: jnp.array(values[0]) for name, values in group.traced.items()}
        agent = jax.eval_shape(program.start, newborn, numbers)
        after, _ = jax.eval_shape(program.step, agent, None, key, jnp.int32(0))
        same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, after, agent)
        assert all(jax.tree.leaves(same)), group.methods
        assert jax.tree.structure(after) == jax.tree.structure(agent)


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_task_can_begin_with_new_moments_of_observations_and_the_old_network(is_restarted):
    """Only the moments of the observations are new, and only if asked for; the scale of rewards and the net stay."""
    problem = dataclasses.replace(SMALL, drift="offset", restart_normaliser=is_restarted)
    bench = build(dataclasses.replace(CONFIG, cartpole=problem)).benches["cartpole"]
    program = make_program(bench, bench.groups[0])

    def filled(value, is_fresh):
        """An agent of which every number is this one."""
        like = jax.eval_shape(
            lambda: program.start(make_newborn(bench)(jnp.int32(0), jnp.int32(0)), {"is_fresh": jnp.bool_(False)})
        )
        key = jax.random.key(value, impl="philox4x32")
        is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(like)]
        leaves = [
            key if own else jnp.full(leaf.shape, value, leaf.dtype) for own, leaf in zip(is_key, jax.tree.leaves(like))
        ]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)._replace(numbers={"is_fresh": jnp.bool_(is_fresh)})

    def values(tree):
        return {float(jnp.max(leaf)) for leaf in jax.tree.leaves(tree)}

    for is_fresh in (False, True):
        agent = program.begin(filled(1, is_fresh), filled(2, is_fresh))
        assert values(agent.play) == {2}
        assert values(agent.net) == values(agent.rewards) == {2 if is_fresh else 1}
        assert values(agent.moments) == {2 if is_fresh or is_restarted else 1}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": (0, 0)}, "seeds"),
        ({"episodes": 0}, "episodes=0: must be at least 1"),
        ({"percentile": 2.0}, r"percentile=2\.0: must be in \[0, 1\)"),
        ({"redo_threshold": -1.0}, r"redo_threshold=-1\.0: must be non-negative and finite"),
        ({"cartpole": dataclasses.replace(SMALL, learning_rate=0.0)}, r"cartpole\.learning_rate=0\.0: must be"),
        ({"cartpole": dataclasses.replace(SMALL, minibatches=3)}, r"cartpole\.minibatches=3: must be a divisor of 8"),
        ({"cartpole": dataclasses.replace(SMALL, drift="link_length")}, r"cartpole\.drift='link_length': must be one"),
        ({"cartpole": dataclasses.replace(SMALL, discount=1.5)}, r"cartpole\.discount=1\.5: must be in \[0, 1\]"),
        ({"cartpole": dataclasses.replace(SMALL, iterations=0)}, r"cartpole\.iterations=0: must be at least 1"),
    ],
)
def test_bad_configs_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        build(dataclasses.replace(CONFIG, **changed))


def test_the_experiment_is_found_by_its_name():
    assert EXPERIMENT.name == Path(__file__).stem.removeprefix("test_")


@pytest.mark.slow
def test_it_learns_to_balance_and_without_a_learning_rate_it_does_not():
    """Two lanes of one program that differ in the learning rate alone; 25,000 steps each."""
    bench = build(dataclasses.replace(PRESETS["stationary"], problems=("cartpole",), seeds=(0, 1))).benches["cartpole"]
    (group,) = bench.groups
    constants = {name: value for name, value in group.constants.items() if name != "learning_rate"}
    lanes = tuple(Lane("plain", (), 0) for _ in range(2))
    program = make_program(bench, Group(lanes, constants, {"learning_rate": (2e-3, 0.0)}))
    newborn = over_lanes(make_newborn(bench), 1, is_batched=True)(jnp.zeros(2, int), jnp.int32(0))
    agents = over_lanes(program.start, 2, is_batched=True)(newborn, {"learning_rate": jnp.array([2e-3, 0.0])})
    keys = jax.vmap(lambda seed: keys_of(seed)[1])(jnp.zeros(2, int))
    chunk = make_chunk(program.step, no_stream(), is_batched=True)
    lanes, logs = chunk(start_lanes(agents), keys, 0, 50, ())
    evaluate = over_lanes(make_evaluate(bench, 16), 4, is_batched=True)
    net, tasks = lanes.state.net.variables, lanes.state.keys.tasks
    scores = evaluate(net, lanes.state.moments, tasks, keys, jnp.int32(0))
    assert float(scores[0]) > 300
    assert float(scores[1]) < 100
    assert bool(jnp.isfinite(logs["loss"]).all())


@pytest.mark.slow
def test_a_run_of_two_tasks_from_end_to_end(tmp_path):
    """On one network the first task is the same for the fresh agent and the plain one, the second is not."""
    flags = ["--seeds", "0", "1", "--probe-samples", "8", "--episodes", "2", "--methods", "redo", "--reset-every", "1"]
    flags += ["--cartpole.num-tasks", "2", "--cartpole.iterations", "2", "--cartpole.num-envs", "2"]
    flags += ["--cartpole.num-steps", "8", "--cartpole.minibatches", "2", "--cartpole.widths", "3"]
    main([*flags, "--root", str(tmp_path)])
    folder = tmp_path / "control" / "quick"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 3 * 2 * 3
    of = {(row["method"], row["seed"], row["iteration"]): row for row in records}
    for seed in (0, 1):
        fresh, plain = ([of[method, seed, step]["loss"] for step in (2, 4)] for method in ("fresh", "plain"))
        assert fresh[0] == plain[0]
        assert fresh[1] != plain[1]
    assert sum(row["units/reset"] for row in records if row["method"] == "redo") > 0
    assert {row["method"] for row in json.loads((folder / "summary.json").read_text())} == {"fresh", "plain", "redo"}
    for name in ("control.png", "table.md"):
        assert (folder / name).exists()
