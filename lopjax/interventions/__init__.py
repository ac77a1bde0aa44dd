"""Interventions: what acts on a network after the optimizer has, on every architecture, through the wiring.

Each is made by a function of numbers, which may be traced, so that lanes with other settings share one program:

state = start_intervention(redo(threshold=0.1, every=1000), setting, state)
state, report = intervene(redo(threshold=0.1, every=1000), setting, state, observed, key, step)
"""

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
from lopjax.training.interventions import Intervention, Report, Setting, intervene, start_intervention

__all__ = [
    "REASONS",
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
