"""One training step: optimizers that ask for more than the gradient, what is observed, and who owns the buffers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax.cloning import clone_variables, widen
from lopjax.cloning.quotient import quotient_optimizer
from lopjax.losses import cross_entropy, mean_cross_entropy, mean_squared_error
from lopjax.models import mlp
from lopjax.optim import noisy_sgd
from lopjax.training import (
    TrainState,
    init_state,
    logs_of,
    make_chunk,
    no_stream,
    sgd_step,
    start_lanes,
    train_step,
)

MODEL = mlp((3,), (4,), 3, activation="tanh")
GENERATOR = np.random.default_rng(0)
INPUTS, LABELS = GENERATOR.normal(size=(12, 3)), GENERATOR.integers(0, 3, 12).astype(np.int32)


def batch():
    return jnp.asarray(INPUTS), jnp.asarray(LABELS)


def loss_of(params) -> float:
    return float(cross_entropy(MODEL, {"params": params}, batch())(params))


# --- Extra arguments --------------------


def test_polyak_steps_are_those_of_its_formula(x64):
    """`polyak_sgd` divides the loss by the squared norm of the gradient: it must be given the loss."""
    optimizer = optax.polyak_sgd(max_learning_rate=10.0, f_min=0.0)
    state = init_state(MODEL.init(jax.random.key(0)), optimizer)
    params = state.variables["params"]
    gradient = jax.grad(cross_entropy(MODEL, state.variables, batch()))(params)
    square = sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(gradient))
    rate = min(loss_of(params) / square, 10.0)
    found, seen = jax.jit(lambda state: train_step(MODEL, optimizer, state, batch()))(state)
    expected = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found.variables["params"], expected)
    np.testing.assert_allclose(seen.loss, loss_of(params), rtol=1e-14)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), seen.gradient, gradient)


@pytest.mark.parametrize(
    "optimizer", [optax.lbfgs(memory_size=3), optax.chain(optax.sgd(0.5), optax.contrib.reduce_on_plateau(patience=1))]
)
def test_optimizers_that_search_or_watch_the_loss_train(optimizer, x64):
    state = init_state(MODEL.init(jax.random.key(0)), optimizer)
    step = jax.jit(lambda state: train_step(MODEL, optimizer, state, batch())[0])
    before = loss_of(state.variables["params"])
    for _ in range(8):
        state = step(state)
    assert loss_of(state.variables["params"]) < before - 0.05


def test_extra_arguments_of_the_callers_own_reach_the_optimizer():
    def update(updates, state, params=None, *, scale, **others):
        return jax.tree.map(lambda g: -scale * g, updates), state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
    state = init_state(MODEL.init(jax.random.key(0)), optimizer)
    moved, seen = train_step(MODEL, optimizer, state, batch(), extra={"scale": 0.25})
    expected = jax.tree.map(lambda p, g: p - 0.25 * g, state.variables["params"], seen.gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), moved.variables["params"], expected)
    with pytest.raises(TypeError, match="scale"):
        train_step(MODEL, optimizer, state, batch())


def test_the_quotient_optimizer_passes_extra_arguments_as_the_clone_has_them(x64):
    """An optimizer that uses each of them, coordinate by coordinate: the same training on the clone and on the base."""

    def update(updates, state, params=None, *, value, grad, value_fn, **others):
        again = value_fn(params)
        return jax.tree.map(lambda u, g: -0.1 * value * again * (u + g) / 2, updates, grad), state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
    wide, variables = widen(MODEL, 3), MODEL.init(jax.random.key(0))
    quotient = quotient_optimizer(optimizer, MODEL.wiring, 3)
    base = init_state(variables, quotient)
    clone = init_state(clone_variables(variables, MODEL.wiring, 3), optimizer)
    for _ in range(5):
        base, of_base = train_step(MODEL, quotient, base, batch())
        clone, of_clone = train_step(wide, optimizer, clone, batch())
        np.testing.assert_allclose(of_base.loss, of_clone.loss, rtol=1e-13)
    expected = clone_variables(base.variables, MODEL.wiring, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), clone.variables, expected)
    # The control: with the base's own gradient in place of the clone's it is another training.
    plain, _ = train_step(MODEL, optimizer, init_state(variables, optimizer), batch())
    first, _ = train_step(MODEL, quotient, init_state(variables, quotient), batch())
    kernels = [state.variables["params"]["hidden_0"]["kernel"] for state in (plain, first)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


# --- What is observed --------------------


def test_a_step_observes_what_it_has_used_and_nothing_else_is_computed():
    optimizer = optax.sgd(0.1)
    state = init_state(MODEL.init(jax.random.key(0)), optimizer)

    def equations(function):
        return jax.jit(function).lower(state).compile().cost_analysis()["flops"]

    plain = equations(lambda state: train_step(MODEL, optimizer, state, batch())[0])
    logged = equations(lambda state: (train_step(MODEL, optimizer, state, batch())[0], 0))
    with_signals = equations(lambda state: train_step(MODEL, optimizer, state, batch(), signals=True)[0])
    used = equations(lambda state: train_step(MODEL, optimizer, state, batch(), signals=True)[1].signals)
    assert plain == logged
    assert with_signals <= 1.05 * plain
    assert used > 0
    seen = train_step(MODEL, optimizer, state, batch())[1]
    assert seen.signals is None
    assert set(seen.taps) == {"hidden_0"}


def test_logs_are_named_and_may_be_ones_own():
    optimizer = optax.sgd(0.1)
    state = init_state(MODEL.init(jax.random.key(0)), optimizer)
    _, seen = train_step(MODEL, optimizer, state, batch())
    logs = logs_of(
        seen, "loss", "accuracy", "gradient_norm", dead=lambda seen: jnp.mean(seen.taps["hidden_0"].post < 0)
    )
    assert set(logs) == {"loss", "accuracy", "gradient_norm", "dead"}
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(seen.gradient)))
    np.testing.assert_allclose(logs["gradient_norm"], norm, rtol=1e-6)
    np.testing.assert_allclose(logs["accuracy"], np.mean(np.argmax(seen.logits, 1) == LABELS), rtol=1e-6)
    with pytest.raises(ValueError, match=r"logs \['los'\]: must be among \['accuracy', 'gradient_norm', 'loss'\]"):
        logs_of(seen, "los")


def test_any_loss_trains():
    optimizer, model = optax.sgd(0.1), mlp((3,), (4,), 2)
    targets = jnp.asarray(GENERATOR.normal(size=(12, 2)))
    state = init_state(model.init(jax.random.key(0)), optimizer)
    losses = []
    for _ in range(20):
        state, seen = train_step(model, optimizer, state, (batch()[0], targets), loss=mean_squared_error)
        losses.append(float(seen.loss))
    assert losses[-1] < 0.9 * losses[0]


def test_the_old_step_works_and_says_what_is_new():
    optimizer = optax.sgd(0.1)
    state = init_state(MODEL.init(jax.random.key(0)), optimizer)
    with pytest.warns(DeprecationWarning, match="sgd_step: use train_step"):
        old, logs = sgd_step(MODEL, optimizer, state, *batch())
    new, seen = train_step(MODEL, optimizer, state, batch(), loss=mean_cross_entropy)
    jax.tree.map(np.testing.assert_array_equal, old, new)
    assert logs["loss"] == seen.loss


# --- Buffers --------------------


def test_lanes_own_their_buffers():
    """A chunk gives the buffers of its lanes back: keys and variables that the caller still holds must survive."""
    key, noise = jax.random.key(1)[None], jax.random.key(2)[None]
    variables = jax.vmap(MODEL.init)(key)
    state = TrainState(
        variables, jax.vmap(lambda v, k: noisy_sgd(0.1, 0.1, 0.9, seed=k).init(v["params"]))(variables, noise)
    )
    # The key of the noise is in the optimizer's state and in the caller's hands, and the variables occur twice.
    pair = (state, variables, noise, key)

    def step(pair, drawn, key, index):
        return pair, {"zero": jnp.float32(0)}

    chunk, stream = make_chunk(step, no_stream()), no_stream()
    for _ in range(2):
        lanes, _ = chunk(start_lanes(pair), key, 0, 2, stream.data)
    jax.block_until_ready(lanes)
    assert np.isfinite(np.asarray(variables["params"]["hidden_0"]["kernel"])).all()
    assert jax.random.key_data(noise).shape[0] == 1
    assert jax.random.normal(key[0]).shape == ()


def test_a_state_without_a_lane_axis_is_refused():
    state = init_state(MODEL.init(jax.random.key(0)), optax.adam(0.1))
    with pytest.raises(ValueError, match="state: every array needs the same leading lane axis"):
        start_lanes(state)
    with pytest.raises(ValueError, match="2 lanes, keys of shape"):
        make_chunk(lambda s, d, k, i: (s, {}), no_stream())(
            start_lanes(jnp.zeros(2)), jax.random.key(0)[None], 0, 1, ()
        )
