"""Labels decide, not positions: sites and sources that contradict the axes, order, upstream, kernel layouts."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn.initializers import normal

from lopjax.certificates import FrozenVerdict, certify_frozen
from lopjax.manifolds import homogeneous_conserved
from lopjax.models import convolve, from_linen, labelled, tap, vit
from lopjax.stability import unit_blocks
from lopjax.stability.blocks.plain_spaces import PlainSpace, plain_space
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
    inputs = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 4)))
    variables = jax.tree.map(jnp.abs, model.init(jax.random.key(0)))
    variables["params"]["again"]["c_w"] = -variables["params"]["again"]["c_w"]
    (unit,) = certify_frozen(model, variables, (inputs, jnp.zeros(5, int)), {"c": [0]}).units
    assert unit.verdict is FrozenVerdict.FROZEN
    assert unit.depends_on == ("a", "b", "norm and sum before it")


class AnyLayout(nn.Module):
    """A convolution, then two dense layers, with kernels in a layout of the test's choice."""

    order: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[str, int], ...] = (("maps", 2), ("dense", 3), ("y", 2))

    def kernel(self, index, axes, shape, **label):
        order = self.order[index]
        init = labelled(normal(0.7), *(axes[i] for i in order), **label)
        value = self.param(f"kernel_{index}", init, tuple(shape[i] for i in order))
        return jnp.transpose(value, np.argsort(order))

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        maps, dense, classes = (size for _, size in self.sizes)
        window = Window((1, 1), ((1, 1), (1, 1)))
        axes = (None, None, In("image"), Out("maps"))
        kernel = self.kernel(0, axes, (3, 3, 1, maps), site="maps", source="image", window=window)
        x = tap(self, "maps", "maps", "tanh", convolve(x, kernel, window))
        axes = (None, None, In("maps"), Out("dense"))
        x = jnp.tensordot(x, self.kernel(1, axes, (2, 2, maps, dense), site="dense", source="maps"), 3)
        bias = self.param("bias", labelled(normal(0.5), Out("dense"), site="dense", scales=False), (dense,))
        x = tap(self, "dense", "dense", "relu", x + bias[None])
        return x @ self.kernel(2, (In("dense"), Out("y")), (dense, classes), site="y", source="dense")


ORDERS = (((0, 1, 2, 3), (0, 1, 2, 3), (0, 1)), ((3, 2, 0, 1), (3, 0, 2, 1), (1, 0)))
INPUTS = np.random.default_rng(0).normal(size=(4, 2, 2, 1))


def in_both_layouts():
    """The same network with Flax's kernels, and with (out, in) as in Equinox and PyTorch, offsets behind."""
    flax = dict(from_linen(AnyLayout(ORDERS[0]), (2, 2, 1)).init(jax.random.key(0))["params"])
    flax["bias"] = flax["bias"].at[0].add(-9.0)
    for order in ORDERS:
        model = from_linen(AnyLayout(order), (2, 2, 1))
        kernels = {f"kernel_{i}": jnp.transpose(flax[f"kernel_{i}"], order[i]) for i in range(3)}
        for path, label in model.wiring.labels:
            if label.reads():
                np.testing.assert_array_equal(standard_layout(label, kernels[path[1]]), flax[path[1]])
        yield model, {"params": {"bias": flax["bias"], **kernels}}


def test_kernels_of_any_layout_are_plain_and_have_the_radius(x64):
    inputs, units = jnp.asarray(INPUTS), []
    for model, variables in in_both_layouts():
        assert all(isinstance(plain_space(model.wiring, space), PlainSpace) for space in ("maps", "dense"))
        batch, box = (inputs, jnp.array([0, 1, 1, 0])), (inputs[0] - 0.1, inputs[0] + 0.1)
        units.append(certify_frozen(model, variables, batch, {"dense": [0]}, input_box=box).units[0])
    assert units[0].verdict is FrozenVerdict.FROZEN_EVERYWHERE
    for field in ("largest", "radius", "source_radius", "box_upper", "time_scale"):
        assert getattr(units[0], field) is not None, field
        assert getattr(units[0], field) == pytest.approx(getattr(units[1], field), rel=1e-12)


@pytest.mark.slow
def test_kernels_of_any_layout_have_the_closed_form(x64):
    """The numbers of Flax's layout, which other tests hold against dense Hessians."""
    batch = (jnp.asarray(INPUTS), jnp.array([0, 1, 1, 0]))
    flax, other = (unit_blocks(*network, batch, 2, method="closed form").spaces for network in in_both_layouts())
    for space in ("maps", "dense"):
        first, second = flax[space], other[space]
        np.testing.assert_allclose(first.eigenvalues, second.eigenvalues, atol=1e-14)
        np.testing.assert_allclose(first.per_unit("scale"), second.per_unit("scale"), rtol=1e-12)
        assert first.per_unit("verdict").tolist() == second.per_unit("verdict").tolist()
    assert np.ptp(flax["maps"].eigenvalues) > 1e-3


def conserving(*labels, sites=SITES):
    arrays = {("params", str(index)): label for index, label in enumerate(labels)} | {HEAD: LABELS[HEAD]}
    shapes = {
        path: tuple({"x": 4, "h": 3, "y": 3}[axis.space] for axis in label.axes) for path, label in arrays.items()
    }
    return build_wiring(arrays, shapes, sites)


def test_a_scale_is_told_from_a_bias_by_its_label_and_not_by_the_number_of_arrays():
    kernel, bias = LABELS[W], LABELS[B]
    scale, unsaid = (Label((Out("h"),), site="h", scales=scales) for scales in (True, None))
    added = replace(kernel, scales=False)
    for good in ([kernel], [added], [added, bias], [added, bias, bias], [added, added, bias]):
        homogeneous_conserved(conserving(*good), ["h"])
    refused = (
        ([added, scale], "a norm, a sum"),
        ([added, unsaid], r"\['params/1'\] are not labelled as"),
        ([kernel, kernel], r"\['params/0', 'params/1'\] are not labelled as"),
        ([bias], "a norm, a sum"),
    )
    # Queries and keys are multiplied: before labels said so, the law was claimed for heads, too, where it is false.
    with pytest.raises(ValueError, match=r"'heads_0'.* are not labelled as"):
        homogeneous_conserved(vit((4, 4, 1), 2, patch=2, width=4, depth=1, heads=2).wiring, ["heads_0"])
    for bad, message in refused:
        with pytest.raises(ValueError, match=message):
            homogeneous_conserved(conserving(*bad), ["h"])
