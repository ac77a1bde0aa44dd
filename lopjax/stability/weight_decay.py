"""Weight decay and clones: the decay beyond which clones attract, where training with decay converges."""

from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Key

from lopjax.activations import activation
from lopjax.arguments.numbers import check_numbers
from lopjax.arguments.precision import all_digits
from lopjax.cloning import Factor
from lopjax.losses import Batch, check_batch, mean_cross_entropy
from lopjax.model import Model, Variables
from lopjax.stability.blocks import UnitBlocks, unit_blocks
from lopjax.stability.blocks.matrices import LossOfLogits
from lopjax.stability.stationary_points import DecayedLoss, decayed_loss, stationary_point
from lopjax.tolerance import CERTAIN_FROM

# The distance to the stationary point, relative to the norm of the parameters, up to which it counts as reached.
_REACHED = 1e-6
_EPS = float(np.finfo(np.float64).eps)
# Relative size of the perturbation between two points of a path.
_SHAKE = 1e-3

DECAYS = tuple(float(value) for value in np.geomspace(1e-3, 1.0, 13))
"""The decays that `weight_decay_threshold` tries by default."""


class Attraction(Enum):
    """Whether clones merge under weight decay; the value is the sentence shown to the user."""

    ATTRACTS = "attracts: near the stationary point of the decayed loss, clones that differ slightly become equal again"
    REPELS = "repels: at the stationary point of the decayed loss, some difference between clones grows"
    UNDECIDED = "undecided: no stationary point was reached, or the rate is too close to zero to have a sign"


class DecayedClones(NamedTuple):
    """Result of `decayed_clones`.

    Attributes:
        verdict: the class.
        reason: why it is undecided; empty otherwise.
        weight_decay: weight decay lambda of the clones.
        variables: variables of the *base* network at the stationary point theta(lambda).
        rate: `lambda + min_j lambda_min(M_j(theta(lambda)))`, in units of the loss per squared parameter: the slowest
            normal direction shrinks by `1 - eta rate` per step; below 0 the fastest grows.
        uncertainty: estimated uncertainty of the rate, from rounding of the blocks and the distance to the stationary
            point.
        gradient_norm: gradient norm of the decayed loss of the cloned network: sqrt(sum n_in/n_out |g|²) over the
            base's arrays.
        distance: estimate of the distance to the stationary point, `|H^-1 g|`, in the parameters of the clones.
        base_curvature: smallest eigenvalue of the decayed Hessian along the manifold; if negative, training does not
            stay at the point.
    """

    verdict: Attraction
    reason: str
    weight_decay: float
    variables: Variables
    rate: float
    uncertainty: float
    gradient_norm: float
    distance: float
    base_curvature: float


class DecayThreshold(NamedTuple):
    """Result of `weight_decay_threshold`.

    Attributes:
        threshold: from here up to the largest decay tried, clones attract: the middle of the last crossing, accurate to
            its width. Infinite if they repel at the largest decay; 0 if they attract at every decay tried; NaN if an
            undecided point lies in between.
        crossings: `(low, high)` around every change between repelling and attracting as the decay grows, ascending.
            There may be several, because the rate is not monotone in the decay.
        upward: the points of the path with growing decay, each found from the previous one.
        downward: the same going back from the largest decay, in the order of `upward`; empty if not requested.
        branches_agree: whether both directions have the same verdicts. If not, there are several branches of stationary
            points, and the decay at which clones begin to attract depends on where training starts.
        note: further remarks; may be empty.
    """

    threshold: float
    crossings: tuple[tuple[float, float], ...]
    upward: tuple[DecayedClones, ...]
    downward: tuple[DecayedClones, ...]
    branches_agree: bool
    note: str


def critical_weight_decay(smallest: UnitBlocks | ArrayLike | Sequence[float]) -> float:
    """`max(0, -min_j lambda_min(M_j))`: the decay that outweighs the blocks *at the point where they were taken*.

    Decay adds `lambda/2 ||theta||²` to the loss and lambda to every eigenvalue, but training with decay moves the base,
    and with it the blocks: this is the decay beyond which clones attract only if the point is the stationary point of
    the loss *with that decay*. From blocks without decay it was 3 to 1,600 times too small; `weight_decay_threshold`
    solves for the point and the decay together.

    Args:
        smallest: result of `unit_blocks`, or the smallest eigenvalues of the blocks. From "batched hvp" or Lanczos,
            which bound the smallest eigenvalue from above, the result is a lower bound.

    Returns:
        The decay, in units of the loss per squared parameter; NaN if an eigenvalue is NaN.

    Raises:
        ValueError: no eigenvalues.

    Example:
        >>> critical_weight_decay([-0.25, 0.5])
        0.25
    """
    if not isinstance(smallest, UnitBlocks):
        check_numbers("smallest", smallest)
    values = np.asarray(smallest.total.min_eigenvalue if isinstance(smallest, UnitBlocks) else smallest, np.float64)
    if not values.size:
        raise ValueError("no eigenvalues were given: pass the result of unit_blocks, or at least one number")
    return float(np.maximum(-values.min(), 0.0))


@all_digits()
def decayed_clones(
    model: Model,
    variables: Variables,
    batch: Batch,
    factor: Factor,
    weight_decay: float,
    *,
    loss: LossOfLogits = mean_cross_entropy,
) -> DecayedClones:
    """Whether clones attract under weight decay, at the stationary point theta(lambda) near given variables.

    On the normal space of clones the Hessian of `L + lambda/2 |theta|²` consists of `M_j + lambda` and of lambda along
    the gauge, so at a stationary point clones attract iff `lambda + min_j lambda_min(M_j) > 0`. In the base's
    coordinates decay lambda of the clones is decay `lambda n_out / n_in` of each array (`lambda n_out` of a bias),
    since `|W|² = (n_out / n_in) |w|²`. The stationary point minimises the base's loss with that decay, by L-BFGS, a
    trust region and Newton steps; of several stationary points, it is the one that this search reaches from the given
    variables.

    Valid for gradient flow and small steps: at `eta lambda_max > 2` clones separate by overshooting.

    Args:
        model: the *base* network.
        variables: its variables, where the search starts; float64.
        batch: inputs and labels, all the data.
        factor: number of clones of every unit, or `{space: number}`.
        weight_decay: lambda of the clones, at least 0.
        loss: `(logits, labels) -> scalar`, a mean over samples.

    Returns:
        The point, the rate and the verdict. UNDECIDED if the point was not reached or is not a minimum of the base, if
        the rate is below its uncertainty, or if the blocks come from Lanczos and show no negative eigenvalue.

    Raises:
        ValueError: parameters that are not float64; a negative decay; see also `unit_blocks`.
    """
    return _judge(_search(model, variables, batch, factor, loss), variables, weight_decay)


@all_digits()
def weight_decay_threshold(
    model: Model,
    variables: Variables,
    batch: Batch,
    factor: Factor,
    *,
    loss: LossOfLogits = mean_cross_entropy,
    decays: Sequence[float] | np.ndarray = DECAYS,
    relative_width: float = 1e-3,
    both_ways: bool = True,
) -> DecayThreshold:
    """The weight decay beyond which clones attract, found together with the point to which that decay leads.

    Follows the stationary point theta(lambda) through growing decays (`decayed_clones`, each from the one before), and
    bisects every step over which the verdict changes. The rate is not monotone in lambda: a little decay can make
    clones leave *faster*, because it leaves residuals, and clones that attract may repel again at a larger decay, when
    the base has reached a different number of distinct units. Changes between two neighbouring `decays` with the same
    verdict go unnoticed.

    Positive-homogeneous units (ReLU) have `M_j v = -lambda v` at theta(lambda), v the unit's own weights, so that decay
    never attracts them strictly; once they have vanished they are at their kink, and the verdict is UNDECIDED.

    Args:
        model: the *base* network.
        variables: its variables, where the path starts; float64.
        batch: inputs and labels, all the data.
        factor: number of clones of every unit, or `{space: number}`.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        decays: the decays to try, ascending and positive.
        relative_width: width of the bracket around a change, relative to its upper end. If its middle has no verdict it
            stays wider, and the note says so.
        both_ways: also follow the path back, to find other branches.

    Returns:
        The threshold, all changes of the verdict and all points.

    Raises:
        ValueError: parameters that are not float64; decays that are not positive and ascending; see also `unit_blocks`.
    """
    values = np.asarray(decays, np.float64)
    is_ascending = values.ndim == 1 and values.size and values[0] > 0 and (np.diff(values) > 0).all()
    if not (is_ascending and np.isfinite(values).all()):
        raise ValueError(f"decays={decays}: must be finite, positive and ascending")

    search = _search(model, variables, batch, factor, loss)
    upward = _follow(search, values, variables)
    downward = _follow(search, values[::-1], upward[-1].variables)[::-1] if both_ways else ()
    agree = all(up.verdict is down.verdict for up, down in zip(upward, downward))
    notes = [] if agree else ["several branches: going back from the largest decay, clones attract at other decays"]
    # An unknown fact counts as true: the note is a warning and decides nothing.
    if any(activation(site.activation).is_homogeneous is not False for _, site in model.wiring.sites):
        notes.append(
            "positive-homogeneous units are never strictly attracted; where no verdict is given, they may have vanished"
        )
    brackets = [
        _crossing(search, low, high, relative_width)
        for low, high in pairwise(upward)
        if {low.verdict, high.verdict} == {Attraction.REPELS, Attraction.ATTRACTS}
    ]
    crossings = tuple(crossing for crossing, _ in brackets)
    notes += [reason for _, reason in brackets if reason]
    return DecayThreshold(_threshold(upward, crossings), crossings, upward, downward, agree, "; ".join(notes))


class _Search(NamedTuple):
    """A base network with its data, and its decayed loss."""

    model: Model
    batch: Batch
    factor: Factor
    loss: LossOfLogits
    decayed: DecayedLoss


def _search(model: Model, variables: Variables, batch: Batch, factor: Factor, loss: LossOfLogits) -> _Search:
    dtype = jnp.result_type(*jax.tree.leaves(variables["params"]))
    if dtype != jnp.float64:
        raise ValueError(
            f"parameters are {dtype}: the sign of a small difference needs float64. Call inside "
            "jax.enable_x64(True), with jax.tree.map(lambda leaf: leaf.astype(float), variables)"
        )
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(variables["params"])):
        raise ValueError("the parameters are not finite: no stationary point can be found from them, give others")
    check_batch(model, variables, batch, loss=loss)
    return _Search(model, batch, factor, loss, decayed_loss(model, variables, batch, factor, loss))


def _judge(search: _Search, start: Variables, weight_decay: float) -> DecayedClones:
    """Find the stationary point near `start` and the rate of the clones there."""
    if not 0 <= weight_decay < np.inf:
        raise ValueError(f"weight_decay={weight_decay}: must be at least 0, and finite")
    point = stationary_point(search.decayed, start, weight_decay)
    total = unit_blocks(search.model, point.variables, search.batch, search.factor, loss=search.loss).total
    rate = weight_decay + total.min_eigenvalue
    spread = max(abs(total.min_eigenvalue), abs(total.max_eigenvalue))
    uncertainty = CERTAIN_FROM * (total.tolerance + spread * point.distance / point.length) + total.residual
    reason = ""
    if not point.distance <= _REACHED * point.length:
        reason = f"not stationary: about {point.distance:.2g} away, gradient {point.gradient_norm:.2g}"
    elif point.curvature < -_REACHED * max(spread, weight_decay):
        reason = f"the base is at a saddle: curvature {point.curvature:.2g} along the manifold"
    elif abs(rate) <= uncertainty:
        reason = f"the rate {rate:.2g} is below its uncertainty {uncertainty:.2g}"
    elif rate > 0 and total.n_plus < 0:
        # Lanczos bounds the smallest eigenvalue from above: it can prove that clones repel, never that they attract.
        reason = "the blocks come from Lanczos, which cannot exclude a smaller eigenvalue"
    elif rate > 0 and total.radius <= CERTAIN_FROM * max(point.distance, _EPS * point.length):
        # A ReLU unit that has vanished sits at z = 0, where one-sided derivatives miss the coupling on the other side.
        # Up to rounding: what is left of its weights puts it on either side by chance.
        reason = "some pre-activation is at a kink, where one-sided eigenvalues do not bound the rate"
    return DecayedClones(
        verdict=Attraction.UNDECIDED if reason else Attraction.ATTRACTS if rate > 0 else Attraction.REPELS,
        reason=reason,
        weight_decay=weight_decay,
        variables=point.variables,
        rate=float(rate),
        uncertainty=float(uncertainty),
        gradient_norm=point.gradient_norm,
        distance=point.distance,
        base_curvature=point.curvature,
    )


def _follow(search: _Search, decays: np.ndarray, start: Variables) -> tuple[DecayedClones, ...]:
    """One point after the other, each started slightly off the last, so that merged units can separate again."""
    points, key = [], jax.random.key(0)
    for decay in decays:
        points.append(_judge(search, start, float(decay)))
        start = _shaken(points[-1].variables, key)
    return tuple(points)


def _shaken(variables: Variables, key: Key[Array, ""]) -> Variables:
    flat, unravel = ravel_pytree(variables["params"])
    draw = jax.random.normal(key, flat.shape, flat.dtype) * jnp.linalg.norm(flat) / len(flat) ** 0.5
    return {**variables, "params": unravel(flat + _SHAKE * draw)}


def _crossing(
    search: _Search, low: DecayedClones, high: DecayedClones, relative_width: float
) -> tuple[tuple[float, float], str]:
    """Bisect between two points of opposite verdicts; also why the bracket stayed wider than requested, if it did."""
    key = jax.random.key(0)
    while high.weight_decay * (1 - relative_width) > low.weight_decay:
        middle = 0.5 * (low.weight_decay + high.weight_decay)
        # Start slightly off the last point: a search that starts exactly on a minimum that has become a saddle would
        # stay there.
        point = _judge(search, _shaken(low.variables, key), middle)
        if point.verdict is Attraction.UNDECIDED:
            between = f"between {low.weight_decay:.4g} and {high.weight_decay:.4g}"
            return (low.weight_decay, high.weight_decay), f"no verdict {between}: {point.reason}"
        low, high = (point, high) if point.verdict is low.verdict else (low, point)
    return (low.weight_decay, high.weight_decay), ""


def _threshold(path: Sequence[DecayedClones], crossings: Sequence[tuple[float, float]]) -> float:
    """Where the last interval of attraction begins."""
    others = [point for point in path if point.verdict is not Attraction.ATTRACTS]
    if not others:
        return 0.0
    if others[-1] is path[-1]:
        return np.inf if others[-1].verdict is Attraction.REPELS else np.nan
    return sum(crossings[-1]) / 2 if others[-1].verdict is Attraction.REPELS else np.nan
