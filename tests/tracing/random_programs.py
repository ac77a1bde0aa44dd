"""Random networks made of the primitives that have rules, one of them in a place where forgetting its rule shows.

A network is a source of units, the chosen step, up to three more random ones anywhere, and a head that reads all units.
Steps act on values `(batch, a, b)` or `(batch, b)`, on weights as well as on data.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BATCH = 5


class RandomProgram(NamedTuple):
    """`apply(params, x)`, shapes, and the steps it is made of."""

    apply: Any
    params: tuple[Any, ...]
    inputs: Any
    steps: tuple[str, ...]


def of(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def row(shape):
    """The last axis by itself."""
    return (shape[-1],)


def attention(h, q, k):
    return jnp.einsum("...ij,...kj->...ik", h @ q, h @ k)


def loop(h, u):
    return lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(c[1] @ u)), (0, h))[1]


def recurrence(h, u):
    step = lambda c, x: (jnp.tanh(c @ u + x), c * x)  # noqa: E731
    return jnp.stack(lax.scan(step, h[:, 0], jnp.moveaxis(h, 1, 0))[1], 1)


def normalised(h):
    return h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 0.1)


def convolve(h, kernel, groups=1):
    form = ("NHC", "HIO", "NHC")
    return lax.conv_general_dilated(h, kernel, (1,), "SAME", dimension_numbers=form, feature_group_count=groups)


def pooled(operation, start, axis=-1):
    def pool(h):
        window = [1] * h.ndim
        window[axis] = 2
        return lax.reduce_window(h, start, operation, window, [1] * h.ndim, "VALID")

    return pool


def none(shape):
    return ()


def square(shape):
    return ((shape[-1], shape[-1]),)


def is_3(shape):
    return len(shape) == 3


# Step: shapes of its parameters, function, and which shapes of values it takes.
STEPS: dict[str, tuple[Any, ...]] = {
    "dense": (lambda s: ((s[-1], 3), (3,)), lambda h, w, b: h @ w + b),
    "attention": (lambda s: square(s) * 2, attention, is_3),
    "convolution": (lambda s: ((2, s[-1], 3),), convolve, is_3),
    "grouped convolution": (
        lambda s: ((2, s[-1] // 2, 4),), lambda h, k: convolve(h, k, 2), lambda s: is_3(s) and s[-1] == 4,
    ),
    "tanh": (none, jnp.tanh),
    "bias": (lambda s: (row(s),), lambda h, b: h + b),
    "bias of all": (lambda s: (s[1:],), lambda h, b: h + b),
    "scale": (lambda s: (row(s),), lambda h, g: h * g),
    "negative": (none, lambda h: -jnp.abs(h)),
    "quotient": (lambda s: (row(s),), lambda h, g: h / (1 + g * g)),
    "quotient of data": (none, lambda h: h / (1 + h[..., ::1] ** 2)),
    "cube": (none, lambda h: h**3),
    "root": (none, lambda h: jnp.sqrt(jnp.abs(h) + 0 * h)),
    "real power": (none, lambda h: jnp.abs(h) ** 1.5),
    "minimum": (lambda s: (row(s),), jnp.minimum),
    "clamp": (lambda s: (row(s),), lambda h, b: lax.clamp(-1.0 + 0 * h, h, b * b + 0 * h)),
    "where": (lambda s: (row(s),), lambda h, b: jnp.where(h > b, h, 2 * b)),
    "choice": (none, lambda h: jnp.where(h > 0, h, 2 * h)),
    "compare": (lambda s: (row(s),), lambda h, b: (h > 0.3 * b).astype(h.dtype)),
    "integers": (none, lambda h: (4 * h).astype(jnp.int32).astype(h.dtype)),
    "centre": (none, lambda h: h - h.mean(-1, keepdims=True)),
    "softmax": (none, lambda h: jax.nn.softmax(h)),
    "sum": (none, lambda h: h.sum(1), is_3),
    "maximum": (none, lambda h: h.max(1), is_3),
    "product": (none, lambda h: jnp.prod(h, 1), is_3),
    "sum of last": (none, lambda h: h.sum(-1), is_3),
    "transpose": (none, lambda h: h.transpose(0, 2, 1), is_3),
    "merge": (none, lambda h: h.reshape(len(h), -1), is_3),
    "split in two": (none, lambda h: h.reshape(len(h), 2, -1), lambda s: len(s) == 2 and s[-1] % 2 == 0),
    "squeeze": (lambda s: ((*row(s), 1),), lambda h, g: lax.squeeze(h[..., None] * g, [h.ndim])),
    "broadcast": (lambda s: (row(s),), lambda h, g: h * lax.broadcast_in_dim(g, h.shape, (h.ndim - 1,))),
    "slice": (none, lambda h: h[..., 1:], lambda s: s[-1] > 2),
    "every second": (none, lambda h: h[..., ::2], lambda s: s[-1] > 2),
    "split": (none, lambda h: (lambda a, b: a * b.sum(-1, keepdims=True))(*jnp.split(h, [1], -1))),
    "split and join": (none, lambda h: jnp.concatenate(jnp.split(h, [1], -1)[::-1], -1)),
    "concatenate": (lambda s: square(s), lambda h, w: jnp.concatenate([h, h @ w], -1)),
    "stack": (none, lambda h: jnp.stack([h, 2 * h], -1).reshape(*h.shape[:2], -1), is_3),
    "unstack": (none, lambda h: (lambda a, *b: a * sum(b, 1.0))(*lax.unstack(h, 1)), is_3),
    "tile": (lambda s: ((2 * s[-1],),), lambda h, b: lax.tile(h, (1,) * (h.ndim - 1) + (2,)) + b),
    "pad": (lambda s: ((s[-1] + 1,),), lambda h, b: jnp.pad(h, [(0, 0)] * (h.ndim - 1) + [(0, 1)]) + b),
    "reverse": (none, lambda h: h[..., ::-1]),
    "running sum": (none, lambda h: lax.cumsum(h, h.ndim - 1)),
    "running maximum": (none, lambda h: lax.cummax(h, h.ndim - 1)),
    "sort": (none, lambda h: jnp.sort(h)),
    "largest": (none, lambda h: lax.top_k(h, 2)[0]),
    "number of the largest": (none, lambda h: h * (1.0 + jnp.argmax(h, -1, keepdims=True))),
    "numbered": (none, lambda h: h * (1.0 + lax.broadcasted_iota(jnp.float32, h.shape, h.ndim - 1))),
    "constant": (none, lambda h: h * np.arange(1, h.shape[-1] + 1, dtype=np.float32)),
    "look up": (none, lambda h: h[..., np.array([1, 0])]),
    "add at": (lambda s: ((),), lambda h, b: h.at[..., np.array([1, 0])].add(b)),
    "multiply at": (lambda s: ((),), lambda h, b: h.at[..., np.array([1, 0])].multiply(b)),
    "moving slice": (none, lambda h: lax.dynamic_slice_in_dim(h, 1, h.shape[-1] - 1, h.ndim - 1)),
    "write": (none, lambda h: lax.dynamic_update_slice_in_dim(h, 2 * h[..., :1], 1, h.ndim - 1)),
    "maximum of neighbours": (none, pooled(lax.max, -jnp.inf)),
    "sum of neighbours": (none, pooled(lax.add, 0.0)),
    "random": (none, lambda h: h * (1 + jax.random.bits(jax.random.key(0), h.shape[-1:]).astype(h.dtype) / 2.0**32)),
    "normalised weights": (
        lambda s: ((s[-1], 3), (3,)), lambda h, w, g: h @ (w / jnp.sqrt((w * w).sum(0, keepdims=True))) * g,
    ),
    "norm of a join": (square, lambda h, w: normalised(jnp.concatenate([h, jnp.tanh(h @ w)], -1))),
    "fourier": (none, lambda h: jnp.real(jnp.fft.fft(h))),
    "scan": (square, recurrence, is_3),
    "while": (square, loop),
    "cond": (
        lambda s: (row(s),) * 2, lambda h, a, b: lax.cond(h.sum() > 0, lambda: h * a, lambda: h[..., ::1] + b),
    ),
    "other branch": (square, lambda h, w: lax.cond(h.sum() > -99, lambda: h, lambda: h @ w)),
    "exchange": (square, lambda h, w: lax.scan(lambda c, _: ((c[1], c[0]), None), (h, h @ w), None, 1)[0][0]),
}  # fmt: skip
PLAIN = ("dense", "tanh", "bias", "scale", "transpose", "merge", "centre", "softmax", "concatenate", "split and join")


def takes(step, shape):
    return len(STEPS[step]) < 3 or STEPS[step][2](shape)


def draw_program(rng: np.random.Generator, chosen: str, *, is_scaled: bool = False) -> RandomProgram:
    """A network with a chosen step.

    Args:
        rng: draws everything.
        chosen: the step.
        is_scaled: whether the chosen step acts on a sum over units that nothing divides, and is followed by a tanh.
    """
    a, b, c = (int(rng.choice([2, 3, 4])) for _ in range(3))
    if chosen == "grouped convolution":
        b = 4
    counted = (c,) if is_scaled else ()
    functions: list[tuple[str, int, Any]] = []
    shapes: list[tuple[int, ...]] = [(4, int(np.prod((*counted, a, b))))]

    def source(h, w):
        h = jnp.tanh(h @ w).reshape(BATCH, *counted, a, b)
        return h.sum(1) if is_scaled else h

    functions.append(("source", 1, source))
    value = of(BATCH, a, b)

    def add(step):
        nonlocal value
        own, function = STEPS[step][0](value.shape), STEPS[step][1]
        value = jax.eval_shape(function, value, *(of(*shape) for shape in own))
        shapes.extend(own)
        functions.append((step, len(own), function))

    def add_some(most):
        for _ in range(rng.integers(most + 1)):
            step = str(rng.choice(PLAIN))
            if takes(step, value.shape):
                add(step)

    if not is_scaled:
        add_some(1)
    if not takes(chosen, value.shape):
        if chosen == "split in two":
            add("merge")
        elif len(value.shape) == 2:
            add("bias")
    if takes(chosen, value.shape):
        add(chosen)
    if is_scaled:
        add("tanh")
    add_some(2)
    shapes.append((int(np.prod(value.shape[1:])), 2))
    functions.append(("head", 1, lambda h, w: h.reshape(BATCH, -1) @ w))

    def apply(params, x):
        start = 0
        for _, number, function in functions:
            x = function(x, *params[start : start + number])
            start += number
        return x

    names = tuple(name for name, _, _ in functions)
    return RandomProgram(apply, tuple(of(*shape) for shape in shapes), of(BATCH, 4), names)
