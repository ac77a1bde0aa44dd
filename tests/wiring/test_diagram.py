"""The wiring: what it refuses, what it answers, and that it is read from a user's own module."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.nn.initializers import normal, ones

from lopjax.cloning import clone_variables
from lopjax.models import from_linen, labelled, mlp, tap
from lopjax.wiring import In, Label, Out, Site, Wiring, build_wiring, multiplicity, tree_paths

KERNEL, BIAS, HEAD = ("params", "layer", "kernel"), ("params", "layer", "bias"), ("params", "head", "kernel")
LABELS = {
    KERNEL: Label((None, In("input"), Out("hidden")), site="hidden", source="input"),
    BIAS: Label((Out("hidden"),), site="hidden"),
    HEAD: Label((In("hidden"), Out("classes")), site="classes", source="hidden"),
}
SHAPES = {KERNEL: (7, 4, 5), BIAS: (5,), HEAD: (5, 2)}
SITES = {"hidden": Site("hidden", "relu")}
WIRING = build_wiring(LABELS, SHAPES, SITES)
PARAMS = {
    "layer": {"kernel": jnp.ones((7, 4, 5)), "bias": jnp.zeros(5)},
    "head": {"kernel": jnp.ones((5, 2))},
}


def test_queries():
    assert WIRING.sizes == (("input", 4), ("hidden", 5), ("classes", 2))
    assert WIRING.spaces == ("input", "hidden", "classes")
    assert WIRING.cloneable == ("hidden",)
    assert WIRING.fixed == {"input", "classes"}
    assert WIRING.incoming("hidden") == ((KERNEL, 2), (BIAS, 0))
    assert WIRING.outgoing("hidden") == ((HEAD, 0),)
    assert WIRING.outgoing("classes") == WIRING.incoming("input") == ()
    assert WIRING.sites_of("hidden") == ("hidden",)
    assert WIRING.sites_of("input") == ()
    assert WIRING.site("hidden") == Site("hidden", "relu")
    assert LABELS[KERNEL].reads() == ("input",)
    assert LABELS[KERNEL].writes() == ("hidden",)
    assert multiplicity(LABELS[HEAD], {"hidden": 3, "classes": 2, "elsewhere": 7}) == (3, 2)
    assert multiplicity(Label((In("a"), In("b"), None, Out("a"))), {"a": 2, "b": 5}) == (10, 2)


REFUSED = {
    "arrays without a label": (
        {"labels": LABELS | {KERNEL: None, HEAD: None}},
        r"arrays without axis labels: \['params/layer/kernel', 'params/head/kernel'\]; create each with",
    ),
    "arrays nobody mentioned": (
        {"labels": {KERNEL: LABELS[KERNEL], HEAD: LABELS[HEAD]}},
        r"arrays without axis labels: \['params/layer/bias'\]",
    ),
    "labels without an array": (
        {"labels": LABELS | {("params", "gone"): Label(())}},
        r"labels of arrays that do not exist: \['params/gone'\]",
    ),
    "number of axes": (
        {"shapes": SHAPES | {BIAS: (5, 1)}},
        r"params/layer/bias: 1 axis labels for an array of shape \(5, 1\)",
    ),
    "two sizes": (
        {"shapes": SHAPES | {HEAD: (6, 2)}},
        r"unit space 'hidden' has 5 units in params/layer/kernel but 6 in params/head/kernel",
    ),
    "site of an unknown space": (
        {"sites": {"hidden": Site("hiden", "relu")}},
        r"site 'hidden' writes the unknown space 'hiden'; spaces are \['input', 'hidden', 'classes'\]",
    ),
    "unknown site": (
        {"labels": LABELS | {BIAS: Label((Out("hidden"),), site="nowhere")}},
        r"params/layer/bias: unknown site 'nowhere'; sites are \['hidden'\]",
    ),
    "unknown source": (
        {"labels": LABELS | {HEAD: Label((In("hidden"), Out("classes")), source="nowhere")}},
        r"params/head/kernel: unknown source 'nowhere'; sites are \['hidden'\]",
    ),
    "unknown fixed space": (
        {"fixed": ("tokens",)},
        r"fixed space 'tokens': not in this wiring; its spaces are \['input', 'hidden', 'classes'\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_wirings_are_refused(unchecked, case):
    change, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build_wiring(**({"labels": LABELS, "shapes": SHAPES, "sites": SITES} | change))


def test_an_axis_without_a_role_is_refused(unchecked):
    labels = LABELS | {BIAS: Label(("hidden",))}  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ValueError, match=r"params/layer/bias: axis label 'hidden': must be In\(space\), Out\(space\) or "
    ):
        build_wiring(labels, SHAPES, SITES)


def test_unknown_names_list_the_known_ones():
    for query in (WIRING.size, WIRING.sites_of):
        with pytest.raises(ValueError, match=r"unit space 'hiden': not in this wiring; its spaces are \['input', "):
            query("hiden")
    with pytest.raises(ValueError, match=r"site 'hiden': not in this wiring; its sites are \['hidden'\]"):
        WIRING.site("hiden")


def test_more_spaces_can_be_fixed():
    assert build_wiring(LABELS, SHAPES, SITES, fixed=("hidden",)).cloneable == ()


def test_outputs_come_last_even_when_a_space_is_not_tapped():
    labels = {("params", "a"): Label((In("x"), Out("a_logits"))), ("params", "b"): Label((In("in"), Out("x")))}
    wiring = build_wiring(labels, {("params", "a"): (3, 2), ("params", "b"): (4, 3)}, {})
    assert wiring.spaces == ("in", "x", "a_logits")


def test_hashable_equal_and_static_under_jit():
    again = build_wiring(dict(LABELS), dict(SHAPES), dict(SITES))
    assert again == WIRING
    assert hash(again) == hash(WIRING)
    assert again is not WIRING
    other = build_wiring(LABELS, SHAPES, SITES, fixed=("hidden",))
    assert other != WIRING
    assert len({WIRING, again, other}) == 2
    traces = []

    @partial(jax.jit, static_argnums=0)
    def count_cloned(wiring: Wiring, x: jax.Array) -> jax.Array:
        traces.append(wiring)
        return x * len(wiring.cloneable)

    assert [float(count_cloned(wiring, jnp.ones(()))) for wiring in (WIRING, again, other)] == [1.0, 1.0, 0.0]
    assert len(traces) == 2  # equal wirings share a program


def test_map_pairs_every_array_with_its_own_label():
    numbered = jax.tree.unflatten(jax.tree.structure(PARAMS), list(range(3)))
    pairs = []
    mapped = WIRING.map(lambda label, array, number: pairs.append((label, array.shape, number)), PARAMS, numbered)
    assert pairs == [(LABELS[p], SHAPES[p], n) for n, p in enumerate([HEAD, BIAS, KERNEL])]  # jax.tree sorts keys
    assert jax.tree.leaves(mapped) == []
    assert tree_paths(PARAMS) == [p[1:] for p in (HEAD, BIAS, KERNEL)]
    assert WIRING.labels_of(PARAMS) == WIRING.labels_of({"params": PARAMS}) == [LABELS[p] for p in (HEAD, BIAS, KERNEL)]


def test_a_tree_of_another_network_lists_what_is_missing_and_unexpected():
    renamed = {"layer": {"kernel": PARAMS["layer"]["kernel"], "scale": jnp.ones(5)}, "extra": jnp.ones(1)}
    message = (
        r"without a label \['params/extra', 'params/layer/scale'\], "
        r"missing \['params/layer/bias', 'params/head/kernel'\]"
    )
    for tree in (renamed, {"params": renamed}):
        with pytest.raises(ValueError, match=message):
            WIRING.labels_of(tree)
        with pytest.raises(ValueError, match=message):
            WIRING.map(lambda label, array: array, tree)


def test_spaces_of_a_deep_network_are_in_forward_order():
    """Sorted by name, hidden_10 would come before hidden_2."""
    wiring = mlp((3,), [2] * 13, 2, norm="batch").wiring
    hidden = tuple(f"hidden_{k}" for k in range(13))
    assert wiring.spaces == ("input", *hidden, "classes")
    assert tuple(name for name, _ in wiring.sites) == wiring.cloneable == hidden


def dense(module, name, x, reads, writes, size, **label):
    kernel = module.param(name, labelled(normal(0.5), In(reads), Out(writes), **label), (x.shape[-1], size))
    return x @ kernel


class Block(nn.Module):
    """A residual branch inside a submodule: two sites write the stream, one its own space."""

    space: str

    @nn.compact
    def __call__(self, x):
        inner = tap(self, f"{self.space}_inner", self.space, "tanh", dense(self, "up", x, "stream", self.space, 5))
        branch = dense(self, "down", inner, self.space, "stream", x.shape[-1])
        return tap(self, f"{self.space}_out", "stream", "sin", x + branch)


class Residual(nn.Module):
    """A user's own network: input -> stream -> two residual blocks -> classes."""

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        x = tap(self, "stream_in", "stream", "identity", dense(self, "embed", x, "input", "stream", 4))
        x = Block("zeta", name="zz")(x)
        x = Block("alpha", name="aa")(x)
        return dense(self, "head", x, "stream", "classes", 3, site="classes", source="alpha_out")


def test_a_users_residual_network(x64):
    model = from_linen(Residual(), (6,))
    wiring = model.wiring
    assert wiring.spaces == ("input", "stream", "zeta", "alpha", "classes")
    assert wiring.cloneable == ("stream", "zeta", "alpha")
    assert [name for name, _ in wiring.sites] == ["stream_in", "zeta_inner", "zeta_out", "alpha_inner", "alpha_out"]
    assert wiring.sites_of("stream") == ("stream_in", "zeta_out", "alpha_out")
    assert wiring.incoming("stream") == tuple(
        (("params", *path), 1) for path in [("aa", "down"), ("embed",), ("zz", "down")]
    )
    assert wiring.site("zeta_out").activation == "sin"

    variables = model.init(jax.random.key(0))
    p = jax.tree.map(np.asarray, variables["params"])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)))
    stream = x @ p["embed"]
    for name in ("zz", "aa"):
        stream = np.sin(stream + np.tanh(stream @ p[name]["up"]) @ p[name]["down"])
    logits, after, taps = model.apply(variables, x)
    np.testing.assert_allclose(logits, stream @ p["head"], atol=1e-13)
    np.testing.assert_allclose(taps["alpha_out"].post, stream, atol=1e-13)
    assert {site: tap.space for site, tap in taps.items()} == {site: at.space for site, at in wiring.sites}
    assert after.keys() == variables.keys()
    # Perturbations reach a site inside a submodule.
    shift = jax.tree.map(jnp.ones_like, taps["zeta_inner"])
    shifted = model.apply(variables, x, perturbations={"zeta_inner": shift}).taps
    np.testing.assert_allclose(shifted["zeta_inner"].pre, taps["zeta_inner"].pre + 1, atol=1e-13)
    np.testing.assert_allclose(shifted["zeta_inner"].post, np.tanh(taps["zeta_inner"].pre + 1) + 1, atol=1e-13)


def test_cloning_follows_the_residual_stream(x64):
    """Stream units cloned twice: computed by hand from cloned arrays, since this module cannot be resized."""
    model = from_linen(Residual(), (6,))
    variables = model.init(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)))
    wide = jax.tree.map(np.asarray, clone_variables(variables, model.wiring, {"stream": 2, "alpha": 3}))["params"]
    stream = x @ wide["embed"]
    for name in ("zz", "aa"):
        stream = np.sin(stream + np.tanh(stream @ wide[name]["up"]) @ wide[name]["down"])
    np.testing.assert_allclose(stream @ wide["head"], model.apply(variables, x).logits, atol=1e-13)
    assert wide["aa"]["up"].shape == (8, 15)
    with pytest.raises(ValueError, match=r"Residual has no field `sizes`"):
        model.resize({"stream": 8})


class Unlabelled(nn.Module):
    """Two arrays created without `labelled`."""

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        x = dense(self, "first", x, "input", "hidden", 4)
        x = nn.Dense(4, name="plain")(x)
        return dense(self, "head", x, "hidden", "classes", 3)


class TappedTwice(nn.Module):
    """One site name in two places: in one module, or in two."""

    nested: bool

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        x = tap(self, "same", "input", "tanh", x)
        x = Inner()(x) if self.nested else tap(self, "same", "input", "tanh", x)
        return dense(self, "head", x, "input", "classes", 3)


class Inner(nn.Module):
    """Taps the site its parent has tapped."""

    @nn.compact
    def __call__(self, x):
        return tap(self, "same", "input", "tanh", x)


class TwoSizes(nn.Module):
    """A space with four units that is read as if it had three."""

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        x = dense(self, "first", x, "input", "hidden", 4)
        return dense(self, "head", x[:, :3], "hidden", "classes", 3)


class WrongInitialiser(nn.Module):
    """Labels two axes of an array with one."""

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        return x * self.param("scale", labelled(ones, In("input"), Out("classes")), (x.shape[-1],))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Unlabelled(), r"arrays without axis labels: \['params/plain/bias', 'params/plain/kernel'\]"),
        (TappedTwice(nested=False), r"sites tapped twice: \['same'\]; give every site of the network its own name"),
        (TappedTwice(nested=True), r"sites tapped twice: \['same'\]; give every site of the network its own name"),
        (TwoSizes(), r"unit space 'hidden' has 4 units in params/first but 3 in params/head"),
        (WrongInitialiser(), r"params/scale: 2 axis labels for an array of shape \(6,\)"),
    ],
    ids=["unlabelled", "tapped twice", "tapped twice, nested", "two sizes", "wrong axes"],
)
def test_modules_that_cannot_be_read(module, message):
    with pytest.raises(ValueError, match=message):
        from_linen(module, (6,))


@pytest.mark.parametrize("shape", [(0,), (-1, 3), (2.5,), (True,)])
def test_bad_input_shapes(unchecked, shape):
    with pytest.raises(ValueError, match=r"input_shape=\(.*\): must be positive integers"):
        from_linen(Residual(), shape)


def test_perturbations_of_unknown_sites_are_refused():
    model = mlp((3,), (4,), 2)
    variables, x = model.init(jax.random.key(0)), jnp.ones((1, 3))
    taps = model.apply(variables, x).taps
    with pytest.raises(ValueError, match=r"perturbations of unknown sites \['hiden'\]; the sites are \['hidden_0'\]"):
        model.apply(variables, x, perturbations={"hiden": taps["hidden_0"]})


def test_resize_refuses_bad_sizes(unchecked):
    model = mlp((3,), (4,), 2)
    with pytest.raises(ValueError, match=r"size of 'hidden_0' = 0: must be a positive integer"):
        model.resize({"hidden_0": 0})
    with pytest.raises(ValueError, match=r"unit space 'classes' is fixed: its size cannot be changed"):
        model.resize({"classes": 4})
    with pytest.raises(ValueError, match=r"unit space 'hiden': not in this wiring"):
        model.resize({"hiden": 4})


# --- Trees that are not whole, and boxes --------------------


def test_an_nnx_state_is_told_how_to_become_a_dict():
    from flax import nnx

    model = mlp((4,), (6,), 2)
    params = model.init(jax.random.key(0))["params"]
    state = nnx.State(jax.tree.map(nnx.Param, params))
    for tree in (state, {"params": state}):
        with pytest.raises(ValueError, match=r"every array lies in a box, .*; pass flax\.nnx\.to_pure_dict\(state\)"):
            model.wiring.labels_of(tree)
    assert model.wiring.labels_of(nnx.to_pure_dict(state)) == model.wiring.labels_of(params)


@pytest.mark.parametrize("hole", [None, optax.MaskedNode()], ids=["None", "MaskedNode"])
def test_holes_are_accepted_only_where_they_are_asked_for(hole):
    model = mlp((4,), (6,), 2)
    params = model.init(jax.random.key(0))["params"]
    holed = {**params, "classes": {**params["classes"], "bias": hole}}
    assert len(model.wiring.labels_of(holed, partial=True)) == 3
    doubled = model.wiring.map(lambda label, array: 2 * array, holed, partial=True)
    assert doubled["classes"]["bias"] == hole
    np.testing.assert_array_equal(doubled["classes"]["kernel"], 2 * params["classes"]["kernel"])
    with pytest.raises(ValueError, match=r"missing \['params/classes/bias'\]"):
        model.wiring.labels_of(holed)
    del holed["classes"]["bias"]  # no hole: it is not there
    with pytest.raises(ValueError, match=r"missing \['params/classes/bias'\]"):
        model.wiring.labels_of(holed, partial=True)


def test_multiplicities_of_units_with_numbers_of_their_own():
    """One entry per unit along its axis; arrays broadcast against the base array."""
    label = Label((In("a"), None, Out("b")))
    n_in, n_out = multiplicity(label, {"a": (3, 1), "b": (1, 2, 4)})
    np.testing.assert_array_equal(n_in, np.reshape([3, 1], (2, 1, 1)))
    np.testing.assert_array_equal(n_out, np.reshape([1, 2, 4], (1, 1, 3)))
    assert multiplicity(label, {"b": (1, 2, 4)})[0] == 1
    squared, _ = multiplicity(Label((In("a"), In("a"))), {"a": (3, 1)})
    np.testing.assert_array_equal(squared, [[9, 3], [3, 1]])
