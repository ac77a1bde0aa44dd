"""The pieces of PPO against sums and loops in NumPy, closed forms, and what each would be if it were wrong."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.control.__main__ import main
from experiments.control.methods import FRESH, METHODS, PLAIN, groups_of
from experiments.control.network import actor_critic
from experiments.control.ppo import (
    Experience,
    clipped_surrogate,
    deviation,
    gae,
    normalised,
    ppo_loss,
    start_moments,
    update_moments,
)
from experiments.control.report import cells, summarise, title
from lopjax.losses import check_batch
from lopjax.models.check import check_labels
from lopjax.runs import RunData

STEPS, ENVS, DISCOUNT, DECAY = 12, 3, 0.9, 0.8
RANDOM = np.random.default_rng(0)


def by_its_definition(rewards, values, nexts, terminated, truncated):
    """The sum over all later steps of the episode, step by step."""
    found = np.zeros_like(rewards)
    for env in range(ENVS):
        for first in range(STEPS):
            weight = 1.0
            for step in range(first, STEPS):
                bootstrap = 0.0 if terminated[step, env] else DISCOUNT * nexts[step, env]
                found[first, env] += weight * (rewards[step, env] + bootstrap - values[step, env])
                if terminated[step, env] or truncated[step, env]:
                    break
                weight *= DISCOUNT * DECAY
    return found


def test_advantages_are_the_sums_that_define_them():
    """Terminations do not bootstrap, limits of time and the end of the batch do; taking one for the other shows."""
    rewards, values, nexts = RANDOM.normal(size=(3, STEPS, ENVS))
    ends = RANDOM.random((2, STEPS, ENVS)) < 0.2
    terminated, truncated = ends[0], ends[1] & ~ends[0]
    truncated[5, 0], terminated[5, 0] = True, False
    found = jax.jit(gae)(rewards, values, nexts, terminated, truncated, DISCOUNT, DECAY)
    expected = by_its_definition(rewards, values, nexts, terminated, truncated)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    conflated = by_its_definition(rewards, values, nexts, terminated | truncated, np.zeros_like(truncated))
    assert abs(conflated - expected).max() > 0.1
    nexts[-1] += 1  # the value of the last state is used wherever no termination cuts it off
    shifted = by_its_definition(rewards, values, nexts, terminated, truncated)
    np.testing.assert_allclose(shifted[-1] - expected[-1], DISCOUNT * ~terminated[-1])


def test_running_moments_are_those_of_all_samples():
    """In float32 beside a mean a thousand times the deviation, where sums of squares have lost all digits."""
    samples = (1e3 + RANDOM.normal(size=(900, 2)) * [1.0, 0.1]).astype(np.float32)
    moments, update = start_moments((2,)), jax.jit(update_moments)
    for part in np.split(samples, 9):
        moments = update(moments, part)
    exact = samples.astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(deviation(moments), exact.std(axis=0), rtol=2e-3)
    naive = (samples**2).mean(axis=0) - samples.mean(axis=0) ** 2
    assert abs(np.sqrt(np.maximum(naive, 0)) / exact.std(axis=0) - 1).max() > 0.02
    assert deviation(start_moments((2,))).tolist() == [1, 1]
    assert float(normalised(moments, exact[0] + 1e6)[0]) == 10.0


def test_the_clipped_objective_by_its_four_cases():
    ratio, advantage = jnp.array([1.5, 0.5, 1.5, 0.5, 1.1]), jnp.array([1.0, 1.0, -1.0, -1.0, 2.0])
    np.testing.assert_allclose(clipped_surrogate(ratio, advantage, 0.2), [1.2, 0.5, -1.5, -0.8, 2.2], rtol=1e-6)
    slopes = jax.vmap(jax.grad(clipped_surrogate), in_axes=(0, 0, None))(ratio, advantage, 0.2)
    np.testing.assert_allclose(slopes, [0, 1, -1, 0, 2], atol=1e-7)


def test_at_a_ratio_of_one_the_gradient_is_that_of_the_policy():
    """By hand: (pi - onehot) A / N for the logits, the error for the value; beyond the clip there is none."""
    outputs = RANDOM.normal(size=(5, 4)).astype(np.float32)
    policy = np.exp(outputs[:, :3]) / np.exp(outputs[:, :3]).sum(axis=1, keepdims=True)
    action, advantage = RANDOM.integers(0, 3, 5), RANDOM.normal(size=5).astype(np.float32)
    log_prob = np.log(policy[np.arange(5), action])
    seen = Experience(*map(jnp.asarray, (action, log_prob, advantage, np.zeros(5, np.float32))))
    gradient = jax.jit(jax.grad(ppo_loss(0.2, 0.5, 0.0)))
    found = gradient(jnp.asarray(outputs), seen)
    np.testing.assert_allclose(found[:, :3], (policy - np.eye(3)[action]) * advantage[:, None] / 5, atol=1e-6)
    np.testing.assert_allclose(found[:, 3], 0.5 * outputs[:, 3] / 5, atol=1e-6)
    far = seen._replace(log_prob=seen.log_prob - jnp.sign(seen.advantage))
    assert float(abs(gradient(jnp.asarray(outputs), far)[:, :3]).max()) == 0.0


def test_policy_and_value_have_nothing_in_common():
    """The labels hold, and an error of the value moves nothing of the policy."""
    model = actor_critic(3, (4, 3), 2)
    inputs = jnp.asarray(RANDOM.normal(size=(7, 3)).astype(np.float32))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    variables = jax.tree.map(lambda leaf: jnp.asarray(RANDOM.normal(size=leaf.shape).astype(np.float32)), shapes)
    labels = Experience(jnp.zeros(7, int), jnp.zeros(7), jnp.zeros(7), jnp.ones(7))
    check_labels(model, variables, inputs)
    check_batch(model, variables, (inputs, labels), loss=ppo_loss(0.2, 1.0, 0.0))
    with pytest.raises(ValueError, match="one label per input"):
        check_batch(model, variables, (inputs, jax.tree.map(lambda a: a[:3], labels)), loss=ppo_loss(0.2, 1.0, 0.0))
    loss = ppo_loss(0.2, 1.0, 0.0)
    value_only = jax.jit(jax.grad(lambda v: loss(model.apply(v, inputs).logits, labels)))(variables)
    moved = {name: bool(jnp.any(layer["kernel"] != 0)) for name, layer in value_only["params"].items()}
    assert moved == {name: name.startswith("value") for name in moved}
    assert model.wiring.cloneable == ("policy_0", "policy_1", "value_0", "value_1")


def test_methods_share_programs_and_each_has_its_own_numbers():
    numbers = {"l2_init": 0.1, "noise_scale": 0.2}
    groups = groups_of(tuple(METHODS), (0, 1), numbers, has_fresh=True)
    assert groups[0].methods == (FRESH, PLAIN, "l2_init")
    assert groups[0].traced["l2_init"] == (0.0,) * 4 + (0.1,) * 2
    assert groups[0].traced["is_fresh"] == (True,) * 2 + (False,) * 4
    assert all(group.constants["l2_init"] == 0.0 and not group.constants["is_fresh"] for group in groups[1:])


def test_without_gymnax_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("experiments.control.environments.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["--root", str(tmp_path)])
    assert ended.value.code == 2
    assert 'gymnax is not installed: pip install -e ".[rl]" has it' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def run_of(drift="gravity"):
    """A run of four tasks: plain falls from the fresh network's return to half of it, L2-init stays level."""
    records = []
    for method, last in (("fresh", 100.0), ("plain", 50.0), ("l2_init", 100.0)):
        for seed in range(3):
            for task, online in enumerate([100.0, *np.linspace(100.0, last, 4)]):
                score = online + 0.1 * RANDOM.normal()
                where = {"problem": "cartpole", "method": method, "seed": seed, "step": task, "score": score}
                symptoms = {f"probe/{name}_fraction/mean": 0.1 for name in ("dead", "duplicate")}
                events = {f"units/{name}": 2.0 for name in ("died", "revived", "cloned", "freed", "reset")}
                found = dict.fromkeys(("clones_found", "clones_certified", "dead_found", "dead_certified"), 1)
                logs = {"episodes": 2.0, "returns": 2 * score} if task else {}
                records.append(
                    {**where, **logs, "probe/effective_rank/mean": 5.0 - task, **symptoms, **events, **found}
                )
    sizes = {"num_tasks": 4 if drift != "none" else 1, "records_per_task": 1 if drift != "none" else 4, "drift": drift}
    config = {"problems": ["cartpole"], "methods": ["l2_init"], "seeds": [0, 1, 2], "fresh": True, "episodes": 8}
    return RunData(Path(), {**config, "cartpole": sizes}, records, None, "control")


def test_the_report_names_what_was_lost_and_what_was_reached():
    rows = {row["method"]: row for row in summarise(run_of())}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "fresh": "reference",
        "plain": "lost",
        "l2_init": "kept",
    }
    mean, low, high = rows["plain"]["late_less_early"]
    assert low < mean < high
    assert mean == pytest.approx(np.mean([66.67, 50.0]) - 100.0, abs=0.3)
    assert rows["plain"]["effective_rank"] == [5.0, 1.0]
    assert rows["plain"]["died"] == 10.0
    assert cells(rows["plain"])[0] == "plain"
    alone = run_of("none")
    row = next(row for row in summarise(alone) if row["method"] == "plain")
    assert row["score"][0] == pytest.approx(50.0, abs=0.3)
    assert row["verdict"] == "-"
    assert any("level 475 not reached: " in line for line in title(alone))
