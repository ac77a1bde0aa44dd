"""Where training with weight decay ends: the stationary point of the decayed loss of the base network."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from lopjax.cloning import Factor
from lopjax.cloning.quotient import multiplicities
from lopjax.curvature import extreme_eigenvalues
from lopjax.losses import Batch, of_parameters
from lopjax.model import Model, Params, Variables
from lopjax.stability.blocks.matrices import LossOfLogits

# Up to this many parameters, Newton's equations are solved and the curvature of the base is found with a dense Hessian.
_DENSE_PARAMETERS = 1_000
# Where units of the base merge, Newton's method converges by a factor of only 2/3 per step.
_NEWTON_STEPS = 60
_LBFGS = {"gtol": 1e-10, "ftol": 1e-16, "maxiter": 20_000, "maxfun": 50_000}


class DecayedLoss(NamedTuple):
    """`L + decay/2 |y|²` of the base in the clones' coordinates `y = sqrt(n_out / n_in) w`, an isometry onto BC.

    Attributes:
        value_and_grad: `(y, decay) -> (value, gradient)`; this and the next two fields are compiled.
        product: `(y, v, decay) -> H v`.
        hessian: `(y, decay) -> H`.
        scale: `sqrt(n_out / n_in)` of every entry of the flat parameters.
        unravel: from flat parameters to a tree.
    """

    value_and_grad: Callable
    product: Callable
    hessian: Callable
    scale: np.ndarray
    unravel: Callable[[Array], Params]


class StationaryPoint(NamedTuple):
    """The point at which a search ended.

    Attributes:
        variables: variables of the base.
        gradient_norm: norm of the gradient of the decayed loss with respect to y.
        distance: `|H^-1 g|`, an estimate of the remaining distance to the stationary point.
        curvature: smallest eigenvalue of H.
        length: norm of y.
    """

    variables: Variables
    gradient_norm: float
    distance: float
    curvature: float
    length: float


def decayed_loss(model: Model, variables: Variables, batch: Batch, factor: Factor, loss: LossOfLogits) -> DecayedLoss:
    """The decayed loss of a base network; the decay is an argument, so every program is compiled once.

    Args:
        model: the base network.
        variables: variables of the base; only shapes and types are used.
        batch: inputs and labels, all the data.
        factor: number of clones of every unit, or `{space: number}`.
        loss: `(logits, labels) -> scalar`, a mean over samples.
    """
    n_in, n_out = multiplicities(variables["params"], model.wiring, factor)
    ratios = jax.tree.map(
        lambda leaf, i, o: jnp.full(leaf.shape, (o / i) ** 0.5, leaf.dtype), variables["params"], n_in, n_out
    )
    scale, unravel = ravel_pytree(ratios)[0], ravel_pytree(variables["params"])[1]
    loss_of = of_parameters(model, variables, batch, loss=loss)

    def decayed(y: Array, decay: Array) -> Array:
        return loss_of(unravel(y / scale)) + 0.5 * decay * jnp.vdot(y, y)

    gradient = jax.grad(decayed)
    return DecayedLoss(
        value_and_grad=jax.jit(jax.value_and_grad(decayed)),
        product=jax.jit(lambda y, v, decay: jax.jvp(lambda y: gradient(y, decay), (y,), (v,))[1]),
        hessian=jax.jit(jax.hessian(decayed)),
        scale=np.asarray(scale),
        unravel=unravel,
    )


def stationary_point(decayed: DecayedLoss, start: Variables, decay: float) -> StationaryPoint:
    """The minimum found by a search from given variables: L-BFGS, a trust region, then Newton steps.

    Args:
        decayed: the loss.
        start: variables of the base.
        decay: weight decay of the clones.
    """
    from scipy.optimize import minimize

    def value_and_grad(y: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = decayed.value_and_grad(y, decay)
        return float(value), np.asarray(slope)

    y = np.asarray(ravel_pytree(start["params"])[0]) * decayed.scale
    y = minimize(value_and_grad, y, jac=True, method="L-BFGS-B", options=_LBFGS).x
    # L-BFGS may stop at a saddle of the base, which a trust-region method leaves.
    y = minimize(
        value_and_grad,
        y,
        jac=True,
        hessp=lambda y, v: np.asarray(decayed.product(y, v, decay)),
        method="trust-krylov",
        options={"gtol": 1e-7, "maxiter": 200},
    ).x
    y, slope, newton = _polish(decayed, y, decay)
    return StationaryPoint(
        variables={**start, "params": decayed.unravel(jnp.asarray(y / decayed.scale))},
        gradient_norm=float(np.linalg.norm(slope)),
        distance=float(np.linalg.norm(newton)),
        curvature=_smallest_curvature(decayed, y, decay),
        length=max(float(np.linalg.norm(y)), 1e-300),
    )


def _polish(decayed: DecayedLoss, y: np.ndarray, decay: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Newton steps while they reduce the gradient; the final point, its gradient and the next Newton step."""
    slope = np.asarray(decayed.value_and_grad(y, decay)[1])
    step = _newton_step(decayed, y, slope, decay)
    for _ in range(_NEWTON_STEPS):
        new = np.asarray(decayed.value_and_grad(y - step, decay)[1])
        if not np.linalg.norm(new) < np.linalg.norm(slope):
            break
        y, slope = y - step, new
        step = _newton_step(decayed, y, slope, decay)
    return y, slope, step


def _newton_step(decayed: DecayedLoss, y: np.ndarray, slope: np.ndarray, decay: float) -> np.ndarray:
    if len(y) <= _DENSE_PARAMETERS:
        return np.linalg.lstsq(np.asarray(decayed.hessian(y, decay)), slope, rcond=1e-12)[0]
    return np.asarray(
        jax.scipy.sparse.linalg.cg(lambda v: decayed.product(y, v, decay), jnp.asarray(slope), maxiter=300)[0]
    )


def _smallest_curvature(decayed: DecayedLoss, y: np.ndarray, decay: float) -> float:
    if len(y) <= _DENSE_PARAMETERS:
        return float(np.linalg.eigvalsh(np.asarray(decayed.hessian(y, decay)))[0])
    pairs = extreme_eigenvalues(lambda v: decayed.product(y, v, decay), jnp.asarray(y), 64, jax.random.key(0))
    return float(pairs.eigenvalues[0])
