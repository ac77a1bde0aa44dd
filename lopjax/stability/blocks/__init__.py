"""The blocks M_j of the normal Hessian of cloned units: one small matrix per unit of the base network."""

from lopjax.stability.blocks.unit_blocks import SpaceBlocks, UnitBlocks, unit_blocks, unit_blocks_of_clones

__all__ = ["SpaceBlocks", "UnitBlocks", "unit_blocks", "unit_blocks_of_clones"]
