"""Projectors against Kronecker products in numpy; gradients tangent at clones and not elsewhere; level sets."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from oracles.projectors import averaging, block_diagonal, kron_pieces, v_point

from lopjax import manifolds
from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.losses import cross_entropy
from lopjax.manifolds import (
    Manifold,
    cloned_manifold,
    cluster_mean,
    codimension,
    conserved_drift,
    dimension,
    distance,
    frozen_manifold,
    homogeneous_conserved,
    intersection,
    level_set_manifold,
    make_clusters,
    normal_basis,
    normal_part,
    random_normal_vector,
    tangency_residual,
    tangent_part,
)
from lopjax.models import ACTIVATIONS, cnn, mlp, vit
from lopjax.wiring import In, Label, Out, Site, build_wiring

UNEQUAL = {"hidden_0": (0, 1, 0, 2, 1, 1), "hidden_1": (0, 0, 1, 0, 1)}


def dense(project, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.vmap(lambda row: ravel_pytree(project(unravel(row)))[0])(jnp.eye(flat.size))).T


def data(shape, classes, samples=12, seed=1):
    inputs = jnp.asarray(np.random.default_rng(seed).normal(size=(samples, *shape)))
    return inputs, jnp.arange(samples) % classes


def perturbed(params, path=("hidden_0", "kernel"), amount=0.5):
    module, name = path
    return {**params, module: {**params[module], name: params[module][name].at[..., 0].add(amount)}}


def initial(model, seed):
    """Random variables by numpy: compiling an initialisation takes longer than everything else here."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    drawn = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-0.6, 0.6, leaf.shape)), shapes)
    statistics = jax.tree.map(lambda leaf: 1 + leaf**2, drawn.get("batch_stats", {}))
    return {**drawn, "batch_stats": statistics}


def gradient_of(model, variables, batch, train=False):
    return _gradients(model, train)(variables, batch)


@cache
def _gradients(model, train):
    return jax.jit(
        lambda variables, batch: jax.grad(cross_entropy(model, variables, batch, train))(variables["params"])
    )


# --- Tangency of gradients -----------------------------------------------------------------------------------------

CASES = [(name, "none", 2) for name in ACTIVATIONS]
CASES += [("tanh", "none", 3), ("tanh", "batch", 2), ("gelu", "layer", 3)]


@pytest.mark.parametrize(("activation", "norm", "factor"), CASES)
def test_gradients_are_tangent_at_cloned_networks_and_only_there(x64, activation, norm, factor):
    base = mlp((5,), (4, 3), 3, activation=activation, norm=norm)
    variables = clone_variables(initial(base, 0), base.wiring, factor)
    wide = base.resize({"hidden_0": 4 * factor, "hidden_1": 3 * factor})
    partition = uniform_partition(wide.wiring, factor)
    params, batch = variables["params"], data((5,), 3)
    leaf = cloned_manifold(params, wide.wiring, partition)
    assert tangency_residual(leaf, gradient_of(wide, variables, batch, train=norm == "batch")) <= 1e-14
    # Control: one unit of one cluster gets other incoming weights.
    broken = {**variables, "params": perturbed(params)}
    control = cloned_manifold(broken["params"], wide.wiring, partition)
    assert tangency_residual(control, gradient_of(wide, broken, batch, train=norm == "batch")) > 1e-3


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: cnn((4, 4, 2), 3, channels=(2, 3), dense=4, norm="batch", activation="tanh"), (4, 4, 2)),
        pytest.param(
            lambda: vit((4, 4, 1), 3, patch=2, width=4, depth=1, heads=2, mlp_ratio=1.5),
            (4, 4, 1),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["cnn", "vit"],
)
def test_gradients_are_tangent_at_cloned_convolutions_and_attention(x64, build, shape):
    base = build()
    variables = clone_variables(initial(base, 0), base.wiring, 2)
    wide = widen(base, 2)
    leaf = cloned_manifold(variables["params"], wide.wiring, uniform_partition(wide.wiring, 2))
    assert tangency_residual(leaf, gradient_of(wide, variables, data(shape, 3))) <= 1e-14
    fresh = initial(wide, 1)
    assert tangency_residual(leaf, gradient_of(wide, fresh, data(shape, 3))) > 1e-3


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_gradients_are_tangent_on_v_with_unequal_clusters(x64, norm):
    model = mlp((4,), (6, 5), 3, activation="tanh", norm=norm)
    # Layer norm amplifies rounding where large gauge parts cancel.
    params = v_point(initial(model, 3)["params"], model.wiring, UNEQUAL, scale=0.5)
    leaf = cloned_manifold(params, model.wiring, UNEQUAL)
    assert distance(leaf, jax.tree.map(jnp.zeros_like, params)) > 0.1  # not block-constant: a leaf apart from BC
    gradient = gradient_of(model, {"params": params}, data((4,), 3))
    assert tangency_residual(leaf, gradient) <= 1e-14
    off = perturbed(params)
    assert tangency_residual(leaf, gradient_of(model, {"params": off}, data((4,), 3))) > 1e-3


def test_gradient_descent_stays_on_the_leaf_and_noise_does_not(x64):
    model = mlp((4,), (6, 5), 3, activation="tanh")
    start = v_point(initial(model, 3)["params"], model.wiring, UNEQUAL)
    leaf = cloned_manifold(start, model.wiring, UNEQUAL)

    @jax.jit
    def descend(params, noise):
        def step(params, key):
            gradient = jax.grad(cross_entropy(model, {}, data((4,), 3)))(params)
            shaken = jax.tree.map(lambda p, g: p - 0.1 * g + noise * jax.random.normal(key, p.shape), params, gradient)
            return shaken, None

        return jax.lax.scan(step, params, jax.random.split(jax.random.key(0), 30))[0]

    assert distance(leaf, descend(start, 0.0)) <= 1e-13
    assert distance(leaf, descend(start, 1e-3)) > 1e-3


# --- Projectors ----------------------------------------------------------------------------------------------------

PLACES = {
    ("params", "plain"): (In("a"), Out("b")),
    ("params", "bias"): (Out("b"),),
    ("params", "heads"): (In("a"), Out("c"), None),
    ("params", "merge"): (In("c"), In("b"), Out("a")),
}


def clusterings(size):
    return st.lists(st.integers(0, 2), min_size=size, max_size=size).map(tuple)


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    ids=st.tuples(clusterings(3), clusterings(4), clusterings(2)), cluster=st.integers(0, 2), seed=st.integers(0, 99)
)
def test_projectors_are_those_of_the_kronecker_oracle(ids, cluster, seed):
    partition = dict(zip("abc", ids))
    sizes = {"a": 3, "b": 4, "c": 2, None: 2}
    shapes = {path: tuple(sizes[axis and axis.space] for axis in axes) for path, axes in PLACES.items()}
    site_of = {"plain": "b", "bias": "b", "merge": "a"}
    labels = {path: Label(axes, site=site_of.get(path[1])) for path, axes in PLACES.items()}
    wiring = build_wiring(labels, shapes, {"a": Site("a", "relu"), "b": Site("b", "relu")})
    with jax.enable_x64(True):
        params = {path[1]: jnp.ones(shape) for path, shape in shapes.items()}
        frozen = [unit for unit in range(4) if ids[1][unit] == cluster]
        leaf, v = (cloned_manifold(params, wiring, partition, space) for space in ("leaf", "V"))
        dead = frozen_manifold(params, wiring, {"b": frozen})
        both = intersection(leaf, dead)
        normals, kept = leaf.normals, both.normals
        projects = (leaf.project, v.project, *(n.project for n in normals), dead.project, both.project)
        flat, unravel = ravel_pytree(params)

        @jax.jit
        def columns(row):
            return [ravel_pytree(project(unravel(row)))[0] for project in (*projects, *(n.project for n in kept))]

        matrices = [np.asarray(matrix).T for matrix in jax.vmap(columns)(jnp.eye(flat.size))]
    order = sorted(PLACES)  # the order of leaves in a dict
    blocks = [kron_pieces(PLACES[path], shapes[path], partition) for path in order]
    bc, incoming, outgoing, gauge = (block_diagonal([block[index] for block in blocks]) for index in range(4))
    mask = block_diagonal([np.diag(_kept(path, shapes[path], frozen)) for path in order])
    expected = [bc, bc + gauge, incoming, outgoing, gauge, mask, bc @ mask]
    expected += [piece @ mask for piece in (incoming, outgoing, gauge)]
    known = [dimension(m) for m in (leaf, v)] + [n.dimension for n in normals]
    known += [dimension(m) for m in (dead, both)] + [n.dimension for n in kept]
    for matrix, oracle, rank in zip(matrices, expected, known, strict=True):
        np.testing.assert_allclose(matrix, oracle, atol=1e-14)
        np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-14)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-14)
        assert abs(np.trace(matrix) - rank) < 1e-11


def _kept(path, shape, frozen):
    kept = np.ones(shape)
    if path[1] in ("plain", "bias"):
        kept[..., frozen] = 0
    return kept.ravel()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("ids", [(0, 0, 0, 1, 1, 1), (0, 1, 0, 2, 1, 0), (0,) * 6, (5, 5, 9, 9, 7, 7)])
def test_block_constant_arrays_come_back_bit_for_bit(x64, dtype, ids):
    rng, clusters = np.random.default_rng(0), make_clusters(ids)
    _, label = np.unique(ids, return_inverse=True)
    means = jax.jit(lambda array: (cluster_mean(array, 0, clusters), cluster_mean(array, 1, clusters)))
    constant = jnp.asarray(rng.normal(size=(6, 6))[label][:, label], dtype)
    assert all(jnp.array_equal(mean, constant) for mean in means(constant))
    spread = jnp.asarray(rng.normal(size=(6, 6)), dtype)
    P, exact = averaging(ids), np.asarray(spread, np.float64)
    for mean, expected in zip(means(spread), (P @ exact, exact @ P), strict=True):
        np.testing.assert_allclose(np.asarray(mean, np.float64), expected, atol=8 * jnp.finfo(dtype).eps)


def test_long_runs_take_the_general_road(x64):
    ids = tuple(np.repeat([0, 1], 40).tolist())
    values = np.random.default_rng(0).normal(size=(80, 2))
    np.testing.assert_allclose(
        cluster_mean(jnp.asarray(values), 0, make_clusters(ids)), averaging(ids) @ values, atol=1e-15
    )


# --- Residuals, distances, bases ------------------------------------------------------------------------------------


@pytest.fixture
def leaf(x64):
    model = mlp((4,), (6, 5), 3, activation="tanh")
    params = v_point(initial(model, 3)["params"], model.wiring, UNEQUAL)
    return cloned_manifold(params, model.wiring, UNEQUAL)


def test_tangency_residual_is_a_ratio_at_every_magnitude(leaf):
    normal = random_normal_vector(jax.random.key(0), leaf)
    tangent = tangent_part(leaf, jax.tree.map(jnp.ones_like, leaf.origin))
    norm = np.linalg.norm(ravel_pytree(tangent)[0])
    mixed = jax.tree.map(lambda t, n: 3 * t / norm + 4 * n, tangent, normal)
    residual = jax.jit(lambda vector: tangency_residual(leaf, vector))
    for scale in (1.0, 1e-300, 1e300):
        scaled = jax.tree.map(lambda x, scale=scale: x * scale, mixed)
        np.testing.assert_allclose(residual(scaled), 0.8, rtol=1e-14)
    assert residual(jax.tree.map(jnp.zeros_like, mixed)) == 0
    assert residual(tangent) <= 1e-15
    for bad in (float("inf"), float("nan")):
        assert residual(jax.tree.map(lambda x, bad=bad: x + bad, mixed)) == jnp.inf
    stack = jax.tree.map(lambda t, n: jnp.stack([t, n]), tangent, normal)
    np.testing.assert_allclose(jax.vmap(residual)(stack), [0, 1], atol=1e-15)


def test_distance_and_parts(leaf):
    normal = random_normal_vector(jax.random.key(1), leaf)
    tangent = tangent_part(leaf, jax.tree.map(jnp.sin, leaf.origin))
    moved = jax.tree.map(lambda p, n, t: p + 0.3 * n + t, leaf.origin, normal, tangent)
    np.testing.assert_allclose(distance(leaf, moved), 0.3, rtol=1e-13)
    v = leaf._replace(project=cloned_manifold(leaf.origin, leaf.structure.wiring, UNEQUAL, "V").project)
    gauge = leaf.normals.gauge.project(normal)
    assert distance(leaf, jax.tree.map(jnp.add, leaf.origin, gauge)) > 0.1
    assert distance(v, jax.tree.map(jnp.add, leaf.origin, gauge)) < 1e-15


def test_normal_basis_is_orthonormal_and_complete(leaf):
    basis = np.asarray(normal_basis(leaf))
    assert len(basis) == codimension(leaf) == sum(piece.dimension for piece in leaf.normals)
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-13)
    np.testing.assert_allclose(np.eye(basis.shape[1]) - basis.T @ basis, dense(leaf.project, leaf.origin), atol=1e-13)


def test_dimension_of_a_projector_of_ones_own_is_its_trace(leaf):
    assert dimension(Manifold(leaf.origin, leaf.project)) == leaf.tangent_dimension
    pieces = {piece.dimension: dimension(Manifold(leaf.origin, piece.project)) for piece in leaf.normals}
    assert len(pieces) == 3  # no two of one dimension, so that none can stand for another
    assert all(known == found for known, found in pieces.items())
    with pytest.raises(ValueError, match="max_bytes=100"):
        normal_basis(leaf, max_bytes=100)
    oblique = Manifold(jnp.ones(2), lambda v: jnp.stack([v[0] + v[1], jnp.zeros_like(v[0])]))
    with pytest.raises(ValueError, match="not an orthogonal projector"):
        normal_basis(oblique)


def test_random_normal_vectors_are_isotropic(leaf):
    draws = jax.vmap(lambda key: random_normal_vector(key, leaf))(jax.random.split(jax.random.key(0), 2000))
    flat = np.concatenate([np.asarray(d).reshape(2000, -1) for d in jax.tree.leaves(draws)], axis=1)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), 1, rtol=1e-14)
    coordinates = flat @ np.asarray(normal_basis(leaf)).T
    np.testing.assert_allclose((coordinates**2).mean(axis=0), 1 / codimension(leaf), rtol=0.2)


# --- Frozen units ---------------------------------------------------------------------------------------------------


def test_gradients_are_tangent_where_units_are_dead_and_only_there(x64):
    model = mlp((4,), (6, 5), 3)
    params = initial(model, 0)["params"]
    bias = params["hidden_0"]["bias"].at[jnp.array([1, 4])].set(-50.0)
    dead = {**params, "hidden_0": {**params["hidden_0"], "bias": bias}}
    manifold = frozen_manifold(dead, model.wiring, {"hidden_0": [1, 4]})
    assert dimension(manifold) == sum(leaf.size for leaf in jax.tree.leaves(params)) - 2 * (4 + 1)
    gradient = gradient_of(model, {"params": dead}, data((4,), 3))
    assert tangency_residual(manifold, gradient) == 0
    assert tangency_residual(manifold, gradient_of(model, {"params": params}, data((4,), 3))) > 1e-3
    normal = normal_part(manifold, params)
    np.testing.assert_array_equal(normal["hidden_0"]["kernel"][:, [1, 4]], params["hidden_0"]["kernel"][:, [1, 4]])
    assert not normal["hidden_0"]["kernel"][:, [0, 2, 3, 5]].any()
    assert not normal["hidden_1"]["kernel"].any()


def test_frozen_clones_stay_on_the_intersection(x64):
    model = mlp((4,), (6, 5), 3)
    params = v_point(initial(model, 3)["params"], model.wiring, UNEQUAL)
    bias = params["hidden_0"]["bias"].at[jnp.array([0, 2])].set(-50.0)
    params = {**params, "hidden_0": {**params["hidden_0"], "bias": bias}}
    cloned = cloned_manifold(params, model.wiring, UNEQUAL)
    frozen = frozen_manifold(params, model.wiring, {"hidden_0": [0, 2]})
    both = intersection(frozen, cloned)
    assert both.space == "leaf & frozen"
    assert tangency_residual(both, gradient_of(model, {"params": params}, data((4,), 3))) <= 1e-14
    for cut in ([0], [0, 1, 2]):
        with pytest.raises(ValueError, match=r"cut the cluster \[.*\] of 'hidden_0'.*split the cluster first"):
            intersection(cloned, frozen_manifold(params, model.wiring, {"hidden_0": cut}))


# --- Level sets -------------------------------------------------------------------------------------------------------


def test_level_sets_of_linear_constraints_agree_with_the_affine_manifolds(leaf):
    flat, _ = ravel_pytree(leaf.origin)
    basis = normal_basis(leaf)
    # Badly scaled and with two dependent rows: the same manifold.
    scales = 10.0 ** jnp.linspace(-9, 3, len(basis))
    rows = jnp.concatenate([basis * scales[:, None], basis[:1] + basis[1:2], jnp.zeros((1, flat.size))])
    manifold = level_set_manifold(leaf.origin, lambda params: rows @ ravel_pytree(params)[0])
    assert manifold.rank_loss == 2
    assert dimension(manifold) == dimension(leaf) == dimension(manifold._replace(tangent_dimension=None))
    np.testing.assert_allclose(dense(manifold.project, leaf.origin), dense(leaf.project, leaf.origin), atol=1e-12)


def test_level_set_of_a_sphere_and_its_centre(x64):
    point = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}

    def radius(params):
        return jnp.reshape(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), 1)

    sphere = level_set_manifold(point, radius)
    assert (dimension(sphere), sphere.rank_loss) == (2, 0)
    assert tangency_residual(sphere, point) == 1
    assert tangency_residual(sphere, {"w": jnp.array([0.0, 1.0]), "b": jnp.array([0.0])}) == 0
    centre = level_set_manifold(jax.tree.map(jnp.zeros_like, point), radius)
    assert (dimension(centre), centre.rank_loss) == (3, 1)
    with pytest.raises(ValueError, match="not finite"):
        level_set_manifold(jax.tree.map(jnp.zeros_like, point), lambda params: jnp.sqrt(radius(params)))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_conserved_quantities_of_homogeneous_units(x64, activation):
    model = mlp((4,), (6, 5), 3, activation=activation)
    params = initial(model, 0)["params"]
    batch = data((4,), 3)
    conserved = homogeneous_conserved(model.wiring)
    gradient = gradient_of(model, {"params": params}, batch)
    manifold = level_set_manifold(params, conserved)
    assert (dimension(manifold), manifold.rank_loss) == (codimension_of(params) - 11, 0)
    assert tangency_residual(manifold, gradient) <= 1e-14
    smooth = mlp((4,), (6, 5), 3, activation="gelu")
    assert tangency_residual(manifold, gradient_of(smooth, {"params": params}, batch)) > 1e-3
    # The drift of a step, by numpy from its definition, and as the change of the quantity itself.
    learning_rate = 0.05
    moved = jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient)
    change = conserved(moved) - conserved(params)
    expected = np.concatenate(
        [
            (np.asarray(gradient[a]["kernel"]) ** 2).sum(0)
            + np.asarray(gradient[a]["bias"]) ** 2
            - (np.asarray(gradient[b]["kernel"]) ** 2).sum(1)
            for a, b in (("hidden_0", "hidden_1"), ("hidden_1", "classes"))
        ]
    )
    np.testing.assert_allclose(change, learning_rate**2 * expected, atol=1e-12)
    np.testing.assert_allclose(conserved_drift(conserved, gradient, learning_rate), change, atol=1e-12)
    assert np.abs(learning_rate**2 * expected).max() > 1e-6


def codimension_of(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ({"nowhere": (0, 0)}, "unit space 'nowhere'.*hidden_0"),
        ({"hidden_0": (0, 0, 1)}, "3 cluster ids for 6 units"),
        ({"hidden_0": (0, 0, 1, 1, 2, 2.5)}, "cluster id 2.5"),
        ({"input": (0, 0, 1, 2)}, r"it is fixed \(a network input: no array writes it\), so its units are no clones"),
    ],
)
def test_partitions_that_do_not_fit_are_refused(unchecked, partition, message):
    model = mlp((4,), (6, 5), 3)
    params = initial(model, 0)["params"]
    with pytest.raises(ValueError, match=message):
        cloned_manifold(params, model.wiring, partition)


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        ({"hidden_0": [6]}, r"must be an integer index in 0..5"),
        ({"hidden_0": [-1]}, r"must be an integer index in 0..5"),
        ({"hidden_0": [True]}, "True"),
        ({"hidden_7": [0]}, "neither a site nor a unit space.*hidden_0"),
        ({"classes": [0]}, "written at 0 sites"),
    ],
)
def test_frozen_units_that_do_not_exist_are_refused(unchecked, frozen, message):
    model = mlp((4,), (6, 5), 3)
    with pytest.raises(ValueError, match=message):
        frozen_manifold(initial(model, 0)["params"], model.wiring, frozen)


def test_a_space_with_several_sites_must_be_frozen_by_site(x64):
    model = vit((4, 4, 1), 3, patch=2, width=4, depth=1, heads=2, mlp_ratio=1.5, activation="relu")
    params = initial(model, 0)["params"]
    with pytest.raises(ValueError, match=r"'width' is written at 3 sites \['embedding'"):
        frozen_manifold(params, model.wiring, {"width": [0]})
    one = frozen_manifold(params, model.wiring, {"block_0": [0]})
    assert codimension(one) == params["mlp_0_out"]["kernel"].shape[0] + 1


def test_other_bad_input(unchecked, leaf):
    wiring = leaf.structure.wiring
    other = initial(mlp((4,), (6,), 3), 0)["params"]
    with pytest.raises(ValueError, match="does not match the wiring"):
        cloned_manifold(other, wiring, {})
    with pytest.raises(ValueError, match="space='W'"):
        cloned_manifold(leaf.origin, wiring, {}, space="W")
    with pytest.raises(ValueError, match="vector has the tree"):
        tangency_residual(leaf, other)
    with pytest.raises(ValueError, match="cloned_manifold and frozen_manifold"):
        intersection(leaf, Manifold(leaf.origin, leaf.project))
    elsewhere = frozen_manifold(jax.tree.map(lambda x: x + 1, leaf.origin), wiring, {"hidden_0": [0, 2]})
    with pytest.raises(ValueError, match="different origins"):
        intersection(leaf, elsewhere)
    with pytest.raises(ValueError, match="no normal directions"):
        random_normal_vector(jax.random.key(0), cloned_manifold(leaf.origin, wiring, {}))
    smooth, normed = mlp((4,), (3,), 2, activation="tanh"), mlp((4,), (3,), 2, norm="batch")
    for model, reason in ((smooth, "not positive-homogeneous"), (normed, "norm")):
        with pytest.raises(ValueError, match=reason):
            homogeneous_conserved(model.wiring, ["hidden_0"])
        with pytest.raises(ValueError, match="no unit space has"):
            homogeneous_conserved(model.wiring)


AFFINE_ON_ONE_SIDE = {
    "absolute values": jnp.abs,
    "a sort": jnp.sort,
    "a far kink": lambda w: jnp.where(w > -50, w, -w),
    "a far turn": lambda w: jnp.where(jnp.sum(w**2) > 200, w[::-1], w),
}


@pytest.mark.parametrize("name", AFFINE_ON_ONE_SIDE)
def test_maps_that_are_affine_on_one_side_alone_are_refused(x64, name):
    """One random step would stay on the side of the point; the control is a map that is affine everywhere."""
    params = {"w": jnp.array([1.0, 2, 3, 4])}

    def made(map_of_array):
        return manifolds.isometric_manifold(
            params,
            lambda tree: {"w": map_of_array(tree["w"])},
            lambda there: manifolds.Manifold(there, lambda v: {"w": v["w"].at[1].set(0)}, is_affine=True),
        )

    with pytest.raises(ValueError, match="not affine"):
        made(AFFINE_ON_ONE_SIDE[name])
    assert made(lambda w: w[::-1] + 1).project({"w": jnp.ones(4)})["w"].tolist() == [1, 1, 0, 1]
    with pytest.raises(ValueError, match="the image"):
        made(lambda w: w[:3])
