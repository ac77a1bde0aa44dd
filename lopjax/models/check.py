"""Are the labels of a network correct? `check_wiring` tests them on the network, at parameters that hide nothing.

Initial parameters hide mistakes: where biases are zero, a forgotten axis label of a bias changes nothing. So the
network is tested at random parameters, scaled by the sizes of its arrays' sums, in float64.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lopjax.arguments.batches import check_leaves
from lopjax.arguments.misfits import described, in_a_sentence, is_of_types
from lopjax.model import Model, NotResizableError, Tap, Variables, outputs_of
from lopjax.models import claims, site_claims
from lopjax.models.claims import Arrays, Probe, Seen, Shifts
from lopjax.models.constructors import is_recorded
from lopjax.wiring import Path, tree_from_paths, tree_paths

CLAIMS: tuple[Callable[[Probe], list[str]], ...] = (
    claims.shape_faults,
    claims.symmetry_faults,
    claims.cloning_faults,
    claims.coupling_faults,
    site_claims.source_faults,
    site_claims.site_faults,
    site_claims.reader_faults,
    site_claims.order_faults,
    site_claims.sum_faults,
)
_SAMPLES = 8  # few enough to be cheap, enough that hardly any ReLU (one in 2^8) is zero on all of them


class _Description(NamedTuple):
    """What a check depends on in addition to the model: shapes of its variables and inputs; hashable."""

    arrays: tuple[tuple[Path, tuple[int, ...]], ...]
    inputs: "_Inputs"


class _Inputs:
    """A few inputs, equal to any others of the same shape and type when compared."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self.key = (values.shape[1:], values.dtype.kind)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Inputs) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def check_wiring(model: Model, batch: tuple[Any, Any], variables: Variables | None = None) -> None:
    """Test every claim of a network's labels on the network.

    At random parameters and, if inputs are floating point numbers, random inputs: exchanging units exchanges their
    activations; clones with half of the outgoing slices each preserve the function, also in the wider network if the
    model can be resized; a unit that is not read has no influence (or its space is coupled); kernels with a `source`
    make up the pre-activations of their `site`, and nothing else reads that source; arrays act only through the `site`
    that they name, and arrays without a site do not act through a single one; sites depend only on sites upstream of
    them.

    Call it once for every network of your own, in a test. Most of the tests (all but the wider network and the
    forgotten sites) also run once per model before the first verdict about it.

    Args:
        model: the network.
        batch: `(inputs, labels)`; the labels are not used.
        variables: variables that provide shapes; by default those of `model.init`.

    Raises:
        ValueError: wrong labels; one line for each, with advice, for the first kind of claim in the order above that
            fails.

    Example:
        >>> import jax.numpy as jnp
        >>> from lopjax.models import mlp
        >>> check_wiring(mlp((4,), (3,), 2), (jnp.ones((5, 4)), None))
    """
    shapes = variables if variables is not None else jax.eval_shape(model.init, jax.random.key(0))
    _check_batch(model, shapes, batch)
    description = _described(shapes, batch[0])
    probe, faults = _probe(model, description), list(_faults(model, description))
    if probe is None:
        raise ValueError(
            "the labels cannot be checked: the network is not finite at random parameters, or computes in 16 bits "
            "(build it with compute_dtype='float32': the labels are the same)"
        )
    if not faults:
        # Alternately two and three copies, so that spaces which only have one size in common are told apart.
        copies = {space: 2 + index % 2 for index, space in enumerate(model.wiring.cloneable)}
        faults = site_claims.forgotten_sites(probe) + (_widening_faults(model, probe, copies) or [])
    _raise(faults)


def check_labels(model: Model, variables: Variables, inputs: Any = None) -> None:
    """Refuse a network with wrong labels; done once per model, except for the library's own architectures.

    The library's architectures are checked by its tests. Nothing is checked under a trace, if random parameters give
    non-finite numbers, if the network computes in 16 bits, or if there are neither inputs nor a known input shape.

    Args:
        model: the network.
        variables: its variables; only their shapes are used.
        inputs: a batch of inputs; by default random ones of the model's `input_shape`.

    Raises:
        ValueError: as in `check_wiring`.
    """
    if is_recorded(model, "lopjax.models."):
        return
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((variables, inputs))):
        return
    model.wiring.labels_of(variables)  # raises if they belong to another network
    if inputs is not None:
        _check_batch(model, variables, (inputs, None))
    if inputs is None and model.input_shape is not None:
        inputs = np.zeros((1, *model.input_shape))
    if inputs is not None:
        _raise(_faults(model, _described(variables, inputs)))


def _check_batch(model: Model, variables: Variables, batch: Any) -> None:
    """Refuse what is no pair, and inputs that the network does not take."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch is a {type(batch).__name__}: must be (inputs, labels); the labels are not used")
    check_leaves(batch[0], None)
    jax.eval_shape(lambda variables, inputs: outputs_of(model, variables, inputs)[0], variables, batch[0])


def _raise(faults: tuple[str, ...] | list[str]) -> None:
    if faults:
        raise ValueError("\n".join(["the labels of this network are wrong:", *(f"  {fault}" for fault in faults)]))


def _described(variables: Variables, inputs: Any) -> _Description:
    shapes = tuple((path, tuple(leaf.shape)) for path, leaf in _leaves(variables))
    return _Description(shapes, _Inputs(np.asarray(inputs[:_SAMPLES])))


def _leaves(variables: Variables) -> list[tuple[Path, Any]]:
    return list(zip(tree_paths(variables), jax.tree.leaves(variables), strict=True))


@lru_cache(maxsize=256)
def _faults(model: Model, description: _Description) -> tuple[str, ...]:
    probe = _probe(model, description)
    if probe is None:
        return ()
    # One mistake breaks many claims: those of the first failing kind are reported, not the ones that follow from them.
    return next((tuple(faults) for claim in CLAIMS if (faults := claim(probe))), ())


def _probe(model: Model, description: _Description) -> Probe | None:
    """The network at random parameters; `None` if it is not finite there, or computes in 16 bits."""
    inputs = description.inputs.values
    if np.issubdtype(inputs.dtype, np.floating):
        inputs = np.random.default_rng(3).normal(size=(_SAMPLES, *inputs.shape[1:]))
    for is_positive in (False, True):
        arrays = _drawn(model, dict(description.arrays), is_positive)
        run, dtypes = _runner(model, arrays, inputs)
        if any(jnp.finfo(dtype).bits < 32 for dtype in dtypes):
            return None
        seen = run(arrays, {})
        if all(np.isfinite(each).all() for each in (seen.logits, *seen.pre.values(), *seen.post.values())):
            # A float32 constant inside a float64 network does not show in any type: hence the floor.
            eps = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
            probe = Probe(model.wiring, run, arrays, seen, inputs, max(eps**0.5, 1e-6))
            probe = probe._replace(pieces=_pieces(model, arrays))
            return probe._replace(is_cloned_as_labelled=partial(_is_cloned_as_labelled, model, probe))
    return None


def _pieces(model: Model, arrays: Arrays) -> frozenset[Path]:
    """Paths of the arrays that the network's author did not write, but an array of which they are a part."""
    whole = {*tree_paths(jax.eval_shape(model.view.merge, tree_from_paths(arrays)))}
    return frozenset(path for path in arrays if path not in whole)


def _drawn(model: Model, shapes: Mapping[Path, tuple[int, ...]], is_positive: bool) -> dict[Path, np.ndarray]:
    """Parameters whose sums have a size of about 1, and positive statistics; all numbers are distinct and nonzero."""
    random, arrays = np.random.default_rng(0), {}
    labels = dict(model.wiring.labels)
    for path, shape in shapes.items():
        if is_positive or path[0] != "params":
            arrays[path] = random.uniform(0.5, 1.5, shape)
            continue
        summed = labels[path].num_summed(shape) if labels[path].reads() else 4
        arrays[path] = 1.5 * random.normal(size=shape) / np.sqrt(summed)
    return arrays


def _runner(model: Model, arrays: Arrays, inputs: np.ndarray) -> tuple[Callable[[Arrays, Shifts], Seen], list[Any]]:
    """Forward passes of one compiled program, and the types that they carry."""
    try:
        with jax.enable_x64(is_double := True):
            shapes = _shapes(model, arrays, inputs)
    except (TypeError, ValueError) as error:
        if not is_of_types(error):
            raise
        # It mixes types unless all are single, as a loop does whose carry starts in single precision.
        with jax.enable_x64(is_double := False):
            shapes = _shapes(model, arrays, inputs)
    zero = {site: np.zeros(tap.pre.shape) for site, tap in shapes[1].items()}

    def run(arrays: Arrays, shifts: Shifts) -> Seen:
        taps = {}
        for site, tap in shapes[1].items():
            pre, post = shifts.get(site, (None, None))
            pre, post = (zero[site] if each is None else each for each in (pre, post))
            taps[site] = Tap(tap.space, pre, post, tap.activation)
        with jax.enable_x64(is_double):
            logits, seen = _jitted(model, tree_from_paths(arrays), jnp.asarray(inputs), taps)
        pre, post = (
            {site: np.asarray(getattr(tap, kind), np.float64) for site, tap in seen.items()} for kind in ("pre", "post")
        )
        return Seen(_as_one(logits), pre, post)

    return run, [leaf.dtype for leaf in jax.tree.leaves(shapes)]


def _shapes(model: Model, arrays: Arrays, inputs: np.ndarray) -> Any:
    """Shapes of outputs and taps; the network took the user's own batch, whose number of samples is another one."""
    with in_a_sentence(
        f"the labels cannot be checked: the network does not take {len(inputs)} samples, inputs {described(inputs)}",
        "it must take any number of samples, as `x.reshape(len(x), -1)` does",
    ):
        return jax.eval_shape(partial(_forward, model), tree_from_paths(arrays), jnp.asarray(inputs), None)


def _as_one(logits: Any) -> np.ndarray:
    """Outputs as one array in float64; of several arrays their entries, one after the other."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(logits)]
    return leaves[0] if len(leaves) == 1 else np.concatenate([leaf.ravel() for leaf in leaves])


def _forward(model: Model, variables: Variables, inputs: jax.Array, shifts: Mapping[str, Tap] | None) -> tuple:
    logits, _, taps = model.apply(variables, inputs, perturbations=shifts, dropout_rate=0.0)
    return logits, taps


_jitted = partial(jax.jit, static_argnums=0)(_forward)


def _is_cloned_as_labelled(model: Model, probe: Probe, space: str) -> bool:
    return _widening_faults(model, probe, {space: 2}) == []


def _widening_faults(model: Model, probe: Probe, copies: Mapping[str, int]) -> list[str] | None:
    """The network with copies of units computes the same function; None if it cannot be resized."""
    wiring = probe.wiring
    try:
        wide = model.resize({space: n * wiring.size(space) for space, n in copies.items()})
    except NotResizableError:
        return None
    except ValueError as error:
        return [f"resize: {error}"]
    arrays = {}
    for path, array in probe.arrays.items():
        for axis in probe.label(path).unit_axes(copies):
            n = copies[axis.space]
            array = np.repeat(array, n, axis.index) / (n if axis.is_read else 1)
        arrays[path] = array
    shapes = dict(_described(jax.eval_shape(wide.init, jax.random.key(0)), probe.inputs).arrays)
    faults = [
        f"{claims.name(path)}: of shape {shapes.get(path)} in the resized network, {array.shape} by its labels"
        for path, array in arrays.items()
        if shapes.get(path) != array.shape
    ]
    if not faults:
        run, _ = _runner(wide, arrays, probe.inputs)
        if probe.differs(run(arrays, {}).logits, probe.seen.logits):
            faults = ["the resized network with cloned units computes something else: `resize` does more than widen"]
    return faults
