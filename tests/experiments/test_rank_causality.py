"""Rank at a fixed function: what the arms keep and change, how they move, the statistics, and a short run."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.rank_causality.acts import FunctionChangedError, cloned, normals_like, normals_of
from experiments.rank_causality.acts import check_function as check
from experiments.rank_causality.arms import ARMS, DECAY, FREE, MUTE, NONE, ON_LEAF, RANDOM, RANK, RESCALED
from experiments.rank_causality.config import Config, cases_of
from experiments.rank_causality.effects import Cell, counter_example, margin_of, order_told, ratio, verdict
from experiments.rank_causality.figures import figures
from experiments.rank_causality.lane import Learner, make_step, strength_and_reliability
from experiments.rank_causality.mediation import mediate, mediate_pooled
from experiments.rank_causality.parts import parts
from experiments.rank_causality.regularisers import log_participation, rank_penalty, treated
from experiments.rank_causality.report import summarise, table, texts
from experiments.rank_causality.setup import build, true_labels_first
from lopjax.cloning import widen
from lopjax.models import mlp
from lopjax.runs import RunData
from lopjax.training import random_labels

BASE = mlp((5,), (3, 4), 3, activation="tanh")
WIDE = widen(BASE, 2)
# One arm of every act: others differ in how they train.
ACTS = list({ARMS[name].act: name for name in reversed(ARMS) if ARMS[name].act is not None}.values())
RANK_KEPT, RANK_RAISED = ("dead", "split", "cloned", "gauge", "kick_small", "kick"), ("mute",)


def effective_rank_of(h):
    values = np.linalg.svd(h, compute_uv=False)
    shares = values[values > 1e-12 * values[0]] / values.sum()
    return np.exp(-(shares * np.log(shares)).sum())


# --- What is made of a checkpoint --------------------


@pytest.fixture(scope="module")
def acted():
    """Base and arms in float64: logits, activations of both layers, gradient and parameters of each."""
    with jax.enable_x64(True):
        key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (30, 5))
        variables, labels = BASE.init(key), jnp.arange(30) % 3

        def seen(model, params):
            def loss(params):
                output = model.apply({"params": params}, x)
                taps = {site: tap.post for site, tap in output.taps.items()}
                value = optax.softmax_cross_entropy_with_integer_labels(output.logits, labels).mean()
                return value, (output.logits, taps)

            gradient, (logits, taps) = jax.grad(loss, has_aux=True)(params)
            return logits, taps, gradient, params

        def act(name):
            return ARMS[name].act(BASE, variables, key)[1]["params"]

        on_host = {name: act(name) for name in ACTS if ARMS[name].on_host}
        params = jax.jit(lambda: {name: act(name) for name in ACTS if name not in on_host})() | on_host
        found = {}
        for model, is_wide in ((BASE, False), (WIDE, True)):
            names = [name for name in ACTS if ARMS[name].is_wide == is_wide]
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(params[name] for name in names))
            seen_by_all = jax.device_get(jax.jit(jax.vmap(functools.partial(seen, model)))(stacked))
            found |= {name: jax.tree.map(lambda leaf, n=n: leaf[n], seen_by_all) for n, name in enumerate(names)}
        return found


def test_every_arm_keeps_the_outputs_and_a_kick_of_what_comes_in_does_not(acted):
    expected = acted["untouched"][0]
    for name, (logits, *_) in acted.items():
        check(name, logits, expected)
    with jax.enable_x64(True):
        variables = {"params": jax.tree.map(jnp.asarray, acted["untouched"][3])}
        wide, clones = cloned(BASE, variables, jax.random.key(0))
        noise = normals_like(clones["params"], jax.random.key(2))
        kick = normals_of(wide.wiring, clones["params"], "incoming").project(noise)
        params = optax.tree.add_scale(clones["params"], 0.1, kick)
        logits = wide.apply({"params": params}, jax.random.normal(jax.random.key(1), (30, 5))).logits
    with pytest.raises(FunctionChangedError, match="'kicked': changes the logits"):
        check("kicked", np.asarray(logits), expected)
    with pytest.raises(FunctionChangedError):
        check("not finite", expected * np.nan, expected)


def test_clones_keep_the_rank_whatever_is_read_of_them_and_woken_units_raise_it(acted):
    def ranks(name):
        return np.array([effective_rank_of(h) for h in acted[name][1].values()])

    base = ranks("untouched")
    for name in RANK_KEPT:
        np.testing.assert_allclose(ranks(name), base, rtol=1e-9)
    for name in RANK_RAISED:
        assert (ranks(name) > 1.2 * base).all()
    # The random kicks did go somewhere: what is read of two clones differs, by as much as was asked for.
    weights = {name: acted[name][3]["classes"]["kernel"] for name in ("cloned", "kick_small", "kick")}
    small, large = (np.linalg.norm(weights[name] - weights["cloned"]) for name in ("kick_small", "kick"))
    np.testing.assert_allclose(large, 100 * small, rtol=1e-6)


def test_merging_gives_the_checkpoint_back_in_every_bit(acted):
    jax.tree.map(np.testing.assert_array_equal, acted["merged"][3], acted["untouched"][3])


def off_leaf(gradient):
    """Length of what of a gradient moves two clones of a pair differently, pair by pair in NumPy."""
    missed = 0.0
    for name, axes in (("hidden_0", (1,)), ("hidden_1", (0, 1)), ("classes", (0,))):
        for leaf, own in ((gradient[name]["kernel"], axes), (gradient[name]["bias"], (0,) if 1 in axes else ())):
            mean = leaf
            for axis in own:
                swapped = np.moveaxis(mean, axis, 0)
                pairs = swapped.reshape(-1, 2, *swapped.shape[1:]).mean(axis=1)
                mean = np.moveaxis(np.repeat(pairs, 2, axis=0), 0, axis)
            missed += ((leaf - mean) ** 2).sum()
    return missed**0.5


def test_gradients_trap_clones_on_every_leaf_and_dead_units_but_not_split_clones(acted):
    off = {name: off_leaf(acted[name][2]) for name in ("cloned", "gauge", "split")}
    assert max(off["cloned"], off["gauge"]) < 1e-14 < 1e-3 < off["split"]
    assert off_leaf(acted["gauge"][3]) > 0.1  # a gauge kick is a move all the same
    for name, is_dead in (("dead", True), ("mute", False)):
        gradient = acted[name][2]
        read = np.concatenate(
            [gradient["hidden_1"]["kernel"][1::2].ravel(), gradient["classes"]["kernel"][1::2].ravel()]
        )
        assert (not read.any()) == is_dead
        np.testing.assert_array_equal(gradient["hidden_0"]["kernel"][:, 1::2], 0)


# --- How they move --------------------

TINY = Config(
    widths=(3,), seeds=(0, 1), steps=6, records=2, num_images=40, batch_size=10, probe_samples=20,
    arms=("untouched", "merged", "dead", "mute", "split", "woken", "cloned", "woken_on_leaf", "louder", "kick_small",
          "rank", "fresh", "fresh_wide"),
)  # fmt: skip


def numbers_of(confinement, regulariser=NONE, coefficient=0.3):
    return {
        "confinement": jnp.int32(confinement), "regulariser": jnp.int32(regulariser),
        "coefficient": jnp.asarray(coefficient), "loudness": jnp.asarray(1.0),
    }  # fmt: skip


@functools.cache
def trained(num=12):
    """Losses, first and last parameters of wide arms that start and are confined in several ways, in float64."""
    with jax.enable_x64(True):
        bench = build(TINY).benches[cases_of(TINY)[0].name]
        checkpoint, key = bench.model.init(jax.random.key(3)), jax.random.key(4)
        step = make_step(bench, bench.wide, 0.3)
        plan = [
            ("cloned", FREE), ("split", ON_LEAF), ("split", FREE), ("woken", ON_LEAF), ("woken", MUTE), ("dead", FREE),
            ("woken", FREE),
        ]  # fmt: skip
        acts = {name: jax.jit(functools.partial(ARMS[name].act, bench.model)) for name, _ in plan}
        start = {name: jax.jit(lambda name=name: ARMS[name].act(bench.model, checkpoint, key)[1])() for name in acts}
        lanes = [Learner(start[name], numbers_of(kind)) for name, kind in plan]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)

        def run(lane, data):
            def one(lane, index):
                return step(lane, bench.stream.draw(data, key, TINY.steps + index), key, index)

            lane, logs = jax.lax.scan(one, lane, jnp.arange(num))
            return lane.variables["params"], logs["online_loss"]

        last, losses = jax.jit(lambda lanes, data: jax.lax.map(lambda lane: run(lane, data), lanes))(
            stacked, bench.stream.data
        )
        return jax.device_get({
            each: (losses[n], jax.tree.map(lambda leaf, n=n: leaf[n], (stacked.variables["params"], last)))
            for n, each in enumerate(plan)
        })  # fmt: skip


def test_a_kick_of_what_is_read_changes_nothing_on_the_leaf_and_frees_clones_off_it():
    runs = trained()
    cloned_losses, split_losses = runs["cloned", FREE][0], runs["split", FREE][0]
    np.testing.assert_allclose(runs["split", ON_LEAF][0], cloned_losses, rtol=1e-12)
    assert abs(split_losses[-1] - cloned_losses[-1]) > 1e-3


def test_confined_to_the_leaf_both_clones_of_a_pair_move_alike_and_woken_units_do_not_by_themselves():
    for kind, is_alike in ((ON_LEAF, True), (FREE, False)):
        _, (first, last) = trained()["woken", kind]
        moved = (last["hidden_0"]["kernel"] - first["hidden_0"]["kernel"]).reshape(-1, 3, 2)
        assert np.abs(moved).max() > 1e-3
        assert np.allclose(moved[..., 0], moved[..., 1], rtol=0, atol=1e-14) == is_alike


def test_units_that_are_not_listened_to_change_no_loss():
    runs = trained()
    np.testing.assert_allclose(runs["woken", MUTE][0], runs["dead", FREE][0], rtol=1e-12)
    assert np.abs(runs["woken", FREE][0] - runs["dead", FREE][0]).max() > 1e-3
    for name in (("woken", MUTE), ("dead", FREE)):
        np.testing.assert_array_equal(runs[name][1][1]["classes"]["kernel"][1::2], 0)


# --- The regulariser and its controls --------------------


def test_the_penalty_is_the_participation_ratio_of_the_covariance():
    h = np.random.default_rng(0).normal(size=(20, 4)) @ np.diag([3, 1, 0.5, 0.1]) + 2
    values = np.linalg.eigvalsh(np.cov(h.T))
    run = jax.jit(jax.value_and_grad(log_participation))
    np.testing.assert_allclose(run(h.astype(np.float32))[0], np.log(values.sum() ** 2 / (values**2).sum()), rtol=1e-5)
    constant, slope = run(np.ones((20, 4), np.float32))
    assert constant == 0
    assert np.isfinite(slope).all()


def test_the_controls_of_the_regulariser_are_as_long_as_it():
    variables, x = BASE.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (10, 5))
    gradient = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])
    apply = jax.jit(lambda n: treated(BASE, variables, x, gradient, numbers_of(FREE) | n, jax.random.key(2)))
    found = {kind: apply({"regulariser": jnp.int32(kind)}) for kind in (NONE, RANK, RANDOM, DECAY, RESCALED)}
    added = {kind: optax.tree.sub(each, gradient) for kind, each in found.items()}
    push = jax.jit(jax.grad(lambda p: 0.3 * rank_penalty(BASE, {"params": p}, x)))(variables["params"])
    length = optax.tree.norm(push)
    assert optax.tree.norm(added[NONE]) == 0
    for kind in (RANK, RANDOM, DECAY):
        np.testing.assert_allclose(optax.tree.norm(added[kind]), length, rtol=1e-4)
    cosines = {k: optax.tree.vdot(added[k], push) / length**2 for k in (RANK, RANDOM, DECAY)}
    assert cosines[RANK] > 0.999 > 0.9 > max(abs(cosines[RANDOM]), abs(cosines[DECAY]))
    assert optax.tree.vdot(added[DECAY], variables["params"]) > 0.999 * length * optax.tree.norm(variables["params"])
    np.testing.assert_allclose(optax.tree.norm(found[RESCALED]), optax.tree.norm(found[RANK]), rtol=1e-5)
    np.testing.assert_allclose(
        optax.tree.vdot(found[RESCALED], gradient),
        optax.tree.norm(found[RESCALED]) * optax.tree.norm(gradient),
        rtol=1e-5,
    )


def test_readiness_is_the_gain_of_the_best_step_on_a_quadratic_loss():
    rng, curvature = np.random.default_rng(1), 3.0
    point, noise = rng.normal(size=4), rng.normal(size=(8, 4))
    gradients = curvature * point + noise - noise.mean(axis=0)
    strength, reliability = strength_and_reliability({"p": jnp.asarray(gradients)})
    rates = np.linspace(0, 1, 2001)[:, None, None]
    losses = curvature / 2 * ((point - rates * gradients) ** 2).sum(axis=-1).mean(axis=-1)
    gain = curvature / 2 * (point**2).sum() - losses.min()
    np.testing.assert_allclose(float(strength * reliability) / (2 * curvature), gain, rtol=1e-4)
    assert float(strength_and_reliability({"p": jnp.asarray([[1.0, 0], [-1.0, 0]])})[1]) == 0


def test_the_first_of_the_tasks_has_the_true_labels():
    images, labels = np.zeros((50, 2, 2, 1), np.uint8), np.arange(50) % 10
    sequence, plain = true_labels_first(random_labels(images, 10), labels), random_labels(images, 10)
    key = jax.random.key(0)
    np.testing.assert_array_equal(sequence.prepare(sequence.data, key, 0), labels)
    np.testing.assert_array_equal(sequence.prepare(sequence.data, key, 2), plain.prepare(plain.data, key, 2))
    assert (np.asarray(sequence.take(sequence.data, jnp.asarray(labels), jnp.arange(3))[1]) == labels[:3]).all()


# --- Statistics --------------------


def test_mediation_finds_what_was_put_in_and_its_parts_add_up():
    rng, num = np.random.default_rng(0), 400
    seed = rng.normal(size=num)
    m0 = rng.normal(size=num)
    m1 = m0 + 2 + rng.normal(size=num)
    noise = 0.05 * rng.normal(size=(2, num))
    found = mediate(m1, m0, 0.5 + 0.7 * m1 + seed + noise[0], 0.7 * m0 + seed + noise[1])
    indirect = 0.7 * (m1 - m0).mean()
    np.testing.assert_allclose([found.indirect[0], found.direct[0]], [indirect, 0.5], atol=0.02)
    np.testing.assert_allclose(found.total[0], found.indirect[0] + found.direct[0], rtol=1e-12)
    for (estimate, low, high), truth in ((found.indirect, indirect), (found.direct, 0.5)):
        assert low < estimate < high < estimate + 0.3
        assert low - 0.02 < truth < high + 0.02
    # Least squares by another road.
    change, total, sums = m1 - m0, 0.5 + 0.7 * (m1 - m0) + noise[0] - noise[1], m1 + m0
    design = np.stack([np.ones(num), change, sums - sums.mean()], axis=1)
    slope = np.linalg.lstsq(design, total, rcond=None)[0][1]
    np.testing.assert_allclose(found.indirect[0], slope * change.mean(), rtol=1e-8)
    # A mediator that the loss does not hear: nothing goes through it. One that is set with the arm: nothing is known.
    unheard = mediate(m1, m0, 0.5 + seed + noise[0], seed + noise[1])
    assert unheard.indirect[1] < 0 < unheard.indirect[2] < 0.1
    assert np.isnan(mediate(m0 + 1, m0, seed + 1, seed).indirect[0])


def test_pooled_mediation_is_least_squares_with_a_constant_for_every_seed():
    rng, is_free = np.random.default_rng(2), np.array([0, 0, 0, 1, 1, 1])
    m = rng.normal(size=(6, 30)) + np.array([0, 1, 2, 1, 2, 3])[:, None]
    y = 0.4 * is_free[:, None] + 0.6 * m + rng.normal(size=30) + 0.01 * rng.normal(size=(6, 30))
    found = mediate_pooled(is_free, m, y)
    dummies = np.tile(np.eye(30), (6, 1))
    design = np.column_stack([np.repeat(is_free, 30), m.ravel(), dummies])
    direct, slope, *_ = np.linalg.lstsq(design, y.ravel(), rcond=None)[0]
    np.testing.assert_allclose(found.direct[0], direct, rtol=1e-8)
    np.testing.assert_allclose([direct, slope], [0.4, 0.6], atol=0.02)
    np.testing.assert_allclose(found.total[0], (y[3:] - y[:3]).mean(), rtol=1e-8)
    assert found.indirect[1] < 0.6 * (m[3:] - m[:3]).mean() < found.indirect[2] + 0.02
    assert np.isnan(mediate_pooled(is_free, np.repeat(1.0 * is_free[:, None], 30, 1), y).indirect[0])


SPREAD = np.linspace(-1, 1, 20)


@pytest.mark.parametrize(
    ("mean", "deviation", "margin", "said"),
    [
        (0.0, 0.0, 0.1, "exactly none"), (0.01, 0.05, 0.2, "none"), (0.01, 0.05, np.nan, "undecided"),
        (0.1, 0.05, 0.2, "small"), (-0.1, 0.05, 0.2, "small"), (0.5, 0.05, 0.2, "better"), (-0.5, 0.05, 0.2, "worse"),
        (0.01, 2.0, 0.2, "undecided"), (0.3, 0.5, 0.2, "better"), (np.nan, 0.0, 0.2, "diverged"),
    ],
)  # fmt: skip
def test_no_effect_is_said_only_within_a_margin_that_the_positive_control_has_set(mean, deviation, margin, said):
    assert verdict(mean + deviation * SPREAD, margin) == said


def cell(loss, rank, gradient=1.0):
    values = {name: np.ones(20) for name in Cell._fields}
    return Cell(
        **values | {"loss": loss + 0.01 * SPREAD, "rank_start": rank + 0 * SPREAD, "gradient": gradient + 0 * SPREAD}
    )


def test_counter_examples_need_both_halves():
    control, fresh = cell(1.0, 10.0), cell(0.2, 20.0)
    margin = margin_of(fresh, control)
    np.testing.assert_allclose(margin, 0.2)
    assert np.isnan(margin_of(cell(1.0, 20.0), control))
    said = {
        name: counter_example("rank_start", arm, control, margin)
        for name, arm in {
            "raised in vain": cell(1.0, 15.0), "raised and better": cell(0.5, 15.0),
            "better as it was": cell(0.5, 10.0), "as it was": cell(1.0, 10.0), "lower": cell(1.0, 5.0),
        }.items()
    }  # fmt: skip
    assert said.pop("raised in vain") == "not sufficient"
    assert said.pop("better as it was") == "not necessary"
    assert set(said.values()) == {None}
    noisy = cell(1.0, 15.0)._replace(loss=1 - 0.01 * SPREAD)
    assert counter_example("rank_start", noisy, control, margin) == "not sufficient"
    assert counter_example("rank_start", noisy, control, np.nan) is None
    np.testing.assert_allclose(ratio("rank_start", cell(1.0, 15.0), control), 1.5)
    arms = [cell(1.0, 10.0, 1.0), cell(0.5, 10.0 + 1e-7, 2.0), cell(0.1, 12.0, 3.0)]
    assert order_told("gradient", arms).mean == 1
    assert order_told("rank_start", arms).mean < 0.9


# --- Runs --------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"records": 4}, {"learning_rate": 0.0}, {"seeds": (1, 1)}, {"arms": ("split",)}, {"regulariser": float("inf")},
        {"widths": (0,)}, {"probe_samples": 41},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        build(dataclasses.replace(TINY, **changes))


@pytest.mark.slow
def test_a_short_run_from_end_to_end():
    config, records, state = dataclasses.replace(TINY, num_tasks=2), [], None
    for part in parts(config, build(config)):
        state, found = part.do(state)
        assert len(found) == part.num_records
        assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, part.like())
        records += found
    data = RunData(Path(), dataclasses.asdict(config), records, None, "rank_causality")
    rows = summarise(data)
    arms = {row["arm"]: row for row in rows if row["kind"] == "arm" and row["task"] == 1}
    assert set(arms) == set(config.arms)
    assert all(arms[name]["change"] < 1e-5 for name in config.arms if ARMS[name].keeps_function)
    assert arms["fresh"]["change"] > 1e-2
    for name in ("merged", "mute"):
        assert arms[name]["verdict"] == "exactly none"
    drop = arms["dead"]["loss"] - arms["split"]["loss"]
    np.testing.assert_allclose(arms["split"]["gain"][0], drop, rtol=1e-5, atol=1e-7)
    # Its gradient is multiplied: that shows in how far it goes, and not in the norm that is recorded.
    assert arms["louder"]["loss"] != arms["cloned"]["loss"]
    assert arms["louder"]["gradient"] == arms["cloned"]["gradient"]
    # Networks drawn anew are so for every task; others go on.
    for name, goes_on in (("untouched", True), ("fresh", False)):
        (end,) = data.column("effective_rank", method=name, seed=0, task=1, step=config.steps)
        (start,) = data.column("effective_rank", method=name, seed=0, task=2, step=0)
        assert (start == end) == goes_on
    assert {row["rank at the start is"] for row in rows if row["kind"] == "statement"} == {"sufficient", "necessary"}
    assert len(table(data).rows) == 2 * len(config.arms)
    assert "dead units added and woken" in texts(data)["table.md"]
    assert set(figures(data)) == {"effects_random_labels", "curves"}
    assert summarise(data._replace(records=records[:-1])) != rows
