"""Detection: how near every unit is to a clone, to death and to saturation, and what became of it along a run.

clones.py      graded distances to the nearest clone, by activations and by parameters
death.py       how far incoming weights must move until a unit dies, or a dead one wakes
nearness.py    all of it for every unit, and the sentence that a user wants: "3 units within 1 % of a clone"
lives.py       births and deaths of units along a run
readiness.py   how strong gradients are, and how far a minibatch can be relied on
trends.py      tests for a trend in a window of measurements
warnings.py    the four signatures of lost plasticity as detectors with hysteresis
forecast.py    when will a unit have become a clone?
approach.py    the same for a pair under SGD, by the transverse Lyapunov exponent
scores.py      what an indicator is worth: its lead time at a fixed rate of false alarms
"""

from lopjax.detection.approach import CloneForecast, clone_forecast
from lopjax.detection.clones import (
    CloneDistances,
    Multiples,
    Nearest,
    activation_rows,
    clone_distances,
    is_odd,
    multiples_by_activations,
    multiples_by_parameters,
    near_clones,
    nearest_units,
    parameter_rows,
)
from lopjax.detection.death import dead_on_batch, death_radius
from lopjax.detection.forecast import Forecast, Rate, measured_rate, trap_forecast
from lopjax.detection.lives import (
    LifeTable,
    Lives,
    lives_as_text,
    lives_of_records,
    load_lives,
    save_lives,
    start_lives,
    update_lives,
)
from lopjax.detection.nearness import (
    Status,
    UnitNearness,
    describe_units,
    unit_nearness,
    unit_status,
)
from lopjax.detection.readiness import Readiness, gradient_readiness
from lopjax.detection.scores import IndicatorScore, score_indicator
from lopjax.detection.trends import Trend, trend
from lopjax.detection.warnings import (
    SIGNATURES,
    Symptoms,
    Thresholds,
    Warnings,
    WarningState,
    describe_warnings,
    pair_r2,
    start_warnings,
    symptoms_of,
    thresholds,
    update_warnings,
)

__all__ = [
    "SIGNATURES",
    "CloneDistances",
    "CloneForecast",
    "Forecast",
    "IndicatorScore",
    "LifeTable",
    "Lives",
    "Multiples",
    "Nearest",
    "Rate",
    "Readiness",
    "Status",
    "Symptoms",
    "Thresholds",
    "Trend",
    "UnitNearness",
    "WarningState",
    "Warnings",
    "activation_rows",
    "clone_distances",
    "clone_forecast",
    "dead_on_batch",
    "death_radius",
    "describe_units",
    "describe_warnings",
    "gradient_readiness",
    "is_odd",
    "lives_as_text",
    "lives_of_records",
    "load_lives",
    "measured_rate",
    "multiples_by_activations",
    "multiples_by_parameters",
    "near_clones",
    "nearest_units",
    "pair_r2",
    "parameter_rows",
    "save_lives",
    "score_indicator",
    "start_lives",
    "start_warnings",
    "symptoms_of",
    "thresholds",
    "trap_forecast",
    "trend",
    "unit_nearness",
    "unit_status",
    "update_lives",
    "update_warnings",
]
