"""Interventions: what acts on a network after the optimizer has, on every architecture, through the wiring.

Each is made by a function of numbers, which may be traced, so that lanes with other settings share one program:

state = start_intervention(redo(threshold=0.1, every=1000), setting, state)
state, report = intervene(redo(threshold=0.1, every=1000), setting, state, observed, key, step)
"""

from lopjax.interventions.fire import fire
from lopjax.interventions.insert_norm import insert_norm
from lopjax.interventions.reasons import REASONS, describe
from lopjax.interventions.redo import redo
from lopjax.interventions.slices import reset_units
from lopjax.interventions.split_clones import split_clones
from lopjax.interventions.wake_dead_units import wake_dead_units
from lopjax.training.interventions import Intervention, Report, Setting, intervene, start_intervention

__all__ = [
    "REASONS",
    "Intervention",
    "Report",
    "Setting",
    "describe",
    "fire",
    "insert_norm",
    "intervene",
    "redo",
    "reset_units",
    "split_clones",
    "start_intervention",
    "wake_dead_units",
]
