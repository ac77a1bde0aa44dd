"""Claims of the recovery controller that were once false: each is tried on a network that no training moves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax.interventions import Setting, intervene, start_intervention
from lopjax.losses import mean_cross_entropy
from lopjax.models import mlp
from lopjax.recovery import Outcome, Strengths, explain, recovery_controller
from lopjax.signals import observe
from lopjax.training import init_state

MODEL, OPTIMIZER = mlp((3,), (10,), 2, norm="none"), optax.sgd(0.0)
SETTING = Setting(MODEL, OPTIMIZER, mean_cross_entropy)
RANDOM = np.random.default_rng(0)
PROBE = RANDOM.normal(size=(24, 3)).astype(np.float32), RANDOM.integers(2, size=24)
INPUTS = jnp.asarray(PROBE[0])
KERNEL = np.random.default_rng(8).normal(size=(3, 10))
DYING = ("wake_dead_units", "redo", "shrink_and_perturb")


def network(num_dead=0, clones=(), head=0.0):
    """Units `0, ..., num_dead - 1` dead, some clones of unit 9, the rest alive."""
    params, kernel = MODEL.init(jax.random.key(3))["params"], KERNEL.copy()
    kernel[:, list(clones)] = kernel[:, [9]]
    bias = jnp.where(jnp.arange(10) < num_dead, -50.0, 0.5)
    classes = {**params["classes"], "bias": params["classes"]["bias"] + head}
    return {"params": {"hidden_0": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": bias}, "classes": classes}}


def played(steps, given, *, batch=PROBE, dtype=jnp.float32, **settings):
    """The last state, and of every step the state before, that after, and the report; `given` sets the network."""
    others = {"on": {"rank_collapse": 0.99}, "off": {"rank_collapse": 0.9}, "budget_units": 100.0}
    settings = {"every": 2, "cool_down": 8, "probe": PROBE, "budget_change": 100.0, **others, **settings}
    controller = recovery_controller(**settings)
    cast = partial(jax.tree.map, lambda leaf: jnp.asarray(leaf, dtype))
    state, rows = start_intervention(controller, SETTING, init_state(cast(network()), OPTIMIZER)), []

    @jax.jit
    def one(state, step):
        seen = observe(MODEL, state.variables, jax.tree.map(jnp.asarray, batch), loss=mean_cross_entropy)
        return intervene(controller, SETTING, state, seen, jax.random.fold_in(jax.random.key(0), step), step)

    for step in range(steps):
        before = state._replace(variables=cast(given[step])) if step in given else state
        state, report = one(before, jnp.int32(step))
        rows.append((before, state, report))
    return state.own, rows


def rungs(own):
    """Step, rung and outcome of every entry."""
    places = range(int(own.actions))
    return [(int(own.log.step[n]), int(own.log.rung[n]), Outcome(int(own.log.outcome[n])).name) for n in places]


@pytest.mark.parametrize("probe", [PROBE, None])
def test_rungs_treat_the_units_that_the_probe_shows(probe):
    """Of a batch of one sample every unit is constant; its own dead units are the control."""
    one = PROBE[0][:1], PROBE[1][:1]
    _, rows = played(2, {1: network(4)}, batch=one, probe=probe, ladder=("wake_dead_units",))
    before, after, report = rows[1]
    change = jnp.max(jnp.abs(MODEL.apply(after.variables, INPUTS)[0] - MODEL.apply(before.variables, INPUTS)[0]))
    if probe is None:
        assert report.touched["hidden_0"].sum() == 10
        assert change > 1e-2
    else:
        np.testing.assert_array_equal(report.touched["hidden_0"], np.arange(10) < 4)
        assert change < 1e-6


def test_what_is_on_its_way_back_has_neither_gone_nor_turned():
    """Four dead are woken, none is left, then two are dead: 0.2 is not below the threshold of 0.2, nor at 0.3."""
    own, _ = played(12, {1: network(4), 5: network(2)}, ladder=DYING)
    assert rungs(own) == [(1, 2, "STAYED")]
    control, _ = played(12, {1: network(4), 5: network(1)}, ladder=DYING, off={"dying": 0.05, "rank_collapse": 0.9})
    assert rungs(control) == [(1, 2, "STAYED")]
    gone, _ = played(12, {1: network(4)}, ladder=DYING)
    assert rungs(gone) == [(1, 2, "GONE")]


def test_a_symptom_that_goes_and_returns_during_the_cool_down_climbs_the_ladder():
    """It had been ReDo for ever."""
    given = {step: network(4) for step in (1, 9, 13, 17, 21, 25, 33)}
    own, _ = played(34, given, ladder=DYING)
    assert [rung for _, rung, _ in rungs(own)] == [2, 3, 5, 2, 3]


def test_what_waits_for_the_budget_goes_before_a_symptom_that_is_new():
    """Clones that turn up with the new period are farther beyond their threshold, and have had no turn either."""
    given = {1: network(4), 5: network(4), 20: network(4, (5, 6, 7, 8))}
    own, _ = played(
        24, given, ladder=("noise", "wake_dead_units"), cool_down=2, budget_units=0.6, budget_every=20,
        strengths=Strengths(noise=1e-6),
    )  # fmt: skip
    assert rungs(own)[:3] == [(1, 2, "GONE"), (5, 2, "OVER_BUDGET"), (21, 2, "GONE")]


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_an_output_layer_that_is_not_finite_is_left_alone(number):
    own, _ = played(14, {1: network(4, head=number)}, ladder=DYING)
    assert explain(own.log)[0].startswith("step 1: parameters or activations are not finite")
    assert int(own.actions) == 1


def test_the_longest_cool_down_is_one():
    """2^31 - 1 steps from a step on had overflowed, and the action was judged at the next look."""
    own, _ = played(6, {1: network(4)}, ladder=DYING, cool_down=2**31 - 1)
    assert rungs(own) == [(1, 2, "PENDING")]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_change_that_is_charged_is_that_of_the_parameters(dtype):
    own, rows = played(2, {1: network(4)}, ladder=DYING, dtype=dtype)
    old, new = (
        np.concatenate([np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(state.variables)])
        for state in rows[1][:2]
    )
    assert float(own.spent[1]) == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-5)


def test_what_moves_all_units_reports_all_and_what_has_no_rung_is_not_treated():
    own, rows = played(2, {1: network(4)}, ladder=("shrink_and_perturb",))
    assert rows[1][2].touched["hidden_0"].sum() == own.spent[0] == 10
    assert rows[1][2].logs["treating"] == 1
    assert played(2, {1: network(4)}, ladder=("noise",))[1][1][2].logs["treating"] == 0


@pytest.mark.parametrize("inputs", [INPUTS[:1], jnp.tile(INPUTS[:1], (5, 1))], ids=["one sample", "five alike"])
def test_a_probe_that_tells_no_unit_from_a_dead_one_is_refused(inputs):
    with pytest.raises(ValueError, match=f"probe: {len(inputs)} sample.*all the same.*at least two"):
        recovery_controller(probe=(inputs, jnp.zeros(len(inputs), int)))
    recovery_controller(probe=(INPUTS[:2], jnp.zeros(2, int)))  # the control
