"""Hessian and Gauss-Newton products against dense matrices, finite differences and algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from oracles import dense

from lopjax.curvature import (
    constraint_jacobian,
    dense_hessian,
    ggn_vp,
    hvp,
    per_sample_gradients,
    restrict,
)

COMBINATIONS = [
    (activation, loss) for activation in ("tanh", "gelu", "relu", "softplus") for loss in ("mse", "cross_entropy")
]


def random_tree(params, seed):
    flat, unravel = ravel_pytree(params)
    return unravel(jnp.asarray(np.random.default_rng(seed).normal(size=flat.size), flat.dtype))


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def relative_error(actual, expected):
    return np.linalg.norm(np.asarray(actual) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("activation", "loss"), COMBINATIONS)
def test_products_match_dense_matrices(x64, activation, loss):
    net = dense.problem(activation, loss)
    vector = random_tree(net.params, 1)
    full = dense.hessian(net.loss, net.params)
    gauss_newton = dense.gauss_newton(net.model, net.output_loss, net.params)

    assert relative_error(flat(hvp(net.loss, net.params, vector)), full @ flat(vector)) < 1e-13
    product = ggn_vp(net.model, net.output_loss, net.params, vector)
    assert relative_error(flat(product), gauss_newton @ flat(vector)) < 1e-13
    assert relative_error(dense_hessian(net.loss, net.params), full) < 1e-13
    # Control: the two matrices are different things.
    assert relative_error(full, gauss_newton) > 1e-2


@pytest.mark.parametrize("activation", ["tanh", "gelu", "softplus"])
def test_hvp_matches_finite_differences_of_gradients(x64, activation):
    net = dense.problem(activation)
    vector = random_tree(net.params, 2)
    expected = dense.finite_difference_hvp(net.loss, net.params, vector, step=1e-3)
    assert relative_error(flat(hvp(net.loss, net.params, vector)), expected) < 1e-9
    # Control: the oracle notices a wrong direction.
    other = random_tree(net.params, 3)
    assert relative_error(flat(hvp(net.loss, net.params, other)), expected) > 0.1


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple),
    num_samples=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_symmetric_and_linear_for_any_shape(sizes, num_samples, seed):
    with jax.enable_x64(True):
        net = dense.problem("gelu", "mse", sizes, num_samples, seed)
        v, w = random_tree(net.params, seed + 1), random_tree(net.params, seed + 2)
        product = jax.jit(lambda vector: hvp(net.loss, net.params, vector))
        scale = np.linalg.norm(flat(product(v))) * np.linalg.norm(flat(w)) + 1.0
        assert abs(flat(w) @ flat(product(v)) - flat(v) @ flat(product(w))) < 1e-13 * scale
        combined = product(jax.tree.map(lambda a, b: 2.5 * a - b, v, w))
        assert np.allclose(flat(combined), 2.5 * flat(product(v)) - flat(product(w)), rtol=0, atol=1e-13 * scale)


def test_gauss_newton_is_the_hessian_of_a_linear_model(x64):
    net = dense.problem("linear", "cross_entropy", sizes=(4, 3))
    vector = random_tree(net.params, 4)
    product = ggn_vp(net.model, net.output_loss, net.params, vector)
    assert relative_error(flat(product), flat(hvp(net.loss, net.params, vector))) < 1e-14


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_gauss_newton_has_no_negative_eigenvalue(x64, activation):
    net = dense.problem(activation)
    size, unravel = len(flat(net.params)), ravel_pytree(net.params)[1]
    column = jax.jit(jax.vmap(lambda v: ravel_pytree(ggn_vp(net.model, net.output_loss, net.params, unravel(v)))[0]))
    eigenvalues = np.linalg.eigvalsh(column(jnp.eye(size)))
    assert eigenvalues[0] > -1e-14 * eigenvalues[-1]
    # Control: the Hessian of the same network has some.
    assert np.linalg.eigvalsh(dense_hessian(net.loss, net.params))[0] < -1e-3 * eigenvalues[-1]


def test_jit_and_float32_agree_with_float64():
    with jax.enable_x64(True):
        net = dense.problem("gelu")
        vector = random_tree(net.params, 5)
        expected = flat(hvp(net.loss, net.params, vector))
    net32 = dense.problem("gelu", dtype=np.float32)
    vector32 = random_tree(net32.params, 5)
    product = jax.jit(lambda params, v: hvp(net32.loss, params, v))(net32.params, vector32)
    assert {leaf.dtype for leaf in jax.tree.leaves(product)} == {jnp.dtype("float32")}
    assert 1e-9 < relative_error(flat(product), expected) < 1e-6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bit_products_keep_their_dtype(dtype):
    net = dense.problem("tanh", dtype=dtype)
    vector = random_tree(net.params, 6)
    product = jax.jit(lambda params, v: hvp(net.loss, params, v))(net.params, vector)
    assert {leaf.dtype for leaf in jax.tree.leaves(product)} == {np.dtype(dtype)}
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), (net.params, vector, net.inputs, net.targets))
        expected = flat(hvp(lambda params: net.batch_loss(params, wide[2:]), *wide[:2]))
    assert relative_error(flat(product).astype(np.float64), expected) < 20 * float(jnp.finfo(dtype).eps)


def test_restrict_is_projector_operator_projector(x64):
    matrix = dense.random_symmetric(np.linspace(-1.0, 2.0, 6))
    basis = dense.random_orthonormal(6, 2, seed=1)
    projector = basis @ basis.T
    restricted = restrict(lambda v: matrix @ v, lambda v: projector @ v)
    restricted_matrix = np.stack([restricted(column) for column in jnp.eye(6)])
    assert np.allclose(restricted_matrix, projector @ matrix @ projector, atol=1e-15)
    assert not np.allclose(restricted_matrix, matrix @ projector, atol=1e-3)


@pytest.mark.slow
def test_per_sample_gradients_average_to_the_gradient(x64):
    net = dense.problem("tanh", num_samples=6)

    def sample_loss(params, sample):
        return net.batch_loss(params, jax.tree.map(lambda x: x[None], sample))

    data = (net.inputs, net.targets)
    gradients = per_sample_gradients(sample_loss, net.params, data)
    for index in range(6):
        alone = jax.grad(net.batch_loss)(net.params, (net.inputs[index, None], net.targets[index, None]))
        assert np.allclose(flat(jax.tree.map(lambda g, i=index: g[i], gradients)), flat(alone), atol=1e-15)
    mean = jax.tree.map(lambda g: g.mean(0), gradients)
    assert relative_error(flat(mean), flat(jax.grad(net.loss)(net.params))) < 1e-14


def test_constraint_jacobian_of_conserved_quantities(x64):
    net = dense.problem("relu")

    def balance(params):  # ||w||² + b² - ||a||² of each hidden unit
        incoming = (params[0]["kernel"] ** 2).sum(0) + params[0]["bias"] ** 2
        return {"balance": incoming - (params[1]["kernel"] ** 2).sum(1), "count": jnp.zeros((0,))}

    unravel = ravel_pytree(net.params)[1]
    jacobian = constraint_jacobian(balance, net.params)
    assert jacobian.shape == (5, len(flat(net.params)))
    for unit in range(5):
        row = jax.tree.map(jnp.zeros_like, net.params)
        row[0]["kernel"] = row[0]["kernel"].at[:, unit].set(2 * net.params[0]["kernel"][:, unit])
        row[0]["bias"] = row[0]["bias"].at[unit].set(2 * net.params[0]["bias"][unit])
        row[1]["kernel"] = row[1]["kernel"].at[unit].set(-2 * net.params[1]["kernel"][unit])
        assert np.allclose(jacobian[unit], flat(row), atol=1e-15)
    # The quantity is conserved: its gradient is orthogonal to that of the loss. A norm alone is not.
    gradient = flat(jax.grad(net.loss)(net.params))
    assert np.max(abs(jacobian @ gradient)) < 1e-15
    norms = constraint_jacobian(lambda params: (params[0]["kernel"] ** 2).sum(0), net.params)
    assert np.max(abs(norms @ gradient)) > 1e-3
    assert constraint_jacobian(lambda params: jnp.zeros(0), net.params).shape == (0, len(flat(unravel(jacobian[0]))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: dense_hessian(net.loss, net.params, max_bytes=100), r"Hessian of shape \(43, 43\).*14,792 bytes"),
        (
            lambda net: per_sample_gradients(net.loss, net.params, (net.inputs,), max_bytes=100),
            r"gradients of shape \(7, 43\).*2,408 bytes",
        ),
        (
            lambda net: constraint_jacobian(net.model, net.params, max_bytes=100),
            r"Jacobian of shape \(21, 43\).*7,224 bytes",
        ),
    ],
)
def test_dense_requests_beyond_memory_say_their_size_and_the_way_out(x64, call, message):
    with pytest.raises(ValueError, match=message + ".*(use|pass)"):
        call(dense.problem())


def test_a_paper_sized_hessian_is_refused_before_it_is_built():
    params = jax.tree.map(jnp.zeros, {"kernel": (1_064_970,)}, is_leaf=lambda x: isinstance(x, tuple))
    with pytest.raises(ValueError, match=r"4,536,644,403,600 bytes.*extreme_eigenvalues"):
        dense_hessian(lambda p: jnp.sum(p["kernel"] ** 2), params)


def test_directions_that_do_not_match_are_refused(x64):
    net = dense.problem()
    with pytest.raises(ValueError, match="vector has the tree"):
        hvp(net.loss, net.params, net.params[0])
    wrong_shape = jax.tree.map(lambda x: x[..., None], net.params)
    with pytest.raises(ValueError, match=r"vector\[0\]\['bias'\] has shape \(5, 1\)"):
        ggn_vp(net.model, net.output_loss, net.params, wrong_shape)
    wrong_dtype = jax.tree.map(lambda x: x.astype(jnp.float32), net.params)
    with pytest.raises(ValueError, match=r"dtype float32: the parameter has .* float64"):
        hvp(net.loss, net.params, wrong_dtype)
