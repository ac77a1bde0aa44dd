"""Types, scales, empty axes, NaN and infinity for functions of a network and a batch: right, or one sentence."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax import interventions, losses, probes, stability
from lopjax.cloning.rounding import signal_tolerance
from lopjax.detection import clone_distances
from lopjax.manifolds import cloned_manifold
from lopjax.models import check_wiring, mlp
from lopjax.signals import observe
from lopjax.training import Setting, init_state, intervene, logs_of, start_intervention, train_step

MODEL = mlp((3,), (4,), 2, activation="tanh")
PARTITION = {"hidden_0": (0, 0, 1, 1)}
INPUTS = np.array([[1.0, 2, -1], [0.5, -1, 2], [-2, 0.25, 1], [1, -0.5, 0.25], [0.5, 0.5, -2]])
LABELS = np.array([0, 1, 1, 0, 1])


def variables(dtype="float32"):
    """Clones with few binary digits, which every type holds."""
    hidden = np.repeat([[1, -2], [0.5, 1.5], [-1, 0.25]], 2, axis=1)
    outgoing = np.repeat([[1.0, -0.5], [0.75, 2]], 2, axis=0) / 2
    arrays = {"hidden_0": (hidden, np.full(4, 0.5)), "classes": (outgoing, np.zeros(2))}
    return {
        "params": {k: {"kernel": jnp.asarray(w, dtype), "bias": jnp.asarray(b, dtype)} for k, (w, b) in arrays.items()}
    }


def flat(result):
    leaves = [leaf for leaf in jax.tree.leaves(result) if not isinstance(leaf, str | bytes)]
    return np.concatenate([np.ravel(np.asarray(leaf)).astype(np.float64) for leaf in leaves])


def report(found):
    return found.n_plus, found.n_minus, found.n_zero


def manifold(v):
    return cloned_manifold(v["params"], MODEL.wiring, PARTITION)


# Of variables and a batch; what they return is compared between types.
NETWORKS = {
    "symptoms": lambda v, b: probes.symptoms(MODEL, v, b),
    "observe": lambda v, b: observe(MODEL, v, b)[:5],
    "logs_of": lambda v, b: logs_of(observe(MODEL, v, b), "accuracy", loss=lambda seen: seen.loss),
    "cross_entropy": lambda v, b: losses.cross_entropy(MODEL, v, b)(v["params"]),
    "mse": lambda v, b: losses.mse(MODEL, v, (b[0], jnp.asarray(b[0])[:, :2]))(v["params"]),
    "of_parameters": lambda v, b: losses.of_parameters(MODEL, v, b, loss=losses.mean_cross_entropy)(v["params"]),
    "train_step": lambda v, b: train_step(MODEL, optax.sgd(0.5), init_state(v, optax.sgd(0.5)), b)[0].variables,
    "clone_distances": lambda v, b: [d.activations.distance for d in clone_distances(MODEL, v, b[0]).values()],
    "signal_tolerance": lambda v, b: signal_tolerance(v["params"], MODEL.wiring) > 0,
}
# These judge, and refuse what is not finite.
JUDGES = {
    "classify": lambda v, b: report(
        stability.classify(losses.cross_entropy(MODEL, v, b), v["params"], manifold(v), "dense")
    ),
    "unit_blocks_of_clones": lambda v, b: report(stability.unit_blocks_of_clones(MODEL, v, b, PARTITION).total),
    "check_batch": lambda v, b: losses.check_batch(MODEL, v, b, loss=losses.mean_cross_entropy) or 0,
    "check_mean_over_samples": lambda v, b: (
        losses.check_mean_over_samples(MODEL, v, b, loss=losses.mean_cross_entropy, size=2) or 0
    ),
    "check_wiring": lambda v, b: check_wiring(MODEL, b, v) or 0,
}


@pytest.mark.parametrize("name", [*NETWORKS, *JUDGES])
def test_types_agree_with_double_precision(x64, unchecked, name):
    """16-bit parameters hold these numbers exactly, and the network computes in float32."""
    function = {**NETWORKS, **JUDGES}[name]
    expected = flat(jax.jit(function)(variables("float32"), (INPUTS, LABELS)) if name in NETWORKS else [0])
    if name in JUDGES:
        expected = flat(function(variables("float64"), (INPUTS, LABELS)))
    found = flat(function(variables("bfloat16"), (INPUTS.astype(np.float32), LABELS.astype(np.int32))))
    if name in JUDGES:  # coarser types leave more undecided, and never say the contrary
        assert (found <= expected).all()
    else:  # What a step leaves is stored in 16 bits again.
        np.testing.assert_allclose(found, expected, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("name", [*NETWORKS, *JUDGES])
def test_what_is_not_finite_is_seen(unchecked, name):
    if name in ("signal_tolerance", "check_wiring"):  # of shapes; of claims about the network
        return
    broken = INPUTS.astype(np.float32)
    broken[1, 1] = np.nan
    if name in JUDGES:
        with pytest.raises(ValueError, match=r"finite|nan"):
            JUDGES[name](variables(), (broken, LABELS))
    else:
        assert not np.isfinite(flat(NETWORKS[name](variables(), (broken, LABELS)))).all()


# A tolerance and the labels of a network are what they are without samples; nor does a mean over none contradict one.
WITHOUT_SAMPLES = ("signal_tolerance", "check_wiring", "check_mean_over_samples")


@pytest.mark.parametrize("name", [name for name in (*NETWORKS, *JUDGES) if name not in WITHOUT_SAMPLES])
def test_no_samples_give_nothing_finite_or_a_sentence(unchecked, name):
    nothing = np.zeros((0, 3), np.float32), np.zeros(0, np.int32)
    function = {**NETWORKS, **JUDGES}[name]
    with contextlib.suppress(ValueError):
        assert not np.isfinite(flat(function(variables(), nothing))).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_interventions_keep_types(x64, dtype):
    """Shapes and types alone: nothing is compiled."""
    made = {
        "redo": interventions.redo(0.1, 2),
        "continual_backprop": interventions.continual_backprop(0.1, 0.9, 2),
        "self_normalized_resets": interventions.self_normalized_resets(0.9, 4),
        "regrama": interventions.regrama(0.1, 2),
        "cpr": interventions.cpr(0.1, 2),
        "fire": interventions.fire(every=2),
        "reset_layer": interventions.reset_layer(["classes"], every=2),
        "reset_optimizer": interventions.reset_optimizer(2),
        "split_clones": interventions.split_clones(every=2),
        "wake_dead_units": interventions.wake_dead_units(every=2),
    }
    setting = Setting(MODEL, optax.adam(0.1), losses.mean_cross_entropy)
    batch = jnp.asarray(INPUTS, jnp.float32), jnp.asarray(LABELS, jnp.int32)

    def acted(method, v, key, step):
        state = start_intervention(method, setting, init_state(v, setting.optimizer))
        seen = observe(MODEL, state.variables, batch)
        return state, intervene(method, setting, state, seen, key, step)[0]

    for name, method in made.items():
        before, after = jax.eval_shape(partial(acted, method), variables(dtype), jax.random.key(0), jnp.int32(3))
        types = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)] for state in (before, after)]
        assert types[0] == types[1], name


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_ways_out_of_clones_refuse_what_is_not_finite(x64, unchecked, bad):
    broken = jax.tree.map(lambda leaf: leaf, variables("float64"))
    broken["params"]["hidden_0"]["kernel"] = broken["params"]["hidden_0"]["kernel"].at[0, :2].set(bad)
    loss, wiring = losses.cross_entropy(MODEL, broken, (INPUTS, LABELS)), MODEL.wiring
    for refused in (
        lambda: stability.free_kick(loss, broken["params"], wiring, PARTITION, "hidden_0", 0),
        lambda: stability.rank_ceiling(loss, broken["params"], wiring, PARTITION, "hidden_0"),
        lambda: stability.decayed_clones(MODEL, broken, (INPUTS, LABELS), 2, 0.1),
        lambda: stability.weight_decay_threshold(MODEL, broken, (INPUTS, LABELS), 2, decays=[0.1], both_ways=False),
    ):
        with pytest.raises(ValueError, match=r"finite|nan|block constant"):
            refused()
