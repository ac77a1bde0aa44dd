"""Certificates against numpy: residuals summed block by block, radii probed by perturbations, boxes by sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.certificates import (
    CloneVerdict,
    FrozenVerdict,
    certify_cloned,
    certify_frozen,
    interval_bounds,
    joint_margin,
    revival_radius,
)
from lopjax.losses import cross_entropy
from lopjax.models import cnn, mlp

PARTITION = {"hidden_0": (0, 1, 0, 2, 1, 1), "hidden_1": (0, 0, 1, 0, 1)}
CLUSTERS = {
    "hidden_0": [[0, 2], [1, 4, 5], [3]],
    "hidden_1": [[0, 1, 3], [2, 4]],
    "input": [[0], [1], [2], [3]],
    "classes": [[0], [1], [2]],
}


def random_variables(model, seed):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    drawn = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-0.7, 0.7, leaf.shape)), shapes)
    return {**drawn, "batch_stats": jax.tree.map(lambda leaf: 1 + leaf**2, drawn.get("batch_stats", {}))}


def data(shape=(4,), samples=12, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(samples, *shape))), jnp.arange(samples) % 3


def block_constant(variables, gauge=0.0, seed=0):
    """Equal weights in every block, biases equal in clusters; `gauge` adds patterns with zero row and column sums."""
    rng, params = np.random.default_rng(seed), {}
    layers = [("hidden_0", "input"), ("hidden_1", "hidden_0"), ("classes", "hidden_1")]
    for name, source in layers:
        kernel, bias = (np.array(variables["params"][name][key]) for key in ("kernel", "bias"))
        for targets in CLUSTERS[name]:
            bias[targets] = bias[targets].mean()
            for sources in CLUSTERS[source]:
                noise = rng.normal(size=(len(sources), len(targets)))
                noise = noise - noise.mean(axis=0)
                noise = noise - noise.mean(axis=1, keepdims=True)
                kernel[np.ix_(sources, targets)] = kernel[np.ix_(sources, targets)].mean() + gauge * noise
        params[name] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    constant = jax.tree.map(lambda leaf: jnp.full_like(leaf, leaf.ravel()[0]), variables)
    return {**constant, "params": {**constant["params"], **params}}


def set_entry(variables, name, key, index, value):
    module = {**variables["params"][name], key: variables["params"][name][key].at[index].set(value)}
    return {**variables, "params": {**variables["params"], name: module}}


@pytest.fixture
def model(x64):
    return mlp((4,), (6, 5), 3, activation="tanh")


# --- Clones -----------------------------------------------------------------------------------------------------------


def numpy_residuals(kernel, sources, targets):
    """Worst block of RE, CE, BC of a dense kernel, by definition: differences from the first unit, over sizes."""
    largest = {"row": np.abs(kernel).max(1), "column": np.abs(kernel).max(0), "all": np.abs(kernel).max()}
    worst = np.zeros(3)
    for source in sources:
        for target in targets:
            block = kernel[np.ix_(source, target)]
            expected = largest["row"][source].max() * largest["column"][target].max() / largest["all"]
            got, given = block.mean(axis=0), block.mean(axis=1)
            found = [np.abs(got - got[0]).max(), np.abs(given - given[0]).max(), np.abs(block - block[0, 0]).max()]
            worst = np.maximum(worst, np.array(found) / max(np.abs(block).max(), expected))
    return worst


def test_residuals_are_those_of_the_definitions(model):
    variables = random_variables(model, 0)
    certificate = certify_cloned(model, variables, None, PARTITION)
    assert certificate.verdict is CloneVerdict.NOT_CLONED
    for name, source in (("hidden_0", "input"), ("hidden_1", "hidden_0"), ("classes", "hidden_1")):
        kernel = np.asarray(variables["params"][name]["kernel"])
        found = certificate.arrays[f"params/{name}/kernel"]
        expected = numpy_residuals(kernel, CLUSTERS[source], CLUSTERS[name])
        np.testing.assert_allclose(found[:3], expected, atol=1e-14)
    bias = np.asarray(variables["params"]["hidden_1"]["bias"])
    worst, unit = max((np.abs(bias[c] - bias[c[0]]).max() / np.abs(bias[c]).max(), c[0]) for c in CLUSTERS["hidden_1"])
    found = certificate.arrays["params/hidden_1/bias"]
    np.testing.assert_allclose([found.re, found.ce], [worst, 0], atol=1e-14)
    assert ("re", "hidden_1", unit) in found.worst
    assert "params/classes/bias" not in certificate.arrays  # no cloned axis


def test_verdicts_climb_from_no_clones_to_block_constant(model):
    on_bc = block_constant(random_variables(model, 0))
    on_v = block_constant(random_variables(model, 0), gauge=0.3)
    forward = set_entry(on_v, "classes", "kernel", (0, 0), 3.0)
    broken = set_entry(on_v, "hidden_0", "bias", 0, 3.0)
    expected = {
        CloneVerdict.BLOCK_CONSTANT: on_bc,
        CloneVerdict.ON_V: on_v,
        CloneVerdict.FORWARD_ONLY: forward,
        CloneVerdict.NOT_CLONED: broken,
    }
    for verdict, variables in expected.items():
        certificate = certify_cloned(model, variables, data(), PARTITION)
        assert certificate.verdict is verdict
        assert certify_cloned(model, variables, None, PARTITION).verdict is verdict  # data are only a check
        largest = {kind: max(getattr(s, kind) for s in certificate.sites.values()) for kind in ("forward", "backward")}
        assert (certificate.tangency <= 1e-14) == (verdict in (CloneVerdict.BLOCK_CONSTANT, CloneVerdict.ON_V))
        assert (largest["forward"] <= 1e-14) == (verdict is not CloneVerdict.NOT_CLONED)
        assert (largest["backward"] > 1e-3) == (verdict in (CloneVerdict.FORWARD_ONLY, CloneVerdict.NOT_CLONED))
        for words in (verdict.name, verdict.value, "params/hidden_1/kernel", "tolerance", "tangency"):
            assert words in str(certificate)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_residuals_near_rounding_are_undecided(model, dtype):
    clones = block_constant(random_variables(model, 0))
    clones = jax.tree.map(lambda leaf: leaf.astype(dtype), clones)
    tolerance = certify_cloned(model, clones, None, PARTITION).tolerance
    assert tolerance == 64 * jnp.finfo(dtype).eps
    value = clones["params"]["hidden_0"]["bias"][0]
    for kick, verdict in ((0.1, "BLOCK_CONSTANT"), (5.0, "UNDECIDED"), (50.0, "NOT_CLONED")):
        moved = set_entry(clones, "hidden_0", "bias", 0, value * (1 + kick * tolerance))
        assert certify_cloned(model, moved, None, PARTITION).verdict.name == verdict
    not_finite = set_entry(clones, "hidden_0", "bias", 0, jnp.nan)
    assert certify_cloned(model, not_finite, None, PARTITION).verdict is CloneVerdict.UNDECIDED


def test_data_that_contradict_the_parameters_leave_it_undecided(model):
    clones = block_constant(random_variables(model, 0))

    def lopsided(variables, x, **options):  # a network that treats unit 0 specially when it is trained
        if not (always or options.get("train")):
            return model.apply(variables, x, **options)
        shifts = options.pop("perturbations", None)
        taps = jax.eval_shape(lambda: model.apply(variables, x).taps)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), taps)
        shifts = zeros if shifts is None else shifts
        first = shifts["hidden_0"]
        moved = jax.tree_util.tree_map(lambda leaf: leaf.at[..., 0].add(0.5), first)
        return model.apply(variables, x, perturbations={**shifts, "hidden_0": moved}, **options)

    always, other = False, model._replace(apply=lopsided)
    certificate = certify_cloned(other, clones, data(), PARTITION, train=True)
    assert certificate.verdict is CloneVerdict.UNDECIDED
    assert "the parameters say BLOCK_CONSTANT, but forward signals" in str(certificate)
    always, other = True, model._replace(apply=lambda *args, **options: lopsided(*args, **options))
    with pytest.raises(ValueError, match="unit space 'hidden_0': exchanging its units"):
        certify_cloned(other, clones, data(), PARTITION)


@pytest.mark.slow
def test_parameters_without_gradient_can_be_excluded(x64):
    model = mlp((4,), (6, 5), 3, activation="tanh", norm="batch")
    clones = block_constant(random_variables(model, 0))
    drifted = set_entry(clones, "hidden_0", "bias", 0, 1.0)
    assert certify_cloned(model, clones, data(), PARTITION).verdict is CloneVerdict.BLOCK_CONSTANT
    assert certify_cloned(model, drifted, None, PARTITION).verdict is CloneVerdict.NOT_CLONED
    seen = certify_cloned(model, drifted, data(), PARTITION, train=True)
    assert seen.verdict is CloneVerdict.UNDECIDED  # batch norm subtracts the bias: no signal differs
    assert "the parameters say NOT_CLONED, but no difference shows" in str(seen)
    certificate = certify_cloned(model, drifted, data(), PARTITION, train=True, exclude=["hidden_0/bias"])
    assert certificate.verdict is CloneVerdict.BLOCK_CONSTANT  # batch norm subtracts the bias again
    assert "not counted" in str(certificate)
    with pytest.raises(ValueError, match="no such arrays"):
        certify_cloned(model, clones, None, PARTITION, exclude=["hidden_9/bias"])


def test_a_partition_without_clusters_is_refused(model):
    with pytest.raises(ValueError, match="nothing to certify"):
        certify_cloned(model, random_variables(model, 0), None, {"hidden_0": (0, 1, 2, 3, 4, 5)})


# --- Frozen units -----------------------------------------------------------------------------------------------------


@pytest.fixture
def relu(x64):
    return mlp((4,), (6, 5), 3)


@pytest.fixture
def dying(relu):
    """hidden_0[1] and hidden_1[2] dead on the data by their bias, hidden_1[3] by signs."""
    variables = random_variables(relu, 0)
    variables = set_entry(variables, "hidden_0", "bias", 1, -4.0)
    variables = set_entry(variables, "hidden_1", "bias", 2, -4.0)
    signs = -jnp.abs(variables["params"]["hidden_1"]["kernel"][:, 3])
    variables = set_entry(variables, "hidden_1", "kernel", (slice(None), 3), signs)
    return set_entry(variables, "hidden_1", "bias", 3, -0.1)


def test_frozen_verdicts_and_what_they_depend_on(relu, dying):
    inputs, labels = data()
    certificate = certify_frozen(relu, dying, (inputs, labels), {"hidden_0": [0, 1], "hidden_1": [2, 3]})
    units = {(unit.site, unit.unit): unit for unit in certificate.units}
    assert certificate.verdict is FrozenVerdict.ALIVE  # the weakest of all
    assert units["hidden_0", 0].verdict is FrozenVerdict.ALIVE
    assert units["hidden_0", 0].gradient > 1e-3
    trapped, conditional, by_sign = units["hidden_0", 1], units["hidden_1", 2], units["hidden_1", 3]
    assert (trapped.verdict, trapped.depends_on) == (FrozenVerdict.FROZEN, ())
    assert (conditional.verdict, conditional.depends_on) == (FrozenVerdict.FROZEN, ("hidden_0",))
    assert (by_sign.verdict, by_sign.depends_on, by_sign.by_sign) == (FrozenVerdict.FROZEN_EVERYWHERE, (), True)
    assert [unit.gradient for unit in (trapped, conditional, by_sign)] == [0, 0, 0]
    w, b = (np.asarray(dying["params"]["hidden_0"][key]) for key in ("kernel", "bias"))
    z = np.asarray(inputs) @ w[:, 1] + b[1]
    lengths = np.sqrt(1 + (np.asarray(inputs) ** 2).sum(axis=1))
    np.testing.assert_allclose(trapped.radius, (-z / lengths).min(), rtol=1e-13)
    np.testing.assert_allclose(trapped.source_radius, -z.max() / np.linalg.norm(w[:, 1]), rtol=1e-13)
    for words in ("ALIVE", "hidden_1[3]", "for good", "while unchanged: hidden_0"):
        assert words in str(certificate)


def test_a_dead_first_layer_unit_is_trapped_and_a_deeper_one_is_not(relu, dying):
    batch = data()

    @jax.jit
    def descend(params):
        def step(params, _):
            gradient = jax.grad(cross_entropy(relu, dying, batch))(params)
            return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient), None

        return jax.lax.scan(step, params, length=40)[0]

    after = descend(dying["params"])
    before = dying["params"]
    for site, unit in (("hidden_0", 1), ("hidden_1", 3)):
        np.testing.assert_array_equal(after[site]["kernel"][:, unit], before[site]["kernel"][:, unit])
        np.testing.assert_array_equal(after[site]["bias"][unit], before[site]["bias"][unit])
    assert np.abs(after["hidden_0"]["kernel"][:, 0] - before["hidden_0"]["kernel"][:, 0]).max() > 1e-3
    # Other weights upstream wake the deeper one up, and not the unit that is dead by signs.
    grown = {**dying, "params": {**before, "hidden_0": jax.tree.map(lambda leaf: 30 * leaf, before["hidden_0"])}}
    verdicts = [unit.verdict for unit in certify_frozen(relu, grown, batch, {"hidden_1": [2, 3]}).units]
    assert verdicts == [FrozenVerdict.ALIVE, FrozenVerdict.FROZEN_EVERYWHERE]


def test_the_radius_is_tight(relu, dying):
    inputs, labels = data()
    unit = certify_frozen(relu, dying, (inputs, labels), {"hidden_0": [1]}).units[0]
    rows = np.concatenate([np.asarray(inputs), np.ones((len(inputs), 1))], axis=1)
    w = np.append(dying["params"]["hidden_0"]["kernel"][:, 1], dying["params"]["hidden_0"]["bias"][1])
    directions = np.random.default_rng(0).normal(size=(20000, 5))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assert (rows @ (w + 0.999999 * unit.radius * directions).T < 0).all()
    closest = np.argmin(-(rows @ w) / np.linalg.norm(rows, axis=1))
    shortest = rows[closest] / np.linalg.norm(rows[closest])
    assert (rows @ (w + 1.000001 * unit.radius * shortest) > 0).any()
    assert (rows @ (w + 0.999999 * unit.radius * shortest) < 0).all()


def test_the_joint_margin_is_sound_and_falls_to_the_radius(x64):
    rng = np.random.default_rng(0)
    sources, w = rng.normal(size=(30, 4)), 0.3 * rng.normal(size=(4, 1))
    pre, lengths = jnp.asarray(sources @ w - 3.0), jnp.asarray(np.sqrt(1 + (sources**2).sum(axis=1)))
    size = jnp.asarray(np.linalg.norm(w, axis=0))
    radius = revival_radius(pre, lengths)
    np.testing.assert_allclose(joint_margin(pre, lengths, size, radius, 0.0), 0, atol=1e-14)
    assert (joint_margin(pre, lengths, size, 1.01 * radius, 0.0) < 0).all()
    change, moved = 0.2, 0.6
    margin = float(joint_margin(pre, lengths, size, change, moved)[0])
    assert margin > 0
    for _ in range(500):
        d = rng.normal(size=5)
        d *= change / np.linalg.norm(d)
        shift = rng.normal(size=sources.shape)
        shift *= moved / np.linalg.norm(shift, axis=1, keepdims=True)
        assert ((sources + shift) @ (w[:, 0] + d[:4]) - 3.0 + d[4]).max() < -margin + 1e-12
    # Where the source lies far out along w, the worst changes reach the bound: parameters along it, then it along them.
    source = 50 * w[:, 0] / np.linalg.norm(w)
    longest = np.hypot(1, 50)
    new = np.append(w[:, 0], -40.0) + change * np.append(source, 1) / longest
    worst = (source + moved * new[:4] / np.linalg.norm(new[:4])) @ new[:4] + new[4]
    pre = jnp.asarray([[source @ w[:, 0] - 40.0]])
    bound = -float(joint_margin(pre, jnp.asarray([longest]), size, change, moved)[0])
    assert bound - 1e-3 < worst <= bound


def test_interval_bounds_hold_for_every_input_of_the_box(relu, dying):
    low, high = -0.4 * jnp.ones(4), jnp.array([0.1, 0.2, 0.3, 0.4])
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.uniform(low, high, (4000, 4)))
    corners = jnp.asarray(np.where(rng.random((64, 4)) < 0.5, low, high))
    taps = relu.apply(dying, jnp.concatenate([inputs, corners])).taps
    for site in ("hidden_0", "hidden_1"):
        lower, upper = interval_bounds(dying["params"], relu.wiring, site, (low, high))
        assert (taps[site].pre <= upper + 1e-14).all()
        assert (taps[site].pre >= lower - 1e-14).all()
    # Exact for the first layer: some corner attains it.
    lower, upper = interval_bounds(dying["params"], relu.wiring, "hidden_0", (low, high))
    grid = jnp.stack(jnp.meshgrid(*jnp.stack([low, high]).T), axis=-1).reshape(-1, 4)
    np.testing.assert_allclose(relu.apply(dying, grid).taps["hidden_0"].pre.max(axis=0), upper, atol=1e-14)
    live = int(upper.argmax())
    units = {u.unit: u for u in certify_frozen(relu, dying, None, {"hidden_0": [1, live]}, input_box=(low, high)).units}
    assert (units[1].verdict, units[1].depends_on) == (FrozenVerdict.FROZEN_EVERYWHERE, ())
    assert units[live].verdict is FrozenVerdict.UNDECIDED


@pytest.mark.slow
def test_convolutions_use_the_patch(x64):
    model = cnn((5, 5, 2), 3, channels=(3, 4), dense=3, pooling="none")
    variables = random_variables(model, 0)
    for name in ("conv_0", "conv_1"):
        variables = set_entry(variables, name, "bias", 0, -20.0)
    variables = set_entry(variables, "dense", "bias", 0, -300.0)
    inputs, labels = data((5, 5, 2))
    frozen = {"conv_0": [0], "conv_1": [0], "dense": [0]}
    box = (-jnp.ones((5, 5, 2)), jnp.ones((5, 5, 2)))
    units = certify_frozen(model, variables, (inputs, labels), frozen, input_box=box).units
    taps = model.apply(variables, inputs).taps
    sources = {"conv_0": inputs, "conv_1": taps["conv_0"].post}
    for unit in units[:2]:
        padded = np.pad(np.asarray(sources[unit.site]), ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = np.stack(
            [padded[:, i : i + 3, j : j + 3].reshape(12, -1) for i in range(5) for j in range(5)], axis=1
        )
        z = np.asarray(taps[unit.site].pre)[..., 0].reshape(12, 25)
        np.testing.assert_allclose(unit.radius, (-z / np.sqrt(1 + (patches**2).sum(-1))).min(), rtol=1e-12)
    flat = np.asarray(taps["conv_1"].post).reshape(12, -1)
    z = np.asarray(taps["dense"].pre)[:, 0]
    np.testing.assert_allclose(units[2].radius, (-z / np.sqrt(1 + (flat**2).sum(-1))).min(), rtol=1e-12)
    inside = model.apply(variables, jnp.tanh(inputs)).taps
    for unit in units:
        assert unit.verdict in (FrozenVerdict.FROZEN, FrozenVerdict.FROZEN_EVERYWHERE)
        assert float(inside[unit.site].pre[..., 0].max()) <= unit.box_upper
    assert units[0].verdict is FrozenVerdict.FROZEN_EVERYWHERE
    assert [unit.depends_on for unit in units] == [(), ("conv_0",), ("conv_0", "conv_1")]


@pytest.mark.parametrize("train", [False, True])
def test_behind_batch_norm_only_the_data_speak(x64, train):
    model = mlp((4,), (6, 5), 3, norm="batch")
    variables = set_entry(random_variables(model, 0), "hidden_1_norm", "offset", 2, -20.0)
    certificate = certify_frozen(model, variables, data(), {"hidden_1": [2]}, train=train)
    unit = certificate.units[0]
    assert (unit.verdict, unit.radius, unit.gradient) == (FrozenVerdict.FROZEN, None, 0)
    assert unit.depends_on == ("hidden_0", "norm and sum before it")
    assert ("this batch's statistics" if train else "its running statistics") in certificate.notes[0]
    with pytest.raises(ValueError, match="norm, pooling or a sum"):
        certify_frozen(model, variables, None, {"hidden_1": [2]}, input_box=(-jnp.ones(4), jnp.ones(4)))


def test_saturated_units_are_slow_with_a_time_scale(model):
    inputs, labels = data()
    variables = set_entry(random_variables(model, 0), "hidden_0", "bias", 1, 9.0)
    certificate = certify_frozen(model, variables, (inputs, labels), {"hidden_0": [1, 2]})
    slow, alive = certificate.units
    assert (slow.verdict, alive.verdict) == (FrozenVerdict.SLOW, FrozenVerdict.ALIVE)
    gradient = jax.grad(cross_entropy(model, variables, (inputs, labels)))(variables["params"])["hidden_0"]
    incoming = [
        np.append(tree["kernel"][:, 1], tree["bias"][1]) for tree in (variables["params"]["hidden_0"], gradient)
    ]
    expected = np.linalg.norm(incoming[0]) / np.linalg.norm(incoming[1])
    # Two compilations of 1 - tanh², a difference of numbers near 1, agree to eps over the derivative only.
    np.testing.assert_allclose(slow.time_scale, expected, rtol=1e-7)
    assert slow.time_scale > 1e4 * alive.time_scale
    assert slow.radius is None


def max_length(inputs):
    return float(np.sqrt(1 + (np.asarray(inputs) ** 2).sum(axis=1)).max())


def test_activity_within_rounding_of_zero_is_undecided(relu):
    variables = random_variables(relu, 0)
    for index in (0, 1):
        variables = set_entry(variables, "hidden_0", "kernel", (slice(None), index), 0.0)
    vanished = set_entry(variables, "hidden_0", "bias", 0, 0.0)
    vanished = set_entry(vanished, "hidden_0", "bias", 1, -1e-3)
    units = certify_frozen(relu, vanished, data(), {"hidden_0": [0, 1]}).units
    assert [unit.verdict for unit in units] == [FrozenVerdict.FROZEN, FrozenVerdict.FROZEN]
    assert [unit.radius for unit in units] == [0, pytest.approx(1e-3 / max_length(data()[0]))]
    # The hyperplane of unit 2 touches a sample: z = 0 there up to rounding, negative elsewhere.
    inputs, labels = data()
    kernel = variables["params"]["hidden_0"]["kernel"][:, 2]
    touching = set_entry(variables, "hidden_0", "bias", 2, -jnp.max(inputs @ kernel))
    assert certify_frozen(relu, touching, (inputs, labels), {"hidden_0": [2]}).verdict is FrozenVerdict.UNDECIDED
    for height, verdict in ((1e-12, FrozenVerdict.ALIVE), (-1e-12, FrozenVerdict.FROZEN)):
        near = set_entry(touching, "hidden_0", "bias", 2, touching["params"]["hidden_0"]["bias"][2] + height)
        assert certify_frozen(relu, near, (inputs, labels), {"hidden_0": [2]}).verdict is verdict


def test_bad_input_is_refused(unchecked, relu):
    variables = random_variables(relu, 0)
    gelu = mlp((4,), (6, 5), 3, activation="gelu")
    box = (-jnp.ones(4), jnp.ones(4))
    for model, frozen, options, message in (
        (relu, {}, {}, "names no unit"),
        (relu, {"hidden_0": [9]}, {}, "0..5"),
        (relu, {"hidden_0": [0]}, {"input_box": (jnp.ones(4), -jnp.ones(4))}, "exceeds"),
        (relu, {"hidden_0": [0]}, {"input_box": (-jnp.ones(3), jnp.ones(4))}, "shaped like one input"),
        (gelu, {"hidden_1": [0]}, {"input_box": box}, "'gelu' is not monotone"),
    ):
        with pytest.raises(ValueError, match=message):
            certify_frozen(model, variables, None, frozen, **options)
