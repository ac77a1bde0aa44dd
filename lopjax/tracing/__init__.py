"""Any network, no labels: the wiring read from the program itself.

`trace_model(apply, params, inputs)` reads the unit spaces of any JAX function from its jaxpr, by rules each of which is
sound, and returns a `Model` on which everything in the library runs.
"""

from lopjax.tracing.agreement import wiring_agrees
from lopjax.tracing.spaces import Space
from lopjax.tracing.traced import Traced, trace_model
from lopjax.tracing.verify import Verification

__all__ = ["Space", "Traced", "Verification", "trace_model", "wiring_agrees"]
