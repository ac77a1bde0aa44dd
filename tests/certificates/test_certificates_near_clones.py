"""Random near-clones in every dtype and over twelve decades: no verdict contradicts an oracle in long double."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.certificates import CloneVerdict, certify_cloned, parameter_tolerance
from lopjax.cloning import clone_variables, find_clones, uniform_partition, widen
from lopjax.models import mlp

BASE = mlp((5,), (4, 3), 3, activation="tanh")
WIDE = widen(BASE, 2)
PARTITION = uniform_partition(WIDE.wiring, 2)
DECADES = {"bfloat16": 6, "float16": 2, "float32": 6, "float64": 6}
TRAPPED = (CloneVerdict.BLOCK_CONSTANT, CloneVerdict.ON_V)


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def near_clones(seed, dtype, only=None):
    """Clones, each pair on a scale of its own, with relative noise of one random size in one random place."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(BASE.init, jax.random.key(0))
    base = jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.2, 1, leaf.shape) * random.choice([-1, 1])), shapes)
    params = jax.tree.map(lambda leaf: np.array(leaf, np.float64), clone_variables(base, BASE.wiring, 2)["params"])
    for space, after in (("hidden_0", "hidden_1"), ("hidden_1", "classes")):
        scale = np.repeat(10 ** random.uniform(-DECADES[dtype], DECADES[dtype], params[space]["bias"].size // 2), 2)
        for array in params[space].values():
            array *= scale
        params[after]["kernel"] *= np.repeat(10 ** random.uniform(-2, 2, len(scale) // 2), 2)[:, None] / scale[:, None]
    noise = 0 if random.random() < 0.2 else 10 ** random.uniform(-17, -0.5)
    layer, name = only or [("hidden_0", "kernel"), ("hidden_0", "bias"), ("hidden_1", "kernel")][random.integers(3)]
    array = params[layer][name]
    array[..., random.integers(array.shape[-1])] *= 1 + noise
    cast = jax.tree.map(lambda leaf: jnp.asarray(np.clip(leaf, -6e4, 6e4) if dtype == "float16" else leaf), params)
    return {"params": jax.tree.map(lambda leaf: leaf.astype(dtype), cast)}


def pairs(variables):
    """Of every array and pair of clones: the two slices, in long double, and whether they are incoming ones."""
    for layer, arrays in variables["params"].items():
        for name, leaf in arrays.items():
            array = np.asarray(leaf, np.float64).astype(np.longdouble)
            if layer != "classes":
                yield from ((array[..., j], array[..., j + 1], True) for j in range(0, array.shape[-1], 2))
            if layer != "hidden_0" and name == "kernel":
                yield from ((array[j], array[j + 1], False) for j in range(0, len(array), 2))


def relative(difference, size):
    return float(np.max(np.where(difference == 0, 0, difference / np.where(size == 0, 1, size))))


def differences(variables):
    """Largest difference of a pair over its slice's largest entry, and over the entry itself: the two bounds."""
    by_slice = [relative(np.abs(a - b).max(), np.maximum(np.abs(a), np.abs(b)).max()) for a, b, _ in pairs(variables)]
    by_entry = [relative(np.abs(a - b), np.maximum(np.abs(a), np.abs(b))) for a, b, _ in pairs(variables)]
    return max(by_slice), max(by_entry)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", *map(slow, ("float16", "float32"))])
def test_verdicts_of_parameters_never_contradict_the_oracle(dtype, x64):
    seen = set()
    for seed in range(40):
        variables = near_clones(seed, dtype)
        by_slice, by_entry = differences(variables)
        certificate = certify_cloned(WIDE, variables, None, PARTITION)
        limit = parameter_tolerance(variables["params"])
        assert limit == 64 * np.finfo("float64" if dtype == "float64" else "float32").eps == certificate.tolerance
        seen.add(certificate.verdict)
        if by_slice >= 10 * limit:
            assert certificate.verdict is CloneVerdict.NOT_CLONED, (seed, by_slice)
        if by_entry <= limit:
            assert certificate.verdict is CloneVerdict.BLOCK_CONSTANT, (seed, by_entry)
        if certificate.verdict in TRAPPED:
            assert by_slice <= limit * 1.001
        if certificate.verdict is CloneVerdict.NOT_CLONED:
            assert by_entry >= 9.99 * limit
    assert {CloneVerdict.BLOCK_CONSTANT, CloneVerdict.NOT_CLONED} <= seen


@pytest.mark.parametrize("dtype", [slow("float32"), "float64"])
def test_searching_and_certifying_never_contradict_one_another(dtype, x64):
    """Differences from rounding to a percent, those of 1e-12 to 1e-9 among them, with a batch and without."""
    inputs = np.random.default_rng(1).normal(size=(16, 5))
    batch = (jnp.asarray(inputs, dtype), jnp.arange(16) % 3)
    verdicts = set()
    for seed in range(10 if dtype == "float64" else 4):
        variables = near_clones(seed, dtype, only=("hidden_0", "kernel"))
        found = find_clones(WIDE, variables, inputs)
        with_batch, without = (certify_cloned(WIDE, variables, each, PARTITION) for each in (batch, None))
        verdicts.add(with_batch.verdict)
        is_found = all(found[space].parameters == PARTITION[space] for space in PARTITION)
        for certificate in (with_batch, without):
            assert not (is_found and certificate.verdict is CloneVerdict.NOT_CLONED), seed
            assert not (not is_found and certificate.verdict in TRAPPED), seed
    assert len(verdicts) > 1


@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16")])
def test_a_loud_cluster_hides_no_other(dtype):
    """One true pair 3e5 times as loud, in what it reads, in what it gives or in both; the others are no clones."""
    for side in ("in", "out", "both"):
        variables = near_clones(3, "float32", only=("classes", "bias"))
        params = jax.tree.map(np.array, variables["params"])
        random = np.random.default_rng(0)
        params["hidden_0"]["kernel"] = random.normal(size=(5, 8))
        params["hidden_0"]["kernel"][:, 1] = params["hidden_0"]["kernel"][:, 0]
        params["hidden_0"]["bias"][:2] = 0.5
        if side != "out":
            params["hidden_0"]["kernel"][:, :2] *= 3e5
        if side != "in":
            params["hidden_1"]["kernel"][:2] *= 3e5
        loud = {"params": jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)}
        inputs = random.normal(size=(32, 5)).astype(np.float32)
        batch = (jnp.asarray(inputs), jnp.arange(32) % 3)
        assert certify_cloned(WIDE, loud, batch, PARTITION).verdict is CloneVerdict.NOT_CLONED
        assert certify_cloned(WIDE, loud, None, PARTITION).verdict is CloneVerdict.NOT_CLONED
        found = find_clones(WIDE, loud, inputs)["hidden_0"]
        assert found.parameters == (0, 0, 1, 2, 3, 4, 5, 6)
        assert found.activations == (0, 0, 1, 2, 3, 4, 5, 6)
        alone = {"hidden_0": (0, 0, 1, 2, 3, 4, 5, 6)}
        assert certify_cloned(WIDE, loud, None, alone).verdict is CloneVerdict.BLOCK_CONSTANT  # the control


def test_a_loud_source_hides_no_difference():
    """Weights from one cluster are 1e6 times those from another, from which two targets get different totals."""
    random = np.random.default_rng(0)
    variables = clone_variables(BASE.init(jax.random.key(0)), BASE.wiring, 2)
    kernel = np.array(variables["params"]["hidden_1"]["kernel"]) * np.array([1e6] * 2 + [1.0] * 6)[:, None]
    for size, verdict in ((0.0, CloneVerdict.BLOCK_CONSTANT), (0.5, CloneVerdict.NOT_CLONED)):
        moved = kernel + np.array([0.0] * 2 + [1.0] * 6)[:, None] * size * random.normal(size=kernel.shape)
        params = {**variables["params"], "hidden_1": {**variables["params"]["hidden_1"], "kernel": jnp.asarray(moved)}}
        assert certify_cloned(WIDE, {"params": params}, None, PARTITION).verdict is verdict


def test_running_statistics_over_decades():
    base = mlp((6,), (4,), 3, norm="batch")
    wide = widen(base, 2)
    variables = clone_variables(base.init(jax.random.key(0)), base.wiring, 2)
    partition = uniform_partition(wide.wiring, 2)
    for third, verdict in ((1e-4, CloneVerdict.BLOCK_CONSTANT), (2e-4, CloneVerdict.NOT_CLONED)):
        var = jnp.array([100.0, 100.0, 1e-4, third, 1e-2, 1e-2, 1.0, 1.0])
        statistics = {"hidden_0_norm": {**variables["batch_stats"]["hidden_0_norm"], "var": var}}
        given = {**variables, "batch_stats": statistics}
        assert certify_cloned(wide, given, None, partition).verdict is verdict
        found = find_clones(wide, given, np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32))["hidden_0"]
        assert (found.parameters == partition["hidden_0"]) == (verdict is CloneVerdict.BLOCK_CONSTANT)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_parameters_are_judged_by_their_values(dtype):
    """Every weight with noise of 60 percent of its array's deviation, or of one unit in the last place."""
    variables = clone_variables(BASE.init(jax.random.key(0)), BASE.wiring, 2)
    random = np.random.default_rng(0)
    batch = (jnp.asarray(random.normal(size=(32, 5)), jnp.float32), jnp.arange(32) % 3)
    exact = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    noisy = jax.tree.map(lambda a: (a + 0.6 * np.std(a) * random.normal(size=a.shape)).astype(dtype), variables)
    kernel = exact["params"]["hidden_0"]["kernel"]
    next_up = kernel.at[0, 0].set(jnp.nextafter(kernel[0, 0], jnp.asarray(10, dtype)))
    ulp = {"params": {**exact["params"], "hidden_0": {**exact["params"]["hidden_0"], "kernel": next_up}}}
    for given, verdict in ((exact, "BLOCK_CONSTANT"), (noisy, "NOT_CLONED"), (ulp, "NOT_CLONED")):
        assert certify_cloned(WIDE, given, batch, PARTITION).verdict.name == verdict
        assert certify_cloned(WIDE, given, None, PARTITION).verdict.name == verdict


def test_a_network_that_computes_in_16_bits_is_refused_by_name():
    base = mlp((5,), (4, 3), 3, activation="tanh", compute_dtype="bfloat16")
    wide = widen(base, 2)
    variables = clone_variables(base.init(jax.random.key(0)), base.wiring, 2)
    batch = (jnp.ones((4, 5)), jnp.arange(4) % 3)
    with pytest.raises(ValueError, match="'hidden_0' carries bfloat16"):
        certify_cloned(wide, variables, batch, PARTITION)
    with pytest.raises(ValueError, match="compute_dtype='float32'"):
        find_clones(wide, variables, batch[0])
    assert certify_cloned(wide, variables, None, PARTITION).verdict is CloneVerdict.BLOCK_CONSTANT
