"""What the arms did to learning: outcomes by seed, paired differences, and verdicts that know what they cannot say."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.kit.intervals import Interval, interval
from experiments.rank_causality.config import Case
from lopjax.runs import RunData

# Of the gain of a wide network drawn anew: an effect that is surely smaller than this share of it counts as none.
MARGIN = 0.25
EXACTLY_NONE, NO_EFFECT, SMALL, BETTER, WORSE, UNDECIDED, NOT_KNOWN = (
    *("exactly none", "none", "small", "better", "worse", "undecided", "diverged"),
)

Place = tuple[Case, int, str]
"""A case, the number of a task, and an arm."""


class Cell(NamedTuple):
    """An arm on one task, an entry a seed on every array.

    Attributes:
        loss: on all examples of the task, at its end.
        online: mean loss before each update.
        accuracy: on all examples, at the end.
        rank_start: effective rank on the fixed probe where the task begins; mean over sites.
        rank_late: the same, mean over the second half of the task.
        gradient: norm of the gradient on the task where it begins.
        readiness: strength times reliability of the gradient there.
        early_gradient: mean norm of the batches' gradients until the first record.
        change: largest difference of the logits to the checkpoint's.
        losses: on all examples, `(seeds, records)`.
        ranks: likewise.
        steps: steps of the records.
    """

    loss: np.ndarray
    online: np.ndarray
    accuracy: np.ndarray
    rank_start: np.ndarray
    rank_late: np.ndarray
    gradient: np.ndarray
    readiness: np.ndarray
    early_gradient: np.ndarray
    change: np.ndarray
    losses: np.ndarray
    ranks: np.ndarray
    steps: np.ndarray


def cells_of(data: RunData) -> dict[Place, Cell]:
    """Every arm of every case and task that all seeds have finished."""
    found: dict[Place, dict[int, list[Mapping[str, Any]]]] = {}
    for record in data.records:
        if record["task"] > 0:
            case = Case(record["tasks"], record["activation"], record["width"])
            found.setdefault((case, record["task"], record["method"]), {}).setdefault(record["seed"], []).append(record)
    num, seeds = data.config["records"] + 1, data.config["seeds"]
    return {
        place: _cell([rows[seed] for seed in seeds])
        for place, rows in found.items()
        if set(rows) == set(seeds) and all(len(row) == num for row in rows.values())
    }


def _cell(seeds: list[list[Mapping[str, Any]]]) -> Cell:
    def curves(name: str, first: int = 0) -> np.ndarray:
        values = [[record.get(name) for record in seed[first:]] for seed in seeds]
        return np.array([[math.nan if value is None else value for value in row] for row in values], float)

    losses, ranks = curves("task_loss"), curves("effective_rank")
    return Cell(
        loss=losses[:, -1],
        online=curves("online_loss", 1).mean(axis=1),
        accuracy=curves("task_accuracy")[:, -1],
        rank_start=ranks[:, 0],
        rank_late=ranks[:, (ranks.shape[1] + 1) // 2 :].mean(axis=1),
        gradient=curves("task_gradient_norm")[:, 0],
        readiness=curves("readiness")[:, 0],
        early_gradient=curves("gradient_norm", 1)[:, 0],
        change=curves("change")[:, 0],
        losses=losses,
        ranks=ranks,
        steps=curves("step")[0],
    )


def gain(arm: Cell, control: Cell) -> np.ndarray:
    """How much lower the arm's loss ends than the control's, one a seed."""
    return control.loss - arm.loss


def margin_of(fresh: Cell, control: Cell) -> float:
    """The largest effect that counts as none; NaN, so that nothing does, unless a fresh wide network is surely better.

    Args:
        fresh: wide networks drawn anew, the positive control.
        control: the checkpoint in a network of that width.
    """
    found = interval(gain(fresh, control))
    return MARGIN * found.mean if found.low > 0 else math.nan


def verdict(differences: np.ndarray, margin: float) -> str:
    """In words, by the 95 % interval of the mean over seeds.

    "better" and "worse": on one side of zero, and not surely within the margin. Within it: "none" if it holds zero,
    else "small" (two one-sided tests, at 2.5 % each). "exactly none": every difference is 0. Else "undecided".
    """
    if not np.isfinite(differences).all():
        return NOT_KNOWN
    if not differences.any():
        return EXACTLY_NONE
    found = interval(differences)
    is_within = -margin < found.low and found.high < margin
    if found.low <= 0 <= found.high:
        return NO_EFFECT if is_within else UNDECIDED
    if is_within:
        return SMALL
    if not math.isfinite(found.low):
        return UNDECIDED
    return BETTER if found.low > 0 else WORSE


# --- What rank and gradients say beforehand --------------------

DIAGNOSTICS = ("rank_start", "gradient", "readiness")
"""Cell by cell where a task begins: what is said to tell how well a network will learn it."""
# A diagnostic is raised, or as it was, if its ratio to the control is surely above this, or within this of 1.
RATIO = 1.05


def ratio(name: str, arm: Cell, control: Cell) -> Interval:
    """Of a diagnostic to the control's: geometric mean over seeds and its interval."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(getattr(arm, name)) - np.log(getattr(control, name))
    return Interval(*(math.exp(bound) for bound in interval(logs)))


def counter_example(name: str, arm: Cell, control: Cell, margin: float) -> str | None:
    """What two arms say against a diagnostic: "not sufficient", "not necessary", or nothing.

    Not sufficient: it is raised, and the arm has no gain (a small one is a gain). Not necessary: it is as it was, and
    the arm is better.
    """
    found, gained = ratio(name, arm, control), gain(arm, control)
    said = verdict(gained, margin)
    is_in_vain = said in (EXACTLY_NONE, NO_EFFECT, WORSE) or (said == SMALL and gained.mean() < 0)
    if found.low > RATIO and is_in_vain:
        return "not sufficient"
    if found.low > 1 / RATIO and found.high < RATIO and said == BETTER:
        return "not necessary"
    return None


def order_told(name: str, arms: list[Cell]) -> Interval:
    """How well a diagnostic orders arms by their loss at the end: Kendall's tau, a number a seed; 1 is perfect.

    Values within about a thousandth of one another are ties: clones differ by rounding.
    """
    from scipy.stats import kendalltau

    values, losses = (np.array([getattr(arm, field) for arm in arms]) for field in (name, "loss"))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.round(np.log(values), 3)
    taus: list[Any] = [kendalltau(v, -y) for v, y in zip(values.T, losses.T, strict=True)]
    return interval(np.array([tau.statistic for tau in taus]))
