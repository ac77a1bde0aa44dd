"""Curved manifolds: level sets of constraints, and the conserved quantities of positive-homogeneous units."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from lopjax import linalg
from lopjax.activations import ACTIVATIONS, activation
from lopjax.arguments.numbers import takes_numbers
from lopjax.curvature import constraint_jacobian
from lopjax.curvature.guards import DENSE_LIMIT_BYTES
from lopjax.manifolds.manifold import Manifold, ManifoldKind, Params
from lopjax.wiring import Wiring, sum_per_unit

Constraint = Callable[[Params], Float[Array, "constraints"]]


@takes_numbers(params=None)
def level_set_manifold(
    params: Params, constraint: Constraint, tolerance: float | None = None, max_bytes: int = DENSE_LIMIT_BYTES
) -> Manifold:
    """The level set `{theta : c(theta) = c(params)}` at `params`, through the Jacobian J of the constraints.

    The normal space is spanned by the gradients of the constraints: `P_N = J' (J J')^+ J`, computed from the right
    singular vectors of J with rows scaled to unit length, so that constraints of different magnitude are treated alike
    and dependent ones are dropped. Where J loses rank the level set need not be a manifold: `rank_loss` is the number
    of lost ranks.

    Args:
        params: the point.
        constraint: `params -> (c,)`.
        tolerance: a singular value at most this times the largest counts as zero, and so does a row this much shorter
            than the longest; default `eps` times the larger side of J.
        max_bytes: refuse a Jacobian (constraints times parameters) larger than this.

    Raises:
        ValueError: the Jacobian would exceed `max_bytes`, or is not finite.

    References:
        Conserved quantities: arXiv 1806.00900; they are non-linear examples in the sense of arXiv 2510.00304.
    """
    types = {jnp.result_type(leaf) for leaf in jax.tree.leaves(params) if jnp.size(leaf)}
    if not types or any(jnp.finfo(each).bits < 32 for each in types if jnp.issubdtype(each, jnp.floating)):
        raise ValueError(f"params hold {sorted(map(str, types))}: must be float32 or float64, at least one number")
    jacobian = constraint_jacobian(constraint, params, max_bytes)
    count, size = jacobian.shape
    limit = float(jnp.finfo(jacobian.dtype).eps) * max(count, size) if tolerance is None else tolerance
    is_traced = isinstance(jacobian, Tracer)
    if not is_traced and not bool(jnp.isfinite(jacobian).all()):
        raise ValueError("the Jacobian of the constraint is not finite at these parameters: it must be")
    basis, is_independent = _row_space(jacobian, limit)
    rank = None if is_traced else int(is_independent.sum())

    def project(vector: Params) -> Params:
        flat, unravel = ravel_pytree(vector)
        if flat.size != size:
            raise ValueError(
                f"the vector has {flat.size} entries, the parameters {size}: a level set projects all parameters at "
                "once (under optax.masked or multi_transform, put keep_on_manifold outside)"
            )
        return unravel(flat - (basis @ flat) @ basis)

    return Manifold(
        origin=params,
        project=project,
        tangent_dimension=None if rank is None else size - rank,
        space=ManifoldKind.LEVEL_SET.value,
        rank_loss=None if rank is None else count - rank,
        kind=ManifoldKind.LEVEL_SET,
        is_affine=False,
    )


def _row_space(jacobian: Float[Array, "c p"], limit: float) -> tuple[Float[Array, "r p"], Array]:
    """Orthonormal rows spanning the row space (padded with zero rows), and which rows are not padding."""
    if jacobian.shape[0] == 0:
        return jacobian, jnp.zeros(0, bool)
    largest_entry = jnp.max(jnp.abs(jacobian), axis=1, keepdims=True)
    scaled = jacobian / jnp.where(largest_entry > 0, largest_entry, 1)
    lengths = jnp.linalg.norm(scaled, axis=1, keepdims=True)
    is_long = largest_entry > limit * jnp.max(largest_entry)
    rows = jnp.where(is_long, scaled / jnp.where(lengths > 0, lengths, 1), 0)
    _, singular, basis = linalg.svd(rows)
    is_independent = singular > limit * singular[0]
    return jnp.where(is_independent[:, None], basis, 0), is_independent


def homogeneous_conserved(wiring: Wiring, spaces: Sequence[str] | None = None) -> Constraint:
    """Quantities conserved by gradient flow at positive-homogeneous units, one per unit.

    `c_j = ||w_j||² + b_j² - ||a_j||²`, incoming weights and bias against outgoing weights: scaling the first by s and
    the second by 1/s changes no output, hence `<theta_in, g_in> = <theta_out, g_out>` for every gradient g. The
    constraint is a quadratic form of the parameters alone, so it also gives its own drift: see `conserved_drift`.
    Operations before the kernel do not matter (a norm, pooling); those between the activation and the kernels that read
    it must be positive-homogeneous, as pooling and flattening are. A layer norm without parameters would go unnoticed.

    Args:
        wiring: wiring of the network.
        spaces: unit spaces to include; by default all for which the law holds.

    Returns:
        `params -> (units,)`, units in the order of `spaces`.

    Raises:
        ValueError: a space whose activation is not homogeneous, with several sites, or behind a norm, each of which
            breaks the law; or no space at all.

    References:
        Du, Hu, Lee, arXiv 1806.00900, theorem 2.1.
    """
    wanted = [space for space in wiring.cloneable if not _obstacle(wiring, space)] if spaces is None else list(spaces)
    for space in wanted:
        if reason := _obstacle(wiring, space):
            raise ValueError(f"unit space {space!r} has no conserved quantity: {reason}")
    if not wanted:
        reasons = {space: _obstacle(wiring, space) for space in wiring.cloned_by_default}
        raise ValueError(f"no unit space has a conserved quantity: {reasons}")

    def quantities(params: Params) -> Float[Array, "constraints"]:
        labels = wiring.labels_of(params)
        dtype = jnp.result_type(*jax.tree.leaves(params))
        totals = {space: jnp.zeros(wiring.size(space), dtype) for space in wanted}
        for label, leaf in zip(labels, jax.tree.leaves(params), strict=True):
            for axis, space, is_read in label.unit_axes(totals):
                squares = sum_per_unit(jnp.square(leaf), axis)
                totals[space] = totals[space] + (-squares if is_read else squares)
        return jnp.concatenate([totals[space] for space in wanted])

    return quantities


@takes_numbers(gradient=None)
def conserved_drift(
    quantities: Constraint, gradient: Params, learning_rate: jax.typing.ArrayLike
) -> Float[Array, "constraints"]:
    """Change of the quantities of `homogeneous_conserved` in one step of gradient descent: `eta² (|g_in|² - |g_out|²)`.

    Exact, not only to first order: the quantity is a quadratic form whose cross term with the gradient vanishes.

    Args:
        quantities: from `homogeneous_conserved`.
        gradient: gradient of the loss, a tree like the parameters.
        learning_rate: eta.
    """
    return jnp.square(learning_rate) * quantities(gradient)


def _obstacle(wiring: Wiring, space: str) -> str:
    """Why the units of a space have no conserved quantity; empty if they have one."""
    sites = wiring.sites_of(space)
    if space in wiring.fixed:
        return "it belongs to the inputs or outputs"
    if len(sites) != 1:
        return f"it is written at {len(sites)} sites {list(sites)}"
    entry = activation(wiring.site(sites[0]).activation)
    if entry.is_homogeneous is None:
        return (
            f"activation {entry.name!r} does not say whether it is positive-homogeneous: pass "
            "Activation(name, function, is_homogeneous=True) if it is"
        )
    if not entry.is_homogeneous:
        known = [name for name, other in ACTIVATIONS.items() if other.is_homogeneous]
        return f"activation {entry.name!r} is not positive-homogeneous (those are {known})"
    return what_stands_between(wiring, space)


def what_stands_between(wiring: Wiring, space: str) -> str:
    """Why the pre-activations of a space are not linear in its incoming parameters; empty if they are.

    Args:
        wiring: wiring of the network.
        space: a unit space with one site.
    """
    (site,) = wiring.sites_of(space)
    incoming = [(path, label) for path, label in wiring.labels if space in label.writes()]
    is_apart = any(path[0] != "params" or label.site != site for path, label in incoming)
    kernels = [path for path, label in incoming if label.reads()]
    # A norm is recognised by statistics or a scale or, if it couples units, by kernels without a site.
    if is_apart or not kernels or any(label.scales for _, label in incoming):
        return "something stands between its kernel and its activation (a norm, a sum)"
    unsaid = ["/".join(path) for path, label in incoming if label.scales is None]
    if unsaid and len(incoming) > 1:
        return f"{unsaid} are not labelled as added or multiplied: pass labelled(..., scales=False) if they are added"
    return ""
