"""A cloned network's training run equals a run of the base network with scaled rates (float64, 120 steps)."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax.cloning import clone_variables, widen
from lopjax.cloning.quotient import clip_by_cloned_norm, cloned_norm, multiplicities, quotient_optimizer
from lopjax.losses import mean_cross_entropy
from lopjax.models import mlp

STEPS = 120
SUBSET = {"hidden_1": 3}
pytestmark = pytest.mark.usefixtures("x64")

# name -> rate, momentum, weight decay, epsilon (None: not Adam)
RULES = {
    "sgd": (0.1, 0.0, 0.0, None),
    "momentum": (0.03, 0.9, 0.0, None),
    "momentum with weight decay": (0.03, 0.9, 0.05, None),
    "adam": (0.003, 0.9, 0.0, 1e-3),
}


@cache
def make_base(norm):
    return mlp((5,), (6, 5), 3, activation="tanh", norm=norm)


def stream():
    """Inputs and labels of every step: one batch of 8 a step, never repeated."""
    inputs = jax.random.normal(jax.random.key(1), (STEPS, 8, 5))
    return inputs, jax.random.randint(jax.random.key(2), (STEPS, 8), 0, 3)


def loss_and_gradient(model, variables, batch):
    inputs, labels = batch

    def loss(params):
        logits, updated, _ = model.apply({**variables, "params": params}, inputs, train=True)
        return mean_cross_entropy(logits, labels), updated

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


@cache
def training_run(model):
    """`(variables, rates, epsilons, momentum, decay, is_adam) -> (losses, variables)`: SGD and Adam from their papers.

    Rates and epsilons are trees of scalars, one for each array; decoupled weight decay enters with `rates_of_decay`.
    """

    @jax.jit
    def run(variables, rates, rates_of_decay, epsilons, momentum, is_adam):
        def step(carry, batch):
            variables, first, second, count = carry
            (value, updated), gradient = loss_and_gradient(model, variables, batch)
            count = count + 1
            weight = jnp.where(is_adam, 1 - momentum, 1.0)
            first = jax.tree.map(lambda m, g: momentum * m + weight * g, first, gradient)
            second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, gradient)

            def move(param, rate, decay, epsilon, m, v):
                adam = m / (1 - momentum**count) / (jnp.sqrt(v / (1 - 0.999**count)) + epsilon)
                return param - rate * jnp.where(is_adam, adam, m) - decay * param

            params = jax.tree.map(move, variables["params"], rates, rates_of_decay, epsilons, first, second)
            return ({**updated, "params": params}, first, second, count), value

        zeros = jax.tree.map(jnp.zeros_like, variables["params"])
        (variables, *_), losses = jax.lax.scan(step, (variables, zeros, zeros, 0.0), stream())
        return losses, variables

    return run


def constant(tree, value):
    return jax.tree.map(lambda _: value, tree)


def train(model, variables, name, n_in=None, n_out=None):
    """A run with the rates of the quotient dynamics; with the plain rates when no multiplicities are given."""
    rate, momentum, decay, epsilon = RULES[name]
    one = constant(variables["params"], 1)
    n_in, n_out = n_in or one, n_out or one
    rates = jax.tree.map(lambda i, o: rate * i / o if epsilon is None else rate * i, n_in, n_out)
    epsilons = jax.tree.map(lambda o: (epsilon or 1.0) * o, n_out)
    decays = constant(one, rate * decay)
    return training_run(model)(variables, rates, decays, epsilons, momentum, epsilon is not None)


def gap(one, other, norm="none"):
    """Largest difference; biases before batch norm are left out: their gradient is 0, Adam moves them on rounding."""

    def difference(path, a, b):
        is_idle = norm == "batch" and path[-1].key == "bias" and path[-2].key != "classes"
        return 0.0 if is_idle else float(jnp.max(jnp.abs(a - b)))

    return max(jax.tree.leaves(jax.tree_util.tree_map_with_path(difference, one, other)))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("norm", "factor"), [("none", 2), ("none", 3), ("none", SUBSET), ("layer", 2), ("batch", 3)])
def test_cloned_trajectory_equals_the_base_trajectory_with_scaled_rates(norm, factor, name):
    base = make_base(norm)
    variables = base.init(jax.random.key(0))
    clones = clone_variables(variables, base.wiring, factor)
    wide_losses, wide_end = train(widen(base, factor), clones, name)
    losses, end = train(base, variables, name, *multiplicities(variables["params"], base.wiring, factor))
    expected = clone_variables(end, base.wiring, factor)

    np.testing.assert_allclose(losses, wide_losses, rtol=0, atol=1e-12)
    assert gap(wide_end["params"], expected["params"], norm) < 1e-12
    if norm == "batch":
        # The running mean contains the idle bias, which Adam moves by about rate * rounding / epsilon.
        assert gap(wide_end["batch_stats"], expected["batch_stats"]) < 1e-12
        assert gap(wide_end["batch_stats"], clones["batch_stats"]) > 0.1
    # Controls: it moved, and with the plain rates the base network runs elsewhere.
    assert gap(wide_end["params"], clones["params"], norm) > 1e-2
    plain_losses, _ = train(base, variables, name)
    assert np.max(np.abs(plain_losses - wide_losses)) > 1e-3


def test_weight_decay_must_not_be_multiplied():
    base = make_base("none")
    variables = base.init(jax.random.key(0))
    rate, momentum, decay, _ = RULES["momentum with weight decay"]
    n_in, n_out = multiplicities(variables["params"], base.wiring, 2)
    rates = jax.tree.map(lambda i, o: rate * i / o, n_in, n_out)
    multiplied = jax.tree.map(lambda scaled: scaled * decay, rates)
    run = training_run(base)
    wrong, _ = run(variables, rates, multiplied, constant(rates, 1.0), momentum, False)
    right, _ = run(variables, rates, constant(rates, rate * decay), constant(rates, 1.0), momentum, False)
    assert np.max(np.abs(wrong - right)) > 1e-4


@pytest.mark.parametrize(
    ("factor", "space", "expected"),
    [
        (2, "hidden_0/kernel", (1, 2)),
        (3, "hidden_1/kernel", (3, 3)),
        (3, "classes/kernel", (3, 1)),
        (3, "hidden_1/bias", (1, 3)),
        (3, "classes/bias", (1, 1)),
        (SUBSET, "hidden_0/kernel", (1, 1)),
        (SUBSET, "hidden_1/kernel", (1, 3)),
        ({"hidden_0": 2, "hidden_1": 5}, "hidden_1/kernel", (2, 5)),
    ],
)
def test_multiplicities(factor, space, expected):
    base = make_base("none")
    layer, array = space.split("/")
    trees = multiplicities(base.init(jax.random.key(0))["params"], base.wiring, factor)
    assert tuple(tree[layer][array] for tree in trees) == expected


def run_optax(model, variables, optimizer):
    def step(carry, batch):
        variables, state = carry
        (value, updated), gradient = loss_and_gradient(model, variables, batch)
        updates, state = optimizer.update(gradient, state, variables["params"])
        carry = {**updated, "params": optax.apply_updates(variables["params"], updates)}, state
        return carry, (value, optax.tree.norm(gradient), gradient)

    return jax.jit(lambda carry: jax.lax.scan(step, carry, stream()))((variables, optimizer.init(variables["params"])))


def test_quotient_optimizer_with_clipping_reproduces_optax_on_the_clones():
    base, largest = make_base("none"), 0.2
    variables = base.init(jax.random.key(0))
    clones = clone_variables(variables, base.wiring, SUBSET)
    wide = optax.chain(optax.clip_by_global_norm(largest), optax.adamw(0.01, eps=1e-3, weight_decay=0.1))
    adamw = quotient_optimizer(optax.adamw(0.01, eps=1e-3, weight_decay=0.1), base.wiring, SUBSET)
    small = optax.chain(clip_by_cloned_norm(largest, base.wiring, SUBSET), adamw)
    (wide_end, _), (wide_losses, wide_norms, _) = run_optax(widen(base, SUBSET), clones, wide)
    (end, _), (losses, plain_norms, gradients) = run_optax(base, variables, small)

    assert bool(jnp.any(wide_norms > largest))  # it did clip,
    assert bool(jnp.any(wide_norms < largest))  # and not always
    np.testing.assert_allclose(losses, wide_losses, rtol=0, atol=1e-12)
    assert gap(clone_variables(end, base.wiring, SUBSET)["params"], wide_end["params"]) < 1e-12
    norms = jax.vmap(lambda gradient: cloned_norm(gradient, base.wiring, SUBSET))(gradients)
    np.testing.assert_allclose(norms, wide_norms, rtol=1e-11)
    assert np.max(np.abs(plain_norms - wide_norms)) > 1e-2  # control: the base network's own norm is another


OPTIMIZERS = {
    "nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda: optax.rmsprop(0.01),
    "lion": lambda: optax.lion(0.01),
    "adamw": lambda: optax.adamw(0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_quotient_optimizer_on_a_stream_of_gradients(name):
    """No network: the clones' gradients are the base network's, repeated and divided by the number of clones."""
    base, factor, optimizer = make_base("none"), {"hidden_0": 2, "hidden_1": 3}, OPTIMIZERS[name]()
    small = base.init(jax.random.key(0))["params"]
    wide = clone_variables(small, base.wiring, factor)
    _, n_out = multiplicities(small, base.wiring, factor)
    n_in, _ = multiplicities(small, base.wiring, factor)
    quotient = quotient_optimizer(optimizer, base.wiring, factor)
    state, wide_state = quotient.init(small), optimizer.init(wide)
    update, wide_update = jax.jit(quotient.update), jax.jit(optimizer.update)
    random = np.random.default_rng(0)
    for _ in range(5):
        gradient = jax.tree.map(lambda p: jnp.asarray(random.normal(size=p.shape)), small)
        # clone_variables divides by n_in, a gradient by n_out.
        rescaled = jax.tree.map(lambda g, i, o: g * i / o, gradient, n_in, n_out)
        updates, state = update(gradient, state, small)
        wide_updates, wide_state = wide_update(clone_variables(rescaled, base.wiring, factor), wide_state, wide)
        small = jax.tree.map(jnp.add, small, updates)
        wide = jax.tree.map(jnp.add, wide, wide_updates)
    assert gap(clone_variables(small, base.wiring, factor), wide) < 1e-13


def test_bad_factors_are_refused_at_once():
    with pytest.raises(ValueError, match=r"unit space 'hidden_9': not in this wiring"):
        quotient_optimizer(optax.sgd(0.1), make_base("none").wiring, {"hidden_9": 2})
