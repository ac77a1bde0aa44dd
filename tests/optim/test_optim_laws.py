"""Laws of the regularisers and of UPGD against plain NumPy; rows and columns of kernels against what they must be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from optax.contrib import muon as plain_muon
from oracles.architectures import normal_variables

from lopjax import optim
from lopjax.models import cnn, mlp, resnet18, vit
from lopjax.wiring import In, Label, Out, build_wiring

MODEL = mlp((4,), (3,), 2)


def draw(model, seed=0, size=1.0):
    return normal_variables(model, size, seed)["params"]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# --- UPGD ---------------------------------------------------------------------------------------


def slow_upgd(theta, gradients, noises, variant, rate=0.05, sigma=0.3, beta=0.9, decay=0.1):
    """Algorithm 1 of the paper, one weight after the other, and what its authors' code does instead."""
    utility = np.zeros_like(theta)
    for t, (gradient_of, noise) in enumerate(zip(gradients, noises), start=1):
        gradient = gradient_of(theta)
        for i in range(len(theta)):
            utility[i] = beta * utility[i] + (1 - beta) * (-gradient[i] * theta[i])
        corrected = [u / (1 - beta**t) for u in utility]
        eta = max(corrected) if variant == "paper" else max(utility)
        for i in range(len(theta)):
            kept = scipy.special.expit(-corrected[i] / eta)
            theta[i] = (1 - rate * decay) * theta[i] - 2 * rate * (gradient[i] + sigma * noise[i]) * kept
        yield theta.copy()


def test_upgd_step_by_step_against_a_slow_loop(x64):
    """Thirty steps on a quadratic whose matrix changes: every weight, both variants, which differ."""
    random, start = np.random.default_rng(1), draw(MODEL)
    size, steps = len(flat(start)), 30
    slopes = [random.normal(size=size) ** 2 for _ in range(steps)]
    targets = [random.normal(size=size) for _ in range(steps)]
    gradients = [lambda theta, a=a, c=c: a * (theta - c) for a, c in zip(slopes, targets)]
    unravel = jax.flatten_util.ravel_pytree(start)[1]

    # Without gradient nothing is useful: the update is -2 * 0.5 * noise * 0.5.
    nothing, bare = jax.tree.map(jnp.zeros_like, start), optim.upgd(0.5, 1.0, 7)
    state, step, noises = bare.init(nothing), jax.jit(bare.update), []
    for _ in range(steps):
        update, state = step(nothing, state, nothing)
        noises.append(-2 * flat(update))

    last = {}
    for variant in ("paper", "official"):
        optimizer = optim.upgd(0.05, 0.3, 7, 0.9, 0.1, variant)
        step = jax.jit(optimizer.update)
        theta, state = start, optimizer.init(start)
        for gradient_of, expected in zip(gradients, slow_upgd(flat(start), gradients, noises, variant)):
            update, state = step(unravel(jnp.asarray(gradient_of(flat(theta)))), state, theta)
            theta = optax.apply_updates(theta, update)
            np.testing.assert_allclose(flat(theta), expected, rtol=0, atol=1e-12)
        last[variant] = flat(theta)
    assert np.abs(last["paper"] - last["official"]).max() > 1e-2


# --- Shrink and perturb -------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["kumar", "dohare", "start"])
def test_the_laws_of_shrink_and_perturb_in_numpy(x64, law):
    """With the noise read off where there is nothing to shrink; the control is another law."""
    start, gradient = draw(MODEL), draw(MODEL, 1)
    transformation = optim.shrink_and_perturb(0.7, 0.2, 3, 1, law)
    state = transformation.init(start)
    later, nothing = draw(MODEL, 2), jax.tree.map(jnp.zeros_like, start)
    found = flat(transformation.update(gradient, state, later)[0]) + flat(later)
    added = flat(start) if law == "start" else flat(transformation.update(nothing, state, nothing)[0]) / 0.2
    theta, update = flat(later), flat(gradient)
    laws = {
        "kumar": 0.7 * (theta + update) + 0.2 * added,
        "dohare": 0.7 * theta + update + 0.2 * added,
        "start": 0.7 * (theta + update) + 0.2 * flat(start),
    }
    np.testing.assert_allclose(found, laws[law], rtol=0, atol=1e-12)
    others = [laws["dohare" if law == "kumar" else "kumar"]]
    if law == "start":
        others = [laws["dohare"], laws["kumar"] - 0.2 * flat(start)]
    assert all(np.abs(found - other).max() > 0.1 for other in others)


# --- Kernels as matrices ------------------------------------------------------------------------


def of_vit(axes):
    block = axes["heads_0"]
    return {name: block[name]["kernel"] for name in ("query", "value", "out")} | {
        "query bias": block["query"]["bias"],
        "patches": axes["embedding"]["patches"]["kernel"],
        "positions": axes["embedding"]["positions"],
        "mlp": axes["mlp_0"]["kernel"],
    }


def test_rows_and_columns_of_every_kind_of_kernel():
    """By hand, from the shapes that the models document."""
    transformer = vit((4, 4, 1), 2, patch=2, width=6, depth=1, heads=2)
    shapes = jax.eval_shape(transformer.init, jax.random.key(0))["params"]
    assert of_vit(optim.matrix_axes(transformer.wiring, shapes)) == {
        "query": ((1,), (0,), (2,)),  # (inputs, heads, width of a head)
        "value": ((1,), (0,), (2,)),
        "out": ((1,), (0,), (2,)),  # (width of a head, heads, outputs)
        "query bias": None,
        "patches": ((), (0, 1, 2), (3,)),
        "positions": None,
        "mlp": ((), (0,), (1,)),
    }
    together = of_vit(optim.matrix_axes(transformer.wiring, shapes, by_head=False))
    assert together["query"] == ((), (0,), (1, 2))
    assert together["out"] == ((), (0, 1), (2,))
    network = cnn((4, 4, 1), 2, channels=(2,), dense=3)
    axes = optim.matrix_axes(network.wiring, jax.eval_shape(network.init, jax.random.key(0))["params"])
    assert axes["conv_0"]["kernel"] == axes["dense"]["kernel"] == ((), (0, 1, 2), (3,))
    residual = resnet18((4, 4, 1), 2, width=2, blocks=(1,))
    params = jax.eval_shape(residual.init, jax.random.key(0))["params"]
    spared = optim.muon_dimension_numbers(residual.wiring, params, spare_ends=True)
    assert spared["stem"]["conv"]["kernel"] is None
    assert spared["classes"]["kernel"] is None
    assert spared["stage_0_block_0_conv_0"]["conv"]["kernel"] == ((0, 1, 2), (3,))


def test_muon_of_a_kernel_is_muon_of_its_matrix(x64):
    """Convolution and heads against Optax's own rule for plain matrices, sliced by hand; by itself it takes Adam."""
    wiring = build_wiring(
        {
            ("params", "conv"): Label((None, None, In("x"), Out("y"))),
            ("params", "query"): Label((In("y"), Out("heads"), None)),
            ("params", "out"): Label((None, In("heads"), Out("z"))),
        },
        {("params", "conv"): (2, 2, 2, 3), ("params", "query"): (3, 2, 3), ("params", "out"): (3, 2, 3)},
        sites={},
    )
    random = np.random.default_rng(0)
    gradient = {
        path[-1]: jnp.asarray(random.normal(size=(2, 2, 2, 3) if path[-1] == "conv" else (3, 2, 3)))
        for path, _ in wiring.labels
    }
    optimizer, alone = optim.muon(0.1, wiring), plain_muon(0.1)
    found, _ = jax.jit(optimizer.update)(gradient, optimizer.init(gradient), gradient)
    matrices = {
        "conv": gradient["conv"].reshape(8, 3),
        "query": gradient["query"][:, 1],
        "out": gradient["out"][:, 1],
    }
    expected, _ = jax.jit(alone.update)(matrices, alone.init(matrices), matrices)
    np.testing.assert_allclose(found["conv"].reshape(8, 3), expected["conv"], atol=1e-12)
    np.testing.assert_allclose(found["query"][:, 1], expected["query"], atol=1e-12)
    np.testing.assert_allclose(found["out"][:, 1], expected["out"], atol=1e-12)
    # Left to itself, Optax's Muon gives these kernels to Adam, whose first steps are of one size.
    by_adam = alone.update(gradient, alone.init(gradient), gradient)[0]["query"]
    assert np.ptp(np.abs(by_adam)) < 1e-6
    assert np.ptp(np.abs(found["query"])) > 0.01


def test_kernels_may_lie_in_any_layout():
    """PyTorch's, units first and positions last."""
    label = Label((Out("y"), In("x"), None, None))
    wiring = build_wiring({("params", "w"): label}, {("params", "w"): (3, 2, 3, 3)}, sites={})
    assert optim.matrix_axes(wiring, {"w": jnp.zeros((3, 2, 3, 3))}) == {"w": ((), (1, 2, 3), (0,))}


@pytest.mark.parametrize("size", [0.3, 2.0])
def test_spectral_is_the_gradient_of_its_penalty(x64, size):
    """2 k (sigma^k - 1) sigma^(k-1) u v' by NumPy's singular values, once power iteration has settled."""
    params = draw(MODEL, size=size)
    nothing = jax.tree.map(jnp.zeros_like, params)
    transformation = optim.spectral(0.5, MODEL.wiring, power=3, num_iterations=400)
    found, _ = transformation.update(nothing, transformation.init(params), params)
    for layer in params:
        left, values, right = np.linalg.svd(params[layer]["kernel"])
        slope = 0.5 * 2 * 3 * (values[0] ** 3 - 1) * values[0] ** 2
        np.testing.assert_allclose(found[layer]["kernel"], slope * np.outer(left[:, 0], right[0]), atol=1e-9)
        np.testing.assert_array_equal(found[layer]["bias"], 0)
    hasty = optim.spectral(0.5, MODEL.wiring, power=3)
    early, state = hasty.update(nothing, hasty.init(params), params)
    assert np.abs(flat(early) - flat(found)).max() > 1e-3
    for _ in range(60):
        late, state = jax.jit(hasty.update)(nothing, state, params)
    np.testing.assert_allclose(flat(late), flat(found), atol=1e-6)


def test_parseval_is_the_gradient_of_its_penalty(x64):
    """By central differences of the penalty in NumPy; the other order of the product is the control."""
    params = draw(MODEL)
    transformation = optim.parseval(0.5, MODEL.wiring, scale=2.0)
    found, _ = transformation.update(jax.tree.map(jnp.zeros_like, params), transformation.init(params), params)
    kernel = np.asarray(params["hidden_0"]["kernel"])

    def penalty(w, other=False):
        gram = w @ w.T if other else w.T @ w
        return 0.5 * np.sum((gram - 2 * np.eye(len(gram))) ** 2)

    def slopes(**options):
        moves = [1e-5 * np.eye(kernel.size)[i].reshape(kernel.shape) for i in range(kernel.size)]
        up_down = [penalty(kernel + move, **options) - penalty(kernel - move, **options) for move in moves]
        return np.reshape(up_down, kernel.shape) / 2e-5

    np.testing.assert_allclose(found["hidden_0"]["kernel"], slopes(), atol=1e-7)
    np.testing.assert_allclose(slopes(other=True), slopes(), atol=1e-7)  # they differ by a constant
    kept = optax.apply_updates(params, jax.tree.map(lambda g: -0.02 * g, found))
    assert penalty(np.asarray(kept["hidden_0"]["kernel"])) < penalty(kernel)
    np.testing.assert_array_equal(found["hidden_0"]["bias"], 0)


def test_nap_keeps_the_norm_of_every_kernel_and_the_direction_of_the_step(x64):
    start, update = draw(MODEL), draw(MODEL, 1)
    optimizer = optim.nap(MODEL.wiring)
    state, theta = optimizer.init(start), draw(MODEL, 2, size=3.0)
    moved = optax.apply_updates(theta, optimizer.update(update, state, theta)[0])
    for layer in start:
        free = np.asarray(theta[layer]["kernel"] + update[layer]["kernel"])
        expected = free * np.linalg.norm(start[layer]["kernel"]) / np.linalg.norm(free)
        np.testing.assert_allclose(moved[layer]["kernel"], expected, rtol=1e-12)
        np.testing.assert_allclose(moved[layer]["bias"], theta[layer]["bias"] + update[layer]["bias"], rtol=1e-12)
    gone = jax.tree.map(lambda leaf: -leaf, theta)
    np.testing.assert_array_equal(flat(optimizer.update(gone, state, theta)[0]), flat(gone))
