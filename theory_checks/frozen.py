"""Frozen units.

A ReLU unit that is inactive on every sample has no gradient on what makes it inactive: its incoming weights and bias
stay where they are. This page says how far that goes: which parameters are frozen, how much must change before the unit
wakes up, what keeps a first-layer unit asleep and lets a deeper one wake up, and which optimizers move frozen
parameters after all.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.certificates import certify_frozen
from lopjax.curvature import hvp
from lopjax.losses import cross_entropy
from lopjax.manifolds import frozen_manifold
from lopjax.model import Model, Params, Variables
from lopjax.models import cnn, mlp, resnet18, vit
from lopjax.wiring import Out, Wiring
from theory_checks.architectures import NUM_CLASSES, random_batches, random_variables
from theory_checks.check import Check, Row, Size
from theory_checks.clusters import norm, take

PAPER = "arXiv 2510.00304"
UNITS = (0, 2)
SIGNAL = 1e-3


class Case(NamedTuple):
    """One row: a network, the shape of its inputs, the site where units are put to sleep, train mode."""

    build: Callable[[], Model]
    input_shape: tuple[int, ...]
    site: str
    train: bool = False


IMAGE = (4, 4, 2)
CASES: Mapping[str, Case] = {
    "mlp, first layer": Case(partial(mlp, (5,), (6, 5), NUM_CLASSES), (5,), "hidden_0"),
    "mlp, second layer": Case(partial(mlp, (5,), (6, 5), NUM_CLASSES), (5,), "hidden_1"),
    "mlp, batch norm": Case(partial(mlp, (5,), (6, 5), NUM_CLASSES, norm="batch"), (5,), "hidden_0", True),
    "mlp, layer norm": Case(partial(mlp, (5,), (6, 5), NUM_CLASSES, norm="layer"), (5,), "hidden_0"),
    "cnn": Case(partial(cnn, IMAGE, NUM_CLASSES, channels=(4, 6), dense=5), IMAGE, "conv_1"),
    "resnet, end of a block": Case(
        partial(resnet18, IMAGE, NUM_CLASSES, width=4, blocks=(1,)), IMAGE, "stage_0_block_0_output", True
    ),
    "vit, relu": Case(
        partial(vit, IMAGE, NUM_CLASSES, patch=2, width=8, depth=1, heads=4, mlp_ratio=0.75, activation="relu"),
        IMAGE,
        "mlp_0",
    ),
}
"""Where units are frozen; a new architecture joins by one row."""


def put_to_sleep(wiring: Wiring, site: str, variables: Variables, shift: float = -50.0) -> Variables:
    """Shift what is added last at a site, the norm's offset or else the bias, for the units `UNITS`."""
    bias = Out(wiring.site(site).space)
    added = [path for path, label in wiring.labels if label.site == site and label.axes == (bias,)]
    target = next(path for name in ("offset", "bias") for path in added if path[-1] == name)
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: leaf.at[jnp.array(UNITS)].set(shift) if tuple(k.key for k in keys) == target else leaf,
        dict(variables),
    )


class Slices(NamedTuple):
    """Norms of the frozen parameters' gradient and of `H v` for v on them; then the gradient of all parameters."""

    gradient: float
    curvature: float
    whole: Params


@cache
def asleep_and_awake(name: str) -> tuple[Slices, Slices]:
    """What a network does on the parameters that are frozen while units sleep, with the units asleep and awake."""
    case = CASES[name]
    model = case.build()
    awake = random_variables(model)
    asleep = put_to_sleep(model.wiring, case.site, awake)
    batch = take(random_batches(case.input_shape, 1, samples=16), 0)
    manifold = frozen_manifold(asleep["params"], model.wiring, {case.site: UNITS})

    def frozen_part(tree: Params) -> Params:
        return jax.tree.map(jnp.subtract, tree, manifold.project(tree))

    direction = jax.tree.map(jnp.asarray, frozen_part(random_variables(model, seed=2)["params"]))

    @jax.jit
    def both(variables: Variables) -> tuple[Params, Params]:
        loss = cross_entropy(model, variables, batch, case.train)
        return jax.grad(loss)(variables["params"]), hvp(loss, variables["params"], direction)

    def slices(variables: Variables) -> Slices:
        gradient, curvature = both(variables)
        share = norm(frozen_part(gradient)) / norm(gradient)
        return Slices(share, norm(curvature) / norm(direction), gradient)

    return slices(asleep), slices(awake)


def check_gradient(size: Size) -> list[Row]:
    """Share of the gradient on the frozen parameters: exactly zero; and on parameters that only look frozen."""
    del size
    rows = [Row(f"{name}: asleep", asleep_and_awake(name)[0].gradient, 0.0) for name in CASES]
    stem = asleep_and_awake("resnet, end of a block")[0].whole
    normed = asleep_and_awake("mlp, layer norm")[0].whole
    return [
        *rows,
        Row("awake: least of all", min(asleep_and_awake(name)[1].gradient for name in CASES), SIGNAL, control=True),
        Row("resnet: earlier writer of the same units", _share(stem, "stem", "conv"), SIGNAL, control=True),
        Row("mlp: weights in front of layer norm", _share(normed, "hidden_0"), SIGNAL, control=True),
    ]


def _share(gradient: Params, *layer: str) -> float:
    """Share of a gradient on the incoming weights of `UNITS` in one layer."""
    array: Any = gradient
    for key in layer:
        array = array[key]
    return norm(array["kernel"][..., UNITS]) / norm(gradient)


def check_hessian(size: Size) -> list[Row]:
    """`H v` for v on the frozen parameters: whole rows of zeros."""
    del size
    rows = [Row(f"{name}: asleep", asleep_and_awake(name)[0].curvature, 0.0) for name in CASES]
    return [
        *rows,
        Row("awake: least of all", min(asleep_and_awake(n)[1].curvature for n in CASES), SIGNAL, control=True),
    ]


def check_radius(size: Size) -> list[Row]:
    """Move the incoming parameters of a sleeping unit in the worst direction by a little less and more than r."""
    rows = []
    for seed in range(2 if size == "small" else 20):
        case = CASES["mlp, second layer"]
        model = case.build()
        variables = put_to_sleep(model.wiring, case.site, random_variables(model, seed), shift=-3.0)
        inputs, labels = take(random_batches(case.input_shape, 1, samples=50, seed=seed), 0)
        certificate = certify_frozen(model, variables, (inputs, labels), {case.site: UNITS})
        radius, unit = certificate.units[0].radius or 0.0, certificate.units[0].unit
        layer = variables["params"]["hidden_1"]
        taps = model.apply(variables, inputs).taps
        sources = np.concatenate([taps["hidden_0"].post, np.ones((len(inputs), 1))], axis=1)
        weights = np.append(np.asarray(layer["kernel"])[:, unit], layer["bias"][unit])
        nearest = np.argmin(-sources @ weights / np.linalg.norm(sources, axis=1))
        direction = sources[nearest] / np.linalg.norm(sources[nearest])

        def highest(step: float, sources=sources, weights=weights, direction=direction) -> float:
            return float(np.max(sources @ (weights + step * direction)))

        rows.append(Row(f"seed {seed}: largest pre-activation after {1 - 1e-9} r", highest((1 - 1e-9) * radius), 0.0))
        rows.append(Row(f"seed {seed}: after {1 + 1e-9} r", highest((1 + 1e-9) * radius), 0.0, control=True))
    return rows


@partial(jax.jit, static_argnums=0)
def _descend(model: Model, params: Params, stream: tuple[jax.Array, jax.Array]) -> Params:
    """Gradient descent with rate 0.3, one batch per step."""

    def step(params: Params, batch: tuple[jax.Array, jax.Array]) -> tuple[Params, None]:
        gradient = jax.grad(cross_entropy(model, {}, batch))(params)
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient), None

    return jax.lax.scan(step, params, stream)[0]


def _barely_asleep(model: Model, site: str, params: Params, inputs: jax.Array) -> Params:
    """Lower the biases of `UNITS` until their largest pre-activation is -0.01."""
    highest = np.asarray(model.apply({"params": params}, inputs).taps[site].pre).max(axis=0)
    bias = np.array(params[site]["bias"])
    bias[list(UNITS)] -= highest[list(UNITS)] + 0.01
    return {**params, site: {**params[site], "bias": jnp.asarray(bias)}}


def check_training(size: Size) -> list[Row]:
    """Train with some units barely asleep: what happens to their parameters, by layer, data and signs."""
    model = CASES["mlp, first layer"].build()
    steps = 300 if size == "small" else 3_000
    batch = take(random_batches((5,), 1, samples=32), 0)
    same = jax.tree.map(lambda array: jnp.broadcast_to(array, (steps, *array.shape)), batch)
    start = random_variables(model)["params"]

    def moved(site: str, params: Params, stream: tuple[jax.Array, jax.Array]) -> float:
        end, before = jax.device_get((_descend(model, params, stream), params))
        kernel, bias = (np.abs(end[site][name] - before[site][name])[..., UNITS] for name in ("kernel", "bias"))
        return float(max(kernel.max(), bias.max()))

    first = _barely_asleep(model, "hidden_0", start, batch[0])
    second = _barely_asleep(model, "hidden_1", start, batch[0])
    layer = second["hidden_1"]
    kernel = layer["kernel"].at[:, jnp.array(UNITS)].apply(lambda w: -jnp.abs(w))
    signed = {**second, "hidden_1": {"kernel": kernel, "bias": layer["bias"].at[jnp.array(UNITS)].set(-0.01)}}
    sleepers = start["hidden_0"]["kernel"].shape[1]
    blind = {**start, "hidden_0": {**start["hidden_0"], "bias": jnp.full(sleepers, -50.0)}}
    blind = _barely_asleep(model, "hidden_1", blind, batch[0])
    other_data = random_batches((5,), steps, samples=32, seed=5)
    return [
        Row("first layer, the same data", moved("hidden_0", first, same), 0.0),
        Row("second layer, w <= 0 and b < 0, the same data", moved("hidden_1", signed, same), 0.0),
        Row("second layer, w <= 0 and b < 0, other data", moved("hidden_1", signed, other_data), 0.0),
        Row("second layer, all that it reads asleep, the same data", moved("hidden_1", blind, same), 0.0),
        Row("first layer, other data", moved("hidden_0", first, other_data), SIGNAL, control=True),
        Row("second layer, the same data", moved("hidden_1", second, same), SIGNAL, control=True),
    ]


CHECKS: tuple[Check, ...] = (
    Check(
        "frozen.gradient",
        "While a ReLU unit sleeps, every parameter all of whose paths to the loss pass through it has gradient exactly"
        " 0, in every architecture.",
        f"{PAPER}, section 4; residual streams and norms: this library",
        check_gradient,
        "Dead units stay dead as long as the data and the layers below do not change. In a residual stream, and before"
        " a layer norm, fewer parameters are frozen than one might think.",
    ),
    Check(
        "frozen.hessian",
        "Whole rows of the Hessian vanish on frozen parameters: the manifold is neutral, neither stable nor unstable.",
        "this library",
        check_hessian,
        "No force pulls a dead unit back along the frozen parameters: a kick beyond its radius wakes it. Whether it"
        " stays awake is up to training.",
        "This page used to say that a large enough kick frees a dead unit for good. Neutral directions say nothing"
        " about what happens beyond the radius: of 200 units woken by kicks of up to 40 radii, 85 were dead again"
        " after 3,000 steps.",
    ),
    Check(
        "frozen.radius",
        "No change of its incoming parameters smaller than r = min -z / ||(h, 1)|| wakes a sleeping unit, and for"
        " every larger size some change of that size does.",
        "this library (lopjax.certificates)",
        check_radius,
        "The certificate says how much noise on the weights it takes to revive a unit on given data.",
        "This page used to say that a change of size r wakes it. Such a change only brings its pre-activation to 0,"
        " the edge.",
    ),
    Check(
        "frozen.training",
        "A sleeping first-layer unit is trapped on fixed data. A deeper one is trapped if signs keep it asleep"
        " whatever it reads, or if everything that it reads is asleep; other deeper units can wake.",
        f"{PAPER}, section 4 (restricted)",
        check_training,
        "Further training can revive deeper units, and new data can revive first-layer units, so count dead units"
        " again before a reset.",
        "This page used to say that signs alone can trap a deeper unit. One that reads only sleeping units is trapped"
        " on the same data as well: its input is constant, and so is its pre-activation.",
    ),
)
"""From the gradient to whole runs."""
