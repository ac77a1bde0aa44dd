"""Wrong labels are named, by `check_wiring` and before any verdict; the true ones pass."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn.initializers import normal, zeros
from oracles.architectures import ARCHITECTURES, batch_of, build

from lopjax.certificates import CloneVerdict, FrozenVerdict, certify_cloned, certify_frozen
from lopjax.cloning import find_clones
from lopjax.models import check, check_labels, check_wiring, claims, couple, from_linen, labelled, mlp, tap
from lopjax.stability import unit_blocks
from lopjax.wiring import In, Out, Wiring

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
BATCH = (INPUTS, jnp.array([0, 1, 1, 0, 1, 0]))


class Net(nn.Module):
    """x -> a -> b -> y, told truly or with one lie. Biases start at zero, where a forgotten axis does not show."""

    lie: str = ""
    sizes: tuple[tuple[str, int], ...] = (("a", 3), ("b", 3), ("y", 2))

    def array(self, name, shape, *axes, init=None, **label):
        return self.param(name, labelled(init or normal(0.7), *axes, **label), shape)

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        (_, a), (_, b), (_, y) = self.sizes
        lie = self.lie
        source = None if lie == "forgotten site" else "x"
        kernel = self.array("w_a", (4, a), In("x"), Out("a"), site="a", source=source, scales=False)
        axes = (None,) if lie == "forgotten axis" else (Out("a"),)
        site = None if lie in ("forgotten axis", "forgotten site", "bias without its site") else "a"
        bias = self.array("b_a", (a,), *axes, init=zeros, site=site, scales=False)
        first = tap(self, "a", "b" if lie == "site on another space" else "a", "relu", x @ kernel + bias[None])
        plain = lie not in ("Out for In", "mean", "coupled", "gain", "gain, told", "site on another space")
        axes = (Out("a") if lie == "Out for In" else In("a"), In("b") if lie == "In for Out" else Out("b"))
        axes = axes if lie != "wrong way round" else (Out("a"), In("b"))
        site = None if lie in ("In for Out", "wrong way round") else "b"
        kernel = self.array("w_b", (a, b), *axes, site=site, source="a" if plain and site else None, scales=False)
        hidden = first * 2 if lie == "doubled source" else first
        hidden = hidden - hidden.mean(-1, keepdims=True) if lie in ("mean", "coupled") else hidden
        if lie == "coupled":
            couple(self, "a")
        hidden = hidden @ kernel
        if lie == "wrong way round":  # another array writes the space, so that it is not taken for an input
            hidden = hidden + self.array("b_b", (b,), Out("b"), init=zeros, site="b")[None]
        if lie in ("gain", "gain, told"):
            gain = self.array("gain", (b,), Out("b"), site="b", scales=lie == "gain, told")
            hidden = hidden * gain[None]
        second = tap(self, "b", "b", "tanh", hidden)
        if lie == "past its site":
            second = second + hidden
        if lie == "read twice":
            second = second + first.sum(-1, keepdims=True)
        width = b + 1 if lie == "resized otherwise" and b > 3 else b
        source = None if lie in ("past its site", "Out for In") else "b"
        logits = second @ self.array("w_y", (width, y), In("b"), Out("y"), site="y", source=source)[:b]
        if lie == "Out for In":
            logits = logits + first @ self.array("skip", (a, y), In("a"), Out("y"), site="y")
        return logits


FOUND = {
    "forgotten axis": r"params/b_a: axis 0 is labelled None, but it indexes the units of 'a'",
    "forgotten site": r"params/b_a: names no site, but all of its effects pass 'a': site='a'",
    "Out for In": r"params/w_b: axis 0 is labelled Out\('a'\), but it reads the space: In\('a'\)",
    "wrong way round": r"params/w_b: axis 1 is labelled In\('b'\), but it writes the space: Out\('b'\)$",
    "bias without its site": r"params/b_a: it is the bias of the pre-activation of 'a', .* no site: site='a'$",
    "doubled source": r"params/w_b: its product with source 'a', with a bias, is not the pre-activation of 'b'",
    "mean": r"unit space 'a': a unit that no labelled array reads still acts on the others",
    "gain": r"params/(gain|w_b): .*",
    "past its site": r"params/w_b: labelled with site 'b', but it acts past it",
    "read twice": r"unit space 'a': a unit that no labelled array reads still acts on the others",
    "resized otherwise": r"resize: unit space 'b' has 9 units in .* but 10 in params/w_y",
}


@pytest.mark.parametrize("lie", FOUND)
def test_each_wrong_label_is_named(lie):
    with pytest.raises(ValueError, match="the labels of this network are wrong:(.|\n)*" + FOUND[lie]):
        check_wiring(from_linen(Net(lie), (4,)), BATCH)


@pytest.mark.parametrize("told", ["", "coupled", "gain, told"])
def test_true_labels_pass(told):
    check_wiring(from_linen(Net(told), (4,)), BATCH)


NORMS = {"mlp": ("none", "batch", "layer"), "cnn": ("layer",), "resnet": ("layer",), "vit": ("batch",)}
OWN = [(name, norm) for name in ARCHITECTURES for norm in NORMS.get(name, ("layer",))]


@pytest.mark.parametrize(
    ("name", "norm"), [pytest.param(*own, marks=() if own[0] == "mlp" else pytest.mark.slow) for own in OWN]
)
def test_the_librarys_own_labels_are_true(name, norm):
    """With those of `check_sources`, every norm of every architecture: no verdict asks about these again."""
    model = build(name, norm=norm)
    check_wiring(model, batch_of(name))


def mislabelled(model, space):
    """A model that forgets one axis of a hidden space: in the last array that writes it."""
    path, axis = model.wiring.incoming(space)[-1]
    labels = dict(model.wiring.labels)
    axes = tuple(None if index == axis else each for index, each in enumerate(labels[path].axes))
    labels[path] = replace(labels[path], axes=axes)
    return model._replace(wiring=replace(model.wiring, labels=tuple(labels.items())))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_wrong_label_of_the_librarys_own_networks_is_seen(name, monkeypatch):
    """One forward program serves the true labels, which are the control, and all the wrong ones."""
    model, batch = build(name), batch_of(name)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    probe = check._probe(model, check._described(variables, batch[0]))
    assert probe is not None
    assert claims.symmetry_faults(probe) == []
    monkeypatch.setattr(check, "_probe", lambda model, description: probe._replace(wiring=model.wiring))
    spaces = [space for space in model.wiring.permutable if model.wiring.incoming(space)]
    assert spaces
    for space in spaces:
        with pytest.raises(ValueError, match=f"the labels of this network are wrong:(.|\n)*{space}"):
            check_wiring(mislabelled(model, space), batch, variables)


class Fused(nn.Module):
    """x -> gate and value in one array, which are multiplied; the value passes a site that only its truth names."""

    is_told: bool

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        label = labelled(normal(0.7), In("x"), Out("g") + Out("v"), site={"v": "v"} if self.is_told else None)
        gate, value = jnp.split(x @ self.param("both", label, (4, 6)), 2, -1)
        value = tap(self, "v", "v", "tanh", value)
        out = lambda name, space: self.param(name, labelled(normal(0.7), In(space), Out("y")), (3, 2))  # noqa: E731
        return jnp.sin(gate) @ out("of_gate", "g") + value @ out("of_value", "v")


def test_the_site_of_a_piece_is_named_in_the_label_of_the_whole():
    check_wiring(from_linen(Fused(True), (4,)), BATCH)
    with pytest.raises(ValueError, match=r"both/v: names no site, .* pass 'v': site=\{'v': 'v'\} for params/both$"):
        check_wiring(from_linen(Fused(False), (4,)), BATCH)


class OfSixteen(nn.Module):
    """A network that takes sixteen samples only, when it is initialised or applied; or any number."""

    is_known_to: str = ""

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        rows = 16 if self.is_known_to == ("init" if self.is_initializing() else "apply") else -1
        return x.reshape(rows, 4) @ self.param("w", labelled(normal(1.0), In("x"), Out("y")), (4, 2))


def test_a_network_of_one_number_of_samples_is_told_so():
    inputs = jnp.ones((16, 2, 2))
    check_wiring(from_linen(OfSixteen(), (2, 2)), (inputs, None))
    message = r"the network does not take 8 samples, inputs float\d+\[8, 2, 2\] \(.*must take any number of samples"
    with pytest.raises(ValueError, match=message):
        check_wiring(from_linen(OfSixteen("apply"), (2, 2)), (inputs, None))
    message = r"does not take one input of shape \(2, 2\), as an array of shape \(1, 2, 2\) \(.*any number of"
    with pytest.raises(ValueError, match=message):
        from_linen(OfSixteen("init"), (2, 2))


def test_sites_on_another_space_do_not_get_as_far():
    with pytest.raises(ValueError, match=r"site 'a' is on the space 'b', which this array does not write"):
        from_linen(Net("site on another space"), (4,))
    with pytest.raises(ValueError, match=r"site 'b' is on the space 'b', which no array writes"):
        from_linen(Net("In for Out"), (4,))


def test_a_wrong_order_of_sites_shows_in_what_depends_on_what():
    model = from_linen(Net(), (4,))
    wiring = model.wiring
    backwards = Wiring(wiring.labels, wiring.sizes, wiring.sites[::-1], wiring.fixed)
    with pytest.raises(ValueError, match=r"site 'b' depends on site 'a', which is not upstream by the labels"):
        check_wiring(model._replace(wiring=backwards), BATCH)


VERDICTS = {
    "unit_blocks": lambda model, variables: unit_blocks(model, variables, BATCH, 2),
    "certify_frozen": lambda model, variables: certify_frozen(model, variables, BATCH, {"b": [0]}),
    "certify_frozen by signs": lambda model, variables: certify_frozen(model, variables, None, {"b": [0]}),
    "certify_cloned": lambda model, variables: certify_cloned(model, variables, None, {"a": (0, 0, 1)}),
    "find_clones": lambda model, variables: find_clones(model, variables, INPUTS),
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_no_verdict_about_a_network_with_wrong_labels(verdict):
    """Also of an architecture of the library's own whose forward pass has been replaced."""
    model = from_linen(Net("doubled source"), (4,))
    with pytest.raises(ValueError, match="is not the pre-activation of 'b'"):
        VERDICTS[verdict](model, model.init(jax.random.key(0)))
    own = mlp((4,), (3, 3), 2)

    def doubled(variables, x, **options):
        output = own.apply(variables, x, **options)
        return output._replace(logits=output.logits + output.taps["hidden_0"].post[:, :1])

    other = own._replace(apply=doubled)
    with pytest.raises(ValueError, match=r"unit space 'hidden_0': exchanging its units"):
        check_labels(other, own.init(jax.random.key(0)), INPUTS)


def test_honest_networks_get_their_verdicts():
    model = from_linen(Net(), (4,))
    variables = model.init(jax.random.key(0))
    assert VERDICTS["certify_frozen by signs"](model, variables).units[0].verdict is FrozenVerdict.UNDECIDED
    assert VERDICTS["certify_cloned"](model, variables).verdict is CloneVerdict.NOT_CLONED
