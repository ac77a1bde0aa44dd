"""What a recovery controller is told and what it remembers: its arguments, checked, and its state."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from lopjax.interventions.checks import check_every
from lopjax.losses import pair
from lopjax.optim.checks import check, check_single
from lopjax.recovery.log import Log
from lopjax.recovery.rungs import RUNGS, SYMPTOMS, Treatments

ON: Mapping[str, float] = {"cloning": 0.1, "dying": 0.3, "saturation": 0.3, "rank_collapse": 0.3}
"""The score from which on treatment begins, by symptom."""
OFF: Mapping[str, float] = {"cloning": 0.02, "dying": 0.2, "saturation": 0.2, "rank_collapse": 0.15}
"""The score below which a symptom has gone."""
_MOST = 4
"""How many differences of a state are named."""


class ControllerState(NamedTuple):
    """Memory of a controller.

    Attributes:
        is_on: which of `SYMPTOMS` are being treated, `(4,)`.
        rung: place of each in its own part of the ladder, int32.
        turn: step of each one's last turn, int32; -1 for none, -2 where its rung waits for the budget's next period.
        refused: how many of its rungs in a row have been refused or found nothing to do, int32.
        waits_until: step before which it is not treated, int32.
        is_known: whether the last look could measure the symptoms.
        best_rank: largest effective rank so far.
        rests_until: step before which no symptom is treated, as the last action is to be judged, int32.
        period: number of the budget's period, int32.
        spent: units and relative change of parameters that it has cost in this period, `(2,)`.
        pending: number of the log's entry that is not judged yet; -1 for none.
        named: the units that had the symptom before that action, `(units,)`, all spaces in a row.
        actions: entries of the log written so far, int32.
        log: the last of them.
        own: states of the interventions that the rungs apply.
    """

    is_on: jax.Array
    rung: jax.Array
    turn: jax.Array
    refused: jax.Array
    waits_until: jax.Array
    is_known: jax.Array
    best_rank: jax.Array
    rests_until: jax.Array
    period: jax.Array
    spent: jax.Array
    pending: jax.Array
    named: jax.Array
    actions: jax.Array
    log: Log
    own: tuple[Any, ...]


class Budget(NamedTuple):
    """What actions may cost.

    Attributes:
        limits: units, as a share of all, and relative change of the parameters in one period, `(2,)`.
        every: steps of a period.
        max_jump: rise of the loss that one action may cause, relative to it.
    """

    limits: Float[Array, "2"]
    every: ArrayLike
    max_jump: ArrayLike


class Options(NamedTuple):
    """The arguments of `recovery_controller`, checked; `treatments` are what its rungs apply."""

    ladder: tuple[str, ...]
    treatments: Treatments
    on: Float[Array, "4"]
    off: Float[Array, "4"]
    probe: tuple[Any, Any] | None
    every: ArrayLike
    cool_down: ArrayLike
    budget: Budget
    clone_tolerance: ArrayLike
    entries: int

    @property
    def parts(self) -> list[list[int]]:
        """By symptom, the rungs of the ladder that treat it, lowest first."""
        return [[n for n, name in enumerate(self.ladder) if s in RUNGS[name].treats] for s in SYMPTOMS]

    @property
    def heights(self) -> np.ndarray:
        """By symptom, how many rungs treat it."""
        return np.array([len(part) for part in self.parts])


def checked_limits(on: Mapping[str, ArrayLike], off: Mapping[str, ArrayLike]) -> tuple[Array, Array]:
    """Thresholds in the order of `SYMPTOMS`; those that are left out are the defaults, traced ones pass unchecked.

    Raises:
        ValueError: an unknown symptom, a number that is no share, an end at 0 or not below its beginning.
    """
    for thresholds in (on, off):
        if unknown := sorted(set(thresholds) - set(SYMPTOMS)):
            raise ValueError(f"thresholds {unknown}: must be of {list(SYMPTOMS)}")
    begin, end = {**ON, **on}, {**OFF, **off}
    for name in SYMPTOMS:
        for word, each in (("on", begin), ("off", end)):
            check(f"{word}[{name!r}]", each[name], minimum=0.0, maximum=1.0)
        if not isinstance(end[name], Tracer) and not np.all(np.asarray(end[name]) > 0):
            raise ValueError(f"off[{name!r}]={end[name]!r}: must be above 0, or no score would ever be below it")
        is_traced = any(isinstance(each[name], Tracer) for each in (begin, end))
        if not is_traced and not np.all(np.asarray(end[name]) < np.asarray(begin[name])):
            raise ValueError(f"{name}: on={begin[name]}, off={end[name]}: must be off < on, or treatment flickers")
    stacked = [jnp.stack([jnp.asarray(each[name], float) for name in SYMPTOMS]) for each in (begin, end)]
    return stacked[0], stacked[1]


def check_numbers(every: Any, cool_down: Any, clone_tolerance: Any) -> None:
    """Refuse periods and a tolerance that are out of range."""
    check_every(every)
    check_every(cool_down, "cool_down")
    check("clone_tolerance", clone_tolerance, minimum=0.0)


def checked_budget(units: Any, change: Any, every: Any, max_jump: Any) -> Budget:
    """The budget; traced numbers pass unchecked.

    Raises:
        ValueError: a number out of range.
    """
    check_every(every, "budget_every")
    check("budget_units", units, minimum=0.0)
    check("budget_change", change, minimum=0.0)
    check_single("max_jump", max_jump)
    is_number = isinstance(max_jump, Tracer) or np.asarray(max_jump).dtype.kind in "iufV"  # V: bfloat16
    if not is_number or (not isinstance(max_jump, Tracer) and not max_jump >= 0):
        raise ValueError(f"max_jump={max_jump!r}: must be at least 0; infinity for any")
    return Budget(jnp.stack([jnp.asarray(units, float), jnp.asarray(change, float)]), every, max_jump)


def checked_probe(probe: Any) -> tuple[Any, Any] | None:
    """The probe as arrays on the device, or None.

    Raises:
        ValueError: no pair of inputs and labels, of one length; or samples that are all the same.
    """
    if probe is None:
        return None
    try:
        inputs, labels = pair(probe)
    except ValueError as error:
        raise ValueError(f"probe: {error}") from None
    leaves = jax.tree.leaves(inputs)
    if not any(isinstance(leaf, Tracer) for leaf in leaves) and all(_is_same(np.asarray(leaf)) for leaf in leaves):
        raise ValueError(
            f"probe: {len(leaves[0])} sample(s), all the same. On them every unit is constant, as a dead one is: pass "
            "at least two different samples, as many as are needed to tell units apart"
        )
    return jax.tree.map(jnp.asarray, (inputs, labels))


def _is_same(samples: np.ndarray) -> bool:
    return bool(np.all(samples == samples[:1]))


def check_own(expected: ControllerState, own: Any) -> None:
    """Refuse the state of another controller or for another network, naming what differs.

    Raises:
        ValueError: another structure, shape or type.
    """
    found, wanted = (
        {jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for path, leaf in leaves}
        for leaves in (jax.tree.leaves_with_path(tree) for tree in (own, expected))
    )
    lines = [f"{path}: {found.get(path, 'missing')}, must be {one}" for path, one in wanted.items()]
    lines = [line for line, (path, one) in zip(lines, wanted.items(), strict=True) if found.get(path) != one]
    lines += [f"{path}: not a part of it" for path in found if path not in wanted]
    if lines:
        more = f" and {len(lines) - _MOST} more" if len(lines) > _MOST else ""
        raise ValueError(
            f"state.own is not a state of this controller for this network: {'; '.join(lines[:_MOST])}{more}. Begin "
            "with start_intervention(controller, setting, state), of a controller with the same ladder and entries"
        )
