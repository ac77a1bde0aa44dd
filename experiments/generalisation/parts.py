"""The parts of a run: one an activation, all seeds and settings in one program."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generalisation.config import Config, Setting, settings
from experiments.generalisation.setup import Setup
from experiments.generalisation.training import live
from lopjax.runs.schedule import Part
from lopjax.training import over_lanes

Records = list[dict[str, Any]]


def parts(config: Config, setup: Setup) -> list[Part]:
    """All parts of a run."""
    num, steps = len(settings(config)), sum(each.steps + 2 * config.next_steps for each in settings(config).values())
    return [
        Part(
            name,
            steps * len(config.seeds),
            partial(_sweep, setup, name),
            lambda: jnp.zeros(()),
            num * len(config.seeds),
        )
        for name in config.activations
    ]


def _sweep(setup: Setup, name: str, nothing: Any) -> tuple[Any, Records]:
    del nothing
    config, chosen = setup.config, settings(setup.config)
    do = over_lanes(partial(live, setup.models[name], config), 2)
    lanes = [(place, seed) for place in chosen for seed in config.seeds]
    numbers = np.array([chosen[place] for place, _ in lanes], np.float32).T
    columns: Any = Setting(*numbers)._replace(steps=numbers[1].astype(np.int32))
    own, anew = jax.device_get(do(np.array([seed for _, seed in lanes]), columns, setup.train, setup.test))
    records = [
        {
            "activation": name, "knob": place[0], "place": place[1], "seed": seed, **chosen[place]._asdict(),
            **{key: float(values[lane]) for key, values in own.items()},
            **{f"anew_{key}": float(values[lane]) for key, values in anew.items()},
        }
        for lane, (place, seed) in enumerate(lanes)
    ]  # fmt: skip
    return jnp.zeros(()), records
