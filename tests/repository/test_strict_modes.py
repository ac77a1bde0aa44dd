"""Nothing is left to JAX's implicit promotion: of dtypes (`strict`), and of ranks (`raise`). Traced, not compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.architectures import ARCHITECTURES, batch_of, build

from lopjax import data, metrics, optim
from lopjax.certificates import certify_frozen
from lopjax.cloning import clone_variables
from lopjax.cloning.quotient import clip_by_cloned_norm, quotient_optimizer
from lopjax.curvature import spectral_density
from lopjax.manifolds import Manifold, cloned_manifold
from lopjax.models import mlp
from lopjax.probes import symptoms
from lopjax.stability import DecayingNoise, escape_time_along, first_passage_times, unit_blocks
from lopjax.training import Preprocess, evaluate

UNEQUAL = {"hidden_0": [3, 1, 1, 1, 1, 1]}


@pytest.fixture(params=["dtypes", "ranks"])
def strict(request):
    """A mode in which what JAX would promote is an error; that it is one is tried first."""
    if request.param == "dtypes":
        mode, error = jax.numpy_dtype_promotion("strict"), jax.dtypes.TypePromotionError
        other = jnp.ones((2, 3), jnp.int32)
    else:
        mode, error, other = jax.numpy_rank_promotion("raise"), ValueError, jnp.ones(3)
    with mode:
        with pytest.raises(error):
            jax.eval_shape(lambda: jnp.ones((2, 3)) + other)
        yield request.param


def are_single(tree):
    """Whether every array of a tree has the dtype that went in."""
    return {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_and_their_symptoms(strict, name):
    model = build(name, dropout=0.15)  # built inside the mode: no other test has it in its cache
    inputs, labels = jax.tree.map(lambda a: a.astype(jnp.int32 if a.dtype.kind == "i" else jnp.float32), batch_of(name))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    output = jax.eval_shape(lambda v: model.apply(v, inputs, train=True, key=jax.random.key(0)), variables)
    assert are_single((output.logits, output.variables))
    assert are_single(jax.eval_shape(lambda v: symptoms(model, v, (inputs, labels)), variables))
    assert are_single(jax.eval_shape(lambda v: clone_variables(v, model.wiring, 3), variables))


def test_metrics_and_their_gradients(strict):
    site = metrics.SiteActivity(*np.random.default_rng(0).normal(size=(3, 9, 4)).astype(np.float32))
    for metric in metrics.SITE_METRICS.values():
        assert are_single(jax.eval_shape(metric, site))
    for metric in (metrics.effective_rank, metrics.excess_kurtosis, metrics.cloning_r2):
        arguments = (2,) if metric is metrics.cloning_r2 else ()
        assert are_single(jax.eval_shape(jax.grad(lambda h, f=metric, a=arguments: f(h, *a)), site.post))


def test_manifolds_optimizers_and_the_quotient(strict):
    model = mlp((4,), (6,), 2)
    params = jax.tree.map(lambda a: jnp.ones(a.shape), jax.eval_shape(model.init, jax.random.key(0))["params"])
    for clusters in ((0, 0, 1, 1, 2, 2), (0, 0, 0, 1, 2, 2)):
        project = cloned_manifold(params, model.wiring, {"hidden_0": clusters}).project
        assert are_single(jax.eval_shape(project, params))
    transformations = [optim.noisy_sgd(0.1, 0.1, 0.9, 0, 0.5), optim.shrink_and_perturb(0.9, 0.1, 0, 2)]
    transformations += [optim.l2_init(0.1), optim.keep_on_manifold(project), optim.upgd(0.1, 0.1, 0)]
    transformations += [optim.spectral(0.1, model.wiring), optim.parseval(0.1, model.wiring), optim.nap(model.wiring)]
    for factor in (2, UNEQUAL):
        transformations.append(quotient_optimizer(optax.sgd(0.1, 0.9), model.wiring, factor))
        transformations.append(clip_by_cloned_norm(0.1, model.wiring, factor))
    for transformation in transformations:
        assert are_single(jax.eval_shape(lambda p, t=transformation: t.update(p, t.init(p), p)[0], params))


def test_batches_evaluation_and_spectra(strict):
    images, labels = jnp.zeros((5, 4, 4, 1), jnp.uint8), jnp.zeros(5, jnp.int32)
    preprocess, model = Preprocess((0.5,), (0.3,), crop_padding=1, flip=True), mlp((4, 4, 1), (5,), 2)
    order = jax.eval_shape(lambda key: data.epoch_permutation(key, 10, 4), jax.random.key(0))
    assert jnp.issubdtype(order.dtype, jnp.integer)
    assert are_single(jax.eval_shape(lambda key: preprocess.inputs(images, key), jax.random.key(0)))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    scores = jax.eval_shape(lambda v: evaluate(model, v, (images, labels), preprocess, batch_size=2), variables)
    density = jax.eval_shape(lambda key: spectral_density(lambda v: v, jnp.ones(4), 3, 2, key), jax.random.key(0))
    assert are_single((scores, density.nodes, density.weights))


@pytest.mark.slow
def test_verdicts_and_times(strict):
    """Whole analyses, run: their own programs keep JAX's default promotion."""
    model = mlp((3,), (2,), 2, activation="tanh")
    variables = {"params": model.init(jax.random.key(0))["params"]}
    batch = jnp.ones((3, 3)), jnp.array([0, 1, 0])
    assert np.isfinite(unit_blocks(model, variables, batch, 2).total.min_eigenvalue)
    assert certify_frozen(model, variables, batch, {"hidden_0": [0]}).units[0].verdict.name == "ALIVE"
    times = first_passage_times([-1.0, 2.0], [1, 1], 1.0, DecayingNoise(0.1, 1.0), 3, 5, jax.random.key(0))
    assert times.shape == (3,)
    line = Manifold(jnp.zeros(2), lambda vector: vector * jnp.array([1.0, 0.0]), is_affine=True)
    kick = jnp.array([0.0, 1e-3])
    assert escape_time_along(lambda p: p[0] - 0.5 * p[1] ** 2, jnp.zeros(2), line, kick, 0.1, 0.1, 60) < 49
