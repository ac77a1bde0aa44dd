"""One entry point for every source of images."""

import os

from lopjax.data.built_in import BUILT_IN
from lopjax.data.dataset import Dataset, check_label_noise, with_label_noise
from lopjax.data.tfds_source import load_tfds


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Loads an image classification set by name; never uses the network.

    Classes that a set declares but that have no training images are dropped and the others renumbered, with a warning.
    The test set is the split "test", or "validation" if there is no test split or its labels are hidden.

    Args:
        name: a set that is ready everywhere, "digits" (embedded in scikit-learn), or an image classification set of
            TensorFlow Datasets prepared on this machine: `set`, `set/config`, with `:1.2.3` appended for a specific
            version.
        data_dir: TFDS data directory; by default `$TFDS_DATA_DIR`, then `~/tensorflow_datasets`.
        label_noise: fraction of the training labels to redraw uniformly over all classes, see
            `with_label_noise`.
        seed: seed of the label noise.
        cache_dir: folder of decoded images; by default `lopjax_cache` in `data_dir` if that is writable, otherwise the
            user's cache folder.

    Raises:
        FileNotFoundError: the set is not prepared on this machine; the message has the command that prepares it.
        ValueError: an unknown name, or an invalid value of another argument.
        ImportError: a package that this source needs is not installed.

    Example:
        >>> load("digits").train_images.shape
        (1437, 8, 8, 1)
    """
    check_label_noise(label_noise, seed)
    dataset = BUILT_IN[name]() if name in BUILT_IN else load_tfds(name, data_dir, cache_dir)
    return with_label_noise(dataset, label_noise, seed)
