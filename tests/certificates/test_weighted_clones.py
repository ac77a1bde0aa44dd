"""Weighted, signed and vanished clones, and what symmetries map onto clones: against dense NumPy and its own gradients.

The gradients are those of a network written in NumPy, differentiated by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.activations import Activation
from lopjax.certificates import WeightedVerdict, certify_weighted, leaves_loss_unchanged
from lopjax.losses import mean_squared_error
from lopjax.manifolds import (
    cloned_manifold,
    dimension,
    fixed_point_manifold,
    frozen_manifold,
    intersection,
    isometric_manifold,
    normal_part,
    tangent_part,
    tree_norm,
    weighted_manifold,
)
from lopjax.models import mlp

PARTITION = {"hidden_0": (0, 0, 1, 0), "hidden_1": (0, 1, 1, 0)}
WEIGHTED = {"hidden_0": (1.0, 2.0, 1.0, 0.5), "hidden_1": (1.0, 1.0, 0.7, 1.6)}
SIGNED = {"hidden_0": (1.0, -1.0, 1.0, 1.0), "hidden_1": (-1.0, 1.0, -1.0, 1.0)}
VANISHED = {"hidden_0": (0.0, 0.0, 1.0, 0.0), "hidden_1": (1.0, 0.0, 0.0, 1.0)}
LAYERS = ("hidden_0", "hidden_1", "classes")


def network(activation="relu"):
    return mlp((3,), (4, 4), 2, activation=activation)


def random_params(seed=0):
    random, sizes = np.random.default_rng(seed), (3, 4, 4, 2)
    return {
        name: {"kernel": jnp.asarray(random.normal(size=(n, m))), "bias": jnp.asarray(random.normal(size=m))}
        for name, n, m in zip(LAYERS, sizes, sizes[1:])
    }


def batch(seed=1):
    random = np.random.default_rng(seed)
    return jnp.asarray(random.normal(size=(7, 3))), jnp.asarray(random.normal(size=(7, 2)))


def dense_projectors(multiples):
    """Per space, onto `(c_t u)` in every cluster, as a matrix."""
    projectors = {}
    for space, ids in PARTITION.items():
        matrix = np.zeros((4, 4))
        for own in set(ids):
            c = np.where(np.array(ids) == own, multiples[space], 0.0)
            matrix += np.outer(c, c) / (c @ c or 1.0)
        projectors[space] = matrix
    return projectors


def by_hand(multiples, params, component):
    """One of the four components, array by array."""
    p = {"x": np.eye(3), "y": np.eye(2), **dense_projectors(multiples)}
    rest_in, rest_out = component in ("outgoing", "gauge"), component in ("incoming", "gauge")
    out = {}
    for name, reads, writes in zip(LAYERS, ("x", "hidden_0", "hidden_1"), ("hidden_0", "hidden_1", "y")):
        left, right = p[reads], p[writes]
        left = np.eye(len(left)) - left if rest_in else left
        right = np.eye(len(right)) - right if rest_out else right
        bias = np.zeros_like(params[name]["bias"]) if rest_in else params[name]["bias"] @ right
        out[name] = {"kernel": left @ params[name]["kernel"] @ right, "bias": bias}
    return out


@pytest.mark.parametrize(
    "multiples",
    [pytest.param(WEIGHTED, id="weighted"), pytest.param(VANISHED, id="vanished", marks=pytest.mark.slow)],
)
def test_projectors_and_dimensions_are_those_of_dense_matrices(x64, multiples):
    params, vector, wiring = random_params(), random_params(3), network().wiring
    leaf = weighted_manifold(params, wiring, PARTITION, multiples)
    family = weighted_manifold(params, wiring, PARTITION, multiples, space="V")
    normals = leaf.normals
    spaces = {"tangent": leaf, "incoming": normals.incoming, "outgoing": normals.outgoing, "gauge": normals.gauge}
    found = {name: each.project(vector) for name, each in spaces.items()}
    for name, answer in found.items():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), answer, by_hand(multiples, vector, name)
        )
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a, b + c, atol=1e-14),
        family.project(vector),
        found["tangent"],
        found["gauge"],
    )
    ranks = {space: round(np.trace(each)) for space, each in dense_projectors(multiples).items()}
    first, second = ranks["hidden_0"], ranks["hidden_1"]
    assert leaf.tangent_dimension == 3 * first + first + first * second + second + 2 * second + 2
    rest = [each.dimension for each in normals]
    assert leaf.tangent_dimension + sum(rest) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert (leaf.space, family.space) == ("weighted leaf", "weighted V")


SLOPES = {
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "softplus": (lambda z: np.logaddexp(z, 0), lambda z: 1 / (1 + np.exp(-z))),
}


def gradient_by_hand(activation, params):
    """Backpropagation of `1/(2N) sum |y - t|²` in NumPy."""
    f, slope = SLOPES[activation]
    h, targets = (np.asarray(each) for each in batch())
    steps = []
    for name in LAYERS:
        z = h @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])
        steps.append((name, h, z))
        h = z if name == "classes" else f(z)
    delta, gradient = (h - targets) / len(targets), {}
    for name, below, z in reversed(steps):
        delta = delta if name == "classes" else delta * slope(z)
        gradient[name] = {"kernel": jnp.asarray(below.T @ delta), "bias": jnp.asarray(delta.sum(0))}
        delta = delta @ np.asarray(params[name]["kernel"]).T
    return gradient


def on_family(multiples, seed=0):
    """A generic point of V: multiples in totals only, anything in the gauge."""
    params = random_params(seed)
    return weighted_manifold(params, network().wiring, PARTITION, multiples, space="V").project(params)


@pytest.mark.parametrize(
    ("activation", "multiples", "is_trapped"),
    [
        ("relu", WEIGHTED, True),
        ("tanh", SIGNED, True),
        ("tanh", VANISHED, True),
        ("tanh", WEIGHTED, False),
        ("softplus", SIGNED, False),
        ("softplus", VANISHED, False),
    ],
)
def test_gradients_stay_tangent_where_the_activation_allows_it(x64, activation, multiples, is_trapped):
    params = on_family(multiples)
    leaf = weighted_manifold(params, network().wiring, PARTITION, multiples)
    gradient = gradient_by_hand(activation, params)
    share = float(tree_norm(normal_part(leaf, gradient)) / tree_norm(gradient))
    assert share < 1e-14 if is_trapped else share > 1e-2


def test_certificates_say_what_parameters_facts_and_gradient_show(x64):
    data, weighted, signed = batch(), {"params": on_family(WEIGHTED)}, {"params": on_family(SIGNED)}
    relu, tanh, loss = network("relu"), network("tanh"), {"loss": mean_squared_error}
    verdicts = WeightedVerdict
    seen = certify_weighted(relu, weighted, data, PARTITION, WEIGHTED, **loss)
    assert seen.verdict is verdicts.WEIGHTED
    assert seen.tangency < 1e-13
    assert "coordinate-wise updates" in str(seen)
    assert certify_weighted(tanh, signed, data, PARTITION, SIGNED, **loss).verdict is verdicts.WEIGHTED
    # Parameters that fit, under an activation that does not.
    for model, variables, multiples, fact in ((tanh, weighted, WEIGHTED, "homog"), (relu, signed, SIGNED, "odd")):
        with_data = certify_weighted(model, variables, data, PARTITION, multiples, **loss)
        assert with_data.verdict is verdicts.NOT_WEIGHTED
        assert fact in str(with_data)
        assert certify_weighted(model, variables, None, PARTITION, multiples).verdict is verdicts.UNDECIDED
    # Activations that fit, parameters that do not: by much, and by less than anyone can say.
    other = {"params": random_params()}
    assert certify_weighted(relu, other, data, PARTITION, WEIGHTED, **loss).verdict is verdicts.NOT_WEIGHTED
    assert certify_weighted(relu, other, None, PARTITION, WEIGHTED).verdict is verdicts.UNDECIDED
    moved = jax.tree.map(jnp.array, weighted["params"])
    moved["hidden_0"]["bias"] = moved["hidden_0"]["bias"].at[0].multiply(1 + 100 * 2.0**-52)
    assert certify_weighted(relu, {"params": moved}, data, PARTITION, WEIGHTED, **loss).verdict is verdicts.UNDECIDED
    # At a minimum the gradient is rounding, whose direction says nothing.
    fitted = relu.apply(other, data[0]).logits * jnp.asarray(1 + 2.0**-52 * (np.arange(14) % 3 - 1).reshape(7, 2))
    at_minimum = certify_weighted(relu, other, (data[0], fitted), PARTITION, WEIGHTED, **loss)
    assert at_minimum.verdict is verdicts.UNDECIDED


def test_factors_are_found_and_unknown_facts_are_named(x64):
    params = random_params()
    on_leaf = weighted_manifold(params, network().wiring, PARTITION, WEIGHTED).project(params)
    found = certify_weighted(network(), {"params": on_leaf}, None, PARTITION)
    assert found.verdict is WeightedVerdict.WEIGHTED
    for space, factors in {"hidden_0": (0.5, 1.0, 1.0, 0.25), "hidden_1": (1 / 1.6, 1.0, 0.7, 1.0)}.items():
        np.testing.assert_allclose(found.multiples[space], factors, rtol=1e-12)
    mirrored = on_family(SIGNED)
    assert certify_weighted(network("tanh"), {"params": mirrored}, None, PARTITION).verdict.name == "WEIGHTED"
    unknown = network(Activation("mine", jax.nn.relu))
    certificate = certify_weighted(unknown, {"params": on_leaf}, None, PARTITION, WEIGHTED)
    assert certificate.verdict is WeightedVerdict.UNDECIDED
    assert "mine does not say whether it is positive-homogeneous" in str(certificate)
    known = network(Activation("mine", jax.nn.relu, is_homogeneous=True))
    assert certify_weighted(known, {"params": on_leaf}, None, PARTITION, WEIGHTED).verdict.name == "WEIGHTED"


def swapped(params):
    """Units 0 and 1 of both layers change places."""
    order = jnp.array([1, 0, 2, 3])
    return {
        "hidden_0": {"kernel": params["hidden_0"]["kernel"][:, order], "bias": params["hidden_0"]["bias"][order]},
        "hidden_1": {
            "kernel": params["hidden_1"]["kernel"][order][:, order],
            "bias": params["hidden_1"]["bias"][order],
        },
        "classes": {**params["classes"], "kernel": params["classes"]["kernel"][order]},
    }


def mirrored(params):
    """Unit 1 of the first layer with the other sign, and a shift that a softmax does not see."""
    sign = jnp.array([1.0, -1.0, 1.0, 1.0])
    first, second, last = (params[name] for name in LAYERS)
    return {
        "hidden_0": {"kernel": first["kernel"] * sign, "bias": first["bias"] * sign},
        "hidden_1": {**second, "kernel": second["kernel"] * sign[:, None]},
        "classes": {"kernel": last["kernel"].at[2].add(0.3), "bias": last["bias"] + 1.0},
    }


def stretched(params):
    return jax.tree.map(lambda leaf: 2 * leaf, params)


def test_fixed_points_of_a_swap_are_the_family_of_clones(x64):
    """Two pairs of units that change places together: on V, where redistributions between the pairs are free."""
    pairs, params, vector = {"hidden_0": (0, 0, 1, 2), "hidden_1": (0, 0, 1, 2)}, random_params(), random_params(3)
    family = cloned_manifold(params, network().wiring, pairs, space="V")
    fixed = fixed_point_manifold(family.project(params), swapped)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), fixed.project(vector), family.project(vector)
    )
    assert dimension(fixed) == family.tangent_dimension
    with pytest.raises(ValueError, match="not fixed: the map moves it by"):
        fixed_point_manifold(params, swapped)
    with pytest.raises(ValueError, match="order=3: the map is not the identity"):
        fixed_point_manifold(family.project(params), swapped, order=3)


def test_clones_seen_through_a_mirror_are_signed_clones(x64):
    params, vector, wiring = random_params(), random_params(3), network().wiring
    pair = {"hidden_0": (0, 0, 1, 2)}
    seen = isometric_manifold(params, mirrored, lambda there: cloned_manifold(there, wiring, pair))
    signed = weighted_manifold(params, wiring, pair, {"hidden_0": (1.0, -1.0, 1.0, 1.0)})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), tangent_part(seen, vector), signed.project(vector)
    )
    assert (seen.tangent_dimension, seen.is_affine) == (signed.tangent_dimension, True)
    with pytest.raises(ValueError, match="not orthogonal"):
        isometric_manifold(params, stretched, lambda there: cloned_manifold(there, wiring, pair))
    with pytest.raises(ValueError, match="not affine"):
        isometric_manifold(params, lambda p: jax.tree.map(jnp.abs, p), lambda there: seen)


def test_whether_a_map_is_a_symmetry_is_asked_of_the_loss(x64):
    """A mirror is one for tanh and softmax; not for ReLU, and squared errors see constants added to the logits."""
    classes, variables = (batch()[0], jnp.arange(7) % 2), {"params": random_params()}
    assert leaves_loss_unchanged(network("tanh"), variables, classes, mirrored) is True
    assert leaves_loss_unchanged(network("relu"), variables, classes, mirrored) is False
    assert leaves_loss_unchanged(network("tanh"), variables, batch(), mirrored, loss=mean_squared_error) is False


def test_frozen_units_and_refusals(x64):
    params, wiring = random_params(), network().wiring
    leaf = weighted_manifold(params, wiring, PARTITION, WEIGHTED)
    both = intersection(leaf, frozen_manifold(params, wiring, {"hidden_0": [2]}))
    answer = both.project(random_params(3))
    assert not np.any(np.asarray(answer["hidden_0"]["kernel"])[:, 2])
    assert both.space == "weighted leaf & frozen"
    assert both.tangent_dimension == leaf.tangent_dimension - 4
    for multiples, message in (
        ({"hidden_0": (1.0, 2.0)}, "must be 4 finite numbers"),
        ({"hidden_0": (1.0, np.nan, 1.0, 1.0)}, "finite"),
        ({"classes": (1.0, 2.0)}, "fixed"),
    ):
        with pytest.raises(ValueError, match=message):
            weighted_manifold(params, wiring, PARTITION, multiples)
    with pytest.raises(ValueError, match="nothing to certify"):
        certify_weighted(network(), {"params": params}, None, {})
