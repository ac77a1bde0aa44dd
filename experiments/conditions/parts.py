"""The conditions experiment as a list of parts: one per condition, with a record per network."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.conditions.config import CONDITIONS, Condition, Config
from experiments.conditions.networks import LOSSES, Batch, Setup, decayed, is_reached, place
from experiments.conditions.report import AT_A_KINK, NOT_REACHED
from lopjax.activations import activation
from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.manifolds import cloned_manifold, normal_basis
from lopjax.model import Model, Params, Variables
from lopjax.runs.schedule import Part
from lopjax.stability import Attraction, Stability, unit_blocks
from lopjax.tolerance import CERTAIN_FROM

# Rounding of a dense Hessian in float64 is far below this share of its largest eigenvalue.
CERTAIN = 1e-9
# A pre-activation this near to a kink is at it.
KINK = 1e-9


def parts(config: Config, setup: Setup) -> list[Part]:
    """All parts of a run."""
    return [
        Part(condition.name, 1, partial(_measure_all, setup, condition), lambda: jnp.zeros(()), len(config.seeds))
        for condition in CONDITIONS
    ]


def _measure_all(setup: Setup, condition: Condition, nothing: Any) -> tuple[Any, list[dict[str, Any]]]:
    del nothing
    with jax.enable_x64(True):
        records = [measure(setup, condition, seed) for seed in setup.config.seeds]
    return jnp.zeros(()), records


def measure(setup: Setup, condition: Condition, seed: int) -> dict[str, Any]:
    """The verdict on the clones of one network: on their curvature or, under weight decay, on whether they attract."""
    variables, batch = place(setup, condition, seed)
    record: dict[str, Any] = {"condition": condition.name, "seed": seed}
    if not condition.network.startswith("mlp"):
        return {**record, **_dense(setup, condition, variables, batch)}
    model, loss = setup.models[condition.name], LOSSES[condition.loss]
    # Under decay the loss itself has a gradient there, which is no error of the blocks.
    is_critical = condition.point == "critical" and not condition.decay
    total = unit_blocks(model, variables, batch, setup.config.factor, loss=loss, near_critical=is_critical).total
    record["extremes"] = [total.min_eigenvalue, total.max_eigenvalue]
    if condition.point == "critical" and not _is_there(setup, condition, variables, batch):
        return {**record, "verdict": NOT_REACHED}
    if not condition.decay:
        return {**record, "verdict": total.verdict.name}
    if _is_at_a_kink(model, variables, batch):
        return {**record, "verdict": AT_A_KINK}
    rate = condition.decay + total.min_eigenvalue
    is_certain = abs(rate) > CERTAIN_FROM * total.tolerance
    sign = (Attraction.ATTRACTS if rate > 0 else Attraction.REPELS) if is_certain else Attraction.UNDECIDED
    return {**record, "rate": float(rate), "verdict": sign.name}


def _is_there(setup: Setup, condition: Condition, variables: Variables, batch: Batch) -> bool:
    """Whether the search for a stationary point, of the loss with decay, has arrived at one."""
    vector = np.asarray(ravel_pytree(variables["params"])[0])
    return is_reached(np.asarray(decayed(setup, condition, variables).gradient(vector, batch)), vector)


def _is_at_a_kink(model: Model, variables: Variables, batch: Batch) -> bool:
    """Whether a unit with a kink at 0 is at it on some sample, as a unit is whose weights decay has driven to 0."""
    taps = model.apply(variables, batch[0]).taps.values()
    return any(
        bool(jnp.min(jnp.abs(tap.pre)) < KINK) for tap in taps if 0.0 in (activation(tap.activation).kinks or ())
    )


def _dense(setup: Setup, condition: Condition, variables: Variables, batch: Batch) -> dict[str, Any]:
    """Verdict from all eigenvalues of the normal Hessian, for networks that the closed form does not cover.

    Signs are those of eigenvalues beyond `CERTAIN` times the largest; what lies within is not counted as either.
    """
    model, factor = setup.models[condition.name], setup.config.factor
    cloned = clone_variables(variables, model.wiring, factor)["params"]
    values = np.linalg.eigvalsh(np.asarray(_normal_hessian(model, LOSSES[condition.loss], factor)(cloned, batch)))
    threshold = CERTAIN * np.abs(values).max()
    has_negative, has_positive = bool(values[0] < -threshold), bool(values[-1] > threshold)
    verdict = Stability.SADDLE.name if has_negative and has_positive else Stability.UNDECIDED.name
    return {"verdict": verdict, "extremes": [float(values[0]), float(values[-1])]}


@cache
def _normal_hessian(model: Model, loss: Any, factor: int) -> Any:
    """`(parameters, batch) -> Hessian of the loss across the manifold of clones`, compiled once for all networks."""
    wide = widen(model, factor)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(wide.init, jax.random.key(0))["params"])
    rows = normal_basis(cloned_manifold(zeros, wide.wiring, uniform_partition(wide.wiring, factor)))
    unravel = ravel_pytree(zeros)[1]

    def along(coordinates: jax.Array, params: Params, batch: Batch) -> jax.Array:
        moved = jax.tree.map(jnp.add, params, unravel(coordinates @ rows))
        return loss(wide.apply({"params": moved}, batch[0]).logits, batch[1])

    return jax.jit(lambda params, batch: jax.hessian(along)(jnp.zeros(len(rows)), params, batch))
