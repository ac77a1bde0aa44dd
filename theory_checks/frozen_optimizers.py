"""Optimizers and frozen units.

The gradient of a frozen parameter is 0; what an optimizer remembers of it need not be. Here the incoming weights of one
unit, a column of a matrix, have gradients for a while and then none, and for every optimizer it is measured how far it
moves them after that, in units of its learning rate.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from theory_checks.check import Check, Row, Size

RATE, DECAY, AWAKE = 0.01, 0.1, 50
MAKE: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": partial(optax.sgd, RATE),
    "rmsprop": partial(optax.rmsprop, RATE),
    "adagrad": partial(optax.adagrad, RATE),
    "momentum": partial(optax.sgd, RATE, 0.9),
    "adam": partial(optax.adam, RATE),
    "lion": partial(optax.lion, RATE, weight_decay=0.0),
    "muon": partial(contrib.muon, RATE),
    "adamw": partial(optax.adamw, RATE, weight_decay=DECAY),
    "sgd, L2": lambda: optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE)),
    "adam, L2": lambda: optax.chain(optax.add_decayed_weights(DECAY), optax.adam(RATE)),
}
"""A new optimizer joins by one row, and one line in a check that says what it does."""


def _weights_and_gradients(steps: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A matrix and its gradients, steady plus noise; the first column's are steady, and 0 after `AWAKE` steps."""
    rng = np.random.default_rng(0)
    weights, steady = rng.normal(size=(2, *shape))
    gradients = steady + 0.3 * rng.normal(size=(AWAKE + steps, *shape))
    gradients[:, :, 0] = steady[:, 0]
    gradients[AWAKE:, :, 0] = 0.0
    return weights, gradients


def path(name: str, steps: int, is_awake_first: bool = True, shape: tuple[int, int] = (8, 6)) -> np.ndarray:
    """The frozen column from its last gradient on, `(steps + 1, rows)`; or without any gradient from the start."""
    weights, gradients = _weights_and_gradients(steps, shape)
    if not is_awake_first:
        gradients = gradients[AWAKE:]
    optimizer = MAKE[name]()

    @jax.jit
    def run(weights: jax.Array, gradients: jax.Array) -> jax.Array:
        def step(carry, gradient):
            weights, state = carry
            updates, state = optimizer.update(gradient, state, weights)
            weights = weights + updates
            return (weights, state), weights[:, 0]

        return jax.lax.scan(step, (weights, optimizer.init(weights)), gradients)[1]

    columns = np.asarray(run(jnp.asarray(weights), jnp.asarray(gradients)))
    return np.concatenate([weights[None, :, 0], columns])[-steps - 1 :]


def travelled(name: str, steps: int, is_awake_first: bool = True, shape: tuple[int, int] = (8, 6)) -> float:
    """Largest distance of an entry from where it was, in learning rates."""
    column = path(name, steps, is_awake_first, shape)
    return float(np.abs(column[-1] - column[0]).max() / RATE)


def check_memory(size: Size) -> list[Row]:
    """Distance travelled after the last gradient, against what the optimizer's memory predicts."""
    steps = 300 if size == "small" else 3_000
    _, gradients = _weights_and_gradients(1, (8, 6))
    trace = np.abs(gradients[0, :, 0]).max() * (1 - 0.9**AWAKE) / (1 - 0.9)
    momentum, spike, ramp = travelled("momentum", steps), _after(np.ones(1), steps), _after(ADAM_RAMP, steps)
    return [
        *(
            Row(f"{name}: learning rates travelled", travelled(name, steps), 0.0)
            for name in ("sgd", "rmsprop", "adagrad")
        ),
        Row("momentum: travelled over |m| beta/(1 - beta), minus 1", abs(momentum / (trace * 9) - 1), 1e-9),
        Row("adam: travelled minus 10", abs(travelled("adam", steps) - 10), 2),
        Row(f"adam, after a spike: travelled minus {ADAM_SPIKE:.1f}", abs(spike - ADAM_SPIKE), 0.1),
        Row("adam, after a spike: travelled minus 10", abs(spike - 10), 2, control=True),
        Row(f"adam, after gradients that grew by 11 %: travelled minus {ADAM_MOST:.1f}", abs(ramp - ADAM_MOST), 0.1),
        Row(f"adam, after the same: travelled minus {ADAM_SPIKE:.1f}", abs(ramp - ADAM_SPIKE), 0.1, control=True),
        Row(f"lion: travelled over {steps} steps, minus 1", abs(travelled("lion", steps) / steps - 1), 1e-9),
        Row("muon: travelled", travelled("muon", steps), 5, ">="),
        Row("muon, (8, 6): travelled", travelled("muon", steps)),
        Row("muon, (64, 48): travelled", travelled("muon", steps, shape=(64, 48))),
        Row("momentum: learning rates travelled", momentum, 0.0, control=True),
        Row("adam: learning rates travelled", travelled("adam", steps), 0.0, control=True),
    ]


def _after(last: np.ndarray, steps: int, quiet: int = 8_000) -> float:
    """Learning rates that Adam moves a parameter by after its last gradients, with none before these either."""
    optimizer = MAKE["adam"]()

    @jax.jit
    def run(gradients: jax.Array) -> jax.Array:
        def step(carry, gradient):
            weight, state = carry
            update, state = optimizer.update(gradient, state, weight)
            return (weight + update, state), weight + update

        weight = jnp.zeros(())
        return jax.lax.scan(step, (weight, optimizer.init(weight)), gradients)[1]

    places = np.asarray(run(jnp.concatenate([jnp.zeros(quiet), jnp.asarray(last), jnp.zeros(steps)])))
    return float(abs(places[-1] - places[-1 - steps]) / RATE)


# Of a spike g, m = 0.1 g and v = 0.001 g²: 0.1 / sqrt(0.001) steps at once, and sum_k (0.9 / sqrt(0.999))^k after it.
ADAM_SPIKE = 0.1 / 0.001**0.5 * 0.9 / (0.999**0.5 - 0.9)
# The most that any history can do, by Cauchy and Schwarz, and the gradients that do it.
ADAM_MOST = ADAM_SPIKE / (1 - 0.9**2 / 0.999) ** 0.5
ADAM_RAMP = (0.999 / 0.9) ** np.arange(-299.0, 1.0)


def check_zero_moments(size: Size) -> list[Row]:
    """Distance travelled without any gradient from the start; weight decay as the control."""
    steps = 300 if size == "small" else 3_000
    still = ("sgd", "rmsprop", "adagrad", "momentum", "adam", "lion", "muon")
    return [
        *(
            Row(f"{name}: learning rates travelled", travelled(name, steps, is_awake_first=False), 0.0)
            for name in still
        ),
        Row("adamw: learning rates travelled", travelled("adamw", steps, is_awake_first=False), 1e-3, control=True),
    ]


def check_decay(size: Size) -> list[Row]:
    """How weight decay shrinks the incoming weights and bias of a sleeping unit."""
    steps = 50 if size == "small" else 500
    rows = []
    for name in ("adamw", "sgd, L2"):
        column = path(name, steps, is_awake_first=False)
        error = np.abs(column[-1] / (column[0] * (1 - RATE * DECAY) ** steps) - 1).max()
        rows.append(Row(f"{name}: weights over (1 - eta lambda)^{steps}, minus 1", float(error), 1e-12))
    highest = {name: _highest_under_decay(name) for name in ("adamw", "sgd, L2", "adam, L2")}
    speeds = {}
    for name in ("adam, L2", "adamw"):
        column = path(name, 1, is_awake_first=False)
        speeds[name] = float(np.abs(column[1] - column[0]).min() / RATE)
    return [
        *rows,
        *(Row(f"{name}: largest z of a dead unit", z, 0, control=name == "adam, L2") for name, z in highest.items()),
        Row("adam, L2: least entry of the first step, in learning rates", speeds["adam, L2"], 1 - 1e-3, ">="),
        Row("adamw: the same", speeds["adamw"], 1 - 1e-3, ">=", control=True),
    ]


def _highest_under_decay(name: str) -> float:
    """Largest pre-activation on the input (1, 1, 1) of a unit that starts at z = -0.5 and has no gradient."""
    optimizer, weights = MAKE[name](), jnp.array([2.0, -1.0, -1.5])
    state, highest = optimizer.init(weights), -np.inf
    step = jax.jit(optimizer.update)
    for _ in range(150):
        updates, state = step(jnp.zeros(3), state, weights)
        weights = weights + updates
        highest = max(highest, float(weights.sum()))
    return highest


CHECKS: tuple[Check, ...] = (
    Check(
        "frozen_optimizers.zero_moments",
        "Without weight decay and without memory of an earlier gradient, optimizers do not move frozen parameters.",
        "this library",
        check_zero_moments,
        "A first-layer unit that has been dead from the start stays dead on the same data under all of these.",
        "This page used to claim this for every unit and any optimizer. But a deeper unit can be woken by the layers"
        " below (see frozen.training), and decay inside Adam can wake one of the first layer (below).",
    ),
    Check(
        "frozen_optimizers.memory",
        "After a unit dies, SGD, RMSProp and Adagrad stop at once; momentum, Adam and Muon coast; and Lion goes on at"
        " full speed until its momentum underflows.",
        "this library",
        check_memory,
        "An optimizer's moments can carry a unit past the edge, or back over it: reset the moments with the unit. Adam"
        " coasts by about 10 learning rates after steady gradients, by 28.6 after a single spike, which is how units"
        " die, and never by more than 65.8, which is reached by gradients that grow by 11 % per step.",
        "This page used to give about 10 learning rates for Adam in every case; that holds after steady gradients."
        " Later it said up to 28.6, which is true after a single spike, but not after growing gradients.",
    ),
    Check(
        "frozen_optimizers.weight_decay",
        "Weight decay moves frozen weights and bias to 0 together; L2 inside Adam does it at full speed, each entry by"
        " the same amount, which can wake the unit.",
        "this library",
        check_decay,
        "Decay in proportion to the weights brings a dead unit closer to waking without waking it: a first-layer unit"
        " keeps the sign of all its pre-activations. L2 inside Adam, which reduces every entry by a learning rate,"
        " does not keep these signs; nor does decay that leaves out the bias.",
        "This page used to say that no decay wakes a unit; L2 inside Adam does.",
    ),
)
"""From the optimizers that hold to those that do not."""
