"""Moved to `lopjax.cloning`; this name goes with the next release."""

import warnings

from lopjax.cloning.quotient import clip_by_cloned_norm, cloned_norm, multiplicities, quotient_optimizer

__all__ = ["clip_by_cloned_norm", "cloned_norm", "multiplicities", "quotient_optimizer"]

warnings.warn("lopjax.quotient has moved to lopjax.cloning.quotient", DeprecationWarning, stacklevel=2)
