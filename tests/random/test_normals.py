"""Philox against its published words, normals against Box-Muller in long double, a million against their law."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lopjax.random import normals

PHILOX, THREEFRY = (jax.random.key(3, impl=impl) for impl in ("philox4x32", "threefry2x32"))
COUNT = 1_000_000

# Random123's table of known answers: rounds, counter (low, high), key, words.
KNOWN = [
    (10, (0x00000000, 0x00000000), 0x00000000, (0xFF1DAE59, 0x6CD10DF2)),
    (10, (0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF, (0x2C3F628B, 0xAB4FD7AD)),
    (10, (0x243F6A88, 0x85A308D3), 0x13198A2E, (0xDD7CE038, 0xF62A4C12)),
    (7, (0x243F6A88, 0x85A308D3), 0x13198A2E, (0xBEDBBE6B, 0xE4C770B3)),
]


@pytest.mark.parametrize(("rounds", "counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(rounds, counter, key, words):
    """And with ten rounds not the words of seven."""
    low, high = (jnp.array([word], jnp.uint32) for word in counter)
    found = normals.philox2x32(jnp.uint32(key), low, high)
    assert ([int(word[0]) for word in found] == list(words)) == (rounds == 10)


def philox_in_python(key, low, high):
    for _ in range(10):
        product = 0xD256D193 * low
        low, high = (product >> 32) ^ key ^ high, product & 0xFFFFFFFF
        key = (key + 0x9E3779B9) & 0xFFFFFFFF
    return low, high


def box_muller(key, size):
    """All in Python's integers and numpy's long doubles."""
    cipher_key, start = (int(word) for word in jax.random.bits(key, (2,), jnp.uint32))
    words = np.array([philox_in_python(cipher_key, i, start) for i in range((size + 1) // 2)], np.int64).reshape(-1, 2)
    u = (np.longdouble(words[:, 0] >> 1) + 0.5) / 2**31
    signed = words[:, 1] - (words[:, 1] >= 2**31) * 2**32
    angle = np.longdouble(signed >> 1) / 2**30 * np.pi / 2
    cosine = np.where(words[:, 1] & 1, -1, 1) * np.cos(angle)
    return (np.sqrt(-2 * np.log(u)) * [np.sin(angle), cosine]).ravel()[:size]


@pytest.mark.parametrize("key", [PHILOX, THREEFRY], ids=["philox", "threefry"])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (4, 5), (3, 7, 11)])
def test_normals_are_those_of_box_and_muller(key, shape):
    found, expected = normals.standard_normal(key, shape), box_muller(key, int(np.prod(shape)))
    assert found.shape == shape
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-5, atol=1e-6)


def test_the_farthest_and_the_nearest_word():
    """No word gives an infinite or undefined number, and the largest radius is the documented one."""
    words = jnp.array([0, 1, 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1], jnp.uint32)
    radii = normals.radius(words)
    np.testing.assert_allclose(radii[0], np.sqrt(-2 * np.log(2.0**-32)), rtol=1e-6)
    assert radii[0] < 6.661
    assert np.all(np.diff(radii) <= 0)
    assert radii[-1] == 0
    for values in normals.sine_and_cosine_arguments(words):
        assert np.all(np.abs(values) <= 1)


def test_float64_comes_from_jax(x64):
    expected = jax.random.normal(PHILOX, (3, 4), jnp.float64)
    np.testing.assert_array_equal(normals.standard_normal(PHILOX, (3, 4), jnp.float64), expected)


def test_many_arrays_are_drawn_like_one_after_the_other(x64):
    """One derivation of all keys, and the bits of a derivation each; the control: positions matter."""
    shapes, dtypes = [(2, 3), (), (0,), (5,), (2, 3)], [jnp.float32, jnp.float32, jnp.float32, jnp.float64, jnp.float32]
    found = normals.standard_normals(PHILOX, shapes, dtypes)
    for position, (draw, shape, dtype) in enumerate(zip(found, shapes, dtypes, strict=True)):
        alone = normals.standard_normal(jax.random.fold_in(PHILOX, position), shape, dtype)
        np.testing.assert_array_equal(draw, alone, strict=True)
    assert not np.any(found[0] == found[-1])
    assert normals.standard_normals(PHILOX, [], []) == []


def test_company_and_compilation_change_nothing():
    """One lane eagerly, compiled, in a scan over lanes, and beside other lanes: the same to the last bit but two."""
    keys = jax.random.split(PHILOX, 3)
    draw = partial(normals.standard_normal, shape=(37, 11))
    together, mapped = jax.jit(jax.vmap(draw))(keys), jax.jit(lambda keys: jax.lax.map(draw, keys))(keys)
    for lane, key in enumerate(keys):
        alone = jax.jit(draw)(key)
        np.testing.assert_array_equal(mapped[lane], alone)
        np.testing.assert_allclose(together[lane], alone, rtol=5e-7, atol=1e-7)
        np.testing.assert_allclose(draw(key), alone, rtol=5e-7, atol=1e-7)


# --- The law ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def draws():
    return np.asarray(normals.standard_normal(PHILOX, (COUNT,)), np.float64)


def kolmogorov_smirnov(values):
    return scipy.stats.kstest(values, "norm").pvalue


@pytest.mark.slow
def test_a_million_draws_are_standard_normal(draws):
    """Four moments within 4 standard errors and KS; the controls: 0.3 % too wide, cut at 2.5, on a lattice of 1/100."""
    assert abs(draws.mean()) < 4 / np.sqrt(COUNT)
    assert abs(draws.var() - 1) < 4 * np.sqrt(2 / COUNT)
    assert abs(scipy.stats.skew(draws)) < 4 * np.sqrt(6 / COUNT)
    assert abs(scipy.stats.kurtosis(draws)) < 4 * np.sqrt(24 / COUNT)
    assert kolmogorov_smirnov(draws) > 1e-3
    for half in np.split(draws, 2):  # the sines and the cosines
        assert kolmogorov_smirnov(half) > 1e-3
    assert abs((1.003 * draws).var() - 1) > 4 * np.sqrt(2 / COUNT)
    assert kolmogorov_smirnov(1.01 * draws) < 1e-3
    assert kolmogorov_smirnov(np.round(draws, 2)) < 1e-3
    assert abs(scipy.stats.kurtosis(np.clip(draws, -2.5, 2.5))) > 4 * np.sqrt(24 / COUNT)


@pytest.mark.parametrize("level", [2.0, 3.0, 4.0, 4.5])
def test_the_tails_have_the_weight_of_a_normal(draws, level):
    """A two-sided Poisson test of each tail; beyond 4.5 three or four draws are expected, twice as many in both."""
    expected = COUNT * scipy.stats.norm.sf(level)
    for count in ((draws > level).sum(), (draws < -level).sum()):
        assert scipy.stats.poisson.cdf(count, expected) > 1e-4
        assert scipy.stats.poisson.sf(count - 1, expected) > 1e-4
    if level <= 4:  # the control: tails of a Gaussian that is 15 % too narrow
        assert scipy.stats.poisson.cdf((draws > level / 0.85).sum(), expected) < 1e-3


def test_the_two_of_a_pair_are_independent(draws):
    """Uniform on the circle, their squares uncorrelated; the control shares the radius but not the angle."""
    pairs = COUNT // 2
    sine, cosine = draws[:pairs], draws[pairs:]

    def correlation(a, b):
        return abs(np.corrcoef(a, b)[0, 1])

    limit = 4 / np.sqrt(pairs)
    assert correlation(sine, cosine) < limit
    assert correlation(sine**2, cosine**2) < limit
    angle = np.arctan2(sine, cosine) / (2 * np.pi) + 0.5
    assert scipy.stats.kstest(angle, "uniform").pvalue > 1e-3
    shared = np.hypot(sine, cosine) * np.sin(2 * np.pi * np.random.default_rng(0).uniform(size=pairs))
    assert correlation(sine**2, shared**2) > limit
    for lag in (1, 2, 3, 16, 256):
        assert correlation(draws[lag:], draws[:-lag]) < limit
        assert correlation(draws[lag:] ** 2, draws[:-lag] ** 2) < limit


def test_neighbouring_keys_are_independent():
    """The keys of steps and arrays: correlations of 200,000 draws within 4 standard errors; the control shares 2 %."""
    keys = [jax.random.fold_in(PHILOX, step) for step in range(4)] + [jax.random.fold_in(THREEFRY, 0)]
    values = np.asarray(jax.vmap(lambda key: normals.standard_normal(key, (200_000,)))(jnp.stack(keys[:4])))
    values = np.vstack([values, normals.standard_normal(keys[4], (200_000,))])
    correlations = np.abs(np.corrcoef(values) - np.eye(5))
    assert correlations.max() < 4.5 / np.sqrt(200_000)
    assert abs(np.corrcoef(values[0], values[1] + 0.02 * values[0])[0, 1]) > 4.5 / np.sqrt(200_000)


def test_arrays_that_are_not_needed_are_zero_and_the_others_keep_their_bits():
    shapes, dtypes = [(3, 4), (5,), (3, 4)], [jnp.float32] * 3
    drawn = jax.jit(lambda is_needed: normals.standard_normals(PHILOX, shapes, dtypes, is_needed))
    plain = normals.standard_normals(PHILOX, shapes, dtypes)
    for one, other, none in zip(drawn(jnp.bool_(True)), plain, drawn(jnp.bool_(False)), strict=True):
        np.testing.assert_array_equal(one, other)
        assert not none.any()
        assert other.all()  # control: a draw is not zero
