"""E1, cloning (arXiv 2510.00304, figure 2.1 and C.5-C.11): can training leave the manifold of cloned units?

A base network is trained, cloned, and base and clone go on side by side on the same batches. SGD and Adam cannot tell
clones apart and stay; noise and dropout can. What to expect, on two CPU cores:

    python -m experiments.cloning                    # digits, under a minute: R² 1 for SGD and Adam, 0.8-0.9 for the rest
    python -m experiments.cloning --preset paper     # CIFAR-10, 20 + 500 epochs, 5 seeds: about a day on two CPU cores
    python -m experiments.cloning --preset reference # CIFAR-10, 5 + 10 epochs, 3 seeds: see docs/cloning.md
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from experiments.cli import Output, parse, user_errors

if TYPE_CHECKING:
    import jax
    import optax

    from experiments.terminal import Progress, Table
    from lopjax.data import Dataset
    from lopjax.model import Model
    from lopjax.runs import Run, RunData
    from lopjax.training import Preprocess, TrainState

Method = Literal["sgd", "noisy_sgd", "dropout", "adam"]
LEFT, ESCAPED = 1e-3, 0.95


@dataclass(frozen=True)
class Net:
    """The base network."""

    widths: tuple[int, ...] = (128,) * 5
    """Units of each hidden layer."""
    activation: str = "relu"
    """One of lopjax.models.ACTIVATIONS."""
    norm: Literal["batch", "layer", "none"] = "batch"
    """Normalisation before the activation."""
    affine: bool = True
    """Whether the norm has scale and offset."""
    init: Literal["pytorch", "lecun", "he"] = "pytorch"
    """Initialisation."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    dataset: str = "cifar10"
    """"digits" or any prepared TFDS image classification set."""
    label_noise: float = 0.0
    """Fraction of the training labels redrawn at random."""
    augment: bool = True
    """Random crops (4 pixels of padding) and horizontal flips."""
    model: Literal["mlp"] = "mlp"
    """Architecture."""
    net: Net = field(default_factory=Net)
    factor: int = 2
    """Clones of every unit."""
    methods: tuple[Method, ...] = ("sgd", "noisy_sgd", "dropout", "adam")
    """What to train with, side by side."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One run each."""
    unit: Literal["epochs", "steps"] = "epochs"
    """Unit of the three lengths below."""
    base_length: int = 20
    """Training of the base before cloning."""
    clone_length: int = 500
    """Training of base and clone side by side."""
    record_every: int = 1
    """How often symptoms are measured."""
    batch_size: int = 128
    """Examples a step."""
    learning_rate: float = 0.01
    """Of SGD, with and without noise or dropout; no momentum, no weight decay."""
    adam_learning_rate: float = 0.001
    """Of Adam."""
    noise_scale: float = 0.01
    """Noisy SGD: noise per entry over the norm of the gradient array, at first."""
    noise_decay: float = 0.999
    """Noisy SGD: factor on the noise per step."""
    dropout: float = 0.1
    """Rate of the dropout method, in base and clone."""
    probe_samples: int = 500
    """Training images on which symptoms are measured."""
    fused: bool = False
    """Compile SGD, noisy SGD and dropout as one program: half the compilation, but everyone pays for drawing noise."""


PRESETS = {
    "quick": Config(
        dataset="digits", label_noise=0.5, augment=False, net=Net(widths=(32,) * 5), seeds=(0, 1),
        unit="steps", base_length=500, clone_length=4000, record_every=250, batch_size=32, learning_rate=0.1, fused=True,
    ),
    "paper": Config(),
    "reference": Config(augment=False, seeds=(0, 1, 2), base_length=5, clone_length=10),
}  # fmt: skip


class Group(NamedTuple):
    """Methods that share one compiled program, and its lanes: one for every method and seed."""

    methods: tuple[Method, ...]
    lanes: tuple[tuple[Method, int], ...]


class Knobs(NamedTuple):
    """What differs between the lanes of one program: traced numbers in a fused one, Python constants otherwise."""

    noise_scale: Any
    dropout: Any


class Pair(NamedTuple):
    """Training state of one lane: a base, its clone (None before cloning), the noise key and what is traced."""

    base: "TrainState"
    clone: "TrainState | None"
    noise_key: "jax.Array"
    knobs: Knobs | None


class Setup(NamedTuple):
    """Config and everything built from it before compilation."""

    config: Config
    dataset: "Dataset"
    base: "Model"
    wide: "Model"
    preprocess: "Preprocess"
    steps_per_unit: int


def build(config: Config, data_dir: Path | None = None) -> Setup:
    """Check the config, load the data and build both models; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
        FileNotFoundError: the data set is not prepared; the message has the command that prepares it.
    """
    from lopjax import data, models
    from lopjax.cloning import clone_factors, widen
    from lopjax.optim import noisy_sgd
    from lopjax.training import Preprocess

    for name in ("base_length", "clone_length", "record_every", "batch_size", "probe_samples"):
        _check(name, getattr(config, name), getattr(config, name) >= 1, "at least 1")
    for name in ("learning_rate", "adam_learning_rate"):
        _check(name, getattr(config, name), 0 < getattr(config, name) < float("inf"), "positive and finite")
    for name in ("base_length", "clone_length"):
        _check(
            name, getattr(config, name), getattr(config, name) % config.record_every == 0, "a multiple of record_every"
        )
    _check("seeds", config.seeds, len(set(config.seeds)) == len(config.seeds) > 0, "distinct, at least one")
    _check("methods", config.methods, len(set(config.methods)) == len(config.methods) > 0, "distinct, at least one")
    noisy_sgd(config.learning_rate, config.noise_scale, config.noise_decay, seed=0)
    dataset = data.load(config.dataset, data_dir, config.label_noise)
    num_train = len(dataset.train_labels)
    _check(
        "batch_size", config.batch_size, config.batch_size <= num_train, f"at most the {num_train} training examples"
    )
    net = config.net
    base = {"mlp": models.mlp}[config.model](
        dataset.image_shape,
        net.widths,
        dataset.num_classes,
        net.activation,
        net.norm,
        net.affine,
        config.dropout,
        net.init,
    )
    clone_factors(base.wiring, config.factor)
    crop_and_flip = (4, True) if config.augment else (0, False)
    return Setup(
        config=config,
        dataset=dataset,
        base=base,
        wide=widen(base, config.factor),
        preprocess=Preprocess(dataset.mean, dataset.std, *crop_and_flip),
        steps_per_unit=1 if config.unit == "steps" else num_train // config.batch_size,
    )


def _check(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value}: must be {allowed}")


def groups(config: Config) -> tuple[Group, ...]:
    """The programs to compile: one for each method, or one for all of the SGD family."""
    families: dict[str, list[Method]] = {}
    for method in config.methods:
        families.setdefault("sgd" if config.fused and method != "adam" else method, []).append(method)
    return tuple(
        Group(tuple(methods), tuple((method, seed) for method in methods for seed in config.seeds))
        for methods in families.values()
    )


def knobs_of(config: Config, method: Method) -> Knobs:
    """Noise scale and dropout rate of a method, as Python numbers."""
    return Knobs(
        noise_scale=config.noise_scale if method == "noisy_sgd" else 0.0,
        dropout=config.dropout if method == "dropout" else 0.0,
    )


class Program(NamedTuple):
    """The pure functions of one group, all for one lane; `make_program` says what each is."""

    init: Any
    clone: Any
    step: Any
    measure: Any


def make_program(setup: Setup, group: Group) -> Program:
    """How one lane of a group is initialised, cloned, stepped and measured.

    Args:
        setup: from `build`.
        group: with a single method the knobs are constants of the program; with several they are traced.
    """
    import jax
    import optax

    from lopjax.cloning import clone_variables, uniform_partition
    from lopjax.optim import noisy_sgd
    from lopjax.probes import symptoms
    from lopjax.training import evaluate, init_state, sgd_step

    config = setup.config
    partition = uniform_partition(setup.wide.wiring, config.factor)
    constants = knobs_of(config, group.methods[0]) if len(group.methods) == 1 else None
    plain = optax.adam(config.adam_learning_rate) if group.methods == ("adam",) else optax.sgd(config.learning_rate)

    def clone_optimizer(pair: Pair) -> "optax.GradientTransformation":
        scale = (constants or pair.knobs).noise_scale
        if isinstance(scale, float) and scale == 0.0:
            return plain
        return noisy_sgd(config.learning_rate, scale, config.noise_decay, seed=pair.noise_key)

    def init(key: "jax.Array", knobs: Knobs) -> Pair:
        init_key, noise_key = jax.random.split(key)
        base = init_state(setup.base.init(init_key), plain)
        return Pair(base, None, noise_key, None if constants else knobs)

    def clone(pair: Pair) -> Pair:
        variables = clone_variables(pair.base.variables, setup.base.wiring, config.factor)
        return pair._replace(clone=init_state(variables, clone_optimizer(pair)))

    def step(pair: Pair, batch: Any, key: "jax.Array", index: "jax.Array") -> tuple[Pair, dict[str, "jax.Array"]]:
        images, labels = batch
        augment_key, base_key, clone_key = jax.random.split(key, 3)
        inputs = setup.preprocess.inputs(images, augment_key if config.augment else None)
        rate = (constants or pair.knobs).dropout
        base, logs = sgd_step(setup.base, plain, pair.base, inputs, labels, base_key, rate)
        named = {f"base/train_{name}": value for name, value in logs.items()}
        if pair.clone is None:
            return pair._replace(base=base), named
        optimizer = clone_optimizer(pair)
        cloned, logs = sgd_step(setup.wide, optimizer, pair.clone, inputs, labels, clone_key, rate)
        named |= {f"clone/train_{name}": value for name, value in logs.items()}
        return pair._replace(base=base, clone=cloned), named

    def measure(pair: Pair, images: Any, labels: Any, test_images: Any, test_labels: Any) -> dict[str, "jax.Array"]:
        inputs, measured = setup.preprocess.inputs(images), {}
        for name, model, state, clusters in (
            ("base", setup.base, pair.base, None),
            ("clone", setup.wide, pair.clone, partition),
        ):
            if state is None:
                continue
            test = evaluate(model, state.variables, setup.preprocess, test_images, test_labels)
            measured |= {f"{name}/test_{key}": value for key, value in test.items()}
            if pair.clone is None:
                continue
            for metric, values in symptoms(model, state.variables, inputs, labels, partition=clusters).items():
                measured |= {f"{name}/{metric}/{site}": value for site, value in values.items()}
        if pair.clone is not None:
            base_logits = setup.base.apply(pair.base.variables, inputs)[0]
            clone_logits = setup.wide.apply(pair.clone.variables, inputs)[0]
            measured["logit_difference"] = abs(base_logits - clone_logits).max()
            measured |= confinement(setup, pair.clone.variables, (inputs, labels))
        return measured

    return Program(init, clone, step, measure)


def confinement(setup: Setup, variables: Any, batch: Any) -> dict[str, "jax.Array"]:
    """How far parameters and gradient of the clone are from the manifold: norms of the violating parts, relative.

    RE: incoming totals differ inside a cluster; CE: outgoing totals do; BC: anything does (theory 3.1).
    """
    import jax

    from lopjax.cloning import uniform_partition
    from lopjax.losses import cross_entropy
    from lopjax.manifolds import cloned_manifold, tangency_residual, tree_norm

    params = variables["params"]
    manifold = cloned_manifold(params, setup.wide.wiring, uniform_partition(setup.wide.wiring, setup.config.factor))
    gradient = jax.grad(cross_entropy(setup.wide, variables, batch))(params)
    size = tree_norm(params)
    return {
        "clone/re_residual": tree_norm(manifold.normals.incoming.project(params)) / size,
        "clone/ce_residual": tree_norm(manifold.normals.outgoing.project(params)) / size,
        "clone/bc_residual": tangency_residual(manifold, params),
        "clone/tangency_residual": tangency_residual(manifold, gradient),
    }


def run(setup: Setup, folder: "Run", progress: "Progress") -> None:
    """Train every group, recording one line for each lane and record; the run folder holds the result."""
    for group in groups(setup.config):
        run_group(setup, group, folder, progress)


def run_group(setup: Setup, group: Group, folder: "Run", progress: "Progress") -> None:
    """Train the lanes of one group: base, clone, then both side by side."""
    import jax
    import jax.numpy as jnp

    from lopjax.training import make_chunk

    config, data = setup.config, setup.dataset
    program = make_program(setup, group)
    chunk_steps = config.record_every * setup.steps_per_unit
    chunk = make_chunk(program.step, chunk_steps, config.batch_size)
    measure = jax.jit(jax.vmap(program.measure, in_axes=(0, None, None, None, None)))
    train = (jnp.asarray(data.train_images), jnp.asarray(data.train_labels))
    probe = (train[0][: config.probe_samples], train[1][: config.probe_samples])
    test = (jnp.asarray(data.test_images), jnp.asarray(data.test_labels))

    # Methods see the same initial network and the same batches: only the seed decides the key.
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl="philox4x32"))(jnp.array([seed for _, seed in group.lanes]))
    init_keys, data_keys = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
    knobs = jax.tree.map(lambda *values: jnp.array(values), *(knobs_of(config, method) for method, _ in group.lanes))
    pairs = jax.jit(jax.vmap(program.init))(init_keys, knobs)

    def record(phase: str, steps: int, logs: Any) -> None:
        values = {**logs, **measure(pairs, *probe, *test)}
        host = jax.device_get(values)
        rows = (
            {"method": method, "seed": seed, "phase": phase, "step": steps, config.unit: steps / setup.steps_per_unit}
            | {name: float(array[lane]) for name, array in host.items()}
            for lane, (method, seed) in enumerate(group.lanes)
        )
        folder.append(*rows)

    names = ", ".join(group.methods)
    for phase, length in (("base", config.base_length), ("clone", config.clone_length)):
        offset = 0
        if phase == "clone":
            offset = config.base_length * setup.steps_per_unit
            pairs = jax.jit(jax.vmap(program.clone))(pairs)
            record("clone", 0, {})
        for start in range(0, length * setup.steps_per_unit, chunk_steps):
            pairs, logs = chunk(pairs, data_keys, offset + start, *train)
            record(phase, start + chunk_steps, logs)
            progress(names, chunk_steps * len(group.lanes))


def total_steps(setup: Setup) -> int:
    """Steps of all lanes together, what the progress bar counts."""
    config = setup.config
    return (config.base_length + config.clone_length) * setup.steps_per_unit * len(config.methods) * len(config.seeds)


class Fate(NamedTuple):
    """What became of one clone.

    Attributes:
        verdict: "stayed", "left" or "escaped".
        left: first step from which 1 - R² > 1e-3 to the end, at two records at least; None if there is none.
        escaped: first step from which R² < 0.95 to the end; None if there is none.
        rounding: largest 1 - R² seen: what rounding alone has done to clones that stayed.
    """

    verdict: str
    left: int | None
    escaped: int | None
    rounding: float


def fate(steps: Any, r2: Any) -> Fate:
    """Decide what became of a clone from its R² at the recorded steps (the words are those of the documentation)."""
    import numpy as np

    steps, r2 = np.asarray(steps), np.asarray(r2)

    def start_of_final_run(holds: Any, at_least: int) -> int | None:
        length = len(holds) if holds.all() else int(holds[::-1].argmin())
        return int(steps[len(steps) - length]) if length >= at_least else None

    left = start_of_final_run(~(1 - r2 <= LEFT), 2)
    escaped = start_of_final_run(~(r2 >= ESCAPED), 1)
    verdict = "escaped" if escaped is not None else "left" if left is not None else "stayed"
    return Fate(verdict, left, escaped, float(np.max(1 - r2)))


def summarise(data: "RunData") -> list[dict[str, Any]]:
    """One row a method and seed: what became of the clones, and how losses, R² and rank moved."""
    rows = []
    for method in data.config["methods"]:
        for seed in data.config["seeds"]:
            where = {"method": method, "seed": seed, "phase": "clone"}
            r2 = data.column("clone/r2_forward/mean", **where)
            rank = data.column("clone/effective_rank/mean", **where)
            row = {"method": method, "seed": seed, **fate(data.column("step", **where), r2)._asdict()}
            row |= {"r2_at_cloning": r2[0], "r2_final": r2[-1], "rank_at_cloning": rank[0], "rank_final": rank[-1]}
            row["logit_difference_at_cloning"] = data.column("logit_difference", **where)[0]
            row["leaf_residual"] = data.column("clone/bc_residual", **where).max()
            for name in ("base", "clone"):
                row[f"{name}_train_loss"] = data.column(f"{name}/train_loss", **where)[-1]
                row[f"{name}_test_accuracy"] = data.column(f"{name}/test_accuracy", **where)[-1]
            rows.append(row)
    return rows


def table(data: "RunData") -> "Table":
    """The table on the terminal: a row a method, over its seeds."""
    import numpy as np

    from experiments.terminal import Table

    rows = []
    for method in data.config["methods"]:
        seeds = [row for row in data.summary if row["method"] == method]

        def spread(name: str, digits: int, seeds: list[dict[str, Any]] = seeds) -> str:
            values = np.array([row[name] for row in seeds], float)
            return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"

        def step(name: str, seeds: list[dict[str, Any]] = seeds) -> str:
            reached = [row[name] for row in seeds if row[name] is not None]
            return f"{np.median(reached):,.0f} ({len(reached)}/{len(seeds)})" if reached else "never"

        rows.append(
            (
                method,
                _verdict(seeds),
                step("left"),
                step("escaped"),
                spread("r2_final", 4),
                f"{np.mean([row['rank_at_cloning'] for row in seeds]):.1f} → {spread('rank_final', 1)}",
                spread("base_train_loss", 3),
                spread("clone_train_loss", 3),
            )
        )
    columns = (
        "method",
        "clones",
        "left at step",
        "escaped at step",
        "R² at the end",
        "effective rank",
        "loss of base",
        "of clone",
    )
    cloning = (
        max(row["logit_difference_at_cloning"] for row in data.summary),
        min(row["r2_at_cloning"] for row in data.summary),
    )
    title = (
        f"At cloning: R² ≥ {cloning[1]:.7f}, logits of base and clone differ by at most {cloning[0]:.1e}.\n"
        "left: 1 - R² > 0.001 to the end; escaped: R² < 0.95 to the end; median step (seeds that did)."
    )
    return Table(title, columns, rows)


def _verdict(seeds: list[dict[str, Any]]) -> str:
    """What became of the clones of all seeds; for clones that stayed, whether exactly or up to rounding."""
    verdicts = sorted({row["verdict"] for row in seeds})
    if verdicts != ["stayed"]:
        return " / ".join(verdicts)
    rounding = max(row["rounding"] for row in seeds)
    residual = max(row["leaf_residual"] for row in seeds)
    return "stayed, exactly" if residual == 0 else f"stayed; rounding: 1 - R² ≤ {rounding:.0e}"


def main() -> None:
    """Parse, run (or show a complete run), and report."""
    config, output = parse("cloning", __doc__.split("\n")[0], PRESETS)
    from experiments.terminal import print_results, progress_bar

    with user_errors("cloning"):
        from lopjax import runs

        setup = build(config, output.data_dir)
        folder = runs.open_run(output.root / "cloning" / output.name, config, output.overwrite)
    if not folder.is_complete:
        with progress_bar(total_steps(setup)) as progress:
            run(setup, folder, progress)
        folder.finish(summarise(runs.load(folder.folder)))
    from lopjax.plotting import cloning_figure, save

    data = runs.load(folder.folder)
    figures = save(cloning_figure(data), folder.folder / "cloning")
    print_results(table(data), (folder.folder / "metrics.jsonl", folder.folder / "summary.json", *figures))


if __name__ == "__main__":
    main()
