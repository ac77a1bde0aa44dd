"""What optimizer states own, where their programs run, and which arrays they see: donation, devices, masks."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax import optim
from lopjax.cloning.quotient import quotient_optimizer
from lopjax.manifolds import cloned_manifold, frozen_manifold, level_set_manifold
from lopjax.models import mlp
from lopjax.random.normals import standard_normal

MODEL = mlp((4,), (6,), 2)
PARAMS = MODEL.init(jax.random.key(0))["params"]
CLONES = {"hidden_0": (0, 0, 1, 1, 2, 2)}

# --- Donation --------------------

NOISY = {
    "noisy_sgd": lambda seed: optim.noisy_sgd(0.1, 0.1, 0.9, seed, momentum=0.5),
    "shrink_and_perturb": lambda seed: optim.shrink_and_perturb(0.9, 0.1, seed, every=1),
}


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("impl", [None, "threefry2x32", "philox4x32"])
def test_a_donated_state_takes_nothing_with_it(name, impl):
    """Neither the seed, nor the transformation, nor a state that shares the key: as with optax.adam."""
    seed = 7 if impl is None else jax.random.key(7, impl=impl)
    params = {"w": jnp.ones(3)}
    optimizer = optax.chain(NOISY[name](seed), NOISY[name](seed))
    step = jax.jit(lambda state: optimizer.update(params, state, params), donate_argnums=0)
    first, after = step(optimizer.init(params))
    second, _ = step(optimizer.init(params))
    np.testing.assert_array_equal(first["w"], second["w"])
    step(after)
    if impl is not None:
        assert np.isfinite(jax.random.normal(seed))


def test_l2_init_owns_its_copy_of_the_parameters():
    params = {"w": jnp.ones(3)}
    transformation = optim.l2_init(0.1)
    state = transformation.init(params)
    jax.jit(lambda params: jax.tree.map(jnp.zeros_like, params), donate_argnums=0)(params)
    np.testing.assert_array_equal(state.initial["w"], 1)


# --- Noise of its own --------------------


def test_two_laws_with_one_seed_draw_different_noise():
    """A correlation of 100,000 pairs within 4 standard errors; it was 1."""
    ones = jnp.ones(100_000)
    relative, plain = optim.add_relative_noise(1e-3, 1.0, 5), optim.shrink_and_perturb(1.0, 1.0, 5, every=1)
    first = relative.update(ones, relative.init(ones))[0] - 1
    # Step 1 of one law, and steps 0 and 1 of the other.
    again = relative.update(ones, relative.init(ones)._replace(step=jnp.int32(1)))[0] - 1
    second = plain.update(jnp.zeros(100_000), plain.init(ones), ones)[0]
    for noise in (first, again):
        assert abs(np.corrcoef(noise, second)[0, 1]) < 4 / np.sqrt(100_000)


def test_the_noise_of_noisy_sgd_is_pinned():
    """The bits of published runs: step, then position of the array, folded into the philox key of the seed; what is
    drawn from the key then is pinned in `test_normals`."""
    transformation = optim.add_relative_noise(1.0, 1.0, 3)
    gradient = jnp.array([3.0, 4.0])
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3, impl="philox4x32"), 0), 0)
    expected = gradient + 5 * standard_normal(key, (2,))
    found, _ = transformation.update(gradient, transformation.init(gradient))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [1e-30, 1e-19, 1e-15, 1e-12, 1e19, 1e37])
def test_noise_in_proportion_to_gradients_whose_squares_leave_the_range(size):
    transformation = optim.add_relative_noise(0.1, 1.0, 3)
    gradient = jnp.array([3.0, -4.0, 0.0])
    expected, _ = transformation.update(gradient, transformation.init(gradient))
    found, _ = transformation.update(size * gradient, transformation.init(gradient))
    np.testing.assert_allclose(np.asarray(found, np.float64) / size, expected, rtol=1e-5)


def test_arrays_without_entries_pass():
    params = {"nothing": jnp.zeros((0, 3)), "w": jnp.ones(2)}
    for name in NOISY:
        transformation = NOISY[name](0)
        assert transformation.update(params, transformation.init(params), params)[0]["nothing"].shape == (0, 3)


# --- Devices --------------------

ON_TWO_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from lopjax.optim import noisy_sgd, shrink_and_perturb

mesh = Mesh(np.array(jax.devices()), ("data",))
whole = {"w": jnp.ones((8, 4))}
cut = {"w": jax.device_put(whole["w"], NamedSharding(mesh, P("data")))}
for seed in (0, np.int64(0), jax.random.key(0, impl="philox4x32"), jax.random.key(0, impl="threefry2x32")):
    optimizer = noisy_sgd(0.1, 0.01, 0.999, seed=seed)
    update = lambda g: optimizer.update(g, optimizer.init(g), g)[0]
    np.testing.assert_allclose(jax.jit(update)(cut)["w"], jax.jit(update)(whole)["w"], rtol=1e-6)
optimizer = shrink_and_perturb(0.9, 0.1, 0, every=1)
update = lambda g: optimizer.update(g, optimizer.init(g), g)[0]
expected = jax.jit(update)(whole)["w"]
np.testing.assert_allclose(jax.jit(update)(cut)["w"], expected, rtol=1e-6)
np.testing.assert_allclose(jax.pmap(update)({"w": jnp.ones((2, 8, 4))})["w"], [expected] * 2, rtol=1e-6)
replicated = jax.shard_map(update, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
np.testing.assert_allclose(jax.jit(replicated)(whole)["w"], expected, rtol=1e-6)
print("equal")
"""


@pytest.mark.slow
def test_an_int_seed_works_in_programs_over_two_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    command = [sys.executable, "-c", ON_TWO_DEVICES]
    ran = subprocess.run(
        command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert ran.stdout.strip() == "equal", ran.stderr


# --- Masks --------------------


@pytest.mark.parametrize("kind", ["cloned", "frozen"])
def test_a_masked_projection_is_the_whole_one_where_it_applies(kind):
    if kind == "cloned":
        manifold = cloned_manifold(PARAMS, MODEL.wiring, CLONES)
    else:
        manifold = frozen_manifold(PARAMS, MODEL.wiring, {"hidden_0": [0, 3]})
    gradient = jax.tree.map(lambda a: jnp.asarray(np.random.default_rng(0).normal(size=a.shape), a.dtype), PARAMS)
    projected = manifold.project(gradient)
    is_kernel = jax.tree.map(lambda a: a.ndim > 1, PARAMS)
    masked = optax.masked(optim.keep_on_manifold(manifold.project), is_kernel)
    split = optax.multi_transform(
        {"kernels": optim.keep_on_manifold(manifold.project), "biases": optax.scale(2.0)},
        jax.tree.map(lambda is_kernel: "kernels" if is_kernel else "biases", is_kernel),
    )
    for transformation, factor in ((masked, 1), (split, 2)):
        found, _ = transformation.update(gradient, transformation.init(PARAMS), PARAMS)
        for layer in PARAMS:
            np.testing.assert_array_equal(found[layer]["kernel"], projected[layer]["kernel"])
            np.testing.assert_array_equal(found[layer]["bias"], factor * gradient[layer]["bias"])
    assert np.abs(projected["hidden_0"]["bias"] - gradient["hidden_0"]["bias"]).max() > 0.1


def test_a_masked_quotient_is_the_whole_one_where_it_applies():
    whole = quotient_optimizer(optax.sgd(0.1), MODEL.wiring, 3)
    expected, _ = whole.update(PARAMS, whole.init(PARAMS), PARAMS)
    split = optax.multi_transform({True: whole, False: optax.set_to_zero()}, jax.tree.map(lambda a: a.ndim > 1, PARAMS))
    found, _ = split.update(PARAMS, split.init(PARAMS), PARAMS)
    for layer in PARAMS:
        np.testing.assert_array_equal(found[layer]["kernel"], expected[layer]["kernel"])
        np.testing.assert_array_equal(found[layer]["bias"], 0)


def test_what_looks_at_all_parameters_at_once_refuses_a_part_of_them():
    manifold = level_set_manifold(PARAMS, lambda p: jnp.sum(p["classes"]["kernel"] ** 2)[None])
    masked = optax.masked(optim.keep_on_manifold(manifold.project), jax.tree.map(lambda a: a.ndim > 1, PARAMS))
    with pytest.raises(ValueError, match="the vector has 36 entries, the parameters 44: a level set projects all"):
        masked.update(PARAMS, masked.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"missing \['params/classes/bias'"):  # a verdict needs every array
        cloned_manifold(
            {**PARAMS, "classes": {"kernel": PARAMS["classes"]["kernel"], "bias": None}}, MODEL.wiring, CLONES
        )


# --- Numbers and names --------------------


@pytest.mark.parametrize("every", [np.int64(2), np.uint8(2), jnp.int32(2), np.array(2)], ids=lambda n: type(n).__name__)
def test_every_kind_of_integer_is_a_period(unchecked, every):
    transformation = optim.shrink_and_perturb(0.5, 0.0, 0, every)
    params, updates = jnp.ones(2), []
    state = transformation.init(params)
    for _ in range(4):
        update, state = transformation.update(jnp.zeros(2), state, params)
        updates.append(float(update[0]))
    assert updates == [0, -0.5, 0, -0.5]


@pytest.mark.slow
def test_perturbing_with_a_fresh_initial_draw(x64):
    """theta <- s theta + sigma theta_fresh, other draws at other steps, and each array on its own scale."""
    params = jax.tree.map(jnp.ones_like, PARAMS)

    def initialise(key):
        return MODEL.init(key)["params"]

    drawn = []

    def spy(key):
        drawn.append(initialise(key))
        return drawn[-1]

    transformation = optim.shrink_and_perturb(0.8, 0.2, 0, 1, law="ash_adams", initialise=initialise)
    updates, state = transformation.update(params, transformation.init(params), params)
    watched = optim.shrink_and_perturb(0.8, 0.2, 0, 1, law="ash_adams", initialise=spy)
    with jax.disable_jit():
        watched.update(params, watched.init(params), params)
    expected = jax.tree.map(lambda fresh: 0.8 * 2 + 0.2 * np.asarray(fresh) - 1, drawn[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)
    later, _ = transformation.update(params, state, params)
    assert np.abs(later["hidden_0"]["kernel"] - updates["hidden_0"]["kernel"]).max() > 1e-2


def test_the_published_code_of_l2_init_pulls_half_as_hard():
    pulls = {}
    for variant in ("paper", "official"):
        transformation = optim.l2_init(0.5, variant)
        state = transformation.init(jnp.zeros(2))
        pulls[variant], _ = transformation.update(jnp.zeros(2), state, jnp.array([1.0, -2.0]))
    np.testing.assert_array_equal(pulls["paper"], [1, -2])
    np.testing.assert_array_equal(pulls["official"], [0.5, -1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.l2_init(0.1, "code"), "variant='code': must be 'paper' or 'official'"),
        (lambda: optim.upgd(0.1, 0.1, 0, variant="code"), "variant='code': must be 'paper' or 'official'"),
        (lambda: optim.upgd(0.1, 0.1, 0, 1.0), "utility_decay=1.0: must be below 1"),
        (
            lambda: optim.shrink_and_perturb(1, 0.1, 0, 1, "uniform"),
            r"law='uniform': must be one of \['kumar', 'ash_adams', 'dohare', 'start'\]",
        ),
        (lambda: optim.shrink_and_perturb(1, 0.1, 0, 1, "ash_adams"), "law='ash_adams', .* needs initialise"),
        (lambda: optim.shrink_and_perturb(1, 0.1, 0, 1, initialise=lambda k: k), "law='kumar', .* take none"),
    ],
)
def test_unknown_variants_are_refused(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_draw_of_other_arrays_is_refused():
    transformation = optim.shrink_and_perturb(
        0.8, 0.2, 0, 1, law="ash_adams", initialise=lambda key: {"w": jnp.ones(2)}
    )
    with pytest.raises(ValueError, match="initialise: its arrays are not those of the parameters"):
        transformation.update(PARAMS, transformation.init(PARAMS), PARAMS)


def test_a_fresh_draw_fills_what_a_mask_leaves():
    """Under `optax.masked` the parameters have gaps; the draw has none, and only what is left is moved."""
    params = {"kernel": jnp.ones(3), "bias": jnp.full(2, 5.0)}
    draw = {"kernel": jnp.array([1.0, 2.0, 3.0]), "bias": jnp.array([7.0, 8.0])}
    inner = optim.shrink_and_perturb(0.5, 1.0, seed=0, every=1, law="ash_adams", initialise=lambda key: draw)
    masked = optax.masked(inner, {"kernel": True, "bias": False})
    updates, _ = masked.update(jax.tree.map(jnp.zeros_like, params), masked.init(params), params)
    np.testing.assert_allclose(updates["kernel"], 0.5 + draw["kernel"] - 1)
    np.testing.assert_array_equal(updates["bias"], 0)
    other = {"kernel": jnp.ones(4)}
    inner = optim.shrink_and_perturb(0.5, 1.0, seed=0, every=1, law="ash_adams", initialise=lambda key: other)
    wrong = optax.masked(inner, {"kernel": True, "bias": False})
    with pytest.raises(ValueError, match="must return a tree like them"):
        wrong.update(jax.tree.map(jnp.zeros_like, params), wrong.init(params), params)
