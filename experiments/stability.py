"""Stability of the manifold of clones while a task is fitted, and after its labels change.

At recorded epochs of a base network's training, what would become of a clone made now: the curvature M_j of every unit
across the manifold of clones, its class and exact inertia (closed form; bounds through Hessian products with a norm).

    python -m experiments.stability                  # digits, under a minute
    python -m experiments.stability --preset cifar10 # 5 x 128 on CIFAR-10, 10,000 images, docs/stability.md
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from experiments.cli import PHRASES, kept_records, open_folder, parse, say_refused, user_errors
from experiments.networks import MLP, build_network
from experiments.presentation import Presentation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from experiments.terminal import Progress, Table
    from lopjax.data import Dataset
    from lopjax.model import Model, Variables
    from lopjax.runs import Run, RunData


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    dataset: str = "cifar10"
    """"digits" or any prepared TFDS image classification set."""
    net: MLP = field(default_factory=lambda: MLP(norm="none"))
    """The base network."""
    factor: int = 2
    """Clones of every unit."""
    epochs: tuple[int, ...] = (0, 1, 2, 5, 10)
    """Epochs on the first labels at which stability is measured; the last one ends the first task."""
    epochs_after: tuple[int, ...] = (0, 1, 2, 5)
    """The same after every label has been redrawn at random."""
    num_images: int = 10_000
    """Training images over which M_j is a mean."""
    learning_rate: float = 0.05
    """Of SGD, without momentum."""
    batch_size: int = 128
    """Examples a step."""
    seed: int = 0
    """Of initialisation, batches and the new labels."""


PRESETS = {
    "quick": Config(
        dataset="digits", net=MLP(widths=(32,) * 3, norm="none"), epochs=(0, 5, 10, 20, 40, 80),
        epochs_after=(0, 5, 10, 20, 40), num_images=1000, learning_rate=0.1, batch_size=32,
    ),
    "cifar10": Config(),
    "cifar10-batch-norm": replace(
        Config(), net=MLP(norm="batch"), epochs=(0, 1, 5), epochs_after=(0, 1), num_images=2000, learning_rate=0.01
    ),
}  # fmt: skip


def build(config: Config, data_dir: Any = None) -> "tuple[Dataset, Model]":
    """Check the config, load the data and build the model; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
        FileNotFoundError: the data set is not prepared.
    """
    from lopjax import data
    from lopjax.cloning import clone_factors

    for name in ("epochs", "epochs_after"):
        values = getattr(config, name)
        if not values or any(epoch < 0 for epoch in values) or list(values) != sorted(set(values)):
            raise ValueError(f"{name}={values}: must be epochs >= 0 in ascending order, at least one")
    if not 0 < config.learning_rate < float("inf"):
        raise ValueError(f"learning_rate={config.learning_rate}: must be positive and finite")
    dataset = data.load(config.dataset, data_dir)
    num_train = len(dataset.train_labels)
    for name in ("num_images", "batch_size"):
        if not 1 <= getattr(config, name) <= num_train:
            raise ValueError(f"{name}={getattr(config, name)}: must be in 1..{num_train}, the training examples")
    model = build_network("mlp", config.net, dataset.image_shape, dataset.num_classes)
    clone_factors(model.wiring, config.factor)
    return dataset, model


def run(
    config: Config,
    dataset: "Dataset",
    model: "Model",
    folder: "Run",
    progress: "Progress",
    keep_checkpoints: int = 2,
) -> tuple[str, ...]:
    """Train on the first labels, then on redrawn ones, and record the stability of clones at the asked epochs.

    A checkpoint is saved after every epoch; the run goes on from where those of the folder end.

    Returns:
        Why newer checkpoints than the one resumed from were passed over; empty if none was.

    Raises:
        CheckpointError: the folder has checkpoints and none of them can be used.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from lopjax.training import Preprocess, init_state, make_chunk, sgd_step, start_lanes

    preprocess = Preprocess(dataset.mean, dataset.std)
    optimizer = optax.sgd(config.learning_rate)
    steps_per_epoch = len(dataset.train_labels) // config.batch_size

    def step(state: Any, batch: Any, key: Any, index: Any) -> Any:
        return sgd_step(model, optimizer, state, preprocess.inputs(batch[0]), batch[1], key)

    chunk = make_chunk(step, config.batch_size)
    init_key, data_key, label_key = jax.random.split(jax.random.key(config.seed, impl="philox4x32"), 3)
    lanes = start_lanes(jax.tree.map(lambda leaf: leaf[None], init_state(model.init(init_key), optimizer)))
    images, first_labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    new_labels = jax.random.randint(label_key, first_labels.shape, 0, dataset.num_classes)
    tasks = ((first_labels, config.epochs), (new_labels, config.epochs_after))
    parts = [(task, epoch) for task, (_, epochs) in enumerate(tasks) for epoch in range(epochs[-1] + 1)]
    found = folder.restore(lambda done, like=lanes: like)
    done = 0 if found is None else found.step
    lanes = lanes if found is None else found.tree
    for number, (task, epoch) in enumerate(parts):
        (labels, epochs), name = tasks[task], f"task {task + 1}"
        units = (epoch > 0) + (epoch in epochs)
        if number < done:
            progress(name, units)
            continue
        if epoch > 0:
            # Task 2 goes on counting: part `number` follows `number - task` epochs of training, its own included.
            start = (number - task - 1) * steps_per_epoch
            lanes, logs = chunk(lanes, data_key[None], start, steps_per_epoch, images, labels)
            if (frozen_at := int(lanes.frozen_at[0])) >= 0:
                raise FloatingPointError(
                    f"the loss is not finite at step {frozen_at} (epoch {frozen_at // steps_per_epoch}) of training; "
                    f"learning_rate={config.learning_rate} is too large for this network"
                )
            folder.append({"task": task, "epoch": epoch, "train_loss": float(logs["loss"][0])})
        if epoch in epochs:
            variables = jax.tree.map(lambda leaf: leaf[0], lanes.state.variables)
            part = slice(0, config.num_images)
            inputs = preprocess.inputs(images[part])
            folder.append({"task": task, "epoch": epoch, **measure(config, model, variables, inputs, labels[part])})
        if number == len(parts) - 1:
            folder.keep("network", jax.tree.map(lambda leaf: leaf[0], lanes.state.variables))
        folder.checkpoint(number + 1, lanes, keep_checkpoints)
        progress(name, units)
    return () if found is None else found.refused


def measure(config: Config, model: "Model", variables: "Variables", inputs: Any, labels: Any) -> dict[str, Any]:
    """The report of the whole manifold, and smallest and largest eigenvalue of every unit; in double precision."""
    import jax
    import numpy as np

    from lopjax.losses import mean_cross_entropy
    from lopjax.stability import unit_blocks

    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        batch = np.asarray(inputs, np.float64), np.asarray(labels)
        double, batch = jax.device_put((double, batch))
        blocks = unit_blocks(model, double, mean_cross_entropy, batch, config.factor)
        loss = float(mean_cross_entropy(model.apply(double, batch[0])[0], batch[1]))
    return {
        "loss": loss,
        "report": blocks.total._replace(verdict=blocks.total.verdict.name)._asdict(),
        "min_eigenvalue": {space: found.of_units("min_eigenvalue") for space, found in blocks.spaces.items()},
        "max_eigenvalue": {space: found.of_units("max_eigenvalue") for space, found in blocks.spaces.items()},
        "dead": {space: int(found.is_dead.sum()) for space, found in blocks.spaces.items()},
    }


def measured(data: "RunData") -> list[dict[str, Any]]:
    """The records that hold a stability report, with the epoch counted through both tasks."""
    before = data.config["epochs"][-1]
    rows = [record for record in data.records if "report" in record]
    return [{**row, "total_epoch": row["epoch"] + before * row["task"]} for row in rows]


def table(data: "RunData") -> "Table":
    """A row a measurement; the first is there before anything is trained."""
    from experiments.terminal import Table

    rows = [
        (
            f"{row['task'] + 1}",
            f"{row['epoch']}",
            f"{row['loss']:.3f}",
            row["report"]["verdict"],
            *(
                f"{row['report'][name]:,}" if row["report"][name] >= 0 else "?"
                for name in ("n_plus", "n_minus", "n_zero")
            ),
            f"{row['report']['min_eigenvalue']:.2e}",
            f"{row['report']['max_eigenvalue']:.2e}",
            f"{sum(row['dead'].values())}",
        )
        for row in measured(data)
    ]
    columns = ("task", "epoch", "loss", "class", "n+", "n-", "n0", "lambda min", "lambda max", "dead")
    method = measured(data)[0]["report"]["method"]
    title = f"Stability of {data.config['factor']}x clones ({method}); task 2 has labels redrawn at random"
    return Table(title, columns, rows)


def figure(data: "RunData") -> "Figure":
    """Distribution over units of -lambda_min(M_j), layer by layer, as the task is fitted and after the label change."""
    import numpy as np

    from lopjax.plotting import PALETTE, new_figure

    rows = measured(data)
    drawn, (loss_axes, axes) = new_figure(2, width=4.2, height=3.2)
    spaces = list(rows[0]["min_eigenvalue"])
    change = data.config["epochs"][-1]
    # The two measurements at the change share an epoch: draw the second task a little to the right.
    x = np.array([row["total_epoch"] + 0.02 * change * row["task"] for row in rows])
    loss_axes.plot(x, [row["loss"] for row in rows], "o-", color="0.2", markersize=3)
    for color, space in zip(PALETTE, spaces):
        escape = [-np.array(row["min_eigenvalue"][space]) for row in rows]
        low, middle, high = np.array([np.quantile(values, (0.1, 0.5, 0.9)) for values in escape]).T
        axes.plot(x, middle, "o-", color=color, markersize=3, label=space.replace("_", " "))
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    for panel in (loss_axes, axes):
        panel.axvline(change * 1.01, color="0.5", linestyle=":", label="labels redrawn" if panel is axes else None)
        panel.set_xlabel("epochs")
    loss_axes.set_yscale("log")
    loss_axes.set_ylabel("loss on the measured images (nats)")
    axes.set(yscale="log", ylabel="escape rate of a unit's clones, $-\\lambda_{min}(M_j)$")
    drawn.legend(loc="outside right center", frameon=False, title="median and 10-90 %\nof units")
    return drawn


def num_records(config: "Mapping[str, Any]") -> int:
    """Of a complete run: one an epoch, and one a measurement."""
    return sum(lengths[-1] + len(lengths) for lengths in (config["epochs"], config["epochs_after"]))


PRESENTATION = Presentation(table, lambda data: {"stability": figure(data)}, num_records)


def main() -> None:
    """Parse, run (or show a complete run), and report."""
    config, output = parse("stability", str(__doc__), PRESETS)
    from experiments.presentation import present
    from experiments.terminal import progress_bar

    with user_errors("stability", config, PHRASES):
        from lopjax import runs

        dataset, model = build(config, output.data_dir)
        folder = open_folder("stability", config, output)
    if not folder.is_complete:
        total = config.epochs[-1] + config.epochs_after[-1] + len(config.epochs) + len(config.epochs_after)
        with kept_records("stability", folder), progress_bar(total) as progress:
            say_refused(run(config, dataset, model, folder, progress, output.keep_checkpoints))
        folder.finish([row["report"] for row in measured(runs.load(folder.folder))])
    present(runs.load(folder.folder))


if __name__ == "__main__":
    main()
