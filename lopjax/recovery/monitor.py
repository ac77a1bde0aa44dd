"""Symptoms, warnings and forecasts in any training loop: six lines beside an optax, NNX or Equinox step."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike
from scipy.stats import norm
from scipy.stats import t as student

from lopjax.detection.forecast import Forecast, measured_rate, trap_forecast
from lopjax.detection.lives import LifeTable, Lives, start_lives, update_lives
from lopjax.detection.nearness import UnitNearness, describe_units, unit_nearness, unit_status
from lopjax.detection.warnings import (
    OFF,
    ON,
    Thresholds,
    Warnings,
    WarningState,
    describe_warnings,
    start_warnings,
    symptoms_of,
    thresholds,
    update_warnings,
)
from lopjax.losses import check_batch, mean_cross_entropy, pair
from lopjax.model import Model, Params, Variables
from lopjax.optim.checks import check

_SOON = 10_000.0
_CLOSE = 0.1
"""The law of the forecast is for small distances: of a unit that is farther from its nearest no text promises one."""
_TAIL = norm.sf(2)  # twice the standard error


class MonitorState(NamedTuple):
    """Memory of a monitor; a tree of arrays, to be carried through the loop or saved with it.

    Attributes:
        warnings: warnings of the detectors.
        lives: what units are, and since when.
        distances: by space, of every unit to its nearest unit at the last measurements, `(window, units)`.
        partners: which unit that was, int32, likewise; `-1 - number` for a mirror twin.
        steps: steps of these measurements, int32, `(window,)`; -1 before the first.
        params: at the last measurement.
        step: step of the last measurement.
    """

    warnings: WarningState
    lives: Lives
    distances: dict[str, jax.Array]
    partners: dict[str, jax.Array]
    steps: jax.Array
    params: Params
    step: jax.Array


class MonitorReport(NamedTuple):
    """One measurement; arrays, with `str` for the host.

    Attributes:
        step: step of the measurement.
        warnings: scores, and which are on.
        events: how often units died, revived, ... since the last measurement.
        status: by space, a number of `lopjax.detection.Status` per unit.
        nearness: by space, everything graded; radii in steps of the mean length since the last measurement.
        forecast: by space, when each unit will be within 0.1 % of the unit that is its nearest now, from the rate in
            the window since it became the nearest; a law for small distances, so the text names only units that are
            within 10 %.
        loss: on the probe.
    """

    step: jax.Array
    warnings: Warnings
    events: dict[str, jax.Array]
    status: dict[str, jax.Array]
    nearness: dict[str, UnitNearness]
    forecast: dict[str, Forecast]
    loss: jax.Array

    @property
    def is_alarm(self) -> bool:
        """Whether any warning is on."""
        return bool(jnp.any(self.warnings.is_on))

    def __str__(self) -> str:
        """The report as text."""
        happened = ", ".join(f"{int(number)} {event}" for event, number in self.events.items() if number)
        head = f"step {int(self.step)}: loss on the probe {float(self.loss):.4g}" + (
            f"; {happened}" if happened else ""
        )
        return "\n".join([head, *describe_warnings(self.warnings), describe_units(self.nearness), *self._soon()])

    def _soon(self) -> list[str]:
        """The unit of each space that is the first to be a clone, if that can be said and is near."""
        lines = []
        for space, forecast in jax.device_get(self.forecast).items():
            is_close = np.asarray(self.nearness[space].activations.distance) <= _CLOSE
            steps = np.where(is_close & forecast.is_decided & (forecast.steps > 0), forecast.steps, np.inf)
            unit = int(np.argmin(steps))
            if steps[unit] < _SOON:
                partner = int(self.nearness[space].activations.unit[unit])
                lines.append(
                    f"  {space}[{unit}] is a clone of unit {partner} in about {steps[unit]:,.0f} steps "
                    f"({forecast.earliest[unit]:,.0f} to {forecast.latest[unit]:,.0f})"
                )
        return lines


class Monitor(NamedTuple):
    """Two pure functions.

    Attributes:
        init: `params -> state`.
        update: `(state, params, step, train_loss=nan) -> (state, report)`, compiled; also inside jit, scan and vmap.
    """

    init: Callable[..., MonitorState]
    update: Callable[..., tuple[MonitorState, MonitorReport]]


def monitor(
    model: Model,
    probe: tuple[Any, Any],
    *,
    loss: Callable[[jax.Array, Any], jax.Array] = mean_cross_entropy,
    window: int = 12,
    on: Mapping[str, ArrayLike] = ON,
    off: Mapping[str, ArrayLike] = OFF,
    clone_tolerance: ArrayLike = 0.01,
) -> Monitor:
    """Watch a network on a fixed probe, in a loop that need not be ours.

    `params` are the parameters as the model has them, or variables with statistics; of NNX
    `nnx.to_pure_dict(nnx.state(net, nnx.Param))`, where the names are those of the model; of a traced network
    `traced.split(params)`.

        watch = lop.monitor(model, probe)
        seen = watch.init(params)
        for step in range(num_steps):
            ...                                          # any training step
            if step % 100 == 0:
                seen, report = watch.update(seen, params, step)
                print(report)

    Args:
        model: which arrays belong to which unit: of `lopjax.models`, labelled, or traced.
        probe: `(inputs, labels)`, the same for the whole run: a few hundred samples.
        loss: `(logits, labels) -> scalar`, a mean over samples; that of the probe is the validation loss of the
            detectors.
        window: measurements over which trends are tested.
        on: where each warning begins, see `lopjax.detection.thresholds`.
        off: where it ends.
        clone_tolerance: relative distance of activations up to which a unit is near a clone.

    Returns:
        The monitor.

    Raises:
        ValueError: thresholds out of range or in the wrong order, a window of less than 4, a probe without samples; on
            `init` and `update`, parameters of another network.
    """
    limits = thresholds(on, off)
    check("clone_tolerance", clone_tolerance, minimum=0.0)
    start_warnings(window)  # refuses a window that is too short
    batch = jax.tree.map(jnp.asarray, pair(probe))
    measure = partial(_update, model, batch, loss, limits, clone_tolerance)
    compiled = jax.jit(measure)

    def update(
        state: MonitorState, params: Params, step: ArrayLike, train_loss: ArrayLike = np.nan
    ) -> tuple[MonitorState, MonitorReport]:
        variables = _variables(params)
        _check_names(model, variables)
        return compiled(state, variables, jnp.asarray(step, jnp.int32), jnp.asarray(train_loss, float))

    return Monitor(partial(_init, model, batch, loss, window), update)


def life_table(reports: Sequence[MonitorReport]) -> LifeTable:
    """The lives of units from the reports of a run, for `lopjax.detection.save_lives` and the doctor.

    Raises:
        ValueError: no report.
    """
    if not reports:
        raise ValueError("no report: there are no lives to tell")
    steps = np.array([int(one.step) for one in reports])
    rows: list[dict[str, np.ndarray]] = [jax.device_get(one.status) for one in reports]
    return LifeTable(steps, {space: np.stack([row[space] for row in rows]) for space in rows[0]}, {})


def _variables(params: Params) -> Variables:
    """Variables, from themselves or from parameters alone."""
    is_whole = isinstance(params, Mapping) and isinstance(params.get("params"), Mapping)
    return params if is_whole else {"params": params}


def _check_names(model: Model, variables: Variables) -> None:
    """Whether the parameters are those of the model, by their names, in dictionaries."""
    params = variables["params"]
    model.wiring.labels_of(params)
    if not isinstance(params, Mapping):
        raise ValueError(
            f"params of type {type(params).__name__}: must be nested dictionaries, as the model has them; of a traced "
            "network pass traced.split(params)"
        )


def _init(model: Model, batch: tuple[Any, Any], loss: Any, window: int, params: Params) -> MonitorState:
    variables = _variables(params)
    _check_names(model, variables)
    check_batch(model, variables, batch, loss=loss)
    shapes = jax.eval_shape(lambda v: unit_nearness(model, v, batch, loss=loss), variables)
    status = {space: jnp.zeros(model.wiring.size(space), jnp.int8) for space in shapes}
    distances = {space: jnp.full((window, len(one)), jnp.nan) for space, one in status.items()}
    partners = {space: jnp.zeros((window, len(one)), jnp.int32) for space, one in status.items()}
    held, steps = jax.tree.map(jnp.asarray, variables["params"]), jnp.full(window, -1, jnp.int32)
    return MonitorState(start_warnings(window), start_lives(status), distances, partners, steps, held, jnp.int32(-1))


def _update(
    model: Model,
    batch: tuple[Any, Any],
    loss: Any,
    limits: Thresholds,
    clone_tolerance: ArrayLike,
    state: MonitorState,
    variables: Variables,
    step: jax.Array,
    train_loss: jax.Array,
) -> tuple[MonitorState, MonitorReport]:
    params, is_first = variables["params"], state.step < 0
    elapsed = jnp.where(is_first, 1, jnp.maximum(step - state.step, 1))
    move = jax.tree.map(lambda new, old: (new - old) / elapsed.astype(new.dtype), params, state.params)
    nearness = unit_nearness(model, variables, batch, step=move, loss=loss)
    status = {space: unit_status(one, clone_tolerance) for space, one in nearness.items()}
    before = {space: jnp.where(is_first, status[space], state.lives.status[space]) for space in status}
    lives, events = update_lives(state.lives._replace(status=before), status, step)
    value = loss(model.apply(variables, batch[0], dropout_rate=0.0).logits, batch[1])
    train = jnp.where(jnp.isnan(train_loss), value, train_loss)
    symptoms = symptoms_of(model, variables, nearness, batch[0], train, value)
    memory, warnings = update_warnings(state.warnings, symptoms, step, limits)
    near = {space: one.activations for space, one in nearness.items()}
    partner = {space: jnp.where(one.multiple < 0, -1 - one.unit, one.unit) for space, one in near.items()}
    distances = {space: _pushed(state.distances[space], one.distance) for space, one in near.items()}
    partners = {space: _pushed(state.partners[space], one.astype(jnp.int32)) for space, one in partner.items()}
    steps = jnp.append(state.steps[1:], step)
    forecast = {space: _forecast(found, partners[space], steps) for space, found in distances.items()}
    held = MonitorState(memory, lives, distances, partners, steps, jax.tree.map(jnp.asarray, params), step)
    return held, MonitorReport(step, warnings, events, status, nearness, forecast, value)


def _pushed(window: jax.Array, row: jax.Array) -> jax.Array:
    return jnp.concatenate([window[1:], row[None]])


def _forecast(distances: jax.Array, partners: jax.Array, steps: jax.Array) -> Forecast:
    """Of every unit of a space, from its distances at the measurements of the window.

    They are of one pair: those since the unit that is the nearest now became so. The smallest of several distances,
    each by turns, has a slope that none of them has. Of three measurements on a line by chance the standard error is
    small: it is widened as Student's t is.
    """
    is_same = jnp.flip(jnp.cumprod(jnp.flip(partners == partners[-1], 0), axis=0), 0) > 0
    distances = jnp.where(is_same, distances, jnp.nan)
    rates = jax.vmap(lambda one: measured_rate(one, steps=steps), in_axes=1)(distances)
    counts = jnp.sum(jnp.isfinite(distances) & (distances > 0), axis=0)
    widened = jnp.asarray(student.isf(_TAIL, np.maximum(np.arange(len(steps) + 1) - 2, 1)) / 2, distances.dtype)[counts]
    return trap_forecast(distances[-1], rates.exponent, rates.standard_error * widened)
