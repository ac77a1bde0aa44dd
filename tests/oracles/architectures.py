"""What holds for every architecture, and the means to check it: used by the tests of the CNN, ResNet, ViT and GPT."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.certificates import CloneVerdict, certify_cloned
from lopjax.cloning import Factor, clone_factors, clone_variables, find_clones, uniform_partition, widen
from lopjax.manifolds import cloned_manifold, dimension, tangency_residual
from lopjax.model import Model, Tap, Variables
from lopjax.models import check_wiring, cnn, gpt, mlp, resnet18, vit
from lopjax.wiring import Label, Out, Path, tree_paths
from oracles.projectors import block_constant_dimension, normal_fraction

NUM_CLASSES = 3
IMAGE = (4, 4, 2)
IMAGES: dict[str, Any] = {"input_shape": IMAGE, "num_classes": NUM_CLASSES}


class Architecture(NamedTuple):
    """One architecture of the library, as small as it can be. A new one joins by its row in `ARCHITECTURES`.

    Attributes:
        make: its constructor, for `NUM_CLASSES` classes; takes activation, norm, dropout, init, compute_dtype by name.
        shape: of one input.
        wide: options with which it is wide enough for statistics of its weights.
        bias: a site, and the path of the array that pushes a unit of it below zero on every input.
        is_dear: whether its programs take so long to compile that most tests of it are slow.
        is_of_tokens: whether its inputs are tokens, its classes the vocabulary, and every position has a label.
    """

    make: Callable[..., Model]
    shape: tuple[int, ...]
    wide: Mapping[str, Any]
    bias: tuple[str, tuple[str, ...]]
    is_dear: bool = False
    is_of_tokens: bool = False


ARCHITECTURES = {
    "mlp": Architecture(
        partial(mlp, input_shape=(3,), widths=(4, 5), num_classes=NUM_CLASSES, norm="batch"),
        (3,),
        {"widths": (16, 24)},
        ("hidden_1", ("hidden_1_norm", "offset")),
    ),
    "cnn": Architecture(
        partial(cnn, **IMAGES, channels=(2, 3), dense=4, norm="batch"),
        IMAGE,
        {"channels": (16, 24), "dense": 20},
        ("conv_1", ("conv_1_norm", "offset")),
    ),
    "resnet": Architecture(
        partial(resnet18, **IMAGES, width=2, blocks=(1,)),
        IMAGE,
        {"width": 16, "blocks": (1, 1)},
        ("stage_0_block_0_output", ("stage_0_block_0_conv_1", "norm", "offset")),
        is_dear=True,
    ),
    "vit": Architecture(
        partial(vit, **IMAGES, patch=2, width=4, depth=1, heads=2, mlp_ratio=1.0, activation="relu"),
        IMAGE,
        {"width": 16, "heads": 4, "mlp_ratio": 2.0},
        ("mlp_0", ("mlp_0", "bias")),
        is_dear=True,
    ),
    "gpt": Architecture(
        partial(
            gpt,
            input_shape=(5,),
            num_classes=NUM_CLASSES,
            width=4,
            depth=1,
            heads=2,
            mlp_ratio=1.0,
            activation="relu",
            tied=False,
        ),
        (5,),
        {"width": 16, "heads": 4, "mlp_ratio": 2.0},
        ("mlp_0", ("mlp_0", "bias")),
        is_dear=True,
        is_of_tokens=True,
    ),
}


def build(name: str, **options: Any) -> Model:
    """An architecture with other arguments than its own, all of them by name."""
    return ARCHITECTURES[name].make(**options)


def every(*, slow: Collection[str] | None = None, leave_out: Collection[str] = ()) -> list[Any]:
    """All architectures as parameters of a test; those that are dear to compile, or those named, are slow."""
    names = [name for name in ARCHITECTURES if name not in leave_out]
    is_slow = {name: ARCHITECTURES[name].is_dear if slow is None else name in slow for name in names}
    return [pytest.param(name, marks=pytest.mark.slow if is_slow[name] else ()) for name in names]


def draw(model: Model, seed: int = 0) -> Variables:
    """Generic variables from NumPy: no scale is 1, no offset 0; nothing is compiled, as `model.init` would be."""
    random = np.random.default_rng(seed)

    def array(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        values = random.normal(size=leaf.shape)
        if name == "kernel":
            values *= 1.5 / np.sqrt(np.prod(leaf.shape[:-1]))
        elif name in ("scale", "var"):
            values = random.uniform(0.5, 1.5, leaf.shape)
        else:
            values *= 0.3
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(array, jax.eval_shape(model.init, jax.random.key(0)))


def normal_variables(model: Model, size: float = 0.7, seed: int = 0) -> Variables:
    """Every entry of every array from one normal distribution, from NumPy: for tests to which no scale matters."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(size * random.normal(size=leaf.shape)), shapes)


def batch(shape: tuple[int, ...], size: int = 5, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Normal inputs and class labels."""
    random = np.random.default_rng(seed)
    return jnp.asarray(random.normal(size=(size, *shape))), jnp.asarray(random.integers(NUM_CLASSES, size=size))


def batch_of(name: str, size: int = 5, seed: int = 0, num_classes: int = NUM_CLASSES) -> tuple[jax.Array, jax.Array]:
    """What an architecture takes: normal inputs or tokens, and class labels."""
    shape, random = ARCHITECTURES[name].shape, np.random.default_rng(seed)
    if ARCHITECTURES[name].is_of_tokens:
        tokens = random.integers(num_classes, size=(2, size, *shape))
        return jnp.asarray(tokens[0]), jnp.asarray(tokens[1])
    return batch(shape, size, seed)


@partial(jax.jit, static_argnums=(0, 3))
def logits_and_gradient(model: Model, variables: Variables, data: tuple, train: bool) -> tuple:
    """Logits, updated statistics, and the gradient of the mean cross-entropy."""

    def loss(params: Any) -> tuple:
        logits, after, _ = model.apply({**variables, "params": params}, data[0], train=train)
        taken = jnp.take_along_axis(jax.nn.log_softmax(logits), data[1][..., None], axis=-1)
        return -jnp.mean(taken), (logits, after.get("batch_stats", {}))

    gradient, (logits, statistics) = jax.grad(loss, has_aux=True)(variables["params"])
    return logits, statistics, gradient


def check_cloning(
    base: Model, shape: tuple[int, ...], factor: Factor, train: bool, data: tuple[jax.Array, jax.Array] | None = None
) -> None:
    """Cloning keeps logits, statistics and block-constant gradients; a perturbed clone does not.

    The library's own words about it, manifold and (in eval mode, once is enough) certificate, are held against the
    block means in NumPy. Without data the inputs are normal, of that shape.
    """
    data, variables = data or batch(shape), draw(base)
    wide, cloned = widen(base, factor), clone_variables(variables, base.wiring, factor)
    factors = clone_factors(base.wiring, factor)
    assert jax.tree.map(jnp.shape, cloned) == jax.tree.map(
        jnp.shape, dict(jax.eval_shape(wide.init, jax.random.key(0)))
    )
    expected, after, _ = jax.jit(base.apply, static_argnames="train")(variables, data[0], train=train)
    logits, statistics, gradient = logits_and_gradient(wide, cloned, data, train)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)
    if statistics:
        of_base = clone_variables(after, base.wiring, factor)["batch_stats"]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), statistics, of_base)
    assert normal_fraction(wide, gradient, factors) <= 1e-12
    assert float(np.std(expected)) > 0.1  # the logits are not trivial
    partition = uniform_partition(wide.wiring, factor)
    leaf = cloned_manifold(cloned["params"], wide.wiring, partition)
    assert tangency_residual(leaf, gradient) <= 1e-12
    if not train:
        assert dimension(leaf) == block_constant_dimension(wide, cloned["params"], factors)
        assert certify_cloned(wide, cloned, None, partition).verdict is CloneVerdict.BLOCK_CONSTANT

    # Control: clones with unequal incoming and outgoing weights compute something else and drift apart.
    random = np.random.default_rng(1)
    apart = jax.tree.map(
        lambda a: jnp.where(a == 0, a, a * jnp.asarray(random.uniform(-1, 3, a.shape))), cloned["params"]
    )
    logits, _, gradient = logits_and_gradient(wide, {**cloned, "params": apart}, data, train)
    assert float(np.abs(logits - expected).max()) > 0.1
    apart_fraction = normal_fraction(wide, gradient, factors)
    assert apart_fraction > 0.1
    np.testing.assert_allclose(tangency_residual(leaf, gradient), apart_fraction, rtol=1e-9)
    if not train:
        assert certify_cloned(wide, {**cloned, "params": apart}, None, partition).verdict is CloneVerdict.NOT_CLONED


def check_clones_are_found(base: Model, shape: tuple[int, ...], factor: int) -> None:
    """`find_clones` recovers the clusters from activations and from parameters; a base network has none."""
    inputs, _ = batch(shape, 8)
    variables = draw(base)
    wide = widen(base, factor)
    observed = {space for space in base.wiring.cloneable if base.wiring.sites_of(space)}
    in_wide = find_clones(wide, clone_variables(variables, base.wiring, factor), inputs)
    assert set(in_wide) == observed
    for space, found in in_wide.items():
        expected = tuple(int(i) for i in np.repeat(np.arange(base.wiring.size(space)), factor))
        assert (space, found.activations, found.parameters) == (space, expected, expected)
    in_base = find_clones(base, variables, inputs)
    assert set(in_base) == observed
    for space, found in in_base.items():
        expected = tuple(range(base.wiring.size(space)))
        assert (space, found.activations, found.parameters) == (space, expected, expected)


def cut_gradients(model: Model, variables: Variables, data: tuple, train: bool = False) -> dict[str | None, Any]:
    """Gradients when unit 0 of a site passes no derivative, for every site; under `None` the whole gradient.

    The unit keeps its value: what is added to it is its own activation, held constant, minus that activation.
    """

    def loss(params: Any, gates: dict[str, jax.Array]) -> jax.Array:
        state = {**variables, "params": params}
        taps = model.apply(state, data[0], train=train).taps
        shifts = {
            site: Tap(
                tap.space,
                jnp.zeros_like(tap.pre),
                (jax.lax.stop_gradient(tap.post) - tap.post).at[..., 1:].set(0.0) * gates[site],
                tap.activation,
            )
            for site, tap in taps.items()
        }
        # Each site is shifted alone, so the activations subtracted are those that reach it.
        logits = model.apply(state, data[0], train=train, perturbations=shifts).logits
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), data[1][..., None], axis=-1))

    gradient = jax.jit(jax.grad(loss))
    sites = [site for site, _ in model.wiring.sites]
    return {
        cut: gradient(variables["params"], {site: jnp.float64(site == cut) for site in sites}) for cut in (None, *sites)
    }


def check_site_labels(model: Model, shape: tuple[int, ...], train: bool = False) -> None:
    """A unit cut at a site silences its slice of exactly the arrays labelled with that site.

    Arrays that write the same space elsewhere (earlier and later writers of a residual stream), or in front of a
    layer norm, keep their gradients: a label that claims too little is caught as well as one that claims too much.
    """
    gradients = cut_gradients(model, draw(model), batch(shape), train)
    labels = model.wiring.labels_of(gradients[None])
    paths = tree_paths(gradients[None])
    sizes = {site: 0 for site, _ in model.wiring.sites}

    def slices(tree: Any, space: str) -> list[tuple[Path, Label, float]]:
        return [
            (path, label, float(np.abs(np.asarray(leaf).take(0, label.axes.index(Out(space)))).max()))
            for path, label, leaf in zip(paths, labels, jax.tree.leaves(tree), strict=True)
            if Out(space) in label.axes
        ]

    for site, description in model.wiring.sites:
        whole, cut = (slices(gradients[key], description.space) for key in (None, site))
        for (path, label, before), (_, _, after) in zip(whole, cut, strict=True):
            if before < 1e-12:  # translations: a bias in front of batch norm, or of the keys in front of softmax
                assert path[-1] == "bias"
                continue
            silent = after <= 1e-11 * before
            assert silent == (label.site == site), (site, path, label.site, before, after)
            sizes[site] += silent
    assert all(sizes.values()), sizes


def check_sources(model: Model, shape: tuple[int, ...], expected: set[str]) -> None:
    """The labels are true (`check_wiring`), and these arrays name a source."""
    check_wiring(model, batch(shape))
    sources = {path for path, label in model.wiring.labels if label.source is not None}
    assert {"/".join(path[1:-1]) for path in sources} == expected


def check_bfloat16(model: Model, full: Model, shape: tuple[int, ...]) -> None:
    """bfloat16 inside; parameters, statistics, gradients and logits in float32; close to the float32 network."""
    with jax.enable_x64(False):
        variables = jax.tree.map(lambda a: a.astype(jnp.float32), draw(model))
        data = jax.tree.map(lambda a: a.astype(jnp.float32 if a.dtype == np.float64 else jnp.int32), batch(shape))
        logits, statistics, gradient = logits_and_gradient(model, variables, data, True)
        taps = jax.eval_shape(model.apply, variables, data[0])[2]
        drawn = jax.eval_shape(model.init, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves((drawn, logits, statistics, gradient))} == {np.dtype("float32")}
        assert np.dtype(jnp.bfloat16) in {tap.pre.dtype for tap in taps.values()}
        exact = jax.jit(full.apply, static_argnames="train")(variables, data[0], train=True)[0]
        difference = float(jnp.abs(logits - exact).max() / jnp.abs(exact).max())
        assert 1e-5 < difference < 0.1  # rounded to 8 bits, and nothing worse
