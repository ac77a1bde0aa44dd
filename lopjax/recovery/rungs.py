"""The rungs of the ladder: what may be done about which symptom, from the gentlest to the harshest."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import ArrayLike

from lopjax.detection.nearness import Status
from lopjax.interventions.checks import check_every, check_state, is_due
from lopjax.interventions.fire import fire
from lopjax.interventions.reasons import CHANGED, NOT_ITS_STEP
from lopjax.interventions.redo import redo
from lopjax.interventions.split_clones import split_clones
from lopjax.interventions.wake_dead_units import wake_dead_units
from lopjax.optim.checks import check
from lopjax.recovery.noise import kick_clones
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState

SYMPTOMS = ("cloning", "dying", "saturation", "rank_collapse")
"""What a controller watches: share of units near a clone, dead, saturated; how far the effective rank has fallen."""
_NO_UNIT = -2
KINDS = (Status.NEAR_CLONE, Status.DEAD, Status.SATURATED, _NO_UNIT)
"""The status of the units that have each of them; a fallen rank names none."""


class Rung(NamedTuple):
    """One rung.

    Attributes:
        treats: symptoms that it is tried against.
        keeps_function: whether the network computes the same after it.
        says: what it does, in the log.
        moves_all: whether it moves every array, so that all units count as changed; else those of its report.
    """

    treats: tuple[str, ...]
    keeps_function: bool
    says: str
    moves_all: bool = False


RUNGS: Mapping[str, Rung] = {
    "noise": Rung(("cloning",), False, "noise on the incoming weights of near-clones"),
    "split_clones": Rung(("cloning",), True, "one pair of near-clones parted along outgoing weights"),
    "wake_dead_units": Rung(("dying",), True, "dead units drawn anew, their outgoing weights zeroed"),
    "redo": Rung(("dying",), False, "dormant units reset"),
    "kick_and_fire": Rung(
        ("cloning", "rank_collapse"), False, "a free kick to clones, then every kernel made an isometry"
    ),
    "shrink_and_perturb": Rung(SYMPTOMS, False, "parameters moved towards a fresh draw", moves_all=True),
}
"""The rungs by name, in the order of the default ladder."""

# A rung is applied when the controller says so: every step is its step.
_ALWAYS = 1
_BETWEEN_RUNS = {
    "insert_norm": "changes the shapes of a network, which no compiled step can: call "
    "lopjax.interventions.insert_norm between two runs"
}


def check_ladder(ladder: Sequence[str]) -> tuple[str, ...]:
    """The ladder as a tuple of names.

    Raises:
        ValueError: a string, no rung, an unknown one, one twice, or one that cannot act inside a compiled step.
    """
    if isinstance(ladder, str) or not ladder:
        raise ValueError(f"ladder={ladder!r}: must be a sequence of names, of {list(RUNGS)}")
    for name in ladder:
        if name in _BETWEEN_RUNS:
            raise ValueError(f"ladder={list(ladder)}: {name} {_BETWEEN_RUNS[name]}")
        if name not in RUNGS:
            raise ValueError(f"ladder={list(ladder)}: there is no rung {name!r}; they are {list(RUNGS)}")
    if len(set(ladder)) < len(ladder):
        raise ValueError(f"ladder={list(ladder)}: each rung once")
    return tuple(ladder)


class Strengths(NamedTuple):
    """Numbers of the rungs; they may be traced.

    Attributes:
        noise: setting of "noise": see `kick_clones`; by space, the result of `critical_noise`.
        split: setting of "split_clones" and "kick_and_fire": length of the push relative to the outgoing weights.
        dormant: threshold of "redo".
        shrink: setting of "shrink_and_perturb": fraction of the parameters that is kept.
    """

    noise: ArrayLike | Mapping[str, ArrayLike] = 0.01
    split: ArrayLike = 0.1
    dormant: ArrayLike = 0.025
    shrink: ArrayLike = 0.8


DEFAULT_STRENGTHS = Strengths()


class Treatments(NamedTuple):
    """What the rungs of a ladder apply.

    Attributes:
        interventions: each once, although two rungs may use it.
        of_rung: by rung, the places of those that it applies, one after the other.
    """

    interventions: tuple[Intervention, ...]
    of_rung: tuple[tuple[int, ...], ...]


# FIRE keeps exact clones, which have a singular value of 0, and magnifies any difference: a free kick goes first.
_APPLIES = {"kick_and_fire": ("split_clones", "fire")}


def make_treatments(ladder: Sequence[str], strengths: Strengths, clone_tolerance: ArrayLike) -> Treatments:
    """The interventions of a ladder.

    Raises:
        ValueError: strengths of another type, or out of range.
    """
    if not isinstance(strengths, Strengths):
        raise ValueError(f"strengths={strengths!r}: must be lopjax.recovery.Strengths, such as Strengths(noise=0.05)")
    applied = [_APPLIES.get(name, (name,)) for name in ladder]
    names = list(dict.fromkeys(name for each in applied for name in each))
    interventions = tuple(_intervention(name, strengths, clone_tolerance) for name in names)
    return Treatments(interventions, tuple(tuple(names.index(name) for name in each) for each in applied))


def _intervention(name: str, strengths: Strengths, clone_tolerance: ArrayLike) -> Intervention:
    if name == "noise":
        return kick_clones(strengths.noise, clone_tolerance, _ALWAYS)
    if name == "split_clones":
        return split_clones(clone_tolerance, _ALWAYS, strengths.split)
    if name == "wake_dead_units":
        return wake_dead_units(_ALWAYS)
    if name == "redo":
        return redo(strengths.dormant, _ALWAYS)
    if name == "fire":
        return fire(every=_ALWAYS)
    return pull_to_start(strengths.shrink, _ALWAYS)


def pull_to_start(shrink: ArrayLike = 0.8, every: ArrayLike = 1000) -> Intervention:
    r"""Shrink and perturb: :math:`\theta \leftarrow s\theta + (1 - s)\theta'`, :math:`\theta'` a fresh initial draw.

    The law "ash_adams" of :func:`lopjax.optim.shrink_and_perturb` at :math:`\sigma = 1 - s`, on every array on its own
    scale, as an intervention that acts when it is told to. Statistics and the optimizer's memory are kept.

    Args:
        shrink: s in [0, 1].
        every: steps between two.

    Raises:
        ValueError: a number out of range.

    References:
        Ash & Adams, arXiv 1910.08475.
    """
    check("shrink", shrink, minimum=0.0, maximum=1.0)
    check_every(every)

    def init(setting: Setting, state: TrainState) -> tuple[()]:
        check_state(setting, state)
        return ()

    def apply(
        setting: Setting, own: tuple[()], state: TrainState, observed: Observed, key: jax.Array, step: Any
    ) -> tuple[TrainState, tuple[()], Report]:
        def act(params: Any) -> Any:
            fresh = setting.model.init(key)["params"]
            return jax.tree.map(lambda old, new: (shrink * old + (1 - shrink) * new).astype(old.dtype), params, fresh)

        due = is_due(step, every)
        params = jax.lax.cond(due, act, lambda params: params, state.variables["params"])
        state = state._replace(variables={**state.variables, "params": params})
        return state, own, Report({}, jax.numpy.where(due, CHANGED, NOT_ITS_STEP))

    return Intervention(init, apply)
