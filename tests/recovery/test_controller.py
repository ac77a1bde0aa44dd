"""One program, its lanes: dead units, clones that a kick of 0 cannot free, no symptom, no budget, no jump allowed."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import erfcinv

from lopjax.interventions import REASONS, Setting, intervene, start_intervention
from lopjax.interventions.reasons import CHANGED
from lopjax.losses import mean_squared_error
from lopjax.models import mlp
from lopjax.recovery import RUNGS, Outcome, Strengths, critical_noise, explain, recovery_controller
from lopjax.recovery.acting import Tried, _outcome
from lopjax.recovery.options import checked_budget
from lopjax.stability.blocks import SpaceBlocks, UnitBlocks
from lopjax.training import init_state, train_step

LADDER = ("noise", "wake_dead_units", "shrink_and_perturb")
EVERY, COOL_DOWN, STEPS = 4, 8, 40
RANDOM = np.random.default_rng(0)
INPUTS, TARGETS = RANDOM.normal(size=(24, 3)), RANDOM.normal(size=(24, 2))
MODEL = mlp((3,), (6,), 2, norm="none")


class Lane(NamedTuple):
    """A trap, the settings of its controller, and the bias that units 0 to 4 are given at step 5, if not 0."""

    dead: tuple[int, ...] = ()
    clones: tuple[int, ...] = ()
    output_scale: float = 1.0
    noise: float = 0.0
    budget_units: float = 1.0
    budget_change: float = 5.0
    budget_every: int = 1000
    max_jump: float = np.inf
    bias: float = 0.0


MOST = (1, 2, 3, 4)
LANES = {
    "dead": Lane(MOST),
    "clones": Lane(clones=MOST),
    "healthy": Lane(),
    "poor": Lane(MOST, budget_change=0.0),
    # Nothing predicts these targets better than 0, so that any draw raises the loss.
    "careful": Lane(clones=MOST, output_scale=0.01, max_jump=0.0),
    "both": Lane((3, 4), (1, 2)),
    "costly": Lane((3, 4), (1, 2), noise=1e-7, budget_units=4 / 6, budget_every=16),
    "blown up": Lane(clones=MOST, noise=1e300),
    "killed": Lane(clones=MOST, noise=1e-7, budget_units=2.0, bias=-50.0),
    "diverged": Lane(clones=MOST, noise=1e-7, bias=np.nan),
}


def start(lane):
    """Live units without a near-clone, then the trap of the lane: clones are of unit 0."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.random.default_rng(7).normal(size=leaf.shape), shapes)["params"]
    kernel, bias, outgoing = params["hidden_0"]["kernel"], params["hidden_0"]["bias"], params["classes"]["kernel"]
    kernel[:], bias[:] = np.random.default_rng(8).normal(size=(3, 6)), 0.5
    dead, clones = list(lane.dead), list(lane.clones)
    bias[dead], kernel[:, clones], outgoing[clones] = -50.0, kernel[:, :1], outgoing[:1]
    outgoing *= lane.output_scale
    params["classes"]["bias"] *= lane.output_scale
    return {"params": params}


@cache
def played(ladder=LADDER, names=tuple(LANES)):
    """The last state and the reports of every lane, all lanes in one vmapped scan."""
    optimizer = optax.sgd(0.01)
    setting = Setting(MODEL, optimizer, mean_squared_error)
    batch = jnp.asarray(INPUTS), jnp.asarray(TARGETS)

    def play(variables, numbers, key):
        controller = recovery_controller(
            ladder,
            probe=batch,
            every=EVERY,
            cool_down=COOL_DOWN,
            on={"rank_collapse": 1.0},
            strengths=Strengths(noise=numbers["noise"], shrink=0.3),
            budget_units=numbers["budget_units"],
            budget_change=numbers["budget_change"],
            budget_every=numbers["budget_every"],
            max_jump=numbers["max_jump"],
        )

        def step(state, t):
            state, seen = train_step(MODEL, optimizer, state, batch, loss=mean_squared_error)
            bias = state.variables["params"]["hidden_0"]["bias"]
            given = (t == 5) & (numbers["bias"] != 0) & (jnp.arange(6) < 5)
            hidden = {**state.variables["params"]["hidden_0"], "bias": jnp.where(given, numbers["bias"], bias)}
            state = state._replace(variables={"params": {**state.variables["params"], "hidden_0": hidden}})
            before = mean_squared_error(MODEL.apply(state.variables, batch[0]).logits, batch[1])
            state, report = intervene(controller, setting, state, seen, jax.random.fold_in(key, t), t)
            after = mean_squared_error(MODEL.apply(state.variables, batch[0]).logits, batch[1])
            return state, (report.touched["hidden_0"], report.reason, after - before, report.logs)

        state = start_intervention(controller, setting, init_state(variables, optimizer))
        return jax.lax.scan(step, state, jnp.arange(STEPS, dtype=jnp.int32))

    lanes = [LANES[name] for name in names]
    variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(start, lanes))
    numbers = {name: jnp.array([getattr(lane, name) for lane in lanes]) for name in Lane._fields[3:]}
    return jax.device_get(jax.jit(jax.vmap(play))(variables, numbers, jax.random.split(jax.random.key(2), len(names))))


def lane_of(name):
    return jax.tree.map(lambda leaf: leaf[list(LANES).index(name)], played())


def entries(name):
    return entries_of(lane_of(name)[0].own.log)


def entries_of(log):
    """Step, rung and outcome of every entry, oldest first."""
    return [
        (int(log.step[place]), list(RUNGS)[log.rung[place]], Outcome(int(log.outcome[place])).name)
        for place in np.argsort(log.step, kind="stable")
        if log.step[place] >= 0
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
    (said,) = explain(state.own.log)
    assert said.startswith("step 3: dying at 0.667 -> wake_dead_units (dead units drawn anew")
    judged = EVERY - 1 + COOL_DOWN
    assert said.endswith(f"the symptom went by step {judged} (0); the units that had it are now: 4 healthy")


def test_a_rung_that_changes_nothing_spends_nothing_and_the_next_look_tries_the_next(x64):
    """A kick of 0 leaves clones where they are; the pull to a fresh draw parts them."""
    first, second = EVERY - 1, 2 * EVERY - 1
    assert entries("clones") == [(first, "noise", "NOTHING_DONE"), (second, "shrink_and_perturb", "GONE")]
    state, (touched, _, jumps, logs) = lane_of("clones")
    assert not touched[first].any()
    assert np.flatnonzero(logs["kept"]).tolist() == [second]
    assert state.own.spent[0] == 6  # all units, and the kick none
    assert state.own.rung.tolist() == [0, 0, 0, 0]
    assert abs(jumps[second]) > 1e-3  # this one is no free lunch
    nothing, pull = explain(state.own.log)
    assert nothing == "step 3: cloning at 0.833 -> noise: nothing was done, as no unit met its condition"
    assert "6 units, parameters moved by" in pull


def test_a_healthy_network_is_left_alone(x64):
    state, (touched, reasons, jumps, _) = lane_of("healthy")
    assert entries("healthy") == []
    assert not touched.any()
    assert not jumps.any()
    assert {REASONS[reason] for reason in reasons} == {"this was not one of its steps", "no unit met its condition"}
    assert state.own.actions == 0


def test_what_is_over_the_budget_or_lets_the_loss_jump_is_undone(x64):
    """Again and again, which is one entry for each rung: two refusals, then a cool-down."""
    poor = lane_of("poor")[0].own.log
    assert entries("poor") == [(3, "wake_dead_units", "OVER_BUDGET"), (7, "shrink_and_perturb", "OVER_BUDGET")]
    assert poor.times[:2].tolist() == [4, 3]  # at steps 3, 15, 27, 39 and 7, 19, 31
    assert poor.last[:2].tolist() == [39, 31]
    assert "of the budget (6 units, 0 % of the length); 4 times by step 39" in explain(poor)[0]
    assert entries("careful") == [(3, "noise", "NOTHING_DONE"), (7, "shrink_and_perturb", "LOSS_JUMP")]
    for name in ("poor", "careful"):
        assert not lane_of(name)[1][2].any()  # no parameter that matters has moved
        assert lane_of(name)[1][3]["undone"].any()
    assert not lane_of("poor")[1][3]["kept"].any()


def test_a_symptom_that_cannot_be_helped_keeps_no_other_waiting(x64):
    """Clones are farther beyond their threshold at every look; the dead have their turn all the same."""
    found = entries("both")
    assert found[:2] == [(3, "noise", "NOTHING_DONE"), (7, "wake_dead_units", "GONE")]
    assert lane_of("both")[0].own.log.score[:2].tolist() == [0.5, pytest.approx(1 / 3)]
    assert lane_of("both")[1][0][7].tolist() == [False, False, False, True, True, False]


def test_what_the_budget_cannot_pay_now_goes_first_in_the_next_period(x64):
    """A kick of three units leaves one of four: waking two waits for step 16, and then is not overtaken."""
    found = entries("costly")
    assert found[0] == (3, "noise", "STAYED")
    assert found[1] == (11, "wake_dead_units", "OVER_BUDGET")
    kept = [entry for entry in found if entry[2] not in ("OVER_BUDGET", "NOTHING_DONE")]
    assert kept[1] == (19, "wake_dead_units", "GONE")
    assert "over what was left of the budget (1 unit, 500 % of the length)" in explain(lane_of("costly")[0].own.log)[1]


def test_what_would_not_be_finite_is_undone_and_said_to_be_so(x64):
    found = entries("blown up")
    assert found == [(3, "noise", "NOT_FINITE"), (7, "shrink_and_perturb", "GONE")]
    state, (_, _, _, logs) = lane_of("blown up")
    assert logs["undone"][3]
    assert "undone: parameters or loss would not have been finite" in explain(state.own.log)[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables))


def test_clones_that_died_have_not_recovered(x64):
    """The symptom is gone as it is in the lane of clones that were parted; what became of the units is not the same."""
    killed, freed = lane_of("killed")[0].own.log, lane_of("clones")[0].own.log
    assert entries("killed")[0] == (3, "noise", "TURNED")
    assert killed.score_after[0] == 0
    assert (
        "went, but its units have another one by step 11 (0); the units that had it are now: 5 dead"
        in explain(killed)[0]
    )
    assert entries("killed")[1] == (11, "wake_dead_units", "GONE")
    assert killed.fates[0].tolist() == [0, 0, 0, 5]
    assert freed.fates[1].tolist() == [5, 0, 0, 0]


def test_a_network_that_has_left_the_numbers_is_left_alone_and_one_entry_says_so(x64):
    state, (touched, _, _, _) = lane_of("diverged")
    first, second = explain(state.own.log)
    assert first.endswith("whether the symptom went cannot be said: the network was no longer finite")
    assert second.startswith("step 7: parameters or activations are not finite")
    assert not touched[4:].any()


def test_a_log_of_several_networks_is_refused(x64):
    with pytest.raises(ValueError, match=r"steps of shape \(10, 32\): must be of one network"):
        explain(played()[0].own.log)


def test_the_other_rungs_reset_the_dead_and_part_a_pair_of_clones(x64):
    """ReDo wakes all; a kick and FIRE free one pair of five clones, so that the share of near-clones stays."""
    ladder, lanes = ("redo", "kick_and_fire"), ("dead", "clones")
    state, (touched, _, _, logs) = played(ladder, lanes)
    log = state.own.log
    assert [list(RUNGS)[rung] for rung in log.rung[:, 0]] == ["redo", "kick_and_fire"]
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
        ({"strengths": 0.1}, "strengths=0.1: must be lopjax.recovery.Strengths"),
        (
            {"strengths": Strengths(noise={"hidden_0": -1.0})},
            r"scale\['hidden_0'\]=-1.0: must be finite and at least 0",
        ),
        ({"probe": INPUTS}, r"probe: .* must be \(inputs, labels\)"),
    ],
)
def test_bad_settings_are_refused_where_they_are_given(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        recovery_controller(**arguments)


@pytest.mark.parametrize(
    ("change", "loss_after", "max_jump", "is_change", "expected"),
    [
        (0.1, 1.0, 0.0, True, Outcome.PENDING),
        (0.1, 1.0 + 1e-6, 0.0, True, Outcome.PENDING),  # rounding in float32
        (0.1, 1.0 + 1e-4, 0.0, True, Outcome.LOSS_JUMP),
        (0.1, 1.2, 0.25, True, Outcome.PENDING),
        (0.1, 9.0, np.inf, True, Outcome.PENDING),
        (0.1, np.inf, np.inf, True, Outcome.NOT_FINITE),
        (np.nan, 1.0, 0.0, True, Outcome.NOT_FINITE),
        (0.4, 9.0, 0.0, True, Outcome.OVER_BUDGET),
        (0.0, 1.0, 0.0, False, Outcome.NOTHING_DONE),
    ],
)
def test_the_outcome_says_why_something_was_undone(change, loss_after, max_jump, is_change, expected, unchecked):
    cost, losses = jnp.array([1.0, change], jnp.float32), jnp.array([1.0, loss_after], jnp.float32)
    budget = checked_budget(1.0, 1.0, 10, max_jump)
    tried = Tried(None, (), {}, jnp.int32(CHANGED), jnp.bool_(is_change), cost, losses)
    options = recovery_controller(("noise",)).apply.args[0]._replace(budget=budget)
    outcome, is_affordable = _outcome(options, tried, jnp.array([0.0, 0.7]), jnp.array([4.0, 1.0]))
    assert Outcome(int(outcome)) is expected
    assert bool(is_affordable) == bool(np.isfinite(change))


def test_the_state_of_another_controller_is_refused_array_by_array(unchecked):
    optimizer = optax.sgd(0.1)
    setting = Setting(MODEL, optimizer, mean_squared_error)
    given, other = (recovery_controller(("noise",), entries=entries) for entries in (5, 7))
    state = start_intervention(given, setting, init_state(MODEL.init(jax.random.key(0)), optimizer))
    shorter = state._replace(own=state.own._replace(named=np.zeros(5, bool)))
    message = r"state of this controller for this network: \.log\.step: int32\[5\], must be int32\[7\];.* and 12 more"
    with pytest.raises(ValueError, match=message):
        intervene(other, setting, state, None, jax.random.key(1), 0)
    with pytest.raises(ValueError, match=r"\.named: bool\[5\], must be bool\[6\]"):
        intervene(given, setting, shorter, None, jax.random.key(1), 0)


def test_the_critical_noise_of_one_mode_is_its_closed_form():
    """P(|sigma f^T xi| >= R) = erfc(R / (sqrt 2 sigma f^T)), f = 1 - eta lambda."""
    blocks = SpaceBlocks("a", np.array([1, 0]), 1, (), np.zeros(2), np.zeros(2, bool), np.array([[-0.5], [-9.0]]))
    found = critical_noise(UnitBlocks({"a": blocks}, None), 0.2, 30, 0.1, probability=0.9)  # type: ignore[arg-type]
    assert found["a"] == pytest.approx(0.2 / (2**0.5 * erfcinv(0.9) * 1.05**30), rel=1e-9)
    stable = critical_noise(UnitBlocks({"a": blocks._replace(eigenvalues=-blocks.eigenvalues)}, None), 0.2, 30, 0.1)
    assert stable["a"] > 0.2  # without a direction to grow along the kick itself must be long
