"""Networks from a package on the registry: read, cloned, certified. Spaces are those of the papers, counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.certificates import certify_cloned
from lopjax.cloning import uniform_partition
from lopjax.tracing import trace_model


def haiku_network(function, x):
    """`(apply, variables)` of a Haiku function of inputs and `is_training`; averages of batch norms are variables."""
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")
    pair = hk.without_apply_rng(hk.transform_with_state(function))
    shapes = jax.eval_shape(lambda key: hk.transform_with_state(function).init(key, x, True), jax.random.key(0))
    params, state = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    averages = {name: {"average": own["average"]} for name, own in state.items() if "average" in own}

    def apply(variables, x):
        merged = {name: own | variables["state"].get(name, {}) for name, own in state.items()}
        return pair.apply(variables["params"], merged, x, False)[0]

    return apply, {"params": params, "state": averages}


def drawn(tree, seed=0):
    """Parameters at which activations are alive; averages of batch norms stay positive."""
    rng = np.random.default_rng(seed)
    return {
        "params": jax.tree.map(lambda leaf: (rng.normal(size=leaf.shape) / 2).astype(np.float32), tree["params"]),
        "state": jax.tree.map(lambda leaf: rng.uniform(0.5, 1.0, leaf.shape).astype(np.float32), tree["state"]),
    }


@pytest.mark.slow
def test_mobile_net_v1_of_haiku():
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)
    net = lambda x, t: hk.nets.MobileNetV1(strides=(1, 2), channels=(4, 5), num_classes=3)(x, is_training=t)  # noqa: E731
    apply, shapes = haiku_network(net, x)
    variables = drawn(shapes)
    traced = trace_model(apply, variables, x)
    # The first convolution's 32 channels, which the depthwise one keeps, and those of the two blocks.
    assert sorted(space.size for space in traced.spaces if space.state == "cloneable") == [4, 5, 32]
    assert not traced.verification.unreached
    assert max(traced.verification[:3]) < 1e-5
    spaces = {space.name: 2 for space in traced.spaces if space.size in (4, 5)}
    wide, clones = traced.clone(variables, spaces)
    np.testing.assert_allclose(wide.apply(clones, x).logits, apply(variables, x), rtol=1e-4, atol=1e-5)
    certificate = certify_cloned(wide, clones, (x, jnp.array([0, 1, 2])), uniform_partition(wide.wiring, spaces))
    assert "BLOCK_CONSTANT" in str(certificate)


def test_a_transformer_by_layer_stack_of_haiku():
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")

    def net(x, t):
        def block(x):
            normed = hk.LayerNorm(-1, True, True)(x)
            attention = hk.MultiHeadAttention(2, 3, w_init=hk.initializers.VarianceScaling(1.0), model_size=8)
            x = x + attention(normed, normed, normed)
            return x + hk.Linear(8)(jax.nn.gelu(hk.Linear(6)(hk.LayerNorm(-1, True, True)(x))))

        return hk.Linear(2)(hk.experimental.layer_stack(2)(block)(hk.Linear(8)(x)))

    x = np.ones((3, 5, 4), np.float32)
    apply, shapes = haiku_network(net, x)
    traced = trace_model(apply, shapes, x, check=False)
    sizes = {state: sorted(s.size for s in traced.spaces if s.state == state) for state in ("cloneable", "permutable")}
    # The stream; in each layer heads, the width of values, the hidden units; that of queries and keys is exchanged.
    assert sizes == {"cloneable": [2, 2, 3, 3, 6, 6, 8], "permutable": [3, 3]}
