"""Recovery: a controller that treats symptoms by a ladder of interventions, and a monitor for any training loop.

noise.py        how much noise frees clones, by the stability module, and the kick
rungs.py        the rungs of the ladder
options.py      what a controller is told, and its state
acting.py       one action: applied, weighed, kept or undone, logged
controller.py   the controller, an `Intervention`: looks, judges, acts
log.py          what it did, why, and whether the symptom went
monitor.py      symptoms and warnings in a loop that is not ours
"""

from lopjax.recovery.controller import recovery_controller
from lopjax.recovery.log import Log, Outcome, explain
from lopjax.recovery.monitor import Monitor, MonitorReport, MonitorState, life_table, monitor
from lopjax.recovery.noise import critical_noise, kick_clones
from lopjax.recovery.options import OFF, ON, ControllerState
from lopjax.recovery.rungs import RUNGS, SYMPTOMS, Rung, Strengths, pull_to_start

__all__ = [
    "OFF",
    "ON",
    "RUNGS",
    "SYMPTOMS",
    "ControllerState",
    "Log",
    "Monitor",
    "MonitorReport",
    "MonitorState",
    "Outcome",
    "Rung",
    "Strengths",
    "critical_noise",
    "explain",
    "kick_clones",
    "life_table",
    "monitor",
    "pull_to_start",
    "recovery_controller",
]
