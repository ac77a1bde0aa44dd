"""What the library does with a network that was read and not labelled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from traced_networks import EXAMPLES, gpt, gpt_params, layer_norm, of

from lopjax.certificates import certify_cloned
from lopjax.cloning import clone_variables, find_clones, uniform_partition
from lopjax.cloning.clone import collapse, widen
from lopjax.model import Tap
from lopjax.tracing import trace_model


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, jnp.result_type(float)), shapes)


def plain(p, x):
    return jax.nn.relu(jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"]) @ p["w3"]


PLAIN = dict(w1=of(4, 6), b1=of(6), w2=of(6, 5), w3=of(5, 3))


@pytest.mark.parametrize("name", ["gpt_untied", "dense_net", "interleaved_heads", "lstm", "pixel_shuffle"])
def test_split_and_merge_are_inverse_bit_for_bit_and_keep_inner_products(name):
    network = EXAMPLES[name]()
    model = trace_model(network.apply, network.params, network.inputs, check=False).model
    rng = np.random.default_rng(0)
    one, other = (jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), network.params) for _ in range(2))
    back = model.view.merge(model.view.split(one))
    assert jax.tree.structure(back) == jax.tree.structure(one)
    jax.tree.map(np.testing.assert_array_equal, back, one)
    inner = lambda a, b: sum(np.vdot(x, y).astype(float) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))  # noqa: E731
    np.testing.assert_allclose(inner(model.view.split(one), model.view.split(other)), inner(one, other), rtol=1e-5)
    model.wiring.labels_of(model.view.split(one))  # every piece has the shape that its label says


def test_clones_are_made_certified_found_and_collapsed(x64):
    params, x = drawn(PLAIN), jax.random.normal(jax.random.key(1), (16, 4))
    traced = trace_model(plain, params, x, check=False)
    model, variables = traced.model, traced.split(params)
    wide, cloned = widen(model, 2), clone_variables(variables, model.wiring, 2)
    np.testing.assert_allclose(wide.apply(cloned, x).logits, plain(params, x), rtol=1e-12)
    assert wide is widen(model, 2)  # nothing is compiled twice
    own = wide.view.merge(cloned)
    np.testing.assert_allclose(plain(own, x), plain(params, x), rtol=1e-12)  # the user's own function, at the wide size
    partition = uniform_partition(wide.wiring, 2)
    assert "BLOCK_CONSTANT" in str(certify_cloned(wide, cloned, None, partition))
    found = find_clones(wide, cloned, x)
    assert {space: len(set(each.parameters)) for space, each in found.items()} == {"w1": 6, "w2": 5}
    back = collapse(cloned, wide.wiring, partition)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), back, variables)


def test_widening_agrees_with_the_users_constructor(x64):
    def make(hidden, features):
        shapes = dict(w1=of(4, hidden), b1=of(hidden), w2=of(hidden, features), w3=of(features, 3))
        return plain, shapes

    params, x = drawn(PLAIN), jax.random.normal(jax.random.key(1), (7, 4))
    traced = trace_model(plain, params, x, make=make, sizes=dict(hidden=6, features=5), check=False)
    cloned = clone_variables(traced.split(params), traced.model.wiring, {"w1": 3, "w2": 2})
    constructed = widen(traced.model, {"w1": 3, "w2": 2}).apply(cloned, x).logits
    without = trace_model(plain, params, x, check=False).model
    np.testing.assert_allclose(widen(without, {"w1": 3, "w2": 2}).apply(cloned, x).logits, constructed, rtol=1e-12)
    np.testing.assert_allclose(constructed, plain(params, x), rtol=1e-12)

    def wrong(hidden, features):
        return plain, dict(w1=of(4, hidden), b1=of(hidden), w2=of(hidden, hidden - 1), w3=of(hidden - 1, 3))

    with pytest.raises(ValueError, match=r"w2: \(12, 5\) inferred, \(12, 11\) constructed"):
        trace_model(plain, params, x, make=wrong, sizes=dict(hidden=6, features=5), check=False)


def dense(p, x):
    for name in ("a", "b"):
        x = jnp.concatenate([x, jax.nn.relu(x @ p[name])], -1)
    return x @ p["head"]


def wide_and_deep(p, x):
    return jnp.concatenate([jnp.tanh(x @ p["a"]), jax.nn.relu(jax.nn.relu(x @ p["b"]) @ p["c"])], -1) @ p["head"]


def gated(p, x):
    gate, value = jnp.split(x @ p["a"], 2, -1)
    return (jax.nn.silu(gate) * value) @ p["head"]


def fused(heads):
    def apply(p, x):
        q, k, v = (each.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for each in jnp.split(x @ p["qkv"], 3, -1))
        mixed = jax.nn.softmax(q @ k.mT / 2**0.5) @ v
        return mixed.swapaxes(1, 2).reshape(*x.shape[:2], -1) @ p["out"]

    return apply


MAKERS = {
    "DenseNet": lambda a, b: (dense, dict(a=of(4, a), b=of(4 + a, b), head=of(4 + a + b, 2))),
    "wide and deep": lambda a, b, c: (wide_and_deep, dict(a=of(4, a), b=of(4, b), c=of(b, c), head=of(a + c, 2))),
    "gates": lambda a: (gated, dict(a=of(4, 2 * a), head=of(a, 2))),
    "fused QKV": lambda heads: (fused(heads), dict(qkv=of(4, 6 * heads), out=of(2 * heads, 3))),
}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("DenseNet", dict(a=5, b=3)),
        ("wide and deep", dict(a=5, b=3, c=4)),
        ("gates", dict(a=3)),
        ("fused QKV", dict(heads=3)),
    ],
)
def test_wider_networks_by_the_program_and_by_a_constructor_agree(name, sizes, x64):
    make = MAKERS[name]
    apply, shapes = make(**sizes)
    params, x = drawn(shapes), jax.random.normal(jax.random.key(1), (7, 5, 4) if name == "fused QKV" else (7, 4))
    models = [
        trace_model(apply, params, x, check=False, **options).model for options in ({}, dict(make=make, sizes=sizes))
    ]
    # The spaces that sizes set, each by a factor of its own.
    set_by = [space for space in models[0].wiring.cloneable if models[0].wiring.size(space) in sizes.values()]
    factors = {space: 2 + index % 2 for index, space in enumerate(set_by)}
    assert len(factors) == len(sizes)
    cloned = clone_variables(models[0].view.split(params), models[0].wiring, factors)
    by_program, by_make = (jax.jit(widen(model, factors).apply)(cloned, x).logits for model in models)
    np.testing.assert_allclose(by_make, by_program, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(by_make, apply(params, x), rtol=1e-12, atol=1e-14)


def test_custom_derivatives_are_kept_in_wide_networks():
    @jax.custom_vjp
    def straight_through(x):
        return jnp.round(x)

    straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (7.0 * g,))

    def apply(p, x):
        return straight_through(jnp.maximum(x @ p["w"], 0.0) * 0 + jax.nn.relu(x @ p["w"])) @ p["head"]

    params, x = drawn(dict(w=of(4, 3), head=of(3, 2))), jax.random.normal(jax.random.key(1), (5, 4))
    traced = trace_model(apply, params, x, check=False, fixed=())
    # Rounding is no symmetry of scale, but of permutations and clones.
    assert traced.model.wiring.cloneable == ("w",)
    cloned = clone_variables(traced.split(params), traced.model.wiring, 2)
    wide = widen(traced.model, 2)
    slope = jax.grad(lambda v: wide.apply(v, x).logits.sum())(cloned)["params"]["w"]
    base = jax.grad(lambda p: apply(p, x).sum())(params)["w"]
    assert float(jnp.abs(base).max()) > 0  # with round's own derivative it would be 0
    np.testing.assert_allclose(slope[:, ::2], base / 2, rtol=1e-5)


def block_rule(is_derivative):
    """A layer with a derivative rule of its own: JAX's, or a straight-through one."""

    @jax.custom_vjp
    def block(x, w):
        h = jax.nn.relu(x @ w)
        return h - h.mean(-1, keepdims=True)

    def backward(kept, g):
        x, w = kept
        h = x @ w
        g = (g - g.mean(-1, keepdims=True)) * ((h > 0) if is_derivative else 1.0)
        return g @ w.T, x.T @ g

    block.defvjp(lambda x, w: (block(x, w), (x, w)), backward)
    return lambda p, x: block(x, p["w"]) @ p["head"]


@pytest.mark.parametrize("is_derivative", [True, False])
def test_a_rule_for_a_whole_layer_is_kept_and_wider_networks_are_refused_where_it_would_be_lost(is_derivative):
    apply = block_rule(is_derivative)
    params, x = drawn(dict(w=of(4, 6), head=of(6, 2))), jax.random.normal(jax.random.key(1), (5, 4))
    model = trace_model(apply, params, x, check=False).model
    own = jax.grad(lambda p: (apply(p, x) ** 2).sum())(params)
    read = jax.grad(lambda v: (model.apply(v, x).logits ** 2).sum())(model.view.split(params))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), model.view.merge(read), own)
    assert model.wiring.cloneable == ("w",)
    if is_derivative:
        assert widen(model, 2).wiring.size("w") == 12
        return
    with pytest.raises(ValueError, match=r"custom_vjp_call at .*test_use.py.* has a derivative rule of its own.*make="):
        widen(model, 2)


def tied(p, t):
    return gpt(p, t, p["wpe"], p["wte"].T)


def sinusoidal(p, t):
    angles = np.arange(5)[:, None] / 10.0 ** (np.arange(8) / 4)
    return gpt(p, t, np.sin(angles), p["head"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("apply", "extra", "is_trapped"), [(tied, dict(wpe=of(5, 8)), True), (sinusoidal, dict(head=of(8, 11)), False)]
)
def test_equal_units_of_a_tied_stream_stay_equal_under_sgd_and_those_of_a_sinusoidal_one_do_not(
    x64, apply, extra, is_trapped
):
    params = drawn(gpt_params() | extra)
    t = jax.random.randint(jax.random.key(0), (6, 5), 0, 11)
    stream = dict(wte=1, wpe=1, g1=0, g2=0, g3=0, qkv=0, out=1, up=0, down=1, head=0)

    def equal_pair(name, array):
        rows = jnp.moveaxis(array, stream[name], 0)
        return jnp.moveaxis(rows.at[1].set(rows[0]), 0, stream[name])

    params = {name: equal_pair(name, a) if name in stream else a for name, a in params.items()}

    @jax.jit
    def step(params):
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(apply(p, t)[:, :-1], t[:, 1:]).mean()  # noqa: E731
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    for _ in range(30):
        params = step(params)
    apart = max(
        float(jnp.abs(jnp.diff(jnp.moveaxis(params[n], stream[n], 0)[:2], axis=0)).max()) for n in stream if n in params
    )
    assert apart < 1e-12 if is_trapped else apart > 1e-3
    traced = trace_model(apply, params, t, check=False)
    (space,) = {s.name for s in traced.spaces if s.size == 8} or {None}
    assert (space in traced.model.wiring.permutable) == is_trapped


def test_a_shift_of_a_pre_activation_is_not_seen_by_a_skip_connection(x64):
    def apply(p, x):
        z = x @ p["w"]
        return jnp.tanh(z) @ p["head"] + z @ p["skip"]

    params, x = drawn(dict(w=of(4, 3), head=of(3, 2), skip=of(3, 2))), jax.random.normal(jax.random.key(1), (5, 4))
    model = trace_model(apply, params, x, check=False).model
    variables = model.view.split(params)
    assert dict(model.wiring.sites)["w"].activation == "tanh"
    shift = Tap("w", jnp.full((5, 3), 0.3), jnp.full((5, 3), 0.2), "tanh")
    z = x @ params["w"]
    seen = model.apply(variables, x, perturbations={"w": shift})
    np.testing.assert_allclose(seen.logits, (jnp.tanh(z + 0.3) + 0.2) @ params["head"] + z @ params["skip"], rtol=1e-12)
    np.testing.assert_allclose(seen.taps["w"].post, jnp.tanh(z + 0.3) + 0.2, rtol=1e-12)


def recurrent_blocks(p, x):
    def step(h, x):
        h = h + jax.nn.relu(layer_norm(h) @ p["a"] + x @ p["w"]) @ p["b"]
        return h, None

    h, _ = jax.lax.scan(jax.checkpoint(step), jnp.zeros((len(x), 8)), x.swapaxes(0, 1))
    return h @ p["head"]


def test_sites_inside_scan_and_remat_carry_signals_under_vmap_and_second_derivatives(x64):
    shapes = dict(a=of(8, 6), w=of(4, 6), b=of(6, 8), head=of(8, 2))
    params, x = drawn(shapes), jax.random.normal(jax.random.key(1), (7, 3, 4))
    model = trace_model(recurrent_blocks, params, x, check=False).model
    variables = model.view.split(params)
    taps = jax.eval_shape(model.apply, variables, x).taps
    name = next(name for name, tap in taps.items() if tap.activation == "relu")
    assert taps[name].pre.shape == (7, 3, 6)  # batch, steps, units
    zero = jnp.zeros(taps[name].pre.shape)

    def loss(pre):
        return model.apply(variables, x, perturbations={name: Tap(taps[name].space, pre, zero, "relu")}).logits.sum()

    def by_hand(pre):
        h = jnp.zeros((7, 8))
        for step in range(3):
            h = h + jax.nn.relu(layer_norm(h) @ params["a"] + x[:, step] @ params["w"] + pre[:, step]) @ params["b"]
        return (h @ params["head"]).sum()

    @jax.jit
    def both(pre, direction):
        made = [jax.jvp(jax.grad(f), (pre,), (direction,)) for f in (loss, by_hand)]
        return made, jax.vmap(loss)(jnp.stack([pre, direction]))

    direction = jax.random.normal(jax.random.key(2), zero.shape)
    (found, expected), values = both(0.1 * direction, direction)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(values[1], by_hand(direction), rtol=1e-12)


def test_every_layer_of_a_scanned_stack_has_a_site_of_its_own(x64):
    network = EXAMPLES["blocks_by_scan"]()
    params, x = drawn(network.params), jax.random.normal(jax.random.key(1), (7, 4))
    model = trace_model(network.apply, params, x, check=False).model
    taps = model.apply(model.view.split(params), x).taps
    h = x @ params["in"]
    for layer in range(3):
        a, b = (params["blocks"][name][layer] for name in "ab")
        pre = layer_norm(h) @ a
        np.testing.assert_allclose(taps[f"blocks/a/{layer}"].pre, pre, rtol=1e-10, atol=1e-12)
        h = h + jax.nn.relu(pre) @ b


def test_a_mask_is_no_activation_and_the_variance_of_a_group_norm_no_site():
    def apply(p, x):
        h = (x @ p["w"]).reshape(len(x), 3, 5)
        mean = h.mean(-1, keepdims=True)
        var = jnp.maximum(0.0, (h**2).mean(-1, keepdims=True) - mean**2)
        h = ((h - mean) * jax.lax.rsqrt(var + 1e-5)).reshape(len(x), 15)
        return jnp.where(np.arange(15) >= 0, jnp.exp(h), 0.0) @ p["head"]

    model = trace_model(apply, dict(w=of(4, 15), head=of(15, 2)), of(7, 4), check=False).model
    sites = dict(model.wiring.sites)
    assert {name: site.activation for name, site in sites.items()} == {"w.0": "identity", "w.1": "identity"}


@pytest.mark.slow
def test_blocks_of_clones_and_resets_run_on_a_read_network(x64):
    from lopjax.losses import mean_cross_entropy
    from lopjax.stability import unit_blocks

    params, x = drawn(PLAIN), jax.random.normal(jax.random.key(1), (16, 4))
    y = jax.random.randint(jax.random.key(2), (16,), 0, 3)
    traced = trace_model(plain, params, x)
    model, variables = traced.model, traced.split(params)
    blocks = unit_blocks(model, variables, (x, y), factor=2, loss=mean_cross_entropy)
    assert set(blocks.spaces) == {"w1", "w2"}


# --- Networks of other libraries, as they come --------------------


def sizes_of(traced, state):
    return sorted(space.size for space in traced.spaces if space.state == state)


def test_linen_without_labels():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(5, (3, 3))(x)))
            return nn.Dense(2)(nn.LayerNorm()(nn.gelu(nn.Dense(7)(x.reshape(len(x), -1)))))

    shapes = jax.eval_shape(Net().init, jax.random.key(0), jnp.ones((3, 4, 4, 2)))
    traced = trace_model(Net().apply, shapes, of(3, 4, 4, 2))
    assert sizes_of(traced, "cloneable") == [5, 7]
    assert {path[0] for path, _ in traced.model.wiring.labels} == {"params", "batch_stats"}
    assert "Conv_0" in traced.model.wiring.cloneable
    variables = drawn(shapes)
    parameters = traced.split(variables)["params"]
    jax.tree.map(np.testing.assert_array_equal, traced.merge(parameters), variables["params"])


def test_nnx_without_labels():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.first, self.second = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    graph, state = nnx.split(Net())

    def apply(pure, x):
        own = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(own, pure)
        return nnx.merge(graph, own)(x)

    traced = trace_model(apply, nnx.to_pure_dict(state), of(3, 4))
    assert traced.model.wiring.cloneable == ("first",)


def test_equinox_without_labels():
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    module = eqx.nn.MLP(4, 2, 6, 2, activation=jax.nn.gelu, key=jax.random.key(0))
    params, static = eqx.partition(module, eqx.is_inexact_array)
    traced = trace_model(lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, of(3, 4))
    assert sizes_of(traced, "cloneable") == [6, 6]


def test_haiku_without_labels():
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")
    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([6, 5, 2])(x)))
    traced = trace_model(network.apply, jax.eval_shape(network.init, jax.random.key(0), jnp.ones((3, 4))), of(3, 4))
    assert sizes_of(traced, "cloneable") == [5, 6]
