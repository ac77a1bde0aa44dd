"""Derivatives that are none and digits that are lost, read off programs; with controls that must pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.activation_checks import check_activation
from lopjax.activations import Activation
from lopjax.certificates import certify_cloned, certify_frozen
from lopjax.curvature import check_loss
from lopjax.curvature.programs import check_derivative, read_program
from lopjax.losses import mean_cross_entropy
from lopjax.models import mlp
from lopjax.stability import unit_blocks


@jax.custom_jvp
def rounded(z):
    return jnp.round(4 * z) / 4


rounded.defjvp(lambda primals, tangents: (rounded(*primals), tangents[0]))


@jax.custom_jvp
def true_tanh(z):
    return jnp.tanh(z)


true_tanh.defjvp(lambda primals, tangents: (true_tanh(*primals), (1 - jnp.tanh(primals[0]) ** 2) * tangents[0]))


@jax.custom_vjp
def backward_only(z):
    return jnp.tanh(z)


backward_only.defvjp(lambda z: (jnp.tanh(z), z), lambda z, g: (g * (1 - jnp.tanh(z) ** 2),))


def signs(z):
    return z + jax.lax.stop_gradient(jnp.sign(z) - z)


def test_what_is_read_off_a_program(x64):
    z = jnp.ones((2, 3))
    for function, is_own in ((rounded, True), (signs, True), (backward_only, True), (true_tanh, True)):
        assert read_program(lambda z, function=function: function(z) @ z.T, z).is_own is is_own
    # The control: rules and maxima of JAX's own, inside functions that are compiled by themselves as well.
    for function in (jax.nn.relu, jax.nn.softmax, jax.nn.silu, jax.nn.logsumexp, jax.nn.gelu, jnp.linalg.norm):
        assert not read_program(jax.jit(function), z).is_own
    assert read_program(backward_only, z).is_backward_only
    assert not read_program(rounded, z).is_backward_only
    for dtype, bits in ((jnp.bfloat16, 16), (jnp.float16, 16), (jnp.float32, 32)):
        assert read_program(lambda z, dtype=dtype: jnp.sin(z.astype(dtype)).astype(float), z).narrowest == bits
        assert read_program(jax.jit(lambda z, dtype=dtype: z.astype(dtype)), z).narrowest == bits
    # Constants of the program, integers and widening lose nothing.
    for function in (lambda z: jnp.where(z > 0, z, 0.0) * 0.5, lambda z: z.astype(int), lambda z: jnp.argmax(z)):
        assert read_program(function, z.astype(jnp.float32)).narrowest == 64
    assert read_program(lambda z: z.astype(float), z.astype(jnp.float32)).narrowest == 64


def test_derivatives_are_compared_with_differences(unchecked):
    point = {"z": jnp.linspace(-2.0, 1.9, 6)}
    for function in (rounded, signs, lambda z: jax.lax.stop_gradient(z) * z):
        with pytest.raises(ValueError, match="the derivative of it is not that of its value"):
            check_derivative("it", lambda tree, function=function: function(tree["z"]), point)
    near_a_kink = lambda z: 1e3 * jax.nn.relu(z - (point["z"].astype(z.dtype) + 3e-8))  # noqa: E731
    for function in (
        near_a_kink,
        true_tanh,
        backward_only,
        jax.nn.relu,
        jnp.abs,
        jnp.sign,
        lambda z: 1e3 * jnp.sin(20 * z),
    ):
        check_derivative("it", lambda tree, function=function: function(tree["z"]), point)


def test_activations_with_facts_have_their_own_derivative(unchecked):
    for facts in ({"kinks": ()}, {"flat": ()}, {"saturates": (np.inf,)}):
        for function in (rounded, signs):
            with pytest.raises(ValueError, match=r"not that of its values|is wrong"):
                check_activation(Activation("own", function, **facts))
    check_activation(Activation("own", true_tanh, kinks=(), saturates=(-np.inf, np.inf)))
    check_activation(Activation("own", rounded))  # nothing is claimed
    with pytest.raises(ValueError, match="reverse mode alone"):
        check_activation(Activation("own", backward_only))


X, Y = np.random.default_rng(0).normal(size=(6, 2)), np.array([0, 1, 1, 0, 1, 0])


def refused(model, variables, loss, message):
    """Curvature and certificates alike."""
    units = model.wiring.cloneable[0]
    pairs = {units: (0, 0)}
    for judge in (
        lambda: unit_blocks(model, variables, (X, Y), 2, loss=loss),
        lambda: certify_cloned(model, variables, (X, Y), pairs, loss=loss),
        lambda: certify_frozen(model, variables, (X, Y), {model.wiring.sites_of(units)[0]: [0]}, loss=loss),
    ):
        with pytest.raises(ValueError, match=message):
            judge()


def test_verdicts_refuse_derivatives_that_are_none(x64, unchecked):
    of = mlp((2,), (2,), 2, activation="tanh")
    variables = of.init(jax.random.key(0))
    refused(mlp((2,), (2,), 2, activation=rounded), variables, mean_cross_entropy, "derivative of the network")
    refused(of, variables, lambda logits, y: mean_cross_entropy(rounded(logits), y), "derivative of the loss")
    # The control: a rule for reverse mode alone, which is right, has a right Hessian by forward over reverse mode.
    check_loss(lambda p: jnp.sum(backward_only(p)), jnp.ones(2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verdicts_refuse_digits_that_are_lost(x64, unchecked, dtype):
    """At a tie or a kink of the coarse numbers a float64 tolerance would call the verdict exact."""
    narrow = mlp((2,), (2,), 2, activation=lambda z: jax.nn.relu(z.astype(dtype)).astype(z.dtype))
    refused(narrow, narrow.init(jax.random.key(0)), mean_cross_entropy, "network rounds to .* bits inside")
    of = mlp((2,), (2,), 2, activation="tanh")

    def coarse(logits, y):
        return mean_cross_entropy(logits.astype(dtype), y).astype(float)

    refused(of, of.init(jax.random.key(0)), coarse, "the loss rounds")
    with pytest.raises(ValueError, match="the loss rounds"):
        check_loss(lambda p: jnp.sum(jnp.sin(p.astype(dtype)).astype(float)), jnp.ones(2))
