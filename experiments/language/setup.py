"""What a run is built from: the texts, the tasks made of them, and the parts of `experiments.continual`."""

import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.continual import parts as continual
from experiments.continual.problem import Problem
from experiments.continual.setup import Setup as Run
from experiments.continual.setup import check, check_tasks, setup_of
from experiments.kit.experiment import NO_RESOURCES, Resources
from experiments.language.config import Config
from lopjax.data.text import SOURCES, Encoded, encode_bytes, encode_words, joint_digest, python_text, text_windows
from lopjax.losses import accuracy, mean_cross_entropy
from lopjax.runs.schedule import Part
from lopjax.training import TaskSequence, check_lanes, permuted_words, texts


class Setup(NamedTuple):
    """Config and everything built from it before compilation.

    Attributes:
        run: what `experiments.continual` trains with.
        digest: digest of the texts.
        vocabulary: what each token stands for.
    """

    run: Run
    digest: str
    vocabulary: tuple[str | int, ...]


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config, read the texts and build the model; no training step is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
        FileNotFoundError: this Python does not ship one of the texts.
    """
    check_tasks(config)
    check_lanes(len(config.seeds), resources.mesh)
    check("sources", config.sources, len(set(config.sources)) == len(config.sources) > 0, "distinct, at least one")
    check("sources", config.sources, set(config.sources) <= set(SOURCES), f"among {list(SOURCES)}")
    is_size = config.num_words == 0 or config.num_words >= 2
    check("num_words", config.num_words, is_size, "0 for bytes, or a number of words, at least 2")
    for name in ("length", "num_windows", "test_windows"):
        check(name, getattr(config, name), getattr(config, name) >= 1, "at least 1")
    is_split = not (config.zero_head and config.net.tied)
    check("zero_head", config.zero_head, is_split, "False for tied embeddings: the output layer is the input layer")
    found = [python_text(name) for name in config.sources]
    digest = joint_digest(found)
    is_same = not config.digest or (len(config.digest) >= 12 and digest.startswith(config.digest))
    allowed = f"that of the text of this Python, {digest}, or at least its first 12 digits, or empty"
    check("digest", config.digest, is_same, allowed)
    encoded = encode([text.text for text in found], config.num_words)
    return Setup(setup_of(config, make_problem(config, encoded), resources.mesh), digest, encoded.vocabulary)


def encode(found: Sequence[str], num_words: int) -> Encoded:
    """Texts as words, or as bytes for 0."""
    return encode_words(found, num_words) if num_words else encode_bytes(found)


def make_problem(config: Config, encoded: Encoded) -> Problem:
    """The tasks of a run, for training and testing; the probe are test windows, of all tasks or of the first."""
    train, test, probe = (_words if config.tasks == "permuted_words" else _sources)(config, encoded)
    windows = probe[np.arange(config.probe_samples) * len(probe) // config.probe_samples]
    return Problem(
        train=train,
        test=test,
        inputs=lambda stored, key: stored,
        loss=mean_cross_entropy,
        accuracy=accuracy,
        input_shape=(config.length,),
        num_outputs=len(encoded.vocabulary),
        classes=None,
        probe=(jnp.asarray(windows[:, :-1]), jnp.asarray(windows[:, 1:])),
    )


def _words(config: Config, encoded: Encoded) -> tuple[TaskSequence, TaskSequence, np.ndarray]:
    num = config.num_windows + config.test_windows
    read = text_windows(encoded.tokens[0], config.length, num)
    train, test = read[: config.num_windows], read[config.num_windows :]
    vocabulary = len(encoded.vocabulary)
    return permuted_words(train, vocabulary), permuted_words(test, vocabulary), test


def _sources(config: Config, encoded: Encoded) -> tuple[TaskSequence, TaskSequence, np.ndarray]:
    """Task t reads source t, t - number of sources, ...: when its turn comes again, the stretch after the last."""
    num, sources = config.num_windows + config.test_windows, len(encoded.tokens)
    read = np.stack(
        [
            text_windows(encoded.tokens[task % sources], config.length, num, task // sources * num)
            for task in range(config.num_tasks)
        ]
    )
    train, test = read[:, : config.num_windows], read[:, config.num_windows :]
    return texts(train), texts(test), test.reshape(-1, test.shape[-1])


def parts(config: Config, setup: Setup) -> list[Part]:
    """Those of `experiments.continual`; the first records say which text was read, and by which Python."""
    first, *others = continual.parts(config, setup.run)
    of_text = {"text": setup.digest, "python": platform.python_version(), "vocabulary": len(setup.vocabulary)}

    def do(state: Any) -> Any:
        state, records = first.do(state)
        return state, [{**record, **of_text} for record in records]

    return [first._replace(do=do), *others]
