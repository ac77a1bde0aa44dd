"""The wiring diagram of a network: which unit space every axis of every array indexes.

A network is a set of *unit spaces* joined by arrays. An axis of an array either reads a space (`In`: it is summed
over), writes one (`Out`), or does neither (`None`: a kernel offset, a position in a sequence).
These labels, written once next to each array in the model code, are all that cloning, manifolds, certificates,
stability and resets need to know about an architecture. No other module infers it from layer order, shapes or names.
"""

from lopjax.wiring.build import build_wiring
from lopjax.wiring.diagram import Wiring, multiplicity, tree_from_paths, tree_paths
from lopjax.wiring.exports import (
    GroupMember,
    PermutationSpec,
    keep_units,
    permutation_spec,
    pruning_groups,
    sharding_rules,
    unf_spec,
)
from lopjax.wiring.labels import (
    Axis,
    CompoundLabel,
    In,
    Label,
    Out,
    Path,
    Product,
    Site,
    Sum,
    UnitAxis,
    Window,
    along,
    sum_per_unit,
    unit_rows,
)
from lopjax.wiring.plain import PlainKernel, at_path, plain_kernel, standard_layout, standard_order
from lopjax.wiring.units import UnitMasks, unit_masks, unit_norms, where
from lopjax.wiring.view import IDENTITY, View, make_view

__all__ = [
    "IDENTITY",
    "Axis",
    "CompoundLabel",
    "GroupMember",
    "In",
    "Label",
    "Out",
    "Path",
    "PermutationSpec",
    "PlainKernel",
    "Product",
    "Site",
    "Sum",
    "UnitAxis",
    "UnitMasks",
    "View",
    "Window",
    "Wiring",
    "along",
    "at_path",
    "build_wiring",
    "keep_units",
    "make_view",
    "multiplicity",
    "permutation_spec",
    "plain_kernel",
    "pruning_groups",
    "sharding_rules",
    "standard_layout",
    "standard_order",
    "sum_per_unit",
    "tree_from_paths",
    "tree_paths",
    "unf_spec",
    "unit_masks",
    "unit_norms",
    "unit_rows",
    "where",
]
