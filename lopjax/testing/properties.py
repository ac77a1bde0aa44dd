"""What an intervention may promise, and how each promise is checked on a step on which it has acted."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopjax.model import Variables
from lopjax.testing.scenario import Act, Slices, forward, initials, named, plain, started, taps_of, touched_spaces

DEVIATIONS, SAMPLES = 6.0, 64


class Property(Enum):
    """A promise; its value is what holds."""

    FUNCTION = "touching units that are zero keeps the logits, on the batch seen and on other inputs"
    JUST_DIED = "so does touching units that are zero on the batch now and were active until a moment ago"
    SLICES = "exactly the slices of the touched units change, all of them"
    OUTGOING = "outgoing weights of touched units are zero"
    OPTIMIZER = "the optimizer forgets exactly the touched slices, and keeps its step count"
    STATISTICS = "statistics of norms of touched units are those of the start"
    AGEING = "nothing but its own steps ages units: no state outside its own, such as that of a hook"
    UTILITIES = "a unit is judged by its utility, not by how short its record is"
    GRADIENT = "no stale gradient: what is new does not depend on the gradient of what was there"
    LAW = "new weights follow the law that each array has at the start"
    NOTHING_ELSE = "nothing else in the state moves, and no shape or type changes"
    KEYS = "the same key gives the same result, alone and in the company of lanes that do something else"


class Finding(NamedTuple):
    """One property, and the evidence about it.

    Attributes:
        property: which.
        holds: True or False; None where this network does not show it.
        evidence: a sentence.
    """

    property: Property
    holds: bool | None
    evidence: str


def finding(kind: Property, faults: Sequence[str], evidence: str) -> Finding:
    """The finding holds if there is no fault; otherwise the first faults are the evidence."""
    return Finding(kind, not faults, "; ".join(faults[:3]) if faults else evidence)


def function(act: Act, others: Any, kind: Property = Property.FUNCTION) -> Finding:
    """Logits in eval mode before and after, on the batch that was seen and on other inputs.

    Nothing is promised where a touched unit is not zero on the batch, or a norm couples the units. On other inputs it
    is where the unit is zero there, too: "dead" is dead on the stated batch.

    Args:
        act: the step.
        others: inputs that the method has not seen.
        kind: under which name it is reported.
    """
    spaces, apply = touched_spaces(act), forward(act.setting.model)
    coupled = [space for space in spaces if space in act.setting.model.wiring.coupled]
    awake, moved = awake_spaces(act, act.observed.taps), _moved(act, apply, act.observed.batch[0])
    if not spaces or awake or coupled:
        why = f"units of {awake} are not zero" if awake else f"a norm couples the units of {coupled}"
        return Finding(kind, None, f"{why if spaces else 'no unit is reported'}; logits change by {moved[0]:.2g}")
    elsewhere = _moved(act, apply, others)
    faults = [f"logits change by {moved[0]:.2g}"] if moved[0] > moved[1] else []
    roused = awake_spaces(act, taps_of(act.setting.model)(act.before.variables, others))
    if elsewhere[0] > elsewhere[1] and not roused:
        faults.append(f"on other inputs logits change by {elsewhere[0]:.2g}")
    note = f", where units of {roused} are not zero" if roused else ""
    return finding(kind, faults, f"logits change by {moved[0]:.2g}, on other inputs by {elsewhere[0]:.2g}{note}")


def _moved(act: Act, apply: Any, inputs: Any) -> tuple[float, float]:
    """Largest change of a logit, and what rounding may make of it."""
    before, after = (np.asarray(apply(state.variables, inputs)) for state in (act.before, act.after))
    return float(np.max(np.abs(after - before))), 1e-12 * max(1.0, float(np.max(np.abs(before))))


def awake_spaces(act: Act, taps: Mapping[str, Any]) -> list[str]:
    """Spaces of which a touched unit is not zero on all inputs."""
    wiring = act.setting.model.wiring
    return sorted(
        {
            space
            for space in touched_spaces(act)
            for site in wiring.sites_of(space)
            if np.any(np.asarray(taps[site].post)[..., act.touched[space]])
        }
    )


def slices(act: Act, moves: Sequence[str]) -> Finding:
    """Entries of the parameters that have changed, against the slices of the touched units."""
    faults, (incoming, outgoing) = [], act.slices
    labels = act.setting.model.wiring.labels_of(act.before.variables["params"])
    trees = [named(tree["params"]) for tree in (act.before.variables, act.after.variables, incoming, outgoing)]
    for label, (path, before) in zip(labels, trees[0].items(), strict=True):
        after, enters, leaves = (np.asarray(tree[path]) for tree in trees[1:])
        changed = np.asarray(before) != after
        strays = int(np.sum(changed & ~(enters | leaves)))
        if strays and not any(path.endswith(name) for name in moves):
            faults.append(f"{strays} entries of {path} outside the slices have changed")
        # A draw may hit the old value, as a bias of zero does; of what reads a space it does not hit all of them.
        inside = enters & ~leaves
        if label.reads() and inside.any() and not changed[inside].all():
            faults.append(f"{int(np.sum(~changed[inside]))} of {inside.sum()} incoming entries of {path} are as before")
    return finding(Property.SLICES, faults, f"{len(trees[0])} arrays compared, entry by entry")


def outgoing(act: Act) -> Finding:
    """Largest outgoing weight of a touched unit; between two touched units either law is right."""
    faults, num_entries = [], 0
    trees = [named(tree["params"]) for tree in (act.after.variables, *act.slices)]
    for path, after in trees[0].items():
        left = np.asarray(after)[trees[2][path] & ~trees[1][path]]
        num_entries += left.size
        if np.any(left):
            faults.append(f"{int(np.count_nonzero(left))} of {left.size} outgoing entries of {path} are not zero")
    if not num_entries:
        return _unseen(Property.OUTGOING)
    return finding(Property.OUTGOING, faults, f"{num_entries} entries are zero")


def optimizer(act: Act) -> Finding:
    """Every array of the optimizer's state with the shape of a parameter: as at the start on the slices alone."""
    params = act.after.variables["params"]
    start = plain(started(act.setting.optimizer, params))
    either = jax.tree.map(np.logical_or, act.slices.incoming["params"], act.slices.outgoing["params"])
    faults, num_entries = [], 0
    for node, old, first in _like_params(plain(act.before.opt_state), act.after.opt_state, start, params):
        marks = jax.tree.leaves(either)
        for before, after, initial, mask in zip(old[0], old[1], first, marks, strict=True):
            if _is_left_out(after) or np.shape(after) != mask.shape:
                continue
            num_entries += int(mask.sum())
            expected = np.where(mask, np.asarray(initial), np.asarray(before))
            if wrong := int(np.sum(np.asarray(after) != expected)):
                faults.append(f"{wrong} entries of {node} are not what they should be")
    scalars = zip(named(plain(act.before.opt_state)).items(), jax.tree.leaves(act.after.opt_state), strict=True)
    faults += [f"{path} was {old}, is {new}" for (path, old), new in scalars if np.ndim(old) == 0 and old != new]
    if not num_entries:
        return _unseen(Property.OPTIMIZER)
    return finding(Property.OPTIMIZER, faults, f"{num_entries} entries forgotten, scalars kept")


def _like_params(before: Any, after: Any, start: Any, params: Any) -> list[tuple[str, Any, Any]]:
    structure = jax.tree.structure(params)

    def is_like(node: Any) -> bool:
        return jax.tree.structure(node, is_leaf=_is_left_out) == structure

    def leaves(node: Any) -> list[Any]:
        return jax.tree.leaves(node, is_leaf=_is_left_out)

    trees = [jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_like) for tree in (before, after, start)]
    return [
        (jax.tree_util.keystr(path), (leaves(old), leaves(new)), leaves(first))
        for (path, old), (_, new), (_, first) in zip(*trees, strict=True)
        if is_like(old)
    ]


def _is_left_out(node: Any) -> bool:
    """What `optax.masked` and `optax.multi_transform` put where an array is another's."""
    return isinstance(node, optax.MaskedNode)


def statistics(act: Act, start: Variables) -> Finding:
    """Statistics of touched units against those of the start, all others against those before."""
    if "batch_stats" not in act.before.variables:
        return _unseen(Property.STATISTICS)
    trees = [named(tree["batch_stats"]) for tree in (start, act.before.variables, act.after.variables)]
    masks, faults = named(act.slices.incoming["batch_stats"]), []
    for path, mask in masks.items():
        first, before, after = (np.asarray(tree[path]) for tree in trees)
        if not np.array_equal(after, np.where(mask, first, before)):
            faults.append(f"{path} is {after}, was {before}")
    return finding(Property.STATISTICS, faults, f"{len(masks)} arrays are right")


def nothing_else(act: Act) -> Finding:
    """Shapes and types of everything, and the leaves of the optimizer that are not like parameters."""
    faults = []
    for name, before, after in (
        ("variables", act.before.variables, act.after.variables),
        ("opt_state", plain(act.before.opt_state), act.after.opt_state),
        ("own", act.before.own, act.after.own),
    ):
        if jax.tree.structure(before) != jax.tree.structure(after):
            faults.append(f"{name} has another structure")
            continue
        for (path, old), new in zip(named(before).items(), jax.tree.leaves(after), strict=True):
            if np.shape(old) != np.shape(new) or jnp.result_type(old) != jnp.result_type(new):
                faults.append(f"{name}{path} was {_type(old)}, is {_type(new)}")
    return finding(Property.NOTHING_ELSE, faults, "structures, shapes and types are kept")


def law(act: Act, drawn: Variables, lanes: Sequence[Slices | None]) -> Finding:
    """Mean and mean square of redrawn entries against those of `model.init`, within so many standard errors.

    Args:
        act: for the model.
        drawn: variables of lanes that have acted with different keys, a leading axis.
        lanes: the slices of each; None for a lane that has not acted.
    """
    keys = jax.vmap(jax.random.key)(np.arange(1000, 1000 + SAMPLES))
    reference, faults, num_entries = named(initials(act.setting.model)(keys)["params"]), [], 0
    entries: dict[str, list[np.ndarray]] = {}
    for index, masks in enumerate(lanes):
        if masks is None:
            continue
        enters, leaves = named(masks.incoming["params"]), named(masks.outgoing["params"])
        for path, leaf in named(drawn["params"]).items():
            entries.setdefault(path, []).append(np.asarray(leaf[index])[enters[path] & ~leaves[path]])
    for path, parts in entries.items():
        new, law = np.concatenate(parts), np.asarray(reference[path]).ravel()
        num_entries += new.size
        for name, power in (("mean", 1), ("mean square", 2)):
            if new.size == 0:
                continue
            error = np.std(law**power) / np.sqrt(new.size) + np.std(law**power) / np.sqrt(law.size)
            gap = abs(np.mean(new**power) - np.mean(law**power))
            if gap > DEVIATIONS * error + 1e-12:
                faults.append(f"{name} of {path}: {np.mean(new**power):.3g}, at the start {np.mean(law**power):.3g}")
    return finding(Property.LAW, faults, f"{num_entries} redrawn entries") if num_entries else _unseen(Property.LAW)


def _unseen(kind: Property) -> Finding:
    return Finding(kind, None, "this network or this step does not show it")


def _type(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{np.shape(leaf)}"


def summary(findings: Sequence[Finding]) -> Mapping[str, str]:
    """By name of the property: held, failed or not seen, and the evidence."""
    words = {True: "holds", False: "FAILS", None: "not seen"}
    return {one.property.name: f"{words[one.holds]}: {one.evidence}" for one in findings}
