"""Transformations held to one table of shared properties, to their laws in numpy, and to the statistics of noise."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from lopjax import optim
from lopjax.wiring import In, Label, Out, build_wiring


def average_pairs(tree):
    """A linear projector: entries 0, 1 and 2, 3 of the last axis become equal; scalars stay."""

    def project(x):
        return jnp.repeat(x.reshape(*x.shape[:-1], 2, 2).mean(-1), 2, axis=-1) if x.ndim else x

    return jax.tree.map(project, tree)


WIRING = build_wiring(
    {("params", "kernel"): Label((In("inputs"), Out("outputs"))), ("params", "scale"): Label(())},
    {("params", "kernel"): (3, 4), ("params", "scale"): ()},
    sites={},
)


# name: seed -> transformation
RANDOM = {
    "add_relative_noise": lambda seed: optim.add_relative_noise(0.1, 0.9, seed),
    "noisy_sgd": lambda seed: optim.noisy_sgd(0.1, 0.1, 0.9, seed),
    "noisy_sgd_momentum": lambda seed: optim.noisy_sgd(0.1, 0.1, 0.9, seed, momentum=0.5),
    "noisy_sgd_schedule": lambda seed: optim.noisy_sgd(optax.linear_schedule(0.1, 0.0, 9), 0.1, 0.9, seed),
    "shrink_and_perturb": lambda seed: optim.shrink_and_perturb(0.8, 0.1, seed, every=1),
    "upgd": lambda seed: optim.upgd(0.1, 0.1, seed, 0.9, 0.1),
}
ALL = RANDOM | {
    "l2_init": lambda seed: optim.l2_init(0.1),
    "keep_on_manifold": lambda seed: optim.keep_on_manifold(average_pairs),
    "spectral": lambda seed: optim.spectral(0.1, WIRING),
    "parseval": lambda seed: optim.parseval(0.1, WIRING),
    "nap": lambda seed: optim.nap(WIRING),
    "muon": lambda seed: optim.muon(0.1, WIRING),
    "adam_per_weight": lambda seed: optim.adam_per_weight(0.1, 0.9, 0.99),
}
# The same with every number an array, as under a vmap over settings.
FROM_ARRAYS = {
    "adam_per_weight": lambda scale, decay, seed: optim.adam_per_weight(scale, decay, decay),
    "add_relative_noise": optim.add_relative_noise,
    "noisy_sgd": partial(optim.noisy_sgd, 0.1),
    "noisy_sgd_momentum": lambda scale, decay, seed: optim.noisy_sgd(scale, scale, decay, seed, momentum=decay),
    "shrink_and_perturb": lambda scale, decay, seed: optim.shrink_and_perturb(decay, scale, seed, every=1),
    "l2_init": lambda scale, decay, seed: optim.l2_init(scale),
    "upgd": lambda scale, decay, seed: optim.upgd(scale, scale, seed, decay, scale),
    "spectral": lambda scale, decay, seed: optim.spectral(scale, WIRING),
    "parseval": lambda scale, decay, seed: optim.parseval(scale, WIRING, decay),
    "muon": lambda scale, decay, seed: optim.muon(scale, WIRING, momentum=decay, weight_decay=scale),
}


def make_params(dtype=jnp.float32):
    values = np.random.default_rng(0)
    return {"kernel": jnp.asarray(values.normal(size=(3, 4)), dtype), "scale": jnp.ones((), dtype)}


def make_gradient(step, dtype=jnp.float32):
    values = np.random.default_rng(100 + step)
    return jax.tree.map(lambda x: jnp.asarray(values.normal(size=x.shape), dtype), make_params())


def run(transformation, steps=3, dtype=jnp.float32, update=None):
    """Updates of `steps` steps, and the last state."""
    params, updates = make_params(dtype), []
    state = transformation.init(params)
    update = update or jax.jit(transformation.update)
    for step in range(steps):
        new, state = update(make_gradient(step, dtype), state, params)
        params = optax.apply_updates(params, new)
        updates.append(new)
    return updates, state


def assert_trees_close(first, second, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), first, second)


def shapes_and_dtypes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


# --- Shared properties ----------------------------------------------------------------------


def test_every_optimizer_is_in_the_tables():
    signatures = {name: inspect.signature(getattr(optim, name)) for name in optim.__all__}
    makers = {name for name, each in signatures.items() if "GradientTransformation" in str(each.return_annotation)}
    makers -= {"on_own_arrays"}  # of another optimizer
    assert len(makers) > 10  # or this test has stopped looking
    assert makers - {*ALL} == set()
    assert makers - {*FROM_ARRAYS} == {"keep_on_manifold", "nap"}  # which are made of no number


@pytest.mark.parametrize("name", ALL)
def test_jit_equals_eager_and_compiles_once(name):
    transformation = ALL[name](0)
    compiled = jax.jit(transformation.update)
    updates, state = run(transformation, update=compiled)
    expected, expected_state = run(transformation, steps=2, update=transformation.update)
    assert_trees_close(updates[:2], expected)
    assert shapes_and_dtypes(state) == shapes_and_dtypes(expected_state)
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("name", RANDOM)
def test_vmap_over_keys_is_a_loop_over_keys(name):
    """Lanes differ; an int seed stands for its philox key."""
    keys = jnp.stack([jax.random.key(seed, impl="philox4x32") for seed in (7, 8, 9)])

    def first_update(seed):
        return run(RANDOM[name](seed), steps=1)[0][0]

    lanes = jax.jit(jax.vmap(first_update))(keys)
    one_lane = jax.jit(first_update)
    loop = [one_lane(key) for key in keys]
    assert_trees_close(lanes, jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop))
    assert_trees_close(loop[0], first_update(7))
    kernels = np.asarray(lanes["kernel"])
    assert min(abs(kernels[i] - kernels[j]).min() for i, j in [(0, 1), (0, 2), (1, 2)]) > 0


def test_an_int_seed_under_vmap_gives_every_lane_the_same_noise():
    """The control of the test above, and a documented trap."""

    def kernel(scale):
        return run(optim.add_relative_noise(scale, 0.9, 7), steps=1)[0][0]["kernel"]

    lanes = jax.vmap(kernel)(jnp.array([0.1, 0.1, 0.1]))
    assert np.ptp(lanes, axis=0).max() == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", FROM_ARRAYS)
def test_dtypes_are_preserved(x64, name, dtype):
    """With float32 arrays for numbers, which would promote bfloat16, and a state that a scan can carry."""
    params = jax.eval_shape(partial(make_params, dtype))

    def two_states(params, number):
        transformation = FROM_ARRAYS[name](number, number, 0)
        state = transformation.init(params)
        return state, transformation.update(params, state, params)

    before, (updates, after) = jax.eval_shape(two_states, params, jax.ShapeDtypeStruct((), jnp.float32))
    assert shapes_and_dtypes(updates) == shapes_and_dtypes(params)
    assert shapes_and_dtypes(after) == shapes_and_dtypes(before)


@pytest.mark.parametrize("name", FROM_ARRAYS)
def test_traced_numbers_give_the_values_of_concrete_ones(name):
    def first_kernel(scale, decay):
        return run(FROM_ARRAYS[name](scale, decay, 0), steps=1)[0][0]["kernel"]

    settings = jnp.array([0.1, 0.2]), jnp.array([0.9, 0.8])
    together = jax.jit(jax.vmap(first_kernel))(*settings)
    np.testing.assert_allclose(together[1], first_kernel(0.2, 0.8), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_chains_masks_and_ignores_extra_arguments(name):
    transformation = ALL[name](0)
    params, gradient = make_params(), make_gradient(0)
    chain = optax.chain(optax.masked(transformation, {"kernel": True, "scale": False}), optax.scale(2.0))
    updates, _ = chain.update(gradient, chain.init(params), params, loss=1.0)
    alone, of_kernel = ({**tree, "scale": optax.MaskedNode()} for tree in (params, gradient))
    expected, _ = transformation.update(of_kernel, transformation.init(alone), alone, loss=1.0)
    np.testing.assert_allclose(updates["kernel"], 2 * expected["kernel"], rtol=1e-5)
    assert updates["scale"] == 2 * gradient["scale"]


@pytest.mark.parametrize(
    ("factory", "numbers", "static", "changed"),
    [
        (optim.add_relative_noise, {"noise_scale": 0.1, "noise_decay": 0.9, "seed": 3}, "seed", "noise_scale"),
        (optim.noisy_sgd, {"learning_rate": 0.1, "noise_scale": 0.1, "noise_decay": 0.9, "seed": 3}, (), "momentum"),
        (optim.shrink_and_perturb, {"shrink": 0.9, "noise_std": 0.1, "seed": 3, "every": 1}, "every", "shrink"),
        (optim.l2_init, {"strength": 0.1}, (), "strength"),
        (optim.upgd, {"learning_rate": 0.1, "noise_std": 0.1, "seed": 3}, (), "weight_decay"),
        (optim.parseval, {"strength": 0.1, "wiring": WIRING}, "wiring", "scale"),
        (optim.spectral, {"strength": 0.1, "wiring": WIRING}, ("wiring", "power", "num_iterations"), "strength"),
    ],
)
def test_inject_hyperparams(factory, numbers, static, changed):
    """Injected numbers act as constants do, inside and outside jit, until somebody changes them in the state."""
    injected = optax.inject_hyperparams(factory, static_args=static)(**numbers)
    update = jax.jit(injected.update)
    updates, state = run(injected, update=update, steps=2)
    assert_trees_close(updates, run(factory(**numbers), steps=2)[0])
    params, gradient = jax.tree.map(lambda x: x + 1, make_params()), make_gradient(5)
    before, _ = update(gradient, state, params)
    state.hyperparams[changed] = jnp.float32(0.5)
    after, _ = update(gradient, state, params)
    differs = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
    assert differs["kernel"]


def test_an_int_makes_the_key_that_is_fast_on_cpu():
    state = optim.add_relative_noise(0.1, 0.9, 0).init(make_params())
    assert jax.random.key_impl(state.key) == "philox4x32"
    default = optim.add_relative_noise(0.1, 0.9, jax.random.key(0)).init(make_params())
    assert jax.random.key_impl(default.key) == "threefry2x32"


# --- The law of the noise -------------------------------------------------------------------


def noises(steps, sizes, seed=5):
    """Noise in units of sigma * gamma**t * ||g||, one row a step, for arrays of the given sizes."""
    gradients = [jnp.linspace(1.0, 2.0, size) for size in sizes]
    transformation = optim.add_relative_noise(0.5, 0.99, seed)

    def step(state, t):
        updates, state = transformation.update(gradients, state)
        scale = 0.5 * 0.99**t
        return state, [(u - g) / (scale * jnp.linalg.norm(g)) for u, g in zip(updates, gradients)]

    return jax.jit(lambda: jax.lax.scan(step, transformation.init(gradients), jnp.arange(steps))[1])()


def test_law_of_the_noise_exactly(x64):
    """g + sigma * gamma**t * ||g|| * xi in numpy, with xi extracted at sigma = gamma = 1 from another gradient."""
    steps, dtype = 4, jnp.float64
    unit = optim.add_relative_noise(1.0, 1.0, 3)
    ones = jax.tree.map(jnp.ones_like, make_params(dtype))
    state = unit.init(ones)
    noisy, _ = run(optim.add_relative_noise(0.3, 0.7, 3), steps, dtype)
    for step in range(steps):
        raw, state = unit.update(ones, state)
        gradient = make_gradient(step, dtype)
        for name in ("kernel", "scale"):
            g, r, u = (np.asarray(tree[name]) for tree in (gradient, raw, noisy[step]))
            xi = (r - 1) / np.sqrt(r.size)
            expected = g + 0.3 * 0.7**step * np.sqrt((g**2).sum()) * xi
            np.testing.assert_allclose(u, expected, rtol=1e-12)
            wrong_norm = g + 0.3 * 0.7**step * np.sqrt((g**2).mean()) * xi
            assert r.size == 1 or np.abs(u - wrong_norm).max() > 1e-3


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_noisy_sgd_adds_noise_before_momentum(x64, momentum):
    noisy, _ = run(optim.add_relative_noise(0.3, 0.7, 3), 4, jnp.float64)
    updates, _ = run(optim.noisy_sgd(0.2, 0.3, 0.7, 3, momentum), 4, jnp.float64)
    trace = 0.0
    for gradient, update in zip(noisy, updates):
        trace = np.asarray(gradient["kernel"]) + momentum * trace
        np.testing.assert_allclose(update["kernel"], -0.2 * trace, rtol=1e-12)


def test_without_noise_it_is_sgd():
    rate = optax.linear_schedule(0.1, 0.0, 5)
    updates, _ = run(optim.noisy_sgd(rate, 0.0, 0.999, 0, momentum=0.9))
    assert_trees_close(updates, run(optax.sgd(rate, momentum=0.9))[0], rtol=1e-6)


def test_no_momentum_array_unless_asked_for():
    params = make_params()
    plain, heavy = (optim.noisy_sgd(0.1, 0.1, 0.9, 0, momentum=m).init(params) for m in (0.0, 0.9))
    assert len(jax.tree.leaves(heavy)) - len(jax.tree.leaves(plain)) == len(jax.tree.leaves(params))


def test_decay_zero_is_one_noisy_step():
    updates, _ = run(optim.add_relative_noise(0.1, 0.0, 0), steps=3)
    for step, update in enumerate(updates):
        is_noisy = np.abs(update["kernel"] - make_gradient(step)["kernel"]).max() > 0
        assert is_noisy == (step == 0)


def test_no_gradient_no_noise():
    params = {"live": jnp.ones(3), "dead": jnp.zeros(3), "missing": None}
    transformation = optim.noisy_sgd(1.0, 0.5, 1.0, 0)
    updates, _ = transformation.update(params, transformation.init(params))
    assert updates["missing"] is None
    np.testing.assert_array_equal(updates["dead"], 0.0)
    assert np.all(updates["live"] != -1.0)


def test_noise_is_standard_normal():
    """200,000 draws: mean, variance, skewness and kurtosis within 4 standard errors, and a KS test."""
    draws = np.asarray(noises(400, [500])[0], np.float64).ravel()
    count = draws.size
    assert abs(draws.mean()) < 4 / np.sqrt(count)
    assert abs(draws.var() - 1) < 4 * np.sqrt(2 / count)
    assert abs(scipy.stats.skew(draws)) < 4 * np.sqrt(6 / count)
    assert abs(scipy.stats.kurtosis(draws)) < 4 * np.sqrt(24 / count)
    assert scipy.stats.kstest(draws, "norm").pvalue > 1e-3
    assert scipy.stats.kstest(1.01 * draws, "norm").pvalue < 1e-2  # the test would see 1 % too much noise


def test_noise_is_independent_between_arrays_steps_and_lanes():
    """Correlations of 100,000 pairs within 4 standard errors; the control shares 2 % of the noise."""
    first, second = (np.asarray(x) for x in noises(200, [500, 500]))
    lane = np.asarray(noises(200, [500], seed=6)[0])

    def correlation(a, b):
        return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    limit = 4 / np.sqrt(first.size)
    assert correlation(first, second) < limit
    assert correlation(first, lane) < limit
    for lag in (1, 2, 7):
        assert correlation(first[lag:], first[:-lag]) < limit * 1.1
        assert correlation(first[lag:], second[:-lag]) < limit * 1.1
        assert correlation(first[:, lag:], first[:, :-lag]) < limit * 1.1
    assert correlation(first, second + 0.02 * first) > limit


def test_noise_norm_grows_with_the_size_of_the_array():
    """Not normalised: the noise of an array of d entries has norm sigma * sqrt(d) * ||g||, here d = 10,000."""
    gradient = jnp.ones(10_000)
    transformation = optim.add_relative_noise(0.01, 1.0, 0)
    update, _ = transformation.update(gradient, transformation.init(gradient))
    ratio = jnp.linalg.norm(update - gradient) / jnp.linalg.norm(gradient)
    np.testing.assert_allclose(ratio, 0.01 * 100, rtol=0.03)


def test_bfloat16_noise_is_drawn_in_float32_and_then_rounded():
    gradient = jnp.linspace(1.0, 2.0, 256).astype(jnp.bfloat16)
    transformation = optim.add_relative_noise(0.1, 0.5, 0)
    low, _ = transformation.update(gradient, transformation.init(gradient))
    high, _ = transformation.update(gradient.astype(jnp.float32), transformation.init(gradient))
    np.testing.assert_array_equal(low, high.astype(jnp.bfloat16))


# --- The other transformations --------------------------------------------------------------


def test_shrink_and_perturb_every_third_update(x64):
    """theta <- s * theta + sigma * xi after the updates of steps 3 and 6, with fresh noise; identity otherwise."""
    size = 20_000
    optimizer = optax.chain(optax.sgd(0.1), optim.shrink_and_perturb(0.6, 0.3, 0, every=3))
    params = jnp.linspace(-1.0, 1.0, size)
    state, update, kicks = optimizer.init(params), jax.jit(optimizer.update), []
    for step in range(1, 7):
        stepped = params - 0.1 * params**2
        updates, state = update(params**2, state, params)
        params = optax.apply_updates(params, updates)
        if step % 3:
            np.testing.assert_allclose(params, stepped, rtol=1e-12)
        else:
            kicks.append(np.asarray(params - 0.6 * stepped) / 0.3)
    assert len(kicks) == 2
    for kick in kicks:
        assert scipy.stats.kstest(kick, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(*kicks)[0, 1]) < 4 / np.sqrt(size)


def test_shrinking_without_noise_is_exact():
    updates, _ = run(optim.shrink_and_perturb(0.5, 0.0, 0, every=1), steps=1)
    expected = 0.5 * (make_params()["kernel"] + make_gradient(0)["kernel"])
    np.testing.assert_allclose(make_params()["kernel"] + updates[0]["kernel"], expected, rtol=1e-5)


def test_l2_init_is_the_gradient_of_its_penalty(x64):
    """Two steps of SGD on loss + strength * ||theta - theta_0||², differentiated by JAX; plain L2 is the control."""
    start = jnp.array([1.0, -2.0, 3.0])

    def loss(theta):
        return jnp.sum(jnp.sin(theta))

    def descend(objective, optimizer):
        theta, state = start, optimizer.init(start)
        for _ in range(5):
            updates, state = optimizer.update(jax.grad(objective)(theta), state, theta)
            theta = optax.apply_updates(theta, updates)
        return theta

    ours = descend(loss, optax.chain(optim.l2_init(0.7), optax.sgd(0.1)))
    penalised = descend(lambda theta: loss(theta) + 0.7 * jnp.sum((theta - start) ** 2), optax.sgd(0.1))
    towards_zero = descend(lambda theta: loss(theta) + 0.7 * jnp.sum(theta**2), optax.sgd(0.1))
    np.testing.assert_allclose(ours, penalised, rtol=1e-12)
    assert np.abs(ours - towards_zero).max() > 0.1


def test_keep_on_manifold_removes_what_the_optimizer_adds_off_it():
    """Adam magnifies a rounding-sized asymmetry of a gradient into a step of full size; the projector removes it."""
    params = average_pairs(make_params())
    gradient = jax.tree.map(lambda x: 1e-7 * x, make_gradient(0))

    def off_manifold(optimizer):
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(optax.tree.sub(updates, average_pairs(updates))))

    adam = optax.adam(0.1, eps=1e-12)
    assert off_manifold(adam) > 0.01
    assert off_manifold(optax.chain(adam, optim.keep_on_manifold(average_pairs))) < 1e-8


# --- Bad input ------------------------------------------------------------------------------


BAD_NOISE = [
    ("noise_decay", 1.5, r"in \[0, 1\]"),
    ("noise_decay", -0.1, r"in \[0, 1\]"),
    ("noise_decay", np.nan, r"in \[0, 1\]"),
    ("noise_scale", -0.01, "finite and at least 0"),
    ("noise_scale", np.inf, "finite and at least 0"),
    ("noise_scale", np.nan, "finite and at least 0"),
    ("noise_scale", optax.constant_schedule(0.1), "finite and at least 0"),
    ("seed", 0.5, "an integer or a jax.random.key"),
    ("seed", "7", "an integer or a jax.random.key"),
    ("seed", True, "an integer or a jax.random.key"),
    ("seed", np.arange(3), "one integer or one key"),
]
BAD_SGD = [*BAD_NOISE, ("learning_rate", -1.0, "finite and at least 0"), ("momentum", 1.1, r"in \[0, 1\]")]


@pytest.mark.parametrize(("field", "value", "allowed"), BAD_NOISE)
def test_bad_noise_is_refused_where_it_is_given(unchecked, field, value, allowed):
    arguments = {"noise_scale": 0.1, "noise_decay": 0.9, "seed": 0, field: value}
    with pytest.raises(ValueError, match=f"{field}.*must be {allowed}"):
        optim.add_relative_noise(**arguments)


@pytest.mark.parametrize(("field", "value", "allowed"), BAD_SGD)
def test_bad_noisy_sgd_is_refused_where_it_is_given(unchecked, field, value, allowed):
    """Also when the number is a concrete array."""
    arguments = {"learning_rate": 0.1, "noise_scale": 0.1, "noise_decay": 0.9, "seed": 0, field: value}
    with pytest.raises(ValueError, match=f"{field}.*must be {allowed}"):
        optim.noisy_sgd(**arguments)
    if isinstance(value, float):
        with pytest.raises(ValueError, match=f"{field}=.*must be {allowed}"):
            optim.noisy_sgd(**(arguments | {field: jnp.float32(value)}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.shrink_and_perturb(1.2, 0.1, 0, 1), r"shrink=1.2: must be in \[0, 1\]"),
        (lambda: optim.shrink_and_perturb(0.5, -1.0, 0, 1), "noise_std=-1.0: must be finite and at least 0"),
        (lambda: optim.shrink_and_perturb(0.5, 0.1, 0, 0), "every=0: must be a positive integer"),
        (lambda: optim.shrink_and_perturb(0.5, 0.1, 0, 1.5), "every=1.5: must be a positive integer"),
        (lambda: optim.l2_init(-0.1), "strength=-0.1: must be finite and at least 0"),
    ],
)
def test_other_bad_numbers_are_refused(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["shrink_and_perturb", "l2_init", "upgd", "spectral", "parseval", "nap"])
def test_missing_parameters_are_reported(name):
    transformation = ALL[name](0)
    state = transformation.init(make_params())
    with pytest.raises(ValueError, match=f"{name} needs the parameters"):
        transformation.update(make_params(), state)


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32])
@pytest.mark.parametrize("name", [*RANDOM, "l2_init"])
def test_parameters_that_are_not_real_are_named(name, dtype):
    params = make_params() | {"odd": jnp.ones(3, dtype)}
    with pytest.raises(ValueError, match=r"params\['odd'\] has dtype .*: must be real and floating-point"):
        ALL[name](0).init(params)
