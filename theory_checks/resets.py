"""Resets of units, and the manifolds on which clones and dead units are caught.

A reset looks at what a unit does, and clones do the same, so it takes all of a cluster or none. New weights are drawn
for each unit independently, so the clones that it takes become different. Which live clones does each method free? A
new reset joins by adding a row to `METHODS`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopjax.interventions import (
    Intervention,
    Setting,
    continual_backprop,
    cpr,
    intervene,
    redo,
    regrama,
    reset_layer,
    reset_optimizer,
    self_normalized_resets,
    start_intervention,
)
from lopjax.losses import mean_cross_entropy
from lopjax.models import mlp
from lopjax.training import init_state, train_step
from theory_checks.architectures import random_batches, random_variables
from theory_checks.check import Check, Row, Size
from theory_checks.clusters import cloned_points

SIGNAL = 1e-3
CLUSTERS = (0, 0, 1, 1, 2, 2)
DEAD, STEPS = 0, 4
MODEL, DEEP = mlp((4,), (6,), 3), mlp((4,), (6, 2), 3)
OPTIMIZER = optax.sgd(0.01, 0.9)

METHODS: dict[str, Callable[[], Intervention]] = {
    "ReDo": lambda: redo(0.1, 1),
    "self-normalised resets": lambda: self_normalized_resets(0.9, 2),
    "ReGraMa": lambda: regrama(0.01, 1),
    "continual backprop": lambda: continual_backprop(0.1, 0.9, 2),
    "CPR": lambda: cpr(0.1, 2),
    "layer reset": lambda: reset_layer(["hidden_0"], every=STEPS),
    "optimizer reset": lambda: reset_optimizer(every=STEPS),
}
"""A row each, with numbers with which it acts within `STEPS` steps."""


class Outcome(NamedTuple):
    """A network with three pairs of clones, seen before and after a method has acted on it.

    Attributes:
        before: parameters.
        after: parameters.
        touched: which units the method has named in any of the steps; all False where it names none.
        gradient: gradient of the loss at the parameters after.
        change: largest change of a logit.
    """

    before: Any
    after: Any
    touched: np.ndarray | jax.Array
    gradient: Any
    change: Any


@cache
def outcomes(has_dead: bool) -> dict[str, Outcome]:
    """Every method on one network whose first pair is dead, or none is; it sees the same batch in every step."""
    variables = cloned_points(MODEL.wiring, {"hidden_0": CLUSTERS}, random_variables(MODEL)).bc
    hidden = dict(variables["params"]["hidden_0"])
    pair = jnp.array(CLUSTERS) == DEAD
    shift = -100.0 if has_dead else 0.0
    hidden["bias"] = jnp.where(pair, shift, 1.0)
    variables = {"params": {**variables["params"], "hidden_0": hidden}}
    batch = jax.tree.map(lambda leaf: leaf[0], random_batches((4,), 1))
    setting = Setting(MODEL, OPTIMIZER, mean_cross_entropy)

    @jax.jit
    def run() -> Any:
        started = init_state(variables, OPTIMIZER)
        _, observed = train_step(MODEL, OPTIMIZER, started, batch)
        by_method = {}
        for index, (name, make) in enumerate(METHODS.items()):
            method = make()
            state, touched = start_intervention(method, setting, started), jnp.zeros(len(CLUSTERS), bool)
            for step in range(STEPS):
                key = jax.random.fold_in(jax.random.key(index), step)
                state, report = intervene(method, setting, state, observed, key, step)
                touched |= report.touched.get("hidden_0", touched)
            _, observed_after = train_step(MODEL, OPTIMIZER, init_state(state.variables, OPTIMIZER), batch)
            change = jnp.max(jnp.abs(observed_after.logits - observed.logits))
            by_method[name] = Outcome(
                variables["params"], state.variables["params"], touched, observed_after.gradient, change
            )
        return by_method

    return jax.device_get(run())


def apart(params: Any, clusters: tuple[int, ...]) -> float:
    """Largest difference between the two clones of these pairs, in any weight that they write or read."""
    hidden, head = params["hidden_0"], params["classes"]
    rows = np.concatenate([hidden["kernel"].T, hidden["bias"][:, None], head["kernel"]], axis=1)
    return float(max(np.max(np.abs(rows[2 * c] - rows[2 * c + 1])) for c in clusters))


@cache
def behind_live_clones() -> np.ndarray:
    """Difference of what live clones send, `(pairs, units behind)`, after ReDo has reset the first unit behind them."""
    points = cloned_points(DEEP.wiring, {"hidden_0": CLUSTERS}, random_variables(DEEP))
    params = jax.tree.map(jnp.asarray, points.bc["params"])
    params["hidden_0"] = {**params["hidden_0"], "bias": jnp.ones(len(CLUSTERS))}
    params["hidden_1"] = {**params["hidden_1"], "bias": jnp.array([-100.0, 1.0])}
    setting, batch = (
        Setting(DEEP, OPTIMIZER, mean_cross_entropy),
        jax.tree.map(lambda leaf: leaf[0], random_batches((4,), 1)),
    )
    method = redo(0.1, 1)

    @jax.jit
    def run() -> Any:
        started = init_state({"params": params}, OPTIMIZER)
        _, observed = train_step(DEEP, OPTIMIZER, started, batch)
        own = start_intervention(method, setting, started)
        return intervene(method, setting, own, observed, jax.random.key(0), 0)[0].variables["params"]

    sent = np.asarray(run()["hidden_1"]["kernel"])
    return np.abs(sent[::2] - sent[1::2])


def check_live(size: Size) -> list[Row]:
    """One pair is dead: what becomes of the two that live."""
    del size
    by_method, live = outcomes(has_dead=True), (1, 2)
    rows = [
        Row(f"{name}: largest difference between live clones", apart(by_method[name].after, live), 0.0)
        for name in ("ReDo", "self-normalised resets", "ReGraMa", "optimizer reset")
    ]
    rows += [
        Row(f"{name}: the same for the dead pair", apart(by_method[name].after, (DEAD,)), SIGNAL, ">=")
        for name in ("ReDo", "self-normalised resets", "ReGraMa")
    ]
    return [
        *rows,
        Row("optimizer reset: the same for the dead pair", apart(by_method["optimizer reset"].after, (DEAD,)), 0.0),
        Row(
            "ReDo of a unit behind live clones: difference in what they send it",
            behind_live_clones()[:, 0].max(),
            SIGNAL,
            ">=",
        ),
        Row("the same, to the unit beside it", behind_live_clones()[:, 1].max(), 0.0),
        Row("CPR: live clones", apart(by_method["CPR"].after, live), 0.0, control=True),
        Row("layer reset: live clones", apart(by_method["layer reset"].after, live), 0.0, control=True),
    ]


def check_ties(size: Size) -> list[Row]:
    """All live: continual backprop has to choose between clones of equal utility."""
    del size
    by_method = outcomes(has_dead=False)
    touched = by_method["continual backprop"].touched.reshape(3, 2).sum(axis=1)
    split = [c for c in range(3) if touched[c] == 1]
    return [
        Row("continual backprop: pairs of which one unit is replaced", len(split), 1, ">="),
        Row(
            "the same pairs: difference after", apart(by_method["continual backprop"].after, tuple(split)), SIGNAL, ">="
        ),
        Row("ReDo: units replaced", int(by_method["ReDo"].touched.sum()), 1, ">=", control=True),
        Row("ReDo: difference between clones", apart(by_method["ReDo"].after, (0, 1, 2)), 0.0),
        Row(
            "continual backprop: change of a logit, removing a live unit", float(by_method["continual backprop"].change)
        ),
    ]


def check_dead(size: Size) -> list[Row]:
    """The dead pair: function and gradient before and after it is reset."""
    del size
    rows = []
    for name in ("ReDo", "self-normalised resets", "ReGraMa"):
        outcome = outcomes(has_dead=True)[name]
        rows.append(Row(f"{name}: largest change of a logit", float(outcome.change), 1e-12))
        outgoing = np.abs(outcome.gradient["classes"]["kernel"][:2]).max()
        rows.append(Row(f"{name}: gradient of outgoing weights", float(outgoing), SIGNAL, ">="))
    gradient = outcomes(has_dead=True)["optimizer reset"].gradient
    rows.append(
        Row("optimizer reset: the same", float(np.abs(gradient["classes"]["kernel"][:2]).max()), SIGNAL, ">=", True)
    )
    return rows


CHECKS: tuple[Check, ...] = (
    Check(
        "resets.live_clones",
        "Resets that judge units by what they do (ReDo, self-normalised resets, ReGraMa) keep live clones exactly"
        " equal where no unit that reads them is reset; clones that are themselves reset become different, as each"
        " unit is drawn independently.",
        "this library; the methods: arXiv 2302.12902, 2410.20098, 2505.24061, 2607.24996",
        check_live,
        "A method that recycles dead units does nothing about duplicates, except where it draws new weights for a unit"
        " that reads them. CPR frees them, as its draw is independent noise for each unit; resetting a layer does so,"
        " too.",
        "This page used to ignore units that read the clones, as it looked at one hidden layer only: such a unit, when"
        " it is reset, reads the two with independently drawn weights, which separates them.",
    ),
    Check(
        "resets.ties",
        "In one layer, continual backprop splits live clones only by breaking a tie: of two equal utilities, one comes"
        " first.",
        "this library; Dohare et al., Nature 632 (2024)",
        check_ties,
        "Duplicates are freed one at a time, at the rate of replacement, and only when they are the least useful.",
        "This page used to ignore deeper networks, where replacing a unit that reads the clones separates them as"
        " well.",
    ),
    Check(
        "resets.dead_units",
        "Resetting a dead unit changes no logit, and its outgoing weights have a gradient from then on.",
        "arXiv 2302.12902, section 4",
        check_dead,
        "Dead units leave the frozen manifold at once and at no cost, where no norm couples them to the others.",
    ),
)
"""From what keeps most to what keeps nothing."""
