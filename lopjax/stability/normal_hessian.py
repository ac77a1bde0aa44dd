"""Signs of the normal Hessian of any loss at any manifold: all of them from dense eigenvalues, or some from Lanczos."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key

from lopjax.curvature import dense_hessian, extreme_eigenvalues, hvp
from lopjax.curvature.products import Loss, Params
from lopjax.manifolds import Manifold, Subspace, normal_basis, num_parameters, random_normal_vector, tree_norm
from lopjax.stability.normal_spaces import NormalSpace
from lopjax.stability.verdicts import (
    SignCounts,
    StabilityReport,
    count_signs,
    counted_report,
    precision_note,
    witnessed_report,
)
from lopjax.tolerance import ROUNDINGS, default_zero_level, rounding_tolerance


def by_eigenvalues(
    loss: Loss, params: Params, manifold: Manifold, normal: NormalSpace, max_bytes: int
) -> StabilityReport:
    """Every eigenvalue of the normal Hessian, from the dense one.

    Raises:
        ValueError: a Hessian that is not finite or not symmetric; no normal directions.
    """
    dtype, size = jnp.result_type(*jax.tree.leaves(params)), num_parameters(manifold)
    value, raw = jax.jit(lambda params: (loss(params), dense_hessian(loss, params, max_bytes)))(params)
    epsilon, raw_values = float(jnp.finfo(dtype).eps), np.asarray(raw, np.float64)
    hessian, scale, residual = _symmetric(
        raw_values, epsilon, _curvature_floor(value, params), _cancellation(value, params, epsilon)
    )
    tolerance = float(rounding_tolerance(dtype, size, scale))
    remaining, structural = normal.choose(_is_flat_along(raw, params, normal.gauge, tolerance))
    basis = np.asarray(normal_basis(remaining, max_bytes), np.float64)
    if not len(basis):
        raise ValueError(
            "the manifold fills the parameter space: it has no normal directions to classify; give a smaller one"
        )
    eigenvalues = np.linalg.eigvalsh(basis @ hessian @ basis.T)
    ends = [0.0] if structural else []
    level = default_zero_level(dtype)
    counts = count_signs(eigenvalues, tolerance, residual, level * scale).plus_counts(SignCounts(0, 0, structural))
    return counted_report(
        counts,
        (min([float(eigenvalues[0]), *ends]), max([float(eigenvalues[-1]), *ends])),
        tolerance=tolerance,
        residual=residual,
        structural=structural,
        method="dense",
        space=manifold.space,
        note="" if counts.undecided == 0 else precision_note(dtype),
        zero_level=level,
        scale=scale,
        radius=math.nan,
    )


def _curvature_floor(value: Array, params: Params) -> float:
    """`|L| / max(1, |theta|²)`: a Hessian smaller than this is measured against it.

    Derivatives of a saturated function are differences, such as 1 - tanh², which at the level of eps of the cancelling
    terms vanish or lose their symmetry. A Hessian that consists of nothing else is small compared with the loss itself.
    """
    return float(jnp.abs(value)) / max(1.0, float(tree_norm(params)) ** 2)


def _cancellation(value: Array, params: Params, epsilon: float) -> float:
    """The rounding error that cancelling terms can leave in a Hessian: `64 eps max(1, |L|) max(1, |theta|²)`.

    Once a cross-entropy is fitted to the last bit, the loss is 0 and probabilities minus labels are the rounding errors
    of 1; multiplied by features and weights they make up the whole Hessian, which then is symmetric only by accident.
    """
    return ROUNDINGS * epsilon * max(1.0, float(jnp.abs(value))) * max(1.0, float(tree_norm(params)) ** 2)


def _symmetric(
    hessian: np.ndarray, epsilon: float, floor: float, cancellation: float
) -> tuple[np.ndarray, float, float]:
    """Symmetric part, its largest |eigenvalue| (at least the floor), and a bound on its error.

    The bound is the norm of the antisymmetric part; where that is too large for a derivative but no larger than
    cancellation explains, the bound is that of the cancellation, and smaller eigenvalues have no sign.

    Args:
        hessian: the Hessian as it was computed.
        epsilon: rounding of the type that it was computed in.
        floor: smallest scale that a loss of this value has.
        cancellation: largest asymmetry that cancellation inside the loss explains.

    Raises:
        ValueError: a Hessian that is not finite, or not symmetric.
    """
    if not np.isfinite(hessian).all():
        raise ValueError("the Hessian of the loss is not finite at these parameters")
    symmetric = (hessian + hessian.T) / 2
    scale = max(float(np.abs(np.linalg.eigvalsh(symmetric)).max()), floor)
    defect = float(np.linalg.norm(hessian - symmetric))
    if defect <= epsilon**0.5 * max(scale, defect):
        return symmetric, scale, defect
    if defect > cancellation:
        raise ValueError(
            f"the Hessian of the loss is not symmetric ({defect:.3g} against {scale:.3g}): with a stop_gradient or "
            "custom derivative its gradient is not the gradient of any function; remove it"
        )
    return symmetric, scale, cancellation


def _is_flat_along(hessian: Array, params: Params, gauge: Subspace | None, tolerance: float) -> bool:
    """Whether the Hessian vanishes along the gauge, as it does unless the loss reads the parameters themselves."""
    if gauge is None:
        return False
    _, unravel = ravel_pytree(params)
    along = jax.vmap(lambda row: ravel_pytree(gauge.project(unravel(row)))[0])(hessian)
    return bool(jnp.linalg.norm(along) <= tolerance)


def by_lanczos(
    loss: Loss,
    params: Params,
    manifold: Manifold,
    normal: NormalSpace,
    num_steps: int,
    key: Key[Array, ""] | None,
) -> StabilityReport:
    """Some directions of the normal space, from `2 num_steps` products: signs are witnessed, eigenvalues not counted.

    Raises:
        ValueError: a Hessian that is not finite.
    """
    dtype, size = jnp.result_type(*jax.tree.leaves(params)), num_parameters(manifold)
    keys = jax.random.split(jax.random.key(0) if key is None else key, 4)

    @jax.jit
    def product(vector: Params) -> Params:
        return hvp(loss, params, vector)

    value, everywhere = jax.jit(lambda key: (loss(params), extreme_eigenvalues(product, params, num_steps, key)))(
        keys[0]
    )
    if not bool(jnp.isfinite(everywhere.eigenvalues).all()):
        raise ValueError("the Hessian of the loss is not finite at these parameters")
    scale = max(float(jnp.abs(everywhere.eigenvalues).max()), _curvature_floor(value, params))
    tolerance = float(rounding_tolerance(dtype, size, scale))
    is_flat = False
    if normal.gauge is not None:
        inside = normal.gauge.project(random_like(params, keys[1]))
        is_flat = bool(tree_norm(product(inside)) <= tolerance * tree_norm(inside))
    remaining, structural = normal.choose(is_flat)

    def leave(vector: Params) -> Params:
        return jax.tree.map(jnp.subtract, vector, remaining.project(vector))

    codimension = None if remaining.tangent_dimension is None else size - remaining.tangent_dimension
    pairs = jax.jit(
        lambda key: extreme_eigenvalues(product, params, num_steps, key, project=leave, dimension=codimension)
    )(keys[2])
    probe = leave(product(random_normal_vector(keys[3], remaining)))
    report = witnessed_report(
        (float(pairs.eigenvalues[0]), float(pairs.eigenvalues[-1])),
        tolerance=tolerance,
        residual=float(pairs.residuals.max()),
        method="lanczos",
        space=manifold.space,
        is_zero=all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(probe)),
        zero_level=default_zero_level(dtype),
        scale=scale,
        radius=math.nan,
    )
    return report._replace(structural=structural or -1)


def random_like(params: Params, key: Key[Array, ""]) -> Params:
    """Standard normal numbers in the shape and type of the parameters."""
    flat, unravel = ravel_pytree(params)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))
