"""Units at the edge of being dead: kinks, turning points, underflow, norms, missing biases, dead sources."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, ndtr

from lopjax.activations import Activation, activation
from lopjax.certificates import FrozenVerdict, certify_frozen, interval_bounds, revival_radius
from lopjax.certificates.dead_units import PlainLayer, dead_by_sign, plain_layer, source_norms
from lopjax.certificates.saturation import slopes
from lopjax.losses import cross_entropy
from lopjax.models import from_linen, labelled, mlp, tap
from lopjax.wiring import In, Label, Out

INPUTS, LABELS = np.random.default_rng(1).normal(size=(32, 4)), np.arange(32) % 3


def with_unit(name, w, b, norm="none"):
    """A network whose first hidden unit has these incoming weights and bias."""
    model = mlp((4,), (5,), 3, activation=name, norm=norm)
    params = model.init(jax.random.key(0))["params"]
    layer = params["hidden_0"]
    changed = {"kernel": layer["kernel"].at[:, 0].set(w), "bias": layer["bias"].at[0].set(b)}
    return model, {"params": {**params, "hidden_0": changed}}


def certify(name, w, b, **options):
    dtype = jnp.result_type(float)
    model, variables = with_unit(name, jnp.asarray(w, dtype), b)
    batch = (jnp.asarray(INPUTS, dtype), jnp.asarray(LABELS))
    return certify_frozen(model, variables, batch, {"hidden_0": [0]}, **options)


FIRST = np.array([1.0, 0, 0, 0])
HIGHEST = float(np.float32(INPUTS)[:, 0].max())


@pytest.mark.parametrize("height", [1e-1, 1e-5])
def test_a_unit_active_on_one_sample_is_alive(height):
    certificate = certify("relu", FIRST, height - HIGHEST)
    assert certificate.verdict is FrozenVerdict.ALIVE
    assert certificate.units[0].gradient > 0
    assert certify("relu", FIRST, -height - HIGHEST).verdict is FrozenVerdict.FROZEN


def test_a_unit_on_the_kink_for_every_input_is_frozen():
    certificate = certify("relu", np.zeros(4), 0.0)
    unit = certificate.units[0]
    assert (unit.verdict, unit.gradient, unit.radius) == (FrozenVerdict.FROZEN, 0, 0)
    assert "the kink" in str(certificate)
    assert certify("relu", FIRST, -HIGHEST).verdict is FrozenVerdict.UNDECIDED  # the control: z = 0 up to rounding


POSITIVE = Activation(
    "positive", lambda z: jnp.maximum(z, 0), (0.0,), True, True, 0.0, ((-np.inf, 0.0),), (-np.inf,), False
)


@pytest.mark.parametrize("batch", [True, False])
def test_a_derivative_that_is_one_half_at_zero_leaves_no_unit_dead_there(batch, x64):
    """jnp.maximum(z, 0) is the ReLU but for its derivative at 0. The oracle is the gradient itself."""
    box, inputs = (np.zeros(4), np.ones(4)), jnp.asarray(np.abs(INPUTS))
    data = (inputs, jnp.asarray(LABELS))
    expected = {
        ("positive", 0.0): FrozenVerdict.UNDECIDED,
        ("positive", -0.1): FrozenVerdict.FROZEN_EVERYWHERE,
        ("relu", 0.0): FrozenVerdict.FROZEN_EVERYWHERE,
    }
    for (name, bias), verdict in expected.items():
        model, variables = with_unit(POSITIVE if name == "positive" else name, np.zeros(4), bias)
        gradient = jax.grad(cross_entropy(model, variables, data))(variables["params"])["hidden_0"]
        assert (abs(gradient["bias"][0]) > 1e-3) == (verdict is FrozenVerdict.UNDECIDED)
        found = certify_frozen(model, variables, data if batch else None, {"hidden_0": [0]}, input_box=box).units[0]
        assert found.verdict is verdict


@pytest.mark.parametrize("name", ["gelu", pytest.param("silu", marks=pytest.mark.slow)])
def test_the_minimum_of_an_activation_is_not_saturation(name, x64):
    """f' = 0 on every sample. The oracle: a kick of 2e-3 restores a gradient, which no kick does at z = -40."""
    function = {"gelu": lambda z: z * ndtr(z), "silu": lambda z: z * expit(z)}[name]
    lowest = minimize_scalar(function, bounds=(-2, 0), options={"xatol": 1e-12})
    turning = certify(name, np.zeros(4), lowest.x)
    unit = turning.units[0]
    assert (unit.verdict, unit.time_scale) == (FrozenVerdict.UNDECIDED, None)
    assert unit.gradient < 1e-7
    assert "turning point" in str(turning)
    far = certify(name, np.zeros(4), -800.0)
    assert (far.verdict, far.units[0].gradient, far.units[0].time_scale) == (FrozenVerdict.SLOW, 0, np.inf)
    assert "vanish in this precision" in str(far)
    assert certify(name, np.zeros(4), lowest.x + 2e-3).units[0].gradient > 1e3 * unit.gradient
    assert certify(name, np.zeros(4), 3.0).verdict is FrozenVerdict.ALIVE


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("tanh", {9.0: True, -9.0: True, 1.0: False}),
        ("sigmoid", {-15.0: True, 15.0: True, 0.0: False}),
        ("erf", {4.0: True, -4.0: True, 0.0: False}),
        ("elu", {-15.0: True, 1.0: False}),
        ("gelu", {-7.0: True, -0.7517916: False, 7.0: False, -(2**0.5): False}),
        ("silu", {-20.0: True, -1.2784645: False, 20.0: False}),
        ("sin", {np.pi / 2: False, -np.pi / 2: False}),
        ("softplus", {-15.0: True, 15.0: False}),
        ("leaky_relu", {-15.0: False}),
        ("mish", {-25.0: True, -1.192: False, 25.0: False}),
    ],
)
def test_saturation_asks_for_slope_and_curvature_of_the_whole_tail(name, points, x64):
    found = slopes(activation(name), jnp.array([list(points)]), 1e-4)
    assert found.is_saturated.tolist() == list(points.values())


def test_behind_layer_norm_the_certificate_speaks_of_scale_and_offset(x64):
    model = mlp((4,), (5,), 3, norm="layer")
    variables = model.init(jax.random.key(0))
    params = variables["params"]
    normed = {**params["hidden_0_norm"], "offset": params["hidden_0_norm"]["offset"].at[0].set(-5.0)}
    variables = {"params": {**params, "hidden_0_norm": normed}}
    batch = (jnp.asarray(INPUTS), jnp.asarray(LABELS))
    certificate = certify_frozen(model, variables, batch, {"hidden_0": [0]})
    unit = certificate.units[0]
    assert (unit.verdict, unit.gradient) == (FrozenVerdict.FROZEN, 0)
    assert set(unit.arrays) == {"hidden_0_norm/scale", "hidden_0_norm/offset"}
    gradient = jax.grad(cross_entropy(model, variables, batch))(variables["params"])
    assert gradient["hidden_0_norm"]["scale"][0] == gradient["hidden_0_norm"]["offset"][0] == 0
    outside = np.append(gradient["hidden_0"]["kernel"][:, 0], gradient["hidden_0"]["bias"][0])
    assert np.linalg.norm(outside) > 1e-3  # in front of the norm the unit's weights move
    for words in ("hidden_0_norm/scale", "not frozen with it", "hidden_0/kernel", f"{np.linalg.norm(outside):.1e}"):
        assert words in str(certificate)
    plain = certify("relu", np.zeros(4), -1.0).units[0]
    assert set(plain.arrays) == {"hidden_0/kernel", "hidden_0/bias"}


class NoBias(nn.Module):
    """One hidden ReLU layer without bias."""

    @nn.compact
    def __call__(self, x, *, train, dropout_rate=None):
        first = labelled(nn.initializers.lecun_normal(), In("input"), Out("h"), site="h", source="input")
        h = tap(self, "h", "h", "relu", x @ self.param("first", first, (4, 3), x.dtype))
        last = labelled(nn.initializers.lecun_normal(), In("h"), Out("classes"), site="classes", source="h")
        return h @ self.param("last", last, (3, 3), x.dtype)


def test_the_radius_without_a_bias_is_that_of_the_weights_alone(x64):
    model = from_linen(NoBias(), (4,))
    inputs = np.abs(INPUTS) * np.where(np.arange(32) % 4 == 0, 0, 1)[:, None]  # some samples are 0: z = 0, always
    params = {"first": jnp.full((4, 3), -0.5), "last": jnp.ones((3, 3))}
    batch = (jnp.asarray(inputs), jnp.asarray(LABELS))
    unit = certify_frozen(model, {"params": params}, batch, {"h": [0]}).units[0]
    lengths = np.linalg.norm(inputs, axis=1)
    expected = min(0.5 * row.sum() / length for row, length in zip(inputs, lengths) if length > 0)
    assert unit.verdict is FrozenVerdict.FROZEN
    np.testing.assert_allclose(unit.radius, expected, rtol=1e-12)
    nearest = inputs[np.argmin(np.where(lengths > 0, 0.5 * inputs.sum(1) / np.where(lengths > 0, lengths, 1), np.inf))]
    for share, wakes in ((0.999, False), (1.001, True)):
        w = -0.5 + share * unit.radius * nearest / np.linalg.norm(nearest)
        assert ((inputs @ w).max() > 1e-9) == wakes


def test_a_unit_that_reads_only_dead_units_is_trapped_as_well(x64):
    """By its own sign (b <= 0) and nobody's weights; the control reads one unit that is alive."""
    model = mlp((4,), (3, 2), 3)
    params = model.init(jax.random.key(0))["params"]
    kernel = jnp.array([[3.0, 3.0], [-2.0, 2.0], [0.0, 0.3]])
    params["hidden_0"]["bias"] = jnp.array([-50.0, -50.0, 0.1])
    params["hidden_1"] = {"kernel": kernel, "bias": jnp.array([-0.5, -50.0])}
    batch = (jnp.asarray(INPUTS), jnp.asarray(LABELS))
    only_dead, reads_alive = certify_frozen(model, {"params": params}, batch, {"hidden_1": [0, 1]}).units
    assert (only_dead.verdict, only_dead.depends_on) == (FrozenVerdict.FROZEN, ())
    assert (reads_alive.verdict, reads_alive.depends_on) == (FrozenVerdict.FROZEN, ("hidden_0",))

    @jax.jit
    def train(params):
        def step(params, _):
            gradient = jax.grad(cross_entropy(model, {}, batch))(params)
            # A push on the unit that is alive: what a task could do to it.
            gradient["hidden_0"]["bias"] = gradient["hidden_0"]["bias"].at[2].add(-2000.0)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), None

        return jax.lax.scan(step, params, length=30)[0]

    after = train(params)["hidden_1"]
    np.testing.assert_array_equal(after["kernel"][:, 0], kernel[:, 0])
    assert np.abs(after["kernel"][:, 1] - kernel[:, 1]).max() > 1e-3


@pytest.mark.parametrize("name", ["tanh", *(pytest.param(name, marks=pytest.mark.slow) for name in ("relu", "elu"))])
def test_interval_bounds_hold_in_float32_by_default(name):
    """At the corners that attain the bounds of exact arithmetic, summed in float32."""
    model = mlp((30,), (8, 6), 3, activation=name)
    random = np.random.default_rng(0)
    for seed in range(8):
        params = model.init(jax.random.key(seed))["params"]
        centre = random.normal(size=30)
        box = tuple(jnp.asarray(centre + sign * 1e-7 * np.abs(centre), jnp.float32) for sign in (-1, 1))
        inputs = jnp.asarray(np.where(random.random((200, 30)) < 0.5, box[0], box[1]))
        taps = model.apply({"params": params}, inputs).taps
        for site in ("hidden_0", "hidden_1"):
            low, high = interval_bounds(params, model.wiring, site, box)
            assert (taps[site].pre <= high).all()
            assert (taps[site].pre >= low).all()
            assert float((high - low).max()) < 1e-3  # and are not idle


def test_half_precision_units_are_judged_by_their_values():
    model, variables = with_unit("relu", jnp.asarray(FIRST), -HIGHEST - 0.05)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    batch = (jnp.asarray(INPUTS, jnp.float32), jnp.asarray(LABELS))
    for shift, verdict in ((0.0, FrozenVerdict.FROZEN), (0.2, FrozenVerdict.ALIVE)):
        bias = half["params"]["hidden_0"]["bias"].at[0].add(shift)
        moved = {"params": {**half["params"], "hidden_0": {**half["params"]["hidden_0"], "bias": bias}}}
        assert certify_frozen(model, moved, batch, {"hidden_0": [0]}).verdict is verdict


@pytest.mark.parametrize(
    ("name", "flat", "steep"), [("hard_tanh", (8.0, -8.0), (0.5,)), ("relu6", (14.0, -8.0), (3.0,))]
)
def test_units_on_any_flat_piece_are_frozen(name, flat, steep):
    """On both sides; a unit at the top of ReLU6 is frozen, but not silent: who reads it has no dead source."""
    for place in (*flat, *steep):
        unit = certify(name, 1e-3 * FIRST, place).units[0]
        assert unit.verdict is (FrozenVerdict.FROZEN if place in flat else FrozenVerdict.ALIVE)
        assert (unit.gradient == 0) == (place in flat)
        assert (unit.radius is None) == (name == "hard_tanh" or place == 14.0)


def test_what_rounding_may_have_hidden_comes_off_a_radius(x64):
    """Against long double: inputs far from zero, so that z is a small difference of large numbers."""
    model = mlp((5,), (6,), 3)
    largest = 0.0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x = (rng.normal(size=(7, 5)) + 300).astype(np.float32)
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model.init(jax.random.key(seed)))
        layer = variables["params"]["hidden_0"]
        highest = (x @ np.asarray(layer["kernel"])).max(axis=0)
        layer["bias"] = jnp.asarray(-highest - np.float32(0.01))
        units = certify_frozen(model, variables, (x, rng.integers(0, 3, 7)), {"hidden_0": range(6)}).units
        w, b = (np.asarray(layer[name], np.longdouble) for name in ("kernel", "bias"))
        z, lengths = x.astype(np.longdouble) @ w + b, np.sqrt(1 + np.sum(x.astype(np.longdouble) ** 2, axis=1))
        exact = (-z / lengths[:, None]).min(axis=0)
        for unit in units:
            assert unit.radius <= exact[unit.unit]
            assert unit.source_radius <= -z[:, unit.unit].max() / np.linalg.norm(w[:, unit.unit].astype(float))
            largest = max(largest, float(unit.radius / exact[unit.unit]))
    assert largest > 0.5  # and it still says something
    # The control: of the numbers as computed some radius is too large.
    computed = revival_radius(jnp.asarray(x @ np.asarray(layer["kernel"]) + layer["bias"]), jnp.asarray(lengths, "f4"))
    assert (np.asarray(computed) > exact).any()


def test_the_norm_of_small_activations_is_not_zero():
    layer = PlainLayer(jnp.ones((3, 2)), jnp.zeros(2), Label((In("input"), Out("h"))), has_bias=False)
    rows = np.array([[1e-25, 0, 2e-25], [0, 0, 0], [3e20, 4e20, 0]], np.float32)
    np.testing.assert_allclose(source_norms(layer, jnp.asarray(rows)), [np.sqrt(5) * 1e-25, 0, 5e20], rtol=1e-6)
    assert np.linalg.norm(rows[0]) == 0  # the control: squares vanish


def test_weights_below_zero_block_only_what_is_not_negative(x64):
    """A source that may be negative wakes a unit with negative weights, whether or not its silent units are known."""
    model = mlp((3,), (2,), 2, activation="relu", norm="none")
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0))["params"])
    params["hidden_0"] = {"kernel": jnp.array([[-1.0, 0], [-1.0, 0], [0.0, 0]]), "bias": jnp.array([-0.1, -0.1])}
    layer = plain_layer(params, model.wiring, "hidden_0")
    boxes = {"any": None, "both signs": (-np.ones(3), np.ones(3)), "positive": (np.zeros(3), np.ones(3))}
    for silent in (None, np.zeros(3, bool), np.array([True, False, False])):
        for name, box in boxes.items():
            expected = [name == "positive", name == "positive" or silent is not None]  # of no weights with them known
            np.testing.assert_array_equal(dead_by_sign(layer, model.wiring, box, silent), expected)
    heard_nothing = dead_by_sign(layer, model.wiring, None, np.array([True, True, False]))
    np.testing.assert_array_equal(heard_nothing, [True, True])
