"""What a run of the recovery experiment is built from, checked before anything is compiled."""

from typing import Any, NamedTuple

from experiments.aftermath.setup import next_classes
from experiments.kit.experiment import NO_RESOURCES, Resources
from experiments.recovery.config import Config
from experiments.remedies.methods import NUM_SETTINGS
from experiments.remedies.streams import Bench, make_bench
from lopjax import data
from lopjax.training import Preprocess, Stream, check_lanes, epochs


class Setup(NamedTuple):
    """Config and everything built from it before compilation.

    Attributes:
        config: what was asked for.
        stream: the tasks of random labels and the network.
        task: batches of the task and of the next, which differ in the data they read alone.
        preprocess: how images become inputs.
        tasks: `(training set, test set)` of the task and of the next, 8-bit images and labels.
        probe: inputs and labels of training examples of the task.
        mesh: devices that lanes are spread over; None for one.
    """

    config: Config
    stream: Bench
    task: Stream
    preprocess: Preprocess
    tasks: tuple[Any, Any]
    probe: tuple[Any, Any]
    mesh: Any = None


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config, load the data and build the model; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
        FileNotFoundError: the data set is not prepared; the message has the command that prepares it.
    """
    check_lanes(len(config.seeds), resources.mesh)
    stream = make_bench("random_labels", config.stream, resources)
    dataset = data.load(config.dataset, resources.data_dir, config.label_noise)
    _check_config(config, len(dataset.train_labels))
    permutation = next_classes(dataset.num_classes)
    first = ((dataset.train_images, dataset.train_labels), (dataset.test_images, dataset.test_labels))
    following = tuple((images, permutation[labels].astype(labels.dtype)) for images, labels in first)
    preprocess = Preprocess(dataset.mean, dataset.std)
    images, labels = (array[: config.probe_samples] for array in first[0])
    task = epochs(dataset.train_images, dataset.train_labels, config.stream.batch_size)
    return Setup(
        config, stream, task, preprocess, (first, following), (preprocess.inputs(images), labels), resources.mesh
    )


def _check_config(config: Config, num_train: int) -> None:
    for name in ("task_steps", "next_steps"):
        steps = getattr(config, name)
        is_multiple = config.chunks >= 1 and steps >= 1 and steps % config.chunks == 0
        _check(name, steps, is_multiple, f"a positive multiple of chunks={config.chunks}, itself at least 1")
    _check("probe_samples", config.probe_samples, 1 <= config.probe_samples <= num_train, f"in 1..{num_train}")
    for name in ("recovery_setting", "noise_setting", "redo_setting"):
        number = getattr(config, name)
        _check(name, number, 0 <= number < NUM_SETTINGS, f"in 0..{NUM_SETTINGS - 1}")
    distinct = len(set(config.seeds)) == len(config.seeds) > 0
    _check("seeds", config.seeds, distinct and min(config.seeds) >= 0, "distinct, at least one, none negative")


def _check(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value}: must be {allowed}")
