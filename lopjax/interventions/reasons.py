"""Why an intervention did or did not act: codes for the logs, and their sentences."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from lopjax.training.interventions import Report

NOT_ITS_STEP, NO_UNIT_CHOSEN, CHANGED, NONE_MATURE, NOT_PRESERVED, NO_ESCAPE, OPTIMIZER_STARTED, AS_IT_WAS = range(8)
REASONS = (
    "this was not one of its steps",
    "no unit met its condition",
    "it has changed the network",
    "no unit was old enough",
    "it would have changed the function by more than its tolerance",
    "no direction of descent leads away from the clones",
    "it has reset the optimizer",
    "it has left every parameter as it was",
)
"""By code: `Report.reason`."""


def reason_of(is_due: Bool[Array, ""], touched: dict[str, Bool[Array, " units"]]) -> Int32[Array, ""]:
    """The code of a step that changes chosen units."""
    is_any = jnp.any(jnp.array([jnp.any(chosen) for chosen in touched.values()]))
    return jnp.where(is_due, jnp.where(is_any, CHANGED, NO_UNIT_CHOSEN), NOT_ITS_STEP).astype(jnp.int32)


def describe(report: Report, step: int) -> str:
    """One sentence about a report, on the host: what was done, to how many units, or why nothing was done.

    For a method that waits until units are mature it says how many are, so that a method that never acts, because the
    run is shorter than the maturity, is noticed at once.

    Args:
        report: report about one network.
        step: number of the step, from 0.
    """
    report = jax.device_get(report)
    counts = {space: f"{int(np.sum(chosen))} of {np.size(chosen)}" for space, chosen in report.touched.items()}
    acted = ", ".join(f"{space} {count}" for space, count in counts.items() if not count.startswith("0 "))
    mature = ""
    if "mature" in report.logs:
        mature = f"; {int(report.logs['mature'])} of {int(report.logs['units'])} units mature by step {step}"
    return f"step {step}: {REASONS[int(report.reason)]}{': ' + acted if acted else ''}{mature}"
