"""Values, first and second derivatives of the named activations against their textbook formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from lopjax.activations import ACTIVATIONS, Activation, activation

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def sigma(z):
    return special.expit(z)


def phi(z):
    return np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def step(z):
    return (z > 0).astype(float)


# name -> (value, first derivative, second derivative), in numpy, away from the kinks
FORMULAS = {
    "relu": (lambda z: np.maximum(z, 0), step, np.zeros_like),
    "leaky_relu": (lambda z: np.maximum(z, 0.01 * z), lambda z: 0.01 + 0.99 * step(z), np.zeros_like),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2, lambda z: -2 * np.tanh(z) / np.cosh(z) ** 2),
    "sigmoid": (
        sigma,
        lambda z: sigma(z) * sigma(-z),
        lambda z: sigma(z) * sigma(-z) * (1 - 2 * sigma(z)),
    ),
    "gelu": (
        lambda z: z * special.ndtr(z),
        lambda z: special.ndtr(z) + z * phi(z),
        lambda z: (2 - z**2) * phi(z),
    ),
    "elu": (
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
        lambda z: np.where(z > 0, 1, np.exp(np.minimum(z, 0))),
        lambda z: np.where(z > 0, 0, np.exp(np.minimum(z, 0))),
    ),
    "selu": (
        lambda z: SELU_SCALE * np.where(z > 0, z, SELU_ALPHA * np.expm1(np.minimum(z, 0))),
        lambda z: SELU_SCALE * np.where(z > 0, 1, SELU_ALPHA * np.exp(np.minimum(z, 0))),
        lambda z: SELU_SCALE * np.where(z > 0, 0, SELU_ALPHA * np.exp(np.minimum(z, 0))),
    ),
    "silu": (
        lambda z: z * sigma(z),
        lambda z: sigma(z) + z * sigma(z) * sigma(-z),
        lambda z: sigma(z) * sigma(-z) * (2 + z * (1 - 2 * sigma(z))),
    ),
    "identity": (lambda z: z, np.ones_like, np.zeros_like),
    "erf": (
        special.erf,
        lambda z: 2 / np.sqrt(np.pi) * np.exp(-(z**2)),
        lambda z: -4 * z / np.sqrt(np.pi) * np.exp(-(z**2)),
    ),
    "softplus": (lambda z: np.logaddexp(z, 0), sigma, lambda z: sigma(z) * sigma(-z)),
    "sin": (np.sin, np.cos, lambda z: -np.sin(z)),
    "exp": (np.exp, np.exp, np.exp),
}


def test_every_activation_has_a_formula():
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_two_derivatives(name, x64):
    z = np.linspace(-6.05, 6.05, 122)
    f = activation(name)
    first = jax.grad(lambda x: f(x))
    second = jax.jacfwd(first)  # jvp of grad, as in a Hessian-vector product
    for order, (ours, formula) in enumerate(zip((f, first, second), FORMULAS[name], strict=True)):
        np.testing.assert_allclose(jax.vmap(ours)(jnp.asarray(z)), formula(z), rtol=1e-11, atol=1e-13, err_msg=order)


@pytest.mark.parametrize(("name", "slope"), [("relu", 0.0), ("leaky_relu", 0.01), ("elu", 1.0)])
def test_derivative_at_the_kink_is_pytorchs(name, slope, x64):
    assert jax.grad(lambda x: activation(name)(x))(0.0) == slope


@pytest.mark.parametrize("name", [name for name, entry in ACTIVATIONS.items() if not entry.kinks])
def test_smooth_means_smooth(name, x64):
    """Three derivatives are continuous at 0, the only place where any of these functions has a kink."""
    f = activation(name)
    third = jax.vmap(jax.grad(jax.grad(jax.grad(lambda x: f(x)))))
    left, right = third(jnp.array([-1e-7, 1e-7]))
    assert abs(left - right) < 1e-5


@pytest.mark.parametrize("name", [name for name, entry in ACTIVATIONS.items() if entry.kinks])
def test_kinks_are_where_a_derivative_jumps(name, x64):
    f, (kink,) = activation(name), ACTIVATIONS[name].kinks
    derivatives = (jax.grad(lambda x: f(x)), jax.grad(jax.grad(lambda x: f(x))))
    assert max(float(abs(d(kink + 1e-7) - d(kink - 1e-7))) for d in derivatives) > 0.5


def test_dtype_is_kept():
    for f in ACTIVATIONS.values():
        assert f(jnp.zeros((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


def test_an_activation_is_a_static_argument():
    apply = jax.jit(lambda f, z: f(z), static_argnums=0)
    own = Activation("cube", lambda z: z**3)
    assert apply(own, jnp.array(2.0)) == 8.0
    assert apply(activation("relu"), jnp.array(-2.0)) == 0.0


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match=r"'swish': must be one of relu, leaky_relu, tanh.*exp"):
        activation("swish")
