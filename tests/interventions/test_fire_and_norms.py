"""FIRE against NumPy's polar factor; batch norms put in without a change of the function; dead units woken."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import case
from oracles.architectures import ARCHITECTURES, build, every, normal_variables

from lopjax.interventions import REASONS, Setting, fire, insert_norm, intervene, start_intervention, wake_dead_units
from lopjax.interventions.fire import isometric
from lopjax.losses import mean_cross_entropy
from lopjax.models import mlp
from lopjax.signals import observe
from lopjax.testing import Property, check_intervention
from lopjax.training import Task, init_state
from lopjax.wiring import tree_paths

OPTIONS = {
    "mlp": {"activation": "tanh", "norm": "none"},
    "cnn": {"dense": 3, "norm": "none"},
    "resnet": {"blocks": (1, 1), "norm": "none"},
    "vit": {"norm": "none"},
}
NETWORKS = {name: (build(name, **OPTIONS.get(name, {})), row.shape) for name, row in ARCHITECTURES.items()}


def inputs_of(shape, size=7):
    return jnp.asarray(np.random.default_rng(5).normal(size=(size, *shape)))


def polar(matrix):
    """Ten steps of Newton and Schulz on the singular values, which they alone change."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(10):
        values = 1.5 * values - 0.5 * values**3
    return left @ np.diag(values) @ right


# --- FIRE ---------------------------------------------------------------------------------------


def test_fire_turns_kernels_into_isometries(x64):
    """Convolutions position by position, a dense layer behind a flattened map as one matrix; by hand in NumPy."""
    model, shape = NETWORKS["cnn"]
    params = normal_variables(model)["params"]
    taps = jax.eval_shape(model.apply, {"params": params}, inputs_of(shape))[2]
    found = isometric(params, model.wiring, taps)
    kernel = np.asarray(params["conv_1"]["kernel"])  # (3, 3, 2, 3)
    for a, b in np.ndindex(3, 3):
        expected = polar(kernel[a, b]) * np.sqrt(3 / 2) / 9
        np.testing.assert_allclose(found["conv_1"]["kernel"][a, b], expected, atol=1e-12)
    dense = np.asarray(params["dense"]["kernel"])
    expected = polar(dense.reshape(-1, 3)).reshape(dense.shape) * np.sqrt(3 / np.prod(dense.shape[:-1]))
    np.testing.assert_allclose(found["dense"]["kernel"], expected, atol=1e-12)
    np.testing.assert_array_equal(found["dense"]["bias"], params["dense"]["bias"])
    half = isometric(params, model.wiring, taps, 0.5)["dense"]["kernel"]
    np.testing.assert_allclose(half, 0.5 * (dense + found["dense"]["kernel"]), atol=1e-12)


def test_fire_of_a_transformer_takes_queries_and_keys(x64):
    model, shape = NETWORKS["vit"]
    params = normal_variables(model)["params"]
    taps = jax.eval_shape(model.apply, {"params": params}, inputs_of(shape))[2]
    found = isometric(params, model.wiring, taps)
    moved = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: bool(np.any(a != b)), params, found))
    names = {jax.tree_util.keystr(path) for path, is_moved in moved if is_moved}
    assert names == {"['heads_0']['query']['kernel']", "['heads_0']['key']['kernel']"}
    query = np.asarray(params["heads_0"]["query"]["kernel"]).reshape(4, -1)
    np.testing.assert_allclose(found["heads_0"]["query"]["kernel"].reshape(4, -1), polar(query), atol=1e-12)
    everything = isometric(params, model.wiring, taps, arrays=("kernel",))
    assert np.any(everything["mlp_0"]["kernel"] != params["mlp_0"]["kernel"])


def test_fire_acts_where_a_task_starts_and_says_what_it_needs(x64):
    model, shape = NETWORKS["mlp"]
    setting = Setting(model, optax.adam(0.1), mean_cross_entropy)
    state = start_intervention(fire(), setting, init_state(normal_variables(model), setting.optimizer))
    seen = observe(model, state.variables, (inputs_of(shape), jnp.zeros(7, int)), signals=False)
    step = jax.jit(lambda seen, strength: intervene(fire(strength), setting, state, seen, jax.random.key(0), 3))
    start = seen._replace(task=Task(jnp.int32(0), jnp.bool_(True)))
    after, report = step(start, 0.0)
    assert REASONS[report.reason] == "it has left every parameter as it was"
    assert not report.touched["hidden_0"].any()
    for is_start in (True, False):
        after, report = step(seen._replace(task=Task(jnp.int32(0), jnp.bool_(is_start))), 1.0)
        changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), after.variables["params"], state.variables["params"])
        assert changed["hidden_0"] == {"kernel": is_start, "bias": False}
        assert bool(report.touched["hidden_0"].all()) == is_start
    # Without a task, and on a stream whose tasks pass into each other.
    for task in (None, Task(jnp.int32(0), None)):
        with pytest.raises(ValueError, match="fire acts where a task starts, and this stream hides that"):
            intervene(fire(), setting, state, seen._replace(task=task), jax.random.key(0), 3)
    with pytest.raises(ValueError, match=r"arrays=\['query'\]: no kernel has one of these names in its path; kernels"):
        start_intervention(fire(arrays=["query"]), setting, state)


# --- Putting a norm in ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", every(leave_out=("gpt",)))  # tokens are not drawn from a line, and shifted along it
def test_a_batch_norm_is_put_in_without_a_change_of_the_function(x64, name):
    """On inputs that it has not seen; the statistics are those of the batch; a norm as it starts changes much."""
    model, shape = NETWORKS[name]
    variables, batch, others = normal_variables(model), inputs_of(shape), inputs_of(shape, 5) + 1
    new_model, new = insert_norm(model, variables, (batch, None))
    expected, _, taps = jax.jit(model.apply)(variables, jnp.concatenate([batch, others]))
    found = jax.jit(new_model.apply)(new, jnp.concatenate([batch, others]))[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * float(jnp.abs(expected).max()))
    assert dict(new_model.constructor.arguments)["norm"] == "batch"
    normed = _normed_sites(new, {site: np.asarray(tap.pre)[: len(batch)] for site, tap in taps.items()})
    assert normed
    for norm, pre in normed.items():
        offset = _part(new["params"], norm)["offset"]
        np.testing.assert_allclose(offset, pre.mean(axis=0), rtol=0, atol=1e-12)
    fresh = jax.tree.map(lambda leaf: leaf, new)
    target = _part(fresh["params"], next(iter(normed)))
    target["scale"] = jnp.ones_like(target["scale"])
    assert np.abs(jax.jit(new_model.apply)(fresh, batch)[0] - expected[: len(batch)]).max() > 1e-3


def _part(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def _normed_sites(variables, pre):
    """By the path of every norm that acts on the pre-activations of a site: these, `(samples, units)`.

    Found by the variances, which no two arrays share; norms of what is no pre-activation have no site.
    """
    paths = [path[1:-1] for path in tree_paths(variables) if path[0] == "batch_stats" and path[-1] == "var"]
    rows = [values.reshape(-1, values.shape[-1]) for values in pre.values()]
    return {
        path: values
        for path in paths
        for values in rows
        for variance in [_part(variables["batch_stats"], path)["var"]]
        if variance.shape == values.shape[1:] and np.allclose(variance, values.var(axis=0, ddof=1), rtol=1e-9, atol=0)
    }


def test_what_cannot_take_a_norm_is_refused(unchecked):
    model, shape = NETWORKS["mlp"]
    variables = normal_variables(model)
    with pytest.raises(ValueError, match="norm='layer': it divides every sample by a spread of its own"):
        insert_norm(model, variables, inputs_of(shape), norm="layer")
    with pytest.raises(ValueError, match="norm='group': must be 'batch'"):
        insert_norm(model, variables, inputs_of(shape), norm="group")
    with pytest.raises(ValueError, match="does not say how it was made"):
        insert_norm(model._replace(constructor=None), variables, inputs_of(shape))
    normed = mlp((3,), (4, 5), 2, norm="batch")
    with pytest.raises(ValueError, match="the network was made with norm='batch': must be 'none'"):
        insert_norm(normed, normal_variables(normed), inputs_of(shape))


# --- Waking dead units ----------------------------------------------------------------------------


def act(intervention, model, variables, inputs, step=0):
    """The state, what was reported, and logits before and after on the batch."""
    setting = Setting(model, optax.adam(0.1), mean_cross_entropy)
    state = start_intervention(intervention, setting, init_state(variables, setting.optimizer))
    seen = observe(model, variables, (inputs, jnp.zeros(len(inputs), int)), signals=False)
    key = jax.random.key(3)
    after, report = jax.jit(lambda state, seen: intervene(intervention, setting, state, seen, key, step))(state, seen)
    return after, report, seen.logits, model.apply(after.variables, inputs)[0]


def kill(variables, layer, unit, constant):
    """A unit of no incoming weights: its pre-activation is one number everywhere."""
    new = jax.tree.map(lambda leaf: leaf, variables)
    new["params"][layer]["kernel"] = new["params"][layer]["kernel"].at[..., unit].set(0)
    new["params"][layer]["bias"] = new["params"][layer]["bias"].at[unit].set(constant)
    return new


@pytest.mark.parametrize("network", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def test_dead_units_wake_and_the_function_stays(x64, network):
    """A unit constant at c is a bias of what it feeds: moved, by hand in NumPy; a live one is left alone."""
    model, shape = NETWORKS[network]
    layer, reader, constant = ("hidden_0", "hidden_1", 0.7) if network == "mlp" else ("conv_1", "dense", 0.7)
    variables = kill(normal_variables(model), layer, 1, constant)
    after, report, before, now = act(wake_dead_units(1), model, variables, inputs_of(shape))
    np.testing.assert_allclose(now, before, rtol=0, atol=1e-12 * float(np.abs(before).max()))
    assert list(np.flatnonzero(report.touched[layer])) == [1]
    old, new = variables["params"], after.variables["params"]
    value = np.tanh(constant) if network == "mlp" else constant
    fed = value * np.asarray(old[reader]["kernel"][..., 1, :]).reshape(-1, old[reader]["bias"].size).sum(axis=0)
    np.testing.assert_allclose(new[reader]["bias"], old[reader]["bias"] + fed, atol=1e-12)
    assert not np.any(new[reader]["kernel"][..., 1, :])
    assert np.all(new[layer]["kernel"][..., 1] != 0)
    np.testing.assert_array_equal(new[layer]["kernel"][..., 0], old[layer]["kernel"][..., 0])
    # Awake: its activation varies. Zeroing its weights without moving the constant would have changed the function.
    varies = np.asarray(model.apply(after.variables, inputs_of(shape))[2][layer].post)[..., 1]
    assert np.ptp(varies) > 1e-3
    assert np.abs(fed).max() > 1e-3


@pytest.mark.slow
def test_a_constant_at_the_edge_of_a_map_is_left_alone_and_zeros_are_not(x64):
    """Zero padding cuts a constant map; its unit stays as it is, and one at 0 beside it wakes."""
    model, shape = NETWORKS["cnn"]
    variables = kill(kill(normal_variables(model), "conv_0", 1, 0.7), "conv_1", 0, -1.0)
    after, report, before, now = act(wake_dead_units(1), model, variables, inputs_of(shape))
    assert not np.any(report.touched["conv_0"])
    assert list(np.flatnonzero(report.touched["conv_1"])) == [0]
    np.testing.assert_allclose(now, before, rtol=0, atol=1e-12 * float(np.abs(before).max()))
    only = kill(normal_variables(model), "conv_0", 1, 0.7)
    after, report, *_ = act(wake_dead_units(1, spaces=("conv_0",)), model, only, inputs_of(shape))
    assert REASONS[int(report.reason)] == "it would have changed the function by more than its tolerance"
    np.testing.assert_array_equal(after.variables["params"]["conv_0"]["kernel"], only["params"]["conv_0"]["kernel"])


def test_waking_refuses_what_a_norm_couples():
    model = mlp((3,), (4,), 2, norm="layer")
    setting = Setting(model, optax.sgd(0.1), mean_cross_entropy)
    state = init_state(normal_variables(model), setting.optimizer)
    with pytest.raises(ValueError, match=r"a norm averages over the units of .*hidden_0.*reset them with redo"):
        start_intervention(wake_dead_units(spaces=("hidden_0",)), setting, state)


PROMISES = [kind for kind in Property if kind is not Property.UTILITIES]


@pytest.mark.parametrize("network", [pytest.param(name, marks=pytest.mark.slow) for name in ("mlp", "cnn", "resnet")])
def test_waking_keeps_the_promises_of_a_reset(network):
    moves = ("['bias']",)
    check_intervention(lambda: wake_dead_units(3), *case(network), promises=PROMISES, moves=moves)
