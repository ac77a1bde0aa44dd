"""Types, scales, empty axes, NaN and infinity for functions of parameter trees: right, or one sentence.

Two numbers that every type holds exactly go in as a tree; what comes out is compared with double precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax import cloning, curvature, detection, manifolds, stability
from lopjax.cloning import cluster_rows, collapse, make_clusters, mean_over_clusters
from lopjax.detection import CloneDistances, Multiples
from lopjax.models import mlp

KEY = jax.random.key(0)
BASE, PAIR = mlp((1,), (1,), 1), mlp((1,), (2,), 1)
DIAGONAL = np.array([1.0, 3.0])


def tree(values):
    """Parameters of `PAIR`: incoming and outgoing weights from two numbers, which make clones if they are equal."""
    hidden = {"kernel": values[None], "bias": values * 0}
    return {"hidden_0": hidden, "classes": {"kernel": values[:, None], "bias": values[:1] * 0}}


def flat(result):
    """All arrays of a result as one vector of double precision."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result) if not isinstance(leaf, str)]
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in leaves])


def square(params):
    return 0.5 * jnp.sum(jnp.asarray(DIAGONAL, params["w"].dtype) * params["w"] ** 2)


def scaled(vector):
    return {"w": jnp.asarray(DIAGONAL, vector["w"].dtype) * vector["w"]}


def first_axis(vector):
    return {"w": vector["w"].at[1].set(0)}


def leaf(values):
    """The manifold w_0 = w_1 of two weights."""
    return manifolds.Manifold({"w": values}, lambda v: {"w": jnp.full_like(v["w"], v["w"].mean())}, is_affine=True)


CLUSTERS = make_clusters((0, 0))
# Of an array of shape (2,) that may hold -1 and 2.
FUNCTIONS = {
    "hvp": lambda v: curvature.hvp(square, {"w": v}, {"w": v}),
    "hvp_over_batches": lambda v: curvature.hvp_over_batches(
        lambda p, x: square(p) * x.mean(), {"w": v}, {"w": v}, jnp.ones((2, 1), v.dtype), 1
    ),
    "ggn_vp": lambda v: curvature.ggn_vp(lambda p: p["w"], lambda y: jnp.sum(y**2), {"w": v}, {"w": v}),
    "dense_hessian": lambda v: curvature.dense_hessian(square, {"w": v}),
    "constraint_jacobian": lambda v: curvature.constraint_jacobian(lambda p: p["w"] ** 2, {"w": v}),
    "per_sample_gradients": lambda v: curvature.per_sample_gradients(lambda p, x: square(p) * x, {"w": v}, v),
    "mean_over_batches": lambda v: curvature.mean_over_batches(jnp.mean, v, 1),
    "restrict": lambda v: curvature.restrict(scaled, first_axis)({"w": v}),
    "extreme_eigenvalues": lambda v: curvature.extreme_eigenvalues(scaled, {"w": v}, 2, KEY).eigenvalues,
    "tangent_part": lambda v: manifolds.tangent_part(leaf(v), {"w": v}),
    "normal_part": lambda v: manifolds.normal_part(leaf(v), {"w": v}),
    "conserved_drift": lambda v: manifolds.conserved_drift(lambda p: p["w"][:1] ** 2, {"w": v}, 0.5),
    "cluster_mean": lambda v: manifolds.cluster_mean(v, 0, CLUSTERS),
    "kick_components": lambda v: stability.kick_components({"w": jnp.eye(2, dtype=v.dtype)}, {"w": v}),
    "cloned_norm": lambda v: cloning.cloned_norm(tree(v), PAIR.wiring, 2),
    "clip_by_cloned_norm": lambda v: cloning.clip_by_cloned_norm(1.0, PAIR.wiring, 2).update(tree(v), ())[0],
    "quotient_optimizer": lambda v: _step(cloning.quotient_optimizer(optax.sgd(0.5), PAIR.wiring, 2), tree(v)),
    "collapse": lambda v: collapse({"params": tree(v[:1].repeat(2))}, PAIR.wiring, {"hidden_0": (0, 0)}),
    "parameter_rows": lambda v: detection.parameter_rows(PAIR.wiring, {"params": tree(v)}, "hidden_0"),
}
# These take NumPy arrays.
ON_HOST = {
    "mean_over_clusters": lambda v: mean_over_clusters(np.asarray(v, np.float64), 0, CLUSTERS),
    "cluster_rows": lambda v: cluster_rows(np.asarray(v, np.float64)[:, None], np.full(2, 0.5)),
}


def _step(optimizer, params):
    return optimizer.update(params, optimizer.init(params), params)[0]


@pytest.mark.parametrize("name", [*FUNCTIONS, *ON_HOST])
def test_types_agree_with_double_precision(x64, unchecked, name):
    """To the precision of the type itself: what comes in 16 bits goes out in 16 bits."""
    function = {**FUNCTIONS, **ON_HOST}[name]
    expected = flat(function(jnp.array([-1.0, 2.0])))
    for dtype in ("bfloat16", "float32"):
        found = flat(function(jnp.array([-1, 2], dtype)))
        np.testing.assert_allclose(found, expected, rtol=4 * float(jnp.finfo(dtype).eps), atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_not_a_number_is_seen(x64, unchecked, name):
    """In the result, but where the numbers given are no part of it: then it is that of any others."""
    if name in ("dense_hessian", "extreme_eigenvalues"):  # of a quadratic loss: the same everywhere
        return
    with np.errstate(all="ignore"):
        found = flat(FUNCTIONS[name](jnp.array([np.nan, 2.0])))
    assert np.isnan(found).any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("name", ["tangent_part", "normal_part", "cluster_mean", "cloned_norm", "kick_components"])
def test_linear_functions_scale(name, scale):
    """In single precision, whose squares overflow or vanish at these sizes."""
    expected = flat(FUNCTIONS[name](jnp.array([-1.0, 2.0])))
    np.testing.assert_allclose(flat(FUNCTIONS[name](jnp.array([-scale, 2 * scale]))) / scale, expected, rtol=1e-5)


def test_empty_trees_batches_and_clusters_are_refused():
    nothing = {"w": jnp.zeros(0)}
    for refused, message in (
        (lambda: curvature.mean_over_batches(jnp.mean, jnp.zeros((0, 2)), 1), "positive length"),
        (lambda: curvature.extreme_eigenvalues(lambda v: v, nothing, 1, KEY), "no parameter|at least one|empty"),
        (lambda: curvature.spectral_density(lambda v: v, nothing, 1, 1, KEY), "no parameter|at least one|empty"),
        (lambda: curvature.block_eigenvalues(lambda v: v, 0, 2, 1, KEY), "num_blocks"),
        (lambda: curvature.check_loss(lambda p: jnp.sum(p["w"]), {"w": jnp.zeros(2, int)}), "float|integer"),
        (lambda: curvature.check_same_tree({"w": jnp.zeros(2)}, {"w": jnp.zeros(3)}, "other"), "other"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_operators_that_are_not_finite_have_no_eigenvalues():
    """Undecided, not converged: residuals that are not finite."""
    broken = lambda v: {"w": v["w"] * jnp.array([1.0, np.nan])}  # noqa: E731
    pairs = curvature.extreme_eigenvalues(broken, {"w": jnp.ones(2)}, 2, KEY)
    assert not np.isfinite(np.asarray(pairs.residuals)).all()
    blocks = curvature.block_eigenvalues(lambda v: v * jnp.array([1.0, np.nan]), 1, 2, 2, KEY)
    assert not np.isfinite(np.asarray(blocks.residuals)).all()
    density = curvature.spectral_density(broken, {"w": jnp.ones(2)}, 2, 1, KEY)
    assert np.isnan(np.asarray(curvature.smooth_density(density, jnp.linspace(-1.0, 1.0, 3), 0.1))).any()


def test_units_that_are_not_finite_are_near_none():
    rows = jnp.array([[1.0, 2.0], [1.0, 2.0], [np.nan, 2.0]])
    nearest = detection.nearest_units(rows, Multiples(positive=False, mirrored=False))
    distance = np.asarray(nearest.distance)
    assert distance[0] <= 1e-6
    assert not distance[2] <= 1e6
    near = detection.near_clones({"h": CloneDistances(nearest, nearest)}, 0.01)
    assert np.asarray(near["h"]).tolist() == [True, True, False]
