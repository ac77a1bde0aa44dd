"""Moved to `lopjax.training.lanes`; this name goes with the next release."""

import warnings

from lopjax.training.lanes import check_lanes, cut_batch, gathered, lane_mesh, over_lanes, place

__all__ = ["check_lanes", "cut_batch", "gathered", "lane_mesh", "over_lanes", "place"]

warnings.warn("lopjax.lanes has moved to lopjax.training.lanes", DeprecationWarning, stacklevel=2)
