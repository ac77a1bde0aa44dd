"""Labels of every built-in model against what is read from its program; sites against the models' own taps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.architectures import ARCHITECTURES, batch_of, build, every

from lopjax.signals import observe
from lopjax.tracing import trace_model, wiring_agrees
from lopjax.wiring import In, Out


def inputs(name):
    return jax.eval_shape(lambda: batch_of(name, 3)[0])


# Every architecture as it is in the table, and with options that the labels depend on.
OPTIONS = [
    *((name, {}) for name in ARCHITECTURES),
    ("mlp", dict(norm="none", activation="gelu")),
    ("mlp", dict(norm="layer", activation="silu")),
    ("cnn", dict(norm="none", activation="leaky_relu")),
    ("cnn", dict(norm="layer")),
    ("resnet", dict(norm="layer", blocks=(1, 1))),
    ("vit", dict(norm="batch", depth=2)),
    ("vit", dict(norm="none", affine=False)),
    ("gpt", dict(tied=True, depth=2)),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_labels_and_program_agree(name, options):
    assert wiring_agrees(build(name, **options), inputs(name)) == ()


def test_a_model_that_says_what_its_inputs_look_like_needs_none():
    assert wiring_agrees(build("mlp")) == ()
    with pytest.raises(ValueError, match="does not say what its inputs look like: pass a batch"):
        wiring_agrees(build("gpt"))


def relabelled(model, array, *axes):
    labels = tuple(
        (path, replace(label, axes=axes) if path[1:] == array else label) for path, label in model.wiring.labels
    )
    return model._replace(wiring=replace(model.wiring, labels=labels))


def test_labels_that_say_less_are_told_and_those_that_contradict_are_refused():
    model, name = build("mlp", norm="none"), "mlp"
    less = relabelled(model, ("hidden_1", "kernel"), In("hidden_0"), None)
    assert wiring_agrees(less, inputs(name)) == (
        "params/hidden_1/kernel, axis 1: None by its label, Out(space='hidden_1') by the program",
    )
    for wrong, message in (
        (relabelled(model, ("hidden_1", "bias"), In("hidden_1")), "hidden_1/bias, axis 0: In.* by its label, Out"),
        (relabelled(model, ("classes", "kernel"), In("hidden_0"), Out("classes")), "another space elsewhere"),
        (
            relabelled(model, ("hidden_0", "kernel"), Out("hidden_1"), Out("hidden_0")),
            "by its label, In.*a network input",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            wiring_agrees(wrong, inputs(name))


@pytest.mark.parametrize("name", every(slow=[name for name in ARCHITECTURES if name != "mlp"]))
def test_sites_are_those_of_the_models_own_taps(name, x64):
    model = build(name, activation="tanh")
    variables = jax.tree.map(lambda a: a + 0.1, model.init(jax.random.key(0)))
    x, y = batch_of(name, 3)
    traced = trace_model(lambda v, x: model.apply(v, x).logits, variables, x, check=False)
    own = jax.jit(lambda v: observe(model, v, (x, y)))(variables)
    found = jax.jit(lambda v: observe(traced.model, v, (x, y)))(traced.split(variables))
    own_signals, signals = own.signals, found.signals
    np.testing.assert_allclose(found.logits, own.logits, rtol=1e-12)
    units = lambda a: np.moveaxis(np.asarray(a), -1, 0).reshape(a.shape[-1], -1)  # noqa: E731
    missing = []
    for site, tap in own.taps.items():
        same = [
            other for other, each in found.taps.items()
            if each.pre.size == tap.pre.size and each.pre.shape[-1] == tap.pre.shape[-1]
            and np.allclose(np.sort(units(each.pre)), np.sort(units(tap.pre)), rtol=1e-9)
        ]  # fmt: skip
        if not same:
            missing.append(site)
            continue
        other = same[-1]
        for kind in ("pre", "post"):
            for one, two in ((own.taps, found.taps), (own_signals, signals)):
                np.testing.assert_allclose(
                    np.sort(units(getattr(two[other], kind))),
                    np.sort(units(getattr(one[site], kind))),
                    rtol=1e-7,
                    atol=1e-12,
                )
        assert traced.model.wiring.site(other).activation == model.wiring.site(site).activation
    assert not missing
    # No false site: each carries a signal.
    assert all(float(jnp.abs(signals[site].pre).max()) > 0 for site in signals)
