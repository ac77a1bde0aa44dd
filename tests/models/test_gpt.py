"""The causal transformer against plain NumPy, tied and untied; cloned heads and MLPs; what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.architectures import batch_of, check_cloning, draw
from scipy import special

from lopjax.certificates import certify_frozen
from lopjax.cloning import clone_factors
from lopjax.losses import accuracy, check_batch, mean_cross_entropy
from lopjax.manifolds import cloned_manifold, tangency_residual
from lopjax.models import check_wiring, gpt

LENGTH, VOCABULARY = 5, 3
TOKENS, LABELS = batch_of("gpt")


def small(**options):
    shape = {"width": 4, "depth": 1, "heads": 2, "mlp_ratio": 1.5, "activation": "relu"}
    return gpt((LENGTH,), VOCABULARY, **{**shape, **options})


def numpy_forward(variables, tokens, is_causal=True):
    """One sample, one head, one position at a time."""
    p = jax.tree.map(np.asarray, variables["params"])
    dense = lambda layer, x: x @ layer["kernel"] + layer["bias"]  # noqa: E731

    def normed(name, x):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-5) * p[name]["scale"] + p[name]["offset"]

    def attend(layer, x):
        out = np.tile(layer["out"]["bias"], (len(x), 1))
        for head in range(layer["query"]["kernel"].shape[1]):
            q, k, v = (
                x @ layer[name]["kernel"][:, head] + layer[name]["bias"][head] for name in ("query", "key", "value")
            )
            for t in range(len(x)):
                seen = slice(t + 1) if is_causal else slice(None)
                weights = special.softmax(q[t] @ k[seen].T / np.sqrt(q.shape[1]))
                out[t] += weights @ v[seen] @ layer["out"]["kernel"][:, head]
        return out

    logits = []
    for sample in np.asarray(tokens):
        x = np.stack([p["tokens"][token] + p["positions"][place] for place, token in enumerate(sample)])
        x = x + attend(p["heads_0"], normed("heads_0_norm", x))
        x = x + dense(p["mlp_0_out"], np.maximum(dense(p["mlp_0"], normed("mlp_0_norm", x)), 0))
        x = normed("norm", x)
        logits.append(dense(p["classes"], x) if "classes" in p else x @ p["tokens"].T + p["bias"])
    return np.stack(logits)


@pytest.mark.parametrize("tied", [True, False])
def test_forward_pass_against_numpy_and_no_position_sees_later_tokens(x64, tied):
    model = small(tied=tied)
    variables, later = draw(model), np.array(TOKENS)
    later[:, 3] = (later[:, 3] + 1) % VOCABULARY
    apply = jax.jit(lambda tokens: model.apply(variables, tokens).logits)
    before, after = (np.asarray(apply(tokens)) for tokens in (TOKENS, later))
    np.testing.assert_allclose(before, numpy_forward(variables, TOKENS), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    assert (np.abs(after - before)[:, 3:].max(axis=-1) > 1e-6).all()
    # Control: without the mask the first positions would move, and the forward pass be another one.
    unmasked = [numpy_forward(variables, tokens, is_causal=False) for tokens in (TOKENS, later)]
    assert (np.abs(unmasked[1] - unmasked[0])[:, :3].max(axis=-1) > 1e-6).all()
    assert np.abs(unmasked[0] - before).max() > 1e-3
    log_odds = special.log_softmax(before, axis=-1).reshape(-1, VOCABULARY)
    expected = -np.mean(log_odds[np.arange(len(log_odds)), np.ravel(LABELS)])
    np.testing.assert_allclose(mean_cross_entropy(jnp.asarray(before), LABELS), expected, rtol=1e-12)
    hits = np.mean(np.argmax(before, -1) == np.asarray(LABELS))
    np.testing.assert_allclose(accuracy(jnp.asarray(before), LABELS), hits)


def untied_of(variables):
    """The same function without tying."""
    params = dict(variables["params"])
    head = {"kernel": params["tokens"].T, "bias": params.pop("bias")}
    return {"params": {**params, "classes": head}}


@jax.jit
def tied_gradients(variables, untied):
    """By the tied table and, with the same numbers in both places, by the two arrays of the untied network."""

    def loss(params, tied):
        return mean_cross_entropy(small(tied=tied).apply({"params": params}, TOKENS).logits, LABELS)

    return jax.grad(loss)(variables["params"], True), jax.grad(loss)(untied["params"], False)


def test_the_gradient_of_a_tied_table_is_that_of_both_its_uses(x64):
    variables = draw(small(tied=True))
    tied, apart = tied_gradients(variables, untied_of(variables))
    lookup, product = np.asarray(apart["tokens"]), np.asarray(apart["classes"]["kernel"]).T
    np.testing.assert_allclose(tied["tokens"], lookup + product, rtol=0, atol=1e-14)
    assert min(np.abs(lookup).max(), np.abs(product).max()) > 1e-3  # either alone would be another gradient


def test_equal_units_of_a_tied_stream_stay_equal_though_they_cannot_be_cloned(x64):
    model = small(tied=True)
    with pytest.raises(ValueError, match=r"'width' is permutable, not cloneable \(the token embedding both writes"):
        clone_factors(model.wiring, {"width": 2})
    assert clone_factors(model.wiring, 2) == {"heads_0": 2, "mlp_0": 2}
    assert clone_factors(small(tied=False).wiring, 2) == {"width": 2, "heads_0": 2, "mlp_0": 2}
    variables = draw(model)
    manifold = cloned_manifold(variables["params"], model.wiring, {"width": (0, 0, 1, 2)}, space="leaf")
    equal = {"params": manifold.project(variables["params"])}  # a linear subspace
    assert tangency_residual(manifold, tied_gradients(equal, untied_of(equal))[0]) < 1e-12
    assert tangency_residual(manifold, tied_gradients(variables, untied_of(variables))[0]) > 0.01


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_cloning_keeps_the_function_and_its_clones(x64, tied):
    check_cloning(small(tied=tied), (LENGTH,), 2, train=False, data=(TOKENS, LABELS))


@pytest.mark.slow
def test_labels_of_a_tied_network_are_true_and_verdicts_take_its_batches(x64):
    model = small(tied=True, norm="none", depth=2)
    check_wiring(model, (TOKENS, LABELS))
    units = certify_frozen(model, draw(model), (TOKENS, LABELS), {"mlp_1": [0]}).units
    assert len(units) == 1


def test_what_it_refuses(unchecked):
    for options, message in (
        ({"input_shape": (5, 1)}, r"input_shape=\(5, 1\): must be \(length,\)"),
        ({"heads": 3}, "heads=3: must divide width=128"),
        ({"num_classes": 0}, "num_classes=.*0"),
    ):
        with pytest.raises(ValueError, match=message):
            gpt(**{"input_shape": (5,), "num_classes": 3, **options})
    model = small()
    variables = jax.eval_shape(model.init, jax.random.key(0))
    for tokens in (jnp.zeros((2, LENGTH)), jnp.zeros((2, LENGTH + 1), int), jnp.zeros(LENGTH, int)):
        with pytest.raises(ValueError, match=r"must be tokens, integers .* of at most 5 positions"):
            jax.eval_shape(model.apply, variables, tokens)
    shorter = jax.eval_shape(model.apply, variables, jnp.zeros((2, 3), int))
    assert shorter.logits.shape == (2, 3, VOCABULARY)


def test_labels_outside_the_vocabulary_are_refused_at_every_position(x64):
    model, labels = small(), np.array(LABELS)
    labels[2, 4] = VOCABULARY
    variables = draw(model)
    check_batch(model, variables, (TOKENS, LABELS), loss=mean_cross_entropy)
    with pytest.raises(ValueError, match=r"labels 0\.\.3: must be classes, 0\.\.2"):
        check_batch(model, variables, (TOKENS, labels), loss=mean_cross_entropy)
