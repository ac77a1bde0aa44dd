"""Weight decay and clones: the rate at the decayed stationary point against simulated gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.critical_clones import BASE, PARTITION, WIDE, critical_clones, flat_loss, normal_modes

from lopjax.cloning import clone_variables
from lopjax.losses import mean_squared_error
from lopjax.manifolds import cloned_manifold, normal_basis
from lopjax.models import mlp
from lopjax.stability import Attraction, critical_weight_decay, decayed_clones, unit_blocks, weight_decay_threshold


def test_the_decay_that_outweighs_the_blocks_at_a_point_is_critical_at_that_point_only(x64):
    batch, base, _ = critical_clones()
    blocks = unit_blocks(BASE, base, batch, 2, loss=mean_squared_error)
    decay = critical_weight_decay(blocks)
    loss, flat, _, rows, values, _ = normal_modes()
    assert decay > 1e-3
    np.testing.assert_allclose(decay, -values[0], rtol=1e-10)
    hessian_of_decayed = jax.jit(
        lambda strength, point: jax.hessian(lambda point: loss(point) + 0.5 * strength * point @ point)(point)
    )
    for factor, repels in ((0.99, True), (1.01, False)):
        decayed = hessian_of_decayed(factor * decay, flat)
        assert (np.linalg.eigvalsh(rows @ decayed @ rows.T)[0] < 0) == repels
    assert critical_weight_decay([0.1, 2.0]) == 0
    assert np.isnan(critical_weight_decay([0.1, np.nan]))
    with pytest.raises(ValueError, match="no eigenvalues"):
        critical_weight_decay([])


def simulated_rate(point, batch, kick=1e-8, learning_rate=0.2):
    """-d ln(distance) / d(eta t) of gradient descent on the decayed loss of two clones of every unit."""
    wide = clone_variables(point.variables, BASE.wiring, 2)
    loss, flat, _ = flat_loss(WIDE, wide, batch)
    rows = np.asarray(normal_basis(cloned_manifold(wide["params"], WIDE.wiring, PARTITION)))
    start = flat + kick * np.random.default_rng(0).normal(size=len(rows)) / len(rows) ** 0.5 @ rows
    steps = int(12 / (learning_rate * abs(point.rate)))

    @jax.jit
    def run(start):
        def step(place, _):
            moved = place - learning_rate * (jax.grad(loss)(place) + point.weight_decay * place)
            return moved, jnp.linalg.norm(rows @ (moved - flat))

        return jax.lax.scan(step, start, None, length=steps)[1]

    logs = np.log(run(start))
    return -(logs[-1] - logs[steps // 2]) / ((steps - 1 - steps // 2) * learning_rate)


@pytest.mark.slow
def test_clones_attract_where_the_blocks_at_the_decayed_point_say_so(x64):
    batch, base, _ = critical_clones()
    before = critical_weight_decay(unit_blocks(BASE, base, batch, 2, loss=mean_squared_error))
    found = weight_decay_threshold(
        BASE, base, batch, 2, loss=mean_squared_error, decays=[0.2, 0.46, 1.0], relative_width=0.02, both_ways=False
    )
    verdicts = [point.verdict for point in found.upward]
    # The verdicts are no monotone function of the decay: at 1 the base has other distinct units.
    assert verdicts == [Attraction.REPELS, Attraction.ATTRACTS, Attraction.REPELS]
    assert found.threshold == np.inf
    assert len(found.crossings) == 2
    for point in found.upward:
        simulated = simulated_rate(point, batch)
        np.testing.assert_allclose(point.rate, simulated, rtol=0.05)
        assert point.gradient_norm < 1e-12
        assert point.distance < 1e-10
        # Control: the blocks at the undecayed point give other rates, and 0.2 should attract by them.
        assert abs((point.weight_decay - before) / simulated - 1) > 0.5
    assert before < 0.1
    low, high = found.crossings[0]
    assert 0.2 < low < high < 0.46
    assert high - low < 0.02 * high


@pytest.mark.slow
def test_the_threshold_is_narrow_where_the_base_merges_its_own_units(x64):
    # Near the threshold two units of this base merge: from right on the old branch the search ends at a saddle, has no
    # verdict, and used to leave the first bracket, 22 % wide, with its middle as the threshold.
    model, data = mlp((2,), (3,), 2, activation="tanh"), np.random.default_rng(0)
    batch = jnp.asarray(data.normal(size=(16, 2))), jnp.asarray(0.7 * data.normal(size=(16, 2)))
    shapes = model.init(jax.random.key(0))["params"]
    draws = {
        name: {kind: jnp.asarray(np.random.default_rng(7).normal(size=leaf.shape)) for kind, leaf in layer.items()}
        for name, layer in shapes.items()
    }
    result = weight_decay_threshold(
        model, {"params": draws}, batch, 2, loss=mean_squared_error, decays=[0.04, 0.056], both_ways=False
    )
    ((low, high),) = result.crossings
    assert low > (1 - 1e-3) * high
    assert result.note == ""
    for share, verdict in ((0.97, Attraction.REPELS), (1.03, Attraction.ATTRACTS)):
        point = decayed_clones(model, {"params": draws}, batch, 2, share * result.threshold, loss=mean_squared_error)
        assert point.verdict is verdict


def test_the_decayed_point_is_stationary_for_the_clones(x64):
    # A decay of the clones is another one of the base: plain decay of the base would leave a gradient.
    batch, base, _ = critical_clones()
    point = decayed_clones(BASE, base, batch, 2, 0.03, loss=mean_squared_error)
    wide = clone_variables(point.variables, BASE.wiring, 2)
    loss, flat, _ = flat_loss(WIDE, wide, batch)
    gradient = jax.grad(loss)(flat) + 0.03 * flat
    assert np.linalg.norm(gradient) < 1e-12
    np.testing.assert_allclose(point.gradient_norm, np.linalg.norm(gradient), atol=1e-13)
    base_loss, base_flat, _ = flat_loss(BASE, point.variables, batch)
    assert np.linalg.norm(jax.grad(base_loss)(base_flat) + 0.03 * base_flat) > 1e-2
    rows = np.asarray(normal_basis(cloned_manifold(wide["params"], WIDE.wiring, PARTITION)))
    lowest = np.linalg.eigvalsh(rows @ np.asarray(jax.jit(jax.hessian(loss))(flat)) @ rows.T)[0]
    np.testing.assert_allclose(point.rate, 0.03 + lowest, atol=1e-12)
    assert point.verdict is Attraction.REPELS


@pytest.mark.slow
def test_decay_never_attracts_relu_clones_that_have_not_vanished(x64):
    rng, model = np.random.default_rng(7), mlp((2,), (2,), 1)
    inputs = jnp.asarray(rng.normal(size=(16, 2)))
    batch = inputs, jnp.abs(inputs[:, :1]) + 0.1 * jnp.asarray(rng.normal(size=(16, 1)))
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model.init(jax.random.key(1)))
    kept = decayed_clones(model, start, batch, 2, 0.02, loss=mean_squared_error)
    assert kept.verdict is not Attraction.ATTRACTS
    # Units that have vanished, up to rounding, are at their kink: the derivative there is one-sided by chance.
    gone = decayed_clones(model, start, batch, 2, 10.0, loss=mean_squared_error)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gone.variables["params"]["hidden_0"])) < 1e-8
    assert gone.rate > 0
    assert gone.verdict is Attraction.UNDECIDED
    assert "kink" in gone.reason
    found = weight_decay_threshold(model, start, batch, 2, loss=mean_squared_error, decays=[10.0], both_ways=False)
    assert "vanished" in found.note
    assert np.isnan(found.threshold)
    # The control: a smooth unit that has vanished has no kink, and its clones attract.
    smooth = mlp((2,), (2,), 1, activation="tanh")
    assert decayed_clones(smooth, start, batch, 2, 10.0, loss=mean_squared_error).verdict is Attraction.ATTRACTS


def test_decay_refuses_single_precision_and_disorder(unchecked):
    batch = jnp.ones((4, 2)), jnp.zeros((4, 2))
    variables = BASE.init(jax.random.key(0))
    with pytest.raises(ValueError, match="float32"):
        decayed_clones(BASE, variables, batch, 2, 0.1, loss=mean_squared_error)
    with pytest.raises(ValueError, match="ascend"):
        weight_decay_threshold(BASE, variables, batch, 2, loss=mean_squared_error, decays=[0.2, 0.1])
