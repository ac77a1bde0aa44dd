"""Labels decide, not positions: sites and sources that contradict the axes, order, upstream, kernel layouts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn.initializers import normal

from lopjax.certificates import FrozenVerdict, certify_frozen
from lopjax.models import convolve, from_linen, labelled, tap
from lopjax.wiring import In, Label, Out, Site, Window, build_wiring, standard_layout

W, B, HEAD = ("params", "w"), ("params", "b"), ("params", "head")
LABELS = {
    W: Label((In("x"), Out("h")), site="h", source="x"),
    B: Label((Out("h"),), site="h", scales=False),
    HEAD: Label((In("h"), Out("y")), site="y", source="h"),
}
SHAPES = {W: (4, 3), B: (3,), HEAD: (3, 3)}
SITES = {"h": Site("h", "relu")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": {"h": Site("x", "relu")}}, r"site 'h' is on the space 'x', which no array writes"),
        ({"sites": {"h": Site("y", "relu")}}, r"w: site 'h' is on the space 'y', which this array does not write"),
        ({"labels": LABELS | {B: Label((Out("h"),), site="y")}}, r"b: site 'y' .* does not write; it writes \['h'\]"),
        ({"labels": LABELS | {W: Label((In("x"), Out("h")), "h", "h")}}, r"w: source 'h' .* does not read"),
        ({"labels": LABELS | {HEAD: Label((In("h"), Out("y")), "y", "x")}}, r"head: source 'x' .* does not read"),
        # A space that is written, but not where a site says so, is no source: nobody sees its activations.
        (
            {"labels": {W: Label((In("x"), Out("g"))), HEAD: Label((In("g"), Out("y")), "y", "g")}, "sites": {}},
            "unknown source 'g'",
        ),
        ({"coupled": ("z",)}, r"coupled space 'z': not in this wiring"),
    ],
)
def test_labels_that_contradict_their_axes(unchecked, change, message):
    arguments = {"labels": LABELS, "shapes": SHAPES, "sites": SITES} | change
    arguments["shapes"] = {path: SHAPES[path] for path in arguments["labels"]}
    with pytest.raises(ValueError, match=message):
        build_wiring(**arguments)
    build_wiring(LABELS, SHAPES, SITES)


class Again(nn.Module):
    """Taps one site each time it is called."""

    @nn.compact
    def __call__(self, x, site, units):
        kernel = self.param(f"{site}_w", labelled(normal(0.5), In(x[0]), Out(site), site=site), (x[1].shape[-1], units))
        return site, tap(self, site, site, "relu", x[1] @ kernel)


class CalledTwice(nn.Module):
    """x -> a -> b -> c -> y, where a and c are made by one submodule and b by the parent; d hangs on x alone."""

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        again = Again(name="again")
        a = again(("x", x), "a", 3)
        kernel = self.param("b_w", labelled(normal(0.5), In("a"), Out("b"), site="b"), (3, 3))
        b = tap(self, "b", "b", "relu", a[1] @ kernel)
        d = Again(name="other")(("x", x), "d", 2)
        c = again(("b", b), "c", 3)
        heads = [
            self.param(f"{name}_head", labelled(normal(0.5), In(name), Out("y")), (values.shape[-1], 2))
            for name, values in (c, d)
        ]
        return c[1] @ heads[0] + d[1] @ heads[1]


def test_sites_come_in_the_order_of_the_forward_pass_and_upstream_follows_the_graph(x64):
    """In Flax's dict of the submodule, a and c stand together: c would be taken to come before b."""
    model = from_linen(CalledTwice(), (4,))
    assert [name for name, _ in model.wiring.sites] == ["a", "b", "d", "c"]
    assert [model.wiring.upstream(site) for site in "abcd"] == [(), ("a",), ("a", "b"), ()]
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)))
    variables = model.init(jax.random.key(0))
    variables["params"]["again"]["c_w"] = -jnp.abs(variables["params"]["again"]["c_w"])
    (unit,) = certify_frozen(model, variables, {"c": [0]}, (inputs, jnp.zeros(5, int))).units
    assert unit.verdict is FrozenVerdict.FROZEN
    assert unit.depends_on == ("a", "b", "norm and sum before it")


class AnyLayout(nn.Module):
    """A convolution, then two dense layers, with kernels in a layout of the test's choice."""

    order: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    def kernel(self, index, axes, shape, **label):
        order = self.order[index]
        init = labelled(normal(0.7), *(axes[i] for i in order), **label)
        value = self.param(f"kernel_{index}", init, tuple(shape[i] for i in order))
        return jnp.transpose(value, np.argsort(order))

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        window = Window((1, 1), ((1, 1), (1, 1)))
        axes = (None, None, In("image"), Out("maps"))
        kernel = self.kernel(0, axes, (3, 3, 1, 2), site="maps", source="image", window=window)
        maps = tap(self, "maps", "maps", "tanh", convolve(x, kernel, window))
        axes = (None, None, In("maps"), Out("dense"))
        dense = jnp.tensordot(maps, self.kernel(1, axes, (2, 2, 2, 3), site="dense", source="maps"), 3)
        bias = self.param("bias", labelled(normal(0.5), Out("dense"), site="dense", scales=False), (3,))
        dense = tap(self, "dense", "dense", "relu", dense + bias[None])
        return dense @ self.kernel(2, (In("dense"), Out("y")), (3, 2), site="y", source="dense")


def test_kernels_of_any_layout_have_the_closed_form_and_the_radius(x64):
    """(out, in) as in Equinox and PyTorch, and offsets behind: the same numbers as in Flax's layout."""
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 1)))
    batch, found = (inputs, jnp.array([0, 1, 1, 0])), []
    orders = [((0, 1, 2, 3), (0, 1, 2, 3), (0, 1)), ((3, 2, 0, 1), (3, 2, 0, 1), (1, 0))]
    flax = from_linen(AnyLayout(orders[0]), (2, 2, 1)).init(jax.random.key(0))["params"]
    flax["bias"] = flax["bias"].at[0].add(-9.0)
    for order in orders:
        # Two layouts have two networks: the cloned one cannot be resized, so the base is cloned by hand.
        model = from_linen(AnyLayout(order), (2, 2, 1))
        model = model._replace(resize=lambda sizes, order=order: from_linen(AnyLayout(order), (2, 2, 1)))
        params = {
            "bias": flax["bias"],
            **{f"kernel_{i}": jnp.transpose(flax[f"kernel_{i}"], order[i]) for i in range(3)},
        }
        (unit,) = certify_frozen(
            model, {"params": params}, {"dense": [0]}, batch, input_box=(inputs[0] - 9, inputs[0] + 9)
        ).units
        plain = {
            path[-1]: standard_layout(label, params[path[-1]]) for path, label in model.wiring.labels if label.reads()
        }
        jax.tree.map(np.testing.assert_array_equal, plain, {key: flax[key] for key in plain})
        found.append((model, params, unit))
    first, second = (unit for _, _, unit in found)
    assert first.radius is not None
    assert first.radius > 0
    assert first._replace(arrays=()) == pytest.approx(second._replace(arrays=()))
