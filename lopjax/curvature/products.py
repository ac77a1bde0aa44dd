"""Products with the Hessian and the generalised Gauss-Newton matrix, and their dense forms for small networks.

Everywhere in this package a loss is a pure function `params -> scalar`, the *mean* over its samples (1/N), and the
coordinates of a flat vector are those of `jax.flatten_util.ravel_pytree(params)`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from lopjax.arguments.numbers import takes_numbers
from lopjax.arguments.precision import all_digits
from lopjax.curvature.guards import DENSE_LIMIT_BYTES, check_same_tree, check_size

Params = PyTree[Float[Array, "..."]]
Matvec = Callable[[Params], Params]
Loss = Callable[[Params], Float[Array, ""]]

# Number of columns of a dense matrix computed at once: enough to use all cores, few enough for their activations to
# fit.
_COLUMNS_AT_ONCE = 32


@takes_numbers(params=None, vector=None)
def hvp(loss: Loss, params: Params, vector: Params) -> Params:
    """Hessian-vector product `H v`, `H = d²loss/dparams²`, forward over reverse.

    Costs two to three gradients and the memory of about two, whatever the number of parameters.

    Args:
        loss: `params -> scalar`, deterministic; `check_loss` tests whether it qualifies.
        params: the point, a pytree of float arrays.
        vector: the direction `v`: same tree, shapes and dtypes as `params`.

    Returns:
        `H v`, a tree like `params`.

    Raises:
        ValueError: `vector` does not match `params`.

    Example:
        >>> hvp(lambda p: p["w"] ** 3, {"w": jnp.array(2.0)}, {"w": jnp.array(1.0)})["w"].item()
        12.0

    References:
        Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6 (1994).
    """
    check_same_tree(params, vector, "vector")
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


@takes_numbers(params=None, vector=None)
def ggn_vp(
    model_fn: Callable[[Params], PyTree], loss_fn: Callable[[PyTree], Array], params: Params, vector: Params
) -> Params:
    """Generalised Gauss-Newton product `J' H_L J v`: the Hessian without the curvature of the model.

    `J` is the Jacobian of `model_fn` at `params` and `H_L` the Hessian of `loss_fn` at its outputs, so the 1/N of a
    mean over samples is the one inside `loss_fn`. Positive semi-definite when `loss_fn` is convex.

    Args:
        model_fn: `params -> outputs` for a fixed batch, an array or a pytree of arrays, such as logits.
        loss_fn: `outputs -> scalar`, the mean loss over that batch.
        params: the point.
        vector: the direction `v`: same tree, shapes and dtypes as `params`.

    Returns:
        The product, a tree like `params`.

    Raises:
        ValueError: `vector` does not match `params`.

    Example:
        >>> ggn_vp(lambda p: p**2, lambda y: 0.5 * y**2, jnp.array(3.0), jnp.array(1.0)).item()  # (2 p)²
        36.0

    References:
        Schraudolph, "Fast curvature matrix-vector products", Neural Computation 14 (2002).
    """
    check_same_tree(params, vector, "vector")
    outputs, pull_back = jax.vjp(model_fn, params)
    _, output_tangent = jax.jvp(model_fn, (params,), (vector,))
    _, output_cotangent = jax.jvp(jax.grad(loss_fn), (outputs,), (output_tangent,))
    return pull_back(output_cotangent)[0]


def restrict(matvec: Matvec, project: Callable[[Params], Params]) -> Matvec:
    """Compress an operator to a subspace: `v -> P A P v`.

    On the whole space the result also has the eigenvalue 0, once for every direction that `project` removes. To find
    the spectrum *on* the subspace, pass `project` to `extreme_eigenvalues` or `spectral_density` instead: they start
    inside the subspace and stay there.

    Args:
        matvec: the symmetric operator `A`.
        project: an orthogonal projector `P`: linear, idempotent, self-adjoint.

    Returns:
        The operator `P A P`.
    """
    return lambda vector: project(matvec(project(vector)))


@takes_numbers(params=None)
@all_digits()
def dense_hessian(
    loss: Loss, params: Params, max_bytes: int = DENSE_LIMIT_BYTES
) -> Float[Array, "parameters parameters"]:
    """The Hessian of a small network as a matrix.

    Row and column `i` belong to entry `i` of `jax.flatten_util.ravel_pytree(params)[0]`. Symmetric up to rounding; it
    is not symmetrised, so that errors stay visible.

    Args:
        loss: `params -> scalar`.
        params: the point, P parameters in all.
        max_bytes: refuse a matrix larger than this.

    Returns:
        The (P, P) matrix, in the dtype of the ravelled parameters.

    Raises:
        ValueError: the matrix would exceed `max_bytes`; the message gives its size and the methods to use instead.

    Example:
        >>> dense_hessian(lambda p: p["a"] * p["b"], {"a": jnp.array(1.0), "b": jnp.array(2.0)}).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    flat, unravel = ravel_pytree(params)
    check_size(
        "dense Hessian",
        (flat.size, flat.size),
        flat.dtype,
        max_bytes,
        "use extreme_eigenvalues, spectral_density or block_eigenvalues, which only need products",
    )
    # Linearised once: the primal pass and its activations are shared by all columns.
    _, column = jax.linearize(jax.grad(lambda flat: loss(unravel(flat))), flat)
    identity = jnp.eye(flat.size, dtype=flat.dtype)
    return jax.lax.map(column, identity, batch_size=min(_COLUMNS_AT_ONCE, flat.size)).T


@takes_numbers(params=None, samples=None)
def per_sample_gradients(
    sample_loss: Callable[[Params, PyTree], Array],
    params: Params,
    samples: PyTree,
    max_bytes: int = DENSE_LIMIT_BYTES,
) -> Params:
    """Gradients of each sample's own loss, not divided by the number of samples.

    Their mean over the first axis is the gradient of the mean loss whenever samples do not interact (so not under
    batch normalisation in training mode).

    Args:
        sample_loss: `(params, sample) -> scalar` for one sample, without a batch axis.
        params: the point.
        samples: a pytree of arrays whose first axis indexes the N samples.
        max_bytes: refuse a result larger than this.

    Returns:
        A tree like `params` with a first axis of length N on every array.

    Raises:
        ValueError: the result would exceed `max_bytes`.
    """
    num_samples = jax.tree.leaves(samples)[0].shape[0]
    flat = jax.eval_shape(lambda tree: ravel_pytree(tree)[0], params)
    check_size(
        "per-sample gradients",
        (num_samples, flat.size),
        flat.dtype,
        max_bytes,
        "pass fewer samples at a time, or average with mean_over_batches",
    )
    return jax.vmap(jax.grad(sample_loss), in_axes=(None, 0))(params, samples)


@takes_numbers(params=None)
def constraint_jacobian(
    constraint: Callable[[Params], PyTree], params: Params, max_bytes: int = DENSE_LIMIT_BYTES
) -> Float[Array, "constraints parameters"]:
    """Dense Jacobian `J[a, i] = d constraint_a / d param_i` of a few constraints.

    Rows follow `ravel_pytree` of the constraint's value, columns `ravel_pytree(params)`. One reverse pass per row.

    Args:
        constraint: `params -> values`, an array or a pytree of arrays with c numbers in all.
        params: the point, P parameters in all.
        max_bytes: refuse a matrix larger than this.

    Returns:
        The (c, P) matrix.

    Raises:
        ValueError: the matrix would exceed `max_bytes`.

    Example:
        >>> constraint_jacobian(lambda p: p @ p, jnp.array([1.0, -2.0])).tolist()
        [[2.0, -4.0]]
    """
    flat, unravel = ravel_pytree(params)
    values, pull_back = jax.vjp(lambda flat: ravel_pytree(constraint(unravel(flat)))[0], flat)
    check_size(
        "constraint Jacobian",
        (values.size, flat.size),
        flat.dtype,
        max_bytes,
        "pass fewer constraints at a time, or use jax.vjp and jax.jvp of the constraint",
    )
    if values.size == 0:
        return jnp.zeros((0, flat.size), flat.dtype)
    identity = jnp.eye(values.size, dtype=values.dtype)
    return jax.lax.map(lambda row: pull_back(row)[0], identity, batch_size=min(_COLUMNS_AT_ONCE, values.size))
