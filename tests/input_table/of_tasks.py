"""Rows of streams and sequences of tasks: the examples that they draw, and of what moves arrays between lanes."""

from dataclasses import replace

import jax
import numpy as np

from input_table import TYPES, Row, Subject
from lopjax import data, training

KEY = jax.random.key(0)
NO_UNITS = dict.fromkeys(("no units", "one unit", "wrong width"), "images of any size")
SEEN = dict.fromkeys(("nan", "inf"), "an image that is not finite is moved as it is, and may be in another batch")
IMAGES = Subject(
    {"images": np.arange(24.0).reshape(4, 3, 2, 1) - 9, "labels": np.array([0, 1, 1, 0])},
    cast=("images",),
    samples={"images": 0, "labels": 0},
    carriers=("images",),
    numbers=("images", "labels"),
    ranked=("labels",),
    labels="labels",
    excused=NO_UNITS | dict.fromkeys(("tiny", "huge"), "images are moved as they are"),
)
UNLABELLED = replace(
    IMAGES,
    arrays={"images": IMAGES.arrays["images"]},
    samples={"images": 0},
    numbers=("images",),
    ranked=(),
    labels=None,
    excused=IMAGES.excused | {"labels": "there are none", "wrong rank": "images of any rank"},
)
PIXELS = replace(
    IMAGES, arrays={"images": np.arange(24).reshape(4, 3, 2, 1) % 2 + 0.0, "labels": IMAGES.arrays["labels"]}
)
TOKENS = Subject(
    {"tokens": np.array([[0, 1, 2], [2, 1, 0]])},
    cast=(),
    samples={"tokens": 0},
    numbers=("tokens",),
    ranked=("tokens",),
    excused=NO_UNITS
    | dict.fromkeys((*TYPES, "tiny", "huge", "nan", "inf", "labels"), "tokens are integers: floats are refused below"),
)


def examples(make):
    """All examples of the second task of a sequence."""

    def call(*arrays):
        sequence = make(*arrays)
        return training.task_examples(sequence, sequence.data, KEY, 1)

    return call


def drawn(make):
    """The batch of a stream's second step."""

    def call(*arrays):
        stream = make(*arrays)
        return stream.draw(stream.data, KEY, 1).batch

    return call


def text(tokens):
    """A text for every task, of the same windows."""
    return np.stack([tokens] * 2) if isinstance(tokens, np.ndarray) else tokens


ANY_LABELS = {**SEEN, "labels": "labels of any loss"}
ANY_RANK = {"wrong rank": "labels of any loss, one row per image"}
ROWS = {
    "training.epochs": Row(drawn(lambda x, y: training.epochs(x, y, 1)), IMAGES, allowed=ANY_LABELS | ANY_RANK),
    "training.permuted_pixels": Row(examples(training.permuted_pixels), IMAGES, allowed=ANY_LABELS),
    "training.permuted_labels": Row(examples(lambda x, y: training.permuted_labels(x, y, 2)), IMAGES),
    "training.class_incremental": Row(
        examples(lambda x, y: training.class_incremental(x, y, 2, 2, 1, is_masked=False)), IMAGES, allowed=SEEN
    ),
    "training.random_labels": Row(examples(lambda images: training.random_labels(images, 2)), UNLABELLED),
    "training.task_examples": Row(examples(lambda images: training.random_labels(images, 2)), UNLABELLED),
    "training.permuted_words": Row(examples(lambda tokens: training.permuted_words(tokens, 3)), TOKENS),
    "training.texts": Row(examples(lambda tokens: training.texts(text(tokens))), TOKENS),
    "training.windows": Row(drawn(lambda tokens: training.windows(tokens, 1, 2)), TOKENS),
    "training.start_lanes": Row(lambda images: training.start_lanes({"w": images}).state, UNLABELLED),
    "data.from_arrays": Row(
        lambda images, labels: data.from_arrays(images, labels, images, labels, 2)[:4], PIXELS
    ),
}  # fmt: skip
