"""One program, five lanes: dead units, clones that a kick of 0 cannot free, no symptom, no budget, no jump allowed."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import erfcinv

from lopjax.interventions import REASONS, Setting, intervene, start_intervention
from lopjax.losses import mean_squared_error
from lopjax.models import mlp
from lopjax.recovery import Outcome, Strengths, critical_noise, explain, recovery_controller
from lopjax.stability.blocks import SpaceBlocks, UnitBlocks
from lopjax.training import init_state, train_step

LADDER = ("noise", "wake_dead_units", "shrink_and_perturb")
LANES = ("dead", "clones", "healthy", "poor", "careful")
EVERY, COOL_DOWN, STEPS = 4, 8, 40
RANDOM = np.random.default_rng(0)
INPUTS, TARGETS = RANDOM.normal(size=(24, 3)), RANDOM.normal(size=(24, 2))
MODEL = mlp((3,), (6,), 2, norm="none")


def start(lane):
    """Live units without a near-clone, then the trap of the lane."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.random.default_rng(7).normal(size=leaf.shape), shapes)["params"]
    kernel, bias = params["hidden_0"]["kernel"], params["hidden_0"]["bias"]
    kernel[:], bias[:] = np.random.default_rng(8).normal(size=(3, 6)), 0.5
    if lane in ("dead", "poor"):
        bias[1:5] = -50.0
    if lane in ("clones", "careful"):
        kernel[:, 1:5], params["classes"]["kernel"][1:5] = kernel[:, :1], params["classes"]["kernel"][:1]
    return {"params": params}


@cache
def played(ladder=LADDER, lanes=LANES):
    """The last state and the reports of every lane, all lanes in one vmapped scan."""
    optimizer = optax.sgd(0.01)
    setting = Setting(MODEL, optimizer, mean_squared_error)
    batch = jnp.asarray(INPUTS), jnp.asarray(TARGETS)

    def lane(variables, budget, jump, key):
        controller = recovery_controller(
            ladder,
            probe=batch,
            every=EVERY,
            cool_down=COOL_DOWN,
            on={"rank_collapse": 1.0},
            budget_change=budget,
            max_jump=jump,
            strengths=Strengths(noise=0.0, shrink=0.3),
        )

        def step(state, t):
            state, seen = train_step(MODEL, optimizer, state, batch, loss=mean_squared_error)
            before = mean_squared_error(MODEL.apply(state.variables, batch[0]).logits, batch[1])
            state, report = intervene(controller, setting, state, seen, jax.random.fold_in(key, t), t)
            after = mean_squared_error(MODEL.apply(state.variables, batch[0]).logits, batch[1])
            return state, (report.touched["hidden_0"], report.reason, after - before, report.logs)

        state = start_intervention(controller, setting, init_state(variables, optimizer))
        return jax.lax.scan(step, state, jnp.arange(STEPS, dtype=jnp.int32))

    variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(start(name) for name in lanes))
    budget = jnp.array([0.0 if name == "poor" else 5.0 for name in lanes])
    jump = jnp.array([0.0 if name == "careful" else np.inf for name in lanes])
    state, reports = jax.jit(jax.vmap(lane))(variables, budget, jump, jax.random.split(jax.random.key(1), len(lanes)))
    return jax.device_get((state, reports))


def lane_of(name):
    return jax.tree.map(lambda leaf: leaf[LANES.index(name)], played())


def entries(name):
    log = lane_of(name)[0].own.log
    return [
        (int(step), LADDER[rung], Outcome(int(outcome)).name)
        for step, rung, outcome in zip(log.step, log.rung, log.outcome)
        if step >= 0
    ]


def test_dead_units_are_woken_without_a_jump_of_the_loss_and_the_log_says_so(x64):
    state, (touched, _, jumps, logs) = lane_of("dead")
    assert entries("dead") == [(EVERY - 1, "wake_dead_units", "GONE")]
    np.testing.assert_array_equal(touched[EVERY - 1], [False, True, True, True, True, False])
    assert touched.sum() == 4
    assert np.flatnonzero(logs["kept"]).tolist() == [EVERY - 1]
    assert not logs["undone"].any()
    assert np.flatnonzero(logs["change"]).tolist() == [EVERY - 1]
    assert np.max(np.abs(jumps)) < 1e-12
    (said,) = explain(state.own.log, LADDER)
    assert said.startswith("step 3: dying at 0.667 -> wake_dead_units (dead units drawn anew")
    assert said.endswith(f"the symptom went by step {EVERY - 1 + COOL_DOWN} (0)")


def test_what_does_not_help_is_followed_by_a_higher_rung(x64):
    """A kick of 0 leaves clones where they are: judged after the cool-down; the pull to a fresh draw parts them."""
    first, second = EVERY - 1, EVERY - 1 + COOL_DOWN
    assert entries("clones") == [(first, "noise", "STAYED"), (second, "shrink_and_perturb", "GONE")]
    state, (_, _, jumps, _) = lane_of("clones")
    assert state.own.rung.tolist() == [0, 0, 0, 0]
    assert abs(jumps[second]) > 1e-3  # this one is no free lunch
    assert "loss" in explain(state.own.log, LADDER)[1]


def test_a_healthy_network_is_left_alone(x64):
    state, (touched, reasons, jumps, _) = lane_of("healthy")
    assert entries("healthy") == []
    assert not touched.any()
    assert not jumps.any()
    assert {REASONS[reason] for reason in reasons} == {"this was not one of its steps", "no unit met its condition"}
    assert state.own.actions == 0


def test_what_is_over_the_budget_or_lets_the_loss_jump_is_undone(x64):
    found = entries("poor")
    assert len(found) == (STEPS - EVERY) // COOL_DOWN + 1  # it rests for the cool-down before it asks again
    assert {entry[1:] for entry in found} == {("wake_dead_units", "OVER_BUDGET")}
    careful = entries("careful")
    assert careful[0][1:] == ("noise", "STAYED")
    assert careful[1][1:] == ("shrink_and_perturb", "LOSS_JUMP")
    for name in ("poor", "careful"):
        assert not lane_of(name)[1][2].any()  # no parameter that matters has moved
        assert lane_of(name)[1][3]["undone"].any()
    assert not lane_of("poor")[1][3]["kept"].any()


def test_the_other_rungs_reset_the_dead_and_part_a_pair_of_clones(x64):
    """ReDo wakes all; a kick and FIRE free one pair of five clones, so that the share of near-clones stays."""
    ladder, lanes = ("redo", "kick_and_fire"), ("dead", "clones")
    state, (touched, _, _, logs) = played(ladder, lanes)
    log = state.own.log
    assert [ladder[rung] for rung in log.rung[:, 0]] == ["redo", "kick_and_fire"]
    assert [Outcome(int(one)).name for one in log.outcome[:, 0]] == ["GONE", "STAYED"]
    np.testing.assert_array_equal(touched[0, EVERY - 1], [False, True, True, True, True, False])
    incoming, outgoing = (state.variables["params"][name]["kernel"][1] for name in ("hidden_0", "classes"))
    assert np.ptp(outgoing[:2], axis=0).max() > 1e-3
    assert np.ptp(incoming[:, :2], axis=1).max() > 1e-4  # and gradient descent then parts what comes in
    assert np.ptp(outgoing[2:5], axis=0).max() < 1e-12
    assert np.ptp(incoming[:, 2:5], axis=1).max() < 1e-12
    assert logs["kept"].sum(axis=1).tolist() == [1, 1]
    assert logs["undone"][1].sum() > 0  # the budget of a period allows one such change


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ladder": ("noise", "pray")}, r"there is no rung 'pray'; they are \['noise'"),
        ({"ladder": ("insert_norm",)}, "insert_norm changes the shapes of a network"),
        ({"ladder": ("redo", "redo")}, "each rung once"),
        ({"ladder": ()}, "must be a sequence of names"),
        ({"on": {"dying": 0.1}}, r"dying: on=0.1, off=0.2: must be off < on"),
        ({"on": {"dead": 0.1}}, r"thresholds \['dead'\]: must be of"),
        ({"off": {"dying": 0.0}}, r"off\['dying'\]=0.0: must be above 0"),
        ({"off": {"dying": 1.5}}, r"off\['dying'\]=1.5: must be in \[0, 1\]"),
        ({"every": 0}, "every=0: must be a positive integer"),
        ({"cool_down": -1}, "cool_down=-1: must be a positive integer"),
        ({"budget_units": -1.0}, "budget_units=-1.0: must be finite and at least 0"),
        ({"max_jump": -0.1}, "max_jump=-0.1: must be at least 0"),
    ],
)
def test_bad_settings_are_refused_where_they_are_given(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        recovery_controller(**arguments)


def test_the_critical_noise_of_one_mode_is_its_closed_form():
    """P(|sigma f^T xi| >= R) = erfc(R / (sqrt 2 sigma f^T)), f = 1 - eta lambda."""
    blocks = SpaceBlocks("a", np.array([1, 0]), 1, (), np.zeros(2), np.zeros(2, bool), np.array([[-0.5], [-9.0]]))
    found = critical_noise(UnitBlocks({"a": blocks}, None), 0.2, 30, 0.1, probability=0.9)  # type: ignore[arg-type]
    assert found["a"] == pytest.approx(0.2 / (2**0.5 * erfcinv(0.9) * 1.05**30), rel=1e-9)
    stable = critical_noise(UnitBlocks({"a": blocks._replace(eigenvalues=-blocks.eigenvalues)}, None), 0.2, 30, 0.1)
    assert stable["a"] > 0.2  # without a direction to grow along the kick itself must be long
