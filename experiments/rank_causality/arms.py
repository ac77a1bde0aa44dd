"""The arms: what is made of a checkpoint before the next tasks, a row each. Nothing here imports JAX before it is used.

An arm is a function `(model, variables, key) -> (model', variables')` that keeps the checkpoint's outputs, and how the
network trains from there. Each has a *control*: the arm that differs from it in one thing.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from experiments.kit.experiment import late

# How an update is confined: not at all; to directions in which clones move together; all but what reads added units.
FREE, ON_LEAF, MUTE = range(3)
# What is added to the gradient: nothing; the gradient of a penalty on low rank; a random direction, or the parameters
# themselves, as long as that; or the gradient is made as long as it would be with the penalty.
NONE, RANK, RANDOM, DECAY, RESCALED = range(5)


class Arm(NamedTuple):
    """One arm.

    Attributes:
        label: in tables and figures.
        act: `(model, variables, key) -> (model', variables')`, pure; None for a network drawn anew for every task.
        control: name of the arm that it is compared with.
        is_wide: whether the network has twice the units.
        keeps_function: whether its outputs are the checkpoint's; the run refuses an arm that breaks its word.
        confinement: FREE, ON_LEAF or MUTE.
        regulariser: NONE, RANK, RANDOM, DECAY or RESCALED.
        as_loud_as: an arm: the gradient is multiplied by the number that makes its norm at the start that arm's.
        is_free: whether gradients can move the added units on their own: without, they or the network are in a trap.
        on_host: whether `act` works on NumPy arrays and cannot be traced.
    """

    label: str
    act: Callable[..., Any] | None
    control: str
    is_wide: bool = True
    keeps_function: bool = True
    confinement: int = FREE
    regulariser: int = NONE
    as_loud_as: str | None = None
    is_free: bool = False
    on_host: bool = False


@cache  # the same function for the same name: arms that begin alike share a compiled program
def _act(name: str) -> Callable[..., Any]:
    return late(f"experiments.rank_causality.acts:{name}")


ARMS: dict[str, Arm] = {
    "untouched": Arm("untouched", _act("untouched"), "untouched", is_wide=False),
    "merged": Arm("clones made and merged", _act("merged"), "untouched", is_wide=False, on_host=True),
    "dead": Arm("dead units added", _act("dead_units_added"), "untouched"),
    "mute": Arm("new units, never listened to", _act("units_woken"), "dead", confinement=MUTE),
    "split": Arm("clones split", _act("clones_split"), "dead", is_free=True),
    "woken": Arm("dead units added and woken", _act("units_woken"), "dead", is_free=True),
    "cloned": Arm("cloned", _act("cloned"), "dead"),
    "gauge": Arm("cloned, gauge kick", _act("gauge_kick"), "cloned", confinement=ON_LEAF),
    "woken_on_leaf": Arm("woken, moving as clones do", _act("units_woken"), "cloned", confinement=ON_LEAF),
    "louder": Arm("cloned, gradient as long as woken's", _act("cloned"), "cloned", as_loud_as="woken"),
    "cloned_rank": Arm("cloned, rank regulariser", _act("cloned"), "cloned", regulariser=RANK),
    "rounding": Arm("cloned, gauge kick, rounding left in", _act("gauge_kick"), "cloned", is_free=True),
    "kick_small": Arm("cloned, free kick of 0.01", _act("small_kick"), "cloned", is_free=True),
    "kick": Arm("cloned, free kick of 1", _act("large_kick"), "cloned", is_free=True),
    "rank": Arm("rank regulariser", _act("untouched"), "untouched", is_wide=False, regulariser=RANK),
    "random": Arm("random direction, same length", _act("untouched"), "untouched", is_wide=False, regulariser=RANDOM),
    "decay": Arm("decay, same length", _act("untouched"), "untouched", is_wide=False, regulariser=DECAY),
    "rescaled": Arm("gradient of the same length", _act("untouched"), "untouched", is_wide=False, regulariser=RESCALED),
    "fresh": Arm("drawn anew, same size", None, "untouched", is_wide=False, keeps_function=False),
    "fresh_wide": Arm("drawn anew, twice the width", None, "dead", keeps_function=False),
}
"""By name; the control of an arm comes before it."""

FRESH = {False: "fresh", True: "fresh_wide"}
"""The arm of networks drawn anew, of the checkpoint's size and of twice the width."""


class Contrast(NamedTuple):
    """A question that two arms answer.

    Attributes:
        question: what differs between them.
        arm: the one.
        control: the other.
    """

    question: str
    arm: str
    control: str


CONTRASTS = (
    Contrast("rank raised at the start, in a trap", "woken_on_leaf", "cloned"),
    Contrast("rank raised at the start, not used", "mute", "dead"),
    Contrast("free to move, rank as it was", "split", "dead"),
    Contrast("free to move by a kick of 0.01, rank as it was", "kick_small", "cloned"),
    Contrast("rank raised at the start, and free to move", "woken", "dead"),
    Contrast("rank raised at the start, both free to move", "woken", "split"),
    Contrast("width doubled in traps", "cloned", "dead"),
    Contrast("gradient as long as that of woken units, in a trap", "louder", "cloned"),
    Contrast("rank regulariser, in a trap", "cloned_rank", "cloned"),
    Contrast("rank regulariser", "rank", "untouched"),
    Contrast("rank regulariser against a random direction", "rank", "random"),
    Contrast("rank regulariser against decay", "rank", "decay"),
    Contrast("rank regulariser against a longer gradient", "rank", "rescaled"),
)
