"""Concatenated, fused and flattened arrays: seen as pieces with pure axes, through every tool of the library."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.nn.initializers import normal

from lopjax.certificates import CloneVerdict, certify_cloned
from lopjax.cloning import clone_variables, collapse, find_clones, uniform_partition, widen
from lopjax.losses import cross_entropy
from lopjax.manifolds import cloned_manifold, normal_basis, tangency_residual
from lopjax.models import check_wiring, from_linen, labelled, mlp, tap
from lopjax.optim import on_own_arrays
from lopjax.stability import unit_blocks
from lopjax.wiring import IDENTITY, In, Label, Out, make_view, unit_masks
from lopjax.wiring.labels import CompoundLabel

RANDOM = np.random.default_rng(0)
SHAPES = {"dense net": (4,), "wide and deep": (4,), "gated unit": (4,), "fused attention": (3, 4)}
SIZES = {
    "dense net": (("a", 2), ("b", 3), ("y", 2)),
    "wide and deep": (("a", 2), ("b", 3), ("y", 2)),
    "gated unit": (("h", 3), ("y", 2)),
    "fused attention": (("heads", 2), ("y", 2)),
}


class Net(nn.Module):
    """Four architectures with arrays that have several spaces on one axis."""

    kind: str
    sizes: tuple[tuple[str, int], ...]

    def layer(self, name, x, reads, writes, size, **label):
        kernel = self.param(
            f"{name}_w", labelled(normal(0.8), reads, writes, scales=False, **label), (x.shape[-1], size)
        )
        shift_label = {key: value for key, value in label.items() if key == "site"}
        shift = self.param(f"{name}_b", labelled(normal(0.8), writes, scales=False, **shift_label), (size,))
        return x @ kernel + shift

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        size = dict(self.sizes)
        x_axis, y = In("x"), Out("y")
        if self.kind == "dense net":
            a = tap(self, "a", "a", "tanh", self.layer("a", x, x_axis, Out("a"), size["a"], site="a", source="x"))
            both = jnp.concatenate([x, a], -1)
            b = tap(self, "b", "b", "sin", self.layer("b", both, x_axis + In("a"), Out("b"), size["b"], site="b"))
            return self.layer("y", jnp.concatenate([both, b], -1), x_axis + In("a") + In("b"), y, size["y"], site="y")
        if self.kind == "wide and deep":
            a = tap(self, "a", "a", "tanh", self.layer("a", x, x_axis, Out("a"), size["a"], site="a", source="x"))
            b = tap(self, "b", "b", "tanh", self.layer("b", a, In("a"), Out("b"), size["b"], site="b", source="a"))
            return self.layer("y", jnp.concatenate([b, x], -1), In("b") + x_axis, y, size["y"], site="y")
        if self.kind == "gated unit":
            both = self.fused("h", x, Out("h") + Out("h"), 2 * size["h"], site="h")
            gate, value = jnp.split(both, 2, -1)
            h = tap(self, "h", "h", "identity", jax.nn.silu(gate) * value)
            return self.layer("y", h, In("h"), y, size["y"], site="y", source="h")
        heads, width = size["heads"], 2
        written = Out("heads") * width
        fused = self.fused("qkv", x, written + written + written, 3 * heads * width, site="heads")
        query, key, value = (each.reshape(*x.shape[:2], heads, width) for each in jnp.split(fused, 3, -1))
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key))
        outputs = tap(self, "heads", "heads", "identity", jnp.einsum("bhqk,bkhd->bqdh", weights, value))
        flat = jnp.moveaxis(outputs, -1, -2).reshape(*x.shape[:2], heads * width)
        return self.layer("y", flat, In("heads") * width, y, size["y"], site="y").mean(1)

    def fused(self, name, x, writes, size, site):
        """Kernel and bias that do not say whether they are added: their parts are multiplied."""
        kernel = self.param(f"{name}_w", labelled(normal(0.8), In("x"), writes, site=site), (x.shape[-1], size))
        return x @ kernel + self.param(f"{name}_b", labelled(normal(0.8), writes, site=site), (size,))


def network(kind):
    model = from_linen(Net(kind, SIZES[kind]), SHAPES[kind])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    random = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), shapes)
    inputs = jnp.asarray(random.normal(size=(6, *SHAPES[kind])))
    return model, variables, (inputs, jnp.array([0, 1, 1, 0, 1, 0]))


PIECES = {
    "dense net": {"b_w": {"x": (4, 3), "a": (2, 3)}, "y_w": {"x": (4, 2), "a": (2, 2), "b": (3, 2)}},
    "wide and deep": {"y_w": {"b": (3, 2), "x": (4, 2)}},
    "gated unit": {"h_w": {"h_0": (4, 3), "h_1": (4, 3)}, "h_b": {"h_0": (3,), "h_1": (3,)}},
    "fused attention": {
        "qkv_w": {f"heads_{i}": (4, 2, 2) for i in range(3)},
        "qkv_b": {f"heads_{i}": (2, 2) for i in range(3)},
        "y_w": {"whole": (2, 2, 2)},
    },
}


@pytest.mark.parametrize("kind", PIECES)
def test_pieces_have_pure_axes_and_are_what_the_author_wrote(x64, kind):
    model, variables, (inputs, _) = network(kind)
    params = variables["params"]
    assert {
        key: {name: piece.shape for name, piece in value.items()}
        for key, value in params.items()
        if isinstance(value, dict)
    } == PIECES[kind]
    own = model.view.merge(variables)
    module = Net(kind, SIZES[kind])
    logits = module.apply(own, inputs, train=False, mutable=["taps"])[0]
    np.testing.assert_array_equal(logits, model.apply(variables, inputs).logits)
    jax.tree.map(np.testing.assert_array_equal, model.view.split(own), variables)
    jax.tree.map(np.testing.assert_array_equal, model.view.split(own["params"]), params)
    host = jax.tree.map(np.asarray, params)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(model.view.merge(host)))
    # An isometry: the same numbers, once each.
    numbers = [np.sort(np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)])) for tree in (own, variables)]
    np.testing.assert_array_equal(*numbers)


EVERY_DAY = {"gated unit", "fused attention"}


def test_own_arrays_in_place_of_pieces_are_named_with_the_function_that_cuts_them():
    model, variables, _ = network("gated unit")
    own = model.view.merge(variables)
    partition = {"h": (0, 0, 1)}
    message = r"params/h_b is one array, of which .* \['params/h_b/h_0', 'params/h_b/h_1'\]; pass model\.view\.split"
    for call in (
        lambda tree: clone_variables(tree, model.wiring, {"h": 2}),
        lambda tree: collapse(tree, model.wiring, partition),
        lambda tree: collapse(tree["params"], model.wiring, partition),
    ):
        call(variables)
        with pytest.raises(ValueError, match=message):
            call(own)


@pytest.mark.parametrize("kind", [k if k in EVERY_DAY else pytest.param(k, marks=pytest.mark.slow) for k in PIECES])
def test_labels_are_true_and_clones_are_trapped(x64, kind):
    base, variables, batch = network(kind)
    check_wiring(base, batch)
    factor = {space: 2 + index for index, space in enumerate(base.wiring.cloneable)}
    wide, cloned = widen(base, factor), clone_variables(variables, base.wiring, factor)
    logits, expected = wide.apply(cloned, batch[0]).logits, base.apply(variables, batch[0]).logits
    np.testing.assert_allclose(logits, expected, atol=1e-12)
    partition = uniform_partition(wide.wiring, factor)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-15), collapse(cloned, wide.wiring, partition), variables
    )
    leaf = cloned_manifold(cloned["params"], wide.wiring, partition)
    gradient = jax.jit(jax.grad(cross_entropy(wide, cloned, batch)))
    assert tangency_residual(leaf, gradient(cloned["params"])) < 1e-13
    assert certify_cloned(wide, cloned, batch, partition).verdict is CloneVerdict.BLOCK_CONSTANT
    assert {s: found.parameters for s, found in find_clones(wide, cloned, batch[0]).items()} == partition
    noise = np.random.default_rng(2)
    apart = jax.tree.map(lambda a: a + 0.3 * noise.normal(size=a.shape), cloned)
    assert tangency_residual(leaf, gradient(apart["params"])) > 1e-3


@pytest.mark.slow
def test_blocks_of_a_gated_unit_are_those_of_the_dense_hessian(x64):
    base, variables, batch = network("gated unit")
    found = unit_blocks(base, variables, batch, 2)
    wide, cloned = widen(base, 2), clone_variables(variables, base.wiring, 2)
    leaf = cloned_manifold(cloned["params"], wide.wiring, uniform_partition(wide.wiring, 2))
    flat, unravel = jax.flatten_util.ravel_pytree(cloned["params"])
    loss = cross_entropy(wide, cloned, batch)
    normal_space = np.asarray(normal_basis(leaf))
    dense = np.asarray(jax.jit(jax.hessian(lambda vector: loss(unravel(vector))))(flat))
    values = np.linalg.eigvalsh(normal_space @ dense @ normal_space.T)
    assert found.total.method == "batched hvp"
    assert found.total.min_eigenvalue == pytest.approx(values[0], rel=1e-8)
    assert found.total.max_eigenvalue == pytest.approx(values[-1], rel=1e-8)
    assert values[0] < -1e-3


def normalised():
    """Each array's gradient over its norm: a rule that sees arrays."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda g: g / jnp.linalg.norm(g), updates))


def test_rules_per_array_and_masks_meet_the_authors_arrays(x64):
    model, variables, _ = network("dense net")
    params = variables["params"]
    optimizer = on_own_arrays(normalised(), model.view)
    moves, _ = optimizer.update(params, optimizer.init(params), params)
    own = jax.tree.map(lambda g: g / np.linalg.norm(g), model.view.merge(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), model.view.merge(moves), own)
    pieces, _ = normalised().update(params, ())
    assert not np.allclose(pieces["y_w"]["a"], moves["y_w"]["a"])  # control
    masks = unit_masks(model.wiring, params, {"a": np.array([True, False])})
    np.testing.assert_array_equal(model.view.merge(masks.outgoing)["y_w"][:, 0], np.arange(9) == 4)


def test_a_network_without_compound_axes_is_its_own_view():
    assert mlp((4,), (3,), 2).view is IDENTITY


W = ("params", "w")


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        ((In("z") + In("w"), Out("h")), (5, 3), "have no size"),
        ((In("z") * In("w"), Out("h")), (6, 3), "have no size"),
        ((In("h") + In("x"), None), (4, 3), "labelled .* of length 6"),
        ((In("h") * 2, None), (7, 3), "labelled .* of length 6"),
        ((In("h") + 1,), (4, 3), "1 axis labels for an array of shape"),
    ],
)
def test_parts_whose_sizes_do_not_fit(axes, shape, message):
    labels = {("params", "u"): Label((In("x"), Out("h"))), W: CompoundLabel(axes)}
    with pytest.raises(ValueError, match=message):
        make_view(labels, {("params", "u"): (3, 3), W: shape})


def test_offsets_and_sums_of_products():
    label = CompoundLabel((1 + Out("h") * 2 + 3, None))
    labels = {("params", "u"): Label((In("x"), Out("h"))), W: label}
    view, pure, shapes = make_view(labels, {("params", "u"): (3, 2), W: (8, 5)})
    expected = {"u": (3, 2), "rest_0": (1, 5), "h": (2, 2, 5), "rest_1": (3, 5)}
    assert {path[-1]: shape for path, shape in shapes.items()} == expected
    assert pure[*W, "h"] == Label((Out("h"), None, None))
    array = np.arange(40).reshape(8, 5)
    split = view.split({"w": array, "u": array})
    np.testing.assert_array_equal(split["w"]["h"], array[1:5].reshape(2, 2, 5))
    np.testing.assert_array_equal(view.merge(split)["w"], array)
    assert split["u"] is array
    with pytest.raises(ValueError, match="cannot be a factor"):
        (In("a") + In("b")) * 2  # pyright: ignore[reportOperatorIssue]
