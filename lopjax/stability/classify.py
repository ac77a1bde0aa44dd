"""Which way does the loss curve normal to a manifold? For any manifold and loss, by dense eigenvalues or Lanczos."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key

from lopjax.arguments.numbers import check_finite
from lopjax.arguments.precision import all_digits
from lopjax.curvature import check_loss, check_same_tree, check_size
from lopjax.curvature.guards import DENSE_LIMIT_BYTES
from lopjax.curvature.products import Loss, Params
from lopjax.manifolds import Manifold, distance, num_parameters, random_normal_vector, tangency_residual, tree_norm
from lopjax.stability.kinks import Jumps, find_jumps
from lopjax.stability.normal_hessian import by_eigenvalues, by_lanczos, random_like
from lopjax.stability.normal_spaces import normal_space
from lopjax.stability.verdicts import Stability, StabilityReport, at_a_kink
from lopjax.tolerance import drift_tolerance

METHODS = ("dense", "lanczos")


@all_digits()
def classify(
    loss: Loss,
    params: Params,
    manifold: Manifold,
    method: str = "dense",
    *,
    num_steps: int = 64,
    key: Key[Array, ""] | None = None,
    max_bytes: int = DENSE_LIMIT_BYTES,
) -> StabilityReport:
    """Signs of the curvature `v'Hv` of the loss over the directions v normal to a manifold.

    An eigenvalue of the normal Hessian is given a sign if it exceeds ten times the tolerance `64 eps sqrt(N) S`, with N
    the number of parameters and S the largest |eigenvalue| of H on the whole space, or `|L| / max(1, |theta|²)` if that
    is larger. A smaller one is undecided, unless it stays below `zero_level S` (sqrt(eps) S) including its error: then
    it counts as zero at that level. In float32 few eigenvalues can be called zero. At points of V the gauge directions
    of cloned units are zero by algebra: they are left out of the computation and added as `structural` zeros. That is
    valid only for a loss of the network's outputs alone, which is checked; with weight decay in the loss they are
    computed like any other direction. 16-bit parameters are converted to float32, which does not change their values.

    Args:
        loss: `params -> scalar`, a mean over samples; deterministic.
        params: the point, N parameters.
        manifold: a manifold through that point. Away from critical points there is a
            verdict only if it is declared affine (`Manifold.is_affine`; cloned and frozen manifolds are).
        method: "dense" counts every eigenvalue, but forms N x N matrices. "lanczos" takes `2 num_steps` Hessian-vector
            products and sees some directions only: it can prove a saddle, but cannot count.
        num_steps: Lanczos steps, for the whole space and for the normal space.
        key: random key of its start vectors, `jax.random.key(0)` by default.
        max_bytes: refuse dense matrices larger than this.

    Returns:
        The report. `UNDECIDED` for level sets away from critical points (there `v'Hv` depends on the curve along which
        one leaves) and where their constraints lose rank, with the reason in `note`. Where the gradient leaves the
        manifold, a note says so: the manifold is not invariant then, whatever its curvature. Where the gradient or the
        second derivative jumps, as for a ReLU or ELU network at a pre-activation of 0, nothing is called flat and no
        count is called exact.

    Raises:
        ValueError: a manifold of other parameters, not through the point, or without normal directions; an unknown
            method; a loss whose Hessian should not be taken (`check_loss`) or is not finite or not symmetric; a dense
            matrix that is too large.

    Example:
        >>> from lopjax.manifolds import Manifold
        >>> line = Manifold(jnp.zeros(3), lambda vector: vector * jnp.array([1.0, 0.0, 0.0]))
        >>> report = classify(lambda p: p[1] ** 2 - p[2] ** 2 + p[0] ** 4, jnp.zeros(3), line)
        >>> report.verdict.name, report.n_plus, report.n_minus, report.n_zero
        ('SADDLE', 1, 1, 0)

    References:
        arXiv 2510.00304, definition 4; the tolerance and the structural zeros are this library's own.
    """
    check_finite("params", params)
    _check_request(params, manifold, method, num_steps, max_bytes)
    params, manifold = _at_least_single(params), manifold._replace(origin=_at_least_single(manifold.origin))
    check_loss(loss, params)
    normal = normal_space(params, manifold)
    if method == "dense":
        report = by_eigenvalues(loss, params, manifold, normal, max_bytes)
    else:
        report = by_lanczos(loss, params, manifold, normal, num_steps, key)
    jumps = find_jumps(loss, params, _generic_direction(params, normal.deflated), report.scale)
    if jumps.in_gradient or jumps.in_curvature:
        report = _beside_a_kink(report, jumps)
    return _qualified(report, jumps.gradient, params, manifold)


def _check_request(params: Params, manifold: Manifold, method: str, num_steps: int, max_bytes: int) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r}: must be one of {list(METHODS)}")
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: must be a positive integer")
    check_same_tree(params, manifold.origin, "manifold.origin")
    size, dtype = num_parameters(manifold), jnp.result_type(*jax.tree.leaves(params))
    if method == "dense":
        check_size("dense Hessian", (size, size), dtype, max_bytes, "use classify(..., method='lanczos')")
    if manifold.tangent_dimension == size:
        raise ValueError(
            "the manifold fills the parameter space: it has no normal directions to classify; give a smaller one"
        )
    # Parameters that were trained on the manifold may have drifted off it by rounding.
    off, allowed = float(distance(manifold, params)), drift_tolerance(dtype) * float(tree_norm(params))
    if manifold.is_affine is False and not _is_same_point(params, manifold.origin):
        raise ValueError(
            "params are not the origin of the curved manifold, whose normal directions change from point to point: "
            "build the manifold at params"
        )
    if not off <= allowed:
        raise ValueError(
            f"params lie {off:.3g} off the manifold, more than {allowed:.3g}: build the manifold at params"
        )


def _is_same_point(params: Params, other: Params) -> bool:
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True)
    return all(bool(jnp.all(mine == its)) for mine, its in pairs)


def _at_least_single(params: Params) -> Params:
    """16-bit leaves in float32: eigensolvers have no 16-bit kernels, and that eps would leave all undecided."""

    def widen(leaf: Array) -> Array:
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if is_float else leaf

    return jax.tree.map(widen, params)


def _generic_direction(params: Params, manifold: Manifold) -> Params:
    """A unit vector with components both normal and tangent to the manifold.

    Normal to clones the outputs of the network change at second order only, so a corner of the loss as a function of
    the logits is met only along the manifold; it decides the curvature normal to it all the same.
    """
    leaving, anywhere = random_normal_vector(jax.random.key(1), manifold), random_like(params, jax.random.key(2))
    flat, unravel = ravel_pytree(leaving)
    other = ravel_pytree(anywhere)[0]
    both = flat + other / jnp.linalg.norm(other)
    return unravel(both / jnp.linalg.norm(both))


def _beside_a_kink(report: StabilityReport, jumps: Jumps) -> StabilityReport:
    """Withdraw the report, the gauge included: a loss that takes absolute values of parameters has kinks there too."""
    what = "gradient" if jumps.in_gradient else "second derivative"
    where = f"the {what} jumps within {jumps.distance:.1g} of this point, as at z = 0 of a ReLU or ELU or at a hinge"
    return at_a_kink(report._replace(structural=min(report.structural, 0)), where)


def _qualified(report: StabilityReport, gradient: Params, params: Params, manifold: Manifold) -> StabilityReport:
    """Withdraw the verdict where the curvature does not justify one, and note a gradient that leaves the manifold."""
    norm = float(tree_norm(gradient))
    # How large rounding can make a gradient that vanishes.
    rounding = report.tolerance * max(float(tree_norm(params)), 1.0)
    withdrawn = report._replace(
        verdict=Stability.UNDECIDED, n_plus=-1, n_minus=-1, n_zero=-1, n_undecided=-1, exact=False
    )
    if manifold.rank_loss:
        return withdrawn._replace(
            note=f"{manifold.rank_loss} constraints depend on the others: this is not a manifold here"
        )
    if manifold.is_affine is not True and norm > rounding:
        unsaid = "; if it is not curved, say so: Manifold(..., is_affine=True)" if manifold.is_affine is None else ""
        return withdrawn._replace(
            note=f"not a critical point (gradient {norm:.3g}): the curvature of the loss normal to a curved manifold "
            f"depends on how one leaves it, and is not zero even where the manifold's quantities are conserved{unsaid}"
        )
    residual = float(tangency_residual(manifold, gradient))
    if norm * residual > max(rounding, 1e-4 * norm) and not report.note:
        return report._replace(note=f"the gradient leaves the manifold (share {residual:.3g}): it is not invariant")
    return report
