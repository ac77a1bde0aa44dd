"""Types, scales, empty axes, NaN and infinity: each public function that takes arrays is right, or says one sentence.

Every case is computed in float64 and compared with other types, whose numbers it can hold exactly. A number that is
not finite may make a result NaN or infinite, and may be refused; it may never leave a finite number or a verdict that
the other inputs do not support.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.certificates import CloneVerdict, certify_cloned, certify_frozen, joint_margin, revival_radius
from lopjax.certificates.frozen import FrozenVerdict
from lopjax.cloning import clone_variables, find_clones
from lopjax.losses import accuracy, mean_cross_entropy, mean_squared_error
from lopjax.manifolds import cloned_manifold, distance, frozen_manifold, tangency_residual, tree_norm
from lopjax.models import mlp
from lopjax.stability import (
    DecayingNoise,
    critical_weight_decay,
    escape_probability,
    escape_quantiles,
    escape_time,
    first_passage_times,
    noise_variances,
    propagated_covariance,
    unit_blocks,
    weighted_chi_square_tail,
)
from lopjax.stability.verdicts import count_signs

NOISE = DecayingNoise(0.125, 1.0, 0.5)
# Of two numbers that every type holds exactly: a function of an array of shape (2,).
FUNCTIONS = {
    "escape_time": lambda v: escape_time(v, v * v, 512.0, 0.125),
    "noise_variances": lambda v: noise_variances(v, [3], NOISE),
    "escape_probability": lambda v: escape_probability(v, [1, 2], 2.0, [3], NOISE),
    "escape_quantiles": lambda v: escape_quantiles(v, [1, 2], 2.0, NOISE, max_steps=64),
    "weighted_chi_square_tail": lambda v: weighted_chi_square_tail(v * v, 3.0),
    "critical_weight_decay": critical_weight_decay,
    "count_signs": lambda v: np.array(count_signs(v, 1e-9)),
    "revival_radius": lambda v: revival_radius(v[None], v[:1] * v[:1]),
    "joint_margin": lambda v: joint_margin(v[None], v[:1] * v[:1], v * v, 0.125, 0.25),
    "propagated_covariance": lambda v: propagated_covariance(v[:, None] * v[None], jnp.ones((3, 2, 2)), 0.125),
}
# These refuse NaN among the numbers.
REFUSES = ("escape_probability", "escape_quantiles", "weighted_chi_square_tail")
LOSSES = {
    "mean_squared_error": lambda v: mean_squared_error(v[None], jnp.zeros((1, 2))),
    "mean_cross_entropy": lambda v: mean_cross_entropy(v[None], jnp.zeros(1, int)),
    "accuracy": lambda v: accuracy(v[None], jnp.ones(1, int)),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int32"])
@pytest.mark.parametrize("name", [*FUNCTIONS, "mean_squared_error"])
def test_types_agree_with_double_precision(x64, unchecked, name, dtype):
    """16 bits hold the numbers exactly, and nothing is computed in them: 32 bits decide the error."""
    function = {**FUNCTIONS, **LOSSES}[name]
    expected = np.asarray(function(jnp.array([-1.0, 2.0])), np.float64)
    found = np.asarray(function(jnp.array([-1, 2], dtype)), np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-5 if name in FUNCTIONS else 1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [*FUNCTIONS, *LOSSES])
def test_what_is_not_finite_is_seen(x64, unchecked, name, bad):
    """Not the answer for the finite number alone, and no other finite one, but where infinity has a meaning."""
    function = {**FUNCTIONS, **LOSSES}[name]
    values = jnp.array([-1.0, bad])
    if name in REFUSES and np.isnan(bad):
        with pytest.raises(ValueError, match="must be"):
            function(values)
        return
    found = np.asarray(function(values), np.float64)
    if name == "count_signs" and np.isnan(bad):
        np.testing.assert_array_equal(found, [0, 1, 0, 1])  # undecided
    elif np.isnan(bad):
        assert np.isnan(found).any()
    elif name in ("noise_variances", "revival_radius", "joint_margin", "propagated_covariance"):
        assert not np.isfinite(found).all()


def test_first_passage_of_a_process_that_is_not_finite_is_refused():
    """Comparisons with NaN are false: it would never be outside."""
    with pytest.raises(ValueError, match="must be finite"):
        first_passage_times([-1.0, np.nan], [1, 1], 1.0, NOISE, 3, 5, jax.random.key(0))
    with pytest.raises(ValueError, match="must be finite, and positive"):
        first_passage_times([-1.0], [1], np.nan, NOISE, 3, 5, jax.random.key(0))


def test_numbers_of_steps_that_are_none_are_refused(unchecked):
    for steps in (np.nan, np.inf, -1):
        with pytest.raises(ValueError, match="num_steps"):
            noise_variances([1.0], [steps], NOISE)


def test_empty_axes(x64):
    nothing = np.zeros(0)
    assert np.isinf(escape_time(nothing, nothing, 1.0, 0.1))
    assert noise_variances(nothing, [1, 2], NOISE).shape == (2, 0)
    np.testing.assert_array_equal(escape_probability(nothing, nothing, 1.0, [1, 2], NOISE), [0, 0])
    assert weighted_chi_square_tail(np.zeros((0, 3)), 1.0).shape == (0,)
    assert np.isinf(escape_quantiles(nothing, nothing, 1.0, NOISE, max_steps=8)).all()
    np.testing.assert_array_equal(propagated_covariance(jnp.eye(2), jnp.zeros((0, 2, 2)), 0.1), np.zeros((2, 2)))
    assert np.isnan(mean_squared_error(jnp.zeros((0, 3)), jnp.zeros((0, 3))))
    for refused in (
        lambda: critical_weight_decay(nothing),
        lambda: revival_radius(jnp.zeros((0, 2)), jnp.zeros(0)),
        lambda: joint_margin(jnp.zeros((0, 2)), jnp.zeros(0), jnp.ones(2), 0.1, 0.1),
    ):
        with pytest.raises(ValueError, match="at least one"):
            refused()


BASE, WIDE = mlp((3,), (2,), 2, activation="relu"), mlp((3,), (4,), 2, activation="relu")
PARTITION = {"hidden_0": (0, 0, 1, 1)}
BATCH = jnp.array([[1.0, 2, -1], [0.5, -1, 2], [-2, 0.25, 1]]), jnp.array([0, 1, 1])


def base_variables(dtype="float32", scale=1.0, bias=0.5):
    """Few binary digits, so that every type holds them and their halves."""
    kernel = scale * np.array([[1, -2], [0.5, 1.5], [-1, 0.25]])
    hidden = {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.full(2, bias * scale, dtype)}
    classes = {"kernel": jnp.asarray([[1.0, -0.5], [0.75, 2]], dtype), "bias": jnp.zeros(2, dtype)}
    return {"params": {"hidden_0": hidden, "classes": classes}}


@pytest.mark.parametrize(
    ("dtype", "scale"), [("bfloat16", 1.0), ("float16", 2.0**-10), ("float32", 2.0**10), ("float64", 1.0)]
)
def test_clones_are_certified_in_every_type_and_scale(x64, dtype, scale):
    clones = clone_variables(base_variables(dtype, scale), BASE.wiring, 2)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(clones)} == {dtype}
    assert certify_cloned(WIDE, clones, None, PARTITION).verdict is CloneVerdict.BLOCK_CONSTANT
    assert find_clones(WIDE, clones, BATCH[0])["hidden_0"].parameters == PARTITION["hidden_0"]
    params = clones["params"]
    manifold = cloned_manifold(params, WIDE.wiring, PARTITION)
    assert float(tangency_residual(manifold, params)) <= 64 * float(jnp.finfo(dtype).eps)
    off = {**params, "classes": {**params["classes"], "kernel": params["classes"]["kernel"].at[0, 0].add(1)}}
    length = float(distance(cloned_manifold(params, WIDE.wiring, PARTITION), off))
    assert length == pytest.approx(0.5**0.5, rel=0.02)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_parameters_that_are_not_finite_get_no_verdict(x64, bad):
    clones = clone_variables(base_variables(), BASE.wiring, 2)
    broken = jax.tree.map(lambda leaf: leaf, clones)
    broken["params"]["classes"]["kernel"] = clones["params"]["classes"]["kernel"].at[:2].set(bad)
    assert certify_cloned(WIDE, broken, None, PARTITION).verdict is CloneVerdict.UNDECIDED
    for judge in (
        lambda: find_clones(WIDE, broken, BATCH[0]),
        lambda: certify_cloned(WIDE, broken, BATCH, PARTITION),
        lambda: certify_frozen(WIDE, broken, BATCH, {"hidden_0": [0]}),
        lambda: unit_blocks(WIDE, broken, BATCH, 2),
    ):
        with pytest.raises(ValueError, match="finite"):
            judge()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dead_units_are_certified_in_every_type(x64, dtype):
    variables = base_variables(dtype, bias=-16)
    certificate = certify_frozen(BASE, variables, BATCH, {"hidden_0": [0, 1]})
    assert certificate.verdict is FrozenVerdict.FROZEN
    weights, inputs = np.array([1, 0.5, -1]), np.asarray(BATCH[0])
    radius = np.min((16 - inputs @ weights) / np.sqrt(1 + (inputs**2).sum(axis=1)))
    assert certificate.units[0].radius == pytest.approx(radius, rel=1e-6)
    manifold = frozen_manifold(variables["params"], BASE.wiring, {"hidden_0": [0, 1]})
    kept = manifold.project(variables["params"])
    assert float(tree_norm(kept["hidden_0"])) == 0
    assert float(tree_norm(kept["classes"])) > 0


def test_no_samples_and_no_units_are_refused():
    variables, nothing = base_variables(), (jnp.zeros((0, 3)), jnp.zeros(0, int))
    for judge in (
        lambda: certify_frozen(BASE, variables, nothing, {"hidden_0": [0]}),
        lambda: certify_frozen(BASE, variables, BATCH, {"hidden_0": []}),
        lambda: unit_blocks(BASE, variables, nothing, 2),
    ):
        with pytest.raises(ValueError, match=r"at least one|names no unit"):
            judge()
