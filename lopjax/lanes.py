"""`lopjax.training.lanes` under the name that it had in earlier versions."""

from lopjax.training.lanes import check_lanes, cut_batch, gathered, lane_mesh, over_lanes, place

__all__ = ["check_lanes", "cut_batch", "gathered", "lane_mesh", "over_lanes", "place"]
