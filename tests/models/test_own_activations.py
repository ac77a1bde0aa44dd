"""Networks with activation functions of one's own: same function, same model; cloned alike; undecided without facts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.architectures import ARCHITECTURES, batch_of, build

from lopjax.activations import Activation
from lopjax.certificates import FrozenVerdict, certify_frozen
from lopjax.cloning import clone_variables, widen
from lopjax.losses import mean_squared_error
from lopjax.manifolds import homogeneous_conserved
from lopjax.models import from_linen, labelled, mlp, tap
from lopjax.wiring import In, Out


def smooth_leaky(z):
    return 0.1 * z + 0.9 * jax.nn.softplus(4 * z) / 4


def my_relu(z):
    return jnp.maximum(z, 0)


RELU = Activation(
    "my relu",
    my_relu,
    kinks=(0.0,),
    is_monotone=True,
    is_homogeneous=True,
    lower_bound=0.0,
    flat=((-np.inf, 0.0),),
    saturates=(-np.inf,),
)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_a_function(x64, architecture):
    model = build(architecture, activation=smooth_leaky)
    assert build(architecture, activation=smooth_leaky) is model
    assert build(architecture, activation=lambda z: z) is not build(architecture, activation=lambda z: z)
    inputs, _ = batch_of(architecture, 4)
    variables = model.init(jax.random.key(0))
    logits, _, taps = model.apply(variables, inputs)
    own = [site for site in taps.values() if isinstance(site.activation, Activation)]
    assert own
    for site in own:
        np.testing.assert_allclose(site.post, smooth_leaky(site.pre), rtol=0, atol=1e-14)
    wide = widen(model, 2).apply(clone_variables(variables, model.wiring, 2), inputs).logits
    np.testing.assert_allclose(wide, logits, rtol=0, atol=1e-12)


def test_the_name_and_the_function_of_jax_are_one_model():
    assert mlp((3,), (2,), 2, activation=jnp.tanh) is mlp((3,), (2,), 2, activation="tanh")


def test_what_is_not_elementwise_is_refused_before_anything_is_built():
    with pytest.raises(ValueError, match=r"softmax.*not elementwise"):
        mlp((3,), (2,), 2, activation=jax.nn.softmax)
    with pytest.raises(ValueError, match="is_homogeneous=True is wrong"):
        mlp((3,), (2,), 2, activation=Activation("tanh", jnp.tanh, is_homogeneous=True))


def dead_network(activation):
    """Unit 0 dead on every sample, unit 1 alive."""
    model = mlp((2,), (2,), 1, activation=activation)
    variables = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0)))
    variables["params"]["hidden_0"]["bias"] = jnp.array([-20.0, 1.0])
    batch = jnp.array([[1.0, 0.5], [0.2, -1.0]]), jnp.array([[1.0], [0.0]])
    return model, variables, batch


def frozen_verdicts(activation):
    model, variables, batch = dead_network(activation)
    found = certify_frozen(model, variables, batch, {"hidden_0": (0, 1)}, loss=mean_squared_error)
    return [unit.verdict for unit in found.units], found


def test_frozen_units_are_decided_by_facts_alone(x64):
    known, certificate = frozen_verdicts(RELU)
    assert known == frozen_verdicts("relu")[0] == [FrozenVerdict.FROZEN, FrozenVerdict.ALIVE]
    assert certificate.units[0].radius == frozen_verdicts("relu")[1].units[0].radius
    # The same function without facts: the live unit shows itself, the dead one proves nothing.
    verdicts, certificate = frozen_verdicts(my_relu)
    assert verdicts == [FrozenVerdict.UNDECIDED, FrozenVerdict.ALIVE]
    assert any("without flat and saturates" in note for note in certificate.notes)
    assert certificate.units[0].radius is None
    assert frozen_verdicts("exp")[0] == [FrozenVerdict.SLOW, FrozenVerdict.ALIVE]
    assert frozen_verdicts("leaky_relu")[0] == [FrozenVerdict.ALIVE, FrozenVerdict.ALIVE]


def test_a_conserved_quantity_needs_the_fact_of_homogeneity(x64):
    params = dead_network("relu")[1]["params"]
    expected = homogeneous_conserved(dead_network("relu")[0].wiring)(params)
    np.testing.assert_array_equal(homogeneous_conserved(dead_network(RELU)[0].wiring)(params), expected)
    with pytest.raises(ValueError, match="does not say whether it is positive-homogeneous"):
        homogeneous_conserved(dead_network(my_relu)[0].wiring)


class DeepFourier(nn.Module):
    """sin and cos of the same pre-activation: one unit space written at two sites, each with a reader of its own."""

    sizes: tuple = (("h", 3), ("classes", 2))

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        sizes, init = dict(self.sizes), nn.initializers.normal(0.5)

        def kernel(name, reads, writes, shape, source=None):
            site = None if writes == "h" else writes  # the way out of `w` splits into two sites
            return self.param(name, labelled(init, In(reads), Out(writes), site=site, source=source), shape)

        pre = x @ kernel("w", "input", "h", (4, sizes["h"]))
        sine, cosine = tap(self, "sin", "h", jnp.sin, pre), tap(self, "cos", "h", jnp.cos, pre)
        out = (sizes["h"], sizes["classes"])
        return sine @ kernel("a", "h", "classes", out, "sin") + cosine @ kernel("b", "h", "classes", out, "cos")


def test_deep_fourier_features_are_cloned_in_pairs(x64):
    model = from_linen(DeepFourier(), (4,))
    assert [site.activation for _, site in model.wiring.sites] == ["sin", "cos"]
    variables, inputs = model.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 4))
    p = variables["params"]
    expected = np.sin(inputs @ p["w"]) @ p["a"] + np.cos(inputs @ p["w"]) @ p["b"]
    np.testing.assert_allclose(model.apply(variables, inputs).logits, expected, rtol=0, atol=1e-14)
    cloned = clone_variables(variables, model.wiring, 3)
    np.testing.assert_allclose(widen(model, 3).apply(cloned, inputs).logits, expected, rtol=0, atol=1e-14)
