"""What an activation that was read from a program is called, and when it is called nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced_networks import of

from lopjax.certificates import FrozenVerdict, certify_frozen
from lopjax.tracing import trace_model

SHAPES = dict(w=of(4, 5), b=of(5), head=of(5, 2))
keep = jax.lax.stop_gradient


def network(activation):
    return lambda p, x: activation(x @ p["w"] + p["b"]) @ p["head"]


def name_of(activation):
    wiring = trace_model(network(activation), SHAPES, of(6, 4), check=False).model.wiring
    given = wiring.site("w").activation
    return given if isinstance(given, str) else given.name


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("relu", lambda z: jnp.where(z > 0, z, 0)),
        ("relu", lambda z: jnp.maximum(z, 0)),
        ("relu6", jax.nn.relu6),
        ("relu6", lambda z: jnp.minimum(jax.nn.relu(z), 6)),
        ("hard_tanh", lambda z: jnp.clip(z, -1, 1)),
        ("softplus", lambda z: jnp.log1p(jnp.exp(z))),
        ("gelu", lambda z: z / 2 * (1 + jax.lax.erf(z / np.sqrt(2)))),
        ("elu", jax.nn.elu),
        ("silu", jax.nn.silu),
        ("mish", lambda z: z * jnp.tanh(jax.nn.softplus(z))),
        ("leaky_relu", lambda z: jax.nn.leaky_relu(z, 0.01)),
    ],
)
def test_other_ways_to_write_an_activation_have_its_name(name, activation):
    assert name_of(activation) == name


@pytest.mark.parametrize(
    "activation",
    [
        lambda z: keep(jax.nn.relu(z) - 0.1 * z) + 0.1 * z,  # straight-through: the values of a ReLU, another slope
        lambda z: z * keep(jax.nn.sigmoid(z)),
        lambda z: jax.nn.leaky_relu(z, 1e-8),  # no gradient is exactly zero
        lambda z: jnp.where(z < -10, z + 10, jax.nn.relu(z)),  # alive again far below zero
        lambda z: jnp.where(0.1 * z < -30, z + 300, jax.nn.relu(z)),
        lambda z: jnp.minimum(jax.nn.relu(z), 20),
        lambda z: jax.nn.relu(jnp.round(8 * z) / 8),  # its values on a grid of quarters are those of a ReLU
    ],
)
def test_what_has_its_values_at_a_few_points_only_is_not_called_by_its_name(activation):
    assert name_of(activation) == "unnamed"


@pytest.mark.parametrize("is_leaky", [False, True])
def test_a_unit_that_is_alive_again_far_below_zero_is_never_called_frozen(is_leaky):
    def leaky(z):
        return jnp.where(z < -10, z + 10, jax.nn.relu(z)) if is_leaky else jax.nn.relu(z)

    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for name, leaf in SHAPES.items()}
    params["w"] = params["w"].at[:, 0].set(-1.0)
    params["b"] = params["b"].at[0].set(-20.0)
    x, y = jnp.asarray(rng.uniform(size=(6, 4)), jnp.float32), jnp.arange(6) % 2
    traced = trace_model(network(leaky), params, x, check=False)
    box = jnp.zeros(4), jnp.ones(4)
    (unit,) = certify_frozen(traced.model, traced.split(params), (x, y), {"w": [0]}, input_box=box).units
    assert (unit.gradient > 0) == is_leaky
    assert (unit.verdict is FrozenVerdict.FROZEN_EVERYWHERE) != is_leaky
    assert (unit.radius is None) == is_leaky
