"""The blocks of a plain network and their spectra, in long double, from a forward and backward pass of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lopjax.stability import StabilityReport
from theory_checks.audit.extended import FUNCTIONS, KINKED, Real

EPSILON = float(np.finfo(np.longdouble).eps)


class TrueBlock(NamedTuple):
    """What is known about the block of one unit.

    Attributes:
        eigenvalues: ascending.
        noise: bound on their error in long double.
        radius: `min_x |z| / ||phi||` for functions with a kink at 0, else infinite.
        is_kinked: whether some pre-activation, here or behind, is 0 exactly (or to long double's own rounding).
    """

    eigenvalues: np.ndarray
    noise: float
    radius: float
    is_kinked: bool


class _Layer(NamedTuple):
    features: Real
    pre: Real
    slope: Real
    curvature: Real
    kernel: Real
    size: Real  # sum of |terms| of the pre-activation: its rounding, in units of eps


def true_blocks(
    layers: Sequence[tuple[np.ndarray, np.ndarray]],
    activation: str,
    signal_of: Callable[[Real], Real],
    inputs: np.ndarray,
    counts: Sequence[np.ndarray],
) -> list[list[TrueBlock]]:
    """Blocks of every hidden layer of `h = f(h W + b)`, last layer without f.

    Args:
        layers: `(kernel, bias)` of every layer, last one the outputs.
        activation: name of f.
        signal_of: `outputs -> dL/d(outputs)`, in long double.
        inputs: `(samples, inputs)`.
        counts: number of clones of every unit, per hidden layer.
    """
    records = _forward(layers, activation, inputs)
    outputs = records[-1]
    delta, blocks, is_kinked = signal_of(outputs.pre), [], False
    # Logits that cancel are rounded absolutely, and the residuals with them.
    strain = float(1 + outputs.size.max())
    for index in range(len(layers) - 2, -1, -1):
        layer, reader = records[index], records[index + 1].kernel
        is_last = index == len(layers) - 2
        following = np.ones(reader.shape[1]) if is_last else counts[index + 1]
        sources = np.ones(layer.features.shape[1]) if index == 0 else counts[index - 1]
        error = delta @ reader.T
        is_near_kink = (np.abs(layer.pre) <= 8 * EPSILON * layer.size) & (activation in KINKED)
        units = []
        for unit, copies in enumerate(counts[index]):
            block, size, squares = _block(layer, error[:, unit], delta, unit, copies, sources, following)
            distance = np.abs(layer.pre[:, unit]) / np.sqrt(squares)
            radius = float(distance.min()) if activation in KINKED else np.inf
            noise = 64 * EPSILON * size * strain
            units.append(
                TrueBlock(eigenvalues_of(block), noise, radius, is_kinked or bool(is_near_kink[:, unit].any()))
            )
        blocks.append(units)
        is_kinked = is_kinked or bool(is_near_kink.any())
        delta = layer.slope * error
    return blocks[::-1]


def _forward(layers: Sequence[tuple[np.ndarray, np.ndarray]], activation: str, inputs: np.ndarray) -> list[_Layer]:
    hidden, records = inputs.astype(np.longdouble), []
    spread = np.zeros_like(hidden)  # size of what may cancel in the layer's inputs
    for kernel, bias in layers:
        kernel, bias = kernel.astype(np.longdouble), bias.astype(np.longdouble)
        pre = hidden @ kernel + bias
        size = (np.abs(hidden) + spread) @ np.abs(kernel) + np.abs(bias)
        value, slope, curvature = FUNCTIONS[activation](pre)
        records.append(_Layer(hidden, pre, slope, curvature, kernel, size))
        hidden, spread = value, np.abs(slope) * size
    return records


def _block(
    layer: _Layer, error: Real, delta: Real, unit: int, copies: int, sources: np.ndarray, following: np.ndarray
) -> tuple[Real, float, Real]:
    """`[[A, B], [B', 0]]` of one unit, the size of its terms, and `||phi||²` of every sample."""
    samples = len(layer.features)
    features = np.concatenate([layer.features * np.sqrt(sources.astype(np.longdouble)), np.ones((samples, 1))], axis=1)
    signals = delta / np.sqrt(following.astype(np.longdouble))
    weights, slope = error * layer.curvature[:, unit] / np.longdouble(copies), layer.slope[:, unit]
    coupling = (features * slope[:, None]).T @ signals
    p, q = coupling.shape
    block = np.zeros((p + q, p + q), np.longdouble)
    block[:p, :p], block[:p, p:], block[p:, :p] = (features * weights[:, None]).T @ features, coupling, coupling.T
    squares = (features**2).sum(axis=1)
    of_coupling = np.abs(slope) * np.sqrt(squares * (signals**2).sum(axis=1))
    return block, float((np.abs(weights) * squares).sum() + 2 * of_coupling.sum()), squares


def eigenvalues_of(matrix: Real, sweeps: int = 14) -> np.ndarray:
    """Eigenvalues of a symmetric matrix by Jacobi rotations: numpy's own routines know no long double."""
    matrix = matrix.copy()
    largest = np.abs(matrix).max()
    if not largest > 0:
        return np.zeros(len(matrix))
    matrix = matrix / largest
    for _ in range(sweeps):
        if np.abs(matrix - np.diag(np.diag(matrix))).max() <= EPSILON:
            break
        for i in range(len(matrix)):
            for j in range(i + 1, len(matrix)):
                _rotate(matrix, i, j)
    return np.sort((np.diag(matrix) * largest).astype(np.float64))


def _rotate(matrix: Real, i: int, j: int) -> None:
    """Make one pair of off-diagonal entries zero."""
    if matrix[i, j] == 0:
        return
    tau = (matrix[j, j] - matrix[i, i]) / (2 * matrix[i, j])
    tangent = np.copysign(1, tau) / (np.abs(tau) + np.hypot(1, tau))
    cosine = 1 / np.sqrt(1 + tangent**2)
    sine = tangent * cosine
    rows = matrix[[i, j]]
    matrix[i], matrix[j] = cosine * rows[0] - sine * rows[1], sine * rows[0] + cosine * rows[1]
    columns = matrix[:, [i, j]].copy()
    matrix[:, i], matrix[:, j] = (
        cosine * columns[:, 0] - sine * columns[:, 1],
        sine * columns[:, 0] + cosine * columns[:, 1],
    )


def falsehoods(report: StabilityReport, block: TrueBlock, activation: str) -> list[str]:
    """What the true spectrum contradicts in a report of one block; empty if nothing."""
    r, values, noise = report, block.eigenvalues, block.noise
    level = r.zero_level * r.scale + noise
    structural = max(r.structural, 0)
    wrong: Mapping[str, bool | np.bool_] = {
        "inertia does not add up": r.n_plus + r.n_minus + r.n_zero + r.n_undecided != len(values),
        "too many positive": r.n_plus > np.sum(values > -noise),
        "too many negative": r.n_minus > np.sum(values < noise),
        "zeros that are not": r.n_zero > max(np.sum(np.abs(values) <= level), 0),
        "structural zeros that are not": structural > np.sum(np.abs(values) <= noise),
        "missed positive": np.sum(values > level) > r.n_plus + r.n_undecided,
        "missed negative": np.sum(values < -level) > r.n_minus + r.n_undecided,
        "exact with something undecided": r.exact != (r.n_undecided == 0 and "kink" not in r.note),
        "a bound that lies": max(abs(r.min_eigenvalue - values[0]), abs(r.max_eigenvalue - values[-1]))
        > 10 * r.tolerance + r.residual + noise
        and "kink" not in r.note,
        "exact or flat at a kink": block.is_kinked and (r.exact or r.verdict.name == "NEUTRAL" or not r.note),
        "radius too large": activation in KINKED and r.radius > block.radius * (1 + 1e-9) + 1e-300,
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]
