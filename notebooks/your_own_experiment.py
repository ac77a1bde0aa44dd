# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own experiment in 80 lines
#
# An experiment is a folder with two files. From them it gets flags, a progress bar, a run folder, checkpoints, `--resume`, a
# table, figures and sweeps. We write one, run it, kill it, resume it and show it. Half a minute on two CPU cores.
#
# The folder may lie anywhere on Python's path. Here it is a temporary one outside the checkout; nothing in `lopjax` is edited.

# %%
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import lopjax

lab = Path(tempfile.mkdtemp())
folder = lab / "experiments" / "one_after_another"
folder.mkdir(parents=True)


def terminal(command):
    """Run a command in the lab, as in a terminal, and print what it prints."""
    path = os.pathsep.join([str(lab), str(Path(lopjax.__file__).parents[1])])
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    done = subprocess.run(words, cwd=lab, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    print(f"$ {command}", done.stdout + done.stderr[-2000:] * (done.returncode == 2), sep="\n")
    return done.returncode


# %% [markdown]
# ## The experiment
#
# - `Config` is all that decides the result. Every field becomes a flag, and the string below it the flag's help.
# - `build` checks the config and makes what is needed, such as models. A `ValueError` that begins with `field=value` is shown to
#   the user as a message about the flag.
# - `parts` cuts the run into pieces between which it can be interrupted. Each is a function of the state so far; it returns the
#   next state and records, which are plain dictionaries.
# - `summary`, `table` and `figures` look at the records, and also work while the run goes on.

# %%
EXPERIMENT = '''
"""Tasks one after another: does a small network learn the last as well as the first?"""

from dataclasses import dataclass
from functools import partial

import jax
import optax

import lopjax as lop
from experiments.kit.experiment import Experiment
from experiments.kit.terminal import Table
from lopjax.plotting import band, new_figure
from lopjax.runs.schedule import Part


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    width: int = 16
    """Hidden units of each of the two layers."""
    tasks: int = 6
    """Pairs of mixtures of Gaussians in the plane, one after another."""
    steps: int = 100
    """Steps of each task."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One network each, with tasks of its own."""


def build(config, resources):
    if config.width < 1:
        raise ValueError(f"width={config.width}: must be at least 1")
    return lop.mlp((2,), (config.width, config.width), num_classes=2, activation="tanh")


def parts(config, model):
    optimizer = optax.adam(0.01)
    stream = lop.training.task_stream(lop.training.gaussian_mixtures(), batch_size=32, steps=config.steps)
    keys = jax.vmap(jax.random.key)(jax.numpy.array(config.seeds))

    def step(state, drawn, key, index):
        state, seen = lop.training.train_step(model, optimizer, state, drawn.batch)
        return state, lop.training.logs_of(seen, "accuracy")  # before the update

    chunk = lop.training.make_chunk(step, stream)
    fresh = lambda key: lop.training.init_state(model.init(key), optimizer)
    start = lambda: lop.training.start_lanes(jax.vmap(fresh)(keys))

    def learn(task, lanes):
        lanes, logs = chunk(start() if task == 0 else lanes, keys, task * config.steps, config.steps, stream.data)
        scores = zip(config.seeds, logs["accuracy"].tolist())
        return lanes, [{"task": task, "seed": seed, "accuracy": score} for seed, score in scores]

    like, count = lambda: jax.eval_shape(start), len(config.seeds)
    size = {"steps": count * config.steps, "like": like, "num_records": count}
    made = [Part(f"task {task}", do=partial(learn, task), is_start=task == 0, **size) for task in range(config.tasks)]
    return [*made[:-1], made[-1]._replace(keep=lambda lanes: {"network": lanes.state.variables})]


def summary(run):
    scores = {seed: run.column("accuracy", seed=seed).tolist() for seed in run.config["seeds"]}
    return [{"seed": seed, "first": round(own[0], 3), "last": round(own[-1], 3)} for seed, own in scores.items()]


def table(run):
    return Table("Online accuracy", ("seed", "first", "last"), [tuple(map(str, row.values())) for row in summary(run)])


def figures(run):
    figure, (axes,) = new_figure(1)
    band(axes, run.column("task", seed=0), [run.column("accuracy", seed=seed) for seed in run.config["seeds"]], "C0")
    axes.set(xlabel="task", ylabel="online accuracy")
    return {"accuracy": figure}


EXPERIMENT = Experiment("one_after_another", __doc__, {"quick": Config()}, build, parts, summary, table, figures)
'''.lstrip()

MAIN = """
from experiments.kit.experiment import main
from experiments.one_after_another import EXPERIMENT

main(EXPERIMENT)
""".lstrip()

(folder / "__init__.py").write_text(EXPERIMENT)
(folder / "__main__.py").write_text(MAIN)
print(len((EXPERIMENT + MAIN).splitlines()), "lines")

# %% [markdown]
# ## Run it

# %%
terminal("python -m experiments.one_after_another")
run = lopjax.runs.load(lab / "runs" / "one_after_another" / "quick")
print(sorted(path.name for path in run.folder.iterdir()))

# %% [markdown]
# Records are one JSON object a line, and columns when they are read. The table says whether the last task was learnt as well as
# the first; the tasks differ, so a fresh network on each would be the fair comparison, as in the tutorial on recovery.

# %%
from IPython.display import Image, display

print((run.folder / "metrics.jsonl").read_text().splitlines()[0])
print(run.column("accuracy", seed=0))
display(Image(str(run.folder / "accuracy.png"), width=400))

# %% [markdown]
# ## A mistake, a power cut, and going on
#
# A mistake is named by its flag, before anything is compiled.

# %%
assert terminal("python -m experiments.one_after_another --width 0") == 2

# %% [markdown]
# Now the same run once more, but the process is killed while it writes its third checkpoint. Resumed, it ends with the same
# bits, records and network, as the run that was left alone.

# %%
(lab / "power_cut.py").write_text(
    """
import os, signal
from experiments.kit.experiment import main
from experiments.one_after_another import EXPERIMENT
from lopjax.runs import Run

def checkpoint(self, number, *state, checkpoint=Run.checkpoint, **options):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return checkpoint(self, number, *state, **options)

Run.checkpoint = checkpoint
main(EXPERIMENT)
"""
)
assert terminal("python power_cut.py --name killed") != 0
terminal("python -m experiments.one_after_another --name killed --resume")

left = [lab / "runs" / "one_after_another" / name for name in ("quick", "killed")]
for name in ("metrics.jsonl", "variables/network.npz"):
    same = (left[0] / name).read_bytes() == (left[1] / name).read_bytes()
    print(f"{name}: {'the same bits' if same else 'different'}")
    assert same

# %% [markdown]
# ## Show and sweep
#
# `experiments.show` finds the experiment by its name: one run, or all of them. It draws the figures anew, also while a run goes
# on. A sweep, `python -m experiments.sweep one_after_another --grid width=4,16,64`, makes a run of every point, here or on a
# cluster.

# %%
terminal("python -m experiments.show runs")

# %% [markdown]
# ## From here
#
# - `networks=lambda config, model: {"network": model}` in `Experiment` records the network in the run folder; then
#   `python -m lopjax doctor runs/one_after_another/quick --name network` can examine it.
# - A folder `experiments/<name>` in the checkout works the same way. The developer guide says where models, metrics, manifolds
#   and interventions go.
