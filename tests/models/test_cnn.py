"""The convolutional network: forward pass, cloning, labels, initialisation, types and messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.architectures import (
    batch,
    check_bfloat16,
    check_clones_are_found,
    check_cloning,
    check_site_labels,
    check_sources,
    draw,
)

from lopjax.models import cnn

SHAPE = (6, 5, 2)


def small(**options):
    return cnn(SHAPE, 3, **{"channels": (2, 3), "dense": 4, "activation": "tanh", **options})


def convolve_by_loops(x, kernel):
    """3x3 cross-correlation with one row of zeros around, in NumPy."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            y[:, i, j] = np.einsum("nabc,abco->no", padded[:, i : i + 3, j : j + 3], kernel)
    return y


def pool_by_loops(x, pooling):
    if pooling == "none":
        return x
    reduce = {"max": np.max, "average": np.mean}[pooling]
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    squares = [
        [reduce(x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], axis=(1, 2)) for j in range(columns)] for i in range(rows)
    ]
    return np.moveaxis(np.array(squares), 2, 0)


def numpy_forward(variables, x, norm, pooling, train):
    params = jax.tree.map(np.asarray, variables["params"])
    h = np.asarray(x)
    for k in range(2):
        z = convolve_by_loops(h, params[f"conv_{k}"]["kernel"]) + params[f"conv_{k}"]["bias"]
        if norm != "none":
            running = variables.get("batch_stats", {}).get(f"conv_{k}_norm")
            axes = (1, 2, 3) if norm == "layer" else (0, 1, 2)
            mean, var = z.mean(axes, keepdims=True), z.var(axes, keepdims=True)
            if norm == "batch" and not train:
                mean, var = np.asarray(running["mean"]), np.asarray(running["var"])
            own = params[f"conv_{k}_norm"]
            z = (z - mean) / np.sqrt(var + 1e-5) * own["scale"] + own["offset"]
        h = pool_by_loops(np.tanh(z), pooling)
    flat = h.reshape(len(h), -1)
    h = np.tanh(flat @ params["dense"]["kernel"].reshape(flat.shape[1], -1) + params["dense"]["bias"])
    return h @ params["classes"]["kernel"] + params["classes"]["bias"]


@pytest.mark.parametrize(
    ("norm", "pooling"), [("none", "max"), ("none", "none"), ("batch", "average"), ("layer", "max")]
)
def test_forward_pass_against_numpy(x64, norm, pooling):
    model = small(norm=norm, pooling=pooling)
    variables, (x, _) = draw(model), batch(SHAPE)
    for train in (False, True):
        logits = jax.jit(model.apply, static_argnames="train")(variables, x, train=train)[0]
        expected = numpy_forward(variables, x, norm, pooling, train)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)
        transposed = numpy_forward(variables, x[:, ::-1], norm, pooling, train)  # control: rows in another order
        assert float(np.abs(logits - transposed).max()) > 0.01


@pytest.mark.parametrize(
    ("norm", "train", "factor"),
    [
        ("none", False, 3),
        ("batch", True, 2),
        pytest.param("batch", False, {"conv_1": 3, "dense": 2}, marks=pytest.mark.slow),
        pytest.param("layer", True, 2, marks=pytest.mark.slow),
    ],
)
def test_cloning_keeps_the_function_and_its_clones(x64, norm, train, factor):
    check_cloning(small(norm=norm), SHAPE, factor, train)


@pytest.mark.slow
def test_clones_are_found(x64):
    check_clones_are_found(small(), SHAPE, 2)


@pytest.mark.parametrize("norm", ["none", "batch", pytest.param("layer", marks=pytest.mark.slow)])
def test_site_labels(x64, norm):
    check_site_labels(small(norm=norm, pooling="average"), SHAPE, train=norm == "batch")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pooling": "none"}, {"conv_0", "conv_1", "dense", "classes"}),
        ({"pooling": "max"}, {"conv_0", "classes"}),
        ({"pooling": "none", "norm": "batch"}, {"dense", "classes"}),
    ],
)
def test_source_labels(x64, options, expected):
    check_sources(small(**options), SHAPE, expected)


@pytest.mark.slow
def test_a_dead_channel_has_no_gradient_and_no_living_one_is_silent(x64):
    """Dead for real: a ReLU channel with a bias far below zero."""
    model = small(activation="relu")
    variables, (x, _) = draw(model), batch(SHAPE)
    params = variables["params"]
    dead = {**params, "conv_1": {**params["conv_1"], "bias": params["conv_1"]["bias"].at[1].set(-100.0)}}
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, x).logits)))(dead)
    assert not np.any(gradient["conv_1"]["kernel"][..., 1])
    assert not np.any(gradient["dense"]["kernel"][:, :, 1])  # outgoing: it sends zero
    assert np.all(np.abs(gradient["conv_1"]["kernel"][..., [0, 2]]).max((0, 1, 2)) > 1e-3)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_gradients_through_a_maximum_of_what_the_backward_pass_computes_again(x64, activation):
    """Compiled without optimisation the two rounded differently, no entry was the largest, and gradients were NaN."""
    model = cnn((4, 4, 1), 2, channels=(4,), dense=4, activation=activation, norm="batch")
    variables, (inputs, _) = draw(model), batch((4, 4, 1), 4)
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), variables["params"])

    @jax.jit
    def loss(step):
        params = jax.tree.map(lambda p, d: p + step * d, variables["params"], direction)
        return jnp.sum(jnp.sin(model.apply({**variables, "params": params}, inputs, train=True).logits))

    # A backward pass, not a forward one: `jax.grad` with respect to the whole tree.
    @jax.jit
    def slope(params):
        gradient = jax.grad(
            lambda p: jnp.sum(jnp.sin(model.apply({**variables, "params": p}, inputs, train=True).logits))
        )
        return sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient(params)), jax.tree.leaves(direction)))

    np.testing.assert_allclose(slope(variables["params"]), (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-7)


def test_initialisation_counts_kernel_positions():
    model = cnn((4, 4, 8), 3, channels=(64,), dense=32)
    params = model.init(jax.random.key(0))["params"]
    for layer, fan_in in (("conv_0", 72), ("dense", 256), ("classes", 32)):
        for array in params[layer].values():
            bound = fan_in**-0.5
            assert 0.5 * bound < float(jnp.abs(array).max()) <= bound  # uniform within the bound: PyTorch's default
        kernel = np.asarray(params[layer]["kernel"]).ravel() * np.sqrt(3 * fan_in)
        assert abs(kernel.std() - 1) < 5 / np.sqrt(kernel.size)


def test_bfloat16_inside_float32_outside():
    options = {"norm": "batch", "pooling": "average"}
    check_bfloat16(small(compute_dtype="bfloat16", **options), small(**options), SHAPE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ()}, r"channels=\(\): must be a non-empty sequence of positive integers"),
        ({"channels": (2, 0)}, r"channels=\(2, 0\): 0 is not allowed"),
        ({"dense": 0}, "dense=.*0"),
        ({"pooling": "mean"}, r"pooling='mean': must be one of \['max', 'average', 'none'\]"),
        ({"norm": "group"}, r"norm='group': must be one of \['none', 'batch', 'layer'\]"),
        ({"activation": "cosine"}, "activation='cosine': must be one of"),
        ({"init": "zeros"}, "init='zeros': must be one of"),
        ({"compute_dtype": "float16"}, "compute_dtype='float16': must be one of"),
        ({"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
        ({"channels": (2, 2, 2)}, "3 times 2x2 pooling needs at least 8 x 8 pixels"),
    ],
)
def test_bad_arguments_say_what_to_do(unchecked, options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_images_have_three_axes(unchecked):
    with pytest.raises(ValueError, match=r"input_shape=\(28, 28\): must be \(height, width, channels\)"):
        cnn((28, 28), 10)
