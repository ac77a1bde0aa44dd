"""Noise that frees clones: how much it takes, by the linear theory of stability, and the kick itself."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from lopjax.detection.clones import activation_rows, multiples_by_activations, nearest_units
from lopjax.interventions.checks import Spaces, check_every, check_state, is_due, spaces_of
from lopjax.interventions.reasons import reason_of
from lopjax.interventions.slices import no_units
from lopjax.model import Variables
from lopjax.optim.checks import check
from lopjax.signals import Observed
from lopjax.stability.blocks import UnitBlocks
from lopjax.stability.escape_under_noise import DecayingNoise, escape_probability
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState
from lopjax.wiring import unit_masks

_BISECTIONS = 60
# Squares of such numbers are doubles still.
_LARGEST_LOG = 300.0


def critical_noise(
    blocks: UnitBlocks, radius: float, num_steps: int, learning_rate: float, probability: float = 0.5
) -> dict[str, float]:
    """Noise that it takes, space by space, for clones to be a distance apart some steps later.

    One Gaussian kick of deviation sigma on every normal coordinate, then gradient descent: the components grow by
    `1 - eta lambda_k` per step, so the distance is beyond R with probability
    `P(sum_k sigma² (1 - eta lambda_k)^(2T) chi²_(m_k) >= R²)` (`lopjax.stability.escape_probability`), which rises with
    sigma. Where no eigenvalue is negative the kick must do it alone. Linear theory at a critical point of the base. For
    blocks found by products, which know only some of the eigenvalues, this noise suffices, and less may do.

    Args:
        blocks: spectra of the units, of `unit_blocks` or `unit_blocks_of_clones`.
        radius: R, in units of parameters.
        num_steps: T, steps after the kick.
        learning_rate: eta.
        probability: the probability with which that distance is wanted, in (0, 1).

    Returns:
        Sigma of every space with clones, in units of parameters.

    Raises:
        ValueError: a number out of range.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability={probability}: must be between 0 and 1, both excluded")
    if num_steps < 1 or not 0 < radius < np.inf or not 0 < learning_rate < np.inf:
        raise ValueError(
            f"radius={radius}, num_steps={num_steps}, learning_rate={learning_rate}: must be positive and finite"
        )
    scales = {}
    for space, one in blocks.spaces.items():
        values, times = one.eigenvalues, np.broadcast_to(one.multiplicity[:, None], one.eigenvalues.shape)
        is_there = np.isfinite(values) & (times > 0)
        scales[space] = _scale(values[is_there], times[is_there], radius, num_steps, learning_rate, probability)
    return scales


def _scale(
    values: np.ndarray, times: np.ndarray, radius: float, num_steps: int, learning_rate: float, probability: float
) -> float:
    """Halve the logarithm of sigma; at decay 0 the first step alone is noisy.

    The mode that grows most bounds the answer from both sides: alone it must reach R at the latest, and R is not
    reached before it would be if every mode grew as much.
    """
    from scipy.stats import chi2

    if not values.size:  # nothing is known to grow: the kick itself must be long
        values, times = np.zeros(1), np.ones(1)
    growth = np.maximum(np.abs(1 - learning_rate * values), np.finfo(float).tiny)
    largest = np.log(growth).max() * num_steps
    counts = np.array([1.0, times.sum()])
    high, low = np.log(radius) - largest - 0.5 * np.log(chi2.isf(probability, counts))
    # A little beyond, for rounding; never beyond the doubles.
    low, high = max(low - 0.1, -_LARGEST_LOG), min(high + 0.1, _LARGEST_LOG)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        noise = DecayingNoise(learning_rate, float(np.exp(middle)), decay=0.0)
        reached = escape_probability(values, times, radius, num_steps + 1, noise) >= probability
        low, high = (low, middle) if reached else (middle, high)
    return float(np.exp(high))


def kick_clones(
    scale: ArrayLike | Mapping[str, ArrayLike] = 0.01,
    tolerance: ArrayLike = 0.01,
    every: ArrayLike = 1000,
    spaces: Spaces = None,
) -> Intervention:
    """Gaussian noise on the incoming parameters of units that are near a clone, and on no others.

    Args:
        scale: standard deviation in units of parameters, for each space (`critical_noise`) or for all; a space that is
            left out, or of scale 0, is not kicked.
        tolerance: relative distance of activations up to which a unit is near a clone.
        every: steps between two kicks.
        spaces: unit spaces; None for all that can be reset.

    Returns:
        The intervention; it has no state of its own and keeps the optimizer's memory.

    Raises:
        ValueError: a number out of range; on `init`, an unknown or fixed space, a state of another optimizer.
    """
    scales = scale if isinstance(scale, Mapping) else None
    for name, value in {"scale": scale}.items() if scales is None else scales.items():
        check(name if scales is None else f"scale[{name!r}]", value, minimum=0.0)
    check("tolerance", tolerance, minimum=0.0)
    check_every(every)

    def init(setting: Setting, state: TrainState) -> tuple[()]:
        spaces_of(setting.model.wiring, (*(spaces or setting.model.wiring.cloned_by_default), *(scales or ())))
        check_state(setting, state)
        return ()

    def apply(
        setting: Setting, own: tuple[()], state: TrainState, observed: Observed, key: jax.Array, step: Any
    ) -> tuple[TrainState, tuple[()], Report]:
        wiring = setting.model.wiring
        chosen = [space for space in spaces_of(wiring, spaces) if scales is None or space in scales]

        def act(variables: Variables) -> tuple[Variables, dict[str, jax.Array]]:
            taps = setting.model.apply(variables, observed.batch[0], dropout_rate=0.0).taps
            units, params = no_units(setting, spaces_of(wiring, spaces)), variables["params"]
            for number, space in enumerate(chosen):
                rows = activation_rows([taps[site] for site in wiring.sites_of(space)])
                sigma = scale if scales is None else scales[space]
                near = nearest_units(rows, multiples_by_activations(wiring, space)).distance <= tolerance
                # A kick of size 0 changes no unit, and must not be reported as if it did.
                units[space] = near & (jnp.asarray(sigma) > 0)
                params = _kicked(setting, params, {space: near}, sigma, jax.random.fold_in(key, number))
            return {**variables, "params": params}, units

        due = is_due(step, every)
        nothing = no_units(setting, spaces_of(wiring, spaces))
        variables, units = jax.lax.cond(due, act, lambda v: (v, nothing), dict(state.variables))
        return state._replace(variables=variables), own, Report(units, reason_of(due, units))

    return Intervention(init, apply)


def _kicked(setting: Setting, params: Any, units: dict[str, jax.Array], sigma: Any, key: jax.Array) -> Any:
    """Parameters with noise on the incoming slices of some units."""
    masks, (leaves, structure) = unit_masks(setting.model.wiring, params, units).incoming, jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + jnp.where(mask, jnp.asarray(sigma, leaf.dtype) * jax.random.normal(one, leaf.shape, leaf.dtype), 0)
        for leaf, mask, one in zip(leaves, jax.tree.leaves(masks), keys, strict=True)
    ]
    return structure.unflatten(noisy)
