"""The wiring in other tools' formats: against specifications that their authors wrote by hand, and by use."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from oracles.architectures import ARCHITECTURES

from lopjax.models import mlp
from lopjax.optim import muon_dimension_numbers
from lopjax.tracing import trace_model
from lopjax.wiring import keep_units, permutation_spec, pruning_groups, sharding_rules, unf_spec

MODEL = mlp((3,), (4, 6), 2, norm="none")
RANDOM = np.random.default_rng(0)


class Dense(nn.Module):
    """The MLP of git-re-basin: three hidden layers, then the classes."""

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(6)(x))
        return nn.log_softmax(nn.Dense(3)(x))


class VGG(nn.Module):
    """Its VGG16 cut to four convolutions in two stages: the specification says the same of each of its thirteen."""

    @nn.compact
    def __call__(self, x):
        for stage in (4, 5):
            for _ in range(2):
                x = nn.relu(nn.LayerNorm()(nn.Conv(stage, (3, 3))(x)))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = jnp.mean(x, axis=(1, 2))
        for _ in range(2):
            x = nn.relu(nn.Dense(6)(x))
        return nn.log_softmax(nn.Dense(3)(x))


class Block(nn.Module):
    """Of its ResNet20: two convolutions with layer norms, a projected shortcut where the stream changes."""

    channels: int
    strides: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.LayerNorm(name="norm1")(self.conv("conv1", self.strides)(x)))
        y = nn.LayerNorm(name="norm2")(self.conv("conv2", 1)(y))
        if self.strides > 1:
            x = nn.LayerNorm(name="shortcut_norm")(self.conv("shortcut", self.strides)(x))
        return nn.relu(y + x)

    def conv(self, name, strides):
        return nn.Conv(self.channels, (3, 3), strides=strides, use_bias=False, name=name)


class ResNet(nn.Module):
    """Its ResNet20 with two blocks in each of its three groups."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.LayerNorm(name="norm1")(nn.Conv(4, (3, 3), use_bias=False, name="conv1")(x)))
        for group, channels in enumerate((4, 5, 6)):
            for block in range(2):
                strides = 2 if group and not block else 1
                x = Block(channels, strides, name=f"group{group}_block{block}")(x)
        return nn.log_softmax(nn.Dense(3, name="dense")(jnp.mean(x, axis=(1, 2))))


def dense_published():
    """`mlp_permutation_spec(3)`."""
    perms = [None, "P_0", "P_1", "P_2", None]
    return {f"Dense_{i}/kernel": (perms[i], perms[i + 1]) for i in range(4)} | {
        f"Dense_{i}/bias": (perms[i + 1],) for i in range(4)
    }


def vgg_published():
    """`vgg16_permutation_spec` at four convolutions."""
    convs = [None, *(f"P_Conv_{i}" for i in range(4))]
    dense = [convs[-1], "P_Dense_0", "P_Dense_1", None]
    found = {f"Conv_{i}/kernel": (None, None, convs[i], convs[i + 1]) for i in range(4)}
    found |= {f"{kind}_{i}/{name}": (convs[i + 1],) for i in range(4) for kind, name in NORMED}
    found |= {f"Dense_{i}/kernel": (dense[i], dense[i + 1]) for i in range(3)}
    return found | {f"Dense_{i}/bias": (dense[i + 1],) for i in range(3)}


NORMED = (("Conv", "bias"), ("LayerNorm", "scale"), ("LayerNorm", "bias"))


def resnet_published():
    """`resnet20_permutation_spec` at two blocks a group: a stream per group, an inner space per block."""

    def conv(name, read, written):
        return {f"{name}/kernel": (None, None, read, written)}

    def norm(name, space):
        return {f"{name}/scale": (space,), f"{name}/bias": (space,)}

    found = conv("conv1", None, "P_0") | norm("norm1", "P_0")
    for group in range(3):
        for block in range(2):
            name, stream, inner = f"group{group}_block{block}", f"P_{group}", f"P_{group}_{block}"
            read = f"P_{group - 1}" if group and not block else stream
            found |= conv(f"{name}/conv1", read, inner) | norm(f"{name}/norm1", inner)
            found |= conv(f"{name}/conv2", inner, stream) | norm(f"{name}/norm2", stream)
            if read != stream:
                found |= conv(f"{name}/shortcut", read, stream) | norm(f"{name}/shortcut_norm", stream)
    return found | {"dense/kernel": ("P_2", None), "dense/bias": (None,)}


def groups(axes_to_perm):
    """Which axes go together, whatever the permutations are called; and those that stay."""
    found = {}
    for name, perms in axes_to_perm.items():
        for axis, perm in enumerate(perms):
            found.setdefault(perm, set()).add((name, axis))
    return found.pop(None), {frozenset(group) for group in found.values()}


PUBLISHED = {
    "mlp": (Dense(), (2, 4), dense_published),
    "vgg": (VGG(), (2, 8, 8, 2), vgg_published),
    "resnet": (ResNet(), (2, 8, 8, 2), resnet_published),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_traced_network_has_the_permutations_of_git_re_basin(name):
    module, shape, published = PUBLISHED[name]
    inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), inputs)
    wiring = trace_model(module.apply, params, inputs, check=False).model.wiring
    spec = permutation_spec(wiring)
    assert groups(spec.axes_to_perm) == groups(published())
    joined = {perm: {*axes} for perm, axes in spec.perm_to_axes.items()}
    assert {frozenset(axes) for axes in joined.values()} == groups(published())[1]
    # What is pruned together is what is permuted together.
    pruned = (frozenset(("/".join(m.path[1:]), m.axis) for m in group) for group in pruning_groups(wiring).values())
    assert set(pruned) == groups(published())[1]
    wrong = published()
    first = next(key for key, perms in wrong.items() if len(set(perms)) == 1 and perms[0])
    assert groups(spec.axes_to_perm) != groups({**wrong, first: (None,)})


def test_the_specification_of_neural_functionals_is_that_of_its_authors_example():
    """Their network of two layers: inputs 0, hidden units 1, classes 2; any distinct integers do."""
    example = mlp((784,), (512,), 10, norm="none")
    params = jax.eval_shape(example.init, jax.random.key(0))
    spec = unf_spec(example.wiring, params)["params"]
    (a, b), (c, d) = spec["hidden_0"]["kernel"], spec["classes"]["kernel"]
    assert spec["hidden_0"]["bias"] == (b,)
    assert spec["classes"]["bias"] == (d,)
    assert b == c
    assert len({a, b, d}) == 3
    cnn = ARCHITECTURES["cnn"].make()
    kernel = unf_spec(cnn.wiring, jax.eval_shape(cnn.init, jax.random.key(0)))["params"]["conv_0"]["kernel"]
    assert len(set(kernel)) == 4  # offsets have numbers of their own


def test_dead_ends_are_pruned_without_a_change_and_others_are_not():
    variables = MODEL.init(jax.random.key(0))
    variables["params"]["hidden_1"]["kernel"] = variables["params"]["hidden_1"]["kernel"].at[1].set(0)
    small = MODEL.resize({"hidden_0": 3})
    inputs = jnp.asarray(RANDOM.normal(size=(7, 3)), jnp.float32)
    whole = MODEL.apply(variables, inputs).logits
    kept = keep_units(MODEL.wiring, variables, {"hidden_0": [3, 0, 2]})
    assert jax.tree.map(jnp.shape, kept) == jax.tree.map(jnp.shape, jax.eval_shape(small.init, jax.random.key(0)))
    np.testing.assert_allclose(small.apply(kept, inputs).logits, whole, rtol=1e-5, atol=1e-6)
    other = small.apply(keep_units(MODEL.wiring, variables, {"hidden_0": [1, 0, 2]}), inputs).logits
    assert np.max(np.abs(other - whole)) > 1e-3


def test_pruning_groups_name_all_that_goes_with_a_unit():
    found = {(*member.path[1:], member.axis, member.is_read) for member in pruning_groups(MODEL.wiring)["hidden_0"]}
    assert found == {("hidden_0", "kernel", 1, False), ("hidden_0", "bias", 0, False), ("hidden_1", "kernel", 0, True)}
    assert set(pruning_groups(MODEL.wiring)) == {"hidden_0", "hidden_1"}
    stats = {member.path[0] for member in pruning_groups(ARCHITECTURES["mlp"].make().wiring)["hidden_0"]}
    assert stats == {"params", "batch_stats"}


def test_sharded_networks_compute_what_whole_ones_do():
    variables, inputs = MODEL.init(jax.random.key(0)), jnp.asarray(RANDOM.normal(size=(7, 3)), jnp.float32)
    rules = sharding_rules(MODEL.wiring, variables, {"hidden_0": "units", "hidden_1": "units"})
    assert rules["params"]["hidden_0"]["kernel"] == PartitionSpec(None, "units")
    assert rules["params"]["hidden_1"]["kernel"] == PartitionSpec(None, "units")  # where it is written, not where read
    assert rules["params"]["classes"]["kernel"] == PartitionSpec("units", None)
    mesh = Mesh(np.array(jax.devices()[:2]), ("units",))
    placed = jax.tree.map(lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec)), variables, rules)
    np.testing.assert_allclose(MODEL.apply(placed, inputs).logits, MODEL.apply(variables, inputs).logits, rtol=1e-5)


def test_a_gpt_is_sharded_as_in_megatron_lm():
    """arXiv 1909.08053, section 3: by columns where hidden units and heads are made, by rows where they are read."""
    model = ARCHITECTURES["gpt"].make()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rules = sharding_rules(model.wiring, shapes, {"heads_0": "model", "mlp_0": "model"})["params"]
    columns, rows = PartitionSpec(None, "model"), PartitionSpec("model", None)
    expected = jax.tree.map(lambda leaf: PartitionSpec(*[None] * leaf.ndim), shapes["params"])  # others are replicated
    expected["mlp_0"] = {"kernel": columns, "bias": PartitionSpec("model")}
    expected["mlp_0_out"]["kernel"] = rows  # its bias is added once, on every device
    for name in ("query", "key", "value"):
        expected["heads_0"][name] = {"kernel": PartitionSpec(None, "model", None), "bias": rows}
    expected["heads_0"]["out"]["kernel"] = PartitionSpec(None, "model", None)  # (width of a head, heads, stream)
    assert rules == expected
    assert sharding_rules(model.wiring, shapes, {"heads_0": "model"})["params"] != expected


def test_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "own_networks.md").read_text(encoding="utf-8")
    code = page.split("## Into other tools")[1].split("```python\n")[1].split("```")[0]
    found: dict = {}
    exec(code, found)
    assert found["permutation_spec"](found["model"].wiring).axes_to_perm["hidden_1/kernel"] == ("hidden_0", "hidden_1")
    model, variables = found["small"]
    model.apply(variables, jnp.ones((2, 8)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_muon_of_optax_runs_on_every_model(name):
    model = ARCHITECTURES[name].make()
    params = model.init(jax.random.key(0))["params"]
    numbers = muon_dimension_numbers(model.wiring, params)
    optimizer = optax.contrib.muon(0.1, muon_weight_dimension_numbers=numbers)
    gradient = jax.tree.map(lambda leaf: RANDOM.normal(size=leaf.shape).astype(leaf.dtype), params)
    updates, _ = jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p))(params, gradient)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        assert np.isfinite(update).all(), path
        assert np.abs(update).max() > 0, path


def test_muon_of_optax_orthogonalises_the_kernel_of_every_head_by_itself():
    model = ARCHITECTURES["gpt"].make()
    params = model.init(jax.random.key(0))["params"]
    numbers = muon_dimension_numbers(model.wiring, params)
    gradient = jax.tree.map(lambda leaf: jnp.asarray(RANDOM.normal(size=leaf.shape) + 1, leaf.dtype), params)
    optimizer = optax.contrib.muon(0.1, ns_steps=12, muon_weight_dimension_numbers=numbers)
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)

    def spread(matrix):
        values = np.linalg.svd(np.asarray(matrix), compute_uv=False)
        return values.max() / values.min()

    for name in ("query", "key", "value", "out"):  # (stream, heads, width of a head), and out of the heads
        kernel, before = (tree["heads_0"][name]["kernel"] for tree in (updates, gradient))
        for head in range(2):
            assert spread(kernel[:, head]) < min(2, spread(before[:, head]))
        assert spread(kernel.reshape(4, -1) if name != "out" else kernel.reshape(-1, 4)) > 2  # the control: all in one
    assert spread(updates["mlp_0"]["kernel"]) < 2


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"hidden_0": [0, 0]}, r"must be distinct units from 0 to 3, at least one"),
        ({"hidden_0": []}, "at least one"),
        ({"hidden_0": [4]}, r"kept\['hidden_0'\]=\[4\]"),
        ({"hidden_0": [0.5]}, "must be distinct units"),
        ({"input": [0]}, r"kept\['input'\]: its units cannot be removed: fixed"),
        ({"hidden": [0]}, "not in this wiring"),
    ],
)
def test_units_that_cannot_be_kept_are_refused(kept, message, unchecked):
    with pytest.raises(ValueError, match=message):
        keep_units(MODEL.wiring, MODEL.init(jax.random.key(0)), kept)
