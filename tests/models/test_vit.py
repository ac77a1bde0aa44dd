"""The vision transformer against plain NumPy; cloned streams, heads and MLPs; labels, types and messages."""

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
    cut_gradients,
    draw,
)
from scipy import special, stats

from lopjax.cloning import clone_factors
from lopjax.models import vit
from lopjax.models.initialisation import truncated_normal

SHAPE = (4, 6, 2)


def small(**options):
    return vit(SHAPE, 3, **{"patch": 2, "width": 4, "depth": 1, "heads": 2, "mlp_ratio": 1.5, **options})


def numpy_forward(variables, x, norm, train, depth=1, patch=2):
    params = jax.tree.map(np.asarray, variables["params"])
    statistics = variables.get("batch_stats", {})

    def dense(layer, x):
        kernel = layer["kernel"].reshape(-1, layer["kernel"].shape[-1])
        return x @ kernel + layer["bias"]

    def normed(name, x):
        if norm == "none":
            return x
        axes = (2,) if norm == "layer" else (0, 1)
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        if norm == "batch" and not train:
            mean, var = (np.asarray(statistics[name][key]) for key in ("mean", "var"))
        return (x - mean) / np.sqrt(var + 1e-5) * params[name]["scale"] + params[name]["offset"]

    def attend(layer, x):
        """One sample, one head at a time: `(tokens, width)` to the same."""
        result = np.tile(layer["out"]["bias"], (len(x), 1))
        head_width = layer["query"]["kernel"].shape[-1]
        for head in range(layer["query"]["kernel"].shape[1]):
            q, k, v = (
                x @ layer[name]["kernel"][:, head] + layer[name]["bias"][head] for name in ("query", "key", "value")
            )
            weights = special.softmax(q @ k.T / np.sqrt(head_width), axis=1)
            result += weights @ v @ layer["out"]["kernel"][:, head]
        return result

    embedding = params["embedding"]
    images = []
    for image in np.asarray(x):
        tokens = [embedding["class_token"]]
        for i in range(0, image.shape[0], patch):
            for j in range(0, image.shape[1], patch):
                tokens.append(dense(embedding["patches"], image[i : i + patch, j : j + patch].ravel()))
        images.append(np.stack(tokens) + embedding["positions"])
    h = np.stack(images)
    for k in range(depth):
        h = h + np.stack([attend(params[f"heads_{k}"], sample) for sample in normed(f"heads_{k}_norm", h)])
        z = dense(params[f"mlp_{k}"], normed(f"mlp_{k}_norm", h))
        h = h + dense(params[f"mlp_{k}_out"], z * special.ndtr(z))
    return dense(params["classes"], normed("norm", h)[:, 0])


@pytest.mark.parametrize(
    ("norm", "depth"), [("layer", 2), ("batch", 1), pytest.param("none", 1, marks=pytest.mark.slow)]
)
def test_forward_pass_against_numpy(x64, norm, depth):
    model = small(norm=norm, depth=depth)
    variables, (x, _) = draw(model), batch(SHAPE)
    for train in (False, True):
        logits = jax.jit(model.apply, static_argnames="train")(variables, x, train=train)[0]
        np.testing.assert_allclose(logits, numpy_forward(variables, x, norm, train, depth), rtol=0, atol=1e-12)
    # Control: the oracle sees which patch is where.
    swapped = numpy_forward(variables, x[:, ::-1], norm, True, depth)
    assert float(np.abs(logits - swapped).max()) > 0.01


@pytest.mark.parametrize(
    ("norm", "train", "factor"),
    [
        pytest.param("layer", True, 2, marks=pytest.mark.slow),
        ("none", False, {"heads_0": 2, "mlp_0": 3, "heads_0_values": 2}),
        pytest.param("layer", False, 3, marks=pytest.mark.slow),
        pytest.param("batch", True, 2, marks=pytest.mark.slow),
    ],
)
def test_cloning_keeps_the_function_and_its_clones(x64, norm, train, factor):
    """Width of the stream, heads and MLP; or heads, MLP and the coordinates of values."""
    check_cloning(small(norm=norm), SHAPE, factor, train)


@pytest.mark.slow
def test_clones_are_found(x64):
    check_clones_are_found(small(), SHAPE, 2)


@pytest.mark.parametrize("norm", ["layer", pytest.param("none", marks=pytest.mark.slow)])
def test_site_labels(x64, norm):
    check_site_labels(small(norm=norm), SHAPE)


def test_a_stream_unit_cut_after_attention_leaves_the_embedding_alive(x64):
    """What was in the stream before also went through the attention: only the last writers freeze."""
    model = small(norm="none")
    gradients = cut_gradients(model, draw(model), batch(SHAPE))
    cut = gradients["attention_0"]
    assert not np.any(cut["heads_0"]["out"]["kernel"][..., 0])
    assert np.abs(cut["embedding"]["patches"]["kernel"][..., 0]).max() > 1e-3


def test_source_labels(x64):
    check_sources(small(norm="none"), SHAPE, {"mlp_0"})
    check_sources(small(norm="layer"), SHAPE, set())


def test_the_head_width_survives_cloning():
    """Scores are divided by the width of a head: cloned streams and heads must not change it."""
    base = small(width=8, heads=2)
    wide = base.resize({"width": 16, "heads_0": 4})
    shape = jax.eval_shape(wide.init, jax.random.key(0))["params"]["heads_0"]["query"]["kernel"].shape
    assert shape == (16, 4, 4)


def test_what_a_factor_means():
    """One number clones whole heads; coordinates of values are named; those of queries and keys meet in a product."""
    wiring = small().wiring
    assert clone_factors(wiring, 2) == {"width": 2, "heads_0": 2, "mlp_0": 2}
    assert clone_factors(wiring, {"heads_0_values": 3}) == {"heads_0_values": 3}
    assert "heads_0_queries" in wiring.permutable
    with pytest.raises(ValueError, match=r"'heads_0_queries' is permutable, not cloneable \(queries meet keys"):
        clone_factors(wiring, {"heads_0_queries": 2})


def test_truncated_normal_has_the_deviation_it_names():
    values = np.asarray(truncated_normal(0.02)(jax.random.key(0), (40_000,), jnp.float32))
    assert abs(values.std() / 0.02 - 1) < 0.02
    assert stats.kstest(values / 0.02 * 0.87962566103423978, stats.truncnorm(-2, 2).cdf).pvalue > 1e-3
    assert stats.kstest(values / 0.02, "norm").pvalue < 1e-3  # control: not cut, not rescaled


@pytest.mark.slow
def test_initialisation():
    """Standard deviation 0.02 for every kernel, class token and position; zero biases, unit scales."""
    params = vit((8, 8, 3), 10, patch=4, width=32, depth=1, heads=2).init(jax.random.key(0))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, values = path[-1].key, np.asarray(leaf)
        if name in ("kernel", "class_token", "positions"):
            assert abs(values.std() / 0.02 - 1) < 5 / np.sqrt(2 * values.size), path
            assert np.abs(values).max() <= 0.02 * 2 / 0.8796 * 1.001, path
        else:
            assert np.all(values == (1 if name == "scale" else 0)), path


def test_bfloat16_inside_float32_outside():
    check_bfloat16(small(compute_dtype="bfloat16"), small(), SHAPE)


def test_dropout_acts_on_stream_and_attention_separately(x64):
    x, key = batch(SHAPE)[0], jax.random.key(1)
    variables = draw(small())
    for options in ({"dropout": 0.5, "attention_dropout": 0.0}, {"dropout": 0.0, "attention_dropout": 0.5}):
        model = small(**options)
        dropped = jax.jit(lambda v, k, m=model: m.apply(v, x, train=True, key=k).logits)
        assert float(jnp.abs(dropped(variables, key) - dropped(variables, jax.random.key(2))).max()) > 1e-3
    off = jax.jit(lambda v: small(dropout=0.5).apply(v, x, train=True, dropout_rate=0.0).logits)(variables)
    np.testing.assert_allclose(off, numpy_forward(variables, x, "layer", True), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 4}, r"patch=4: must divide the height and width of input_shape=\(4, 6, 2\)"),
        ({"patch": 0}, "patch=.*0"),
        ({"heads": 3}, "heads=3: must divide width=4"),
        ({"depth": 0}, "depth=.*0"),
        ({"mlp_ratio": 0.1}, "mlp_ratio=0.1: must be positive, with at least one unit for width=4"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio=nan: must be positive"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio=inf: must be positive"),
        ({"attention_dropout": 1.5}, r"attention_dropout=1.5: must be in \[0, 1\)"),
        ({"norm": "rms"}, "norm='rms': must be one of"),
        ({"activation": "cosine"}, "activation='cosine': must be one of"),
    ],
)
def test_bad_arguments_say_what_to_do(unchecked, options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
