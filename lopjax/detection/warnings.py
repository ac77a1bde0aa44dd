"""The four signatures of lost plasticity as detectors: each with a score, two thresholds, and a memory."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from lopjax.arguments.batches import as_numbers
from lopjax.arguments.integers import as_integer
from lopjax.arguments.numbers import check_numbers
from lopjax.detection.nearness import UnitNearness
from lopjax.detection.trends import trend
from lopjax.metrics import effective_rank
from lopjax.model import Model, Variables, outputs_of, samples_by_units
from lopjax.optim.checks import check

SIGNATURES = ("plateau", "rank_collapse", "cloning", "dying")
"""Names of the detectors, in the order of all arrays."""

ON: Mapping[str, float] = {"plateau": 2.0, "rank_collapse": 0.3, "cloning": 0.95, "dying": 0.3}
OFF: Mapping[str, float] = {"plateau": 1.0, "rank_collapse": 0.15, "cloning": 0.9, "dying": 0.2}
"""Default thresholds: a warning begins at ON and ends below OFF."""

SENTENCES: Mapping[str, str] = {
    "plateau": "the training loss no longer falls while the validation loss rises",
    "rank_collapse": "the effective rank has fallen and not come back",
    "cloning": "units repeat one another",
    "dying": "units are dead",
}

_FALLING = -1.645


class Symptoms(NamedTuple):
    """What the detectors read at one measurement; NaN where it was not measured.

    Attributes:
        train_loss: on the stream.
        validation_loss: on data that are not trained on.
        effective_rank: effective rank of the activations on a fixed probe, mean over sites.
        clone_r2: share of the variance that clusters of clones explain; `pair_r2` where the clusters are not known.
        dead_fraction: fraction of all units that are dead on a fixed probe.
    """

    train_loss: Any = np.nan
    validation_loss: Any = np.nan
    effective_rank: Any = np.nan
    clone_r2: Any = np.nan
    dead_fraction: Any = np.nan


class WarningState(NamedTuple):
    """Memory of the detectors; a state for scan and vmap.

    Attributes:
        history: the last measurements, oldest first, `(window,)` each, NaN before the first.
        best_rank: largest effective rank so far.
        is_on: which warnings are on, `(4,)`, in the order of `SIGNATURES`.
        since: step at which each began, int32; -1 where it is off.
    """

    history: Symptoms
    best_rank: Float[Array, ""]
    is_on: Bool[Array, "4"]
    since: Int[Array, "4"]


class Warnings(NamedTuple):
    """What the detectors say at one measurement, `(4,)` each, in the order of `SIGNATURES`.

    Attributes:
        scores: comparable with the thresholds of the same detector; NaN where nothing is known.
        is_on: score at or beyond ON, or on before and not below OFF; an unknown score leaves it what it was.
        since: step at which the warning began; -1 where it is off.
    """

    scores: Float[Array, "4"]
    is_on: Bool[Array, "4"]
    since: Int[Array, "4"]


class Thresholds(NamedTuple):
    """When a warning begins, and below which score it ends; `(4,)` in the order of `SIGNATURES`."""

    on: Float[Array, "4"]
    off: Float[Array, "4"]


def thresholds(on: Mapping[str, ArrayLike] = ON, off: Mapping[str, ArrayLike] = OFF) -> Thresholds:
    """Thresholds by name; those that are left out are the defaults. Traced numbers pass unchecked.

    Raises:
        ValueError: an unknown name, a number that is not finite or negative, a share above 1, or an end that is not
            below its beginning.
    """
    for bounds in (on, off):
        if unknown := sorted(set(bounds) - set(SIGNATURES)):
            raise ValueError(f"thresholds {unknown}: must be of {list(SIGNATURES)}")
    begin, end = {**ON, **on}, {**OFF, **off}
    for name in SIGNATURES:
        most = np.inf if name == "plateau" else 1.0
        check(f"on[{name!r}]", begin[name], minimum=0.0, maximum=most)
        check(f"off[{name!r}]", end[name], minimum=0.0, maximum=most)
        if not any(isinstance(each[name], Tracer) for each in (begin, end)) and not np.all(
            np.asarray(end[name]) < np.asarray(begin[name])
        ):
            raise ValueError(
                f"{name}: on={begin[name]}, off={end[name]}: a warning must end below where it begins, off < on, or "
                "it flickers"
            )
    return Thresholds(*(jnp.stack([jnp.asarray(each[name], float) for name in SIGNATURES]) for each in (begin, end)))


def start_warnings(window: int = 12) -> WarningState:
    """Detectors that have seen nothing.

    Args:
        window: measurements over which trends are tested, and for which a rank must have stayed low; at least 4.

    Raises:
        ValueError: a smaller one.
    """
    window = as_integer(window, 4, f"window={window!r}: must be an integer of at least 4 measurements")
    empty = jnp.full(window, jnp.nan)
    return WarningState(Symptoms(*[empty] * 5), jnp.asarray(-jnp.inf), jnp.zeros(4, bool), jnp.full(4, -1, jnp.int32))


def update_warnings(
    state: WarningState, symptoms: Symptoms, step: ArrayLike, limits: Thresholds | None = None
) -> tuple[WarningState, Warnings]:
    """One measurement. Pure.

    Scores of the detectors:

    - plateau: z of the trend of the validation loss over the window, 0 while the training loss falls (z below -1.645);
      NaN where the last of either was not measured, or fewer than four of the window were;
    - rank_collapse: smallest of `1 - rank / largest rank so far` over the last window: how far the rank has fallen and
      stayed; NaN until the window is full, and where a rank in it is;
    - cloning: R² of clones, as measured;
    - dying: share of dead units, as measured.

    What was not measured, or is not finite, gives NaN and changes no warning: a network that has diverged has not
    recovered.

    Args:
        state: state of the detectors.
        symptoms: symptoms of this measurement.
        step: step of this measurement.
        limits: result of `thresholds`; the defaults if None.

    Raises:
        ValueError: a symptom that is not one number.
    """
    for name, value in symptoms._asdict().items():
        check_numbers(name, value, ranks=0)
    limits = thresholds() if limits is None else limits
    history = Symptoms(
        *(
            jnp.concatenate([old[1:], jnp.asarray(new, old.dtype)[None]])
            for old, new in zip(state.history, symptoms, strict=True)
        )
    )
    best = jnp.fmax(state.best_rank, history.effective_rank[-1])
    fallen = 1 - history.effective_rank / best
    losses = history.train_loss, history.validation_loss
    train, validation = (trend(each).z for each in losses)
    plateau = jnp.where(train > _FALLING, jnp.maximum(validation, 0), 0.0)
    plateau = jnp.where(jnp.all(jnp.stack([_shows_a_trend(each) for each in losses])), plateau, jnp.nan)
    scores = jnp.stack([plateau, jnp.maximum(jnp.min(fallen), 0), history.clone_r2[-1], history.dead_fraction[-1]])
    is_on = (scores >= limits.on) | (state.is_on & ~(scores < limits.off))
    since = jnp.where(is_on, jnp.where(state.is_on, state.since, step), -1).astype(jnp.int32)
    return WarningState(history, best, is_on, since), Warnings(scores, is_on, since)


def _shows_a_trend(values: Float[Array, " window"]) -> Bool[Array, ""]:
    """Whether the last measurement is a number and at least four are: with fewer a trend's z is 0, as that of none."""
    return jnp.isfinite(values[-1]) & (jnp.sum(jnp.isfinite(values)) >= 4)


def describe_warnings(warnings: Warnings) -> list[str]:
    """A sentence for each warning that is on, off the device."""
    warnings = jax.device_get(warnings)
    return [
        f"{name} since step {int(warnings.since[place])} (score {float(warnings.scores[place]):.3g}): {SENTENCES[name]}"
        for place, name in enumerate(SIGNATURES)
        if warnings.is_on[place]
    ]


def symptoms_of(
    model: Model,
    variables: Variables,
    nearness: Mapping[str, UnitNearness],
    inputs: Any,
    train_loss: ArrayLike = np.nan,
    validation_loss: ArrayLike = np.nan,
) -> Symptoms:
    """What the detectors read, of a network on a fixed probe. Pure.

    Args:
        model: any model.
        variables: its variables.
        nearness: result of `unit_nearness` on the same probe.
        inputs: inputs of the probe.
        train_loss: training loss on the stream.
        validation_loss: loss on data that are not trained on; the loss on the probe will do.

    Returns:
        Symptoms; NaN of activations that are not finite, and of a network without units.
    """
    if not nearness:
        return Symptoms(train_loss, validation_loss)
    taps = outputs_of(model, variables, as_numbers("inputs", inputs), dropout_rate=0.0).taps
    sites = [site for space in nearness for site in model.wiring.sites_of(space)]
    ranks = jnp.stack([effective_rank(samples_by_units(taps[site].post)) for site in sites])
    is_dead = jnp.concatenate([one.is_dead for one in nearness.values()])
    is_unknown = jnp.concatenate([jnp.isnan(one.activations.distance) for one in nearness.values()])
    dead_fraction = jnp.where(jnp.any(is_unknown), jnp.nan, jnp.mean(is_dead, dtype=float))
    return Symptoms(train_loss, validation_loss, jnp.mean(ranks), pair_r2(nearness), dead_fraction)


def pair_r2(nearness: Mapping[str, UnitNearness]) -> Float[Array, ""]:
    """R² of living units and their nearest, mean over units: `1 - d²/2`, at least 0; clusters need not be known.

    For two units of one length d² is `2 (1 - cosine)`, so this is the cosine: 1 for clones, near 0 for units that have
    nothing in common. NaN if no unit is alive, or one is not finite.
    """
    if not nearness:
        return jnp.asarray(jnp.nan)
    distance = jnp.concatenate([one.activations.distance for one in nearness.values()])
    is_alive = jnp.isfinite(distance) & ~jnp.concatenate([one.is_dead for one in nearness.values()])
    explained = jnp.maximum(1 - jnp.square(jnp.where(is_alive, distance, 0)) / 2, 0)
    is_known = jnp.any(is_alive) & ~jnp.any(jnp.isnan(distance))
    return jnp.sum(explained * is_alive) / jnp.where(is_known, jnp.sum(is_alive), jnp.nan)
