"""Activations and backward signals of one batch, and the same with every rounding error changed by 64 eps.

The rounding error of a product need not be small relative to the product: a logit may be the difference of large
numbers, and the derivative of a saturated unit, 1 - tanh², is wrong by eps and comes out exactly 0 where it is 1e-17.
Rounding in a dot product has the same effect as changing its weights by a few eps (backward stability), so a network
whose parameters, activations, derivatives and residuals are *perturbed* by random relative errors of 64 eps shows how
accurate each factor is, whatever the wiring.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from lopjax.activations import Activation, activation
from lopjax.losses import Batch
from lopjax.model import Model, Params, Tap, Taps, Variables
from lopjax.tolerance import CERTAIN_FROM, rounding_unit
from lopjax.wiring import Wiring

LossOfLogits = Callable[[Array, Array], Array]

# Functions and derivatives are accurate to a few eps: this fraction of 64 eps.
_EVALUATION = 1 / 16
_NOISE_LENGTH = 8191
THE_LOSS = "the loss itself, by some logit"
"""Names its corners among the places at kinks."""

# A derivative of the loss that changes by this fraction of its terms within rounding counts as jumping.
_LOSS_JUMP = 1e-3
_GRID = np.concatenate([np.linspace(-45.3, 45.1, 453), np.linspace(-1.03, 1.01, 103)])
_BESIDE_A_KINK = np.outer([-1.0, 1.0], np.geomspace(1e-4, 1e4, 33)).ravel()


class Signals(NamedTuple):
    """Results of one forward and one backward pass.

    Attributes:
        taps: pre- and post-activations of every site.
        gradients: the derivatives of the loss with respect to them.
        output: the derivative of the loss with respect to the logits.
        logits: what the network returns.
    """

    taps: Taps
    gradients: Taps
    output: Array
    logits: Array


class RoundingDraw(NamedTuple):
    """One draw of rounding errors.

    Attributes:
        noise: standard normal numbers, `(8191,)`, tiled over whatever is perturbed; drawing them where they are needed
            would take most of the compilation time.
        unit: their size, `±64 eps` of the dtype of the computation.
    """

    noise: Array
    unit: Array


def draw_roundings(dtype: DTypeLike, num_draws: int) -> RoundingDraw:
    """Draws stacked along a first axis, each with both signs, as one sign alone may stay on the same side of a kink."""
    noise = np.random.default_rng(0).standard_normal((num_draws, _NOISE_LENGTH))
    signs = np.tile([1.0, -1.0], num_draws)
    return RoundingDraw(jnp.asarray(np.repeat(noise, 2, axis=0)), jnp.asarray(rounding_unit(dtype) * signs))


@partial(jax.jit, static_argnames="model")
def _taps(model: Model, variables: Variables, inputs: Array) -> Taps:
    return model.apply(variables, inputs, dropout_rate=0.0).taps


def tap_shapes(model: Model, variables: Variables, inputs: Array) -> Taps:
    """Shapes and types of the sites' activations; traced once per model, not once per call."""
    return _taps.eval_shape(model, variables, inputs)


def exact_signals(model: Model, variables: Variables, batch: Batch, loss: LossOfLogits) -> Signals:
    """Signals of a batch as computed.

    Args:
        model: the network.
        variables: its variables.
        batch: inputs and labels.
        loss: `(logits, labels) -> scalar`.
    """
    return signals_and_gradient(model, variables, batch, loss)[0]


def signals_and_gradient(
    model: Model, variables: Variables, batch: Batch, loss: LossOfLogits
) -> tuple[Signals, Signals, Params]:
    """Signals of a batch, those for other labels, and the gradient with respect to the parameters.

    For "other labels", dL/d(logits) is replaced by numbers as large as the terms that cancel in it, with random signs:
    the residuals of a fitted network are differences of large numbers.
    """
    shifts = _zero_shifts(model, variables, batch[0])

    def shifted(shifts, params):
        logits, _, taps = model.apply({**variables, "params": params}, batch[0], perturbations=shifts, dropout_rate=0.0)
        return logits, taps

    logits, pull_back, taps = jax.vjp(shifted, shifts, variables["params"], has_aux=True)
    output = jax.grad(loss)(logits, batch[1])
    terms = _residual_terms(loss, logits, batch[1])
    other = terms * jnp.where(jnp.arange(terms.size).reshape(terms.shape) % 3 == 0, -1, 1).astype(terms.dtype)
    both, gradients = jax.vmap(pull_back)(jnp.stack([output, other]))
    first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1))
    gradient = jax.tree.map(lambda leaf: leaf[0], gradients)
    return Signals(taps, first, output, logits), Signals(taps, second, other, logits), gradient


def perturbed_signals(
    model: Model, variables: Variables, batch: Batch, loss: LossOfLogits, exact: Signals, move: RoundingDraw
) -> Signals:
    """Signals of a network in which every rounding error is drawn anew.

    The parameters (hence every sum), the activations and derivatives of functions that are not piecewise linear, and
    the residuals are perturbed; a derivative by an absolute amount, at its own site and inside the signals that pass
    through it, so that errors hidden by saturation in several layers count with their products.

    Args:
        model: the network.
        variables: its variables.
        batch: inputs and labels.
        loss: `(logits, labels) -> scalar`.
        exact: signals of the same batch as computed.
        move: the draw.
    """
    inexact = tuple(site for site in exact.taps if not is_straight(exact.taps[site].activation))
    variables = {**variables, "params": _moved_tree(move.noise, variables["params"], move.unit)}
    shifts = dict(_zero_shifts(model, variables, batch[0]))
    for index, site in enumerate(inexact):
        tap, shift = exact.taps[site], shifts[site]
        size = _EVALUATION * (jnp.abs(tap.post) + jnp.abs(tap.pre))
        moved = move.unit.astype(size.dtype) * size * _noise(move.noise, 100 + index, size)
        shifts[site] = Tap(shift.space, shift.pre, moved, shift.activation)

    def shifted(shifts):
        logits, _, taps = model.apply(variables, batch[0], perturbations=shifts, dropout_rate=0.0)
        return (logits, {site: taps[site].pre for site in inexact}), taps

    (logits, pres), pull_back, taps = jax.vjp(shifted, shifts, has_aux=True)
    terms = _EVALUATION * _residual_terms(loss, logits, batch[1])
    output = jax.grad(loss)(logits, batch[1])
    output = output + move.unit.astype(terms.dtype) * terms * _noise(move.noise, 99, terms)

    def injected(_, carry):
        """Errors `df' e` of every signal, e with those of the sites above; each call goes one site down."""
        gradients = pull_back((output, carry[0]))[0]
        errors = {
            site: derivative_error(pres[site], move, 200 + index) * gradients[site].post
            for index, site in enumerate(inexact)
        }
        return errors, gradients

    start = jax.tree.map(jnp.zeros_like, pres), jax.tree.map(jnp.zeros_like, shifts)
    _, gradients = jax.lax.fori_loop(0, len(inexact) + 1, injected, start)
    return Signals(taps, gradients, output, logits)


def derivative_error(z: Array, move: RoundingDraw, salt: int) -> Array:
    """A draw of the absolute error of f' and f'': a few eps of terms of size 1 + |z|, as in `s + z s (1 - s)`."""
    return _EVALUATION * move.unit.astype(z.dtype) * (1 + jnp.abs(z)) * _noise(move.noise, salt, z)


def places_at_kinks(
    model: Model,
    variables: Variables,
    batch: Batch,
    loss: LossOfLogits,
    *,
    size: int,
    train: bool,
    dtype: DTypeLike,
) -> tuple[str, ...]:
    """Sites with a pre-activation within rounding of a kink, and "the loss" where its derivative jumps.

    Args:
        model: the network.
        variables: its variables.
        batch: inputs and labels.
        loss: `(logits, labels) -> scalar`.
        size: samples per pass.
        train: whether batch norm uses the statistics of the batch.
        dtype: the coarsest dtype of the computation.
    """
    move = jax.tree.map(lambda leaf: leaf[0], draw_roundings(dtype, 1))
    places: set[str] = set()
    for start in range(0, len(batch[0]), size):
        part = tuple(jnp.asarray(each[start : start + size]) for each in batch)
        is_near = _near_kinks(model, loss, train, variables, part, move)
        places |= {place for place, near in is_near.items() if bool(near)}
    return tuple(place for place in (*(name for name, _ in model.wiring.sites), THE_LOSS) if place in places)


@partial(jax.jit, static_argnames=("model", "loss", "train"))
def _near_kinks(model, loss, train, variables, batch, move):
    """Whether some pre-activation at each site, or the loss, is as near to a kink as rounding moves it.

    Args:
        model: the model.
        loss: `(logits, labels) -> scalar`.
        train: whether the model runs in train mode.
        variables: its variables.
        batch: inputs and labels.
        move: one draw of rounding errors of the parameters.

    Returns:
        By site with kinks, and for `THE_LOSS`, a truth value.
    """
    moved = _moved_tree(move.noise, variables["params"], CERTAIN_FROM * move.unit)
    here = model.apply(variables, batch[0], train=train, dropout_rate=0.0)
    there = model.apply({**variables, "params": moved}, batch[0], train=train, dropout_rate=0.0).taps
    near = {THE_LOSS: is_at_loss_kink(loss, here.logits, batch[1], move)}
    for site, tap in here.taps.items():
        for kink in kinks_of(tap.activation):
            reach = jnp.abs(there[site].pre - tap.pre)
            near[site] = near.get(site, False) | jnp.any(jnp.abs(tap.pre - kink) <= reach)
    return near


def is_at_loss_kink(loss: LossOfLogits, logits: Array, labels: Array, move: RoundingDraw) -> Array:
    """Whether the derivative of the loss by a logit jumps within rounding: a hinge at its corner, |x| at 0, a tie.

    Over a step of ten rounding errors a smooth derivative changes in proportion, half as much over half the step; a
    jump is just as large over half the step.

    Args:
        loss: `(logits, labels) -> scalar`.
        logits: as computed.
        labels: the labels of the samples.
        move: a draw of rounding errors; logits that are all 0 are taken to have size 1.
    """
    size = jnp.max(jnp.abs(logits), axis=-1, keepdims=True)
    noise = _noise(move.noise, 98, logits)
    step = CERTAIN_FROM * jnp.abs(move.unit).astype(logits.dtype) * jnp.where(size > 0, size, 1) * noise
    gradient = jax.grad(loss)

    def change(share: float) -> Array:
        return jnp.abs(gradient(logits + share * step, labels) - gradient(logits - share * step, labels))

    whole, half = change(1.0), change(0.5)
    terms = jnp.max(_residual_terms(loss, logits, labels), axis=-1, keepdims=True)
    return jnp.any((half > 0.75 * whole) & (half > _LOSS_JUMP * terms))


def kinks_of(given: str | Activation) -> tuple[float, ...]:
    """Where an activation, or one of its derivatives, is known to jump."""
    return tuple(activation(given).kinks or ())


def has_unknown_kinks(given: str | Activation) -> bool:
    """Whether an activation's kinks are unknown."""
    return activation(given).kinks is None


@lru_cache
def is_straight(given: str | Activation) -> bool:
    """Whether an activation is piecewise linear: its derivative is exact and its curvature identically 0.

    Judged by f'', which must be exactly 0 at 556 points of [-45, 45] and at 33 on each side of every listed kink: a
    function may be curved only outside that interval, beyond a cap at 60 for instance.
    """
    points = np.concatenate([_GRID, np.add.outer(kinks_of(given), _BESIDE_A_KINK).ravel()])
    with jax.ensure_compile_time_eval():
        return not bool(jnp.any(derivatives(activation(given), jnp.asarray(points))[1]))


def derivatives(function: Callable, z: Array) -> tuple[Array, Array]:
    """First and second derivative of an elementwise function."""
    one = jnp.ones_like(z)

    def slope(z: Array) -> Array:
        return jax.jvp(function, (z,), (one,))[1]

    return jax.jvp(slope, (z,), (one,))


def downstream_sites(wiring: Wiring, space: str) -> tuple[str, ...]:
    """Sites that a change of the space's units can reach, apart from the space's own, in the order of the wiring."""
    if wiring.above:
        own = wiring.sites_of(space)
        return tuple(name for name, above in wiring.above if name not in own and set(own) & set(above))
    labels, reached, front = dict(wiring.labels), set(), [space]
    while front:
        for path, _ in wiring.outgoing(front.pop()):
            for written in labels[path].writes():
                if written not in reached and written != space:
                    reached.add(written)
                    front.append(written)
    return tuple(name for name, site in wiring.sites if site.space in reached)


def _zero_shifts(model: Model, variables: Variables, inputs: Array) -> Taps:
    taps = jax.eval_shape(lambda v, x: model.apply(v, x, dropout_rate=0.0), variables, inputs).taps
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), taps)


def _moved_tree(noise: Array | np.ndarray, params: Params, unit: Array | float) -> Params:
    """Every parameter times `1 + unit N(0, 1)`."""
    leaves, structure = jax.tree.flatten(params)
    moved = [
        leaf * (1 + jnp.asarray(unit, leaf.dtype) * _noise(noise, index, leaf)) for index, leaf in enumerate(leaves)
    ]
    return structure.unflatten(moved)


def _residual_terms(loss: LossOfLogits, logits: Array, labels: Array) -> Array:
    """Size of the terms that dL/d(logits) is the difference of: probabilities and indicators, outputs and targets."""
    gradient = jax.grad(loss)
    return jnp.abs(gradient(logits, labels)) + jnp.abs(gradient(jnp.zeros_like(logits), labels))


def _noise(noise: Array | np.ndarray, salt: int, like: Array) -> Array:
    """The numbers from an offset set by the salt on, tiled to a shape; a prime period does not align with any axis."""
    return jnp.resize(jnp.roll(jnp.asarray(noise, like.dtype), -397 * salt), like.shape)
