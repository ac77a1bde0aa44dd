"""Test the wiring that was read against the network itself, at parameters that hide nothing.

At initial parameters zero biases would hide a forgotten axis, so all numbers are drawn, in float64. All spaces at once:
units are permuted (by one long cycle, since a random permutation of two or three units is often the identity), cloned,
and made equal, where the gradient must be equal, too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.arguments.misfits import is_of_types
from lopjax.model import Model
from lopjax.tracing.network import Network, generic
from lopjax.tracing.recipes import Recipe, cloned
from lopjax.tracing.spaces import UNUSED
from lopjax.wiring import Path, Wiring, tree_from_paths

Arrays = dict[Path, np.ndarray]


class Verification(NamedTuple):
    """Relative differences, all of which are 0 according to the wiring.

    Attributes:
        permutation: change of the outputs after all free spaces were permuted.
        cloning: change of the outputs after all cloneable spaces were cloned two or three times.
        tangency: difference of the gradient between equal units, over its largest entry.
        tolerance: largest difference that rounding can explain.
        is_checked: whether the network is finite at generic parameters and computes in 32 bits or more.
        unreached: free spaces with fewer than two units that the outputs react to at any of the parameters tried
            (dead activations, outputs that are constant by construction): of these nothing was seen.
    """

    permutation: float
    cloning: float
    tangency: float
    tolerance: float
    is_checked: bool = True
    unreached: tuple[str, ...] = ()

    def sentence(self) -> str:
        """The outcome in words."""
        if not self.is_checked:
            return "not verified: the network is not finite at generic parameters, or computes in 16 bits"
        return (
            f"verified at generic parameters: permutation {self.permutation:.0e}, cloning {self.cloning:.0e}, gradient "
            f"at equal units {self.tangency:.0e} (up to {self.tolerance:.0e})"
            + (f"; nothing seen of {list(self.unreached)}, to which the outputs do not react" if self.unreached else "")
        )


class _Asked(NamedTuple):
    """A network to be tested: its outputs and gradient at given pieces."""

    wiring: Wiring
    recipes: Mapping[str, Recipe]
    run: Callable[[Arrays], tuple[np.ndarray, Arrays | None]]
    arrays: Arrays
    output: np.ndarray
    gradient: Arrays | None
    unreached: tuple[str, ...] = ()


def verify(network: Network, make: Callable[[Mapping[str, int]], Model], params: Any, inputs: Any) -> Verification:
    """Test a wiring against its network.

    Args:
        network: what was traced.
        make: makes the model with other numbers of units.
        params: shapes or concrete arrays; arrays that are positive throughout stay positive.
        inputs: a batch; integers are used as given.

    Raises:
        ValueError: a wiring that the network contradicts; the message names the space.
    """
    try:
        with jax.enable_x64(True):
            return _verified(network, make, params, inputs, [jnp.float64] * len(network.paths))
    except (TypeError, ValueError) as error:
        if not is_of_types(error):
            raise
        # It mixes types unless all are single, as a loop does whose carry starts in single precision.
        return _verified(network, make, params, inputs, [leaf.dtype for leaf in jax.tree.leaves(network.shapes)])


def _verified(
    network: Network, make: Callable[[Mapping[str, int]], Model], params: Any, inputs: Any, dtypes: Sequence[Any]
) -> Verification:
    """Test a wiring against its network at parameters of given types.

    Args:
        network: the traced network.
        make: the model of given sizes of some spaces.
        params: the user's parameters, of which the signs are kept where all are positive.
        inputs: a batch, or shapes of one.
        dtypes: type of every array.
    """
    x = jax.tree.map(_drawn_input, inputs)
    if any(dtype != jnp.float64 for dtype in dtypes):
        x = jax.tree.map(lambda drawn, leaf: drawn.astype(jnp.result_type(leaf)), x, inputs)
    eps = _coarsest(network, x, dtypes)
    tolerance = max(eps**0.5, 1e-6)
    asked = _most_alive(network, make({}), params, x, tolerance, dtypes) if eps <= 1e-5 else None
    if asked is None:
        return Verification(np.nan, np.nan, np.nan, np.nan, is_checked=False)
    return Verification(
        _permutation(asked, tolerance),
        _cloning(asked, make, x, tolerance),
        _tangency(asked, tolerance),
        tolerance,
        unreached=asked.unreached,
    )


_DRAWS = ((False, 0), (True, 0), (False, 1), (True, 1))
"""Whether all parameters are positive, and the seed: where activations are dead at one draw, another is tried."""


def _most_alive(
    network: Network, model: Model, params: Any, x: Any, tolerance: float, dtypes: Sequence[Any]
) -> _Asked | None:
    """The network at the draw where its outputs react to most spaces; None if it is finite at no draw.

    Args:
        network: the traced network.
        model: its model.
        params: the user's parameters.
        x: inputs.
        tolerance: relative difference that rounding can cause.
        dtypes: type of every array.
    """
    run, best = _asker(network, model, x), None
    assert network.diagram is not None
    by_rule = model.wiring.cloneable
    recipes = {each.name: each.recipe for each in network.diagram.spaces if each.recipe and each.name not in by_rule}
    for is_positive, seed in _DRAWS:
        arrays = _drawn(network, model.wiring, params, is_positive, seed, dtypes)
        output, gradient = run(arrays)
        if not np.isfinite(output).all():
            continue
        unreached = _unreached(model.wiring, gradient, tolerance)
        asked = _Asked(model.wiring, recipes, run, arrays, output, gradient, unreached)
        if best is None or len(asked.unreached) < len(best.unreached):
            best = asked
        if not best.unreached:
            break
    return best


def _unreached(wiring: Wiring, gradient: Arrays | None, tolerance: float) -> tuple[str, ...]:
    """The free spaces with fewer than two units in whose arrays the gradient is larger than the tolerance."""
    if gradient is None:
        return ()
    labels, level = dict(wiring.labels), tolerance * _largest(gradient)
    reached: dict[str, np.ndarray] = {}
    for path, array in gradient.items():
        for axis in labels[path].unit_axes(wiring.permutable):
            others = tuple(index for index in range(array.ndim) if index != axis.index)
            seen = np.abs(array).max(axis=others, initial=0.0) > level
            reached[axis.space] = reached.get(axis.space, np.zeros_like(seen)) | seen
    unused = {space for space, reason in wiring.reasons if reason == UNUSED}
    chosen = (space for space in wiring.permutable if space not in unused)
    return tuple(space for space in chosen if reached[space].sum() < min(2, wiring.size(space)))


def _largest(arrays: Arrays) -> float:
    return max((float(np.abs(array).max(initial=0.0)) for array in arrays.values()), default=0.0)


def _coarsest(network: Network, x: Any, dtypes: Sequence[Any]) -> float:
    program = network.plan(x, dtypes).program
    floats = [aval.dtype for aval in program.avals if jnp.issubdtype(getattr(aval, "dtype", int), jnp.floating)]
    return max(float(jnp.finfo(dtype).eps) for dtype in floats)


def _drawn_input(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return np.random.default_rng(3).normal(size=leaf.shape)
        return np.random.default_rng(3).integers(0, 2, leaf.shape).astype(leaf.dtype)
    array = np.asarray(leaf)
    if np.issubdtype(array.dtype, np.inexact):
        return np.random.default_rng(3).normal(size=array.shape)
    return array


def _drawn(
    network: Network, wiring: Wiring, params: Any, is_positive: bool, seed: int, dtypes: Sequence[Any]
) -> Arrays:
    rng, arrays, labels = np.random.default_rng(seed), {}, dict(wiring.labels)
    assert network.diagram is not None
    parts = jax.tree.leaves(network.parts(params))
    for given, dtype, paths, layout in zip(parts, dtypes, network.diagram.paths, network.diagram.layouts, strict=True):
        known = None if isinstance(given, jax.ShapeDtypeStruct) else np.asarray(given)
        stays_positive = known is not None and known.size > 0 and bool((known > 0).all())
        for path, shape in zip(paths, layout.shapes(), strict=True):
            fan = labels[path].num_summed(shape) if labels[path].reads() else 4
            drawn = generic(shape, rng, fan, is_positive or stays_positive or path[0] != "params")
            arrays[path] = drawn.astype(dtype)
    return arrays


def _flat(tree: Any) -> jax.Array:
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.asarray(leaf, jnp.result_type(float)) for leaf in leaves])


def _asker(network: Network, model: Model, x: Any) -> Callable[[Arrays], tuple[np.ndarray, Arrays | None]]:
    """The user's own function, with the gradient of a generic combination of its outputs; None if it has none."""

    @jax.jit
    def both(tree: Any) -> Any:
        def combined(tree: Any) -> Any:
            output = _flat(network.apply(model.view.merge(tree), x))
            return output @ jnp.asarray(np.random.default_rng(5).normal(size=output.shape)), output

        (_, output), gradient = jax.value_and_grad(combined, has_aux=True)(tree)
        return output, gradient

    @jax.jit
    def forward(tree: Any) -> Any:
        return _flat(network.apply(model.view.merge(tree), x))

    def run(arrays: Arrays) -> tuple[np.ndarray, Arrays | None]:
        tree = tree_from_paths(arrays)
        try:
            output, gradient = both(tree)
        except ValueError:  # a loop of unknown length has no gradient
            return np.asarray(forward(tree)), None
        return np.asarray(output), {path: np.asarray(_at(gradient, path)) for path in arrays}

    return run


def _at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _gap(one: np.ndarray, other: np.ndarray) -> float:
    size = max(float(np.abs(one).max(initial=0.0)), float(np.abs(other).max(initial=0.0)), 1e-300)
    return float(np.abs(one - other).max(initial=0.0)) / size


def _permuted(asked: _Asked, arrays: Arrays, spaces: Sequence[str]) -> Arrays:
    labels = dict(asked.wiring.labels)
    return {
        path: np.roll(array, 1, [axis.index for axis in labels[path].unit_axes(spaces)])
        for path, array in arrays.items()
    }


def _permutation(asked: _Asked, tolerance: float) -> float:
    spaces = asked.wiring.permutable
    gap, what = _permutation_gap(asked, spaces, tolerance)
    if gap <= tolerance:
        return gap
    for space in spaces:
        own, own_what = _permutation_gap(asked, (space,), tolerance)
        if not own <= tolerance:
            raise ValueError(_refuted(space, f"permuting its units changes the {own_what} by {own:.1e}"))
    raise ValueError(_refuted(str(list(spaces)), f"permuting all of them changes the {what} by {gap:.1e}"))


def _permutation_gap(asked: _Asked, spaces: Sequence[str], tolerance: float) -> tuple[float, str]:
    """Relative change of the outputs; or, where that is rounding, of the gradient, if it is more than ten times that.

    A derivative rule of its own may tell units apart by number, and not the two that are made equal: here every unit
    takes another's place.
    """
    output, gradient = asked.run(_permuted(asked, asked.arrays, spaces))
    gap = _gap(output, asked.output)
    if not gap <= tolerance or gradient is None or asked.gradient is None:
        return gap, "outputs"
    moved, scale = _permuted(asked, asked.gradient, spaces), _largest(gradient) or 1.0
    slope = max((float(np.abs(moved[path] - gradient[path]).max(initial=0.0)) for path in moved), default=0.0) / scale
    return (slope, "gradient") if slope > 10 * tolerance else (gap, "outputs")


def _cloning(asked: _Asked, make: Callable[[Mapping[str, int]], Model], x: Any, tolerance: float) -> float:
    units = [(space,) for space in asked.wiring.cloneable]
    units += list(dict.fromkeys(recipe.together for recipe in asked.recipes.values()))
    labels = dict(asked.wiring.labels)

    def gap(chosen: Sequence[tuple[str, ...]]) -> float:
        copies = {space: 2 + index % 2 for index, spaces in enumerate(chosen) for space in spaces}
        wide = make({space: n * asked.wiring.size(space) for space, n in copies.items()})
        variables = tree_from_paths(cloned(asked.arrays, labels, copies, asked.recipes))
        output = _flat(jax.jit(lambda tree: wide.apply(tree, x).logits)(variables))
        return _gap(np.asarray(output), asked.output)

    if not units or (total := gap(units)) <= tolerance:
        return total if units else 0.0
    for spaces in units:
        if (own := gap((spaces,))) > tolerance:
            raise ValueError(_refuted(spaces[0], f"cloning its units changes the outputs by {own:.1e}"))
    raise ValueError(_refuted(str(units), f"cloning all of them changes the outputs by {total:.1e}"))


def _tangency(asked: _Asked, tolerance: float) -> float:
    """Make the first two units of each space equal in all arrays and compare their gradients, which must be equal."""
    labels = dict(asked.wiring.labels)
    spaces = [space for space in asked.wiring.permutable if asked.wiring.size(space) > 1]

    def paired(path: Path, array: np.ndarray) -> np.ndarray:
        for axis in labels[path].unit_axes(spaces):
            order = np.arange(array.shape[axis.index])
            order[1] = 0
            array = np.take(array, order, axis.index)
        return array

    _, gradient = asked.run({path: paired(path, array) for path, array in asked.arrays.items()})
    if gradient is None:
        return 0.0
    scale = _largest(gradient) or 1.0
    worst, culprit = 0.0, ""
    for path, array in gradient.items():
        axes = labels[path].unit_axes(spaces)
        for axis in axes:
            rows = np.moveaxis(array, axis.index, 0)
            # If an array has a space twice, exchanging its units permutes both axes.
            swapped = array
            for other in axes:
                if other.space == axis.space:
                    order = np.arange(array.shape[other.index])
                    order[[0, 1]] = order[[1, 0]]
                    swapped = np.take(swapped, order, other.index)
            gap = float(np.abs(np.moveaxis(swapped, axis.index, 0)[:2] - rows[:2]).max(initial=0.0)) / scale
            if gap > worst:
                worst, culprit = gap, axis.space
    if not worst <= tolerance:
        raise ValueError(_refuted(culprit, f"gradients of two equal units differ by {worst:.1e} of the largest"))
    return worst


def _refuted(space: str, what: str) -> str:
    return (
        f"unit space {space!r} was read from the program, but {what}: the function tells its units apart where no "
        f"equation shows it (a number that happens to equal a count, a custom rule); pass fixed=({space!r},), or "
        "report the network"
    )
