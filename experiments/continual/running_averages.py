"""How much of what a network with batch norm forgets is due to its running averages, which are those of the last task.

    python -m experiments.continual.running_averages runs/continual/batch

After the last task, accuracy on the test sets of earlier ones: in eval mode, with the running averages, and with the
means and variances of the test set itself in their place. Intervals are over seeds. The control is lag 0, the last
task, whose averages they are.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.continual.command import print_table_of_a_run
from experiments.continual.problem import Problem, make_problem
from experiments.continual.report import at_ends
from experiments.continual.sharpness import config_of
from experiments.kit.intervals import interval
from experiments.kit.terminal import Table
from lopjax.training import task_examples

if TYPE_CHECKING:
    from lopjax.model import Model
    from lopjax.runs import RunData


def both_ways(model: "Model", problem: Problem, variables: Any, key: jax.Array, task: jax.Array) -> jax.Array:
    """Accuracy on a task's test set with running averages, and with those of the test set. Pure; use under jit.

    Args:
        model: the network.
        problem: the tasks, which have a test set and the same outputs.
        variables: its variables.
        key: key of a seed's stream, as `make_chunk` splits it.
        task: number of the task, from 0.

    Returns:
        Two numbers.
    """
    assert problem.test is not None
    stored, labels = task_examples(problem.test, problem.test.data, key, task)
    inputs = problem.inputs(stored, None)
    logits = (model.apply(variables, inputs).logits, model.apply(variables, inputs, train=True)[0])
    return jnp.stack([problem.accuracy(one, labels) for one in logits])


def averages_table(run: "RunData", data_dir: Path | None = None) -> Table:
    """A row per lag: accuracy when the task ended, and after the last task in both ways.

    Raises:
        ValueError: the network has no batch norm, or the tasks no test set or outputs of their own.
    """
    config = config_of(run)
    if config.net.norm != "batch":
        raise ValueError(f"{run.folder}: net.norm={config.net.norm!r}; only batch norm has running averages")
    problem = make_problem(config, data_dir)
    if problem.test is None or problem.classes is not None:
        raise ValueError(f"{run.folder}: tasks={config.tasks!r}; needs tasks with a test set and the same outputs")
    method, last = config.methods[0], config.num_tasks - 1
    model, networks = run.model("network"), run.variables(method)["network"]
    measure = jax.jit(lambda *given: both_ways(model, problem, *given))
    rows = []
    for lag in (0, *(lag for lag in config.earlier if lag <= last)):
        found, own = [], []
        for index, seed in enumerate(config.seeds):
            key = jax.random.split(jax.random.split(jax.random.key(seed, impl="philox4x32"), 3)[2])[0]
            variables = jax.tree.map(lambda leaf, index=index: leaf[index], networks)
            found.append(measure(variables, key, jnp.int32(last - lag)))
            own.append(at_ends(run, "test_accuracy", method, seed)[last - lag])
        running, batch = np.array(found, float).T
        columns = (np.array(own), running, batch, batch - running, running - own, batch - own)
        rows.append((f"{lag}", *(str(interval(column)) for column in columns)))
    title = f"{run.folder}: after task {config.num_tasks}, {len(config.seeds)} seeds"
    names = ("tasks back", "at its end", "running averages", "its own", "difference", "forgotten", "with its own")
    return Table(title, names, rows)


if __name__ == "__main__":
    print_table_of_a_run("experiments.continual.running_averages", __doc__, averages_table, "complete, with batch norm")
