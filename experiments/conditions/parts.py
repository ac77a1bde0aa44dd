"""The conditions experiment as a list of parts: one per condition, with a record per network."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.conditions.config import CONDITIONS, Condition, Config
from experiments.conditions.networks import LOSSES, Setup, place
from lopjax.runs.schedule import Part
from lopjax.stability import unit_blocks

# A search that ends with a larger `SpaceBlocks.gradient_residual` has not found its stationary point.
STATIONARY = 1e-8


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
    """The verdict on the curvature of the clones of one network."""
    model, loss, factor = setup.models[condition.name], LOSSES[condition.loss], setup.config.factor
    variables, batch = place(setup, condition, seed)
    record: dict[str, Any] = {"condition": condition.name, "seed": seed}
    is_critical = condition.point == "critical"
    blocks = unit_blocks(model, variables, batch, factor, loss=loss, near_critical=is_critical)
    total = blocks.total
    residual = max(float(np.max(space.gradient_residual)) for space in blocks.spaces.values())
    if is_critical and not residual <= STATIONARY:
        return {**record, "verdict": "NOT_REACHED", "extremes": [total.min_eigenvalue, total.max_eigenvalue]}
    return {**record, "verdict": total.verdict.name, "extremes": [total.min_eigenvalue, total.max_eigenvalue]}
