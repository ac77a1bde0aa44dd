"""Backward signals against finite differences and numpy; symptoms against the metrics of every site, one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.architectures import ARCHITECTURES, batch_of, build, every
from oracles.metrics import metrics_in_numpy, numpy_samples, r2_in_numpy

from lopjax import probes
from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.metrics import SiteActivity
from lopjax.model import Tap
from lopjax.models import mlp
from lopjax.probes import symptoms
from lopjax.signals import observe

OPTIONS = {
    "mlp": {"activation": "tanh"},
    "cnn": {"activation": "gelu", "norm": "none"},
    "resnet": {"activation": "silu", "norm": "none"},
    "vit": {"activation": "gelu"},
    "gpt": {"activation": "gelu"},
}


def case(name: str, num: int = 5):
    """A network and a batch."""
    return build(name, **OPTIONS.get(name, {})), batch_of(name, num)


def initialised(model):
    return jax.jit(model.init)(jax.random.key(0))


# --- Backward signals --------------------


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "cnn"])
def test_backward_signals_predict_what_a_perturbation_does_to_the_loss(x64, name):
    """<backward, direction> equals the central difference of the loss along it, at pre- and post-activations."""
    model, (inputs, labels) = case(name)
    variables = initialised(model)
    signals = jax.jit(lambda variables: observe(model, variables, (inputs, labels)))(variables)
    generator, step = np.random.default_rng(1), 3e-6

    def loss(perturbations):
        logits = model.apply(variables, inputs, perturbations=perturbations).logits
        shifted = logits - logits.max(axis=-1, keepdims=True)
        taken = jnp.sum(shifted * (labels[..., None] == jnp.arange(logits.shape[-1])), axis=-1)
        return jnp.mean(jnp.log(jnp.exp(shifted).sum(axis=-1)) - taken)

    loss = jax.jit(loss)
    assert list(signals.taps) == list(signals.signals)
    for part in ("pre", "post"):
        directions, predicted = {}, 0.0
        for site, tap in signals.taps.items():
            chosen = generator.normal(size=tap.pre.shape)
            fields = {"pre": np.zeros_like(chosen), "post": np.zeros_like(chosen), part: chosen}
            directions[site] = Tap(tap.space, fields["pre"], fields["post"], tap.activation)
            predicted += float(np.sum(chosen * np.asarray(getattr(signals.signals[site], part))))
        forward, backward = (jax.tree.map(lambda d, s=s: jnp.asarray(s * step * d), directions) for s in (1, -1))
        measured = float(loss(forward) - loss(backward)) / (2 * step)
        np.testing.assert_allclose(predicted, measured, rtol=1e-6)
        assert abs(measured) > 1e-3


def test_backward_signals_of_an_mlp_in_closed_form(x64):
    model = mlp((3,), (4, 4), 3, activation="tanh")
    generator = np.random.default_rng(0)
    x, labels = generator.normal(size=(6, 3)), np.arange(6, dtype=np.int32) % 3
    variables = initialised(model)
    layers = jax.tree.map(np.asarray, variables["params"])
    pre_0 = x @ layers["hidden_0"]["kernel"] + layers["hidden_0"]["bias"]
    pre_1 = np.tanh(pre_0) @ layers["hidden_1"]["kernel"] + layers["hidden_1"]["bias"]
    logits = np.tanh(pre_1) @ layers["classes"]["kernel"] + layers["classes"]["bias"]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    e_1 = (shares - np.eye(3)[labels]) / 6 @ layers["classes"]["kernel"].T
    delta_1 = e_1 * (1 - np.tanh(pre_1) ** 2)
    e_0 = delta_1 @ layers["hidden_1"]["kernel"].T
    signals = jax.jit(lambda variables: observe(model, variables, (jnp.asarray(x), jnp.asarray(labels))))(variables)
    expected = {"hidden_0": (pre_0, e_0, e_0 * (1 - np.tanh(pre_0) ** 2)), "hidden_1": (pre_1, e_1, delta_1)}
    for site, (pre, e, delta) in expected.items():
        np.testing.assert_allclose(signals.taps[site].pre, pre, atol=1e-14)
        np.testing.assert_allclose(signals.taps[site].post, np.tanh(pre), atol=1e-14)
        np.testing.assert_allclose(signals.signals[site].post, e, atol=1e-14)
        np.testing.assert_allclose(signals.signals[site].pre, delta, atol=1e-14)
        assert np.abs(e - delta).max() > 1e-3  # the two are not the same thing
    np.testing.assert_allclose(signals.loss, -np.log(shares[np.arange(6), labels]).mean(), rtol=1e-13)
    np.testing.assert_allclose(signals.logits, logits, atol=1e-14)


def test_train_mode_observes_the_statistics_of_the_batch_without_dropout(x64):
    model = mlp((3,), (4,), 3, norm="batch", affine=False, dropout=0.5)
    inputs, labels = case("mlp")[1]
    variables = initialised(model)
    pre = {
        train: jax.jit(lambda v, t=train: observe(model, v, (inputs, labels), train=t, dropout_rate=0.0).taps)(
            variables
        )["hidden_0"].pre
        for train in (False, True)
    }
    np.testing.assert_allclose(np.mean(pre[True], axis=0), 0, atol=1e-12)
    assert np.abs(np.mean(pre[False], axis=0)).max() > 1e-2


# --- Symptoms --------------------


@pytest.mark.parametrize("name", every(slow=("cnn", "vit", "gpt")))
def test_symptoms_are_the_metrics_of_every_site(name):
    model, (inputs, labels) = case(name)
    wide, factor = widen(model, 2), 2
    variables = clone_variables(initialised(model), model.wiring, factor)
    # Break the clones, so that R² is neither 0 nor 1.
    generator = np.random.default_rng(2)
    variables = jax.tree.map(lambda a: a + 0.1 * generator.uniform(0, 1, a.shape).astype(a.dtype), variables)
    partition = uniform_partition(wide.wiring, factor)
    own = {
        "spread": lambda site: jnp.ptp(site.pre),
        "signs": lambda site: jnp.sum((site.post > 0) != (site.signal > 0)),
    }
    program = jax.jit(lambda variables: (symptoms(wide, variables, (inputs, labels), partition=partition, metrics=own),
                                         observe(wide, variables, (inputs, labels))))  # fmt: skip
    table, signals = program(variables)
    assert table.keys() >= {"effective_rank", "dead_fraction", "ks_non_gaussianity", "r2_forward", "r2_backward"}
    for site, tap in signals.taps.items():
        z, h, e = map(numpy_samples, (tap.pre, tap.post, signals.signals[site].post))
        expected = metrics_in_numpy(z, h, e) | {"spread": np.ptp(z), "signs": np.sum((h > 0) != (e > 0))}
        if tap.space in partition:
            expected |= {"r2_forward": r2_in_numpy(h, factor), "r2_backward": r2_in_numpy(e, factor)}
        for metric, value in expected.items():
            np.testing.assert_allclose(table[metric][site], value, rtol=2e-3, atol=2e-4, err_msg=f"{metric} at {site}")
    for metric, values in table.items():
        sites = [float(value) for site, value in values.items() if site != "mean"]
        np.testing.assert_allclose(values["mean"], np.mean(sites), rtol=1e-5, err_msg=metric)
    assert 0.01 < float(table["r2_forward"]["mean"]) < 0.9999


def test_clones_have_r2_one_and_any_other_pairing_does_not():
    model, (inputs, labels) = mlp((3,), (4,), 3, activation="tanh"), case("mlp")[1]
    wide = widen(model, 2)
    variables = clone_variables(initialised(model), model.wiring, 2)
    for partition, is_right in (
        (uniform_partition(wide.wiring, 2), True),
        ({"hidden_0": (0, 1, 0, 1, 2, 3, 2, 3)}, False),
    ):
        table = jax.jit(lambda variables, p=partition: symptoms(wide, variables, (inputs, labels), partition=p))(
            variables
        )
        for direction in ("r2_forward", "r2_backward"):
            assert (float(table[direction]["mean"]) == 1) is is_right
            assert is_right or float(table[direction]["mean"]) < 0.9


def test_without_a_partition_there_is_no_r2():
    model, (inputs, labels) = case("mlp")
    shapes = jax.eval_shape(lambda variables: symptoms(model, variables, (inputs, labels)), initialised(model))
    assert "r2_forward" not in shapes
    assert set(shapes["effective_rank"]) == {"hidden_0", "hidden_1", "mean"}


@pytest.mark.slow
def test_seeds_side_by_side_give_what_each_gives_alone():
    """Many sites of several shapes under one vmap: the pattern in which batched LAPACK calls deadlock on CPU."""
    model, (inputs, labels) = mlp((3,), (4, 3), 3), case("mlp")[1]
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    variables = jax.vmap(model.init)(keys)
    one = jax.jit(lambda variables: symptoms(model, variables, (inputs, labels)))
    together = jax.jit(jax.vmap(one))(variables)
    for lane in range(3):
        alone = one(jax.tree.map(lambda a, lane=lane: a[lane], variables))
        jax.tree.map(
            lambda a, b, lane=lane: np.testing.assert_allclose(a[lane], b, rtol=1e-4, atol=1e-5), together, alone
        )
    assert len(set(np.asarray(together["effective_rank"]["mean"]).tolist())) == 3


VALUE = r"metrics\['largest'\] asks for the value of an array while it is compiled .*: must compute with jax.numpy"


@pytest.mark.parametrize(
    "metric",
    [
        lambda site: site.post.max() if site.post.max() > 0 else 0.0,
        lambda site: np.median(site.post),
        lambda site: range(site.post.argmax())[0],
    ],
)
def test_a_metric_that_cannot_be_compiled_is_told_so(metric):
    site = SiteActivity(*[jax.ShapeDtypeStruct((5, 4), jnp.float32)] * 3)
    with pytest.raises(ValueError, match=VALUE):
        jax.eval_shape(lambda site: probes._own_number("largest", metric, site), site)


def test_a_metric_of_ones_own_has_a_name_of_its_own_and_is_one_real_number(unchecked):
    model, batch = case("mlp")
    variables = jax.eval_shape(model.init, jax.random.key(0))
    for name, metric, message in (
        ("srank", lambda site: site.post.max(), r"metrics=\['srank'\]: metrics of the library have these names"),
        ("r2_forward", lambda site: site.post.max(), r"metrics=\['r2_forward'\]"),
        ("largest", lambda site: site.post.max(axis=0), r"metrics\['largest'\] returned an array of shape \(4,\)"),
        ("largest", lambda site: site.post.max() * 1j, r"dtype complex.*: must be one real number per site"),
        ("largest", lambda site: float(site.post.max()), VALUE),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda v, m=metric, n=name: symptoms(model, v, batch, metrics={n: m}), variables)


def test_a_partition_of_an_unknown_space_is_refused():
    model, (inputs, labels) = case("mlp")
    variables = initialised(model)
    for partition, message in (
        ({"hidden_9": (0, 0, 1, 1)}, "hidden_9"),
        ({"hidden_0": (0, 0, 1)}, "3 entries: must name one cluster for each of 4 units"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda v, p=partition: symptoms(model, v, (inputs, labels), partition=p), variables)
