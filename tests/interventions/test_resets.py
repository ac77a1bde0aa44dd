"""What the conformance suite does not see: chains of optimizers, means moved into biases, reports, refusals."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import case

from lopjax import models
from lopjax.interventions import (
    Intervention,
    Lifetimes,
    Report,
    Setting,
    continual_backprop,
    cpr,
    describe,
    forget,
    from_optax,
    intervene,
    move_means_into_biases,
    redo,
    regrama,
    reset_layer,
    reset_optimizer,
    self_normalized_resets,
    split_clones,
    start_intervention,
    survival,
    with_lifetimes,
)
from lopjax.interventions.moments import is_adam
from lopjax.losses import mean_cross_entropy
from lopjax.optim import adam_per_weight, l2_init, muon, nap, parseval, shrink_and_perturb, spectral
from lopjax.training import Task, epochs, init_state, logs_of, make_chunk, start_lanes, train_step

PARAMS = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
MASK = {"a": {"kernel": jnp.arange(6).reshape(2, 3) % 3 == 1, "bias": jnp.arange(3) == 1}}
pytestmark = pytest.mark.usefixtures("x64")
SGD, ADAM = optax.sgd(0.1), optax.adam(0.1)
STANDARD = Setting(case("small").model, SGD, mean_cross_entropy)


def first_step(optimizer):
    """Compiled once for all tests of one precision."""

    def step(variables, batch, task):
        return train_step(STANDARD.model, optimizer, init_state(variables, optimizer), batch, task=task)

    return jax.jit(step)


STEPS = {optimizer: first_step(optimizer) for optimizer in (SGD, ADAM)}


def used(optimizer):
    """A state in which no array is what it was at the start."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) + jnp.ones_like(leaf), optimizer.init(PARAMS))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.1),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
        optax.sgd(0.1, 0.9),
        optax.masked(optax.adam(0.1), {"a": {"kernel": True, "bias": False}}),
        optax.inject_hyperparams(optax.rmsprop)(0.1),
        optax.MultiSteps(optax.lion(0.1), 2).gradient_transformation(),
        adam_per_weight(0.1),
        optax.lbfgs(0.1, memory_size=2),
    ],
    ids=["adam", "clipped adamw", "momentum", "masked", "injected", "accumulated", "per weight", "l-bfgs"],
)
def test_every_array_like_a_parameter_is_forgotten_on_the_slices_alone(optimizer):
    state = used(optimizer)
    after, start = forget(optimizer, state, PARAMS, MASK), optimizer.init(PARAMS)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    masks, seen = {(2, 3): MASK["a"]["kernel"], (3,): MASK["a"]["bias"]}, 0
    for old, new, first in zip(*(jax.tree.leaves(tree) for tree in (state, after, start)), strict=True):
        tail = next((shape for shape in masks if np.shape(old)[-len(shape) :] == shape and np.ndim(old) >= 1), None)
        mask = masks.get(tail, np.zeros((), bool))
        seen += int(np.sum(mask))
        np.testing.assert_array_equal(new, np.where(mask, first, old))
    assert seen


def test_what_is_to_be_forgotten_by_adam_alone_is_kept_by_others():
    """As in the published code of continual backprop: Lion has a first moment, too, and no second."""
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_lion())
    state = used(optimizer)
    adam, lion = forget(optimizer, state, PARAMS, MASK, only=is_adam)
    np.testing.assert_array_equal(adam.mu["a"]["bias"], [1, 0, 1])
    np.testing.assert_array_equal(adam.nu["a"]["bias"], [1, 0, 1])
    jax.tree.map(np.testing.assert_array_equal, lion, state[1])
    assert forget(optimizer, state, PARAMS, MASK)[1].mu["a"]["bias"].tolist() == [1, 0, 1]  # the control


def test_factored_moments_and_anchors():
    """Adafactor forgets a column, and no row, as all rows hold other units too; an anchor moves to the new weights."""
    params, mask = {"k": jnp.ones((2, 3))}, {"k": MASK["a"]["kernel"]}
    adafactor = optax.adafactor(0.1, min_dim_size_to_factor=2)
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf) + jnp.ones_like(leaf), adafactor.init(params))
    after = forget(adafactor, state, params, mask)
    factored = next(part for part in after if isinstance(part, optax.FactoredState))
    np.testing.assert_array_equal(sorted(factored.v_row["k"].tolist() + factored.v_col["k"].tolist()), [0, 1, 1, 1, 1])
    assert factored.v_row["k"].size + factored.v_col["k"].size == 5
    pull = l2_init(0.1)
    anchors = forget(pull, pull.init(PARAMS), jax.tree.map(lambda leaf: 5 * leaf, PARAMS), MASK).initial
    np.testing.assert_array_equal(anchors["a"]["bias"], [1, 5, 1])


def test_adam_per_weight_is_adam_until_something_is_reset():
    ours, theirs = adam_per_weight(0.1, 0.8, 0.9), optax.adam(0.1, 0.8, 0.9)
    gradients = np.random.default_rng(0).normal(size=(5, 3))
    params = {"w": jnp.ones(3)}
    states = [rule.init(params) for rule in (ours, theirs)]
    for gradient in gradients:
        updates, states = zip(*(r.update({"w": jnp.asarray(gradient)}, s) for r, s in zip((ours, theirs), states)))
        np.testing.assert_allclose(updates[0]["w"], updates[1]["w"], rtol=1e-13)
    mask = {"w": jnp.array([True, False, False])}
    first = [
        rule.update({"w": jnp.ones(3)}, forget(rule, state, params, mask))[0]["w"][0]
        for rule, state in zip((ours, theirs), states)
    ]
    assert first[0] == pytest.approx(-0.1)  # a new weight; the common count makes it (1 - b1) / sqrt(1 - b2) times that
    assert first[1] == pytest.approx(-0.1 * (0.2 / (1 - 0.8**6)) / np.sqrt(0.1 / (1 - 0.9**6)))


def test_adam_per_weight_is_adam_in_bfloat16():
    """There 0.999 is 1: a correction in that type divides by zero."""
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    states = [rule.init(params) for rule in (adam_per_weight(0.1), optax.adam(0.1))]
    for gradient in ([0.5, 0.0], [0.5, 0.0], [0.25, 0.0]):
        seen = {"w": jnp.asarray(gradient, jnp.bfloat16)}
        updates, states = zip(
            *(rule.update(seen, state) for rule, state in zip((adam_per_weight(0.1), optax.adam(0.1)), states))
        )
        assert updates[0]["w"].dtype == jnp.bfloat16
        np.testing.assert_allclose(*(np.asarray(u["w"], float) for u in updates), rtol=0.02)
    assert updates[0]["w"][0] < -0.05


@pytest.mark.parametrize("size", [0.0, 1e-4])
def test_small_gradients_in_float16_move_as_in_float32(size):
    """There the square of 1e-4 is 0, and so is an epsilon of 1e-8: the control is Adam of Optax."""
    found = []
    for rule, dtype in (
        (adam_per_weight(0.1), "float16"),
        (adam_per_weight(0.1), "float32"),
        (optax.adam(0.1), "float16"),
    ):
        params = {"w": jnp.full(2, size, dtype)}
        found.append(np.asarray(rule.update(params, rule.init(params))[0]["w"], float))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-2)
    assert not np.isfinite(found[2]).all()


def test_injected_hyperparameters_are_no_memory():
    """They survive a reset of the optimizer, in a chain too; moments and counts do not."""
    optimizer = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adam)(0.1))
    setting = STANDARD._replace(optimizer=optimizer)
    _, seen = observed(STANDARD)
    state = init_state(observed(STANDARD)[0].variables, optimizer)
    state.opt_state[1].hyperparams["learning_rate"] = jnp.asarray(0.003)
    state = state._replace(opt_state=optimizer.update(seen.gradient, state.opt_state, state.variables["params"])[1])
    method = reset_optimizer(1)
    after, report = intervene(method, setting, start_intervention(method, setting, state), seen, jax.random.key(0), 0)
    assert float(after.opt_state[1].hyperparams["learning_rate"]) == pytest.approx(0.003)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(after.opt_state[1].inner_state))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state[1].inner_state))  # the control
    assert describe(report, 0) == "step 0: it has reset the optimizer"


def test_a_batch_that_teaches_nothing_resets_nobody():
    """Without any gradient ReGraMa has nothing to go by; a layer without one, in a network that has some, is reset."""
    state, seen = observed(STANDARD)
    method = regrama(0.01, 1)
    start = start_intervention(method, STANDARD, state)
    nothing = jax.tree.map(jnp.zeros_like, seen.gradient)
    layer = {**nothing, "classes": seen.gradient["classes"]}
    for gradient, number in ((nothing, 0), (layer, 4)):
        _, report = intervene(method, STANDARD, start, seen._replace(gradient=gradient), jax.random.key(0), 0)
        assert int(report.touched["hidden_0"].sum()) == number


@pytest.mark.parametrize("make", ["mlp", "cnn without pooling"])
def test_the_mean_of_a_constant_unit_is_moved_into_the_biases(make):
    """A unit frozen at 0.7, removed: the logits stay; without compensation they do not."""
    if make == "mlp":
        model, shape = models.mlp((3,), (4, 3), 2), (3,)
    else:  # behind the flattened map a constant unit is constant everywhere
        model, shape = models.cnn((2, 2, 1), 2, channels=(4,), dense=3, pooling="none"), (2, 2, 1)
    space, behind = ("hidden_0", "hidden_1") if make == "mlp" else ("conv_0", "dense")
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    first = {name: np.array(leaf) for name, leaf in variables["params"][space].items()}
    first["kernel"][..., 1], first["bias"][1] = 0.0, 0.7
    params = jax.tree.map(jnp.asarray, {**variables["params"], space: first})
    units, means = {space: jnp.arange(4) == 1}, {space: jnp.array([9.0, 0.7, 9.0, 9.0])}
    moved = move_means_into_biases(model.wiring, params, units, means)
    assert np.any(np.asarray(moved[behind]["bias"]) != params[behind]["bias"])
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(5, *shape)))
    logits = jax.jit(lambda params: model.apply({"params": params}, inputs)[0])

    def without(params):
        kernel = np.array(params[behind]["kernel"])
        kernel[..., 1, :] = 0.0
        return {**params, behind: {**params[behind], "kernel": kernel}}

    np.testing.assert_allclose(logits(without(moved)), logits(params), rtol=0, atol=1e-12)
    assert np.max(np.abs(logits(without(params)) - logits(params))) > 1e-2


def observed(setting):
    """A state after one step, and what that step saw."""
    batch, task = jax.tree.map(jnp.asarray, case("small").batch), Task(jnp.int32(0), jnp.bool_(True))
    return STEPS[setting.optimizer](setting.model.init(jax.random.key(0)), batch, task)


def test_no_mean_is_moved_past_what_stands_between_a_unit_and_its_reader():
    """Where a kernel does not read the activation itself (its label names no source), the mean is not what it gives."""
    model, means = models.mlp((3,), (4,), 2, norm="none"), {"hidden_0": jnp.array([2.0, 3.0, 5.0, 7.0])}
    params = model.init(jax.random.key(0))["params"]
    chosen = {"hidden_0": jnp.array([True, False, True, False])}
    kernel, bias = params["classes"]["kernel"], params["classes"]["bias"]
    moved = move_means_into_biases(model.wiring, params, chosen, means)
    np.testing.assert_allclose(moved["classes"]["bias"], bias + 2 * kernel[0] + 5 * kernel[2], rtol=1e-12)
    labels = tuple((path, replace(label, source=None)) for path, label in model.wiring.labels)
    kept = move_means_into_biases(replace(model.wiring, labels=labels), params, chosen, means)
    jax.tree.map(np.testing.assert_array_equal, kept, params)


def test_a_unit_of_a_stream_is_dormant_if_it_is_at_every_site():
    model, batch = case("resnet")
    batch = jax.tree.map(jnp.asarray, batch)
    setting = Setting(model, SGD, mean_cross_entropy)
    state = init_state(model.init(jax.random.key(0)), SGD)
    observed = jax.jit(lambda v: train_step(model, SGD, init_state(v, SGD), batch)[1])(state.variables)
    space = next(space for space in model.wiring.cloneable if len(model.wiring.sites_of(space)) > 1)
    sizes = [np.abs(np.asarray(observed.taps[site].post)).mean((0, 1, 2)) for site in model.wiring.sites_of(space)]
    scores = np.array([size / size.mean() for size in sizes])
    threshold = float(np.median(scores.max(axis=0)))
    method = redo(threshold, 1, spaces=[space])
    touched = jax.jit(lambda s, o: method.apply(setting, (), s, o, jax.random.key(1), 1)[2].touched)(state, observed)
    np.testing.assert_array_equal(touched[space], scores.max(axis=0) <= threshold)
    assert (touched[space] != (scores.min(axis=0) <= threshold)).any()  # the control: at some site


def test_boundaries():
    """They act where a task starts, but not where training does; `every` needs no boundary."""
    setting = STANDARD._replace(optimizer=ADAM)
    state, seen = observed(setting)
    assert reset_layer(["classes"]).needs_boundaries
    assert reset_optimizer().needs_boundaries
    assert not reset_layer(["classes"], every=3).needs_boundaries
    for step, acts in ((0, False), (5, True)):
        after, report = intervene(reset_optimizer(), setting, state, seen, jax.random.key(0), step)
        assert bool(report.reason) is acts
        assert (int(after.opt_state[0].count) == 0) is acts
        after, _ = intervene(reset_layer(["classes"]), setting, state, seen, jax.random.key(0), step)
        kernels = [np.asarray(one.variables["params"]["classes"]["kernel"]) for one in (after, state)]
        assert np.any(kernels[0] != kernels[1]) == acts
    for method in (reset_layer(["classes"]), reset_optimizer()):
        with pytest.raises(ValueError, match=r"stream hides that: pass task=drawn\.task to train_step, or give every="):
            intervene(method, setting, state, seen._replace(task=None), jax.random.key(0), 5)


def test_cpr_by_hand():
    """Every weight after one act, from the formula, the draw and the scores."""
    model, setting = STANDARD.model, STANDARD
    state, seen = observed(setting)
    method, key = cpr(0.3, 1, 0.5), jax.random.key(7)
    after, _ = intervene(method, setting, start_intervention(method, setting, state), seen, key, 0)
    before, fresh = (jax.device_get(tree["params"]) for tree in (state.variables, model.init(key)))
    gradient = np.abs(np.asarray(seen.gradient["hidden_0"]["kernel"])).mean(axis=0)
    utility = 0.5 + 0.5 * gradient / gradient.mean()
    share = 0.3 * np.minimum(2 / (1 + np.exp(16 * (utility - 1))), 1)
    assert 0 < share.min() < share.max() <= 0.3
    kernel = (1 - share) * before["hidden_0"]["kernel"] + share * fresh["hidden_0"]["kernel"]
    params = after.variables["params"]
    np.testing.assert_allclose(params["hidden_0"]["kernel"], kernel, rtol=1e-12)
    np.testing.assert_allclose(
        params["classes"]["kernel"], (1 - share)[:, None] * before["classes"]["kernel"], rtol=1e-12
    )
    np.testing.assert_array_equal(params["hidden_0"]["bias"], before["hidden_0"]["bias"])
    np.testing.assert_array_equal(after.own["hidden_0"], 1.0)


def test_lifted_transforms():
    state, seen = observed(STANDARD)
    params = state.variables["params"]
    for transform, sees, expected in (
        (shrink_and_perturb(0.9, 0.0, seed=0, every=1), "nothing", lambda p, g: 0.9 * p),
        (optax.scale(-0.2), "gradient", lambda p, g: p - 0.2 * g),
    ):
        method = from_optax(transform, sees)
        started = start_intervention(method, STANDARD, state)
        after, _ = intervene(method, STANDARD, started, seen, jax.random.key(0), 0)
        for found, p, g in zip(*(jax.tree.leaves(t) for t in (after.variables["params"], params, seen.gradient))):
            np.testing.assert_allclose(found, expected(p, g), rtol=1e-12)
    method = from_optax(shrink_and_perturb(0.9, 0.0, seed=0, every=100))
    _, report = intervene(method, STANDARD, start_intervention(method, STANDARD, state), seen, jax.random.key(0), 0)
    assert describe(report, 0) == "step 0: it has left every parameter as it was"


def test_churn_is_counted():
    """One unit replaced at steps 3, 5, 9 and 10, another once: four deaths are not counted for it, three lives are."""
    schedule = {3: [1], 5: [1], 9: [1, 2], 10: [1]}

    def apply(setting, own, state, seen, key, step):
        touched = jnp.isin(jnp.arange(4), jnp.array(schedule.get(step, [9])))
        return state, own, Report({"hidden_0": touched}, 2)

    method = with_lifetimes(Intervention(lambda setting, state: (), apply))
    state, seen = observed(STANDARD)
    state, logs = start_intervention(method, STANDARD, state), []
    for step in range(12):
        state, report = intervene(method, STANDARD, state, seen, jax.random.key(0), step)
        logs.append({name: int(value) for name, value in report.logs.items()})
    total = {name: sum(log[name] for log in logs) for name in logs[0]}
    assert total == {"replaced": 5, "replaced_again": 3, "lifetime": 2 + 4 + 1}
    lifetimes = state.own[1]
    assert isinstance(lifetimes, Lifetimes)
    # Lives: 2, 4, 1 steps ended; at step 11 unit 1 has lived 1 and unit 2 has lived 2 steps.
    curve = survival(lifetimes, 11)
    np.testing.assert_array_equal(curve.at_risk[:4], [5, 3, 1, 0])
    np.testing.assert_array_equal(curve.deaths[:4], [1, 1, 1, 0])
    np.testing.assert_allclose(curve.share[:3], [4 / 5, 4 / 5 * 2 / 3, 0])
    with pytest.raises(ValueError, match="must be one of"):
        survival(lifetimes, 11, "no")


@pytest.mark.parametrize("exponent", [13, 15, 26, 30])
def test_lives_of_powers_of_two_are_counted_in_their_own_bin(exponent):
    """In float32 their logarithms fall short."""

    def apply(setting, own, state, seen, key, step):
        return state, own, Report({"hidden_0": jnp.arange(4) == 0}, 2)

    method = with_lifetimes(Intervention(lambda setting, state: (), apply))
    state, seen = observed(STANDARD)
    state = start_intervention(method, STANDARD, state)
    for step in (0, 2**exponent):
        state, _ = intervene(method, STANDARD, state, seen, jax.random.key(0), step)
    assert np.flatnonzero(state.own[1].deaths["hidden_0"]).tolist() == [exponent]


def test_a_run_shorter_than_the_maturity_says_so():
    method = continual_backprop(maturity=100)
    state, seen = observed(STANDARD)
    state, report = intervene(method, STANDARD, start_intervention(method, STANDARD, state), seen, jax.random.key(0), 0)
    assert describe(report, 0) == "step 0: no unit was old enough; 0 of 4 units mature by step 0"
    method = redo(10.0, 1)
    _, report = intervene(method, STANDARD, start_intervention(method, STANDARD, state), seen, jax.random.key(0), 0)
    assert describe(report, 0) == "step 0: it has changed the network: hidden_0 4 of 4"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: redo(-0.1), r"threshold=-0\.1: must be finite and at least 0"),
        (lambda: redo(every=0), "every=0: must be a positive integer"),
        (lambda: redo(every=2.5), r"every=2\.5: must be a positive integer"),
        (lambda: continual_backprop(rate=2.0), r"rate=2\.0: must be in \[0, 1\]"),
        (lambda: continual_backprop(decay=float("nan")), "decay=nan: must be in"),
        (lambda: continual_backprop(utility="weight"), "utility='weight': must be one of"),
        (lambda: continual_backprop(variant="ours"), "variant='ours': must be 'paper' or 'official'"),
        (lambda: self_normalized_resets(longest=0), "longest=0: must be a positive integer"),
        (lambda: self_normalized_resets(1.5), r"percentile=1\.5: must be in"),
        (lambda: regrama(float("inf")), "threshold=inf: must be finite"),
        (lambda: cpr(1.5), r"strength=1\.5: must be in"),
        (lambda: reset_layer("classes"), r"such as \['classes'\]"),
        (lambda: reset_layer([]), "must name at least one unit space"),
        (lambda: split_clones(size=0), "size=0: must be positive"),
        (lambda: continual_backprop(decay=1.0), r"decay=1\.0: must be in \[0, 1\)"),
        (lambda: adam_per_weight(0.1, b2=1.0), r"b2=1\.0: must be in \[0, 1\)"),
        (lambda: muon(0.1, STANDARD.model.wiring, adam_learning_rate=-1.0), r"adam_learning_rate=-1\.0: must be"),
        (lambda: from_optax(optax.sgd(0.1), "loss"), "sees='loss': must be"),
        (lambda: from_optax(None), "transform=None: must be an optax.GradientTransformation"),
        (lambda: with_lifetimes(None), "intervention=None: must be an Intervention"),
        *(
            (partial(make, wiring=STANDARD.model), "wiring is a Model: must be a Wiring; a model's own is model.wiring")
            for make in (nap, partial(muon, 0.1), partial(parseval, 0.1), partial(spectral, 0.1))
        ),
        (lambda: adam_per_weight(0.1, b1=1.5), r"b1=1\.5: must be in"),
        (lambda: adam_per_weight(0.1, variant="no"), "variant='no': must be"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [redo, continual_backprop, self_normalized_resets, cpr, lambda **k: regrama(0.1, **k)])
def test_spaces_and_states_are_refused_before_compilation(make):
    state, _ = observed(STANDARD)
    for spaces, message in (
        (["no"], "unit space 'no': not in this wiring"),
        (["classes"], "unit space 'classes' is fixed"),
        ([], "must name at least one"),
        ("hidden_0", r"spaces='hidden_0': must be a sequence of names, such as \['hidden_0'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            start_intervention(make(spaces=spaces), STANDARD, state)
    other = STANDARD._replace(optimizer=ADAM)
    with pytest.raises(ValueError, match="opt_state is not a state of this optimizer"):
        start_intervention(make(), other, state)


@pytest.mark.parametrize("make", [redo, continual_backprop, lambda: with_lifetimes(redo()), lambda: from_optax(ADAM)])
def test_what_was_not_started_is_told_so(make, unchecked):
    """Each would else end in an error of Python's, deep inside; the control is ReDo, which has no state of its own."""
    state, seen = observed(STANDARD)
    method = make()
    with pytest.raises(ValueError, match="state is a tuple: must be a TrainState"):
        start_intervention(method, STANDARD, (state.variables, state.opt_state))
    with pytest.raises(ValueError, match="key=0: must be a key"):
        intervene(method, STANDARD, state, seen, 0, 0)
    if make is redo:
        assert jax.eval_shape(lambda s: intervene(method, STANDARD, s, seen, jax.random.key(0), 0)[0], state).own == ()
        return
    with pytest.raises(ValueError, match=r"state\.own is empty.*: begin with start_intervention"):
        intervene(method, STANDARD, state, seen, jax.random.key(0), 0)


def test_a_moment_in_another_precision_is_not_of_this_optimizer():
    setting = STANDARD._replace(optimizer=optax.adam(0.1))
    half = init_state(observed(STANDARD)[0].variables, optax.adam(0.1, mu_dtype=jnp.bfloat16))
    with pytest.raises(ValueError, match="opt_state is not a state of this optimizer: its structure, shapes or types"):
        start_intervention(redo(), setting, half)


def test_inputs_are_no_layer():
    state, _ = observed(STANDARD)
    with pytest.raises(ValueError, match="'input' holds the inputs"):
        start_intervention(reset_layer(["input"]), STANDARD, state)


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (redo, (0.1, 3)),
        (continual_backprop, (0.1, 0.9, 5)),
        (self_normalized_resets, (0.9,)),
        (regrama, (0.1, 3)),
        (cpr, (0.1, 3, 0.9)),
        (lambda every: reset_layer(["classes"], every), (3,)),
        (reset_optimizer, (3,)),
        (lambda rate: from_optax(adam_per_weight(rate), "gradient"), (0.1,)),
    ],
)
def test_numbers_may_be_traced_and_lanes_may_differ_in_them(make, numbers):
    """Shapes alone: nothing is compiled. What goes in comes out, so that it can be the carry of a scan."""
    state, seen = observed(STANDARD)
    state = start_intervention(make(*numbers), STANDARD, state)
    lanes = [jnp.stack([jnp.asarray(number)] * 16) for number in numbers]

    def act(*numbers):
        return intervene(make(*numbers), STANDARD, state, seen, jax.random.key(0), jnp.int32(1))[0]

    shapes = jax.eval_shape(jax.vmap(act), *lanes)
    for leaf, before in zip(jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True):
        assert (leaf.shape, leaf.dtype) == ((16, *jnp.shape(before)), jnp.result_type(before))


def test_a_run_has_the_same_bits_however_it_is_cut():
    """A chunk of lanes with two settings; the method's state goes on from one call to the next."""
    images, labels = np.random.default_rng(1).normal(size=(24, 3)).astype(np.float32), np.arange(24) % 2
    stream, method = epochs(images, labels, 4), with_lifetimes(continual_backprop(0.1, 0.9, 2))

    def step(state, drawn, key, index):
        state, seen = train_step(STANDARD.model, SGD, state, drawn.batch, task=drawn.task)
        state, report = intervene(method, STANDARD, state, seen, key, index)
        return state, logs_of(seen, "loss", replaced=lambda seen: report.logs["replaced"])

    chunk, ends = make_chunk(step, stream), []
    start = start_intervention(method, STANDARD, init_state(STANDARD.model.init(jax.random.key(0)), SGD))
    for cuts in ((12,), (5, 7)):
        lanes = start_lanes(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start))
        keys, done, replaced = jax.vmap(jax.random.key)(jnp.arange(2)), 0, 0.0
        for length in cuts:
            lanes, logs = chunk(lanes, keys, done, length, stream.data)
            done, replaced = done + length, replaced + length * np.asarray(logs["replaced"])
        ends.append(jax.device_get(lanes.state))
        np.testing.assert_allclose(replaced, 3.0, rtol=1e-6)  # 0.4 owed a step from step 2 on, 0.3 while one is fresh
    jax.tree.map(np.testing.assert_array_equal, *ends)
