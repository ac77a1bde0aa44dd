"""Interventions: changes to a network after the optimizer's step, on every architecture, through the wiring.

Each is made by a function of numbers, which may be traced, so that lanes with different settings share one program:

state = start_intervention(redo(threshold=0.1, every=1000), setting, state)
state, report = intervene(redo(threshold=0.1, every=1000), setting, state, observed, key, step)

A new intervention is a module, its name here, and its row in `EXAMPLES`, with which the conformance suite tests its
promises on every architecture.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from lopjax.interventions.compensation import move_means_into_biases
from lopjax.interventions.continual_backprop import Utilities, continual_backprop
from lopjax.interventions.cpr import cpr
from lopjax.interventions.fire import fire
from lopjax.interventions.insert_norm import insert_norm
from lopjax.interventions.lifetimes import Lifetimes, Survival, survival, with_lifetimes
from lopjax.interventions.lifting import from_optax
from lopjax.interventions.moments import forget
from lopjax.interventions.reasons import REASONS, describe
from lopjax.interventions.redo import redo
from lopjax.interventions.regrama import gradient_scores, regrama
from lopjax.interventions.self_normalized_resets import Silences, self_normalized_resets
from lopjax.interventions.slices import draw_units, reset_units
from lopjax.interventions.split_clones import split_clones
from lopjax.interventions.wake_dead_units import wake_dead_units
from lopjax.interventions.whole import reset_layer, reset_optimizer
from lopjax.optim import shrink_and_perturb
from lopjax.training.interventions import Intervention, Report, Setting, intervene, start_intervention

__all__ = [
    "EXAMPLES",
    "REASONS",
    "Example",
    "Intervention",
    "Lifetimes",
    "Report",
    "Setting",
    "Silences",
    "Survival",
    "Utilities",
    "continual_backprop",
    "cpr",
    "describe",
    "draw_units",
    "fire",
    "forget",
    "from_optax",
    "gradient_scores",
    "insert_norm",
    "intervene",
    "move_means_into_biases",
    "redo",
    "regrama",
    "reset_layer",
    "reset_optimizer",
    "reset_units",
    "self_normalized_resets",
    "split_clones",
    "start_intervention",
    "survival",
    "wake_dead_units",
    "with_lifetimes",
]


class Example(NamedTuple):
    """An intervention with settings at which it acts within a few steps if a unit of every space is silent.

    Attributes:
        make: function that makes the intervention.
        promises: names of the properties of `lopjax.testing.Property` that it promises; empty for all.
        without: names of those that it does not promise, if it promises the others.
    """

    make: Callable[[], Intervention]
    promises: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


EXAMPLES: Mapping[str, Example] = MappingProxyType(
    {
        "redo": Example(lambda: redo(0.0, 3), without=("UTILITIES",)),
        # It moves a running mean into biases; a unit that has just died no longer has that mean.
        "continual_backprop": Example(lambda: continual_backprop(0.05, 0.99, 2), without=("JUST_DIED",)),
        "self_normalized_resets": Example(lambda: self_normalized_resets(0.9, 3), without=("UTILITIES",)),
        "regrama": Example(lambda: regrama(0.05, 3), without=("UTILITIES",)),
        "cpr": Example(lambda: cpr(0.1, 3), ("SLICES", "AGEING", "NOTHING_ELSE", "KEYS")),
        # What touches no unit by choice: the promises that any step can keep.
        "reset_optimizer": Example(lambda: reset_optimizer(3), ("AGEING", "NOTHING_ELSE", "KEYS")),
        "from_optax": Example(
            lambda: from_optax(shrink_and_perturb(0.9, 0.1, seed=0, every=3)), ("AGEING", "NOTHING_ELSE", "KEYS")
        ),
        "fire": Example(lambda: fire(every=3), ("AGEING", "NOTHING_ELSE", "KEYS")),
        "reset_layer": Example(
            lambda: reset_layer(["classes"]),
            without=("FUNCTION", "JUST_DIED", "OUTGOING", "STATISTICS", "UTILITIES"),
        ),
        "wake_dead_units": Example(lambda: wake_dead_units(3), without=("UTILITIES",)),
        # At these settings any pair is near enough and any cost allowed; its promises about clones are tested with
        # clones.
        "split_clones": Example(
            lambda: split_clones(10.0, every=3, loss_tolerance=1e9, num_steps=4), ("AGEING", "NOTHING_ELSE", "KEYS")
        ),
    }
)
"""One row for each intervention."""
