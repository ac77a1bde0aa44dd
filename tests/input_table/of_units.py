"""Rows of functions of what was measured about units: statuses, distances, symptoms, and records of them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from input_table import Row, Subject
from input_table.of_networks import INPUTS, NETWORK, network
from lopjax import detection
from lopjax.detection import CloneDistances, Nearest, Symptoms, UnitNearness

NO_SAMPLES = dict.fromkeys(("no samples", "one sample", "labels"), "there is no batch")

# --- Nearness of the units of one space -------------------------------------------------------------------------------

NEARNESS = Subject(
    {
        "distance": np.array([0.0, 1, 2, 1]),
        "slope": np.array([1.0, 0, 1, 2]),
        "tolerance": np.array(0.5),
    },
    scaled=(),
    units={"distance": 0, "slope": 0},
    width={"slope": 0},
    carriers=("distance", "slope", "tolerance"),
    numbers=("distance", "slope", "tolerance"),
    ranked=("distance", "slope", "tolerance"),
    excused=NO_SAMPLES | dict.fromkeys(("tiny", "huge"), "a distance is relative, and so is what it is compared with"),
)


def nearness(distance, slope):
    """Nearness of units at these distances, none of them dead."""
    nearest = Nearest(distance, np.zeros(np.shape(distance), np.int32), distance)
    return UnitNearness(nearest, nearest, np.zeros(np.shape(distance), bool), *[slope] * 4)


def status(distance, slope, tolerance):
    """A status as a number, what is not known as NaN."""
    found = detection.unit_status(nearness(distance, slope), tolerance, tolerance)
    return jnp.where(found == detection.Status.UNKNOWN, jnp.nan, found)


DISTANCES = replace(
    NEARNESS,
    arrays={name: NEARNESS.arrays[name] for name in ("distance", "tolerance")},
    units={"distance": 0},
    width={},
    carriers=("distance", "tolerance"),
    numbers=("distance", "tolerance"),
    ranked=("distance", "tolerance"),
    excused=NEARNESS.excused | {"wrong width": "one array"},
)


def near(distance, tolerance):
    nearest = nearness(distance, distance).activations
    return detection.near_clones({"hidden_0": CloneDistances(nearest, nearest)}, tolerance)


# --- Statuses and their records ---------------------------------------------------------------------------------------

STATUS = Subject(
    {"status": np.array([0, 3, 2, -1]), "touched": np.array([False, True, False, False])},
    cast=(),
    units={"status": 0, "touched": 0},
    width={"touched": 0},
    numbers=("status", "touched"),
    ranked=("status", "touched"),
    excused=NO_SAMPLES
    | dict.fromkeys(
        ("bfloat16", "float16", "float32", "float64", "int32", "tiny", "huge", "nan", "inf"), "of integers"
    ),
)


ALONE = replace(
    STATUS,
    arrays={"status": STATUS.arrays["status"]},
    units={"status": 0},
    width={},
    numbers=("status",),
    ranked=("status",),
    excused=STATUS.excused | {"wrong width": "one array"},
)


def lives(state, touched):
    return detection.update_lives(detection.start_lives({"h": state}), {"h": state}, 1, {"h": touched})


def letters(text):
    return np.array([ord(letter) for letter in text])


def table(status, touched):
    written = detection.lives_as_text(status, touched)
    found = detection.lives_of_records([{"step": 0, "lives/h": written}])
    return found.status, found.touched


# --- Symptoms ---------------------------------------------------------------------------------------------------------

SYMPTOMS = Subject(
    {"train": np.array([1.0, 2, 2, 4, 8, 16]), "rank": np.array([4.0, 4, 2, 2, 1, 1]), "dead": np.array(0.5)},
    scaled=("train",),
    carriers=("train", "rank", "dead"),
    numbers=("train", "rank", "dead"),
    ranked=("dead",),
    width={"train": 0},
    excused=dict.fromkeys(("no samples", "one sample", "no units", "one unit", "labels", "wrong width"), "one network"),
)


def warned(train, rank, dead):
    """Scores after six measurements."""
    state, limits = detection.start_warnings(4), detection.thresholds()
    for step in range(6):
        measured = [each[step] if np.ndim(each) else each for each in (train, rank)]
        symptoms = Symptoms(measured[0], measured[0], measured[1], dead, dead)
        state, found = detection.update_warnings(state, symptoms, step, limits)
    return found.scores, found.is_on


def symptoms(model, variables, batch):
    near = detection.unit_nearness(model, variables, batch)
    return tuple(detection.symptoms_of(model, variables, near, batch[0]))[2:]


def forecast(model, variables, batch):
    x, y = batch
    batches = np.stack([np.asarray(x)] * 2), np.stack([np.asarray(y)] * 2)
    found = detection.clone_forecast(model, variables, batches, "hidden_0", (0, 1), 0.125, jax.random.key(0))
    return found.distance, found.growth.exponent * 0  # from a random direction


def readiness(model, variables, batch):
    return tuple(detection.gradient_readiness(model, variables, batch, 2))


MISSING = {"nan": "not measured: `update_warnings` says so", "inf": "likewise"}
ROWS = {
    "detection.unit_status": Row(status, NEARNESS),
    "detection.near_clones": Row(
        near, DISTANCES, allowed={"nan": "a unit of which nothing is known is not near", "inf": "far"}
    ),
    "detection.start_lives": Row(lambda status: detection.start_lives({"h": status}), ALONE),
    "detection.update_lives": Row(lives, STATUS),
    "detection.lives_as_text": Row(lambda *a: letters(detection.lives_as_text(*a)), STATUS),
    "detection.lives_of_records": Row(table, STATUS),
    "detection.update_warnings": Row(warned, SYMPTOMS, rtol=1e-4, allowed=MISSING),
    "detection.symptoms_of": network(symptoms, INPUTS, is_compiled=True, rtol=1e-3, half=5e-3),
    "detection.gradient_readiness": network(readiness, is_compiled=True, rtol=1e-3, half=2e-2),
    "detection.clone_forecast": network(
        forecast, replace(NETWORK, samples={}, excused=NO_SAMPLES), rtol=1e-3, half=2e-2
    ),
}
