"""Controls of the conformance suite: a port with each published bug must fail the property that it breaks.

The port without one, ReDo itself, passes all of them on the same network (`test_conformance`).
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import case

from lopjax.interventions import Intervention, Report, continual_backprop, draw_units, redo
from lopjax.interventions.reasons import CHANGED
from lopjax.testing import Property, check_intervention
from lopjax.wiring import unit_masks

RIGHT = redo(0.0, 3)
HIDDEN_STATE = {"age": 0}


def spoiled(spoil):
    """ReDo, and then what a port gets wrong: `(setting, before, after, observed, key, report) -> state`."""

    def apply(setting, own, state, observed, key, step):
        after, own, report = RIGHT.apply(setting, own, state, observed, key, step)
        wrong = spoil(setting, state, after, observed, key, report)
        return jax.tree.map(lambda a, b: jnp.where(report.reason == CHANGED, a, b), wrong, after), own, report

    return lambda: Intervention(RIGHT.init, apply)


def with_params(state, params):
    return state._replace(variables={**state.variables, "params": params})


def outgoing_to_a_copy(setting, before, after, observed, key, report):
    """The zeros are written to an array that nobody uses."""
    return draw_units(setting, before, report.touched, key)


def stale_gradient(setting, before, after, observed, key, report):
    """Reset before the optimizer's step: fresh weights get the gradient of the old ones."""
    params = after.variables["params"]
    incoming, outgoing = unit_masks(setting.model.wiring, params, report.touched)
    either = jax.tree.map(jnp.logical_or, incoming, outgoing)
    return with_params(after, jax.tree.map(lambda p, g, m: p - 0.1 * g * m, params, observed.gradient, either))


def update_of_everything(setting, before, after, observed, key, report):
    stepped = jax.tree.map(lambda p, g: p - 0.1 * g, after.variables["params"], observed.gradient)
    return with_params(after, stepped)


def momentum_kept(setting, before, after, observed, key, report):
    return after._replace(opt_state=before.opt_state)


def count_cleared(setting, before, after, observed, key, report):
    adam, rest = after.opt_state
    return after._replace(opt_state=(adam._replace(count=jnp.zeros_like(adam.count)), rest))


def statistics_kept(setting, before, after, observed, key, report):
    return after._replace(variables={**after.variables, "batch_stats": before.variables["batch_stats"]})


def xavier_for_all(setting, before, after, observed, key, report):
    """Glorot's law whatever the layer was drawn from."""
    incoming, outgoing = unit_masks(setting.model.wiring, after.variables["params"], report.touched)

    def draw(old, enters, leaves):
        if old.ndim < 2:
            return old
        bound = (6 / (np.prod(old.shape[:-1]) + old.shape[-1])) ** 0.5
        drawn = jax.random.uniform(key, old.shape, old.dtype, -bound, bound)
        return jnp.where(enters & ~leaves, drawn, old)

    return with_params(after, jax.tree.map(draw, after.variables["params"], incoming, outgoing))


def scales_forgotten(setting, before, after, observed, key, report):
    """Kernels and biases are drawn, the scale of the norm stays what it was."""
    params = dict(after.variables["params"])
    params["hidden_0_norm"] = before.variables["params"]["hidden_0_norm"]
    return with_params(after, params)


def age_of_a_hook(setting, before, after, observed, key, report):
    """A counter outside the state, which every forward pass moves: here every trace."""
    HIDDEN_STATE["age"] += 1
    return jax.tree.map(lambda p: p + 1e-9 * HIDDEN_STATE["age"], after)


def another_random_state(setting, before, after, observed, key, report):
    """The host's generator instead of the key."""
    draw = jax.pure_callback(
        lambda k: np.float64(np.random.default_rng().normal()) + np.zeros(np.shape(k)[:-1]),
        jax.ShapeDtypeStruct((), jnp.float64),
        jax.random.key_data(key),
        vmap_method="legacy_vectorized",
    )
    kernel = after.variables["params"]["hidden_0"]["kernel"]
    shifted = jnp.where(report.touched["hidden_0"], kernel + draw, kernel)
    params = {**after.variables["params"], "hidden_0": {**after.variables["params"]["hidden_0"], "kernel": shifted}}
    return with_params(after, params)


def repeat_for_tile(setting, before, after, observed, key, report):
    """Rows of the flattened dense kernel by repeating the mask: right where channels come first, here they are last."""
    kernel = before.variables["params"]["dense"]["kernel"]
    height, width, _, units = kernel.shape
    rows = jnp.repeat(report.touched["conv_0"], height * width)
    wrong = jnp.where(rows[:, None], 0, kernel.reshape(-1, units)).reshape(kernel.shape)
    dense = {**after.variables["params"]["dense"], "kernel": wrong}
    return with_params(after, {**after.variables["params"], "dense": dense})


def silent_on_the_batch_alone(setting, before, after, observed, key, report):
    """Outgoing weights kept, and a bias so low that nothing in the batch wakes the new unit; other inputs do."""
    drawn = draw_units(setting, before, report.touched, key).variables
    pre = setting.model.apply(drawn, observed.batch[0]).taps["hidden_0"].pre
    hidden = dict(drawn["params"]["hidden_0"])
    hidden["bias"] = hidden["bias"] - jnp.where(report.touched["hidden_0"], jnp.max(pre, axis=0) + 1e-6, 0)
    return with_params(after, {**drawn["params"], "hidden_0": hidden})


PORTS = [
    (outgoing_to_a_copy, Property.OUTGOING, "small"),
    (outgoing_to_a_copy, Property.FUNCTION, "small"),
    (outgoing_to_a_copy, Property.JUST_DIED, "small"),
    (stale_gradient, Property.GRADIENT, "small"),
    (update_of_everything, Property.SLICES, "small"),
    (repeat_for_tile, Property.SLICES, "cnn"),
    (momentum_kept, Property.OPTIMIZER, "small"),
    (count_cleared, Property.OPTIMIZER, "small"),
    (statistics_kept, Property.STATISTICS, "small"),
    (xavier_for_all, Property.LAW, "small"),
    pytest.param(scales_forgotten, Property.LAW, "small", marks=pytest.mark.slow),
    (age_of_a_hook, Property.AGEING, "small"),
    pytest.param(another_random_state, Property.KEYS, "small", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("port", "broken", "network"), PORTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_port_fails(port, broken, network):
    with pytest.raises(AssertionError, match=f"1 of 1 properties fail:\n  {broken.name}"):
        check_intervention(spoiled(port), *case(network), promises=[broken])


def test_a_biased_utility_fails(monkeypatch):
    """Traces that start from 0 make the youngest of the mature units look least useful."""
    make = lambda: continual_backprop(0.05, 0.99, 2)  # noqa: E731
    assert check_intervention(make, *case("small"), promises=[Property.UTILITIES])[0].holds
    continual = importlib.import_module("lopjax.interventions.continual_backprop")  # the package has the function
    monkeypatch.setattr(continual, "corrected", lambda trace, decay, age: trace)
    with pytest.raises(AssertionError, match="chosen before them"):
        check_intervention(make, *case("small"), promises=[Property.UTILITIES])


def test_a_unit_that_is_silent_on_the_batch_alone_fails_on_other_inputs():
    with pytest.raises(AssertionError, match=r"1 of 1 .*\n  FUNCTION \(.*\): on other inputs logits change"):
        check_intervention(spoiled(silent_on_the_batch_alone), *case("plain"), promises=[Property.FUNCTION])


def test_a_running_mean_of_a_unit_that_has_just_died_changes_the_logits():
    """Continual backprop as in the paper moves it into biases; the authors' code moves nothing."""
    with pytest.raises(AssertionError, match=r"JUST_DIED .*logits change by \d"):
        check_intervention(lambda: continual_backprop(0.05, 0.99, 2), *case("plain"), promises=[Property.JUST_DIED])
    official = lambda: continual_backprop(0.05, 0.99, 2, variant="official")  # noqa: E731
    assert check_intervention(official, *case("plain"), promises=[Property.JUST_DIED])[0].holds


def test_another_type_fails():
    """Half precision in one leaf of the own state: a scan would refuse it."""

    def apply(setting, own, state, observed, key, step):
        touched = {"hidden_0": jnp.arange(4) == 1}
        return state, own.astype(jnp.float32), Report(touched, CHANGED)

    with pytest.raises(AssertionError, match=r"NOTHING_ELSE .*float64.*float32"):
        check_intervention(
            lambda: Intervention(lambda setting, state: jnp.zeros(()), apply),
            *case("small"),
            promises=[Property.NOTHING_ELSE],
        )


def test_a_method_that_never_acts_is_told_so():
    with pytest.raises(AssertionError, match="in 4 steps it has not acted"):
        check_intervention(lambda: redo(0.0, 100), *case("small"), max_steps=4)
