"""What is certain about a lane's clones: whether they are trapped, and whether their manifold is stable."""

from typing import Any

import jax
import numpy as np

from experiments.cloning.setup import Setup
from lopjax.certificates import certify_cloned, parameter_tolerance
from lopjax.cloning import uniform_partition
from lopjax.stability import unit_blocks_of_clones


def certificate_of(setup: Setup, variables: Any, probe: Any) -> str:
    """Name of the `CloneVerdict` of a clone's variables, judged on the images and labels of the probe."""
    partition = uniform_partition(setup.wide.wiring, setup.config.factor)
    batch = setup.preprocess.inputs(probe[0]), probe[1]
    return certify_cloned(setup.wide, jax.device_put(variables), batch, partition).verdict.name


def stability_of(setup: Setup, variables: Any, probe: Any) -> dict[str, Any] | None:
    """Stability of the manifold on which clones with equal weights lie, in double precision.

    Returns:
        The fields of a `StabilityReport`, its verdict by name; None where the weights are not equal, so that there
        is no such manifold, and where nothing was cloned.
    """
    if setup.config.factor == 1:
        return None
    partition = uniform_partition(setup.wide.wiring, setup.config.factor)
    with jax.enable_x64(True):
        inputs = setup.preprocess.inputs(probe[0])
        double = jax.device_put(jax.tree.map(_as_double, (variables, inputs)))
        batch = double[1], probe[1]
        allowed = parameter_tolerance(variables["params"])
        try:
            blocks = unit_blocks_of_clones(setup.wide, double[0], batch, partition, bc_tolerance=allowed)
        except ValueError:  # not block-constant
            return None
    return blocks.total._replace(verdict=blocks.total.verdict.name)._asdict()


def _as_double(leaf: Any) -> np.ndarray:
    """Numbers in double precision; tokens stay integers."""
    array = np.asarray(leaf)
    return array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float64)
