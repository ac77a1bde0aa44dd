"""Standard normals for noise, at about half of what `jax.random.normal` costs on a CPU: Philox 2x32 and Box-Muller.

`jax.random.normal` spends twenty 32 x 32-bit products on a word (the four words of a `philox4x32` block are xored into
one) and then inverts the error function of it, logarithms and two polynomials included. Here ten products make two
words, the words make a radius and an angle, and radius and angle make two normals. XLA keeps the radius and computes
the angle once for each of the two, which is why the generator is the cheaper Philox of the two.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Key, UInt32

MULTIPLIER, KEY_INCREMENT, ROUNDS = 0xD256D193, 0x9E3779B9, 10
# sin(pi/2 x) = x * polynomial(x²) on [-1, 1], within 7e-9: the minimax coefficients, highest degree first.
SINE = (1.51678532e-04, -4.67415750e-03, 7.96899269e-02, -6.45963761e-01, 1.57079632e00)


def philox2x32(
    key: UInt32[Array, ""], low: UInt32[Array, "..."], high: UInt32[Array, "..."]
) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """The block cipher Philox 2x32 of ten rounds: two random words for each counter (low, high).

    References:
        Salmon, Moraes, Dror & Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3*, SC11,
        `doi:10.1145/2063384.2063405 <https://doi.org/10.1145/2063384.2063405>`_.
    """
    multiplier = jnp.full_like(low, MULTIPLIER)
    for _ in range(ROUNDS):
        low, high = jax.lax.mulhi(multiplier, low) ^ key ^ high, multiplier * low
        key = key + jnp.uint32(KEY_INCREMENT)
    return low, high


def radius(word: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """sqrt(-2 log u) with u = (k + 1/2) / 2**31, k the upper 31 bits: at most 6.66."""
    k = (word >> 1).astype(jnp.int32).astype(jnp.float32)
    return jnp.sqrt(-2 * jnp.log((k + 0.5) * np.float32(2**-31)))


def sine_and_cosine_arguments(word: UInt32[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Numbers a, b in [-1, 1] for which (sin(pi a / 2), sin(pi b / 2)) is a point on the circle, uniformly drawn.

    The upper 31 bits place it on the right half circle, a uniform and b = 1 - |a|; the lowest bit is b's sign.
    """
    a = (jax.lax.bitcast_convert_type(word, jnp.int32) >> 1).astype(jnp.float32) * np.float32(2**-30)
    sign = jnp.where(word & 1, np.float32(-1), np.float32(1))
    return a, sign * (1 - jnp.abs(a))


@partial(jax.jit, static_argnames=("shape", "dtype"))
def standard_normal(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Independent standard normals: a pure function of the key and of how many there are.

    In float32 they are pairs of Box and Muller, r sin(t) in the first half of the array and r cos(t) in the second,
    from a block of 64 bits per pair. Each of the two has its own direction of 32 bits and a radius of 31, in float32
    arithmetic, so that no draw is above 6.66 in absolute value (a normal is, once in 4e10 draws; JAX's own are at most
    5.42, which a normal passes once in 2e7). float64 is drawn by `jax.random.normal`.

    Args:
        key: one key of any implementation. It makes the 64 bits that the counters start from.
        shape: shape of the array, with at most 2**33 entries.
        dtype: float32 or float64.

    Returns:
        The array.

    References:
        Box & Muller, *A Note on the Generation of Random Normal Deviates*, Annals of Mathematical Statistics 29 (1958).
    """
    if jnp.dtype(dtype) != jnp.float32:
        return jax.random.normal(key, shape, dtype)
    return _normals(_words(key), shape)


def standard_normals(
    key: Key[Array, ""],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[DTypeLike],
    is_needed: Bool[Array, ""] | bool = True,
) -> list[Array]:
    """Independent standard normals for many arrays: the same bits as `standard_normal(fold_in(key, position), ...)`.

    The keys of all arrays are derived in one go, and the arrays of one shape are drawn in one go: done one by one, XLA
    copies the whole derivation into the kernels of every array and compiles those of each array anew.

    Args:
        key: one key of any implementation.
        shapes: shape of every array.
        dtypes: its type, as in `standard_normal`.
        is_needed: whether to draw; if false, traced or not, all arrays are zero. The branches that this takes are also
            what XLA does not copy into other kernels.

    Returns:
        The arrays.
    """
    if not shapes:
        return []
    num = len(shapes)

    def derive() -> tuple[Array, Array]:
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num, dtype=jnp.uint32))
        return jax.random.key_data(keys), jax.vmap(_words)(keys)

    def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return jnp.zeros(shape, dtype)

    def unless_needless(make: Callable[[], Any]) -> Any:
        if isinstance(is_needed, bool):
            return make() if is_needed else jax.tree.map(lambda x: zeros(x.shape, x.dtype), jax.eval_shape(make))
        none = jax.eval_shape(make)
        return jax.lax.cond(is_needed, make, lambda: jax.tree.map(lambda x: zeros(x.shape, x.dtype), none))

    data, words = unless_needless(derive)
    alike: dict[tuple[tuple[int, ...], np.dtype], list[int]] = {}
    for position, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        alike.setdefault((tuple(shape), np.dtype(dtype)), []).append(position)

    def draw() -> list[Array]:
        drawn: dict[int, Array] = {}
        for (shape, dtype), positions in alike.items():
            rows = np.array(positions)
            if dtype == np.float32:
                arrays = jax.vmap(partial(_normals, shape=shape))(words[rows])
            else:
                keys = jax.random.wrap_key_data(data[rows], impl=jax.random.key_impl(key))
                arrays = jax.vmap(lambda one, shape=shape, dtype=dtype: jax.random.normal(one, shape, dtype))(keys)
            drawn |= dict(zip(positions, arrays, strict=True))
        return [drawn[position] for position in range(num)]

    return unless_needless(draw)


def _words(key: Key[Array, ""]) -> UInt32[Array, " 2"]:
    """The key of the cipher, and the upper word of its counters."""
    return jax.random.bits(key, (2,), jnp.uint32)


@partial(jax.jit, static_argnames="shape")
def _normals(words: UInt32[Array, " 2"], shape: tuple[int, ...]) -> Float32[Array, "..."]:
    """Pairs of Box and Muller, as many as fill an array."""
    size = math.prod(shape)
    pairs = (size + 1) // 2
    cipher_key, high = words
    first, second = philox2x32(cipher_key, jax.lax.iota(jnp.uint32, pairs), jnp.broadcast_to(high, (pairs,)))
    # Two rows of pairs, not pairs of two: a short last axis is not vectorised (three times slower).
    a, b = sine_and_cosine_arguments(second)
    x = jnp.where(jnp.arange(2)[:, None] == 0, a[None], b[None])
    normals = radius(first)[None] * x * jnp.polyval(jnp.array(SINE, jnp.float32), x * x, unroll=16)
    return normals.reshape(2 * pairs)[:size].reshape(shape)
