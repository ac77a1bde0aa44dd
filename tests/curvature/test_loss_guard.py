"""`check_loss`: what it lets through and what it refuses, with the message a user reads."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import dense

from lopjax.curvature import check_loss


@pytest.mark.parametrize("activation", ["tanh", "gelu", "relu", "softplus"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_networks_pass(activation, loss):
    net = dense.problem(activation, loss, dtype=np.float32)
    check_loss(net.loss, net.params)
    check_loss(jax.jit(net.loss), net.params)


def test_degenerate_but_honest_losses_pass():
    """Dead, converged and saturated networks have no gradient, and a Hessian that is zero or rounding noise."""
    net = dense.problem("relu", dtype=np.float32)
    dead = jax.tree.map(jnp.zeros_like, net.params)
    dead[0]["bias"] -= 1.0
    check_loss(net.loss, dead)
    for scale in (1e2, 1e4):  # logits far beyond softmax's rounding
        check_loss(net.loss, jax.tree.map(lambda x, scale=scale: scale * x, net.params))
    check_loss(lambda p: jnp.sum(p), jnp.ones(3))
    check_loss(lambda p: jnp.sum(p**2), jnp.zeros(3))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_interpolating_networks_pass(seed):
    net = dense.problem("gelu", sizes=(6, 16, 3), num_samples=4, seed=seed, dtype=np.float32)

    @jax.jit
    def train(params):
        def step(params, _):
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(net.loss)(params)), None

        return jax.lax.scan(step, params, None, length=3000)[0]

    fitted = train(net.params)
    assert net.loss(fitted) < 1e-2
    check_loss(net.loss, fitted)


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x)


straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


@jax.custom_vjp
def product_of_two(x, y):
    return x * y


# The gradient is right; its own derivative is not, because the backward pass holds x constant.
product_of_two.defvjp(lambda x, y: (x * y, (x, y)), lambda kept, g: (g * kept[1], g * jax.lax.stop_gradient(kept[0])))


@jax.custom_vjp
def only_once(x):
    return x**2


def only_once_backward(x, cotangent):
    slope = jax.pure_callback(lambda x: 2 * np.asarray(x), jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    return (cotangent * slope,)


only_once.defvjp(lambda x: (x**2, x), only_once_backward)


def loss_with_fresh_noise():
    generator = np.random.default_rng(0)
    return lambda p: jnp.sum(p**2) * (1 + 0.1 * generator.normal())


def loss_over_a_running_iterator():
    batches = itertools.cycle([1.0, 2.0])
    return lambda p: next(batches) * jnp.sum(p**2)


@pytest.mark.parametrize(
    ("loss", "params", "message"),
    [
        (lambda p: p**2, jnp.ones(3), r"array of shape \(3,\).*take its mean"),
        (lambda p: (jnp.sum(p), {"accuracy": 1.0}), jnp.ones(3), "return the loss alone"),
        (lambda p: jnp.sum(p > 0), jnp.ones(3), "dtype int32.*differentiable loss"),
        (lambda p: jnp.sum(p.astype(jnp.complex64)), jnp.ones(3), "dtype complex64"),
        (lambda p: jnp.sum(p["w"]), {"w": jnp.ones(3), "step": jnp.array(1)}, r"params\['step'\] has dtype int32"),
        (lambda p: jnp.array(0.0), {}, "no arrays"),
        (loss_with_fresh_noise(), jnp.ones(3), "must be deterministic.*dropout"),
        (lambda p: jnp.log(jnp.sum(p)), -jnp.ones(3), "must be finite"),
        (lambda p: jnp.sqrt(jnp.sum(p**2)), jnp.zeros(3), "its derivatives are not"),
        (lambda p: jnp.mean(jnp.argmax(p, -1) == 0), jnp.ones((4, 3)), "no differentiable dependence"),
        (lambda p: jnp.sum(jnp.round(p)), jnp.ones(3), "no differentiable dependence"),
        (lambda p: jax.lax.stop_gradient(jnp.sum(p**2)), jnp.ones(3), "no differentiable dependence"),
        (lambda p: jnp.array(1.0), jnp.ones(3), "no differentiable dependence"),
        (lambda p: jax.lax.while_loop(lambda x: x < 4, lambda x: 2 * x, p), jnp.array(1.0), "not twice differentiable"),
        (lambda p: only_once(p), jnp.array(1.0), "not twice differentiable"),
        (
            lambda p: p[0] * jax.lax.stop_gradient(p[1]) ** 2 + p[1] ** 4,
            jnp.array([1.0, 2.0]),
            "gradient predicts.*stop_gradient",
        ),
        (
            lambda p: (straight_through(3 * p[0]) - 1.3 * p[1]) ** 2,
            jnp.array([0.9, 0.4]),
            "gradient predicts.*custom derivative",
        ),
        (lambda p: product_of_two(p[0], p[1]), jnp.array([0.9, 0.4]), "not symmetric.*custom derivative"),
    ],
)  # fmt: skip
def test_refusals(loss, params, message):
    with pytest.raises(ValueError, match=message):
        check_loss(loss, params)


def test_an_iterator_inside_the_loss_is_refused():
    with pytest.raises(ValueError, match="must be deterministic"):
        check_loss(loss_over_a_running_iterator(), jnp.ones(2))


def test_traced_parameters_are_refused():
    with pytest.raises(ValueError, match=r"call it outside jax\.jit"):
        jax.jit(lambda p: check_loss(lambda p: jnp.sum(p), p))(jnp.ones(3))
