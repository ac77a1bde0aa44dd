"""Elementwise activation functions, with the facts about them that certificates and theory rely on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Number: TypeAlias = float | int
Interval: TypeAlias = tuple[Number, Number]


def _require_hashable(function: object, name: str) -> None:
    if not callable(function):
        raise ValueError(f"activation={function!r}: must be the name of an activation or an elementwise function")
    try:
        hash(function)
    except TypeError as error:
        raise ValueError(
            f"activation {name} cannot be hashed, so nothing compiled for it could be found again: "
            "give its class __eq__ and __hash__ that agree, or wrap it in a named function"
        ) from error


@dataclass(frozen=True)
class Activation:
    """An elementwise function that can be called, hashed and passed as a static argument of `jax.jit`.

    Every fact may be left out. `None` means *unknown*, never "no": a certificate that needs a missing fact says which
    one and stays undecided. A plain function has no facts, unless it is one that this module knows (`jax.nn.relu`,
    `jnp.tanh`, ...). `lopjax.activation_checks.check_activation` compares facts with the function.

    Attributes:
        name: what tables, figures and messages call it.
        function: the elementwise function, differentiable by JAX. Two activations are equal if function and facts are:
            keep one lambda rather than writing it anew, or every network with it is compiled anew.
        kinks: the points at which the function or one of its derivatives jumps, in ascending order; `()` if smooth.
        is_monotone: whether it never decreases.
        is_homogeneous: whether f(c z) = c f(z) for every c > 0.
        lower_bound: a number that f never falls below; `-inf` if there is none.
        flat: the open intervals on which f is constant, so that a unit there has no gradient; `()` if none.
        saturates: the ends, `-inf` or `inf`, towards which the slope falls to 0; `()` if neither.
        is_odd: whether f(-z) = -f(z).

    Raises:
        ValueError: a function that cannot be called or hashed, or facts that make no sense.
    """

    name: str
    function: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    kinks: Sequence[Number] | None = None
    is_monotone: bool | None = None
    is_homogeneous: bool | None = None
    lower_bound: Number | None = None
    flat: Sequence[Interval] | None = None
    saturates: Sequence[Number] | None = None
    is_odd: bool | None = None

    def __post_init__(self) -> None:
        """Refuse facts that make no sense, and turn sequences into tuples of floats, which can be hashed."""
        _require_hashable(self.function, self.name)
        for field in ("kinks", "saturates"):
            if (values := getattr(self, field)) is not None:
                object.__setattr__(self, field, tuple(float(value) for value in np.ravel(np.asarray(values, float))))
        if self.flat is not None:
            # Frozen for users; this is the one place that sets fields.
            object.__setattr__(self, "flat", tuple((float(low), float(high)) for low, high in self.flat))
        if self.kinks is not None and not (np.isfinite(self.kinks).all() and (np.diff(self.kinks) > 0).all()):
            raise ValueError(f"kinks={self.kinks} of {self.name}: must be finite points in ascending order")
        if self.saturates is not None and not set(self.saturates) <= {-np.inf, np.inf}:
            raise ValueError(f"saturates={self.saturates} of {self.name}: each must be -inf or inf")
        if self.flat is not None and not all(low < high for low, high in self.flat):
            raise ValueError(f"flat={self.flat} of {self.name}: must be intervals (low, high) with low < high")
        if self.lower_bound is not None and not self.lower_bound < np.inf:
            raise ValueError(f"lower_bound={self.lower_bound} of {self.name}: must be a number below inf")

    def __call__(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """Apply the function to every entry of `z`."""
        return self.function(z)

    @property
    def is_zero_below_zero(self) -> bool | None:
        """Whether negative pre-activations, and no others, make a unit dead as they do a ReLU; `None` if unknown."""
        return None if self.flat is None else (-np.inf, 0.0) in self.flat and self.lower_bound == 0.0

    def slope_at(self, z: Number) -> float:
        """The derivative that JAX takes at a point: at a kink that of either side, or their mean as `jnp.maximum` does.

        >>> Activation("positive", lambda z: jnp.maximum(z, 0)).slope_at(0), activation("relu").slope_at(0)
        (0.5, 0.0)
        """
        with jax.ensure_compile_time_eval():
            return float(jax.jvp(self.function, (jnp.asarray(float(z)),), (jnp.ones(()),))[1])

    @property
    def rounds_nothing(self) -> bool:
        """Whether every value is one of the numbers that went in, so that it is exact; False if that is not known."""
        return self.function in _ROUND_NOTHING

    @cached_property
    def is_zero_at_zero(self) -> bool:
        """Whether f(0) = 0, exactly, by evaluation: a unit without weights is then silent."""
        with jax.ensure_compile_time_eval():
            return bool(self.function(jnp.zeros(())) == 0)


def _leaky_relu(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Slope 0.01 below zero, and at zero as in PyTorch (`jax.nn.leaky_relu` has slope 1 there)."""
    return jnp.where(z > 0, z, 0.01 * z)


def _exact_gelu(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """The GELU with the exact normal distribution function: PyTorch's default, not JAX's."""
    return jax.nn.gelu(z, approximate=False)


def _identity(z: Float[Array, "..."]) -> Float[Array, "..."]:
    return z


_ROUND_NOTHING = frozenset({jax.nn.relu, jax.nn.relu6, jax.nn.hard_tanh, jnp.abs, _identity})

_INF = np.inf
_BOTH = (-_INF, _INF)
_BEYOND_ONE = ((-_INF, -1.0), (1.0, _INF))


def _smooth(name, function, monotone, lower, saturates, is_odd=False) -> Activation:
    """Smooth on the whole line, constant on no interval, not homogeneous."""
    return Activation(name, function, (), monotone, False, lower, (), saturates, is_odd)


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            # name, function, kinks, is_monotone, is_homogeneous, lower_bound, flat, saturates, is_odd
            Activation("relu", jax.nn.relu, (0.0,), True, True, 0.0, ((-_INF, 0.0),), (-_INF,), False),
            Activation("leaky_relu", _leaky_relu, (0.0,), True, True, -_INF, (), (), False),
            _smooth("tanh", jnp.tanh, True, -1.0, _BOTH, True),
            _smooth("sigmoid", jax.nn.sigmoid, True, 0.0, _BOTH),
            _smooth("gelu", _exact_gelu, False, -0.17, (-_INF,)),
            Activation("elu", jax.nn.elu, (0.0,), True, False, -1.0, (), (-_INF,), False),
            Activation("selu", jax.nn.selu, (0.0,), True, False, -1.7581, (), (-_INF,), False),
            _smooth("silu", jax.nn.silu, False, -0.2785, (-_INF,)),
            Activation("identity", _identity, (), True, True, -_INF, (), (), True),
            _smooth("erf", jax.scipy.special.erf, True, -1.0, _BOTH, True),
            _smooth("softplus", jax.nn.softplus, True, 0.0, (-_INF,)),
            _smooth("sin", jnp.sin, False, -1.0, (), True),
            _smooth("cos", jnp.cos, False, -1.0, ()),
            _smooth("exp", jnp.exp, True, 0.0, (-_INF,)),
            _smooth("mish", jax.nn.mish, False, -0.309, (-_INF,)),
            Activation("relu6", jax.nn.relu6, (0.0, 6.0), True, False, 0.0, ((-_INF, 0.0), (6.0, _INF)), _BOTH, False),
            Activation(
                "hard_tanh", jax.nn.hard_tanh, (-1.0, 1.0), True, False, -1.0, ((-_INF, -1.0), (1.0, _INF)), _BOTH, True
            ),
            Activation("abs", jnp.abs, (0.0,), False, True, 0.0, (), (), False),
        )
    }
)
"""Every activation that goes by name, with all its facts."""

_OTHER_FUNCTIONS = (
    # What JAX offers under a name that is taken by another convention above.
    Activation("jax.nn.leaky_relu", jax.nn.leaky_relu, (0.0,), True, True, -_INF, (), (), False),
    _smooth("jax.nn.gelu", jax.nn.gelu, False, -0.1701, (-_INF,)),
)

_BY_FUNCTION = MappingProxyType({entry.function: entry for entry in (*ACTIVATIONS.values(), *_OTHER_FUNCTIONS)})


def activation(given: str | Callable) -> Activation:
    """Look an activation up by name, or wrap your own function.

    Args:
        given: one of `ACTIVATIONS`: "relu" (derivative 0 at 0), "leaky_relu" (slope 0.01), "tanh", "sigmoid",
            "gelu" (exact), "elu" (alpha 1), "selu", "silu", "identity", "erf", "softplus", "sin", "cos", "exp", "mish",
            "relu6", "hard_tanh", "abs"; or an `Activation`; or any other elementwise function.

    Returns:
        The activation: call it on an array. A function that this module does not know comes without facts.

    Raises:
        ValueError: there is no activation of that name, or the function cannot be hashed.

    Example:
        >>> activation("relu")(jnp.array([-1.0, 2.0])).tolist()
        [0.0, 2.0]
        >>> activation("relu").kinks, activation(jax.nn.relu).kinks, activation(lambda z: z * (z > 0)).kinks
        ((0.0,), (0.0,), None)
    """
    if isinstance(given, Activation):
        return given
    if isinstance(given, str):
        if given not in ACTIVATIONS:
            raise ValueError(
                f"activation={given!r}: must be one of {', '.join(ACTIVATIONS)}, or an elementwise function"
            )
        return ACTIVATIONS[given]
    name = str(getattr(given, "__name__", None) or given)
    _require_hashable(given, name)
    return _BY_FUNCTION.get(given) or Activation(name, given)


def activation_key(given: str | Callable) -> str | Activation:
    """Reduce an activation to what a wiring stores: the name of one of `ACTIVATIONS`, the `Activation` of any other.

    Equal activations give equal keys, so that `"relu"` and `jax.nn.relu` build the same model.

    Args:
        given: as for `activation`, whose errors it raises.

    Example:
        >>> activation_key(jnp.tanh)
        'tanh'
    """
    entry = activation(given)
    return entry.name if ACTIVATIONS.get(entry.name) == entry else entry
