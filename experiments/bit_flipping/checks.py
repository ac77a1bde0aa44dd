"""What a config may hold: every field, and every value that a grid gives it, is checked before compilation."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, get_args

from experiments.bit_flipping.config import ActivationName, Config
from experiments.bit_flipping.methods import METHODS, NUMBERS
from experiments.kit.grid import check_grid
from lopjax.training.bit_flipping import BLOCK

# Steps are counted in int32; the numbers of methods are float32, in which smaller ones would be 0.
MOST_STEPS = 2**31 - 1
LEAST_FLOAT = 2.0**-126


class Range(NamedTuple):
    """What a number may be, as a test and in words."""

    allows: Callable[[float], bool]
    text: str


_NON_NEGATIVE = Range(lambda value: 0 <= value < math.inf, "non-negative and finite")
_BELOW_ONE = Range(lambda value: 0 <= value < 1, "in [0, 1)")
_UP_TO_ONE = Range(lambda value: 0 <= value <= 1, "in [0, 1]")
_STEPS = Range(lambda value: 0 <= value <= MOST_STEPS and value == int(value), f"an integer in 0..{MOST_STEPS}")
RANGES: dict[str, Range] = {
    **dict.fromkeys(NUMBERS, _NON_NEGATIVE),
    **dict.fromkeys(("shrink", "upgd_decay", "utility_decay"), _BELOW_ONE),
    **dict.fromkeys(("replacement_rate", "percentile"), _UP_TO_ONE),
    "maturity": _STEPS,
}
"""The range of every number that a grid may vary."""


def check_config(config: Config) -> None:
    """Refuse whatever is out of range; the stream checks its own numbers.

    Raises:
        ValueError: the message names the field, its value and what is allowed.
    """
    _check_lists(config)
    _check_steps(config)
    _check("probe_samples", config.probe_samples, config.probe_samples >= 2, "at least 2")
    _check("target_units", config.target_units, config.target_units >= 1, "at least 1")
    _check("beta", config.beta, 0 < config.beta <= 1, "in (0, 1]: the share of its pattern at which a unit fires")
    check_grid(config.grid, NUMBERS)
    for name, value in _numbers(config):
        _check(name, value, RANGES[name].allows(value), RANGES[name].text)
    for axis in config.grid:
        if not any(axis.name in METHODS[name].reads for name in config.methods):
            readers = [name for name in METHODS if axis.name in METHODS[name].reads]
            raise ValueError(f"grid {axis}: none of methods={config.methods} reads it; {' and '.join(readers)} would")


def _check_lists(config: Config) -> None:
    for name in ("methods", "activations", "widths", "step_sizes", "seeds"):
        values = getattr(config, name)
        _check(name, values, len(set(values)) == len(values) > 0, "distinct, at least one")
    for name, allowed in (("methods", METHODS), ("activations", get_args(ActivationName))):
        _check(name, getattr(config, name), set(getattr(config, name)) <= set(allowed), f"among {list(allowed)}")
    _check("seeds", config.seeds, all(0 <= seed < 2**31 for seed in config.seeds), "in 0..2147483647")
    is_count = all(isinstance(width, int) and width >= 1 for width in config.widths)
    _check("widths", config.widths, is_count, "integers of at least 1")
    has_pairs = "split_clones" not in config.methods or min(config.widths) >= 2
    _check("widths", config.widths, has_pairs, "at least 2 with split_clones: a single unit has no clone")
    is_positive = all(LEAST_FLOAT <= size < math.inf for size in config.step_sizes)
    _check("step_sizes", config.step_sizes, is_positive, f"finite and at least {LEAST_FLOAT:.2g}, the least of float32")


def _check_steps(config: Config) -> None:
    for name in ("steps", "flip_every"):
        value = getattr(config, name)
        _check(name, value, 1 <= value <= MOST_STEPS, f"in 1..{MOST_STEPS}")
    is_divisor = config.record_every >= 1 and config.steps % config.record_every == 0
    _check("record_every", config.record_every, is_divisor, f"a positive divisor of steps={config.steps}")
    is_multiple = config.act_every >= 1 and config.act_every % BLOCK == 0
    _check("act_every", config.act_every, is_multiple, f"a positive multiple of {BLOCK}")


def _numbers(config: Config) -> Iterator[tuple[str, float]]:
    """Every number with every value it takes, in the config and in the grid."""
    for name in NUMBERS:
        yield name, getattr(config, name)
    for axis in config.grid:
        yield from ((axis.name, value) for value in axis.values)


def _check(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value}: must be {allowed}")
