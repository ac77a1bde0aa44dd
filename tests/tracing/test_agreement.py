"""Labels of every built-in model against what is read from its program; sites against the models' own taps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.losses import mean_cross_entropy
from lopjax.model import Tap
from lopjax.models import cnn, mlp, resnet18, vit
from lopjax.tracing import trace_model, wiring_agrees
from lopjax.wiring import In, Out

IMAGE = (4, 4, 2)


def inputs(shape):
    return jax.ShapeDtypeStruct((3, *shape), jnp.float32)


SMALL = {
    "mlp": lambda **options: (mlp((4,), (6, 5), 3, **options), (4,)),
    "cnn": lambda **options: (cnn(IMAGE, 3, channels=(4, 5), dense=6, **options), IMAGE),
    "resnet": lambda **options: (resnet18(IMAGE, 3, width=3, blocks=(1, 1), **options), IMAGE),
    "vit": lambda **options: (vit(IMAGE, 3, patch=2, width=8, depth=2, heads=2, mlp_ratio=1.5, **options), IMAGE),
}
OPTIONS = [
    ("mlp", {}),
    ("mlp", dict(norm="batch", activation="gelu")),
    ("mlp", dict(norm="layer", activation="silu")),
    ("cnn", {}),
    ("cnn", dict(norm="batch", activation="leaky_relu")),
    ("cnn", dict(norm="layer")),
    ("resnet", {}),
    ("resnet", dict(norm="layer")),
    ("vit", {}),
    ("vit", dict(norm="batch")),
    ("vit", dict(norm="none", affine=False)),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_labels_and_program_agree(name, options):
    model, shape = SMALL[name](**options)
    assert wiring_agrees(model, inputs(shape)) == ()


def relabelled(model, array, *axes):
    labels = tuple(
        (path, replace(label, axes=axes) if path[1:] == array else label) for path, label in model.wiring.labels
    )
    return model._replace(wiring=replace(model.wiring, labels=labels))


def test_labels_that_say_less_are_told_and_those_that_contradict_are_refused():
    model, shape = SMALL["mlp"]()
    less = relabelled(model, ("hidden_1", "kernel"), In("hidden_0"), None)
    assert wiring_agrees(less, inputs(shape)) == (
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
            wiring_agrees(wrong, inputs(shape))


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        pytest.param("cnn", marks=pytest.mark.slow),
        pytest.param("resnet", marks=pytest.mark.slow),
        pytest.param("vit", marks=pytest.mark.slow),
    ],
)
def test_sites_are_those_of_the_models_own_taps(name, x64):
    model, shape = SMALL[name](activation="tanh") if name == "mlp" else SMALL[name]()
    variables = jax.tree.map(lambda a: a + 0.1, model.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (3, *shape))
    y = jnp.array([0, 1, 2])
    traced = trace_model(lambda v, x: model.apply(v, x).logits, variables, x, check=False)

    def seen(apply, variables):
        def loss(shifts):
            output = apply(variables, x, perturbations=shifts)
            return mean_cross_entropy(output.logits, y), output

        taps = jax.eval_shape(lambda v: apply(v, x), variables).taps
        zeros = {
            site: Tap(
                tap.space,
                jnp.zeros(tap.pre.shape, tap.pre.dtype),
                jnp.zeros(tap.post.shape, tap.post.dtype),
                tap.activation,
            )
            for site, tap in taps.items()
        }
        (_, output), signals = jax.value_and_grad(loss, has_aux=True)(zeros)
        return output, signals

    own, own_signals = jax.jit(lambda v: seen(model.apply, v))(variables)
    found, signals = jax.jit(lambda v: seen(traced.model.apply, v))(traced.split(variables))
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
    # An identity in front of everything leaves no trace in the program.
    assert missing == (["embedding"] if name == "vit" else [])
    # No false site: each carries a signal.
    assert all(float(jnp.abs(signals[site].pre).max()) > 0 for site in signals)
