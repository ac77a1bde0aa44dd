"""More rows of functions of a network's arrays: kicks, bounds, laws of escape, masks, compensation, tracing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_table import TYPES, Row, Subject
from input_table.of_arrays import OUTPUTS
from input_table.of_networks import (
    ARRAYS,
    INPUTS,
    OPTAX,
    REPLACED,
    SHAPES,
    intervened,
    is_number,
    model_of,
    network,
    pairs,
    variables_of,
    weights,
)
from lopjax import certificates, cloning, interventions, losses, stability, tracing, wiring

KEY = jax.random.key(0)
NO_BATCH = dict.fromkeys(("no samples", "one sample", "labels"), "there is no batch")

# --- Kicks: of a loss and clones --------------------------------------------------------------------------------------


def of_clones(function):
    """A row of `function(loss, params, wiring, partition)`, at a point of exact clones."""

    def call(hidden, bias, head):
        model, variables = model_of(4, "tanh"), variables_of(hidden, bias, head)
        batch = (jnp.asarray(ARRAYS["x"], jnp.float32), jnp.asarray(ARRAYS["y"]))
        loss = losses.cross_entropy(model, variables, batch)
        return function(loss, variables["params"], model.wiring, pairs(model))

    return call


def up_to_sign(kick):
    return jax.tree.map(jnp.abs, (kick.direction, kick.response, kick.gain))


def clones(function, **options):
    row = weights(lambda m, v: 0, **options)
    some = replace(
        row.subject, units={}, excused=row.subject.excused | dict.fromkeys(("no units", "one unit"), "pairs")
    )
    return replace(row, call=of_clones(function), subject=some)


# --- What moves and compensates ---------------------------------------------------------------------------------------

MOVED = Subject(
    {
        "head": ARRAYS["head"],
        "chosen": np.array([True, False, False, True]),
        "means": np.array([1.0, 2, -1, 0.5]),
    },
    integers=(),
    scaled=("means",),
    units={"head": 0, "chosen": 0, "means": 0},
    width={"chosen": 0, "means": 0},
    carriers=("head", "means"),
    numbers=("head", "chosen", "means"),
    ranked=("chosen", "means"),
    excused=NO_BATCH,
)


def compensated(head, chosen, means):
    dtype = head.dtype if is_number(head) else np.float32
    units = head.shape[0] if np.ndim(head) == 2 else 4
    layer = {"kernel": np.ones((3, units), dtype), "bias": np.ones(units, dtype)}
    params = {"hidden_0": layer, "classes": {"kernel": head, "bias": np.zeros(2, dtype)}}
    moved = interventions.move_means_into_biases(
        model_of(units, "tanh").wiring, params, {"hidden_0": chosen}, {"hidden_0": means}
    )
    return moved["classes"]


def forgotten(model, variables):
    """Moments after the first unit has been forgotten."""
    optimizer, params = optax.sgd(0.5, momentum=0.5), variables["params"]
    state = optimizer.update(params, optimizer.init(params), params)[1]
    first = np.arange(model.wiring.size("hidden_0")) == 0
    masks = wiring.unit_masks(model.wiring, params, {"hidden_0": first})
    return interventions.forget(optimizer, state, params, masks.incoming)


STATE = {"strings": "refused by the optimizer that makes the state"}
CHOICE = Subject(
    {"mask": np.array([True, False]), "chosen": np.array([1.0, 2]), "others": np.array([-1.0, 4])},
    integers=("chosen", "others"),
    scaled=("chosen", "others"),
    units=dict.fromkeys(("mask", "chosen", "others"), 0),
    carriers=("chosen",),
    numbers=("mask", "chosen", "others"),
    ranked=("chosen",),
    excused=NO_BATCH | {"wrong width": "as in `jnp.where`, arrays are broadcast"},
)

# --- Bounds over a box of inputs --------------------------------------------------------------------------------------

BOX = Subject(
    {"lower": np.array([-1.0, 0, 1]), "upper": np.array([1.0, 2, 1]), "hidden": ARRAYS["hidden"]},
    integers=("lower", "upper"),
    scaled=("lower", "upper"),
    width={"lower": 0, "upper": 0},
    carriers=("lower", "upper", "hidden"),
    numbers=("lower", "upper", "hidden"),
    ranked=("lower", "upper"),
    excused=NO_BATCH | dict.fromkeys(("no units", "one unit"), "of one layer: tests/certificates"),
)


def bounds(lower, upper, hidden):
    dtype = hidden.dtype if is_number(hidden) else np.float32
    params = variables_of(hidden, np.ones(4, dtype), np.ones((4, 2), dtype))["params"]
    return certificates.interval_bounds(params, model_of(4, "relu").wiring, "hidden_0", (lower, upper))


LAW = Subject(
    {
        "hessian": np.array([[[1.0, 2], [2, -1]], [[-1, 1], [1, 0]]]),
        "form": np.array([[[1.0, 0], [0, 1]], [[2, 1], [1, 2]]]),
        "noise": np.array([1.0, 2]),
    },
    scaled=("form",),
    width={"form": 2, "noise": 0},
    carriers=("hessian", "form", "noise"),
    numbers=("hessian", "form", "noise"),
    ranked=("hessian", "form", "noise"),
    excused=NO_BATCH | dict.fromkeys(("no units", "one unit"), "of clones of two units"),
)


def departures(hessian, form, noise):
    law = {"h": stability.UnitLaw(hessian, form, noise, np.array([1, 2]))}
    return stability.simulated_departures(law, stability.HeavyBall(0.125, 1.0, 0.5, 0.5, 0.0), KEY, 2, 2, 3)


def traced(model, variables, batch):
    def apply(params, x):
        return jnp.tanh(x @ params["hidden_0"]["kernel"]) @ params["classes"]["kernel"]

    params = {name: {"kernel": layer["kernel"]} for name, layer in variables["params"].items()}
    found = tracing.trace_model(apply, params, batch[0], check=False)
    return [size for _, size in found.model.wiring.sizes]


FACTOR = Subject(
    {"factor": np.array([2, 1, 1, 1])},
    cast=("factor",),
    integers=("factor",),
    numbers=("factor",),
    ranked=("factor",),
    width={"factor": 0},
    excused=NO_BATCH
    | dict.fromkeys(("no units", "one unit", "tiny", "huge", "nan", "inf"), "one positive integer for every unit")
    | dict.fromkeys(TYPES[:4], "floats are refused"),
)
ONE_FACTOR = {"wrong rank": "one number is for all units"}
WIRING = model_of(4, "tanh").wiring
ROWS = {
    "stability.free_kick": clones(
        lambda loss, params, wiring, partition: up_to_sign(
            stability.free_kick(loss, params, wiring, partition, "hidden_0", 0, num_steps=8)
        ),
        rtol=1e-3,
    ),
    "stability.rank_ceiling": clones(
        lambda loss, params, wiring, partition: stability.rank_ceiling(
            loss, params, wiring, partition, "hidden_0", zero_level=1e-5
        )[:3],
        rtol=1e-3,
    ),
    "stability.simulated_departures": Row(departures, LAW, half=1e-2, rtol=1e-4),
    "interventions.move_means_into_biases": Row(compensated, MOVED, half=1e-2),
    "interventions.forget": weights(forgotten, excused=OPTAX | STATE, allowed=REPLACED),
    "training.intervene": network(
        lambda m, v, b: intervened(lambda: interventions.redo(0.1, 2), m, v, b),
        INPUTS,
        is_compiled=True,
        allowed=dict.fromkeys(("nan", "inf"), "a score that is not a number resets nothing"),
    ),
    "wiring.where": Row(
        lambda mask, chosen, others: wiring.where({"w": mask}, {"w": chosen}, {"w": others}),
        CHOICE,
        allowed={"wrong rank": "one number is for all entries"},
    ),
    "wiring.unf_spec": weights(lambda m, v: wiring.unf_spec(m.wiring, v["params"]), allowed=SHAPES),
    "wiring.sharding_rules": weights(
        lambda m, v: len(wiring.sharding_rules(m.wiring, v["params"], {"hidden_0": "rows"})), allowed=SHAPES
    ),
    "certificates.interval_bounds": Row(bounds, BOX, half=1e-1),
    "losses.loss_of": Row(lambda y, t: losses.loss_of(losses.mean_cross_entropy, y, t), OUTPUTS),
    "tracing.trace_model": network(traced, INPUTS, allowed=SHAPES),
    "cloning.clone_factors": Row(
        lambda factor: cloning.clone_factors(WIRING, {"hidden_0": factor}), FACTOR, allowed=ONE_FACTOR
    ),
    "cloning.widen": Row(
        lambda factor: cloning.widen(model_of(4, "tanh"), {"hidden_0": factor}).wiring.size("hidden_0"),
        FACTOR,
        allowed=ONE_FACTOR,
    ),
    "cloning.uniform_partition": Row(
        lambda factor: cloning.uniform_partition(model_of(5, "tanh").wiring, {"hidden_0": factor}), FACTOR
    ),
}
