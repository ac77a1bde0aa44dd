"""Moved to `lopjax.runs.checkpoints`; this name goes with the next release."""

import warnings

from lopjax.runs.checkpoints import HEADER, CheckpointError, Restored, read, remove, restore, save, write

__all__ = [
    "HEADER",
    "CheckpointError",
    "Restored",
    "read",
    "remove",
    "restore",
    "save",
    "write",
]

warnings.warn("lopjax.checkpoints has moved to lopjax.runs.checkpoints", DeprecationWarning, stacklevel=2)
