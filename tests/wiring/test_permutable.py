"""Spaces whose units may be exchanged but not cloned: they trap, and cloning refuses them with the reason."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn.initializers import normal

from lopjax.certificates import CloneVerdict, certify_cloned
from lopjax.cloning import clone_factors, clone_variables, collapse, find_clones
from lopjax.losses import cross_entropy
from lopjax.manifolds import cloned_manifold, tangency_residual
from lopjax.models import check_wiring, from_linen, labelled, permutable, tap
from lopjax.stability import unit_blocks_of_clones
from lopjax.wiring import In, Label, Out, build_wiring

REASON = "queries meet keys: the products of clones would add up"
RANDOM = np.random.default_rng(0)
BATCH = (jnp.asarray(RANDOM.normal(size=(5, 3, 4))), jnp.array([0, 1, 1, 0, 1]))
PAIRS = {"qk": (0, 0, 1)}


class Attention(nn.Module):
    """One head: the width of queries and keys is one permutable space, the width of values a cloneable one."""

    sizes: tuple[tuple[str, int], ...] = (("v", 3), ("y", 2))
    says_so: bool = True

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        (_, v), (_, y) = self.sizes
        if self.says_so:
            permutable(self, "qk", REASON)

        def array(name, size, read, written, **label):
            return self.param(name, labelled(normal(1.0), In(read), Out(written), **label), size)

        query, key = (x @ array(name, (4, 3), "x", "qk") for name in ("query", "key"))
        weights = jax.nn.softmax(query @ jnp.swapaxes(key, 1, 2))
        values = tap(self, "v", "v", "tanh", weights @ (x @ array("value", (4, v), "x", "v", site="v")))
        return values.mean(1) @ array("head", (v, y), "v", "y", site="y")


def shaken(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), shapes)


def equal_units(params):
    """Queries and keys of unit 1 are those of unit 0."""
    return params | {name: params[name].at[:, 1].set(params[name][:, 0]) for name in ("query", "key")}


def test_three_states_and_their_reasons():
    wiring = from_linen(Attention(), (3, 4)).wiring
    assert wiring.spaces == ("x", "v", "qk", "y")
    assert (wiring.cloneable, wiring.permutable, wiring.fixed) == (("v",), ("v", "qk"), {"x", "y"})
    assert dict(wiring.reasons) == {
        "qk": REASON,
        "x": "a network input: no array writes it",
        "y": "a network output: no array reads it",
    }
    # Nobody reads the space: unsaid, it would be an output, or what it is.
    unsaid = from_linen(Attention(says_so=False), (3, 4)).wiring
    assert unsaid.fixed == {"x", "y", "qk"}
    reason = "no array reads it: a network output, or units that meet in a product, as queries and keys do"
    assert dict(unsaid.reasons) == {"qk": reason, "y": reason, "x": "a network input: no array writes it"}


def test_what_is_said_of_a_space_must_not_contradict_itself():
    labels = {("params", "w"): Label((In("x"), Out("h"))), ("params", "v"): Label((In("h"), Out("y")))}
    shapes = {("params", "w"): (2, 3), ("params", "v"): (3, 2)}
    for fixed, symmetric, message in (
        (("h",), {"h": ""}, "choose one"),
        ((), {"x": ""}, "written by no array"),
        ((), {"z": ""}, "permutable space 'z': not in this wiring"),
    ):
        with pytest.raises(ValueError, match=message):
            build_wiring(labels, shapes, {}, fixed, permutable=symmetric)
    with pytest.raises(ValueError, match="coordinate space 'z': not in this wiring"):
        build_wiring(labels, shapes, {}, coordinates=("z",))
    wiring = build_wiring(labels, shapes, {}, coordinates=("h",))
    assert (wiring.cloneable, wiring.cloned_by_default, clone_factors(wiring, 2)) == (("h",), (), {})


def test_equal_units_of_a_permutable_space_are_trapped(x64):
    model = from_linen(Attention(), (3, 4))
    check_wiring(model, BATCH)
    variables = shaken(model)
    equal = {"params": equal_units(variables["params"])}
    for state, is_trapped in ((equal, True), (variables, False)):
        gradient = jax.jit(jax.grad(cross_entropy(model, state, BATCH)))(state["params"])
        residual = float(tangency_residual(cloned_manifold(state["params"], model.wiring, PAIRS), gradient))
        assert residual < 1e-14 if is_trapped else residual > 1e-3
        verdict = certify_cloned(model, state, BATCH, PAIRS).verdict
        assert verdict is (CloneVerdict.BLOCK_CONSTANT if is_trapped else CloneVerdict.NOT_CLONED)
    assert set(find_clones(model, equal, BATCH[0])) == {"v"}


def test_cloning_refuses_them_with_the_reason(x64):
    model = from_linen(Attention(), (3, 4))
    variables = shaken(model)
    assert clone_factors(model.wiring, 2) == {"v": 2}
    assert clone_variables(variables, model.wiring, 2)["params"]["query"].shape == (4, 3)
    params = equal_units(variables["params"])
    for refused in (
        lambda: clone_factors(model.wiring, {"qk": 2}),
        lambda: cloned_manifold(params, model.wiring, PAIRS, space="V"),
        lambda: collapse({"params": params}, model.wiring, PAIRS),
        lambda: unit_blocks_of_clones(model, {"params": params}, BATCH, PAIRS),
    ):
        with pytest.raises(ValueError, match=rf"'qk'.* is permutable, not cloneable \({REASON}\)"):
            refused()
