"""Unit blocks against the dense Hessian of the cloned network restricted to the normal space, in float64."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.normal_space import clone_by_hand, dense_normal, normal_basis, repeated_spectrum

from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.losses import mean_cross_entropy, mean_squared_error
from lopjax.models import cnn, mlp, resnet18, vit
from lopjax.models.labels import tap
from lopjax.models.layers import Conv, Dense
from lopjax.models.linen import from_linen
from lopjax.stability import Stability, unit_blocks, unit_blocks_of_clones
from lopjax.stability.blocks.matrices import unit_matrices, unit_scales
from lopjax.stability.blocks.plain_spaces import PlainSpace, plain_space
from lopjax.stability.blocks.products import HessianProduct, unit_products

INPUT, SAMPLES = 3, 11
LOSSES = {"mse": mean_squared_error, "cross_entropy": mean_cross_entropy}


class StridedConvolutions(nn.Module):
    """3x3 convolution, activation, 3x3 convolution with stride 2, activation, dense layer over all positions."""

    sizes: tuple[tuple[str, int], ...]
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: Any = None) -> jax.Array:
        (first, first_size), (second, second_size), (classes, num_classes) = self.sizes
        x = Conv("input", first, first_size, site=first, source="input", name=first)(x)
        x = tap(self, first, first, self.activation, x)
        x = Conv(first, second, second_size, stride=2, site=second, source=first, name=second)(x)
        x = tap(self, second, second, self.activation, x)
        return Dense((None, None, second), classes, num_classes, classes, second, name=classes)(x)


def random_variables(model, seed=0, dtype=float, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    drawn = jax.tree.map(lambda leaf: jnp.asarray(scale * rng.uniform(-1, 1, leaf.shape), dtype), dict(shapes))
    return {**drawn, "batch_stats": jax.tree.map(lambda leaf: 1 + leaf**2, drawn.get("batch_stats", {}))}


def random_batch(model, loss, seed=1, samples=SAMPLES, shape=(INPUT,), dtype=float):
    rng = np.random.default_rng(seed)
    inputs, classes = jnp.asarray(rng.normal(size=(samples, *shape)), dtype), model.wiring.size("classes")
    if loss == "cross_entropy":
        return inputs, jnp.asarray(rng.integers(classes, size=samples))
    return inputs, jnp.asarray(rng.normal(size=(samples, classes)), dtype)


def compare(model, loss, factor, *, seed=0, shape=(INPUT,)):
    """Closed form and dense oracle of one random network."""
    variables, batch = random_variables(model, seed), random_batch(model, loss, seed + 1, shape=shape)
    wide = widen(model, factor)
    partition = uniform_partition(wide.wiring, factor)
    cloned = {"params": clone_by_hand(variables["params"], model.wiring, partition)}
    blocks = unit_blocks(model, variables, batch, factor, loss=LOSSES[loss], method="closed form")
    return blocks, dense_normal(wide, cloned, LOSSES[loss], batch, partition)


def assert_same(blocks, normal, tolerance=1e-12):
    """Spectrum with multiplicities, and the inertia wherever both can decide."""
    expected = normal.eigenvalues
    np.testing.assert_allclose(repeated_spectrum(blocks, normal.num_gauge), expected, rtol=0, atol=tolerance)
    total = blocks.total
    assert total.exact
    # The sign of an eigenvalue as small as 3e-13 can follow from the rank of B_j, whose singular value is larger.
    assert total.n_plus == np.sum(expected > 1e-13)
    assert total.n_minus == np.sum(expected < -1e-13)
    assert total.n_plus + total.n_minus + total.n_zero == len(expected)
    assert normal.num_gauge <= total.structural <= total.n_zero
    assert total.min_eigenvalue == pytest.approx(expected[0], abs=tolerance)
    assert total.max_eigenvalue == pytest.approx(expected[-1], abs=tolerance)


# --- Closed form ---------------------------------------------------------------------------------------------------

NETWORKS = [
    ((3, 2), "tanh", "mse", 2),
    pytest.param((2, 3), "gelu", "cross_entropy", 3, marks=pytest.mark.slow),
    ((3, 2, 2), "sigmoid", "mse", {"hidden_0": 2, "hidden_1": 3, "hidden_2": 1}),
    ((2, 3, 2, 2), "relu", "cross_entropy", {"hidden_0": 1, "hidden_1": 2, "hidden_2": 3, "hidden_3": 2}),
    ((2, 2, 3), "tanh", "cross_entropy", {"hidden_1": 3}),
]


@pytest.mark.parametrize(("widths", "activation", "loss", "factor"), NETWORKS)
def test_closed_form_is_the_dense_hessian_on_the_normal_space(x64, widths, activation, loss, factor):
    blocks, normal = compare(mlp((INPUT,), widths, 3, activation=activation), loss, factor)
    assert np.abs(normal.eigenvalues).max() > 1e-3
    assert_same(blocks, normal)
    for space, found in blocks.spaces.items():
        n = factor if isinstance(factor, int) else factor[space]
        assert found.multiplicity.tolist() == [n - 1] * widths[int(space[-1])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "loss", "widths"),
    [
        ("tanh", "mse", (2, 3, 2)),
        ("gelu", "cross_entropy", (3, 2)),
        ("sigmoid", "cross_entropy", (2, 3, 2, 2)),
        ("relu", "mse", (2, 3, 2, 2)),
        ("tanh", "cross_entropy", (2, 3, 2, 2)),
        ("relu", "cross_entropy", (2, 3, 2)),
    ],
)
def test_closed_form_is_the_dense_hessian_under_every_activation_loss_and_depth(x64, activation, loss, widths):
    model = mlp((INPUT,), widths, 3, activation=activation)
    uneven = {f"hidden_{index}": 1 + (index + 1) % 3 for index in range(len(widths))}
    for factor in (2, 3, uneven):
        assert_same(*compare(model, loss, factor))


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_convolutions_with_stride_and_flatten_have_the_closed_form(x64, loss):
    module = StridedConvolutions((("conv_0", 2), ("conv_1", 2), ("classes", 2)), "tanh")
    model = from_linen(module, (3, 4, 1))
    assert_same(*compare(model, loss, {"conv_0": 2, "conv_1": 3}, shape=(3, 4, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_cnn_without_pooling_has_the_closed_form(x64, activation):
    model = cnn((3, 3, 1), 2, channels=(2, 2), dense=2, activation=activation, pooling="none")
    assert_same(*compare(model, "cross_entropy", 2, shape=(3, 3, 1)))


UNEQUAL = {"hidden_0": (0, 1, 0, 2, 1, 1), "hidden_1": (0, 0, 1, 0, 1)}


def unequal_clones(gauge=0.0, seed=0):
    """A network on BC with clusters of different sizes, moved along a gauge direction (which stays on V)."""
    model = mlp((INPUT,), (6, 5), 2, activation="tanh")
    params = clone_by_hand(
        random_variables(mlp((INPUT,), (3, 2), 2, activation="tanh"), seed)["params"], model.wiring, UNEQUAL
    )
    pattern = np.zeros((6, 5))
    pattern[np.ix_([1, 4], [0, 1])] = [[gauge, -gauge], [-gauge, gauge]]
    params["hidden_1"]["kernel"] = params["hidden_1"]["kernel"] + pattern
    return model, {"params": params}


def test_clusters_of_unequal_sizes(x64):
    model, variables = unequal_clones()
    batch = random_batch(model, "mse")
    blocks = unit_blocks_of_clones(model, variables, batch, UNEQUAL, loss=mean_squared_error)
    assert blocks.spaces["hidden_0"].multiplicity.tolist() == [1, 2, 0]
    assert_same(blocks, dense_normal(model, variables, mean_squared_error, batch, UNEQUAL))


def test_points_of_V_outside_BC_are_refused_because_their_blocks_would_be_wrong(x64):
    model, variables = unequal_clones(gauge=0.8)
    batch = random_batch(model, "mse")
    normal = dense_normal(model, variables, mean_squared_error, batch, UNEQUAL)
    gradient = jax.grad(lambda params: mean_squared_error(model.apply({"params": params}, batch[0]).logits, batch[1]))
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient(variables["params"]))])
    assert np.linalg.norm(normal.basis.T @ flat) < 1e-14  # on V: still trapped
    with pytest.raises(ValueError, match=r"not block constant .* residual"):
        unit_blocks_of_clones(model, variables, batch, UNEQUAL, loss=mean_squared_error)
    forced = unit_blocks_of_clones(model, variables, batch, UNEQUAL, loss=mean_squared_error, bc_tolerance=np.inf)
    assert np.abs(repeated_spectrum(forced, normal.num_gauge) - normal.eigenvalues).max() > 1e-3


# --- Hessian products ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_batched_products_give_the_ends_of_every_spectrum(x64):
    model, factor = mlp((INPUT,), (3, 2), 3, activation="tanh"), {"hidden_0": 2, "hidden_1": 3}
    variables, batch = random_variables(model), random_batch(model, "mse")
    closed = unit_blocks(model, variables, batch, factor, loss=mean_squared_error)
    products = unit_blocks(model, variables, batch, factor, loss=mean_squared_error, method="batched hvp", batch_size=4)
    assert closed.total.method == "closed form"
    for space, found in products.spaces.items():
        for field in ("min_eigenvalue", "max_eigenvalue"):
            np.testing.assert_allclose(found.per_unit(field), closed.spaces[space].per_unit(field), atol=1e-8)
        assert (found.per_unit("residual") < 1e-6).all()
        assert found.dimension == closed.spaces[space].dimension
        assert found.multiplicity.tolist() == closed.spaces[space].multiplicity.tolist()
    assert products.total.verdict is closed.total.verdict is Stability.SADDLE
    assert (products.total.n_plus, products.total.structural, products.total.exact) == (-1, -1, False)


def unit_blocks_by_products(wide, variables, loss, batch, partition, train=False):
    """Every M_j, dense, one column per product: `{space: (units, dim, dim)}`."""
    frozen = tuple((space, ids) for space, ids in partition.items())
    curved = HessianProduct(wide, loss, train, len(batch[0]))
    shapes = {}
    for space, ids in partition.items():
        n, units = int(np.bincount(ids)[0]), max(ids) + 1
        sizes = {s: max(i) + 1 for s, i in partition.items()}
        dim = 0
        for path, axis in (*wide.wiring.incoming(space), *wide.wiring.outgoing(space)):
            if path[0] != "params":
                continue
            label = dict(wide.wiring.labels)[path]
            leaf = variables["params"]
            for key in path[1:]:
                leaf = leaf[key]
            rest = [
                sizes.get(label.axes[i].space, size) if label.axes[i] is not None else size
                for i, size in enumerate(leaf.shape)
                if i != axis
            ]
            dim += int(np.prod(rest))
        shapes[space] = (units, dim)
        assert n > 1
    matrices = {space: np.zeros((units, dim, dim)) for space, (units, dim) in shapes.items()}
    for column in range(max(dim for _, dim in shapes.values())):
        rows = {
            space: jnp.zeros((units, dim)).at[:, column].set(1.0) if column < dim else jnp.zeros((units, dim))
            for space, (units, dim) in shapes.items()
        }
        for space, product in unit_products(curved, frozen, variables, batch, rows).items():
            if column < shapes[space][1]:
                matrices[space][:, :, column] = product
    return matrices


def check_products_against_dense(model, factor, loss, batch, train=False, tolerance=1e-12):
    variables = random_variables(model)
    wide = widen(model, factor)
    partition = uniform_partition(wide.wiring, factor)
    cloned = clone_variables(variables, model.wiring, factor)
    normal = dense_normal(wide, cloned, loss, batch, partition, train)
    matrices = unit_blocks_by_products(wide, cloned, loss, batch, partition, train)
    n = {space: len(ids) // (max(ids) + 1) for space, ids in partition.items()}
    spectrum = [np.zeros(normal.num_gauge)]
    for space, blocks in matrices.items():
        np.testing.assert_allclose(blocks, blocks.transpose(0, 2, 1), atol=1e-12)
        spectrum += [np.linalg.eigvalsh(block) for block in blocks for _ in range(n[space] - 1)]
    np.testing.assert_allclose(np.sort(np.concatenate(spectrum)), normal.eigenvalues, atol=tolerance)
    return variables, normal


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_by_products_is_the_dense_hessian(x64, train):
    model = mlp((INPUT,), (3, 2), 2, activation="tanh", norm="batch")
    batch = random_batch(model, "cross_entropy")
    variables, normal = check_products_against_dense(model, 2, mean_cross_entropy, batch, train)
    with pytest.raises(ValueError, match=r"closed form does not apply.*batched hvp"):
        unit_blocks(model, variables, batch, 2, method="closed form", train=train)
    found = unit_blocks(model, variables, batch, 2, train=train, num_steps=16).total
    assert found.method == "batched hvp"
    assert found.min_eigenvalue == pytest.approx(normal.eigenvalues[0], abs=1e-8)
    assert found.max_eigenvalue == pytest.approx(normal.eigenvalues[-1], abs=1e-8)
    assert found.verdict is Stability.SADDLE


SMALL_IMAGE = (4, 4, 1)
WITHOUT_CLOSED_FORM = {
    "cnn, max pooling": (
        lambda: cnn(SMALL_IMAGE, 2, channels=(2,), dense=2, activation="tanh"),
        ({"conv_0": 2, "dense": 3}, 2, 3),
    ),
    "cnn, batch norm": (
        lambda: cnn(SMALL_IMAGE, 2, channels=(2,), dense=2, activation="gelu", norm="batch"),
        ({"conv_0": 3}, 2),
    ),
    "resnet, batch norm": (
        lambda: resnet18(SMALL_IMAGE, 2, width=2, blocks=(1,), activation="tanh"),
        (2, {"stage_0": 2, "stage_0_block_0": 3}),
    ),
    "resnet, projection": (
        lambda: resnet18(SMALL_IMAGE, 2, width=1, blocks=(1, 1), activation="tanh", norm="layer"),
        ({"stage_0": 2, "stage_1": 3}, 2),
    ),
    "vit": (
        lambda: vit(SMALL_IMAGE, 2, patch=2, width=4, depth=1, heads=2, mlp_ratio=0.5),
        ({"heads_0": 2, "mlp_0": 3}, 2),
    ),
    "vit, batch norm": (
        lambda: vit(SMALL_IMAGE, 2, patch=2, width=2, depth=1, heads=2, mlp_ratio=1.0, norm="batch"),
        (2, {"mlp_0": 3}),
    ),
}
# One of these is cheap enough for every day.
EVERY_DAY = {"cnn, max pooling"}
OTHER_NETWORKS = [
    pytest.param(name, factor, marks=() if name in EVERY_DAY else pytest.mark.slow, id=f"{name}, {factor}")
    for name, (_, (factor, *_)) in WITHOUT_CLOSED_FORM.items()
]


@pytest.mark.parametrize(("name", "factor"), OTHER_NETWORKS)
def test_pooling_residual_sums_norms_and_attention_by_products_are_the_dense_hessian(x64, name, factor):
    model = WITHOUT_CLOSED_FORM[name][0]()
    batch = random_batch(model, "cross_entropy", shape=SMALL_IMAGE, samples=4)
    train = "batch norm" in name
    _, normal = check_products_against_dense(model, factor, mean_cross_entropy, batch, train, tolerance=1e-11)
    assert np.abs(normal.eigenvalues).max() > 1e-4


@pytest.mark.parametrize(
    ("options", "space", "reason"),
    [
        ({"pooling": "max"}, "dense", "between 'dense' and the units that ['params/dense/kernel'] reads"),
        ({"pooling": "max"}, "conv_0", "between 'conv_0' and its readers ['params/dense/kernel']"),
        ({"norm": "batch", "pooling": "none"}, "conv_0", "'conv_0' is not written by one kernel and at most a bias"),
    ],
)
def test_why_a_space_has_no_closed_form(options, space, reason):
    assert reason in str(plain_space(cnn((4, 4, 1), 3, channels=(2,), dense=2, **options).wiring, space))
    plain = cnn((4, 4, 1), 3, channels=(2,), dense=2, pooling="none")
    assert isinstance(plain_space(plain.wiring, space), PlainSpace)


# --- Identities and critical points --------------------------------------------------------------------------------


@pytest.mark.slow
def test_coupling_times_outgoing_weights_is_the_gradient(x64):
    """`B_j diag(sqrt n_next) w_out = diag(sqrt n_prev, 1) dL/d(w_j, b_j)` at any point."""
    model = mlp((INPUT,), (3, 2, 2), 2, activation="gelu")
    variables, batch = random_variables(model), random_batch(model, "cross_entropy")
    counts = {"hidden_0": 2, "hidden_1": 3, "hidden_2": 2}
    arrays = {space: jnp.full(model.wiring.size(space), float(n)) for space, n in counts.items()}
    plan = plain_space(model.wiring, "hidden_1")
    assert isinstance(plan, PlainSpace)
    gradient = jax.grad(lambda params: mean_cross_entropy(model.apply({"params": params}, batch[0]).logits, batch[1]))(
        variables["params"]
    )["hidden_1"]
    outgoing = np.sqrt(counts["hidden_2"]) * np.asarray(variables["params"]["hidden_2"]["kernel"])
    scales = unit_scales(model, variables, batch, mean_cross_entropy, [plan], arrays, 4)["hidden_1"]
    matrices = unit_matrices(model, variables, batch, mean_cross_entropy, plan, arrays, 4, True)
    for unit, curvature, coupling in matrices:
        expected = np.append(np.sqrt(counts["hidden_0"]) * gradient["kernel"][:, unit], gradient["bias"][unit])
        np.testing.assert_allclose(coupling @ outgoing[unit], expected, atol=1e-15)
        assert np.linalg.norm(expected) == pytest.approx(scales.gradient[unit], rel=1e-12)
        assert np.linalg.norm(outgoing[unit]) == pytest.approx(scales.outgoing[unit], rel=1e-12)
        assert np.linalg.norm(curvature, 2) <= scales.curvature[unit] * (1 + 1e-12)
        assert 2 * np.linalg.norm(coupling, 2) <= scales.coupling[unit] * (1 + 1e-12)
        assert np.linalg.norm(expected) > 1e-3


def critical_targets(model, variables, inputs, seed=2):
    """Targets with residuals at right angles to every derivative of the output: the gradient vanishes exactly."""
    outputs = model.apply(variables, inputs).logits
    jacobian = jax.jacrev(lambda params: model.apply({"params": params}, inputs).logits)(variables["params"])
    matrix = np.concatenate([np.reshape(leaf, (outputs.size, -1)) for leaf in jax.tree.leaves(jacobian)], axis=1)
    residual = np.random.default_rng(seed).normal(size=outputs.size)
    basis = np.linalg.svd(matrix, full_matrices=False)[0]
    residual = residual - basis @ (basis.T @ residual)
    return outputs - jnp.asarray(residual.reshape(outputs.shape))


@pytest.mark.slow
def test_one_unit_in_the_next_layer_at_a_critical_point_uncouples(x64):
    """Fukumizu & Amari: with one output B_j w_out = g_j = 0 makes B_j = 0, and A_j alone decides."""
    model = mlp((INPUT,), (2,), 1, activation="tanh")
    variables, (inputs, _) = random_variables(model), random_batch(model, "mse", samples=30)
    targets = critical_targets(model, variables, inputs)

    def blocks_at(targets, **options):
        return unit_blocks(model, variables, (inputs, targets), 2, loss=mean_squared_error, **options).spaces[
            "hidden_0"
        ]

    critical = blocks_at(targets)
    for report, eigenvalues in zip(critical.reports, critical.eigenvalues, strict=True):
        assert report.n_zero == 1  # the outgoing weight: B_j = 0
        assert report.n_plus == np.sum(eigenvalues > 1e-6)
        assert report.n_minus == np.sum(eigenvalues < -1e-6)
    # A little off: the coupling is real, so the point itself is a saddle; taken for the critical point it is not seen.
    near = blocks_at(targets + 1e-7 * jnp.sin(jnp.arange(30.0))[:, None])
    assert all(report.verdict is Stability.SADDLE and report.n_zero == 0 for report in near.reports)
    assert (near.gradient_residual > 1e-10).all()
    taken = blocks_at(targets + 1e-7 * jnp.sin(jnp.arange(30.0))[:, None], near_critical=True)
    for report, truth in zip(taken.reports, critical.reports, strict=True):
        assert (report.verdict, report.n_plus, report.n_minus, report.n_zero) == (
            truth.verdict,
            truth.n_plus,
            truth.n_minus,
            truth.n_zero,
        )
    far = blocks_at(random_batch(model, "mse", samples=30)[1])
    assert all(report.n_zero == 0 for report in far.reports)


def test_gauss_newton_vanishes_on_the_normal_space(x64):
    """No output moves to first order off clones, so only the full Hessian sees their stability."""
    model, factor = mlp((INPUT,), (3, 2), 2, activation="tanh"), 2
    wide, batch = widen(model, factor), random_batch(model, "mse")
    partition = uniform_partition(wide.wiring, factor)
    params = clone_by_hand(random_variables(model)["params"], model.wiring, partition)
    basis = normal_basis(params, wide.wiring, partition)[0]
    jacobian = jax.jacrev(lambda params: wide.apply({"params": params}, batch[0]).logits)(params)
    matrix = np.concatenate([np.reshape(leaf, (2 * SAMPLES, -1)) for leaf in jax.tree.leaves(jacobian)], axis=1)
    assert np.abs(matrix @ basis).max() < 1e-14
    assert np.abs(matrix).max() > 0.1


# --- Streaming, precision, dead units, refusals --------------------------------------------------------------------


@pytest.mark.slow
def test_batches_of_any_size_give_the_same_blocks(x64):
    model = mlp((INPUT,), (3, 2), 3, activation="tanh")
    variables, batch = random_variables(model), random_batch(model, "cross_entropy")
    whole = unit_blocks(model, variables, batch, 2)
    for size in (4, 11):
        parts = unit_blocks(model, variables, batch, 2, batch_size=size)
        for space, found in parts.spaces.items():
            np.testing.assert_allclose(found.eigenvalues, whole.spaces[space].eigenvalues, atol=1e-14)
            np.testing.assert_allclose(found.per_unit("tolerance"), whole.spaces[space].per_unit("tolerance"), rtol=0.5)
        assert parts.total[:4] == whole.total[:4]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_coarse_parameters_are_judged_by_their_exact_values(dtype):
    """The closed form computes in float64 whatever the session: the oracle is the dense Hessian at the same numbers."""
    model = mlp((INPUT,), (3, 2), 3, activation="tanh")
    with jax.enable_x64(True):
        variables, batch = random_variables(model), random_batch(model, "mse")
    coarse = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), variables)
    inputs, targets = (np.asarray(jnp.asarray(np.asarray(part), dtype), np.float64) for part in batch)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), coarse)
        partition = uniform_partition(widen(model, 2).wiring, 2)
        cloned = {"params": clone_by_hand(exact["params"], model.wiring, partition)}
        expected = dense_normal(
            widen(model, 2), cloned, mean_squared_error, (jnp.asarray(inputs), jnp.asarray(targets)), partition
        )
    total = unit_blocks(model, coarse, (jnp.asarray(inputs), jnp.asarray(targets)), 2, loss=mean_squared_error).total
    values = expected.eigenvalues
    assert total.exact
    assert (total.n_plus, total.n_minus) == (np.sum(values > 1e-12), np.sum(values < -1e-12))
    assert total.min_eigenvalue == pytest.approx(values[0], abs=1e-6)


@pytest.mark.slow
def test_products_of_sixteen_bits_say_so(x64):
    model = mlp((INPUT,), (3,), 2, activation="tanh", norm="layer")
    variables, batch = random_variables(model, dtype=jnp.bfloat16), random_batch(model, "mse", dtype=jnp.float32)
    total = unit_blocks(model, variables, batch, 2, loss=mean_squared_error, num_steps=8).total
    assert total.method == "batched hvp"
    assert not total.exact
    assert "float32" in total.note


def test_dead_clones_are_neutral_and_counted_apart(x64):
    model = mlp((INPUT,), (3, 2), 2, activation="relu")
    variables, batch = random_variables(model), random_batch(model, "mse")
    params = jax.tree.map(lambda leaf: leaf, variables["params"])
    params["hidden_0"]["bias"] = jnp.array([9.0, -99.0, 9.0])
    params["hidden_1"]["bias"] = jnp.full(2, 99.0)
    blocks = unit_blocks(model, {"params": params}, batch, 2, loss=mean_squared_error)
    space = blocks.spaces["hidden_0"]
    assert space.is_dead.tolist() == [False, True, False]
    dead = space.reports[1]
    assert (dead.verdict, dead.n_zero, dead.tolerance) == (Stability.NEUTRAL, space.dimension, 0.0)
    assert dead.structural == space.dimension
    phi = np.asarray(batch[0])  # inputs have no clones
    pre = phi @ np.asarray(params["hidden_0"]["kernel"])[:, 1] - 99
    assert dead.radius == pytest.approx((np.abs(pre) / np.sqrt((phi**2).sum(axis=1) + 1)).min(), rel=1e-12)
    assert space.reports[0].verdict is Stability.SADDLE


def test_refusals(unchecked):
    model = mlp((2,), (3,), 2)
    variables, batch = random_variables(model, dtype=np.float32), random_batch(model, "mse", shape=(2,))

    def blocks(factor=2, **options):
        return unit_blocks(model, variables, batch, factor, loss=mean_squared_error, **options)

    with pytest.raises(ValueError, match="method='dense': must be one of"):
        blocks(method="dense")
    with pytest.raises(ValueError, match="no unit has a clone"):
        blocks(factor=1)
    with pytest.raises(ValueError, match="factor=0"):
        blocks(factor=0)
    for options in ({"batch_size": 0}, {"num_steps": 0}):
        with pytest.raises(ValueError, match="must be a positive integer"):
            blocks(**options)
    for partition, message in [
        ({"hidden_0": (0, 0)}, "2 cluster ids for 3 units"),
        ({"hidden_7": (0, 0, 1)}, "hidden_7"),
        ({"hidden_0": (0, 0.5, 1)}, "must be integers"),
        ({"input": (0, 0)}, "it is fixed"),
        ({"hidden_0": (0, 1, 2)}, "no unit has a clone"),
        ({"hidden_0": (0, 0, 1)}, "not block constant"),
    ]:
        with pytest.raises(ValueError, match=message):
            unit_blocks_of_clones(model, variables, batch, partition, loss=mean_squared_error)
    nan = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), variables)
    with pytest.raises(ValueError, match="not block constant"):
        unit_blocks_of_clones(model, nan, batch, {"hidden_0": (0, 0, 0)}, loss=mean_squared_error)
    space = unit_blocks(model, variables, batch, 2, loss=mean_squared_error).spaces["hidden_0"]
    with pytest.raises(ValueError, match="field='sign': must be one of"):
        space.per_unit("sign")


@pytest.mark.slow
def test_a_loosened_tolerance_is_never_exact(x64):
    """Blocks of the cluster means say nothing exact about variables that rounding does not explain."""
    model = mlp((3,), (4,), 2, activation="tanh")
    partition, batch = {"hidden_0": (0, 0, 1, 1)}, (jnp.ones((5, 3)), jnp.array([0, 1, 0, 1, 1]))
    variables = clone_variables(
        mlp((3,), (2,), 2, activation="tanh").init(jax.random.key(0)), mlp((3,), (2,), 2).wiring, 2
    )
    exact = unit_blocks_of_clones(model, variables, batch, partition, bc_tolerance=1e-3)
    assert exact.total.exact
    assert "cluster means" not in exact.total.note
    off = jax.tree.map(lambda leaf: leaf, variables)
    off["params"]["hidden_0"]["kernel"] = off["params"]["hidden_0"]["kernel"].at[0, 1].multiply(1 + 1e-5)
    for method in ("closed form", "batched hvp"):
        loose = unit_blocks_of_clones(model, off, batch, partition, bc_tolerance=1e-3, method=method)
        reports = [loose.total, *loose.spaces["hidden_0"].reports]
        assert not any(report.exact for report in reports)
        assert all("cluster means" in report.note for report in reports)
    with pytest.raises(ValueError, match="not block constant"):
        unit_blocks_of_clones(model, off, batch, partition)
