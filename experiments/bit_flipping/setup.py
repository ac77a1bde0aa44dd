"""What a run is built from, checked before anything is compiled: the stream, the networks, the programs."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.bit_flipping.checks import check_config
from experiments.bit_flipping.config import Config
from experiments.bit_flipping.methods import NUMBERS, Curve, curves_of, groups_of
from experiments.kit.experiment import NO_RESOURCES, Resources
from experiments.kit.grid import axes_of
from experiments.kit.methods import Group, numbers_of
from lopjax.model import Model, Variables
from lopjax.models import mlp, recorded
from lopjax.models.linen import from_linen
from lopjax.models.mlp import MLP
from lopjax.training import Stream, bit_flipping
from lopjax.training.bit_flipping import Problem

# Gains of PyTorch's `kaiming_uniform_`; the official code takes that of ReLU for ELU and swish.
GAINS = {"sigmoid": 1.0, "tanh": 5 / 3, "elu": 2**0.5, "relu": 2**0.5, "leaky_relu": 2**0.5, "swish": 2**0.5}


class Setup(NamedTuple):
    """Config and everything built from it before compilation.

    Attributes:
        config: as given.
        problem: the numbers of the stream.
        stream: inputs and targets.
        curves: rows of the table.
        groups: programs.
    """

    config: Config
    problem: Problem
    stream: Stream
    curves: list[Curve]
    groups: list[Group]

    def model_of(self, group: Group) -> Model:
        """The network that all lanes of a group train."""
        point = dict(group.lanes[0].point)
        return network(self.config.num_inputs, int(point["width"]), str(point["activation"]))


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean of `(y - t)²`, without the half, as in the official code."""
    return jnp.mean(jnp.square(outputs - targets))


@recorded
def network(num_inputs: int, width: int, activation: str) -> Model:
    """One hidden layer, or none for width 0, initialised as in the official code.

    Weights are uniform with standard deviation `gain / sqrt(fan_in)`, the gain 1 at the output; biases are 0.
    """
    name = {"swish": "silu"}.get(activation, activation)
    model = mlp((num_inputs,), (width,), 1, activation=name) if width else _linear(num_inputs)

    def init(key: jax.Array) -> Variables:
        params = model.init(key)["params"]
        layers = {}
        for index, layer in enumerate(sorted(params, key=lambda layer: layer == "classes")):
            shape, dtype = params[layer]["kernel"].shape, params[layer]["kernel"].dtype
            bound = (1.0 if layer == "classes" else GAINS[activation]) * math.sqrt(3 / shape[0])
            kernel = jax.random.uniform(jax.random.fold_in(key, index), shape, dtype, -bound, bound)
            layers[layer] = {"kernel": kernel, "bias": jnp.zeros_like(params[layer]["bias"])}
        return {"params": layers}

    return model._replace(init=init)


def _linear(num_inputs: int) -> Model:
    """One dense layer, which `lopjax.models.mlp` does not make."""
    sizes, options = (("classes", 1),), ("identity", "none", False, 0.0, "pytorch", "float32")
    return from_linen(MLP(sizes, *options), (num_inputs,))


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config and build the stream; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
    """
    check_config(config)
    numbers = (config.num_inputs, config.num_slow, config.flip_every, config.target_units, config.beta)
    problem = Problem(*numbers, config.flip, config.threshold)
    curves = curves_of(config.methods, config.activations, config.widths, config.step_sizes, axes_of(config))
    groups = groups_of(curves, config.seeds, numbers_of(config, NUMBERS))
    return Setup(config, problem, bit_flipping(*problem), curves, groups)
