"""No verdict and no count of `unit_blocks` may be contradicted by the dense Hessian in float64.

Random networks in float32 and float64, among them those that tempt a method to guess: fitted to the last bit, with dead
units, without outgoing weights, tiny, saturated, with twice the same unit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.normal_space import clone_by_hand, dense_normal

from lopjax.cloning import uniform_partition, widen
from lopjax.losses import mean_cross_entropy, mean_squared_error
from lopjax.models import mlp
from lopjax.stability import Stability, unit_blocks

LOSSES = {"mse": mean_squared_error, "cross_entropy": mean_cross_entropy}
SPECIALS = ("generic", "fitted", "dead unit", "no outgoing weights", "tiny", "saturated", "equal units", "large inputs")
SAMPLES = 7


def random_shape(rng):
    """Depth, widths, factors, activation and loss: what has to be compiled."""
    depth = int(rng.integers(1, 4))
    widths = tuple(int(width) for width in rng.integers(1, 4, size=depth))
    activation = str(rng.choice(["tanh", "gelu", "sigmoid", "relu", "silu"]))
    loss, classes = str(rng.choice(list(LOSSES))), int(rng.integers(1, 4))
    factors = {f"hidden_{index}": int(n) for index, n in enumerate(rng.integers(1, 4, size=depth))}
    factors["hidden_0"] = max(factors["hidden_0"], 2)
    return mlp((2,), widths, max(classes, 2 if loss == "cross_entropy" else 1), activation=activation), loss, factors


def random_network(model, loss, special, rng, dtype):
    """Base variables and a batch in `dtype`, as numbers that both sides are given exactly."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    params = jax.tree.map(lambda leaf: rng.uniform(-1.5, 1.5, leaf.shape), shapes)
    inputs = rng.normal(size=(SAMPLES, 2))
    first = params["hidden_0"]
    if special == "dead unit":
        first["bias"][0] = -50.0
    if special == "no outgoing weights":
        params[list(params)[-1]]["kernel"][0] = 0.0
    if special == "tiny":
        params = jax.tree.map(lambda leaf: 1e-4 * leaf, params)
    if special == "saturated":
        first["kernel"] *= 30
    if special == "equal units":
        first["kernel"][:] = first["kernel"][:, :1]
        first["bias"][:] = first["bias"][0]
    if special == "large inputs":
        inputs = 1e3 * inputs
    params, inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (params, inputs))
    classes = model.wiring.size("classes")
    outputs = np.asarray(model.apply({"params": params}, inputs).logits, np.float64)
    if loss == "mse":
        labels = jnp.asarray(outputs if special == "fitted" else rng.normal(size=outputs.shape), dtype)
    else:
        chosen = outputs.argmax(axis=1) if special == "fitted" else rng.integers(classes, size=SAMPLES)
        labels = jnp.asarray(chosen, jnp.int32)  # a type of both precisions
    if special == "fitted" and loss == "cross_entropy":
        head = params["classes"]
        params["classes"] = {"kernel": 20 * head["kernel"], "bias": 20 * head["bias"]}
    return {"params": params}, (inputs, labels)


def contradictions(total, eigenvalues, noise):
    """What the dense eigenvalues, known up to `noise`, rule out in a report."""
    undecided, level = total.n_undecided, total.zero_level * total.scale
    bound = 10 * total.tolerance + total.residual
    at_kink = "kink" in total.note
    wrong = {
        "sum": total.n_plus + total.n_minus + total.n_zero + undecided != len(eigenvalues),
        "positive": total.n_plus > np.sum(eigenvalues > -noise),
        "negative": total.n_minus > np.sum(eigenvalues < noise),
        "zero": total.n_zero > np.sum(np.abs(eigenvalues) <= level + noise),
        "missed positive": np.sum(eigenvalues > level + noise) > total.n_plus + undecided,
        "missed negative": np.sum(eigenvalues < -level - noise) > total.n_minus + undecided,
        "exact": total.exact != (undecided == 0 and not at_kink),
        "structural": total.structural > np.sum(np.abs(eigenvalues) <= noise),
        "extremes": max(abs(total.min_eigenvalue - eigenvalues[0]), abs(total.max_eigenvalue - eigenvalues[-1]))
        > bound + noise,
        "verdict": total.verdict is Stability.SADDLE and not (total.n_plus and total.n_minus),
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def check_networks(seed, num_shapes, networks_per_shape, in_single):
    """Every contradiction found, and how often which verdict was given."""
    rng, found, verdicts = np.random.default_rng(seed), [], []
    for index in range(num_shapes):
        model, loss, factors = random_shape(rng)
        dtype = (np.float32, np.float64)[index % 2]
        wide = widen(model, factors)
        partition = uniform_partition(wide.wiring, factors)
        for number in range(networks_per_shape):
            special = SPECIALS[(number + index) % len(SPECIALS)]
            variables, batch = random_network(model, loss, special, rng, dtype)
            # Under x64 a network computes in double precision whatever the type of its parameters.
            with jax.enable_x64(dtype is np.float64 or not in_single):
                total = unit_blocks(model, variables, batch, factors, loss=LOSSES[loss], method="closed form").total
            params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
            cloned = {"params": clone_by_hand(params, model.wiring, partition)}
            normal = dense_normal(wide, cloned, LOSSES[loss], batch, partition)
            eigenvalues = normal.eigenvalues
            wrong = contradictions(total, eigenvalues, 1e-13 * normal.size + 1e-300)
            verdicts.append(total.verdict)
            if wrong:
                found.append((index, special, dtype.__name__, loss, wrong, total, eigenvalues))
    return found, verdicts


# float32 networks are computed in single precision, as a user computes them; the oracle never is.
@pytest.mark.parametrize(
    ("num_shapes", "networks_per_shape", "in_single"),
    [(1, 14, True), pytest.param(12, 17, True, marks=pytest.mark.slow)],
)
def test_no_verdict_is_contradicted_by_the_dense_hessian(x64, num_shapes, networks_per_shape, in_single):
    found, verdicts = check_networks(num_shapes, num_shapes, networks_per_shape, in_single)
    assert not found, "\n".join(str(entry) for entry in found)
    assert len(verdicts) == num_shapes * networks_per_shape
    # Verdicts are given, not only withheld.
    assert verdicts.count(Stability.SADDLE) > len(verdicts) / 3


def test_a_wrong_report_is_caught():
    """Control: the comparison sees a sign, a zero, an end and a structural zero that are wrong."""
    model = mlp((2,), (2,), 2, activation="tanh")
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        variables, batch = random_network(model, "mse", "generic", rng, np.float64)
        total = unit_blocks(model, variables, batch, 2, loss=mean_squared_error).total
        wide = widen(model, 2)
        partition = uniform_partition(wide.wiring, 2)
        cloned = {"params": clone_by_hand(variables["params"], model.wiring, partition)}
        eigenvalues = dense_normal(wide, cloned, mean_squared_error, batch, partition).eigenvalues
    assert contradictions(total, eigenvalues, 1e-13) == []
    one_more = total._replace(n_plus=total.n_plus + 1, n_minus=total.n_minus - 1)
    assert "positive" in contradictions(one_more, eigenvalues, 1e-13)
    swapped = total._replace(n_plus=total.n_plus - 1, n_zero=total.n_zero + 1)
    assert {"zero", "missed positive"} <= set(contradictions(swapped, eigenvalues, 1e-13))
    assert "extremes" in contradictions(total._replace(min_eigenvalue=0.0), eigenvalues, 1e-13)
    assert "structural" in contradictions(total._replace(structural=total.structural + 9), eigenvalues, 1e-13)
