"""Names of primitives, and the type of a rule."""

from collections.abc import Callable

from lopjax.tracing.atoms import Axis, fresh, pin
from lopjax.tracing.jaxprs import Node, Program, words

Type = tuple[Axis, ...]
"""One axis, a product of atoms, for each axis of an array."""

Rule = Callable[[Program, Node, list[Type]], list[Type]]

ELEMENTWISE = words(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
    clz complex conj convert_element_type copy copy_p cos cosh device_put digamma div eq erf erf_inv erfc exp exp2
    expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg
    nextafter not optimization_barrier or polygamma population_count pow real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
    """
)
REDUCTIONS = words(
    """
    reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor
    """
)
WINDOWS = words(
    """
    reduce_window reduce_window_sum reduce_window_max reduce_window_min
    """
)
SCATTERS = words(
    """
    scatter scatter_add scatter-add scatter-sub scatter-mul scatter-min scatter-max scatter_mul scatter_min scatter_max
    """
)


def pinned(program: Program, value: int, reason: str) -> Type:
    """Axes that are all pinned."""
    return tuple(fresh(size, reason) for size in program.shape(value))


def unknown(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """A primitive without a rule: all axes of its operands and results are pinned."""
    reason = f"{node.where}: no rule for this primitive"
    for each in types:
        for axis in each:
            pin(axis, reason)
    return [pinned(program, value, reason) for value in node.outputs]
