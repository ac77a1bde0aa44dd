"""The multilayer perceptron against plain NumPy in float64, its taps, dropout, initialisation and bad arguments."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from lopjax.models import ACTIVATIONS, mlp
from lopjax.models.layers import dropout

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
IN_NUMPY = {
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.maximum(z, 0.01 * z),
    "tanh": np.tanh,
    "sigmoid": special.expit,
    "gelu": lambda z: z * special.ndtr(z),
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "selu": lambda z: SELU_SCALE * np.where(z > 0, z, SELU_ALPHA * np.expm1(np.minimum(z, 0))),
    "silu": lambda z: z * special.expit(z),
    "identity": lambda z: z,
}
NORMS = [("none", True), ("batch", True), ("batch", False), ("layer", True), ("layer", False)]


def generic(variables, seed=1):
    """The same variables with every array moved off its special start (scales 1, offsets 0, statistics 0 and 1)."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + random.uniform(0.1, 0.5, leaf.shape).astype(leaf.dtype), variables)


def numpy_forward(variables, x, activation, norm, affine, train, depth=2):
    """Logits, running statistics by PyTorch's rule, and `{site: (pre, post)}`."""
    params = jax.tree.map(np.asarray, variables["params"])
    statistics, taps = {}, {}
    h = np.asarray(x).reshape(len(x), -1)
    for k in range(depth):
        layer = f"hidden_{k}"
        z = h @ params[layer]["kernel"] + params[layer]["bias"]
        if norm == "batch":
            running = variables["batch_stats"][f"{layer}_norm"]
            mean, variance = (
                (z.mean(0), z.var(0)) if train else (np.asarray(running["mean"]), np.asarray(running["var"]))
            )
            if train:
                statistics[f"{layer}_norm"] = {
                    "mean": 0.9 * running["mean"] + 0.1 * mean,
                    "var": 0.9 * running["var"] + 0.1 * z.var(0, ddof=1),
                }
            z = (z - mean) / np.sqrt(variance + 1e-5)
        elif norm == "layer":
            z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5)
        if norm != "none" and affine:
            z = z * params[f"{layer}_norm"]["scale"] + params[f"{layer}_norm"]["offset"]
        h = IN_NUMPY[activation](z)
        taps[layer] = (z, h)
    return h @ params["classes"]["kernel"] + params["classes"]["bias"], statistics, taps


@pytest.mark.parametrize(("norm", "affine"), NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_pass_against_numpy(x64, activation, norm, affine):
    model = mlp((2, 3), (5, 4), 3, activation=activation, norm=norm, affine=affine)
    variables = generic(jax.tree.map(lambda leaf: np.zeros(leaf.shape), jax.eval_shape(model.init, jax.random.key(0))))
    variables = generic(jax.tree.map(lambda a: a * np.random.default_rng(a.size).normal(size=a.shape), variables), 2)
    variables = jax.tree_util.tree_map_with_path(
        lambda p, a: jnp.asarray(abs(a) if p[-1].key == "var" else a), variables
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2, 3)))
    for train in (False, True):
        logits, after, taps = model.apply(variables, x, train=train)
        expected, statistics, sites = numpy_forward(variables, x, activation, norm, affine, train)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)
        for site, (pre, post) in sites.items():
            np.testing.assert_allclose(taps[site].pre, pre, rtol=0, atol=1e-12)
            np.testing.assert_allclose(taps[site].post, post, rtol=0, atol=1e-12)
            assert (taps[site].space, taps[site].activation) == (site, activation)
        for layer, arrays in statistics.items():
            for name, value in arrays.items():
                np.testing.assert_allclose(after["batch_stats"][layer][name], value, rtol=0, atol=1e-13)
                assert np.max(np.abs(value - variables["batch_stats"][layer][name])) > 1e-3
        if not train:
            jax.tree.map(np.testing.assert_array_equal, dict(after), dict(variables))
    assert list(taps) == ["hidden_0", "hidden_1"]


def test_arrays_of_each_norm():
    def names(**options):
        shapes = jax.eval_shape(mlp((4,), (3,), 2, **options).init, jax.random.key(0))
        return {name: sorted(layer) for name, layer in shapes["params"].items()}, sorted(shapes)

    assert names() == ({"classes": ["bias", "kernel"], "hidden_0": ["bias", "kernel"]}, ["params"])
    assert names(norm="layer")[0]["hidden_0_norm"] == ["offset", "scale"]
    assert "hidden_0_norm" not in names(norm="layer", affine=False)[0]
    assert names(norm="batch", affine=False)[1] == ["batch_stats", "params"]


def batch_norm_layer(x):
    """Batch-normalised `x` and updated statistics, from a one-layer network whose kernel is the identity."""
    model = mlp((2,), (2,), 2, activation="identity", norm="batch")
    variables = model.init(jax.random.key(0))
    dense = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
    variables = {**variables, "params": {**variables["params"], "hidden_0": dense}}
    _, after, taps = model.apply(variables, x, train=True)
    return taps["hidden_0"].pre, after["batch_stats"]["hidden_0_norm"]


def test_variance_survives_a_large_mean():
    """float32, mean 10^4, deviation 1: E x² - (E x)² has no correct digit left."""
    x = (1e4 + np.random.default_rng(0).normal(size=(256, 2))).astype(np.float32)
    normalised, _ = batch_norm_layer(jnp.asarray(x))
    exact = (x.astype(np.float64) - x.astype(np.float64).mean(0)) / x.astype(np.float64).std(0)
    np.testing.assert_allclose(normalised, exact, atol=2e-3)
    one_pass = np.mean(x * x, axis=0) - np.mean(x, axis=0) ** 2
    assert np.all(np.abs(one_pass - x.astype(np.float64).var(0)) > 0.5)  # control: the formula that is not used


def test_batch_of_one_does_not_divide_by_zero():
    _, statistics = batch_norm_layer(jnp.array([[3.0, -1.0]]))
    np.testing.assert_allclose(statistics["var"], [0.9, 0.9], rtol=1e-6)
    np.testing.assert_allclose(statistics["mean"], [0.3, -0.1], rtol=1e-6)


def dropout_network(rate):
    return mlp((6,), (400,), 2, activation="identity", dropout=rate)


def hidden_ones(model):
    """Variables with which every hidden unit is 1, and the first logit is the mean of what dropout leaves."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes["params"])
    params["hidden_0"]["bias"] = jnp.ones(400)
    params["classes"]["kernel"] = jnp.full((400, 2), 1 / 400)
    return {"params": params}


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_has_the_binomial_variance(x64, rate):
    model = dropout_network(rate)
    logits = model.apply(hidden_ones(model), jnp.ones((500, 6)), train=True, key=jax.random.key(3)).logits[:, 0]
    deviation = np.sqrt(rate / (1 - rate) / 400)
    assert abs(logits.mean() - 1) < 5 * deviation / np.sqrt(500)
    assert abs(logits.std() / deviation - 1) < 0.2
    kept = np.asarray(logits) * 400 * (1 - rate)  # a whole number of survivors, each 1 / (1 - rate)
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-9)


class Drop(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x):
        return dropout(self, x, self.rate, None, train=True)


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.999])
def test_dropout_of_16_bit_activations_drops_at_the_rate_itself(rate):
    """0.001 and 0.999 are 0 and 1 for a probability drawn in bfloat16."""
    y = Drop(rate).apply({}, jnp.ones(2**18, jnp.bfloat16), rngs={"dropout": jax.random.key(0)})
    assert y.dtype == jnp.bfloat16
    deviation = np.sqrt(rate * (1 - rate) / y.size)
    assert abs(float(jnp.mean(y == 0)) - rate) < 5 * deviation


def test_a_traced_rate_equals_the_static_one_and_compiles_once(x64):
    with_static = {rate: dropout_network(rate) for rate in (0.2, 0.5)}
    model = dropout_network(0.0)
    variables, x, key = hidden_ones(model), jnp.ones((4, 6)), jax.random.key(7)
    traces = []

    @jax.jit
    def run(rate):
        traces.append(rate)
        return model.apply(variables, x, train=True, key=key, dropout_rate=rate).logits

    for rate, static in with_static.items():
        np.testing.assert_array_equal(
            run(rate), jax.jit(lambda s=static: s.apply(variables, x, train=True, key=key).logits)()
        )
    np.testing.assert_allclose(run(0.0), model.apply(variables, x).logits, atol=1e-15)
    assert len(traces) == 1
    assert np.max(np.abs(run(0.2) - run(0.5))) > 1e-3


def test_dropout_is_off_in_eval_mode_and_pure_in_train_mode():
    model = dropout_network(0.5)
    variables, x = hidden_ones(model), jnp.ones((3, 6))
    np.testing.assert_allclose(model.apply(variables, x, key=jax.random.key(0)).logits, 1, rtol=1e-6)
    first, again, other = (model.apply(variables, x, train=True, key=jax.random.key(seed)).logits for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    taps = model.apply(variables, x, train=True, key=jax.random.key(0)).taps
    np.testing.assert_array_equal(taps["hidden_0"].post, jnp.ones((3, 400)))  # taps are before dropout


def test_dropout_without_a_key_and_bad_rates_are_refused():
    model = dropout_network(0.5)
    variables, x = hidden_ones(model), jnp.ones((3, 6))
    with pytest.raises(ValueError, match="train=True with dropout needs a random key"):
        model.apply(variables, x, train=True)
    np.testing.assert_allclose(model.apply(variables, x, train=True, dropout_rate=0.0).logits, 1, rtol=1e-6)
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"dropout_rate=.*: must be in \[0, 1\)"):
            model.apply(variables, x, train=True, key=jax.random.key(0), dropout_rate=rate)


def test_apply_does_not_change_its_arguments():
    model = mlp((4,), (3,), 2, norm="batch")
    variables = model.init(jax.random.key(0))
    before = jax.tree.map(np.array, variables)
    after = model.apply(variables, jax.random.normal(jax.random.key(1), (5, 4)), train=True).variables
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    assert np.any(after["batch_stats"]["hidden_0_norm"]["mean"] != variables["batch_stats"]["hidden_0_norm"]["mean"])
    assert after["params"] is variables["params"]


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_perturbations_give_backward_signals(x64, norm):
    """dL/d(post) by finite differences of the loss, and dL/d(pre) = dL/d(post) f'(pre)."""
    model = mlp((4,), (3, 5), 2, activation="tanh", norm=norm)
    variables = generic(model.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (6, 4))
    taps = model.apply(variables, x, train=True).taps
    zeros = jax.tree.map(jnp.zeros_like, taps)

    @jax.jit
    def loss(perturbations):
        logits = model.apply(variables, x, train=True, perturbations=perturbations).logits
        return jnp.mean(jnp.sum(jnp.sin(logits), axis=1))

    np.testing.assert_allclose(loss(zeros), jnp.mean(jnp.sum(jnp.sin(model.apply(variables, x, train=True).logits), 1)))
    signals = jax.grad(loss)(zeros)
    for site in ("hidden_0", "hidden_1"):
        slope = 1 - np.tanh(taps[site].pre) ** 2
        np.testing.assert_allclose(signals[site].pre, signals[site].post * slope, atol=1e-15)
        assert signals[site].pre.shape == taps[site].pre.shape
    direction = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape)), zeros)
    up, down = (loss(jax.tree.map(lambda d, s=s: s * 1e-5 * d, direction)) for s in (1, -1))
    predicted = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(signals), jax.tree.leaves(direction)))
    np.testing.assert_allclose(predicted, (up - down) / 2e-5, rtol=1e-6)
    # A subset of the sites is enough.
    only = jax.grad(loss)({"hidden_1": zeros["hidden_1"]})
    np.testing.assert_allclose(only["hidden_1"].pre, signals["hidden_1"].pre, atol=1e-16)


def test_backward_signals_of_the_last_layer_in_closed_form(x64):
    """e = dL/dh = (1/N) dL/dlogits W'."""
    model = mlp((4,), (5,), 2)
    variables = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (6, 4))
    logits, _, taps = model.apply(variables, x)
    zeros = jax.tree.map(jnp.zeros_like, taps)
    signals = jax.grad(lambda p: jnp.mean(jnp.sum(jnp.square(model.apply(variables, x, perturbations=p).logits), 1)))(
        zeros
    )
    backward = 2 * np.asarray(logits) @ np.asarray(variables["params"]["classes"]["kernel"]).T / 6
    np.testing.assert_allclose(signals["hidden_0"].post, backward, atol=1e-15)
    np.testing.assert_allclose(signals["hidden_0"].pre, backward * (np.asarray(taps["hidden_0"].pre) > 0), atol=1e-15)


def first_layer(init):
    model = mlp((10, 10, 1), (300,), 2, init=init)
    return jax.tree.map(np.asarray, model.init(jax.random.key(0))["params"]["hidden_0"])


def test_pytorch_initialisation_is_uniform_for_kernels_and_biases():
    layer = first_layer("pytorch")
    for name in ("kernel", "bias"):
        scaled = layer[name].ravel() / 0.2 + 0.5  # bound 1 / sqrt(100) = 0.1
        assert scaled.min() >= 0
        assert scaled.max() <= 1
        assert stats.kstest(scaled, "uniform").pvalue > 1e-3
        assert stats.kstest(scaled, "beta", args=(1.2, 1.2)).pvalue < (1e-3 if name == "kernel" else 1)  # control


def test_lecun_initialisation_is_a_truncated_normal_of_variance_one_over_fan_in():
    layer = first_layer("lecun")
    kernel = layer["kernel"].ravel() * 10
    assert abs(kernel.var() - 1) < 0.04  # 5 standard errors: 1.0 * sqrt(2 / 30000)
    deviation = 1 / 0.87962566103423978  # a normal cut at 2 deviations, rescaled to variance 1
    assert stats.kstest(kernel / deviation, stats.truncnorm(-2, 2).cdf).pvalue > 1e-3
    assert not layer["bias"].any()


def test_he_initialisation_is_normal_of_variance_two_over_fan_in():
    layer = first_layer("he")
    assert stats.kstest(layer["kernel"].ravel() / np.sqrt(2 / 100), "norm").pvalue > 1e-3
    assert not layer["bias"].any()


def test_layers_draw_independent_numbers():
    params = mlp((8,), (8, 8), 8).init(jax.random.key(0))["params"]
    kernels = [np.asarray(params[name]["kernel"]) for name in ("hidden_0", "hidden_1", "classes")]
    assert len({kernel.tobytes() for kernel in kernels}) == 3
    assert abs(np.corrcoef(kernels[0].ravel(), kernels[1].ravel())[0, 1]) < 0.5


@pytest.mark.parametrize("implementation", ["threefry2x32", "philox4x32"])
def test_every_key_implementation(implementation):
    model = mlp((4,), (3,), 2, dropout=0.5)
    keys = jax.random.split(jax.random.key(0, impl=implementation), 3)
    seeds = jax.vmap(model.init)(keys)
    x = jnp.ones((5, 4))
    together = jax.vmap(lambda variables, key: model.apply(variables, x, train=True, key=key).logits)(seeds, keys)
    for index, key in enumerate(keys):
        variables = model.init(key)
        jax.tree.map(lambda a, b, i=index: np.testing.assert_array_equal(a[i], b), seeds, variables)
        one = model.apply(variables, x, train=True, key=key).logits
        np.testing.assert_allclose(together[index], one, atol=1e-6)


def test_float_types():
    model = mlp((4,), (3,), 2, norm="batch")
    assert {leaf.dtype for leaf in jax.tree.leaves(model.init(jax.random.key(0)))} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        doubles = model.init(jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(doubles)} == {jnp.dtype("float64")}
        singles = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), doubles)
        after = model.apply(singles, jnp.ones((5, 4), jnp.float32), train=True).variables
    # No drift to float64 under x64: a scan carry keeps its type.
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}


def test_the_same_arguments_give_the_same_object_and_one_compilation(unchecked):
    options = {"activation": "tanh", "norm": "batch", "dropout": 0.0}
    model, again = mlp((4,), (3, 3), 2, **options), mlp([4], [np.int64(3), 3], np.int32(2), **options)
    assert again is model
    assert mlp((4,), (3, 3), 2, activation="tanh") is not model
    traces = []

    def run(model, variables, x):
        traces.append(model)
        return model.apply(variables, x).logits

    jitted = jax.jit(run, static_argnums=0)
    variables = model.init(jax.random.key(0))
    for each in (model, again, mlp((4,), (3, 3), 2, **options)):
        jitted(each, variables, jnp.ones((1, 4)))
    assert len(traces) == 1


POSITIVE = "must be positive integers"
BAD = [
    ({"widths": (5, 0)}, rf"widths=\(5, 0\): 0 is not allowed; {POSITIVE}"),
    ({"widths": (-3,)}, rf"widths=\(-3,\): -3 is not allowed; {POSITIVE}"),
    ({"widths": (True,)}, rf"widths=\(True,\): True is not allowed; {POSITIVE}"),
    ({"widths": (2.5,)}, rf"widths=\(2\.5,\): 2\.5 is not allowed; {POSITIVE}"),
    ({"widths": ()}, r"widths=\(\): must be a non-empty sequence of positive integers"),
    ({"widths": 5}, r"widths=5: must be a non-empty sequence of positive integers"),
    ({"widths": "55"}, r"widths='55': must be a non-empty sequence of positive integers"),
    ({"input_shape": ()}, r"input_shape=\(\): must be a non-empty sequence of positive integers"),
    ({"input_shape": (8, 0)}, rf"input_shape=\(8, 0\): 0 is not allowed; {POSITIVE}"),
    ({"num_classes": 0}, rf"num_classes=.*0.* is not allowed; {POSITIVE}|num_classes=0: must be a positive integer"),
    ({"activation": "rleu"}, r"activation='rleu': must be one of \['relu', 'leaky_relu', 'tanh', 'sigmoid', 'gelu', "),
    ({"activation": "sine"}, r"activation='sine': must be one of"),
    ({"norm": "group"}, r"norm='group': must be one of \['none', 'batch', 'layer'\]"),
    ({"norm": None}, r"norm=None: must be one of"),
    ({"init": "xavier"}, r"init='xavier': must be one of \['pytorch', 'lecun', 'he'"),
    ({"dropout": 1.0}, r"dropout=1\.0: must be in \[0, 1\)"),
    ({"dropout": -0.1}, r"dropout=-0\.1: must be in \[0, 1\)"),
    ({"dropout": float("nan")}, r"dropout=nan: must be in \[0, 1\)"),
    ({"dropout": True}, r"dropout=True: must be in \[0, 1\)"),
    ({"dropout": "0.1"}, r"dropout='0\.1': must be in \[0, 1\)"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change) for change, _ in BAD])
def test_bad_arguments(unchecked, change, message):
    with pytest.raises(ValueError, match=message):
        mlp(**({"input_shape": (4,), "widths": (5,), "num_classes": 3} | change))
