"""Moved to `lopjax.runs.writers`; this name goes with the next release."""

import warnings

from lopjax.runs.writers import Record, TensorBoardWriter, Writer

__all__ = [
    "Record",
    "TensorBoardWriter",
    "Writer",
]

warnings.warn("lopjax.writers has moved to lopjax.runs.writers", DeprecationWarning, stacklevel=2)
