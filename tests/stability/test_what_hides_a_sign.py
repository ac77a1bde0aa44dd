"""Saturation, expm1, logits that cancel, kinks, loud clusters: places where a tolerance used to lie.

The oracle is long double with derivatives written without cancellation (`theory_checks.audit`), or the loss itself.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.normal_space import dense_normal

from lopjax.activations import Activation
from lopjax.cloning import clone_variables
from lopjax.losses import mean_cross_entropy, mean_squared_error, of_parameters
from lopjax.manifolds import Manifold, cloned_manifold, tree_norm
from lopjax.models import mlp
from lopjax.stability import Stability, classify, unit_blocks, unit_blocks_of_clones
from theory_checks.audit.draws import SAMPLES, Network, Structure, base_layers, signal_of
from theory_checks.audit.oracle import falsehoods, true_blocks
from theory_checks.audit.running import judge


def random_layers(rng, sizes):
    return [(rng.uniform(-1.5, 1.5, (m, n)), rng.uniform(-1, 1, n)) for m, n in itertools.pairwise(sizes)]


def judged(structure, layers, rng, dtype="float64"):
    """Reports of every unit with its true block."""
    rounded = [(k.astype(dtype).astype(float), b.astype(dtype).astype(float)) for k, b in layers]
    inputs = rng.normal(size=(SAMPLES, 2)).astype(dtype).astype(float)
    labels = rng.integers(structure.outputs, size=SAMPLES)
    network = Network(rounded, inputs, labels, dtype, "")
    blocks = judge(structure, network)
    counts = [np.array(sizes) for sizes in structure.factors]
    truth = true_blocks(
        base_layers(structure, network), structure.activation, signal_of(structure, labels), inputs, counts
    )
    pairs = []
    for layer, units in enumerate(truth):
        pairs += list(zip(blocks.spaces[f"hidden_{layer}"].reports, units, strict=True))
    return pairs


@pytest.mark.parametrize("bias", [9.0, 19.0, 40.0])
@pytest.mark.parametrize("activation", ["tanh", "elu"])
def test_saturation_of_this_and_later_layers_is_in_the_tolerance(x64, activation, bias):
    structure = Structure((3, 2), activation, "cross_entropy", 3, ((2,) * 3, (2,) * 2))
    hidden_signs = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        layers = random_layers(rng, (2, 3, 2, 3))
        layers[1][1][:] += bias if activation == "tanh" else -bias
        for report, block in judged(structure, layers, rng):
            assert not falsehoods(report, block, activation)
            hidden_signs += report.n_undecided
    # At 40 the derivatives are below 1e-17: something must be undecided, nothing may be called dead or flat.
    assert (hidden_signs > 0) or bias < 40


def test_a_unit_below_the_reach_of_expm1_is_not_dead(x64):
    """f'(-45) = 2.9e-20 comes out as exactly 0: the block is not zero, and nobody may say so."""
    structure = Structure((2,), "elu", "cross_entropy", 3, ((2, 2),))
    rng = np.random.default_rng(0)
    layers = random_layers(rng, (2, 2, 3))
    layers[0][1][0] = -45.0
    (report, block), _ = judged(structure, layers, rng)
    assert np.abs(block.eigenvalues).max() > block.noise  # the truth: curved
    assert report.verdict is Stability.UNDECIDED
    assert report.tolerance > 0
    assert not report.exact


@pytest.mark.parametrize("size", [1e4, 1e6])
def test_logits_that_cancel_are_in_the_tolerance(x64, size):
    structure = Structure((2,), "tanh", "cross_entropy", 3, ((2, 2),))
    rng = np.random.default_rng(1)
    layers = random_layers(rng, (2, 2, 3))
    layers[0][0][:], layers[0][1][:] = layers[0][0][:, :1], layers[0][1][:1]
    layers[1][0][0] += size
    layers[1][0][1] -= size
    for report, block in judged(structure, layers, rng):
        assert not falsehoods(report, block, "tanh")


def test_eigenvalues_far_above_the_rounding_of_loud_weights_have_signs():
    structure = Structure((2,), "tanh", "cross_entropy", 3, ((2, 2),))
    rng = np.random.default_rng(2)
    layers = random_layers(rng, (2, 2, 3))
    layers[1] = (1e3 * layers[1][0], layers[1][1])
    for report, block in judged(structure, layers, rng, "float32"):
        assert not falsehoods(report, block, "tanh")
        assert report.verdict is Stability.SADDLE


# --- Kinks ---------------------------------------------------------------------------------------------------------


def at_zero(dtype):
    """A ReLU network whose first unit has z = 0 on one sample, exactly."""
    model = mlp((2,), (2,), 3, activation="relu")
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(5, 2))
    inputs[2] = 0
    params = {
        "hidden_0": {"kernel": rng.normal(size=(2, 2)), "bias": np.array([0.0, 0.3])},
        "classes": {"kernel": rng.normal(size=(2, 3)), "bias": np.zeros(3)},
    }
    to_type = lambda leaf: jnp.asarray(leaf, dtype)  # noqa: E731
    return model, {"params": jax.tree.map(to_type, params)}, (to_type(inputs), jnp.array([0, 1, 2, 0, 1]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_at_a_kink_nothing_is_flat_and_no_count_is_exact(x64, dtype):
    model, variables, batch = at_zero(dtype)
    blocks = unit_blocks(model, variables, batch, 2)
    first, second = blocks.spaces["hidden_0"].reports
    assert (first.verdict, first.exact, first.radius) == (Stability.UNDECIDED, False, 0.0)
    assert "kink" in first.note
    assert not blocks.spaces["hidden_0"].is_dead[0]
    assert not blocks.total.exact
    assert "kink" in blocks.total.note
    # The loss itself: a second difference along the biases of the two clones that grows as 1/s is no curvature.
    wide = mlp((2,), (4,), 3, activation="relu")
    cloned = clone_variables(variables, model.wiring, 2)["params"]

    def second_difference(step):
        def loss(side):
            bias = cloned["hidden_0"]["bias"] + side * step * jnp.array([1.0, -1.0, 0.0, 0.0]) / 2**0.5
            moved = {**cloned, "hidden_0": {**cloned["hidden_0"], "bias": bias}}
            return float(mean_cross_entropy(wide.apply({"params": moved}, batch[0]).logits, batch[1]))

        return (loss(1) + loss(-1) - 2 * loss(0)) / step**2

    if dtype == "float64":
        assert 5 < second_difference(1e-4) / second_difference(1e-3) < 15
    # Control: the other unit has no kink nearby, and is judged with its radius.
    assert second.exact
    assert 0 < second.radius < np.inf


def test_an_activation_without_facts_is_never_called_flat(x64):
    own = Activation("own", lambda z: jnp.where(z > 0, z, 0.0))
    model = mlp((2,), (2,), 3, activation=own)
    _, variables, batch = at_zero("float64")
    variables["params"]["hidden_0"]["bias"] = jnp.array([-50.0, 0.3])
    dead = unit_blocks(model, variables, batch, 2).spaces["hidden_0"].reports[0]
    assert not dead.exact
    assert "kinks" in dead.note
    known = mlp((2,), (2,), 3, activation="relu")
    assert unit_blocks(known, variables, batch, 2).spaces["hidden_0"].reports[0].exact


def test_a_unit_that_rests_where_its_slope_is_zero_is_not_dead(x64):
    """Its coupling is 0 like that of a dead one, but not its curvature, which is that of NumPy."""
    square = Activation("square", jnp.square, kinks=(), flat=())
    model, random = mlp((2,), (2,), 1, activation=square), np.random.default_rng(3)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), shapes)
    hidden, outgoing = variables["params"]["hidden_0"], variables["params"]["classes"]
    hidden["kernel"], hidden["bias"] = hidden["kernel"].at[:, 0].set(0), hidden["bias"].at[0].set(0)
    x, y = random.normal(size=(9, 2)), random.normal(size=(9, 1))
    report = unit_blocks(model, variables, (jnp.asarray(x), jnp.asarray(y)), 2, loss=mean_squared_error)
    report = report.spaces["hidden_0"].reports[0]
    features = np.concatenate([x, np.ones((9, 1))], axis=1)
    outputs = np.square(x @ hidden["kernel"] + hidden["bias"]) @ outgoing["kernel"] + outgoing["bias"]
    halved = float(outgoing["kernel"][0, 0]) / 2  # what each of two clones gives
    signals = 2 * np.asarray(outputs - y)[:, 0] * halved / 9
    values = np.linalg.eigvalsh(features.T @ (signals[:, None] * features))
    assert (report.n_plus, report.n_minus) == (np.sum(values > 0), np.sum(values < 0))
    assert (report.n_zero, report.structural) == (1, 0)  # of the outgoing weight, by its size alone
    np.testing.assert_allclose([report.min_eigenvalue, report.max_eigenvalue], [min(*values, 0), max(*values, 0)])


def capped(z):
    """Straight up to 60, curved beyond, with one derivative that is continuous there."""
    return jnp.where(z > 60, 60 + jnp.log1p(jnp.maximum(z - 60, 0)), jax.nn.relu(z))


def test_an_activation_that_is_curved_beyond_its_last_kink_has_curvature(x64):
    """Inputs that are not normalised reach it. The oracle: the dense Hessian of the clones on the normal space."""
    own = Activation("capped", capped, (0.0, 60.0), True, False, 0.0, ((-np.inf, 0.0),), (-np.inf, np.inf), False)
    model, rng = mlp((3,), (2,), 2, activation=own), np.random.default_rng(0)
    params = {
        "hidden_0": {"kernel": rng.uniform(10, 60, (3, 2)), "bias": rng.normal(size=2)},
        "classes": {"kernel": rng.normal(size=(2, 2)), "bias": rng.normal(size=2)},
    }
    batch = jnp.asarray(rng.uniform(0.5, 5, (7, 3))), jnp.asarray(rng.normal(size=(7, 2)))
    variables = {"params": jax.tree.map(jnp.asarray, params)}
    total = unit_blocks(model, variables, batch, 2, loss=mean_squared_error).total
    wide, partition = mlp((3,), (4,), 2, activation=own), {"hidden_0": (0, 0, 1, 1)}
    cloned = clone_variables(variables, model.wiring, 2)
    dense = dense_normal(wide, cloned, mean_squared_error, batch, partition).eigenvalues
    np.testing.assert_allclose([total.min_eigenvalue, total.max_eigenvalue], dense[[0, -1]], rtol=1e-9)
    limit = 1e-10 * np.abs(dense).max()
    assert (total.n_plus, total.n_minus) == ((dense > limit).sum(), (dense < -limit).sum())
    assert total.n_plus != total.n_minus  # control: straight pieces would give pairs of signs


# --- Loud clusters, losses that are no means, 16 bits -------------------------------------------------------------


def test_a_loud_cluster_hides_no_units_that_are_not_clones():
    model = mlp((3,), (4,), 2, activation="tanh")
    params = model.init(jax.random.key(0))["params"]
    kernel = params["hidden_0"]["kernel"]
    params["hidden_0"]["kernel"] = kernel.at[:, 0].multiply(3e5).at[:, 1].set(3e5 * kernel[:, 0])
    params["hidden_0"]["bias"] = params["hidden_0"]["bias"].at[1].set(params["hidden_0"]["bias"][0])
    batch = jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match="not block constant"):
        unit_blocks_of_clones(model, {"params": params}, batch, {"hidden_0": (0, 0, 1, 1)})


def weighted_cross_entropy(logits, labels):
    """As in PyTorch: class weights, normalised by their own sum in the batch."""
    weights = jnp.array([1.0, 5.0, 0.2])[labels]
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
    return jnp.sum(weights * losses) / jnp.sum(weights)


def test_a_loss_that_is_no_plain_mean_is_refused_in_batches(x64):
    model = mlp((2,), (2,), 3, activation="tanh")
    variables = model.init(jax.random.key(0))
    batch = jax.random.normal(jax.random.key(1), (9, 2)), jnp.arange(9) // 3
    with pytest.raises(ValueError, match=r"no plain mean over samples; pass batch_size=9"):
        unit_blocks(model, variables, batch, 2, loss=weighted_cross_entropy, batch_size=4)
    assert unit_blocks(model, variables, batch, 2, loss=weighted_cross_entropy, batch_size=9).total.exact
    with pytest.raises(ValueError, match="no plain mean"):
        unit_blocks(model, variables, batch, 2, loss=weighted_cross_entropy, batch_size=4, method="batched hvp")


def test_classify_takes_sixteen_bits(x64):
    diagonal = jnp.array([1, 2, -1, -2, 0.5, -0.5], jnp.bfloat16)
    line = Manifold(jnp.zeros(6, jnp.bfloat16), lambda v: v * jnp.array([1, 0, 0, 0, 0, 0], jnp.bfloat16))
    report = classify(lambda p: jnp.sum(diagonal * p * p) / 2, line.origin, line)
    assert (report.verdict, report.n_plus, report.n_minus, report.n_zero) == (Stability.SADDLE, 2, 3, 0)


def test_classify_sees_that_the_gradient_jumps(x64):
    plane = Manifold(jnp.zeros(3), lambda v: v * jnp.array([1.0, 0, 0]), is_affine=True)
    cusp = classify(lambda p: p[0] + jax.nn.relu(p[1] - p[2]), plane.origin, plane)
    assert cusp.verdict is Stability.UNDECIDED
    assert not cusp.exact
    assert "jumps" in cusp.note
    smooth = classify(lambda p: p[0] + p[1] ** 2 + p[2] ** 2, plane.origin, plane)
    assert smooth.verdict is Stability.STABLE
    assert smooth.exact
    # The same projector may belong to a curve: off a critical point there is then no verdict, at one there is.
    curve = plane._replace(is_affine=None)
    unknown = classify(lambda p: p[0] + p[1] ** 2 + p[2] ** 2, curve.origin, curve)
    assert unknown.verdict is Stability.UNDECIDED
    assert "say so: Manifold(..., is_affine=True)" in unknown.note
    assert classify(lambda p: p[0] ** 2 + p[1] ** 2 + p[2] ** 2, curve.origin, curve).verdict is Stability.STABLE


def test_classify_sees_that_the_second_derivative_jumps(x64):
    """At z = 0 the ELU has f'' = 1 on the left and 0 on the right; a smooth function as strongly curved has no jump."""
    plane = Manifold(jnp.zeros(3), lambda v: v * jnp.array([1.0, 0, 0]), is_affine=True)
    bent = classify(lambda p: p[0] + jax.nn.elu(p[1] - p[2]) + p[1] ** 2, plane.origin, plane)
    assert bent.verdict is Stability.UNDECIDED
    assert not bent.exact
    assert "second derivative jumps" in bent.note
    smooth = classify(lambda p: p[0] + jnp.exp(30 * (p[1] - p[2])) + p[1] ** 2, plane.origin, plane)
    assert smooth.exact
    assert "jumps" not in smooth.note


def test_mse_of_a_fitted_network_is_flat_at_a_level_or_undecided(x64):
    model = mlp((2,), (2,), 2, activation="tanh")
    variables = model.init(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (6, 2))
    targets = model.apply(variables, inputs).logits
    total = unit_blocks(model, variables, (inputs, targets), 2, loss=mean_squared_error).total
    assert total.verdict in (Stability.NEUTRAL, Stability.UNDECIDED)
    assert total.n_plus == total.n_minus == 0
    assert total.n_zero + total.n_undecided == 10


def test_classify_of_a_saturated_network_accuses_nobody(x64):
    """At z = 30 the derivative is 4e-26 and its rounding 1e-16: what is left of the Hessian gives no sign."""
    model = mlp((2,), (4,), 2, activation="tanh")
    params = clone_variables(mlp((2,), (2,), 2).init(jax.random.key(0)), mlp((2,), (2,), 2).wiring, 2)["params"]
    params["hidden_0"]["bias"] = jnp.full(4, 30.0)
    params["classes"] = jax.tree.map(lambda leaf: 0 * leaf + jnp.array([40.0, 0.0]), params["classes"])
    batch = jax.random.normal(jax.random.key(1), (6, 2)), jnp.zeros(6, int).at[0].set(1)
    loss = of_parameters(model, {"params": params}, batch, loss=mean_cross_entropy)
    report = classify(loss, params, cloned_manifold(params, model.wiring, {"hidden_0": (0, 0, 1, 1)}))
    assert report.n_plus == report.n_minus == 0
    assert report.scale >= float(loss(params)) / float(tree_norm(params)) ** 2


@pytest.mark.parametrize("gap", [36.0, 80.0])
def test_classify_of_a_network_fitted_to_the_last_bit_accuses_nobody(x64, gap):
    """The loss is 0 or one rounding, the Hessian what is left of probabilities less labels: no sign is certain."""
    model = mlp((2,), (4,), 2, activation="silu")
    base = mlp((2,), (2,), 2)
    params = clone_variables(base.init(jax.random.key(3)), base.wiring, 2)["params"]
    params = {**params, "classes": {**params["classes"], "bias": jnp.array([gap, 0.0])}}
    batch = jax.random.normal(jax.random.key(1), (6, 2)), jnp.zeros(6, int)
    loss = of_parameters(model, {"params": params}, batch, loss=mean_cross_entropy)
    report = classify(loss, params, cloned_manifold(params, model.wiring, {"hidden_0": (0, 0, 1, 1)}))
    assert report.n_plus <= 0
    assert report.n_minus <= 0


def test_a_custom_derivative_is_still_refused(x64):
    """The control: as asymmetric, but far larger than what cancels."""
    point = jnp.array([0.5, 0.4])
    line = Manifold(point, lambda vector: vector * jnp.array([1.0, 0.0]), is_affine=True)
    with pytest.raises(ValueError, match=r"custom|stop_gradient"):
        classify(lambda p: p[0] * jax.lax.stop_gradient(p[1]) + p[1] ** 2, point, line)
