"""Values, first and second derivatives of the named activations against their textbook formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from lopjax.activation_checks import check_activation, find_kinks
from lopjax.activations import ACTIVATIONS, Activation, activation, activation_key

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def sigma(z):
    return special.expit(z)


def phi(z):
    return np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def step(z):
    return (z > 0).astype(float)


def mish(z, order):
    """z tanh(softplus(z)) and its derivatives, by the product rule."""
    s, slope, bend = np.logaddexp(z, 0), sigma(z), sigma(z) * sigma(-z)
    t = np.tanh(s)
    first = (1 - t**2) * slope
    second = (1 - t**2) * (bend - 2 * t * slope**2)
    return (z * t, t + z * first, 2 * first + z * second)[order]


# name -> (value, first derivative, second derivative), in numpy, away from the kinks
FORMULAS = {
    "relu": (lambda z: np.maximum(z, 0), step, np.zeros_like),
    "leaky_relu": (lambda z: np.maximum(z, 0.01 * z), lambda z: 0.01 + 0.99 * step(z), np.zeros_like),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2, lambda z: -2 * np.tanh(z) / np.cosh(z) ** 2),
    "sigmoid": (
        sigma,
        lambda z: sigma(z) * sigma(-z),
        lambda z: sigma(z) * sigma(-z) * (1 - 2 * sigma(z)),
    ),
    "gelu": (
        lambda z: z * special.ndtr(z),
        lambda z: special.ndtr(z) + z * phi(z),
        lambda z: (2 - z**2) * phi(z),
    ),
    "elu": (
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
        lambda z: np.where(z > 0, 1, np.exp(np.minimum(z, 0))),
        lambda z: np.where(z > 0, 0, np.exp(np.minimum(z, 0))),
    ),
    "selu": (
        lambda z: SELU_SCALE * np.where(z > 0, z, SELU_ALPHA * np.expm1(np.minimum(z, 0))),
        lambda z: SELU_SCALE * np.where(z > 0, 1, SELU_ALPHA * np.exp(np.minimum(z, 0))),
        lambda z: SELU_SCALE * np.where(z > 0, 0, SELU_ALPHA * np.exp(np.minimum(z, 0))),
    ),
    "silu": (
        lambda z: z * sigma(z),
        lambda z: sigma(z) + z * sigma(z) * sigma(-z),
        lambda z: sigma(z) * sigma(-z) * (2 + z * (1 - 2 * sigma(z))),
    ),
    "identity": (lambda z: z, np.ones_like, np.zeros_like),
    "erf": (
        special.erf,
        lambda z: 2 / np.sqrt(np.pi) * np.exp(-(z**2)),
        lambda z: -4 * z / np.sqrt(np.pi) * np.exp(-(z**2)),
    ),
    "softplus": (lambda z: np.logaddexp(z, 0), sigma, lambda z: sigma(z) * sigma(-z)),
    "sin": (np.sin, np.cos, lambda z: -np.sin(z)),
    "cos": (np.cos, lambda z: -np.sin(z), lambda z: -np.cos(z)),
    "exp": (np.exp, np.exp, np.exp),
    "mish": tuple(lambda z, order=order: mish(z, order) for order in range(3)),
    "relu6": (lambda z: np.clip(z, 0, 6), lambda z: step(z) * step(6 - z), np.zeros_like),
    "hard_tanh": (lambda z: np.clip(z, -1, 1), lambda z: step(1 - np.abs(z)), np.zeros_like),
    "abs": (np.abs, np.sign, np.zeros_like),
}


def test_every_activation_has_a_formula():
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_two_derivatives(name, x64):
    z = np.linspace(-6.05, 6.05, 122)
    f = activation(name)
    first = jax.grad(lambda x: f(x))
    second = jax.jacfwd(first)  # jvp of grad, as in a Hessian-vector product
    for order, (ours, formula) in enumerate(zip((f, first, second), FORMULAS[name], strict=True)):
        np.testing.assert_allclose(jax.vmap(ours)(jnp.asarray(z)), formula(z), rtol=1e-11, atol=1e-13, err_msg=order)


@pytest.mark.parametrize(("name", "slope"), [("relu", 0.0), ("leaky_relu", 0.01), ("elu", 1.0)])
def test_derivative_at_the_kink_is_pytorchs(name, slope, x64):
    assert jax.grad(lambda x: activation(name)(x))(0.0) == slope


@pytest.mark.parametrize("name", [name for name, entry in ACTIVATIONS.items() if not entry.kinks])
def test_smooth_means_smooth(name, x64):
    """Three derivatives are continuous at 0, where most of the others have a kink; `find_kinks` looks elsewhere."""
    f = activation(name)
    third = jax.vmap(jax.grad(jax.grad(jax.grad(lambda x: f(x)))))
    left, right = third(jnp.array([-1e-7, 1e-7]))
    assert abs(left - right) < 1e-5


@pytest.mark.parametrize("name", [name for name, entry in ACTIVATIONS.items() if entry.kinks])
def test_kinks_are_where_a_derivative_jumps(name, x64):
    f = activation(name)
    derivatives = (jax.grad(lambda x: f(x)), jax.grad(jax.grad(lambda x: f(x))))
    for kink in ACTIVATIONS[name].kinks:
        assert max(float(abs(d(kink + 1e-7) - d(kink - 1e-7))) for d in derivatives) > 0.5


def test_dtype_is_kept():
    for f in ACTIVATIONS.values():
        assert f(jnp.zeros((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


def test_an_activation_is_a_static_argument():
    apply = jax.jit(lambda f, z: f(z), static_argnums=0)
    own = Activation("cube", lambda z: z**3)
    assert apply(own, jnp.array(2.0)) == 8.0
    assert apply(activation("relu"), jnp.array(-2.0)) == 0.0


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match=r"'swish': must be one of relu, leaky_relu, tanh.*exp"):
        activation("swish")


def test_jax_functions_bring_their_facts():
    assert activation(jnp.tanh) is ACTIVATIONS["tanh"]
    assert activation(jax.nn.leaky_relu).kinks == (0.0,)
    assert activation_key(jax.nn.relu) == "relu"
    assert activation_key(ACTIVATIONS["relu"]) == "relu"
    own = activation(lambda z: jnp.maximum(z, 0))
    assert own.kinks is own.is_monotone is own.flat is own.saturates is own.is_odd is own.is_zero_below_zero is None


@pytest.mark.parametrize("name", ["relu6"])
def test_facts_of_named_activations_pass_the_check(name):
    check_activation(ACTIVATIONS[name])


def test_parity_value_at_zero_and_rounding_of_the_named_activations():
    """Facts against the textbook formulas; a function of another name is exact, one that only says so is not."""
    z = np.linspace(0, 4, 41)
    for name, (formula, *_) in FORMULAS.items():
        entry = ACTIVATIONS[name]
        assert entry.is_odd == bool(np.allclose(formula(-z), -formula(z), rtol=1e-12, atol=1e-12)), name
        assert entry.is_zero_at_zero == bool(formula(np.zeros(1))[0] == 0), name
    assert {name for name, entry in ACTIVATIONS.items() if entry.rounds_nothing} == {
        "relu", "relu6", "hard_tanh", "abs", "identity"
    }  # fmt: skip
    assert activation(jax.nn.relu).rounds_nothing
    assert not Activation("relu", jax.nn.softplus).rounds_nothing


WRONG = {
    "is_monotone=True": Activation("v", jnp.abs, is_monotone=True),
    "is_homogeneous=True": Activation("tanh", jnp.tanh, is_homogeneous=True),
    "lower_bound": Activation("tanh", jnp.tanh, lower_bound=-0.5),
    "is_odd=True": Activation("gelu", jax.nn.gelu, is_odd=True),
    "flat": Activation("leaky", jax.nn.leaky_relu, flat=[(-np.inf, 0.0)]),
    "saturates": Activation("exp", jnp.exp, saturates=[np.inf]),
    r"kinks=\(0.0,\) is wrong.*at 0.(5|4999)": Activation("bent", lambda z: jnp.abs(z) + jnp.abs(z - 0.5), kinks=[0.0]),
    "not elementwise": Activation("softmax", jax.nn.softmax),
    "keep the type": Activation("step", lambda z: (z > 0).astype(int)),
    "keep the type ": Activation("sum", jnp.sum),
}


def almost_relu(z):
    return jax.nn.softplus(1000 * z) / 1000


FAR_OR_FINE = {
    "is_homogeneous=True": [
        Activation("capped", lambda z: jnp.clip(z, 0, 30), is_homogeneous=True),
        Activation(
            "powers of 3", lambda z: z * (1.2 + jnp.sin(jnp.pi * jnp.log(z**2) / jnp.log(3.0))), is_homogeneous=True
        ),
        Activation("almost", almost_relu, is_homogeneous=True),
    ],
    "is_odd=True": [
        Activation("capped", lambda z: jnp.clip(z, -30, 40), is_odd=True),
        Activation("shifted", lambda z: jnp.tanh(z) + 5e-4, is_odd=True),
    ],
    "it falls near 20": [Activation("roof", lambda z: jnp.where(z > 20, 40 - z, z), is_monotone=True)],
    "lower_bound": [Activation("cliff", lambda z: jnp.where(z < -20, z, jnp.maximum(z, -1)), lower_bound=-1.0)],
    "its slope at -1e": [Activation("bent", lambda z: jnp.where(z < -20, z + 20, 0.0), flat=[(-np.inf, 0)])],
    "stays so": [Activation("leaky", lambda z: jax.nn.silu(z) + 1e-3 * z, saturates=[-np.inf])],
    "at (20|19.99)": [Activation("capped", lambda z: jnp.clip(z, 0, 20), kinks=[0.0])],
}


@pytest.mark.parametrize("message", FAR_OR_FINE)
def test_wrong_facts_are_refused_beyond_ordinary_sizes_and_where_they_are_nearly_right(message):
    """All of these are right on [-8, 8] to 1e-3, or for the factor 3 alone. Control: the same facts where they hold."""
    for entry in FAR_OR_FINE[message]:
        with pytest.raises(ValueError, match=message):
            check_activation(entry)


def test_facts_that_hold_far_out_pass():
    check_activation(Activation("exp", jnp.exp, (), True, False, 0.0, (), (-np.inf,), False))
    check_activation(Activation("log", lambda z: jnp.sign(z) * jnp.log1p(jnp.abs(z)), saturates=[np.inf], is_odd=True))
    check_activation(
        Activation("capped", lambda z: jnp.clip(z, 0, 20), [0, 20], True, lower_bound=0, flat=[(20, np.inf)])
    )


@pytest.mark.parametrize("message", WRONG)
def test_wrong_facts_are_refused(message):
    with pytest.raises(ValueError, match=message.strip()):
        check_activation(WRONG[message])


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"kinks": (1.0, 0.0)}, "ascending"),
        ({"kinks": (np.nan,)}, "finite"),
        ({"saturates": (0.0,)}, "must be -inf or inf"),
        ({"flat": ((1.0, 0.0),)}, "low < high"),
        ({"lower_bound": np.nan}, "below inf"),
    ],
)
def test_facts_that_make_no_sense_are_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        Activation("own", jnp.tanh, **facts)


def test_a_function_that_cannot_be_hashed_is_refused():
    class Scaled(dict):
        def __call__(self, z):
            return z * self["scale"]

    with pytest.raises(ValueError, match="cannot be hashed"):
        activation(Scaled(scale=2.0))


def smooth_leaky(z):
    """Slope from 0.1 to 1 along a sigmoid: monotone, smooth, nowhere flat."""
    return 0.1 * z + 0.9 * jax.nn.softplus(4 * z) / 4


FOUND = [
    (lambda z: jnp.maximum(z, 0), [0.0]),
    (lambda z: z * jax.nn.relu(z), [0.0]),
    (lambda z: jnp.abs(z - 0.3) + jnp.where(z > 1 / 3, 1.0, 0.0), [0.3, 1 / 3]),
    (lambda z: jnp.clip(z, -1, 1), [-1.0, 1.0]),
    (jax.nn.elu, [0.0]),
    (smooth_leaky, []),
    (lambda z: jnp.tanh(300 * z), []),
    (lambda z: z + jnp.sin(5 * z) ** 2 / 5, []),
]


@pytest.mark.parametrize("case", range(len(FOUND)))
def test_kinks_and_jumps_are_found(case, x64):
    function, kinks = FOUND[case]
    np.testing.assert_allclose(find_kinks(function), kinks, rtol=0, atol=1e-9)


def test_kinks_are_found_while_something_else_is_traced(x64):
    assert jax.jit(lambda x: x * len(find_kinks(jnp.abs)))(2.0) == 2.0
    assert find_kinks(lambda z: z) == ()
    # What depends on a traced number cannot be looked at: unknown, not smooth.
    jax.grad(lambda slope: 0.0 if find_kinks(lambda z: jnp.abs(slope * z)) is None else 1 / 0)(1.0)
