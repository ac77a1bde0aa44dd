"""The images of the classes of a sequence of tasks: tables of indices, checked before anything is compiled."""

import numpy as np
from jaxtyping import Int32

from lopjax.arguments.integers import as_integer


def class_table(
    labels: np.ndarray, num_classes: int, images_per_class: int | None = None
) -> Int32[np.ndarray, "classes images"]:
    """The images of every class: row `c` has the indices of the first `images_per_class` images of class `c`.

    All classes have the same number, so every task made from the table is balanced, and chance level is 1 / classes of
    the task.

    Args:
        labels: `(images,)`, integers in 0..num_classes-1.
        num_classes: number of classes.
        images_per_class: number of images of each class; None for as many as the smallest class has.

    Raises:
        ValueError: labels out of range, or a class with too few images; the message gives the numbers.

    Example:
        >>> class_table(np.array([1, 0, 1, 0, 0]), 2).tolist()
        [[1, 3], [0, 2]]
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: shape {labels.shape}, dtype {labels.dtype}; must be one integer per image")
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(f"labels: values from {labels.min()} to {labels.max()}; must lie in 0..{num_classes - 1}")
    counts = np.bincount(labels, minlength=num_classes)
    num_images = 1
    if images_per_class is not None:
        message = f"images_per_class={images_per_class!r}: must be a positive integer"
        num_images = as_integer(images_per_class, 1, message)
    if (few := np.flatnonzero(counts < num_images)).size:
        worst = int(few[np.argmin(counts[few])])
        raise ValueError(
            f"labels: {len(few)} of {num_classes} classes have fewer than {num_images} images, class {worst} has "
            f"{counts[worst]}; every class of a task needs equally many: lower images_per_class, or leave the class out"
        )
    size = int(counts.min()) if images_per_class is None else num_images
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    return np.stack([indices[:size] for indices in by_class]).astype(np.int32)


def check_class_split(num_tasks: int, classes_per_task: int, num_classes: int) -> None:
    """Refuse a split into tasks with disjoint classes if there are too few classes.

    Raises:
        ValueError: too few classes; the message gives the numbers.
    """
    for name, value in (("num_tasks", num_tasks), ("classes_per_task", classes_per_task)):
        as_integer(value, 1, f"{name}={value!r}: must be a positive integer")
    if num_tasks * classes_per_task > num_classes:
        raise ValueError(
            f"num_tasks={num_tasks}, classes_per_task={classes_per_task}: need {num_tasks * classes_per_task} "
            f"different classes, there are {num_classes}"
        )


def class_order(num_classes: int, seed: int) -> Int32[np.ndarray, " classes"]:
    """A random order of the classes from NumPy's generator: task `t` has the classes from `t * classes_per_task` on.

    Raises:
        ValueError: the seed is not a non-negative integer.
    """
    seed = as_integer(seed, 0, f"seed={seed!r}: must be a non-negative integer")
    return np.random.default_rng(seed).permutation(num_classes).astype(np.int32)


def check_class_order(order: np.ndarray, num_classes: int) -> Int32[np.ndarray, " classes"]:
    """The order as int32, if it is a permutation of all classes.

    Raises:
        ValueError: it is not a permutation.
    """
    order = np.asarray(order)
    if order.shape != (num_classes,) or not np.array_equal(np.sort(order), np.arange(num_classes)):
        raise ValueError(f"order: {order.size} entries; must be each of 0..{num_classes - 1} once")
    return order.astype(np.int32)
