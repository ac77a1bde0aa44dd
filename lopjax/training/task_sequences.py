"""Sequences of tasks: disjoint classes, permuted pixels, labels or words, random labels, texts, mixtures of Gaussians.

Stored images are gathered by index, never copied, and shared by all lanes. If no number of tasks is given, the sequence
is infinite: each task is drawn from the key and its number.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from lopjax.arguments.integers import as_integer
from lopjax.arguments.numbers import check_numbers
from lopjax.data.tasks import check_class_order, check_class_split, class_table
from lopjax.losses import Masked
from lopjax.training.streams import check_range, num_examples
from lopjax.training.task_streams import TaskSequence


def class_incremental(
    images: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    num_tasks: int,
    classes_per_task: int,
    *,
    order: ArrayLike | Sequence[int] | None = None,
    images_per_class: int | None = None,
    is_masked: bool = True,
) -> TaskSequence:
    """Tasks of disjoint classes: `order[t * classes_per_task : (t + 1) * classes_per_task]` for task `t`.

    After the last task the first comes again.

    Args:
        images: `(images, ...)`.
        labels: `(images,)`, 0..num_classes-1; labels stay as they are in every task.
        num_classes: number of classes of the set.
        num_tasks: number of different tasks.
        classes_per_task: number of classes of each task.
        order: order of the classes, a permutation; None for one drawn by the key, different in every lane.
        images_per_class: number of images of each class; None for as many as the smallest class has.
        is_masked: whether labels are `lopjax.losses.Masked`, with the classes of the task; otherwise they are integers.

    Raises:
        ValueError: too few classes for the tasks, a class with too few images, or an order that is not a permutation.
    """
    num_examples(images, labels)
    check_class_split(num_tasks, classes_per_task, num_classes)
    table = class_table(np.asarray(labels), num_classes, images_per_class)
    data = {"images": images, "table": table, "labels": labels}
    if order is not None:
        data["order"] = check_class_order(np.asarray(order), num_classes)

    def prepare(data: PyTree, key: jax.Array, task: Any) -> PyTree:
        every = jax.random.permutation(key, num_classes) if order is None else jnp.asarray(data["order"])
        classes = jax.lax.dynamic_slice_in_dim(every, task % num_tasks * classes_per_task, classes_per_task)
        mask = jnp.zeros(num_classes, bool).at[classes].set(True)
        return jnp.asarray(data["table"])[classes].reshape(-1), mask

    def take(data: PyTree, prepared: PyTree, chosen: jax.Array) -> tuple[PyTree, PyTree]:
        indices, mask = prepared
        indices = indices[chosen]
        labels = jnp.asarray(data["labels"])[indices]
        masked = Masked(labels, jnp.broadcast_to(mask, (*chosen.shape, num_classes))) if is_masked else labels
        return jnp.asarray(data["images"])[indices], masked

    return TaskSequence(data, prepare, take, classes_per_task * table.shape[1])


def permuted_pixels(images: ArrayLike, labels: ArrayLike) -> TaskSequence:
    """The same images in every task with their pixels permuted; the first task has the identity permutation.

    One permutation of the `height * width` positions for all images of a task; channels stay together.

    Args:
        images: `(images, height, width, channels)`.
        labels: `(images,)`.

    Raises:
        ValueError: arrays of other shapes.
    """
    num = num_examples(images, labels)
    check_numbers("labels", labels, ranks=1)
    if jnp.ndim(images) != 4:
        raise ValueError(f"images: shape {jnp.shape(images)}; must be (images, height, width, channels)")
    _, height, width, channels = jnp.shape(images)

    def prepare(data: PyTree, key: jax.Array, task: Any) -> PyTree:
        return _permutation(key, task, height * width)

    def take(data: PyTree, order: jax.Array, chosen: jax.Array) -> tuple[PyTree, PyTree]:
        images, labels = (jnp.asarray(array)[chosen] for array in data)
        pixels = images.reshape(*chosen.shape, height * width, channels)[:, order]
        return pixels.reshape(images.shape), labels

    return TaskSequence((images, labels), prepare, take, num)


def permuted_labels(images: ArrayLike, labels: ArrayLike, num_classes: int) -> TaskSequence:
    """The same images in every task with their classes permuted; the first task has the identity permutation.

    Args:
        images: `(images, ...)`.
        labels: `(images,)`, integers in 0..num_classes-1.
        num_classes: number of classes.

    Raises:
        ValueError: arrays of other shapes, or a label that is no class.
    """
    num = num_examples(images, labels)
    check_numbers("labels", labels, ranks=1)
    check_range("labels", labels, num_classes)

    def take(data: PyTree, names: jax.Array, chosen: jax.Array) -> tuple[PyTree, PyTree]:
        images, labels = (jnp.asarray(array)[chosen] for array in data)
        return images, names[labels]

    def prepare(data: PyTree, key: jax.Array, task: Any) -> PyTree:
        return _permutation(key, task, num_classes)

    return TaskSequence((images, labels), prepare, take, num)


def random_labels(images: ArrayLike, num_classes: int) -> TaskSequence:
    """The same images in every task, with labels drawn anew, uniformly, to be memorised (arXiv 2308.11958).

    Raises:
        ValueError: no images, or a number of classes that is not a positive integer.
    """
    num = num_examples(images)
    num_classes = as_integer(num_classes, 1, f"num_classes={num_classes!r}: must be a positive integer")

    def prepare(data: PyTree, key: jax.Array, task: Any) -> PyTree:
        return jax.random.randint(jax.random.fold_in(key, task), (num,), 0, num_classes)

    def take(data: PyTree, labels: jax.Array, chosen: jax.Array) -> tuple[PyTree, PyTree]:
        return jnp.asarray(data)[chosen], labels[chosen]

    return TaskSequence(images, prepare, take, num)


def permuted_words(windows: ArrayLike, vocabulary: int) -> TaskSequence:
    """The same text in every task with its vocabulary permuted; the first task has the identity permutation.

    What has been learnt about individual words is useless in the next task (arXiv 2410.20098).

    Args:
        windows: `(examples, length + 1)`, integers in 0..vocabulary-1; inputs are the first `length` tokens of a
            window, labels the last (`lopjax.data.text.text_windows`).
        vocabulary: number of different tokens.

    Raises:
        ValueError: an array of another shape, or a token that is not in the vocabulary.
    """
    num = _num_windows(windows, 2)
    check_range("windows", windows, vocabulary)

    def prepare(data: PyTree, key: jax.Array, task: Any) -> PyTree:
        return _permutation(key, task, vocabulary)

    def take(data: PyTree, names: jax.Array, chosen: jax.Array) -> tuple[PyTree, PyTree]:
        renamed = names[jnp.asarray(data)[chosen]]
        return renamed[..., :-1], renamed[..., 1:]

    return TaskSequence(windows, prepare, take, num)


def texts(windows: ArrayLike) -> TaskSequence:
    """A different text for every task; the last is followed by the first again.

    Args:
        windows: `(tasks, examples, length + 1)`, integers; as in `permuted_words`.

    Raises:
        ValueError: windows that are not integers of that shape, or that hold fewer than two tokens.
    """
    num = _num_windows(windows, 3)
    num_tasks = jnp.shape(windows)[0]

    def take(data: PyTree, task: Any, chosen: jax.Array) -> tuple[PyTree, PyTree]:
        read = jnp.asarray(data)[task, chosen]
        return read[..., :-1], read[..., 1:]

    return TaskSequence(windows, lambda data, key, task: task % num_tasks, take, num)


def gaussian_mixtures(
    num_examples: int = 1000,
    num_classes: int = 2,
    num_centres: int = 5,
    shift: float = 0.6,
    spread: float = 1.0,
    noise: float = 0.2,
    is_test: bool = False,
) -> TaskSequence:
    """Classes that are mixtures of Gaussians in the plane; nothing is stored.

    A task draws a shift from `N(0, shift²)`, for every class `num_centres` centres from `N(shift, spread²)`, and
    points from `N(centre, noise²)`. All classes and all centres have the same number of points.

    Args:
        num_examples: number of points of a task, a multiple of `num_classes * num_centres`.
        num_classes: number of classes of a task.
        num_centres: number of centres of each class.
        shift: standard deviation of the shift shared by all centres of a task.
        spread: standard deviation of the centres around it.
        noise: standard deviation of the points around their centre.
        is_test: whether to draw test points from the same mixtures.

    Raises:
        ValueError: a number is not positive, a deviation negative or not finite, or the points cannot be distributed
            evenly.
    """
    for name, value in {"shift": shift, "spread": spread, "noise": noise}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r}: must be a standard deviation, at least 0 and finite")
    numbers = {"num_examples": num_examples, "num_classes": num_classes, "num_centres": num_centres}
    for name, value in numbers.items():
        as_integer(value, 1, f"{name}={value!r}: must be a positive integer")
    if num_examples % (num_classes * num_centres):
        raise ValueError(f"num_examples={num_examples}: must be a multiple of {num_classes} classes x {num_centres}")

    def prepare(data: PyTree, key: jax.Array, task: Any) -> PyTree:
        shift_key, centre_key, *point_keys = jax.random.split(jax.random.fold_in(key, task), 4)
        common = shift * jax.random.normal(shift_key, (2,))
        centres = common + spread * jax.random.normal(centre_key, (num_classes * num_centres, 2))
        steps = jax.random.normal(point_keys[is_test], (num_examples, 2))
        return jnp.repeat(centres, num_examples // len(centres), axis=0) + noise * steps

    def take(data: PyTree, points: jax.Array, chosen: jax.Array) -> tuple[PyTree, PyTree]:
        return points[chosen], chosen // (num_examples // num_classes)

    return TaskSequence((), prepare, take, num_examples)


def _permutation(key: jax.Array, task: Any, num: int) -> jax.Array:
    """The permutation of a task; the identity for the first."""
    drawn = jax.random.permutation(jax.random.fold_in(key, task), num)
    return jnp.where(task == 0, jnp.arange(num), drawn)


def _num_windows(windows: ArrayLike, rank: int) -> int:
    check_numbers("windows", windows)
    shape = jnp.shape(windows)
    if len(shape) != rank or not jnp.issubdtype(jnp.result_type(windows), jnp.integer) or shape[-1] < 2:
        axes = ("tasks", "examples", "length + 1")[-rank:]
        raise ValueError(
            f"windows: {jnp.result_type(windows)}{list(shape)}; must be integers ({', '.join(axes)}), of two tokens or "
            "more"
        )
    return shape[-2]
