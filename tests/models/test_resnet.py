"""The residual network: forward pass, cloning, labels of the stream's many writers, types and messages."""

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
    logits_and_gradient,
)

from lopjax.models import resnet18
from lopjax.wiring import In, Out

SHAPE = (6, 5, 2)


def small(**options):
    return resnet18(SHAPE, 3, **{"width": 2, "blocks": (1, 1), "activation": "tanh", **options})


def reference_forward(variables, x, norm, train):
    """The same network with XLA's convolution and NumPy's statistics: `(logits, {site: activations})`."""
    params, statistics, sites = variables["params"], variables.get("batch_stats", {}), {}

    def normed(name, x, stride=1):
        layer = params[name]
        half = layer["conv"]["kernel"].shape[0] // 2
        y = np.asarray(
            jax.lax.conv_general_dilated(
                jnp.asarray(x),
                layer["conv"]["kernel"],
                (stride, stride),
                ((half, half), (half, half)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        )
        if norm == "none":
            return y + np.asarray(layer["conv"]["bias"])
        axes = (1, 2, 3) if norm == "layer" else (0, 1, 2)
        mean, var = y.mean(axes, keepdims=True), y.var(axes, keepdims=True)
        if norm == "batch" and not train:
            mean, var = (np.asarray(statistics[name]["norm"][key]) for key in ("mean", "var"))
        scale, offset = (np.asarray(layer["norm"][key]) for key in ("scale", "offset"))
        return (y - mean) / np.sqrt(var + 1e-5) * scale + offset

    x = sites["stem"] = np.tanh(normed("stem", x))
    for stage in (0, 1):
        name, stride = f"stage_{stage}_block_0", 1 + stage
        hidden = sites[name] = np.tanh(normed(f"{name}_conv_0", x, stride))
        shortcut = normed(f"{name}_projection", x, stride) if stage else x
        x = sites[f"{name}_output"] = np.tanh(normed(f"{name}_conv_1", hidden) + shortcut)
    head = jax.tree.map(np.asarray, params["classes"])
    return x.mean((1, 2)) @ head["kernel"] + head["bias"], sites


@pytest.mark.parametrize(
    "norm", ["batch", pytest.param("layer", marks=pytest.mark.slow), pytest.param("none", marks=pytest.mark.slow)]
)
def test_forward_pass_against_a_plain_one(x64, norm):
    model = small(norm=norm)
    variables, (x, _) = draw(model), batch(SHAPE)
    for train in (False, True):
        logits, _, taps = jax.jit(model.apply, static_argnames="train")(variables, x, train=train)
        expected, sites = reference_forward(variables, x, norm, train)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)
        assert [site for site, _ in model.wiring.sites] == list(sites)
        for site, activations in sites.items():
            np.testing.assert_allclose(taps[site].post, activations, rtol=0, atol=1e-12)
    # Control: without the shortcut the logits are others.
    cut = jax.tree.map(jnp.zeros_like, variables["params"]["stage_1_block_0_projection"])
    other = {**variables, "params": {**variables["params"], "stage_1_block_0_projection": cut}}
    assert float(np.abs(reference_forward(other, x, norm, True)[0] - expected).max()) > 0.01


@pytest.mark.parametrize(
    ("norm", "train", "factor"),
    [
        pytest.param("batch", True, 2, marks=pytest.mark.slow),
        ("none", False, {"stage_0": 2, "stage_1_block_0": 3}),
        pytest.param("batch", False, 3, marks=pytest.mark.slow),
        pytest.param("layer", True, 2, marks=pytest.mark.slow),
    ],
)
def test_cloning_keeps_the_function_and_its_clones(x64, norm, train, factor):
    check_cloning(small(norm=norm), SHAPE, factor, train)


@pytest.mark.slow
def test_clones_are_found(x64):
    check_clones_are_found(small(), SHAPE, 2)


@pytest.mark.parametrize(
    "norm", ["batch", pytest.param("layer", marks=pytest.mark.slow), pytest.param("none", marks=pytest.mark.slow)]
)
def test_site_labels(x64, norm):
    check_site_labels(small(norm=norm), SHAPE, train=norm == "batch")


def test_source_labels(x64):
    """Only where neither norm nor residual sum stands between the kernel and the activation."""
    expected = {"stem/conv", "stage_0_block_0_conv_0/conv", "stage_1_block_0_conv_0/conv"}
    check_sources(small(norm="none"), SHAPE, expected)
    check_sources(small(norm="batch"), SHAPE, set())


def test_a_unit_of_the_stream_dead_at_one_site_leaves_earlier_writers_alive(x64):
    """Dead for real: the last norm of the block pushes one unit of the stream far below zero of a ReLU."""
    model = small(activation="relu", norm="batch")
    variables, data = draw(model), batch(SHAPE)
    params = jax.tree.map(lambda leaf: leaf, variables["params"])
    norm = params["stage_0_block_0_conv_1"]["norm"]
    norm["offset"] = norm["offset"].at[0].set(-100.0)
    gradient = logits_and_gradient(model, {**variables, "params": params}, data, True)[2]
    for leaf in jax.tree.leaves(gradient["stage_0_block_0_conv_1"]):
        assert not np.any(leaf[..., 0])
        assert np.any(leaf[..., 1])
    # Control: the stem writes the same unit, and its signal also goes through the block.
    assert np.abs(gradient["stem"]["conv"]["kernel"][..., 0]).max() > 1e-3


def test_the_paper_s_network_has_eleven_million_parameters_and_shared_streams():
    model = resnet18((32, 32, 3), 10)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 11_173_962
    sizes = [model.wiring.size(f"stage_{stage}") for stage in range(4)]
    assert sizes == [64, 128, 256, 512]
    labels = dict(model.wiring.labels)
    assert labels["params", "stage_1_block_0_projection", "conv", "kernel"].axes[2:] == (In("stage_0"), Out("stage_1"))
    assert labels["params", "stage_1_block_1_conv_0", "conv", "kernel"].axes[2:] == (
        In("stage_1"),
        Out("stage_1_block_1"),
    )


def test_initialisation_is_normal_of_variance_two_over_fan_out():
    model = resnet18((4, 4, 3), 3, width=16, blocks=(1,))
    params = model.init(jax.random.key(0))["params"]
    kernel = np.asarray(params["stage_0_block_0_conv_0"]["conv"]["kernel"])
    assert abs(kernel.std() / np.sqrt(2 / (9 * 16)) - 1) < 5 / np.sqrt(2 * kernel.size)
    stem = np.asarray(params["stem"]["conv"]["kernel"])
    assert abs(stem.std() / np.sqrt(2 / (9 * 16)) - 1) < 5 / np.sqrt(2 * stem.size)
    assert "bias" not in params["stem"]["conv"]
    assert np.all(np.asarray(params["stem"]["norm"]["scale"]) == 1)


def test_bfloat16_inside_float32_outside():
    check_bfloat16(small(compute_dtype="bfloat16"), small(), SHAPE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width=.*0"),
        ({"blocks": ()}, r"blocks=\(\): must be a non-empty sequence of positive integers"),
        ({"blocks": (1, -1)}, r"blocks=\(1, -1\): -1 is not allowed"),
        ({"norm": "group"}, "norm='group': must be one of"),
        ({"dropout": -0.1}, r"dropout=-0.1: must be in \[0, 1\)"),
        ({"compute_dtype": "half"}, "compute_dtype='half': must be one of"),
    ],
)
def test_bad_arguments_say_what_to_do(unchecked, options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
