"""Which way does the loss curve off a manifold? Any manifold, any loss: by dense eigenvalues or by Lanczos."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key

from lopjax.curvature import check_loss, check_same_tree, check_size, dense_hessian, extreme_eigenvalues, hvp
from lopjax.curvature.guards import DENSE_LIMIT_BYTES
from lopjax.curvature.products import Loss, Params
from lopjax.manifolds import (
    CloneNormals,
    Manifold,
    ManifoldKind,
    Subspace,
    distance,
    normal_basis,
    num_parameters,
    random_normal_vector,
    tangency_residual,
    tree_norm,
)
from lopjax.stability.kinks import Jumps, find_jumps
from lopjax.stability.verdicts import (
    SignCounts,
    Stability,
    StabilityReport,
    count_signs,
    counted_report,
    precision_note,
    witnessed_report,
)
from lopjax.tolerance import ROUNDINGS, default_zero_level, drift_tolerance, relative_tolerance, rounding_tolerance

METHODS = ("dense", "lanczos")


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
    """Sign of the curvature `v'Hv` of the loss over the directions v normal to a manifold.

    An eigenvalue of the normal Hessian has a sign from ten times the tolerance `64 eps sqrt(N) S` on, with N parameters
    and S the largest |eigenvalue| of H on the whole space, at least `|L| / max(1, |theta|²)`. A smaller one is
    undecided, unless with its error it stays below `zero_level S` (sqrt(eps) S): then it counts as zero at that level.
    float32 decides few zeros. At points of V
    the gauge directions of cloned units are zero by algebra: they are left out of the computation and added as
    `structural` zeros. That needs a loss of the network's outputs alone; it is checked, and a loss with weight decay
    counts them by their numbers. Parameters of 16 bits are taken as they are and computed with in float32.

    Args:
        loss: `params -> scalar`, a mean over samples; deterministic.
        params: the point, N parameters.
        manifold: a manifold through that point. Off a critical point there is a verdict only if it is said to be
            affine (`Manifold.is_affine`; cloned and frozen manifolds are).
        method: "dense" counts every eigenvalue, at the price of matrices N x N. "lanczos" takes `2 num_steps`
            Hessian-vector products and knows some directions only: it can prove a saddle, and counts nothing.
        num_steps: Lanczos steps, for the whole space and for the normal space.
        key: random key of its start vectors, `jax.random.key(0)` by default.
        max_bytes: refuse dense matrices larger than this.

    Returns:
        The report. `UNDECIDED` for level sets off critical points (there `v'Hv` depends on how one leaves) and where
        they lose rank, with the reason in `note`. Where the gradient leaves the manifold, a note says so: it is not
        invariant then, whatever its curvature. Where the gradient or the second derivative jumps, as those of a ReLU
        or ELU network do at a pre-activation of 0, nothing is called flat and no count exact.

    Raises:
        ValueError: a manifold of other parameters, not through the point, or without normal directions; an unknown
            method; a loss of which no Hessian should be taken (`check_loss`) or whose Hessian is not finite or not
            symmetric; a dense matrix that is too large.

    Example:
        >>> from lopjax.manifolds import Manifold
        >>> line = Manifold(jnp.zeros(3), lambda vector: vector * jnp.array([1.0, 0.0, 0.0]))
        >>> report = classify(lambda p: p[1] ** 2 - p[2] ** 2 + p[0] ** 4, jnp.zeros(3), line)
        >>> report.verdict.name, report.n_plus, report.n_minus, report.n_zero
        ('SADDLE', 1, 1, 0)

    References:
        arXiv 2510.00304, definition 4; the tolerance and the structural zeros are this library's own.
    """
    _check_request(params, manifold, method, num_steps, max_bytes)
    params, manifold = _at_least_single(params), manifold._replace(origin=_at_least_single(manifold.origin))
    check_loss(loss, params)
    normal = _normal_space(params, manifold)
    if method == "dense":
        report = _by_eigenvalues(loss, params, manifold, normal, max_bytes)
    else:
        report = _by_lanczos(loss, params, manifold, normal, num_steps, key)
    jumps = find_jumps(loss, params, random_normal_vector(jax.random.key(1), normal.deflated), report.scale)
    report = _qualified(report, jumps.gradient, params, manifold)
    return _beside_a_kink(report, jumps) if jumps.in_gradient or jumps.in_curvature else report


class _NormalSpace(NamedTuple):
    """A manifold with its tangent space, the same one with the gauge added, and the gauge where it is normal on V."""

    whole: Manifold
    deflated: Manifold
    gauge: Subspace | None

    def choose(self, is_flat: bool) -> tuple[Manifold, int]:
        """The manifold whose normal space is left to look at, and how many structural zeros that leaves out."""
        return (self.deflated, self.gauge.dimension) if self.gauge is not None and is_flat else (self.whole, 0)


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
        raise ValueError("the manifold fills the parameter space: it has no normal directions to classify")
    # Parameters that have been trained on the manifold may have drifted by rounding.
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


def _normal_space(params: Params, manifold: Manifold) -> _NormalSpace:
    # Along the gauge (redistributions among clones that change no activation) the Hessian on V is zero by algebra, so
    # these directions are counted, not computed: in floating point their eigenvalues would be rounding, of either sign.
    # Off V the argument does not hold, and they stay in the normal space like any others.
    normals = manifold.normals
    if (
        normals is None
        or manifold.kind is not ManifoldKind.LEAF
        or not normals.gauge.dimension
        or not _is_on_family(params, normals)
    ):
        return _NormalSpace(manifold, manifold, None)

    def project(vector: Params) -> Params:
        return jax.tree.map(jnp.add, manifold.project(vector), normals.gauge.project(vector))

    known = manifold.tangent_dimension
    deflated = manifold._replace(
        project=project, tangent_dimension=None if known is None else known + normals.gauge.dimension
    )
    return _NormalSpace(manifold, deflated, normals.gauge)


def _is_on_family(params: Params, normals: CloneNormals) -> bool:
    """Whether RE and CE hold: no array has an incoming or outgoing part beyond rounding."""
    incoming, outgoing = normals.incoming.project(params), normals.outgoing.project(params)
    off = jax.tree.map(lambda one, other: float(jnp.linalg.norm(jnp.ravel(one + other))), incoming, outgoing)
    triples = zip(jax.tree.leaves(off), jax.tree.leaves(params), strict=True)
    return all(part <= relative_tolerance(leaf.dtype) * float(jnp.linalg.norm(leaf.ravel())) for part, leaf in triples)


def _by_eigenvalues(
    loss: Loss, params: Params, manifold: Manifold, normal: _NormalSpace, max_bytes: int
) -> StabilityReport:
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
        raise ValueError("the manifold fills the parameter space: it has no normal directions to classify")
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

    Derivatives of a saturated function are differences, such as 1 - tanh², and vanish or stop being symmetric at eps of
    what cancels in them. A Hessian made of nothing else is small against the loss itself.
    """
    return float(jnp.abs(value)) / max(1.0, float(tree_norm(params)) ** 2)


def _cancellation(value: Array, params: Params, epsilon: float) -> float:
    """What cancelling terms may leave in a Hessian: `64 eps max(1, |L|) max(1, |theta|²)`.

    Once a cross-entropy is fitted to the last bit, the loss is 0 and probabilities less labels are the rounding of 1;
    times features and weights they make up the whole Hessian, which then is symmetric by luck only.
    """
    return ROUNDINGS * epsilon * max(1.0, float(jnp.abs(value))) * max(1.0, float(tree_norm(params)) ** 2)


def _symmetric(
    hessian: np.ndarray, epsilon: float, floor: float, cancellation: float
) -> tuple[np.ndarray, float, float]:
    """Symmetric part, its largest |eigenvalue| (at least the floor), and a bound on how far it is from the truth.

    The bound is the length of what it leaves out; where that is too much for a derivative but no more than cancellation
    explains, it is the cancellation, and smaller eigenvalues have no sign.
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
            f"the Hessian of the loss is not symmetric ({defect:.3g} against {scale:.3g}): a stop_gradient or custom "
            "derivative makes its gradient the gradient of nothing, remove it"
        )
    return symmetric, scale, cancellation


def _is_flat_along(hessian: Array, params: Params, gauge: Subspace | None, tolerance: float) -> bool:
    """Whether the Hessian vanishes along the gauge, as it does unless the loss reads the parameters themselves."""
    if gauge is None:
        return False
    _, unravel = ravel_pytree(params)
    along = jax.vmap(lambda row: ravel_pytree(gauge.project(unravel(row)))[0])(hessian)
    return bool(jnp.linalg.norm(along) <= tolerance)


def _by_lanczos(
    loss: Loss,
    params: Params,
    manifold: Manifold,
    normal: _NormalSpace,
    num_steps: int,
    key: Key[Array, ""] | None,
) -> StabilityReport:
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
        inside = normal.gauge.project(_noise(keys[1], params))
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


def _at_least_single(params: Params) -> Params:
    """Leaves of 16 bits in float32: eigen-solvers have no such kernels, and their eps decides nothing."""

    def widen(leaf: Array) -> Array:
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if is_float else leaf

    return jax.tree.map(widen, params)


def _beside_a_kink(report: StabilityReport, jumps: Jumps) -> StabilityReport:
    """Curvature on one side may be seen; what was called zero is undecided, and a verdict of flatness withdrawn."""
    guessed = max(report.n_zero - max(report.structural, 0), 0) if report.n_zero >= 0 else 0
    what, consequence = "gradient", "the loss may fall linearly along directions that they call flat"
    if not jumps.in_gradient:
        what, consequence = "second derivative", "those of the other side may have other signs"
    note = (
        f"the {what} jumps within {jumps.distance:.1g} of this point (a kink, as of a ReLU or ELU at 0): the "
        f"eigenvalues are those of one side, and {consequence}"
    )
    is_saddle = report.verdict is Stability.SADDLE
    return report._replace(
        verdict=report.verdict if is_saddle else Stability.UNDECIDED,
        n_zero=report.n_zero - guessed,
        n_undecided=report.n_undecided + guessed,
        exact=False,
        note="; ".join(filter(None, (report.note, note))),
        radius=0.0,
    )


def _noise(key: Key[Array, ""], params: Params) -> Params:
    flat, unravel = ravel_pytree(params)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


def _qualified(report: StabilityReport, gradient: Params, params: Params, manifold: Manifold) -> StabilityReport:
    """Withdraw the verdict where curvature does not give one, and note a gradient that leaves the manifold."""
    norm = float(tree_norm(gradient))
    # What rounding can leave of a gradient that vanishes.
    rounding = report.tolerance * max(float(tree_norm(params)), 1.0)
    withdrawn = report._replace(
        verdict=Stability.UNDECIDED, n_plus=-1, n_minus=-1, n_zero=-1, n_undecided=-1, exact=False
    )
    if manifold.rank_loss:
        return withdrawn._replace(note=f"{manifold.rank_loss} constraints depend on the others: not a manifold here")
    if manifold.is_affine is not True and norm > rounding:
        unsaid = "; if it is not curved, say so: Manifold(..., is_affine=True)" if manifold.is_affine is None else ""
        return withdrawn._replace(
            note=f"not a critical point (gradient {norm:.3g}): the curvature of the loss off a curved manifold depends "
            f"on how one leaves it, and is not zero even where the manifold's quantities are conserved{unsaid}"
        )
    residual = float(tangency_residual(manifold, gradient))
    if norm * residual > max(rounding, 1e-4 * norm) and not report.note:
        return report._replace(note=f"the gradient leaves the manifold (share {residual:.3g}): it is not invariant")
    return report
