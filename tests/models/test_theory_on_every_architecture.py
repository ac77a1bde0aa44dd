"""What the library says about clones and dead units on every architecture, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.architectures import ARCHITECTURES, batch_of, build, draw, every, logits_and_gradient

from lopjax.certificates import CloneVerdict, FrozenVerdict, certify_cloned, certify_frozen
from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.manifolds import dimension, frozen_manifold, tangency_residual

# Pooling and attention are the dearest to compile; the MLP is what all other tests are about.
SLOW = every(slow=("mlp", "cnn", "vit", "gpt"))


def shifted(tree, path, unit, shift):
    """A copy of a tree of dicts with one entry of one array moved."""
    key, *rest = path
    branch = shifted(tree[key], rest, unit, shift) if rest else tree[key].at[unit].add(shift)
    return {**tree, key: branch}


@pytest.mark.parametrize("name", SLOW)
def test_certificates_of_clones_agree_with_their_signals(x64, name):
    """Parameters and data say the same: clones at BC, no longer so with one unit of one cluster moved."""
    base, data = build(name), batch_of(name)
    site, path = ARCHITECTURES[name].bias
    drawn = draw(base)
    drawn = {**drawn, "params": shifted(drawn["params"], path, 0, 10.0)}  # awake, whatever was drawn
    wide, variables = widen(base, 2), clone_variables(drawn, base.wiring, 2)
    partition = uniform_partition(wide.wiring, 2)
    certificate = certify_cloned(wide, variables, data, partition)
    assert certificate.verdict is CloneVerdict.BLOCK_CONSTANT
    assert certificate.tangency <= 1e-12
    assert set(certificate.sites) == {site for site, _ in wide.wiring.sites}
    assert all(max(site) <= 1e-12 for site in certificate.sites.values())
    moved = {**variables, "params": shifted(variables["params"], path, 0, 0.5)}
    broken = certify_cloned(wide, moved, data, partition)
    assert broken.verdict is CloneVerdict.NOT_CLONED
    assert broken.sites[site].forward > 1e-3
    assert broken.tangency > 1e-3


@pytest.mark.parametrize("name", SLOW)
def test_dead_units_are_certified_and_their_gradient_is_tangent_to_the_frozen_manifold(x64, name):
    model, data = build(name), batch_of(name)
    variables = draw(model, seed=1)
    site, path = ARCHITECTURES[name].bias
    for unit in (0, 1):  # awake, whatever was drawn
        variables = {**variables, "params": shifted(variables["params"], path, unit, 10.0)}
    space = model.wiring.site(site).space
    dead = {**variables, "params": shifted(variables["params"], path, 1, -200.0)}
    manifold = frozen_manifold(dead["params"], model.wiring, {site: [1]})
    # One slice of every array that sits at the site; that these are the right arrays is `check_site_labels`' claim.
    sizes = [
        leaf.size // model.wiring.size(space)
        for label, leaf in zip(model.wiring.labels_of(dead["params"]), jax.tree.leaves(dead["params"]), strict=True)
        if label.site == site
    ]
    total = sum(leaf.size for leaf in jax.tree.leaves(dead["params"]))
    assert len(sizes) >= 2
    assert dimension(manifold) == total - sum(sizes)
    assert tangency_residual(manifold, logits_and_gradient(model, dead, data, False)[2]) == 0
    assert tangency_residual(manifold, logits_and_gradient(model, variables, data, False)[2]) > 1e-3
    units = {unit.unit: unit for unit in certify_frozen(model, dead, data, {site: [0, 1]}).units}
    asleep, awake = units[1], units[0]
    assert asleep.verdict in (FrozenVerdict.FROZEN, FrozenVerdict.FROZEN_EVERYWHERE)
    assert (asleep.gradient, awake.verdict) == (0, FrozenVerdict.ALIVE)
    assert awake.gradient > 0


@pytest.mark.parametrize("name", every(slow=("mlp", "gpt")))
def test_bfloat16_networks_are_judged_in_the_type_of_their_parameters(name):
    """16-bit activations of clones may differ by their rounding; the parameters' certificate is that of float32."""
    base = build(name, compute_dtype="bfloat16")
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), draw(base))
    wide, cloned = widen(base, 2), clone_variables(variables, base.wiring, 2)
    partition = uniform_partition(wide.wiring, 2)
    certificate = certify_cloned(wide, cloned, None, partition)
    assert certificate.verdict is CloneVerdict.BLOCK_CONSTANT
    assert certificate.tolerance == 64 * np.finfo(np.float32).eps
    path = ARCHITECTURES[name].bias[1]
    moved = {**cloned, "params": shifted(cloned["params"], path, 0, 1e-3)}  # less than bfloat16 resolves
    assert certify_cloned(wide, moved, None, partition).verdict is CloneVerdict.NOT_CLONED
