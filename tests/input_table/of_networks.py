"""Rows of functions of a network and a batch."""

import warnings
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_table import Row, Subject
from lopjax import (
    certificates,
    cloning,
    detection,
    doctor,
    interventions,
    losses,
    manifolds,
    probes,
    recovery,
    signals,
    stability,
    testing,
    training,
)
from lopjax.cloning.rounding import signal_tolerance
from lopjax.losses import pair
from lopjax.models import check_labels, check_wiring, mlp
from lopjax.training import Setting

UNITS = {"hidden": 1, "bias": 0, "head": 0}
ARRAYS = {
    "x": np.array([[1.0, 2, -1], [1, -1, 2], [-2, 1, 1], [1, -2, 1]]),
    "y": np.array([0, 1, 1, 0]),
    "hidden": np.array([[1.0, 1, -2, -2], [1, 1, 2, 2], [-1, -1, 1, 1]]),
    "bias": np.array([1.0, 1, 2, 2]),
    "head": np.array([[1.0, -1], [1, -1], [1, 2], [1, 2]]),
}
NETWORK = Subject(
    ARRAYS,
    integers=("x",),
    scaled=("x", "bias"),
    samples={"x": 0, "y": 0},
    units=UNITS,
    width={"x": 1},
    carriers=("x", "hidden"),
    numbers=("x", "y"),
    ranked=("x",),
    labels="y",
)
# Inputs alone: their labels are not used.
INPUTS = Subject(
    {**ARRAYS},
    integers=("x",),
    scaled=("x", "bias"),
    samples={"x": 0},
    units=UNITS,
    width={"x": 1},
    carriers=("x", "hidden"),
    numbers=("x",),
    ranked=("x",),
    excused={"labels": "labels are not used"},
)


WEIGHTS = Subject(
    {name: ARRAYS[name] for name in UNITS},
    integers=(),
    units=UNITS,
    width={"hidden": 0},
    carriers=("hidden",),
    numbers=("hidden",),
    ranked=("hidden",),
    excused={
        **dict.fromkeys(("no samples", "one sample", "labels"), "there is no batch"),
        **dict.fromkeys(("tiny", "huge"), "weights are moved, not computed with"),
    },
)


def variables_of(hidden, bias, head):
    params = {
        "hidden_0": {"kernel": hidden, "bias": bias},
        "classes": {"kernel": head, "bias": np.zeros(2, head.dtype)},
    }
    return {"params": jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_number(leaf) else leaf, params)}


def is_number(leaf):
    return not isinstance(leaf, str) and leaf.dtype.kind != "U"


@cache
def model_of(units, activation):
    return mlp((3,), (units,), 2, activation=activation)


def pairs(model):
    """Clusters of two units that lie side by side."""
    return {"hidden_0": tuple(unit // 2 for unit in range(model.wiring.size("hidden_0")))}


def network(function, subject=NETWORK, activation="tanh", is_compiled=False, **options):
    """A row of a function of `(model, variables, batch)`."""
    compiled = cache(lambda model: jax.jit(partial(function, model)))

    def call(x, y, hidden, bias, head):
        model = model_of(hidden.shape[1], activation)
        run = compiled(model) if is_compiled and is_number(x) and is_number(y) else partial(function, model)
        return run(variables_of(hidden, bias, head), (x, y))

    return Row(call, subject, **options)


def weights(function, **options):
    """A row of a function of `(model, variables)`."""

    def call(hidden, bias, head):
        return function(
            model_of(hidden.shape[1] if np.ndim(hidden) == 2 else 4, "tanh"), variables_of(hidden, bias, head)
        )

    return Row(call, WEIGHTS, **options)


def counts(found):
    """Signs of a report; undecided ones apart."""
    return float("nan") if found.n_undecided else (found.n_plus, found.n_minus, found.n_zero)


def named(verdict):
    """A verdict as its number; undecided is NaN."""
    return float("nan") if verdict.name == "UNDECIDED" else float(list(type(verdict)).index(verdict))


def intervened(make, model, variables, batch):
    """The network after an intervention has acted on it."""
    setting = Setting(model, optax.sgd(0.5), losses.mean_cross_entropy)
    method = make()
    state = training.start_intervention(method, setting, training.init_state(variables, setting.optimizer))
    seen = signals.observe(model, variables, batch)
    return training.intervene(method, setting, state, seen, jax.random.key(0), 1)[0].variables


def reset(function, model, variables):
    setting = Setting(model, optax.sgd(0.5), losses.mean_cross_entropy)
    state = training.init_state(variables, setting.optimizer)
    chosen = {"hidden_0": jnp.arange(model.wiring.size("hidden_0")) == 0}
    return function(setting, state, chosen, jax.random.key(0)).variables


def old_step(model, optimizer, state, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return training.sgd_step(model, optimizer, state, *pair(batch))[0].variables


def stepped(step):
    def call(model, variables, batch):
        optimizer = optax.sgd(0.5)
        return step(model, optimizer, training.init_state(variables, optimizer), batch)

    return call


def targets(batch):
    """Inputs, and targets of the same type."""
    x, _ = batch
    return x, x[:, :2] if hasattr(x, "shape") and x.ndim == 2 else x


def watched(model, variables, batch):
    watch = recovery.monitor(model, batch, window=4)
    report = watch.update(watch.init(variables["params"]), variables["params"], 0)[1]
    return report.loss, {space: one.activations.distance for space, one in report.nearness.items()}


def frozen(model, variables, batch):
    return named(certificates.certify_frozen(model, variables, batch, {"hidden_0": [0]}).verdict)


def nearness(model, variables, batch):
    found = detection.unit_nearness(model, variables, batch)["hidden_0"]
    return found.activations.distance, found.is_dead, found.slope, found.time_scale


def blocks(found):
    return counts(found.total)


SHAPES = dict.fromkeys(("nan", "inf"), "of shapes and labels: the numbers are drawn")
REPLACED = dict.fromkeys(("nan", "inf"), "the unit that is not finite is replaced")
OPTAX = dict.fromkeys(("wrong width", "wrong rank"), "any arrays make a state: the network is not known")
JUDGES = {
    "certificates.certify_cloned": network(
        lambda m, v, b: named(certificates.certify_cloned(m, v, b, pairs(m)).verdict), is_judge=True
    ),
    "certificates.certify_weighted": network(
        lambda m, v, b: named(certificates.certify_weighted(m, v, b, pairs(m)).verdict), is_judge=True
    ),
    "certificates.certify_frozen": network(frozen, activation="relu", is_judge=True),
    "certificates.leaves_loss_unchanged": network(
        lambda m, v, b: {None: np.nan}.get(f := certificates.leaves_loss_unchanged(m, v, b, lambda p: p), f),
        is_judge=True,
    ),
    "stability.unit_blocks": network(lambda m, v, b: blocks(stability.unit_blocks(m, v, b, 2)), is_judge=True),
    "stability.unit_blocks_of_clones": network(
        lambda m, v, b: blocks(stability.unit_blocks_of_clones(m, v, b, pairs(m))), is_judge=True
    ),
    "stability.decayed_clones": network(
        lambda m, v, b: named(stability.decayed_clones(m, v, b, 2, 0.5).verdict), is_judge=True, usual=np.float64
    ),
    "stability.weight_decay_threshold": network(
        lambda m, v, b: named(
            stability.weight_decay_threshold(m, v, b, 2, decays=[0.25, 0.5], both_ways=False).upward[-1].verdict
        ),
        is_judge=True,
        usual=np.float64,
    ),
    "losses.check_batch": network(lambda m, v, b: losses.check_batch(m, v, b, loss=losses.mean_cross_entropy) or 0),
    "losses.check_inputs": network(lambda m, v, b: losses.check_inputs(m, v, b[0]) or 0, INPUTS, allowed=SHAPES),
    "losses.check_mean_over_samples": network(
        lambda m, v, b: losses.check_mean_over_samples(m, v, b, loss=losses.mean_cross_entropy, size=2) or 0
    ),
    "models.check_wiring": network(lambda m, v, b: check_wiring(m, b, v) or 0, INPUTS, allowed=SHAPES),
    "models.check_labels": network(
        lambda m, v, b: check_labels(m._replace(constructor=None), v, b[0]) or 0, INPUTS, allowed=SHAPES
    ),
    "manifolds.functional_codimension": network(
        lambda m, v, b: manifolds.functional_codimension(m, v, b, depth=1, key=jax.random.key(0)).codimension,
        is_judge=True,
    ),
    "cloning.find_clones": network(
        lambda m, v, b: [cloning.find_clones(m, v, b)["hidden_0"].parameters], INPUTS, is_judge=True
    ),
    "doctor.diagnose": network(lambda m, v, b: len(doctor.diagnose(m, v, b).findings) and 0),
    "testing.check_intervention": network(
        subject=replace(NETWORK, carriers=("x",)),
        function=lambda m, v, b: len(testing.check_intervention(lambda: interventions.redo(0.1, 2), m, b)),
    ),
}
MEASURED = {
    "probes.symptoms": network(probes.symptoms, is_compiled=True, rtol=1e-4),
    "signals.observe": network(lambda m, v, b: signals.observe(m, v, b)[:5], is_compiled=True),
    "training.logs_of": network(
        lambda m, v, b: training.logs_of(signals.observe(m, v, b), "accuracy", loss=lambda seen: seen.loss),
        is_compiled=True,
    ),
    "losses.cross_entropy": network(lambda m, v, b: losses.cross_entropy(m, v, b)(v["params"]), is_compiled=True),
    "losses.mse": network(lambda m, v, b: losses.mse(m, v, targets(b))(v["params"]), INPUTS, is_compiled=True),
    "losses.of_parameters": network(
        lambda m, v, b: losses.of_parameters(m, v, b, loss=losses.mean_cross_entropy)(v["params"]), is_compiled=True
    ),
    "training.train_step": network(stepped(lambda *a: training.train_step(*a)[0].variables), is_compiled=True),
    "training.sgd_step": network(stepped(old_step), is_compiled=True),
    "training.init_state": weights(lambda m, v: training.init_state(v, optax.sgd(0.5, momentum=0.9)), excused=OPTAX),
    "training.evaluate": network(lambda m, v, b: training.evaluate(m, v, b, training.AsStored(), batch_size=2)),
    "detection.unit_nearness": network(nearness, is_compiled=True, rtol=1e-4, half=5e-3),
    "detection.clone_distances": network(
        lambda m, v, b: [d.activations.distance for d in detection.clone_distances(m, v, b[0]).values()],
        INPUTS,
        is_compiled=True,
        rtol=1e-3,
    ),
    "cloning.signal_tolerance": network(
        lambda m, v, b: signal_tolerance(v["params"], m.wiring, signals.observe(m, v, b).taps) >= 0,
        allowed=SHAPES | {"labels": "labels are not used"},
    ),
    "interventions.reset_units": weights(lambda *a: reset(interventions.reset_units, *a), allowed=REPLACED),
    "interventions.draw_units": weights(lambda *a: reset(interventions.draw_units, *a), allowed=REPLACED),
    "interventions.insert_norm": network(lambda m, v, b: interventions.insert_norm(m, v, b)[1], INPUTS, rtol=1e-4),
    "recovery.monitor": network(watched, rtol=1e-3),
    "stability.escape_law": network(
        lambda m, v, b: {k: (u.hessian, u.form) for k, u in stability.escape_law(m, v, b, 2).items()}, rtol=1e-4
    ),
}
METHODS = {
    "redo": lambda: interventions.redo(0.1, 2),
}
ROWS = {**JUDGES, **MEASURED}
