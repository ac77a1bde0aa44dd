"""Image classification data: arrays in memory, loaded by name, and the transforms that make batches of them."""

from lopjax.data.dataset import Dataset, channel_statistics, from_arrays, validate, with_label_noise
from lopjax.data.loading import load
from lopjax.data.transforms import augment, epoch_permutation, normalize, random_crop, random_flip, take_batch

__all__ = [
    "Dataset",
    "augment",
    "channel_statistics",
    "epoch_permutation",
    "from_arrays",
    "load",
    "normalize",
    "random_crop",
    "random_flip",
    "take_batch",
    "validate",
    "with_label_noise",
]
