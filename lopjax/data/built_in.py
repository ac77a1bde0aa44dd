"""Sets of images that come with a package or are computed: ready everywhere, without preparation."""

from collections.abc import Callable

from lopjax.data.dataset import Dataset
from lopjax.data.digits import load_digits

BUILT_IN: dict[str, Callable[[], Dataset]] = {"digits": load_digits}
"""By name, the function that makes the set."""
