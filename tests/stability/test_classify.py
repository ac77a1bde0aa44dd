"""Verdicts against planted spectra and against numpy eigenvalues of a dense Hessian between hand-made projectors."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lopjax.cloning import clone_variables, uniform_partition
from lopjax.losses import cross_entropy
from lopjax.manifolds import Manifold, cloned_manifold, frozen_manifold, level_set_manifold
from lopjax.models import mlp
from lopjax.stability import Stability, classify, unit_blocks
from lopjax.wiring import Out

# --- Planted spectra -------------------------------------------------------------------------------------------------

SIZE, CODIMENSION = 9, 6
FLOAT32_SLOW = [pytest.param("float32", marks=pytest.mark.slow), "float64"]
LANCZOS_SLOW = ["dense", pytest.param("lanczos", marks=pytest.mark.slow)]
FLOAT64_SLOW = ["float32", pytest.param("float64", marks=pytest.mark.slow)]


def planted(spectrum, dtype, seed=0):
    """`0.5 x'Hx` with this spectrum on the normal space of a random 3-space and (1, 1, -0.5) on the space itself."""
    frame = np.linalg.qr(np.random.default_rng(seed).normal(size=(SIZE, SIZE)))[0]
    matrix = jnp.asarray((frame * np.concatenate([spectrum, [1.0, 1.0, -0.5]])) @ frame.T, dtype)
    projector = jnp.asarray(frame[:, CODIMENSION:] @ frame[:, CODIMENSION:].T, dtype)
    return lambda x: 0.5 * x @ matrix @ x, Manifold(jnp.zeros(SIZE, dtype), lambda vector: projector @ vector)


def tolerance_of(dtype):
    return 64 * float(jnp.finfo(dtype).eps) * SIZE**0.5


SPECTRA = {
    "zero": ([0.0] * 6, "NEUTRAL", (0, 0, 6)),
    "identity": ([1.0] * 6, "STABLE", (6, 0, 0)),
    "negative identity": ([-0.5] * 6, "UNSTABLE", (0, 6, 0)),
    "rank deficient": ([0.3, 0.2, 0, 0, 0, 0], "SEMI_STABLE", (2, 0, 4)),
    "rank one, negative": ([-0.7, 0, 0, 0, 0, 0], "SEMI_UNSTABLE", (0, 1, 5)),
    "two clusters": ([0.9, 0.9, 0.9, -0.9, -0.9, -0.9], "SADDLE", (3, 3, 0)),
}
# In units of the tolerance, beside five eigenvalues of 0.5.
# With its bound, 10 tau, one of 9 tau exceeds the level sqrt(eps) in float32 and is far below it in float64.
AT_LEVEL = ("SEMI_STABLE", (5, 0, 1))
NEAR_ZERO = {
    "float32": {0.5: AT_LEVEL, 9.0: ("UNDECIDED", (5, 0, 0)), -9.0: ("UNDECIDED", (5, 0, 0))},
    "float64": {0.5: AT_LEVEL, 9.0: AT_LEVEL, -9.0: AT_LEVEL},
}
FAR_FROM_ZERO = {30.0: ("STABLE", (6, 0, 0)), -30.0: ("SADDLE", (5, 1, 0))}


@pytest.mark.parametrize("dtype", FLOAT32_SLOW)
@pytest.mark.parametrize("name", SPECTRA)
def test_planted_spectra_are_counted(x64, name, dtype):
    spectrum, verdict, inertia = SPECTRA[name]
    loss, manifold = planted(spectrum, dtype)
    report = classify(loss, manifold.origin, manifold)
    assert (report.verdict.name, report[1:4]) == (verdict, inertia)
    assert report.exact
    assert report.structural == 0
    np.testing.assert_allclose(report.tolerance, tolerance_of(dtype), rtol=1e-5)
    ends = [report.min_eigenvalue, report.max_eigenvalue]
    np.testing.assert_allclose(ends, [min(spectrum), max(spectrum)], atol=report.tolerance)


@pytest.mark.parametrize("dtype", FLOAT64_SLOW)
@pytest.mark.parametrize("multiple", [*NEAR_ZERO["float32"], *FAR_FROM_ZERO])
def test_eigenvalues_below_the_bound_are_undecided_or_zero_at_the_level(x64, multiple, dtype):
    loss, manifold = planted([0.5] * 5 + [multiple * tolerance_of(dtype)], dtype)
    report = classify(loss, manifold.origin, manifold)
    verdict, inertia = (NEAR_ZERO[dtype] | FAR_FROM_ZERO)[multiple]
    assert (report.verdict.name, report[1:4]) == (verdict, inertia)
    assert report.exact == (sum(inertia) == CODIMENSION)
    assert report.n_undecided == CODIMENSION - sum(inertia)
    assert ("float32" in report.note) is (dtype == "float32" and not report.exact)


@pytest.mark.parametrize("name", ["zero", "identity", "two clusters"])
def test_lanczos_counts_nothing_and_contradicts_nothing(x64, name):
    spectrum, verdict, _ = SPECTRA[name]
    loss, manifold = planted(spectrum, "float64")
    report = classify(loss, manifold.origin, manifold, "lanczos", num_steps=20)
    assert report[1:4] == (-1, -1, -1)
    assert not report.exact
    assert report.verdict in ({Stability.SADDLE} if verdict == "SADDLE" else {Stability.UNDECIDED, Stability.NEUTRAL})
    assert (report.verdict is not Stability.NEUTRAL) or verdict == "NEUTRAL"
    if verdict == "STABLE":
        assert report.note.startswith("not unstable")
    ends = [report.min_eigenvalue, report.max_eigenvalue]
    np.testing.assert_allclose(ends, [min(spectrum), max(spectrum)], atol=1e-12)
    np.testing.assert_allclose(report.tolerance, tolerance_of("float64"), rtol=1e-6)


# --- Clones: the oracle ----------------------------------------------------------------------------------------------

BASE, WIDE = mlp((3,), (3, 2), 3, activation="tanh"), mlp((3,), (6, 4), 3, activation="tanh")
PARTITION = uniform_partition(WIDE.wiring, 2)


def normal_and_gauge(params, wiring, partition):
    """Projectors onto the normal space of the leaf and onto the gauge, as Kronecker products."""

    def averages(axis, size):
        ids = np.asarray(partition.get(axis.space, range(size)))
        same = np.equal.outer(ids, ids).astype(float)
        return same / same.sum(axis=1)

    blocks = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        axes = dict(wiring.labels)["params", *(key.key for key in path)].axes
        means = [averages(axis, size) for axis, size in zip(axes, leaf.shape, strict=True)]
        inside, outside = (np.eye(1), means[0]) if isinstance(axes[0], Out) else means
        one = [np.eye(len(mean)) for mean in (inside, outside)]
        total = np.eye(leaf.size) - np.kron(inside, outside)
        blocks.append((total, np.kron(one[0] - inside, one[1] - outside)))
    sizes = np.cumsum([0] + [len(total) for total, _ in blocks])
    normal, gauge = np.zeros((2, sizes[-1], sizes[-1]))
    for start, stop, (total, flat) in zip(sizes, sizes[1:], blocks):
        normal[start:stop, start:stop], gauge[start:stop, start:stop] = total, flat
    return normal, gauge


def spectrum_between(projector, hessian):
    """Eigenvalues of `P H P` on the range of P."""
    values, vectors = np.linalg.eigh(projector)
    rows = vectors[:, values > 0.5].T
    return np.linalg.eigvalsh(rows @ hessian @ rows.T)


@cache
def clones(on_bc):
    """Wide variables on BC, or on the rest of V; the loss, its numpy Hessian, and the data; float64."""
    rng = np.random.default_rng(1)
    base = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), BASE.init(jax.random.key(0)))
    wide = clone_variables(base, BASE.wiring, 2)
    flat, unravel = ravel_pytree(wide["params"])
    _, gauge = normal_and_gauge(wide["params"], WIDE.wiring, PARTITION)
    moved = flat if on_bc else flat + gauge @ rng.normal(size=flat.shape)
    wide = {**wide, "params": unravel(jnp.asarray(moved))}
    batch = jnp.asarray(rng.normal(size=(10, 3))), jnp.asarray(rng.integers(3, size=10))
    loss = cross_entropy(WIDE, wide, batch)
    hessian = np.asarray(jax.jit(jax.hessian(lambda point: loss(unravel(point))))(moved))
    return base, wide["params"], loss, hessian, batch


@pytest.mark.slow
@pytest.mark.parametrize("on_bc", [True, False])
@pytest.mark.parametrize("space", ["leaf", "V"])
def test_clones_agree_with_numpy(x64, space, on_bc):
    _, params, loss, hessian, _ = clones(on_bc)
    normal, gauge = normal_and_gauge(params, WIDE.wiring, PARTITION)
    expected = spectrum_between(normal - gauge * (space == "V"), hessian)
    report = classify(loss, params, cloned_manifold(params, WIDE.wiring, PARTITION, space))
    assert report.verdict is Stability.SADDLE
    assert report.exact
    assert report.n_plus == np.sum(expected > 1e-10)
    assert report.n_minus == np.sum(expected < -1e-10)
    assert report.n_zero == np.sum(np.abs(expected) <= 1e-10)
    assert report.structural == (round(np.trace(gauge)) if space == "leaf" else 0)
    assert (report.space, report.note) == (space, "")
    np.testing.assert_allclose([report.min_eigenvalue, report.max_eigenvalue], expected[[0, -1]], atol=1e-12)


@pytest.mark.slow
def test_three_methods_agree_on_bc(x64):
    base, params, loss, hessian, batch = clones(True)
    manifold = cloned_manifold(params, WIDE.wiring, PARTITION)
    blocks = unit_blocks(BASE, base, batch, 2).total
    dense, lanczos = (classify(loss, params, manifold, method) for method in ("dense", "lanczos"))
    assert dense[:4] == blocks[:4]
    assert dense.structural == lanczos.structural == 6
    assert lanczos.verdict is Stability.SADDLE
    for report in (dense, lanczos):
        np.testing.assert_allclose(report[4:6], blocks[4:6], atol=1e-8)
    np.testing.assert_allclose(lanczos.tolerance, dense.tolerance, rtol=1e-6)
    scale = np.abs(np.linalg.eigvalsh(hessian)).max()
    np.testing.assert_allclose(dense.tolerance, 64 * 2**-52 * len(hessian) ** 0.5 * scale, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("method", LANCZOS_SLOW)
def test_structure_is_claimed_only_where_it_holds(x64, method):
    _, params, loss, hessian, _ = clones(True)
    manifold = cloned_manifold(params, WIDE.wiring, PARTITION)

    def decayed(params):
        return loss(params) + 0.15 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    report = classify(decayed, params, manifold, method)
    assert report.structural == (0 if method == "dense" else -1)
    if method == "dense":
        normal, _ = normal_and_gauge(params, WIDE.wiring, PARTITION)
        expected = spectrum_between(normal, hessian + 0.3 * np.eye(len(hessian)))
        assert report[1:4] == (np.sum(expected > 0), np.sum(expected < 0), 0)
    off = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size).reshape(leaf.shape)), params)
    report = classify(loss, off, cloned_manifold(off, WIDE.wiring, PARTITION), method)
    assert report.structural == (0 if method == "dense" else -1)
    assert "leaves the manifold" in report.note


@pytest.mark.slow
@pytest.mark.parametrize("method", LANCZOS_SLOW)
@pytest.mark.parametrize("dtype", FLOAT32_SLOW)
def test_dead_relu_units_are_neutral(x64, method, dtype):
    model = mlp((3,), (4,), 2)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), model.init(jax.random.key(0)))
    params = variables["params"]
    params["hidden_0"]["bias"] = params["hidden_0"]["bias"].at[1:3].set(-50.0)
    batch = jax.random.normal(jax.random.key(1), (8, 3), dtype), jnp.arange(8) % 2
    loss = cross_entropy(model, variables, batch)
    manifold = frozen_manifold(params, model.wiring, {"hidden_0": (1, 2)})
    report = classify(loss, params, manifold, method)
    # float32 cannot tell these from curvature of 4e-4 of the largest, and says so.
    assert report.verdict is (Stability.NEUTRAL if dtype == "float64" else Stability.UNDECIDED)
    assert report.space == "frozen"
    assert report.n_zero == (8 if method == "dense" and dtype == "float64" else 0 if method == "dense" else -1)
    # Control: the same parameters of live units are not flat.
    alive = classify(loss, params, frozen_manifold(params, model.wiring, {"hidden_0": (0, 3)}), method)
    assert alive.verdict is not Stability.NEUTRAL


# --- Curved manifolds ------------------------------------------------------------------------------------------------


def circle(params):
    return jnp.array([params @ params])


@pytest.mark.slow
def test_level_sets_have_verdicts_at_critical_points_only(x64):
    on_circle = jnp.array([0.6, 0.8])

    def valley(p):
        return (p @ p - 1) ** 2

    report = classify(valley, on_circle, level_set_manifold(on_circle, circle))
    assert (report.verdict, report.n_plus, report.note) == (Stability.STABLE, 1, "")
    for method in ("dense", "lanczos"):
        # Tangent gradient, so the circle is invariant to first order; but v'Hv = 0 there says nothing.
        tilted = classify(
            lambda p: valley(p) + 0.1 * jnp.arctan2(p[1], p[0]),
            on_circle,
            level_set_manifold(on_circle, circle),
            method,
        )
        assert tilted.verdict is Stability.UNDECIDED
        assert "not a critical point" in tilted.note
        assert tilted[1:4] == (-1, -1, -1)


def test_level_sets_that_lose_rank_are_undecided(x64):
    point = jnp.array([0.6, 0.8])
    twice = level_set_manifold(point, lambda p: jnp.array([p @ p, 2 * p @ p]))
    report = classify(lambda p: (p @ p - 1) ** 2, point, twice)
    assert report.verdict is Stability.UNDECIDED
    assert "constraints depend" in report.note


# --- Bad input -------------------------------------------------------------------------------------------------------


def test_bad_requests_are_refused(unchecked):
    point, manifold = jnp.zeros(3), Manifold(jnp.zeros(3), lambda vector: vector * jnp.array([1.0, 0, 0]))

    def loss(p):
        return jnp.sum(jnp.cos(p))

    with pytest.raises(ValueError, match="method='exact': must be one of"):
        classify(loss, point, manifold, "exact")
    with pytest.raises(ValueError, match="num_steps=0"):
        classify(loss, point, manifold, "lanczos", num_steps=0)
    with pytest.raises(ValueError, match=r"manifold.origin has shape \(3,\)"):
        classify(loss, jnp.zeros(4), manifold)
    with pytest.raises(ValueError, match="has the tree"):
        classify(lambda p: loss(p["a"]), {"a": point}, manifold)
    with pytest.raises(ValueError, match=r"36 bytes.*lanczos"):
        classify(loss, point, manifold, max_bytes=35)
    with pytest.raises(ValueError, match="off the manifold"):
        classify(loss, jnp.array([0.0, 1.0, 0.0]), manifold)
    with pytest.raises(ValueError, match="no normal directions"):
        classify(loss, point, Manifold(point, lambda vector: vector))
    with pytest.raises(ValueError, match="not the origin of the curved manifold"):
        classify(loss, jnp.array([0.0, 1.0]), level_set_manifold(jnp.array([1.0, 0.0]), circle))


def test_losses_without_a_hessian_are_refused(unchecked):
    point, manifold = jnp.ones(3), Manifold(jnp.ones(3), lambda vector: vector * jnp.array([1.0, 0, 0]))
    draws = iter(range(100))
    cases = {
        "must be one number": lambda p: p**2,
        "deterministic": lambda p: jnp.sum(p**2) + next(draws),
        "twice differentiable": lambda p: jax.lax.while_loop(lambda x: x < 9, lambda x: 2 * x, jnp.sum(p**2)),
        "derivatives are not": lambda p: jnp.sqrt(jnp.sum((p - 1) ** 2)),
    }
    for message, loss in cases.items():
        with pytest.raises(ValueError, match=message):
            classify(loss, point, manifold)
