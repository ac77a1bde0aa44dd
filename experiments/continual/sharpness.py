"""How sharp the loss of the last task is where a run has ended, for every method and its fresh networks.

    python -m experiments.continual.sharpness runs/continual/gaussian5

Prints the largest eigenvalue of the Hessian of the mean loss on the examples of the last task (as many as the probe
has), and the loss there, medians over seeds; and the logarithm of the ratio to the fresh network of the same seed, a
mean with its 95 % interval.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments.continual.command import print_table_of_a_run
from experiments.continual.config import PRESETS, Config
from experiments.continual.methods import fresh, is_fresh, label_of, lanes_of, method_of
from experiments.continual.problem import Problem, make_problem
from experiments.continual.report import has_diverged
from experiments.kit.intervals import interval
from experiments.kit.terminal import Table
from lopjax.curvature import extreme_eigenvalues, hvp
from lopjax.training import task_examples

if TYPE_CHECKING:
    from lopjax.model import Model
    from lopjax.runs import RunData

# Lanczos steps: the largest eigenvalue of a Hessian stands out, and forty steps find it to within one per cent.
STEPS = 40


def config_of(run: "RunData") -> Config:
    """The config of a run as it was.

    Raises:
        ValueError: a run of another experiment.
    """
    if run.experiment != "continual":
        raise ValueError(f"{run.folder}: a run of experiments.{run.experiment}; must be one of experiments.continual")
    recorded = dict(run.config)
    preset = next(iter(PRESETS[recorded["model"]].values()))
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items()}
    net = {name: tuple(value) if isinstance(value, list) else value for name, value in recorded["net"].items()}
    return replace(preset, **{**fields, "net": replace(preset.net, **net)})


def last_task(config: Config, problem: Problem, seed: int) -> tuple[Any, Any]:
    """Inputs and labels of the last task that a seed has met."""
    data_key = jax.random.split(jax.random.key(seed, impl="philox4x32"), 3)[2]
    key = jax.random.split(data_key)[0]  # the key of the stream, as `make_chunk` splits it
    stored, labels = task_examples(problem.train, problem.train.data, key, config.num_tasks - 1, config.probe_samples)
    return problem.inputs(stored, None), labels


def sharpness(model: "Model", problem: Problem, variables: Any, batch: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    """Largest eigenvalue of the Hessian in all parameters, in eval mode, and the loss. Pure; use under jit."""

    def loss(params: Any) -> jax.Array:
        return problem.loss(model.apply({**variables, "params": params}, batch[0]).logits, batch[1])

    params = variables["params"]
    extremes = extreme_eigenvalues(lambda v: hvp(loss, params, v), params, STEPS, jax.random.key(0))
    return extremes.eigenvalues[-1], loss(params)


def sharpness_table(run: "RunData", data_dir: Path | None = None) -> Table:
    """A row per method and fresh network; NaN where the loss of a seed was not finite."""
    config, model = config_of(run), run.model("network")
    problem = make_problem(config, data_dir)
    measure, by_name = jax.jit(lambda *given: sharpness(model, problem, *given)), {}
    for name in lanes_of(config.methods, config.fresh):
        networks = run.variables(name)["network"]
        values = []
        for index, seed in enumerate(config.seeds):
            network = jax.tree.map(lambda leaf, index=index: leaf[index], networks)
            is_known = not has_diverged(run, name, seed)
            values.append(measure(network, last_task(config, problem, seed)) if is_known else (math.nan, math.nan))
        by_name[name] = np.array(values)
    rows = []
    for name, values in by_name.items():
        control = by_name.get(fresh(method_of(name).control))
        text = "-"
        if control is not None and not is_fresh(name):
            ratio = interval(np.log(values[:, 0] / control[:, 0]))
            text = "-" if math.isnan(ratio.mean) else f"{ratio.mean:+.2f}"
            text += "" if math.isnan(ratio.half) else f" ± {ratio.half:.2f}"
        rows.append((label_of(name), *(f"{value:.3g}" for value in np.median(values, axis=0)), text))
    title = f"{run.folder}: after task {config.num_tasks}, on its examples, {len(config.seeds)} seeds"
    return Table(title, ("method", "largest eigenvalue", "loss", "log ratio to fresh"), rows)


if __name__ == "__main__":
    print_table_of_a_run("experiments.continual.sharpness", __doc__, sharpness_table, "complete")
