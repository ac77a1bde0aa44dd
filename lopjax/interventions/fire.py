"""FIRE: replace kernels by the nearest matrices with equal singular values."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lopjax.arguments.integers import as_integer
from lopjax.interventions.checks import check_every, check_state, is_due, is_start
from lopjax.interventions.reasons import AS_IT_WAS, CHANGED, NOT_ITS_STEP
from lopjax.model import Params, Taps
from lopjax.optim.checks import check
from lopjax.optim.matrices import MatrixAxes, as_matrices, matrix_axes
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState
from lopjax.wiring import Label, Wiring, tree_paths

QUERIES_AND_KEYS = ("query", "key")


def fire(
    strength: ArrayLike = 1.0,
    num_iterations: int = 10,
    every: ArrayLike | None = None,
    arrays: Sequence[str] | None = None,
) -> Intervention:
    r"""At the start of a task, replace every kernel by the nearest multiple of an isometry.

    For a kernel X of `inputs x units`: :math:`X_0 = X / \lVert X \rVert_F`,
    :math:`X \leftarrow 1.5 X - 0.5 X X' X` ten times, then times :math:`\sqrt{units / inputs}` and, for a convolution,
    in which every position is a separate matrix, divided by the number of positions. The function changes; a dead unit
    may stay dead, since its incoming weights are not drawn anew. Singular values of 0 stay 0, and small ones grow by a
    factor of 1.5 per iteration: exact clones stay clones, but a small difference between clones is magnified.

    A kernel with positions is a convolution if its output has positions too; a dense layer after flattening is one
    matrix. In a network with attention heads the published code acts on queries and keys alone, and so does this one,
    on all heads of a layer as one matrix. Biases, norms and the optimizer's state are kept.

    Args:
        strength: :math:`\alpha` in [0, 1] of the published code: the new kernel is
            :math:`(1 - \alpha) X + \alpha X_{10}`; 1 in the paper.
        num_iterations: number of Newton-Schulz iterations.
        every: act every this many steps instead of at the first step of every task.
        arrays: act on kernels with one of these names in their path; by default on all or, in a network with heads, on
            "query" and "key".

    Returns:
        The intervention; it has no state of its own.

    Raises:
        ValueError: a number out of range; on `init`, no kernel of these names, or a state of another optimizer; on
            `apply`, a stream without task boundaries, if `every` is not given.

    References:
        Han et al., arXiv 2602.08040, algorithm 1; isaac7778/FIRE, `vision/interventions/fire.py`.
    """
    check("strength", strength, minimum=0.0, maximum=1.0)
    num_iterations = as_integer(num_iterations, 1, f"num_iterations={num_iterations!r}: must be a positive integer")
    if every is not None:
        check_every(every)

    def init(setting: Setting, state: TrainState) -> tuple[()]:
        check_state(setting, state)
        _chosen(setting.model.wiring, state.variables["params"], arrays)
        return ()

    def apply(
        setting: Setting, own: tuple[()], state: TrainState, observed: Observed, key: jax.Array, step: Any
    ) -> tuple[TrainState, tuple[()], Report]:
        due = is_start(observed, "fire") if every is None else is_due(step, every)
        wiring, params = setting.model.wiring, state.variables["params"]

        def act(params: Params) -> Params:
            return isometric(params, wiring, observed.taps, strength, num_iterations, arrays)

        new = jax.lax.cond(due, act, lambda params: params, params)
        pairs = zip(jax.tree.leaves(new), jax.tree.leaves(params), strict=True)
        # With strength 0, or if all kernels are 0, nothing changes, and the report must say so.
        has_moved = jax.lax.cond(due, lambda: jnp.any(jnp.stack([jnp.any(a != b) for a, b in pairs])), lambda: due)
        state = state._replace(variables={**state.variables, "params": new})
        written = _spaces_of_kernels(wiring, params, arrays)
        touched = {space: jnp.broadcast_to(has_moved, (wiring.size(space),)) for space in written}
        reason = jnp.where(due, jnp.where(has_moved, CHANGED, AS_IT_WAS), NOT_ITS_STEP)
        return state, own, Report(touched, reason.astype(jnp.int32))

    return Intervention(init, apply, needs_boundaries=every is None)


def isometric(
    params: Params,
    wiring: Wiring,
    taps: Taps,
    strength: ArrayLike = 1.0,
    num_iterations: int = 10,
    arrays: Sequence[str] | None = None,
) -> Params:
    """The parameters after FIRE; arguments as in `fire`; `taps` (or shapes) show which kernels are convolutions."""
    labels, leaves = wiring.labels_of(params), jax.tree.leaves(params)
    kinds = jax.tree.leaves(matrix_axes(wiring, params, by_head=False), is_leaf=_is_kind)
    chosen = _chosen(wiring, params, arrays)

    def one(label: Label, kind: MatrixAxes | None, is_chosen: bool, kernel: Array) -> Array:
        if kind is None or not is_chosen:
            return kernel
        axes = _positions_apart(kind, label) if _slides(wiring, taps, label) else kind
        matrices, restore = as_matrices(kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32)), axes)
        rows, columns = matrices.shape[1:]
        positions = prod(kernel.shape[index] for index in axes.batch)
        isometry = newton_schulz(matrices, num_iterations) * ((columns / rows) ** 0.5 / positions)
        alpha = jnp.asarray(strength, matrices.dtype)
        return restore((1 - alpha) * matrices + alpha * isometry).astype(kernel.dtype)

    new = [one(*each) for each in zip(labels, kinds, chosen, leaves, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), new)


def newton_schulz(matrices: Float[Array, "batch m n"], num_iterations: int) -> Float[Array, "batch m n"]:
    """`X / |X|`, then `1.5 X - 0.5 X X' X` repeatedly: singular values go to 1, or stay 0. Zero matrices stay zero."""
    size = jnp.linalg.norm(matrices, axis=(1, 2), keepdims=True)
    x = matrices / jnp.where(size > 0, size, 1)
    is_wide = x.shape[2] > x.shape[1]
    for _ in range(num_iterations):
        transposed = jnp.swapaxes(x, 1, 2)
        x = 1.5 * x - 0.5 * (x @ transposed @ x if is_wide else x @ (transposed @ x))
    return x


def _chosen(wiring: Wiring, params: Params, arrays: Sequence[str] | None) -> list[bool]:
    """Which arrays are changed, in the order of the leaves."""
    kinds = jax.tree.leaves(matrix_axes(wiring, params), is_leaf=_is_kind)
    has_heads = any(kind is not None and kind.batch for kind in kinds)
    names = QUERIES_AND_KEYS if arrays is None and has_heads else arrays
    paths = tree_paths(params)
    chosen = [
        kind is not None and (names is None or any(name in path for name in names))
        for kind, path in zip(kinds, paths, strict=True)
    ]
    if not any(chosen):
        kernels = ["/".join(path) for kind, path in zip(kinds, paths, strict=True) if kind is not None]
        raise ValueError(f"arrays={names!r}: no kernel has one of these names in its path; kernels are {kernels}")
    return chosen


def _spaces_of_kernels(wiring: Wiring, params: Params, arrays: Sequence[str] | None) -> tuple[str, ...]:
    """The spaces written by the chosen kernels: all their units change."""
    labels = zip(wiring.labels_of(params), _chosen(wiring, params, arrays), strict=True)
    written = {space for label, is_chosen in labels if is_chosen for space in label.writes()}
    return tuple(space for space in wiring.cloneable if space in written)


def _slides(wiring: Wiring, taps: Taps, label: Label) -> bool:
    """Whether a kernel's output has positions: then it is a convolution, not a layer after flattening."""
    own = () if label.site is None or label.site not in taps else (label.site,)
    sites = own or tuple(site for space in label.writes() for site in wiring.sites_of(space))
    return bool(sites) and len(jnp.shape(taps[sites[0]].pre)) > 2


def _positions_apart(kind: MatrixAxes, label: Label) -> MatrixAxes:
    positions = tuple(index for index in kind.rows if label.axes[index] is None)
    return MatrixAxes((*kind.batch, *positions), tuple(i for i in kind.rows if i not in positions), kind.columns)


def _is_kind(node: object) -> bool:
    return node is None or isinstance(node, MatrixAxes)
