"""Networks as people write them, with the sizes of their unit spaces: written by hand, not read off the tracer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Example(NamedTuple):
    """A network without labels.

    `cloneable` and `permutable` are the sizes of its free unit spaces, in ascending order.
    """

    apply: Callable[[Any, Any], Any]
    params: Any
    inputs: Any
    cloneable: list[int]
    permutable: list[int]


EXAMPLES: dict[str, Callable[[], Example]] = {}


def example(make: Callable[[], Example]) -> Callable[[], Example]:
    EXAMPLES[make.__name__] = make
    return make


def of(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def tokens(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def layer_norm(x, scale=1.0, axis=-1):
    mean = x.mean(axis, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(axis, keepdims=True) + 1e-5) * scale


# --- Dense ----------------------------------------


@example
def plain():
    def apply(p, x):
        h = jax.nn.relu(x @ p["w1"] + p["b1"])
        return jnp.tanh(h @ p["w2"] + p["b2"]) @ p["w3"]

    return Example(
        apply,
        dict(w1=of(4, 6), b1=of(6), w2=of(6, 5), b2=of(5), w3=of(5, 2)),
        of(3, 4),
        cloneable=[5, 6],
        permutable=[],
    )


@example
def torch_layout():
    def apply(p, x):
        return jax.nn.silu(x @ p["w1"].T + p["b1"]) @ p["w2"].T

    return Example(apply, dict(w1=of(6, 4), b1=of(6), w2=of(2, 6)), of(3, 4), [6], [])


@example
def actor_critic():
    def apply(p, x):
        h = jnp.tanh(x @ p["w"])
        return {
            "policy": jnp.tanh(h @ p["pi"]) @ p["pi_out"],
            "value": (jnp.tanh(h @ p["v"]) @ p["v_out"])[:, 0],
            "scale": jnp.exp(h @ p["s"]),
        }

    p = dict(w=of(4, 6), pi=of(6, 5), pi_out=of(5, 2), v=of(6, 7), v_out=of(7, 1), s=of(6, 3))
    return Example(apply, p, of(3, 4), [5, 6, 7], [])


@example
def dot_by_hand():
    def apply(p, x):
        return (jnp.tanh(x @ p["w"]) * p["r"]).sum(-1)

    return Example(apply, dict(w=of(4, 6), r=of(6)), of(3, 4), [6], [])


@example
def wide_and_deep():
    def apply(p, x):
        wide, deep = jnp.tanh(x @ p["a"]), jax.nn.relu(jax.nn.relu(x @ p["b"]) @ p["c"])
        return jnp.concatenate([wide, deep], -1) @ p["head"]

    return Example(apply, dict(a=of(4, 5), b=of(4, 6), c=of(6, 7), head=of(12, 2)), of(3, 4), [5, 6, 7], [])


@example
def dense_net():
    def apply(p, x):
        for name in ("a", "b", "c"):
            x = jnp.concatenate([x, jax.nn.relu(x @ p[name])], -1)
        return x @ p["head"]

    return Example(apply, dict(a=of(4, 5), b=of(9, 6), c=of(15, 7), head=of(22, 2)), of(3, 4), [5, 6, 7], [])


@example
def layer_norm_over_two_spaces():
    def apply(p, x):
        return layer_norm(jnp.concatenate([jnp.tanh(x @ p["a"]), jnp.tanh(x @ p["b"])], -1)) @ p["head"]

    return Example(apply, dict(a=of(4, 5), b=of(4, 6), head=of(11, 2)), of(3, 4), [], [5, 6])


@example
def gated():
    def apply(p, x):
        gate, value = jnp.split(x @ p["w12"], 2, -1)
        return (jax.nn.silu(gate) * value) @ p["w3"]

    return Example(apply, dict(w12=of(4, 12), w3=of(6, 2)), of(3, 4), [6], [])


@example
def low_rank():
    def apply(p, x):
        h = jnp.tanh(x @ (p["w"] + p["a"] @ p["b"]))
        return h @ p["c"] @ p["d"]

    return Example(apply, dict(w=of(4, 6), a=of(4, 3), b=of(3, 6), c=of(6, 5), d=of(5, 2)), of(7, 4), [3, 5, 6], [])


@example
def low_rank_torch():
    def apply(p, x):
        return jnp.tanh(x @ (p["w"] + p["b"] @ p["a"]).T) @ p["head"]

    return Example(apply, dict(w=of(6, 4), a=of(3, 4), b=of(6, 3), head=of(6, 2)), of(7, 4), [3, 6], [])


@example
def weight_norm():
    def apply(p, x):
        w = p["v"] / jnp.sqrt((p["v"] ** 2).sum(0, keepdims=True)) * p["g"]
        h = jnp.tanh(x @ w)
        u = p["u"] / jnp.sqrt((p["u"] ** 2).sum(0, keepdims=True))
        return jnp.tanh(h @ u) @ p["head"]

    # Units of the first layer are read by a normalised kernel, whose length does not change when it is divided.
    return Example(apply, dict(v=of(4, 6), g=of(6), u=of(6, 5), head=of(5, 2)), of(3, 4), [5], [6])


@example
def unit_features():
    def apply(p, x):
        h = jnp.tanh(x @ p["w"])
        return h / jnp.sqrt((h**2).sum(-1, keepdims=True)) @ p["head"]

    return Example(apply, dict(w=of(4, 6), head=of(6, 2)), of(3, 4), [], [6])


@example
def maxout_and_sort():
    def apply(p, x):
        h = (x @ p["w"]).reshape(x.shape[0], 6, 3).max(-1)
        return jnp.sort(h @ p["u"], -1) @ p["head"]

    # The pieces of a maxout unit: a maximum over clones is the same, and nothing is divided.
    return Example(apply, dict(w=of(4, 18), u=of(6, 5), head=of(5, 2)), of(7, 4), [3, 6], [])


@example
def hyper_network():
    def apply(p, x):
        code = jnp.tanh(x @ p["code"])
        kernels = (code @ p["make"]).reshape(-1, 4, 6)
        return jnp.tanh(jnp.einsum("bi,bij->bj", x, kernels)) @ p["head"]

    return Example(apply, dict(code=of(4, 5), make=of(5, 24), head=of(6, 2)), of(3, 4), [5, 6], [])


@example
def soft_mixture():
    def apply(p, x):
        gate = jax.nn.softmax(x @ p["gate"])
        h = jax.nn.relu(jnp.einsum("bi,eih->beh", x, p["w1"]))
        return jnp.einsum("be,beh,eho->bo", gate, h, p["w2"])

    return Example(apply, dict(gate=of(4, 5), w1=of(5, 4, 6), w2=of(5, 6, 2)), of(3, 4), [5, 6], [])


@example
def top_two_mixture():
    def apply(p, x):
        value, chosen = jax.lax.top_k(x @ p["gate"], 2)
        h = jax.nn.relu(jnp.einsum("bi,bkih->bkh", x, p["w1"][chosen]))
        return jnp.einsum("bk,bkh,bkho->bo", jax.nn.softmax(value), h, p["w2"][chosen])

    # Experts are looked up by number: fixed. The hidden units could be cloned, which is missed: what is looked up by
    # data counts as data, so that no parameter is seen to read them.
    return Example(apply, dict(gate=of(4, 5), w1=of(5, 4, 6), w2=of(5, 6, 2)), of(3, 4), [], [6])


@example
def batch_norm():
    def apply(p, x):
        h = x @ p["w"] + p["b"]
        h = (h - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["scale"] + p["offset"]
        return jax.nn.relu(h) @ p["head"]

    vectors = {name: of(6) for name in ("b", "mean", "var", "scale", "offset")}
    return Example(apply, dict(w=of(4, 6), head=of(6, 2), **vectors), of(3, 4), [6], [])


@example
def norm_of_the_batch():
    def apply(p, x):
        return jax.nn.relu(layer_norm(x @ p["w"], p["scale"], axis=0)) @ p["head"]

    return Example(apply, dict(w=of(4, 6), scale=of(6), head=of(6, 2)), of(3, 4), [6], [])


@example
def bias_in_front_of_a_norm_of_the_batch():
    def apply(p, x):
        return jax.nn.relu(layer_norm(x @ p["w"] + p["b"], axis=0)) @ p["head"]

    # The bias has no effect; but where it stands it is added to its unit.
    return Example(apply, dict(w=of(4, 6), b=of(6), head=of(6, 2)), of(3, 4), [6], [])


@example
def mixer():
    def apply(p, x):
        x = x @ p["embed"]
        x = x + (jax.nn.gelu(layer_norm(x).swapaxes(1, 2) @ p["t1"]) @ p["t2"]).swapaxes(1, 2)
        x = x + jax.nn.gelu(layer_norm(x) @ p["c1"]) @ p["c2"]
        return layer_norm(x).mean(1) @ p["head"]

    p = dict(embed=of(4, 8), t1=of(5, 6), t2=of(6, 5), c1=of(8, 7), c2=of(7, 8), head=of(8, 2))
    return Example(apply, p, of(3, 5, 4), [6, 7, 8], [])


@example
def deep_sets():
    def apply(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["phi"]).sum(1) @ p["rho"]) @ p["head"]

    return Example(apply, dict(phi=of(4, 6), rho=of(6, 5), head=of(5, 2)), of(3, 7, 4), [5, 6], [])


@example
def film():
    def apply(p, xs):
        x, condition = xs
        scale, shift = jnp.split(jnp.tanh(condition @ p["c"]) @ p["film"], 2, -1)
        return jax.nn.relu(layer_norm(x @ p["w"]) * (1 + scale) + shift) @ p["head"]

    p = dict(c=of(3, 5), film=of(5, 12), w=of(4, 6), head=of(6, 2))
    return Example(apply, p, (of(7, 4), of(7, 3)), [5, 6], [])


@example
def auto_encoder_tied():
    def apply(p, x):
        return jnp.tanh(x @ p["w"] + p["b"]) @ p["w"].T + p["c"]

    # One array writes and reads its units: it cannot be divided in one place only.
    return Example(apply, dict(w=of(4, 6), b=of(6), c=of(4)), of(3, 4), [], [6])


@example
def bilinear():
    def apply(p, x):
        return jnp.einsum("bi,ijk,bj->bk", jnp.tanh(x @ p["a"]), p["t"], jnp.tanh(x @ p["b"])) @ p["head"]

    return Example(apply, dict(a=of(4, 5), b=of(4, 6), t=of(5, 6, 7), head=of(7, 2)), of(3, 4), [5, 6, 7], [])


@example
def product_of_units():
    def apply(p, x):
        return jnp.prod(1 + jnp.tanh(x @ p["w"]), -1, keepdims=True) * p["s"]

    return Example(apply, dict(w=of(4, 6), s=of(2)), of(3, 4), [], [6])


@example
def numbered_units():
    def apply(p, x):
        return (jnp.tanh(x @ p["w"]) * jnp.arange(1.0, 7.0)) @ p["head"]

    return Example(apply, dict(w=of(4, 6), head=of(6, 2)), of(3, 4), [], [])


@example
def reversed_units():
    def apply(p, x):
        return jnp.tanh(x @ p["w"])[:, ::-1] @ p["head"]

    return Example(apply, dict(w=of(4, 6), head=of(6, 2)), of(3, 4), [], [])


@example
def running_sum():
    def apply(p, x):
        return jnp.cumsum(jnp.tanh(x @ p["w"]), -1) @ p["head"]

    return Example(apply, dict(w=of(4, 6), head=of(6, 2)), of(3, 4), [], [])


@example
def every_second_unit():
    def apply(p, x):
        h = jnp.tanh(x @ p["w"])
        return (h[:, ::2] * h[:, 1::2]) @ p["head"]

    # Pairs are exchanged, not the two of a pair.
    return Example(apply, dict(w=of(4, 6), head=of(3, 2)), of(7, 4), [3], [])


@example
def interleaved_gate():
    def apply(p, x):
        h = x @ p["w"] + p["b"]
        return (jax.nn.silu(h[..., ::2]) * h[..., 1::2]) @ p["head"]

    return Example(apply, dict(w=of(4, 12), b=of(12), head=of(6, 2)), of(3, 4), [6], [])


@example
def some_of_every_third():
    def apply(p, x):
        h = jnp.tanh(x @ p["w"])
        return jnp.concatenate([h[:, 1:10:3], h[:, 9:] ** 2], -1) @ p["head"]

    # Nine units in triples of which only the second is read, and four of their own behind them.
    return Example(apply, dict(w=of(4, 13), head=of(7, 2)), of(5, 4), [3, 4], [])


@example
def every_second_of_an_odd_number():
    def apply(p, x):
        return jnp.tanh(x @ p["w"])[:, ::2] @ p["head"]

    # The last unit has no partner: missed.
    return Example(apply, dict(w=of(4, 5), head=of(3, 2)), of(7, 4), [], [])


@example
def not_divided():
    def apply(p, x):
        h = jnp.tanh(x @ p["w"])
        return jnp.tanh(h.sum(-1, keepdims=True) * p["s"]) @ p["head"]

    return Example(apply, dict(w=of(4, 6), s=of(5), head=of(5, 2)), of(3, 4), [5], [6])


@example
def unused():
    def apply(p, x):
        return jnp.tanh(x @ p["w"]) @ p["head"]

    return Example(apply, dict(w=of(4, 6), head=of(6, 2), spare=of(7)), of(3, 4), [6], [7])


# --- Convolutions ----------------------------------------


def convolve(x, kernel, groups=1, stride=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


@example
def convolution_and_flatten():
    def apply(p, x):
        x = jax.nn.relu(convolve(x, p["k1"]) + p["b1"])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.relu(convolve(x, p["k2"]))
        return jax.nn.relu(x.reshape(len(x), -1) @ p["w"]) @ p["head"]

    p = dict(k1=of(3, 3, 2, 5), b1=of(5), k2=of(3, 3, 5, 6), w=of(24, 7), head=of(7, 2))
    return Example(apply, p, of(3, 4, 4, 2), [5, 6, 7], [])


@example
def separable():
    def apply(p, x):
        x = jax.nn.relu(convolve(x, p["k1"]))
        x = jax.nn.relu(convolve(x, p["depth"], groups=5))
        return convolve(x, p["point"]).mean((1, 2)) @ p["head"]

    p = dict(k1=of(3, 3, 2, 5), depth=of(3, 3, 1, 5), point=of(1, 1, 5, 7), head=of(7, 2))
    return Example(apply, p, of(3, 4, 4, 2), [5, 7], [])


@example
def grouped():
    def apply(p, x):
        x = jax.nn.relu(convolve(x, p["k1"]))
        x = jax.nn.relu(convolve(x, p["k2"], groups=3))
        return x.mean((1, 2)) @ p["head"]

    # Three groups, of which two channels are read and five are written each.
    p = dict(k1=of(3, 3, 2, 6), k2=of(3, 3, 2, 15), head=of(15, 2))
    return Example(apply, p, of(4, 4, 4, 2), [2, 3, 5], [])


@example
def group_norm():
    def apply(p, x):
        x = convolve(x, p["k"])
        x = x.reshape(*x.shape[:3], 3, 5)
        mean = x.mean((1, 2, 4), keepdims=True)
        x = (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean((1, 2, 4), keepdims=True) + 1e-5)
        x = jax.nn.relu(x.reshape(*x.shape[:3], 15) * p["scale"])
        return x.mean((1, 2)) @ p["head"]

    return Example(apply, dict(k=of(3, 3, 2, 15), scale=of(15), head=of(15, 2)), of(4, 4, 4, 2), [3, 5], [])


@example
def padded_shortcut():
    def apply(p, x):
        x = jax.nn.relu(convolve(x, p["k1"]))
        y = convolve(jax.nn.relu(convolve(x, p["k2"], stride=2)), p["k3"])
        x = jax.nn.relu(jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 4))) + y)
        return x.mean((1, 2)) @ p["head"]

    # The stream has the five channels of the first layer and four more, which start as zeros.
    p = dict(k1=of(3, 3, 2, 5), k2=of(3, 3, 5, 6), k3=of(3, 3, 6, 9), head=of(9, 2))
    return Example(apply, p, of(3, 4, 4, 2), [4, 5, 6], [])


@example
def pixel_shuffle():
    def apply(p, x):
        x = jax.nn.relu(convolve(x, p["k1"]))
        b, h, w, _ = x.shape
        x = convolve(x, p["k2"]).reshape(b, h, w, 2, 2, 5).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, 5)
        return convolve(jax.nn.relu(x), p["k3"])

    return Example(apply, dict(k1=of(3, 3, 2, 6), k2=of(3, 3, 6, 20), k3=of(3, 3, 5, 2)), of(7, 3, 3, 2), [5, 6], [])


@example
def weight_standardisation():
    def apply(p, x):
        def standard(k):
            k = k - k.mean((0, 1, 2), keepdims=True)
            return k / jnp.sqrt((k**2).mean((0, 1, 2), keepdims=True) + 1e-5)

        x = jax.nn.relu(convolve(x, standard(p["k1"])))
        return jax.nn.relu(convolve(x, standard(p["k2"]))).mean((1, 2)) @ p["head"]

    return Example(apply, dict(k1=of(3, 3, 2, 5), k2=of(3, 3, 5, 6), head=of(6, 2)), of(3, 4, 4, 2), [6], [5])


@example
def squeeze_and_excite():
    def apply(p, x):
        x = jax.nn.relu(convolve(x, p["k"]))
        gate = jax.nn.sigmoid(jax.nn.relu(x.mean((1, 2)) @ p["down"]) @ p["up"])
        return (x * gate[:, None, None, :]).mean((1, 2)) @ p["head"]

    return Example(apply, dict(k=of(3, 3, 2, 5), down=of(5, 3), up=of(3, 5), head=of(5, 2)), of(4, 4, 4, 2), [3, 5], [])


@example
def u_net():
    def apply(p, x):
        top = jax.nn.relu(convolve(x, p["a"]))
        low = jax.nn.relu(convolve(top, p["b"], stride=2))
        up = jax.image.resize(low, (len(x), 4, 4, 6), "nearest")
        return convolve(jnp.concatenate([top, up], -1), p["c"])

    return Example(apply, dict(a=of(3, 3, 2, 5), b=of(3, 3, 5, 6), c=of(3, 3, 11, 2)), of(3, 4, 4, 2), [5, 6], [])


# --- Attention ----------------------------------------


def heads(x, width):
    return x.reshape(*x.shape[:2], -1, width).swapaxes(1, 2)


def attend(q, k, v):
    weights = jax.nn.softmax(jnp.where(np.tril(np.ones((q.shape[-2],) * 2, bool)), q @ k.mT / 2.0, -jnp.inf))
    return weights @ v


def gpt(p, t, position, head):
    x = p["wte"][t] + position
    q, k, v = (heads(each, 4) for each in jnp.split(layer_norm(x, p["g1"]) @ p["qkv"] + p["bqkv"], 3, -1))
    x = x + attend(q, k, v).swapaxes(1, 2).reshape(x.shape) @ p["out"]
    x = x + jax.nn.gelu(layer_norm(x, p["g2"]) @ p["up"]) @ p["down"]
    return layer_norm(x, p["g3"]) @ head


def gpt_params():
    p = dict(wte=of(11, 8), g1=of(8), g2=of(8), g3=of(8), qkv=of(8, 24), bqkv=of(24), out=of(8, 8))
    return p | dict(up=of(8, 12), down=of(12, 8))


@example
def gpt_untied():
    p = gpt_params() | dict(wpe=of(5, 8), head=of(8, 11))
    # Stream, heads, value width, MLP; the width of queries and keys.
    return Example(lambda p, t: gpt(p, t, p["wpe"], p["head"]), p, tokens(3, 5), [2, 4, 8, 12], [4])


@example
def gpt_tied():
    p = gpt_params() | dict(wpe=of(5, 8))
    return Example(lambda p, t: gpt(p, t, p["wpe"], p["wte"].T), p, tokens(3, 5), [2, 4, 12], [4, 8])


@example
def gpt_sinusoidal():
    angles = np.arange(5)[:, None] / 10.0 ** (np.arange(8) / 4)
    p = gpt_params() | dict(head=of(8, 11))
    return Example(
        lambda p, t: gpt(p, t, np.sin(angles).astype(np.float32), p["head"]), p, tokens(3, 5), [2, 4, 12], [4]
    )


@example
def grouped_queries():
    def apply(p, x):
        q = (x @ p["q"]).reshape(*x.shape[:2], 2, 3, 4)
        k, v = ((x @ p[name]).reshape(*x.shape[:2], 2, 4) for name in "kv")
        weights = jax.nn.softmax(jnp.einsum("btkgw,bskw->bkgts", q, k))
        return jnp.einsum("bkgts,bskw->btkgw", weights, v).reshape(*x.shape[:2], 24) @ p["out"]

    # Heads of keys, queries of each, width of values; width of queries and keys.
    return Example(apply, dict(q=of(6, 24), k=of(6, 8), v=of(6, 8), out=of(24, 2)), of(7, 5, 6), [2, 3, 4], [4])


@example
def rotary():
    def apply(p, x):
        def turn(a):
            half = a.shape[-1] // 2
            angle = jnp.arange(a.shape[1])[:, None] / 10.0 ** (jnp.arange(half) / half)
            one, other = a[..., :half], a[..., half:]
            sin, cos = jnp.sin(angle), jnp.cos(angle)
            return jnp.concatenate([one * cos - other * sin, one * sin + other * cos], -1)

        q, k = turn(x @ p["q"]), turn(x @ p["k"])
        return jax.nn.softmax(q @ k.mT) @ (x @ p["v"]) @ p["out"]

    return Example(apply, dict(q=of(6, 4), k=of(6, 4), v=of(6, 5), out=of(5, 2)), of(3, 7, 6), [5], [])


def turned(a, angle):
    one, other = a[..., ::2], a[..., 1::2]
    pairs = [one * jnp.cos(angle) - other * jnp.sin(angle), other * jnp.cos(angle) + one * jnp.sin(angle)]
    return jnp.stack(pairs, -1).reshape(a.shape)


@example
def rotary_in_pairs():
    def apply(p, x):
        q, k = (heads(x @ p[name], 4) for name in "qk")
        angle = jnp.arange(x.shape[1])[:, None] / 10.0 ** jnp.arange(2)
        y = jax.nn.softmax(turned(q, angle) @ turned(k, angle).mT) @ heads(x @ p["v"], 5)
        return y.swapaxes(1, 2).reshape(*x.shape[:2], -1) @ p["out"]

    # Heads and the width of values; each pair of queries and keys has a frequency of its own.
    return Example(apply, dict(q=of(6, 8), k=of(6, 8), v=of(6, 10), out=of(10, 2)), of(3, 7, 6), [2, 5], [])


@example
def rotary_of_one_frequency():
    def apply(p, x):
        angle = jnp.arange(x.shape[1])[:, None] / 10.0
        q, k = (turned(x @ p[name], angle) for name in "qk")
        return jax.nn.softmax(q @ k.mT) @ (x @ p["v"]) @ p["out"]

    return Example(apply, dict(q=of(6, 6), k=of(6, 6), v=of(6, 5), out=of(5, 2)), of(4, 7, 6), [5], [3])


@example
def queries_keys_and_values_interleaved():
    def apply(p, x):
        h = x @ p["w"]
        q, k, v = (h[..., index::3] for index in range(3))
        return jax.nn.softmax(q @ k.mT) @ v @ p["out"]

    # One space: a triple of a query's, a key's and a value's coordinate.
    return Example(apply, dict(w=of(6, 15), out=of(5, 2)), of(4, 7, 6), [], [5])


@example
def interleaved_heads():
    def apply(p, x):
        qkv = (x @ p["qkv"]).reshape(*x.shape[:2], 2, 3, 5)
        q, k, v = (qkv[..., i, :].swapaxes(1, 2) for i in range(3))
        return (jax.nn.softmax(q @ k.mT) @ v).swapaxes(1, 2).reshape(*x.shape[:2], 10) @ p["out"]

    # Heads and the width of values; the width of queries and keys.
    return Example(apply, dict(qkv=of(6, 30), out=of(10, 2)), of(7, 4, 6), [2, 5], [5])


@example
def linear_attention():
    def apply(p, x):
        q, k = jax.nn.relu(x @ p["q"]) + 1, jax.nn.relu(x @ p["k"]) + 1
        state = jnp.einsum("btf,btv->bfv", k, x @ p["v"])
        y = jnp.einsum("btf,bfv->btv", q, state) / jnp.einsum("btf,bf->bt", q, k.sum(1))[..., None]
        return y @ p["out"]

    # Features appear in numerator and denominator alike.
    return Example(apply, dict(q=of(6, 4), k=of(6, 4), v=of(6, 5), out=of(5, 2)), of(3, 7, 6), [4, 5], [])


# --- Loops ----------------------------------------


@example
def lstm():
    def apply(p, x):
        def step(carry, x):
            h, c = carry
            i, f, g, o = jnp.split(x @ p["w"] + h @ p["u"] + p["b"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        zero = jnp.zeros((x.shape[0], 6))
        (h, _), _ = jax.lax.scan(step, (zero, zero), x.swapaxes(0, 1))
        return h @ p["head"]

    return Example(apply, dict(w=of(4, 24), u=of(6, 24), b=of(24), head=of(6, 2)), of(3, 5, 4), [6], [])


@example
def gru():
    def apply(p, x):
        def step(h, x):
            r, z = jnp.split(jax.nn.sigmoid(x @ p["w"] + h @ p["u"]), 2, -1)
            new = jnp.tanh(x @ p["wn"] + r * (h @ p["un"]))
            h = (1 - z) * new + z * h
            return h, h

        _, hs = jax.lax.scan(step, jnp.zeros((x.shape[0], 6)), x.swapaxes(0, 1))
        return hs.mean(0) @ p["head"]

    p = dict(w=of(4, 12), u=of(6, 12), wn=of(4, 6), un=of(6, 6), head=of(6, 2))
    return Example(apply, p, of(3, 5, 4), [6], [])


@example
def recurrent_while():
    def apply(p, x):
        def step(carry):
            i, h = carry
            return i + 1, jnp.tanh(jax.lax.dynamic_index_in_dim(x, i, 1, keepdims=False) @ p["w"] + h @ p["u"])

        _, h = jax.lax.while_loop(lambda c: c[0] < x.shape[1], step, (0, jnp.zeros((x.shape[0], 6))))
        return h @ p["head"]

    return Example(apply, dict(w=of(4, 6), u=of(6, 6), head=of(6, 2)), of(3, 5, 4), [6], [])


@example
def blocks_by_scan():
    def apply(p, x):
        def block(x, p):
            return x + jax.nn.relu(layer_norm(x) @ p["a"]) @ p["b"], None

        x, _ = jax.lax.scan(jax.checkpoint(block), x @ p["in"], p["blocks"])
        return x @ p["head"]

    p = {"in": of(4, 8), "blocks": dict(a=of(3, 8, 6), b=of(3, 6, 8)), "head": of(8, 2)}
    return Example(apply, p, of(7, 4), [6, 6, 6, 8], [])


@example
def branches():
    def apply(p, x):
        h = jax.nn.relu(x @ p["w"])
        h = jax.lax.cond(x.sum() > 0, lambda h: jnp.tanh(h @ p["a"]), lambda h: jax.nn.relu(h @ p["b"]), h)
        return h @ p["head"]

    return Example(apply, dict(w=of(4, 6), a=of(6, 5), b=of(6, 5), head=of(5, 2)), of(3, 4), [5, 6], [])


@example
def unrolled_recurrence():
    def apply(p, x):
        h = jnp.zeros((x.shape[0], 6))
        for t in range(3):
            h = jnp.tanh(x[:, t] @ p["w"] + h @ p["u"])
        return h @ p["head"]

    return Example(apply, dict(w=of(4, 6), u=of(6, 6), head=of(6, 2)), of(5, 3, 4), [6], [])


@example
def noisy():
    def apply(p, x):
        h = jnp.tanh(x @ p["w"])
        keep = jax.random.bernoulli(jax.random.key(0), 0.8, h.shape)
        return jax.nn.relu(jnp.where(keep, h, 0.0) @ p["u"]) @ p["head"]

    return Example(apply, dict(w=of(4, 6), u=of(6, 5), head=of(5, 2)), of(3, 4), [5], [])


@example
def unknown_primitive():
    def apply(p, x):
        h = jnp.tanh(x @ p["w"])
        return jnp.fft.fft(h).real @ p["u"] @ p["head"]

    return Example(apply, dict(w=of(4, 6), u=of(6, 5), head=of(5, 2)), of(3, 4), [5], [])
