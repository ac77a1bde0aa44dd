"""How much of an effect goes through a mediator, the same seeds in all arms: a linear model, and what it assumes."""

import math
from typing import NamedTuple

import numpy as np

DRAWS = 2000
ASSUMPTIONS = (
    "Mediation is a linear model within seeds, and rests on what no run can show. The arms are set and the mediator is "
    "not: so nothing else may move both it and the loss, the loss must answer linearly and alike in all arms, and the "
    "mediator must act on the loss and not the loss on it. Intervals: percentiles of a bootstrap over seeds. Of two "
    "arms alone they are wide, as the slope is extrapolated: the mediator varies less over seeds than between the arms."
)


class Mediation(NamedTuple):
    """Effects of one arm against its control on an outcome; each `(estimate, low, high)`, 95 %.

    Attributes:
        total: mean difference of the outcome.
        indirect: the part that goes through the mediator; NaN where the mediator's differences do not vary by
            themselves, so that their slope cannot be known.
        direct: the rest, `total - indirect`.
    """

    total: tuple[float, float, float]
    indirect: tuple[float, float, float]
    direct: tuple[float, float, float]


def mediate(
    mediator: np.ndarray, mediator_of_control: np.ndarray, outcome: np.ndarray, outcome_of_control: np.ndarray
) -> Mediation:
    r"""Total, indirect and direct effect within seeds.

    With differences dM, dY to the control and S the centred sum of both mediators, least squares of
    :math:`dY = c + b\,dM + d\,S` gives direct :math:`c`, indirect :math:`b\,\overline{dM}`, and their sum is the mean
    of dY exactly. S lets the slope in the two arms differ.

    Args:
        mediator: mediator of the arm, one value per seed.
        mediator_of_control: mediator of its control, for the same seeds.
        outcome: outcome of the arm.
        outcome_of_control: outcome of its control.

    References:
        Judd, Kenny & McClelland, *Psychological Methods* 6 (2001); Montoya & Hayes, *Psychological Methods* 22 (2017).
    """
    rows = np.random.default_rng(0).integers(len(outcome), size=(DRAWS, len(outcome)))
    every = np.concatenate([np.arange(len(outcome))[None], rows])
    change, total = mediator - mediator_of_control, outcome - outcome_of_control
    sums = mediator + mediator_of_control
    indirect = _indirect(change[every], sums[every], total[every])
    totals = total[every].mean(axis=1)
    if not _is_identified(change, sums):
        indirect = np.full_like(totals, np.nan)
    return Mediation(*(_summary(values) for values in (totals, indirect, totals - indirect)))


def mediate_pooled(is_treated: np.ndarray, mediator: np.ndarray, outcome: np.ndarray) -> Mediation:
    r"""The same over many arms at once: those that are treated against those that are not.

    Least squares of :math:`y_{aj} = u_j + c\, t_a + b\, m_{aj}` over arms a and seeds j, u a constant for every seed:
    direct :math:`c`, total :math:`c` without the mediator in the model, indirect their difference. Here the slope comes
    from arms that differ in the mediator, and not from what seeds happen to have.

    Args:
        is_treated: one an arm; at least one of each kind.
        mediator: `(arms, seeds)`.
        outcome: `(arms, seeds)`.
    """
    num = mediator.shape[1]
    t, m, y = (
        values - values.mean(axis=0) for values in (np.repeat(1.0 * is_treated[:, None], num, 1), mediator, outcome)
    )
    rows = np.concatenate([np.arange(num)[None], np.random.default_rng(0).integers(num, size=(DRAWS, num))])
    tt, tm, mm, ty, my = ((a * b).sum(axis=0)[rows].sum(axis=1) for a, b in ((t, t), (t, m), (m, m), (t, y), (m, y)))
    rest = mm - tm**2 / tt  # what of the mediator neither the seed nor the treatment explains
    is_identified = (rest > 1e-9 * np.maximum(mm, np.finfo(float).tiny)).all()
    slope = (my - tm * ty / tt) / np.where(rest > 0, rest, 1)
    totals, indirect = ty / tt, slope * tm / tt if is_identified else np.full(len(rows), np.nan)
    return Mediation(*(_summary(values) for values in (totals, indirect, totals - indirect)))


def _indirect(change: np.ndarray, sums: np.ndarray, total: np.ndarray) -> np.ndarray:
    """`b mean(dM)` of many samples, `(draws, seeds)` each: normal equations of what is left without the means."""
    x = np.stack([change, sums], axis=-1)
    x = x - x.mean(axis=1, keepdims=True)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(float).tiny)
    spread = np.linalg.norm(change - change.mean(axis=1, keepdims=True), axis=1)
    y = total - total.mean(axis=1, keepdims=True)
    gram, right = np.einsum("nij,nik->njk", x, x), np.einsum("nij,ni->nj", x, y)
    slope = (np.linalg.pinv(gram, hermitian=True) @ right[..., None])[:, 0, 0]
    return slope / np.maximum(spread, np.finfo(float).tiny) * change.mean(axis=1)


def _is_identified(change: np.ndarray, sums: np.ndarray) -> bool:
    """Whether the mediator's differences vary, and not only as its sums do."""
    both = np.stack([change, sums]) - np.mean([change, sums], axis=1, keepdims=True)
    scale = np.abs([change, sums]).max()
    if not np.isfinite(scale) or np.linalg.norm(both[0]) <= 1e-6 * scale:
        return False
    values = np.linalg.svd(both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-300), compute_uv=False)
    return bool(len(change) > 3 and values[-1] > 1e-3 and np.linalg.norm(both[1]) > 0)


def _summary(values: np.ndarray) -> tuple[float, float, float]:
    if not np.isfinite(values).all():
        return math.nan, math.nan, math.nan
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return float(values[0]), float(low), float(high)
