"""The 1,797 handwritten digits embedded in scikit-learn: 8x8 pixels, 10 classes, no download."""

import numpy as np

from lopjax.data.dataset import Dataset, from_arrays


def load_digits() -> Dataset:
    """scikit-learn's digits, split into 1,437 training and 360 test images.

    Pixels 0..16 become `round(255 x / 16)`: 17 distinct levels, so the original is recovered exactly by
    `round(16 y / 255)`. The split is deterministic: with the images sorted by class (in the original order inside a
    class), every fifth goes to the test set, so that the number of test images of a class differs from a fifth by
    less than one.

    Raises:
        ImportError: scikit-learn is not installed.

    References:
        Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
        (scikit-learn embeds its test part).
    """
    try:
        from sklearn.datasets import load_digits as load_embedded
    except ImportError as error:
        raise ImportError(
            'The data set "digits" is embedded in scikit-learn: pip install "lopjax[experiments]"'
        ) from error
    levels, labels = load_embedded(return_X_y=True)
    images = np.rint(np.reshape(levels, (-1, 8, 8, 1)) * (255 / 16)).astype(np.uint8)
    labels = np.asarray(labels, np.int32)
    by_class = np.argsort(labels, kind="stable")
    is_test = np.zeros(len(labels), bool)
    is_test[by_class[::5]] = True
    return from_arrays(
        images[~is_test], labels[~is_test], images[is_test], labels[is_test], num_classes=10, name="digits"
    )
