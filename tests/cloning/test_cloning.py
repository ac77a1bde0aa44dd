"""Cloning against a NumPy version written from the paper (arXiv 2510.00304, section 4), and what it preserves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax.cloning import (
    clone_factors,
    clone_variables,
    collapse,
    factor_for_widths,
    make_clusters,
    uniform_partition,
    widen,
)
from lopjax.cloning.quotient import clip_by_cloned_norm, multiplicities, quotient_optimizer
from lopjax.losses import mean_cross_entropy
from lopjax.manifolds import cloned_manifold, tangency_residual
from lopjax.models import mlp, vit
from lopjax.wiring import multiplicity

UNEQUAL = {"hidden_0": 3, "hidden_1": 2}
FACTORS = [1, 2, 3, 5, {"hidden_1": 4}, UNEQUAL]


def counts(factor):
    """Clones of the units of input, hidden_0, hidden_1, classes."""
    hidden = [factor.get(f"hidden_{k}", 1) if isinstance(factor, dict) else factor for k in (0, 1)]
    return [1, *hidden, 1]


def base_network(norm="batch", init="pytorch"):
    """A network and variables in which every array is generic, statistics included."""
    model = mlp((4,), (3, 5), 2, activation="tanh", norm=norm, init=init)
    leaves, structure = jax.tree.flatten(model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [leaf + jax.random.uniform(key, leaf.shape, leaf.dtype, 0.1, 0.5) for leaf, key in zip(leaves, keys)]
    return model, jax.tree.unflatten(structure, noise)


def clone_in_numpy(variables, factor):
    """The paper's construction: the block (i, j) of a wide weight matrix is w_ij / n_i, everything else is copied."""
    n = counts(factor)
    layers = ["hidden_0", "hidden_1", "classes"]
    wide = {name: {} for name in variables}
    for k, layer in enumerate(layers):
        base = np.asarray(variables["params"][layer]["kernel"])
        kernel = np.empty((base.shape[0] * n[k], base.shape[1] * n[k + 1]), base.dtype)
        for source in range(kernel.shape[0]):
            for target in range(kernel.shape[1]):
                kernel[source, target] = base[source // n[k], target // n[k + 1]] / n[k]
        bias = np.asarray(variables["params"][layer]["bias"])
        wide["params"][layer] = {"kernel": kernel, "bias": np.array([b for b in bias for _ in range(n[k + 1])])}
    for name, collection in variables.items():
        for layer, arrays in collection.items():
            if layer.endswith("_norm"):
                copies = n[1 + int(layer[len("hidden_")])]
                wide[name][layer] = {key: np.array([v for v in a for _ in range(copies)]) for key, a in arrays.items()}
    return wide


def assert_trees_close(one, other, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), dict(one), dict(other))


@pytest.mark.parametrize("factor", FACTORS, ids=str)
def test_variables_equal_the_papers_construction(x64, factor):
    model, variables = base_network()
    clones = clone_variables(variables, model.wiring, factor)
    assert_trees_close(clones, clone_in_numpy(variables, factor), 1e-16)
    shapes = jax.eval_shape(widen(model, factor).init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, clones) == jax.tree.map(lambda leaf: leaf.shape, shapes)


@pytest.mark.parametrize("factor", FACTORS, ids=str)
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_function_is_preserved(x64, norm, factor):
    model, variables = base_network(norm)
    inputs = jax.random.normal(jax.random.key(2), (7, 4))
    wide, clones = widen(model, factor), clone_variables(variables, model.wiring, factor)
    for train in (False, True):
        logits, after, taps = model.apply(variables, inputs, train=train)
        wide_logits, wide_after, wide_taps = wide.apply(clones, inputs, train=train)
        np.testing.assert_allclose(wide_logits, logits, rtol=0, atol=1e-13)
        assert_trees_close(wide_after, clone_variables(after, model.wiring, factor), 1e-13)
        for site, copies in zip(("hidden_0", "hidden_1"), counts(factor)[1:]):
            np.testing.assert_allclose(wide_taps[site].pre, jnp.repeat(taps[site].pre, copies, 1), atol=1e-13)
    # Control: without the division by the number of clones the function is another.
    undivided = model.wiring.map(
        lambda label, array: array * multiplicity(label, dict(zip(("hidden_0", "hidden_1"), counts(factor)[1:])))[0],
        variables,
    )
    if factor != 1:
        wrong = wide.apply(clone_variables(undivided, model.wiring, factor), inputs).logits
        assert jnp.max(jnp.abs(wrong - model.apply(variables, inputs).logits)) > 1e-2


def test_unequal_factors_under_layer_norm_keep_the_function(x64):
    """Each layer's factor is its own; within one layer all units have the same number of clones."""
    model, variables = base_network("layer")
    inputs = jax.random.normal(jax.random.key(2), (7, 4))
    wide_logits = widen(model, UNEQUAL).apply(clone_variables(variables, model.wiring, UNEQUAL), inputs).logits
    np.testing.assert_allclose(wide_logits, model.apply(variables, inputs).logits, atol=1e-13)


@pytest.mark.parametrize(("factor", "digits"), [(2, 2e-6), (4, 2e-6), (3, 2e-6)])
def test_float32_logits_agree_to_rounding(factor, digits):
    model, variables = base_network()
    inputs = jax.random.normal(jax.random.key(2), (7, 4))
    logits = model.apply(variables, inputs).logits
    wide = widen(model, factor).apply(clone_variables(variables, model.wiring, factor), inputs).logits
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(wide, logits, rtol=0, atol=digits)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_dividing_by_a_power_of_two_rounds_nothing(n):
    model, variables = base_network()
    clones = clone_variables(variables, model.wiring, n)["params"]["hidden_1"]["kernel"]
    np.testing.assert_array_equal(clones[::n, ::n] * n, variables["params"]["hidden_1"]["kernel"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_dtypes_are_kept(x64, dtype):
    model, variables = base_network()
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(clone_variables(cast, model.wiring, 3))} == {jnp.dtype(dtype)}


def test_under_vmap_and_jit(x64):
    model, _ = base_network()
    seeds = jax.vmap(model.init)(jax.random.split(jax.random.key(3), 2))
    together = jax.jit(jax.vmap(lambda variables: clone_variables(variables, model.wiring, UNEQUAL)))(seeds)
    one_by_one = [
        clone_variables(model.init(key), model.wiring, UNEQUAL) for key in jax.random.split(jax.random.key(3), 2)
    ]
    assert_trees_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one), 0)


def test_parameters_alone_and_numpy_integers(unchecked):
    model, variables = base_network()
    whole = clone_variables(variables, model.wiring, 2)
    assert_trees_close(clone_variables(variables["params"], model.wiring, np.int64(2)), whole["params"], 0)
    assert widen(model, {"hidden_0": np.int32(2)}) is widen(model, {"hidden_0": 2})
    assert uniform_partition(model.wiring, {"hidden_0": np.int64(3)}) == {"hidden_0": (0, 0, 0)}


def test_cloning_nothing_changes_nothing():
    model, variables = base_network()
    assert_trees_close(clone_variables(variables, model.wiring, {}), variables, 0)
    assert widen(model, {}) is widen(model, 1) is model


def test_widen_builds_the_wide_architecture():
    model, _ = base_network()
    wide = widen(model, UNEQUAL)
    assert dict(wide.wiring.sizes) == {"input": 4, "hidden_0": 9, "hidden_1": 10, "classes": 2}
    assert wide is mlp((4,), (9, 10), 2, activation="tanh", norm="batch")
    assert wide.wiring.labels == model.wiring.labels
    assert dict(model.wiring.sizes)["hidden_0"] == 3


def test_uniform_partition_lists_adjacent_clones():
    wide = widen(base_network()[0], UNEQUAL)
    assert uniform_partition(wide.wiring, UNEQUAL) == {
        "hidden_0": (0, 0, 0, 1, 1, 1, 2, 2, 2),
        "hidden_1": (0, 0, 1, 1, 2, 2, 3, 3, 4, 4),
    }
    assert uniform_partition(wide.wiring, {"hidden_1": 2}) == {"hidden_1": (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)}
    assert uniform_partition(wide.wiring, 1)["hidden_0"] == tuple(range(9))


@pytest.mark.parametrize(
    "factor", [2.0, np.float32(2), jnp.int32(2), np.uint8(2), np.array(2)], ids=lambda n: str(type(n))
)
def test_every_kind_of_number_is_a_factor(unchecked, factor):
    model, _ = base_network()
    assert clone_factors(model.wiring, factor) == {"hidden_0": 2, "hidden_1": 2}
    if np.issubdtype(np.asarray(factor).dtype, np.integer):
        assert clone_factors(model.wiring, {"hidden_0": [factor, 1, 1]}) == {"hidden_0": (2, 1, 1)}


# --- Unequal numbers of clones --------------------

WIDTHS = {
    "listed": {"hidden_0": [3, 1, 2], "hidden_1": (1, 1, 4, 1, 2)},
    "one space, an array": {"hidden_1": np.array([2, 1, 1, 1, 3])},
    "a fraction": {"hidden_0": 4 / 3, "hidden_1": 1.4},
}


def unequal_in_numpy(variables, counts):
    """Net2Net, entry by entry: copy (i, j) of a weight is w_ij over the number of clones of i."""
    layers = ["hidden_0", "hidden_1", "classes"]
    n = [[1] * 4, *(list(counts.get(f"hidden_{k}", [1] * size)) for k, size in ((0, 3), (1, 5))), [1] * 2]
    units = [[unit for unit, copies in enumerate(space) for _ in range(copies)] for space in n]
    wide = {name: {} for name in variables}
    for k, layer in enumerate(layers):
        base, bias = (np.asarray(variables["params"][layer][name]) for name in ("kernel", "bias"))
        kernel = np.array([[base[i, j] / n[k][i] for j in units[k + 1]] for i in units[k]])
        wide["params"][layer] = {"kernel": kernel, "bias": bias[units[k + 1]]}
    for name, collection in variables.items():
        for layer, arrays in collection.items():
            if layer.endswith("_norm"):
                wide[name][layer] = {key: np.asarray(a)[units[1 + int(layer[7])]] for key, a in arrays.items()}
    return wide


@pytest.mark.parametrize("name", WIDTHS)
def test_unequal_numbers_of_clones_keep_the_function_and_stay_clones(x64, name):
    model, variables = base_network("batch")
    factor = WIDTHS[name]
    counts = {
        space: np.broadcast_to(n, model.wiring.size(space)) for space, n in clone_factors(model.wiring, factor).items()
    }
    wide, clones = widen(model, factor), clone_variables(variables, model.wiring, factor)
    assert_trees_close(clones, unequal_in_numpy(variables, counts), 1e-16)
    partition = uniform_partition(wide.wiring, factor)
    assert {space: tuple(np.bincount(ids)) for space, ids in partition.items()} == {
        space: tuple(n) for space, n in counts.items()
    }
    inputs, labels = jax.random.normal(jax.random.key(2), (7, 4)), jnp.arange(7) % 2

    @partial(jax.jit, static_argnums=0)
    def run(model, variables):
        def loss(params):
            logits = model.apply({**variables, "params": params}, inputs, train=True).logits
            return mean_cross_entropy(logits, labels), logits

        (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return logits, gradient

    logits, gradient = run(wide, clones)
    expected, base_gradient = run(model, variables)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-13)
    leaf = cloned_manifold(clones["params"], wide.wiring, partition)
    assert tangency_residual(leaf, gradient) < 1e-13
    # dL/dW of each copy is the base gradient over the number of its clones.
    n_out = multiplicities(base_gradient, model.wiring, factor)[1]
    of_copy = jax.tree.map(lambda g, n: g / n, base_gradient, n_out)
    kernel = of_copy["hidden_1"]["kernel"]
    units = [np.repeat(np.arange(size), counts.get(space, 1)) for space, size in (("hidden_0", 3), ("hidden_1", 5))]
    np.testing.assert_allclose(gradient["hidden_1"]["kernel"], kernel[np.ix_(*units)], atol=1e-14)
    # Control: divided by the mean number of clones, the function is another.
    mean = jax.tree.map(lambda a: a, clones)
    for space in partition:
        layer = {"hidden_0": "hidden_1", "hidden_1": "classes"}[space]
        each = np.repeat(counts[space], counts[space])[:, None]
        mean["params"][layer]["kernel"] = mean["params"][layer]["kernel"] * each / np.mean(counts[space])
    assert jnp.max(jnp.abs(run(wide, mean)[0] - expected)) > 1e-2


def test_training_unequal_clones_is_training_the_base_with_its_quotient_optimizer(x64):
    model, variables = base_network("none")
    factor = WIDTHS["listed"]
    wide, clones = widen(model, factor), clone_variables(variables, model.wiring, factor)
    inputs, labels = jax.random.normal(jax.random.key(2), (7, 4)), jnp.arange(7) % 2
    optimizer = optax.chain(
        clip_by_cloned_norm(0.05, model.wiring, factor), quotient_optimizer(optax.adamw(0.01), model.wiring, factor)
    )
    direct = optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(0.01))

    def train(network, optimizer, params):
        def step(_, carry):
            params, state = carry
            gradient = jax.grad(lambda p: mean_cross_entropy(network.apply({"params": p}, inputs).logits, labels))(
                params
            )
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        return jax.jit(lambda params: jax.lax.fori_loop(0, 30, step, (params, optimizer.init(params)))[0])(params)

    small = train(model, optimizer, variables["params"])
    large = train(wide, direct, clones["params"])
    assert_trees_close(large, clone_variables(small, model.wiring, factor), 1e-12)
    assert np.abs(small["hidden_0"]["kernel"] - variables["params"]["hidden_0"]["kernel"]).max() > 0.05


def test_net2net_widths(unchecked):
    model = mlp((4,), (64,), 10)
    shape = clone_variables(model.init(jax.random.key(0)), model.wiring, 1.5)["params"]["hidden_0"]["kernel"].shape
    assert shape == (4, 96)
    assert clone_factors(model.wiring, 1.5) == {"hidden_0": (2,) * 32 + (1,) * 32}
    assert factor_for_widths(model.wiring, {"hidden_0": 97}) == {"hidden_0": (2,) * 33 + (1,) * 31}
    drawn, again, other = (factor_for_widths(model.wiring, {"hidden_0": 300}, seed)["hidden_0"] for seed in (0, 0, 1))
    assert drawn == again != other
    assert (sum(drawn), min(drawn)) == (300, 1)
    assert len(set(drawn)) > 3  # drawn with replacement
    for width, seed in ((63, None), (96.0, None), (True, 0)):
        with pytest.raises(ValueError, match=rf"width={width} of 'hidden_0': must be an integer of at least .* 64"):
            factor_for_widths(model.wiring, {"hidden_0": width}, seed)


def test_layer_norm_wants_equal_numbers_of_clones():
    """It averages over the units: with clones (2, 1, 1) the mean is another. Equal numbers are allowed."""
    model = mlp((4,), (3, 5), 2, norm="layer", affine=False)
    with pytest.raises(ValueError, match=r"factor=\[2, 1, 1\] for 'hidden_0': a layer norm averages over its units"):
        clone_variables(model.init(jax.random.key(0)), model.wiring, {"hidden_0": [2, 1, 1]})
    assert clone_factors(model.wiring, {"hidden_0": [2, 2, 2], "hidden_1": 3}) == {"hidden_0": 2, "hidden_1": 3}
    tokens = vit((4, 4, 1), 3, patch=2, width=4, depth=1, heads=2, mlp_ratio=1.0).wiring
    assert tokens.coupled == {"width"}
    assert base_network("batch")[0].wiring.coupled == frozenset()


@pytest.mark.slow
def test_unequal_heads_and_hidden_units_of_a_transformer_keep_the_function(x64):
    model = vit((4, 4, 1), 3, patch=2, width=4, depth=1, heads=2, mlp_ratio=1.0)
    variables, inputs = model.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
    others = [space for space in model.wiring.cloneable if space not in model.wiring.coupled]
    factor = {space: [2] + [1] * (model.wiring.size(space) - 1) for space in others}
    assert len(others) >= 2
    wide = widen(model, factor).apply(clone_variables(variables, model.wiring, factor), inputs).logits
    np.testing.assert_allclose(wide, model.apply(variables, inputs).logits, atol=1e-13)


BAD = [
    (0, r"factor=0: must be a positive integer"),
    (-1, r"factor=-1: must be a positive integer"),
    (0.5, r"factor=0\.5: must be a positive integer, a number of at least 1, or one integer per unit"),
    (float("nan"), r"factor=nan: must be a positive integer"),
    (float("inf"), r"factor=inf: must be a positive integer"),
    (True, r"factor=True: must be a positive integer"),
    ("2", r"factor='2': must be a positive integer"),
    (None, r"factor=None: must be a positive integer"),
    ({"hidden_0": [2, 0, 1]}, r"factor=0 of unit 1 for 'hidden_0': must be a positive integer"),
    ({"hidden_0": [2, 1.5, 1]}, r"factor=1\.5 of unit 1 for 'hidden_0': must be a positive integer"),
    ({"input": [1, 1, 1, 2]}, r"unit space 'input' is fixed \(a network input: no array writes it\): only"),
    ({"hidden_0": 0}, r"factor=0 for 'hidden_0': must be a positive integer"),
    ({"hidden_0": 3, "hidden_1": False}, r"factor=False for 'hidden_1': must be a positive integer"),
    ({"hidden_7": 2}, r"unit space 'hidden_7': not in this wiring; its spaces are \['input', 'hidden_0', 'hidden_1', "),
    (
        {"input": 2},
        r"unit space 'input' is fixed \(a network input: .*\): only \['hidden_0', 'hidden_1'\] can be cloned",
    ),
    (
        {"classes": 2},
        r"unit space 'classes' is fixed \(a network output: .*\): only \['hidden_0', 'hidden_1'\] can be cloned",
    ),
]


@pytest.mark.parametrize(("factor", "message"), BAD, ids=[str(factor) for factor, _ in BAD])
def test_bad_factors(unchecked, factor, message):
    model, variables = base_network()
    for attempt in (
        lambda: clone_variables(variables, model.wiring, factor),
        lambda: widen(model, factor),
        lambda: uniform_partition(model.wiring, factor),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()


@pytest.mark.parametrize(
    ("factor", "of_base", "of_wide"),
    [
        (1.5, "factor=1.5: 3 units would become 4.5; .* factor_for_widths", "factor=1.5: does not divide the 5 units"),
        ({"hidden_0": [1, 2]}, "factor for 'hidden_0': 2 numbers of clones for 3 units", None),
        ({"hidden_0": [2, 2, 2]}, None, "factor for 'hidden_0': makes 6 units, there are 3; pass the cloned wiring"),
    ],
)
def test_factors_that_do_not_fit(factor, of_base, of_wide):
    model, variables = base_network()
    if of_base:
        with pytest.raises(ValueError, match=of_base):
            clone_variables(variables, model.wiring, factor)
    if of_wide:
        with pytest.raises(ValueError, match=of_wide):
            uniform_partition(model.wiring, factor)


def test_partition_needs_a_factor_that_divides():
    with pytest.raises(ValueError, match=r"factor=2: does not divide the 3 units of 'hidden_0'"):
        uniform_partition(base_network()[0].wiring, 2)


def test_variables_of_another_network_are_refused():
    model, variables = base_network()
    plain = mlp((4,), (3, 5), 2, activation="tanh")
    with pytest.raises(ValueError, match=r"without a label \['batch_stats/hidden_0_norm/mean'"):
        clone_variables(variables, plain.wiring, 2)
    with pytest.raises(ValueError, match=r"missing \['params/hidden_0_norm/"):
        clone_variables(plain.init(jax.random.key(0))["params"], model.wiring, 2)


def test_collapse_undoes_cloning_and_keeps_the_function_on_all_of_v(x64):
    """Unequal clusters, exact numbers of clones: bit for bit. On V, off BC: the same function with other weights."""
    base, random = mlp((4,), (3, 2), 2, activation="tanh"), np.random.default_rng(0)
    shapes = jax.eval_shape(base.init, jax.random.key(0))
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), shapes)
    factor = {"hidden_0": (1, 2, 4), "hidden_1": 2}
    wiring, cloned = widen(base, factor).wiring, clone_variables(variables, base.wiring, factor)
    partition = uniform_partition(wiring, factor)
    jax.tree.map(np.testing.assert_array_equal, collapse(cloned, wiring, partition), variables)

    moved = jax.tree.map(np.array, cloned)
    kernel = moved["params"]["hidden_1"]["kernel"]
    kernel[1:3] += np.outer([0.25, -0.25], [1, 1, 3, 3])  # clones that give different amounts
    kernel[1:3] += np.outer([0.5, -0.5], [1, -1, 0, 0])  # the gauge
    back = collapse(moved, wiring, partition)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-15), back, variables)
    kernel[1] += 0.5  # control: what is given in all
    apart = collapse(moved, wiring, partition)["params"]["hidden_1"]["kernel"]
    np.testing.assert_allclose(apart - back["params"]["hidden_1"]["kernel"], [[0, 0], [0.5, 0.5], [0, 0]], atol=1e-15)

    half = collapse(jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), cloned), wiring, partition)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype("float32")}
    with pytest.raises(ValueError, match="not in this wiring"):
        collapse(cloned, wiring, {"hidden_9": (0, 0)})


def test_clusters_are_hashable_and_equal_where_units_are_divided_alike():
    one, same, other = (make_clusters(ids) for ids in ((5, 5, 2, 5), (0, 0, 1, 0), (0, 1, 1, 0)))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != (0, 0, 1, 0)
