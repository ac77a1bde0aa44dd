"""Conserved quantities.

Where a rescaling of parameters changes no output, gradient flow conserves a quadratic form of the parameters, and so is
confined to a curved manifold. Gradient descent is not: each step adds exactly the same quadratic form of the gradient,
times the squared learning rate.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.losses import cross_entropy
from lopjax.manifolds import conserved_drift, homogeneous_conserved, level_set_manifold, tangency_residual
from lopjax.model import Model, Params
from lopjax.models import cnn, mlp, vit
from theory_checks.architectures import NUM_CLASSES, random_batches, random_variables
from theory_checks.check import Check, Row, Size
from theory_checks.clusters import take

RATE, ROUNDING, SIGNAL = 0.1, 1e-13, 1e-3
IMAGE = (4, 4, 2)
HOMOGENEOUS: Mapping[str, tuple[partial[Model], tuple[int, ...]]] = {
    "mlp, relu": (partial(mlp, (5,), (6, 5), NUM_CLASSES), (5,)),
    "mlp, leaky_relu": (partial(mlp, (5,), (6, 5), NUM_CLASSES, activation="leaky_relu"), (5,)),
    "cnn, relu": (partial(cnn, IMAGE, NUM_CLASSES, channels=(4, 6), dense=5, pooling="none"), IMAGE),
}
"""Networks of positive-homogeneous units; a new one joins by one row."""


def parameters_and_gradient(model: Model, shape: tuple[int, ...], train: bool = False) -> tuple[Params, Params]:
    """Random parameters and the gradient of a random batch."""
    variables = random_variables(model)
    batch = take(random_batches(shape, 1), 0)
    loss = cross_entropy(model, variables, batch, train)
    return variables["params"], jax.jit(jax.grad(loss))(variables["params"])


def check_homogeneous(size: Size) -> list[Row]:
    """Angle of the gradient with the level set, and what one step of gradient descent adds to the quantities."""
    del size
    rows = []
    for name, (build, shape) in HOMOGENEOUS.items():
        model = build()
        params, gradient = parameters_and_gradient(model, shape)
        conserved = homogeneous_conserved(model.wiring)
        moved = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
        change = np.asarray(conserved(moved) - conserved(params))
        predicted = np.asarray(conserved_drift(conserved, gradient, RATE))
        along = np.asarray(jax.jvp(conserved, (params,), (gradient,))[1])
        rows += [
            Row(f"{name}: change along the gradient, first order", float(np.abs(along).max()), ROUNDING),
            Row(f"{name}: change minus eta² (|g_in|² - |g_out|²)", float(np.abs(change - predicted).max()), ROUNDING),
            Row(f"{name}: change of a step, taken for 0", float(np.abs(change).max()), ROUNDING, control=True),
        ]
    build, shape = HOMOGENEOUS["mlp, relu"]
    level_set = level_set_manifold(parameters_and_gradient(build(), shape)[0], homogeneous_conserved(build().wiring))
    for activation, is_control in (("relu", False), ("gelu", True)):
        gradient = parameters_and_gradient(mlp(shape, (6, 5), NUM_CLASSES, activation=activation), shape)[1]
        residual = float(tangency_residual(level_set, gradient))
        bound = SIGNAL if is_control else ROUNDING
        rows.append(
            Row(f"mlp, {activation}: share of the gradient off the level set", residual, bound, "<=", is_control)
        )
    return rows


def _attention_products(head: Mapping[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Grams per head, `(heads, d, d)`: of queries and keys with their biases, of values with theirs and outputs."""

    def gram(name: str) -> np.ndarray:
        stacked = np.concatenate([np.asarray(head[name]["kernel"]), np.asarray(head[name]["bias"])[None]])
        return np.einsum("khd,khe->hde", stacked, stacked)

    out = np.asarray(head["out"]["kernel"])
    return {"Q, K": (gram("query"), gram("key")), "V, O": (gram("value"), np.einsum("dhw,ehw->hde", out, out))}


def check_attention(size: Size) -> list[Row]:
    """What one step of gradient descent adds to the matrices that each head conserves."""
    del size
    model = vit(IMAGE, NUM_CLASSES, patch=2, width=8, depth=1, heads=4, mlp_ratio=0.75)
    params, gradient = parameters_and_gradient(model, IMAGE)
    moved = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    before, after, of_gradient = (_attention_products(tree["heads_0"]) for tree in (params, moved, gradient))
    rows = []
    for pair in before:
        (a, b), (new_a, new_b), (g_a, g_b) = before[pair], after[pair], of_gradient[pair]
        error = (new_a - new_b) - (a - b) - RATE**2 * (g_a - g_b)
        wrong = (new_a + new_b) - (a + b) - RATE**2 * (g_a + g_b)
        rows.append(
            Row(f"{pair}: change of the difference minus eta² of the gradients'", np.abs(error).max(), ROUNDING)
        )
        rows.append(Row(f"{pair}: the same for the sum", np.abs(wrong).max(), 1e-6, control=True))
    return rows


def check_batch_norm(size: Size) -> list[Row]:
    """Cosine between weights in front of batch norm and their gradient, which eps keeps from being zero."""
    del size
    batch = take(random_batches((5,), 1, samples=16), 0)

    def cosines(norm: Literal["batch", "none"]) -> np.ndarray:
        """For weights as drawn and 100 times as large."""
        model = mlp((5,), (6, 5), NUM_CLASSES, activation="tanh", norm=norm)
        variables = random_variables(model)

        @jax.jit
        def cosine(factor: jax.Array) -> jax.Array:
            kernel = factor * variables["params"]["hidden_0"]["kernel"]
            params = {**variables["params"], "hidden_0": {**variables["params"]["hidden_0"], "kernel": kernel}}
            gradient = jax.grad(cross_entropy(model, variables, batch, train=True))(params)["hidden_0"]["kernel"]
            lengths = jnp.linalg.norm(kernel, axis=0) * jnp.linalg.norm(gradient, axis=0)
            return jnp.max(jnp.abs(jnp.sum(kernel * gradient, axis=0)) / lengths)

        return np.array([float(cosine(jnp.asarray(factor))) for factor in (1.0, 100.0)])

    (one, hundred), bare = cosines("batch"), cosines("none")
    what = "1e4 times the cosine of weights 100 times as large, over it, minus 1"
    return [
        Row("largest cosine", one, SIGNAL),
        Row("largest cosine: not 0 by rounding", one, 1e3 * ROUNDING, ">="),
        Row(what, abs(1e4 * hundred / one - 1), 1e-3),
        Row("without the norm: largest cosine", bare[0], SIGNAL, control=True),
        Row(f"without the norm: {what}", abs(1e4 * bare[1] / bare[0] - 1), 1e-3, control=True),
    ]


CHECKS: tuple[Check, ...] = (
    Check(
        "conserved.homogeneous",
        "Gradient flow conserves |w|² + b² - |a|² of every positive-homogeneous unit; a step of gradient descent adds"
        " eta² (|g_in|² - |g_out|²), exactly.",
        "arXiv 1806.00900, theorem 2.1; the exact drift: this library",
        check_homogeneous,
        "How unevenly a ReLU unit splits its scale between its incoming and outgoing weights is fixed at"
        " initialisation, and drifts only with the square of the learning rate.",
    ),
    Check(
        "conserved.attention",
        "For every head gradient flow also conserves Q'Q - K'K and V'V - OO' (biases included); the drift has the same"
        " form, in matrices.",
        "this library",
        check_attention,
        "Attention heads carry an imbalance of queries against keys and values against outputs that small steps keep.",
    ),
    Check(
        "conserved.batch_norm",
        "|w|² of a unit before batch norm is conserved only up to the norm's eps: the law as usually printed needs eps"
        " = 0.",
        "folklore (corrected)",
        check_batch_norm,
        "Weights before batch norm grow under steps of finite size; their effective learning rate decays with it.",
    ),
)
"""From units to heads to norms."""
