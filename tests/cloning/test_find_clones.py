"""Planted clones are found, by activations and by parameters; what only looks like a clone is told apart."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.cloning import clone_variables, find_clones, refine_partition, widen
from lopjax.models import mlp
from lopjax.wiring import In, Label, Out, build_wiring

INPUTS = np.random.default_rng(0).normal(size=(64, 6))
pytestmark = pytest.mark.usefixtures("x64")


def by_first_appearance(clusters):
    order = list(dict.fromkeys(clusters))
    return tuple(order.index(cluster) for cluster in clusters)


def centred(noise, clusters, axis):
    """Subtract the mean over every cluster along an axis: afterwards the sums over clusters are zero."""
    noise = np.moveaxis(noise, axis, 0).copy()
    for cluster in set(clusters):
        members = [unit for unit, each in enumerate(clusters) if each == cluster]
        noise[members] -= noise[members].mean(axis=0)
    return np.moveaxis(noise, 0, axis)


def plant(base, partition, gauge, random):
    """A point of V: `base` with cluster sizes of `partition`, plus noise that leaves RE and CE alone.

    The block (i, j) is w_ij / n_i plus noise without row and column sums.
    """
    spaces = ["input", "hidden_0", "hidden_1", "classes"]
    planted = {}
    for reads, writes in pairwise(spaces):
        kernel, bias = (np.asarray(base[writes][name]) for name in ("kernel", "bias"))
        sources = partition.get(reads, tuple(range(kernel.shape[0])))
        targets = partition.get(writes, tuple(range(kernel.shape[1])))
        wide = kernel[np.ix_(sources, targets)] / np.bincount(sources)[list(sources)][:, None]
        noise = centred(centred(gauge * random.normal(size=wide.shape), sources, 0), targets, 1)
        planted[writes] = {"kernel": wide + noise, "bias": bias[list(targets)]}
        if f"{writes}_norm" in base:
            arrays = base[f"{writes}_norm"]
            planted[f"{writes}_norm"] = {name: np.asarray(array)[list(targets)] for name, array in arrays.items()}
    return jax.tree.map(jnp.asarray, planted)


def planted_network(gauge=0.0, norm="none", activation="tanh", seed=0):
    """Unequal clusters in random order: `(model, variables, {space: cluster ids})`."""
    random = np.random.default_rng(seed)
    base = mlp((6,), (4, 3), 2, activation=activation, norm=norm)
    partition = {
        "hidden_0": tuple(random.permutation([0, 0, 0, 1, 2, 2, 3, 3, 3, 3]).tolist()),
        "hidden_1": tuple(random.permutation([0, 0, 1, 1, 1, 2]).tolist()),
    }
    model = mlp((6,), (10, 6), 2, activation=activation, norm=norm)
    start = base.init(jax.random.key(seed))["params"]
    variables = dict(model.init(jax.random.key(9))) | {"params": plant(start, partition, gauge, random)}
    return model, variables, {space: by_first_appearance(clusters) for space, clusters in partition.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("gauge", [0.0, 0.3, 30.0])
def test_planted_clusters_are_found_on_and_off_block_constant_points(gauge, norm, seed):
    model, variables, expected = planted_network(gauge, norm, seed=seed)
    found = find_clones(model, variables, INPUTS)
    assert {space: clones.parameters for space, clones in found.items()} == expected
    assert {space: clones.activations for space, clones in found.items()} == expected
    assert all(clones.agree and clones.silent == 0 for clones in found.values())


def test_totals_that_cancel_tell_nothing_apart():
    """Column totals of zero are rounding noise, not a signature: they must not be scaled up."""
    random = np.random.default_rng(0)
    base = mlp((6,), (4, 3), 2, activation="tanh", init="lecun").init(jax.random.key(0))["params"]
    base["hidden_1"]["kernel"] -= base["hidden_1"]["kernel"].mean(axis=0)
    base["classes"]["kernel"] = jnp.ones((3, 2))
    clusters = {"hidden_0": (0, 0, 0, 1, 2, 2, 3, 3, 3, 3), "hidden_1": (0, 0, 1, 1, 1, 2)}
    wide = mlp((6,), (10, 6), 2, activation="tanh", init="lecun")
    found = refine_partition(plant(base, clusters, 0.5, random), wide.wiring, 1e-8)
    # hidden_1 is also told apart by what each hidden_0 cluster sends it.
    assert found["hidden_0"] == clusters["hidden_0"]
    assert found["hidden_1"] == clusters["hidden_1"]


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_uniform_clones_are_found(norm):
    base = mlp((6,), (4, 3), 2, norm=norm)
    wide = widen(base, 3)
    found = find_clones(wide, clone_variables(base.init(jax.random.key(0)), base.wiring, 3), INPUTS)
    assert found["hidden_0"].parameters == (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
    assert found["hidden_1"].parameters == (0, 0, 0, 1, 1, 1, 2, 2, 2)
    assert found["hidden_1"].agree


def test_clones_survive_training_in_float32():
    with jax.enable_x64(False):
        base = mlp((6,), (4, 3), 2, activation="tanh")
        wide = widen(base, 2)
        params = clone_variables(base.init(jax.random.key(0)), base.wiring, 2)["params"]
        inputs = jnp.asarray(INPUTS, jnp.float32)
        gradient = jax.jit(
            jax.grad(lambda p: jnp.mean(jnp.square(wide.apply({"params": p}, inputs).logits - inputs[:, :2])))
        )
        for _ in range(50):
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params))
        found = find_clones(wide, {"params": params}, inputs)
    assert found["hidden_0"].parameters == found["hidden_0"].activations == (0, 0, 1, 1, 2, 2, 3, 3)
    assert found["hidden_1"].parameters == found["hidden_1"].activations == (0, 0, 1, 1, 2, 2)


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_control_a_random_network_has_no_clones(activation, norm):
    model = mlp((6,), (12, 9), 2, activation=activation, norm=norm)
    found = find_clones(model, model.init(jax.random.key(0)), INPUTS)
    assert {space: len(clones.activations) for space, clones in found.items()} == {"hidden_0": 12, "hidden_1": 9}
    for clones in found.values():
        singletons = tuple(range(len(clones.activations)))
        assert clones.activations == clones.parameters == clones.proportional == singletons
        assert clones.agree


def test_clones_of_the_activations_only():
    """Equal incoming, unequal outgoing weights (RE without CE): equal now, not trapped."""
    model, variables, expected = planted_network()
    kernel = variables["params"]["classes"]["kernel"]
    kernel = kernel + jax.random.normal(jax.random.key(5), kernel.shape)
    variables["params"]["classes"]["kernel"] = kernel
    found = find_clones(model, variables, INPUTS)
    assert found["hidden_1"].activations == expected["hidden_1"]
    assert found["hidden_1"].parameters == tuple(range(6))
    assert not found["hidden_1"].agree
    # Backward signals differ inside hidden_1, so its clusters send nothing block-constant back: RE of hidden_0 stays,
    # but CE towards singletons of hidden_1 still holds at a block-constant point.
    assert found["hidden_0"].activations == expected["hidden_0"]


def test_clones_of_the_parameters_backward_only_are_not_clones():
    """Equal outgoing, unequal incoming weights (CE without RE)."""
    model, variables, _ = planted_network()
    bias = variables["params"]["hidden_1"]["bias"]
    variables["params"]["hidden_1"]["bias"] = bias + jnp.arange(6.0)
    found = find_clones(model, variables, INPUTS)["hidden_1"]
    assert found.parameters == found.activations == tuple(range(6))


def rescale(variables, space, after, scales):
    """Multiply the incoming parameters of every unit of a space, and divide its outgoing weights."""
    params = jax.tree.map(jnp.asarray, variables["params"])
    incoming = {name: array * scales for name, array in params[space].items()}
    outgoing = params[after] | {"kernel": params[after]["kernel"] / scales[:, None]}
    return {"params": params | {space: incoming, after: outgoing}}


@pytest.mark.parametrize(
    ("activation", "scales"),
    [("relu", np.array([1.0, 2.0, 0.5, 7.0, 1e-3, 3.0])), ("tanh", np.array([1.0, -1.0, -1.0, 1.0, -1.0, -1.0]))],
)
def test_proportional_clones_are_invisible_to_parameters(activation, scales):
    """ReLU units up to a positive scale and odd units up to sign: the same function, other clones."""
    model, variables, expected = planted_network(activation=activation, seed=1)
    twisted = rescale(variables, "hidden_1", "classes", scales)
    np.testing.assert_allclose(
        model.apply(twisted, jnp.asarray(INPUTS)).logits, model.apply(variables, jnp.asarray(INPUTS)).logits, atol=1e-13
    )
    found = find_clones(model, twisted, INPUTS)["hidden_1"]
    assert found.proportional == expected["hidden_1"]
    assert found.activations != expected["hidden_1"]
    assert found.parameters == found.activations
    assert find_clones(model, variables, INPUTS)["hidden_1"].activations == expected["hidden_1"]


def test_sign_clones_on_inputs_that_tie():
    """x and -x in one batch: an odd unit's largest activation then comes with both signs."""
    model, variables, expected = planted_network(activation="tanh", seed=1)
    params = jax.tree.map(jnp.asarray, variables["params"])
    for space in ("hidden_0", "hidden_1"):
        params[space]["bias"] = jnp.zeros_like(params[space]["bias"])
    twisted = rescale({"params": params}, "hidden_1", "classes", np.array([1.0, -1.0, -1.0, 1.0, -1.0, -1.0]))
    inputs = np.concatenate([INPUTS[:20], -INPUTS[:20]])
    # Rounding that differs between clones.
    kernel = twisted["params"]["hidden_1"]["kernel"]
    noise = 1e-14 * np.random.default_rng(3).normal(size=kernel.shape)
    twisted["params"]["hidden_1"]["kernel"] = kernel * (1 + noise)
    assert find_clones(model, twisted, inputs)["hidden_1"].proportional == expected["hidden_1"]


def test_small_units_are_not_taken_for_each_other():
    """Similarity is relative to the two units compared, not to the largest of the layer."""
    model = mlp((6,), (5, 4), 2)
    variables = model.init(jax.random.key(0))
    variables = rescale(variables, "hidden_1", "classes", np.array([1e12, 1.0, 1.0, 1.0]))
    found = find_clones(model, variables, INPUTS)["hidden_1"]
    alive = 4 - found.silent
    assert alive >= 3
    assert len(set(found.activations)) == alive + (found.silent > 0)


def test_silent_units_are_counted():
    model = mlp((6,), (7, 5), 2)
    params = model.init(jax.random.key(2))["params"]
    params["hidden_0"]["bias"] = params["hidden_0"]["bias"].at[jnp.array([1, 4])].set(-1e3)
    found = find_clones(model, {"params": params}, INPUTS)["hidden_0"]
    assert found.silent == 2
    assert found.activations == found.proportional == (0, 1, 2, 3, 1, 4, 5)
    assert found.parameters == tuple(range(7))
    assert not found.agree


def test_a_batch_too_small_merges_units_that_a_larger_one_separates():
    """Two ReLU units that differ only on inputs the batch does not hold: alike by activation, not by parameters."""
    model = mlp((2,), (2,), 2)
    kernel = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    layer = {"kernel": kernel, "bias": jnp.zeros(2)}
    params = {"hidden_0": layer, "classes": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}
    narrow = find_clones(model, {"params": params}, np.array([[1.0, 0.0], [2.0, 0.0]]))["hidden_0"]
    assert (narrow.activations, narrow.parameters, narrow.agree) == ((0, 0), (0, 1), False)
    wide = find_clones(model, {"params": params}, np.array([[1.0, 0.0], [2.0, 1.0]]))["hidden_0"]
    assert wide.activations == (0, 1)


def test_tolerance_decides_what_is_the_same():
    model, variables, expected = planted_network()
    bias = variables["params"]["hidden_0"]["bias"]
    variables["params"]["hidden_0"]["bias"] = bias + 1e-6 * jnp.arange(10)
    assert find_clones(model, variables, INPUTS)["hidden_0"].parameters == tuple(range(10))
    loose = find_clones(model, variables, INPUTS, tolerance=1e-2)["hidden_0"]
    assert loose.parameters == loose.activations == expected["hidden_0"]


def test_two_output_axes_are_compared_entry_by_entry():
    """[[0, 1], [1, 0]] over two written spaces: means over either axis agree, the entries do not."""
    paths = {name: ("params", name) for name in ("kernel", "left", "right")}
    labels = {
        paths["kernel"]: Label((In("input"), Out("b"), Out("c"))),
        paths["left"]: Label((In("b"), Out("classes"))),
        paths["right"]: Label((In("c"), Out("classes"))),
    }
    shapes = {paths["kernel"]: (1, 2, 2), paths["left"]: (2, 1), paths["right"]: (2, 1)}
    wiring = build_wiring(labels, shapes, {})
    params = {"kernel": np.array([[[0.0, 1.0], [1.0, 0.0]]]), "left": np.ones((2, 1)), "right": np.ones((2, 1))}
    found = refine_partition(params, wiring, 1e-8)
    assert found["b"] == found["c"] == (0, 1)
    equal = refine_partition(params | {"kernel": np.ones((1, 2, 2))}, wiring, 1e-8)
    assert equal["b"] == equal["c"] == (0, 0)


def test_refinement_finds_the_coarsest_partition_of_a_small_network():
    """Against brute force: of all partitions of both spaces that satisfy RE and CE, the one with fewest clusters."""
    model = mlp((6,), (4, 3), 2, activation="tanh")
    random = np.random.default_rng(2)
    base = mlp((6,), (2, 2), 2, activation="tanh").init(jax.random.key(4))["params"]
    params = plant(base, {"hidden_0": (0, 1, 0, 1), "hidden_1": (0, 0, 1)}, 0.4, random)
    kernels = [np.asarray(params[space]["kernel"]) for space in ("hidden_0", "hidden_1", "classes")]

    def all_partitions(size):
        partitions = [(0,)]
        for _ in range(size - 1):
            partitions = [(*p, c) for p in partitions for c in range(max(p) + 2)]
        return partitions

    def is_equitable(first, second):
        sides = [tuple(range(6)), first, second, (0, 1)]
        for kernel, sources, targets in zip(kernels, sides, sides[1:]):
            for i in set(sources):
                for j in set(targets):
                    block = kernel[np.ix_(np.equal(sources, i), np.equal(targets, j))]
                    if max(np.ptp(block.sum(0)), np.ptp(block.sum(1))) > 1e-9:
                        return False
        biases = [(params["hidden_0"]["bias"], first), (params["hidden_1"]["bias"], second)]
        return all(np.ptp(np.asarray(b)[np.equal(p, c)]) < 1e-9 for b, p in biases for c in set(p))

    equitable = [(p, q) for p in all_partitions(4) for q in all_partitions(3) if is_equitable(p, q)]
    coarsest = min(equitable, key=lambda pair: len(set(pair[0])) + len(set(pair[1])))
    found = refine_partition(params, model.wiring, 1e-8)
    assert coarsest == (found["hidden_0"], found["hidden_1"]) == ((0, 1, 0, 1), (0, 0, 1))
    assert len(equitable) > 1  # the finer ones are there too: singletons at least
