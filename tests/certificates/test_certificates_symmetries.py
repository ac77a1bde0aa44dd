"""Clones up to what a loss cannot see, each against a training run; and controls that the loss does see."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax.certificates import CloneVerdict, certify_cloned
from lopjax.cloning import clone_variables, find_clones, uniform_partition, widen
from lopjax.losses import mean_cross_entropy, mean_squared_error
from lopjax.models import mlp, vit

FACTOR = {"heads_0": 2, "mlp_0": 2}
PAIRS = {"hidden_0": (0, 0, 1, 1, 2, 2)}
pytestmark = pytest.mark.usefixtures("x64")


def drawn(model, seed=0):
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(-0.6, 0.6, leaf.shape)), shapes)


def small(activation="tanh", norm="none"):
    """A network of one or two hidden layers with three pairs in the first."""
    base = mlp((4,), (3, 4), 3, activation=activation, norm=norm)
    wide = widen(base, {"hidden_0": 2})
    return wide, {"params": clone_variables(drawn(base), base.wiring, {"hidden_0": 2})}


def batch(shape=(4,), samples=16):
    return jnp.asarray(np.random.default_rng(1).normal(size=(samples, *shape))), jnp.arange(samples) % 3


def changed(params, path, function):
    layer, *rest = path
    return {**params, layer: function(params[layer]) if not rest else changed(params[layer], rest, function)}


def departure(model, params, loss, optimizer, steps=150):
    """How far the differences of the pairs of hidden_0 have moved, in a run on labels drawn anew in every step."""
    inputs, _ = batch()

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            labels = jax.random.randint(key, (len(inputs),), 0, 3)
            labels = jax.nn.one_hot(labels, 3) if loss is mean_squared_error else labels
            gradient = jax.grad(lambda p: loss(model.apply({"params": p}, inputs).logits, labels))(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(0), steps))[0][0]

    def difference(tree):
        return np.asarray(tree["hidden_0"]["kernel"][:, ::2] - tree["hidden_0"]["kernel"][:, 1::2])

    return float(np.abs(difference(train(params)) - difference(params)).max())


def add_to_first(size, per_target=False):
    """Add to the outgoing weights of the first unit: one number, or another one for every target."""
    return lambda kernel: kernel.at[0].add(size * (jnp.arange(1.0, 1 + kernel.shape[1]) if per_target else 1.0))


@pytest.fixture(scope="module")
def one_layer():
    with jax.enable_x64(True):
        base = mlp((4,), (3,), 3, activation="tanh")
        yield widen(base, 2), clone_variables(drawn(base), base.wiring, 2)


@pytest.mark.parametrize("size", [0.3, 1e3])
def test_constants_over_the_classes_matter_to_the_loss_that_sees_them(one_layer, size):
    model, params = one_layer
    shifted = changed(params, ("classes", "kernel"), add_to_first(size))
    inputs, labels = batch()
    certificate = certify_cloned(model, {"params": shifted}, (inputs, labels), PAIRS)
    assert certificate.verdict is CloneVerdict.ON_V
    assert certificate.arrays["params/classes/kernel"].blind
    assert "which the loss does not see" in str(certificate)
    targets = jax.nn.one_hot(labels, 3)
    seen = certify_cloned(model, {"params": shifted}, (inputs, targets), PAIRS, loss=mean_squared_error)
    assert seen.verdict is CloneVerdict.FORWARD_ONLY
    without = certify_cloned(model, {"params": shifted}, None, PAIRS)
    assert without.verdict is CloneVerdict.UNDECIDED
    assert "a batch shows it" in str(without)
    if size < 1:  # the oracle: training
        assert departure(model, shifted, mean_cross_entropy, optax.sgd(0.1)) < 1e-12
        assert departure(model, shifted, mean_squared_error, optax.sgd(0.1)) > 1e-3


def test_other_unequal_totals_are_forward_only(one_layer):
    model, params = one_layer
    unequal = changed(params, ("classes", "kernel"), add_to_first(0.3, per_target=True))
    assert certify_cloned(model, {"params": unequal}, batch(), PAIRS).verdict is CloneVerdict.FORWARD_ONLY
    assert certify_cloned(model, {"params": unequal}, None, PAIRS).verdict is CloneVerdict.FORWARD_ONLY
    assert departure(model, unequal, mean_cross_entropy, optax.sgd(0.1)) > 1e-3


def test_unequal_totals_to_dead_units_show_nothing():
    """The control of the last test: only dead units read the difference, so nothing shows that clones would part."""
    model, variables = small("relu")
    params = changed(variables["params"], ("hidden_1", "bias"), lambda bias: bias.at[1].set(-100.0))
    params = changed(params, ("hidden_1", "kernel"), lambda kernel: kernel.at[0, 1].add(0.5))
    certificate = certify_cloned(model, {"params": params}, batch(), PAIRS)
    assert certificate.verdict is CloneVerdict.UNDECIDED
    assert "the parameters say FORWARD_ONLY, but no difference shows" in str(certificate)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_constants_over_a_space_that_only_layer_norm_reads(norm):
    model, variables = small("gelu", norm)
    params = changed(variables["params"], ("hidden_1", "kernel"), add_to_first(0.4))
    verdict = certify_cloned(model, {**variables, "params": params}, batch(), PAIRS).verdict
    assert verdict is (CloneVerdict.ON_V if norm == "layer" else CloneVerdict.FORWARD_ONLY)


def test_weights_from_a_dead_source_do_not_separate_units():
    model = mlp((4,), (3, 4), 3)
    params = drawn(model)
    params = changed(params, ("hidden_0", "bias"), lambda bias: bias.at[0].set(-100.0))
    twins = jnp.array([0, 0, 2, 3])
    params = changed(params, ("hidden_1",), lambda layer: jax.tree.map(lambda leaf: leaf[..., twins], layer))
    params = changed(params, ("classes", "kernel"), lambda kernel: kernel[twins])
    params = changed(params, ("hidden_1", "kernel"), lambda kernel: kernel.at[0, 1].add(0.5))
    certificate = certify_cloned(model, {"params": params}, batch(), {"hidden_1": (0, 0, 1, 2)})
    assert [max(site) for site in certificate.sites.values()] == [0]
    assert certificate.verdict is CloneVerdict.UNDECIDED
    alive = changed(params, ("hidden_0", "bias"), lambda bias: bias.at[0].set(1.0))
    again = certify_cloned(model, {"params": alive}, batch(), {"hidden_1": (0, 0, 1, 2)})
    assert again.verdict is CloneVerdict.NOT_CLONED


@pytest.mark.parametrize(("activation", "verdict"), [("tanh", "UP_TO_SYMMETRY"), ("gelu", "NOT_CLONED")])
def test_signs_of_units_are_a_symmetry_of_odd_activations(activation, verdict):
    model, variables = small(activation)
    signs = jnp.array([1.0, -1.0, -1.0, 1.0, -1.0, -1.0])
    layer = jax.tree.map(lambda leaf: leaf * signs, variables["params"]["hidden_0"])
    params = changed({**variables["params"], "hidden_0": layer}, ("hidden_1", "kernel"), lambda k: k * signs[:, None])
    assert certify_cloned(model, {"params": params}, batch(), PAIRS).verdict.name == verdict
    assert certify_cloned(model, {"params": params}, None, PAIRS).verdict is CloneVerdict.UNDECIDED


# --- Heads ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heads():
    with jax.enable_x64(True):
        base = vit((4, 4, 2), 3, patch=2, width=8, depth=1, heads=2, mlp_ratio=0.75)
        wide = widen(base, FACTOR)
        params = clone_variables(drawn(base), base.wiring, FACTOR)
        yield wide, params, uniform_partition(wide.wiring, FACTOR), batch((4, 4, 2))


def with_maps(params, query, key, value, out):
    """Map the coordinates of the second head, a clone of the first."""

    def mapped(layer, matrix):
        return {
            "kernel": layer["kernel"].at[:, 1].set(layer["kernel"][:, 1] @ matrix),
            "bias": layer["bias"].at[1].set(layer["bias"][1] @ matrix),
        }

    head = dict(params["heads_0"])
    head |= {name: mapped(head[name], each) for name, each in (("query", query), ("key", key), ("value", value))}
    kernel = head["out"]["kernel"]
    head["out"] = {**head["out"], "kernel": kernel.at[:, 1].set(out @ kernel[:, 1])}
    return {**params, "heads_0": head}


def matrices(count):
    random = np.random.default_rng(3)
    return [jnp.asarray(np.linalg.qr(random.normal(size=(4, 4)))[0]) for _ in range(count)]


@pytest.mark.slow
def test_rotated_heads_are_clones_up_to_a_symmetry(heads):
    model, params, partition, data = heads
    one, two, three = matrices(3)
    scaled = jnp.diag(jnp.array([3.0, 1.0, 0.5, 2.0])) @ two
    rotated = with_maps(params, one, one, two, two.T)
    shifted = changed(rotated, ("mlp_0_out", "kernel"), add_to_first(0.9))
    cases = {
        "UP_TO_SYMMETRY": [rotated, shifted],
        "NOT_CLONED": [
            with_maps(params, one, three, two, two.T),  # another function
            with_maps(params, scaled, jnp.linalg.inv(scaled).T, two, two.T),  # the same one, but SGD tells them apart
        ],
        "ON_V": [changed(params, ("mlp_0_out", "kernel"), add_to_first(0.9))],
        "BLOCK_CONSTANT": [params],
    }
    logits = model.apply({"params": params}, data[0]).logits
    for verdict, given in cases.items():
        for each in given:
            certificate = certify_cloned(model, {"params": each}, data, partition)
            assert certificate.verdict.name == verdict
    np.testing.assert_allclose(model.apply({"params": cases["NOT_CLONED"][1]}, data[0]).logits, logits, atol=1e-12)
    assert certify_cloned(model, {"params": rotated}, None, partition).verdict is CloneVerdict.UNDECIDED
    for each, proportional in (
        (rotated, (0, 0, 1, 1)),
        (cases["NOT_CLONED"][1], (0, 0, 1, 1)),
        (cases["NOT_CLONED"][0], (0, 1, 2, 2)),
    ):
        found = find_clones(model, {"params": each}, data[0])["heads_0"]
        assert found.proportional == proportional
        assert found.parameters == found.activations == (0, 1, 2, 2)
