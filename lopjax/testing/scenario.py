"""A network on which an intervention acts, the programs that let it, and everything seen before and after."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopjax.interventions.reasons import CHANGED, OPTIMIZER_STARTED
from lopjax.model import Model, Variables
from lopjax.signals import Observed, observe
from lopjax.training.interventions import Intervention, Report, Setting, intervene
from lopjax.training.steps import TrainState
from lopjax.training.streams import Task
from lopjax.wiring import In, Out, Wiring

Batch = tuple[Any, Any]


class Programs(NamedTuple):
    """What is compiled for one intervention and one network.

    Attributes:
        alone: `(state, observed, key, step) -> (state, report)`.
        company: the same, vmapped over all arguments.
    """

    alone: Callable[..., tuple[TrainState, Report]]
    company: Callable[..., tuple[TrainState, Report]]


class Slices(NamedTuple):
    """Entries of the variables that belong to touched units: trees of boolean NumPy arrays."""

    incoming: Any
    outgoing: Any


class Act(NamedTuple):
    """One step on which an intervention has acted; arrays are NumPy's.

    Attributes:
        setting: model and optimizer of the network.
        before: the state that it was given.
        after: the state that it has left.
        observed: what it saw.
        touched: which units it says that it has changed.
        step: number of the step.
        slices: slices of the units that it has touched, over variables.
    """

    setting: Setting
    before: TrainState
    after: TrainState
    observed: Observed
    touched: Mapping[str, np.ndarray]
    step: int
    slices: Slices


def prepared(setting: Setting, seed: int) -> TrainState:
    """A network in the middle of training, drawn by NumPy: no moment of the optimizer and no statistic is at its start.

    Args:
        setting: model and optimizer of the network.
        seed: seed of the draw.
    """
    random = np.random.default_rng(seed)

    def moved(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return np.asarray(leaf) + np.asarray(3, leaf.dtype)
        if is_key(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return np.asarray(leaf) + random.uniform(0.1, 0.5, leaf.shape).astype(leaf.dtype)

    variables = dict(jax.device_get(initial(setting.model)(jax.random.key(seed))))
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(moved, variables["batch_stats"])
    return TrainState(variables, jax.tree.map(moved, started(setting.optimizer, variables["params"])))


def starved(setting: Setting, state: TrainState) -> TrainState:
    """One unit of every space has zeros for incoming parameters, and so gives f(0) on every input."""
    return _at_one_unit(setting, state, lambda slices, a: np.where(slices.incoming, 0, a))


def faint(setting: Setting, state: TrainState) -> TrainState:
    """The same units with next to no effect: their outgoing weights are divided by a thousand."""
    return _at_one_unit(setting, state, lambda slices, a: np.where(slices.outgoing & ~slices.incoming, a * 1e-3, a))


def _at_one_unit(setting: Setting, state: TrainState, edit: Callable[[Slices, Any], Any]) -> TrainState:
    wiring, params = setting.model.wiring, state.variables["params"]
    units = {space: np.arange(wiring.size(space)) == wiring.size(space) // 2 for space in wiring.cloned_by_default}
    incoming, outgoing = slices_of(wiring, params, units)
    params = jax.tree.map(lambda i, o, a: edit(Slices(i, o), np.asarray(a)), incoming, outgoing, params)
    return state._replace(variables={**state.variables, "params": params})


def other_inputs(inputs: Any, seed: int) -> Any:
    """Inputs like these that no method has seen: drawn with three times their deviation; integers are shuffled."""
    random = np.random.default_rng(seed)

    def other(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        if not np.issubdtype(leaf.dtype, np.floating):
            return random.permuted(leaf.ravel()).reshape(leaf.shape)
        return random.normal(leaf.mean(), 3 * leaf.std() + 1e-3, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(other, inputs)


@cache
def initial(model: Model) -> Callable[[jax.Array], Variables]:
    """`model.init`, compiled once."""
    return jax.jit(model.init)


@cache
def initials(model: Model) -> Callable[[jax.Array], Variables]:
    """`model.init` of many keys."""
    return jax.jit(jax.vmap(model.init))


@cache
def forward(model: Model) -> Callable[[Variables, Any], jax.Array]:
    """Logits in eval mode."""
    return jax.jit(lambda variables, inputs: model.apply(variables, inputs).logits)


@cache
def taps_of(model: Model) -> Callable[[Variables, Any], Any]:
    """Activations in train mode, as a method sees them."""
    return jax.jit(lambda variables, inputs: model.apply(variables, inputs, train=True, dropout_rate=0.0).taps)


@cache
def observer(model: Model, loss: Callable) -> Callable[..., Observed]:
    """`(variables, batch, is_start) -> Observed` of a training step."""

    def of(variables: Variables, batch: Batch, is_start: Any) -> Observed:
        observed = observe(model, variables, batch, loss=loss, train=True, key=jax.random.key(0), dropout_rate=0.0)
        return observed._replace(task=Task(jnp.int32(0), is_start))

    return jax.jit(of)


def slices_of(wiring: Wiring, tree: Any, units: Mapping[str, np.ndarray]) -> Slices:
    """Index by index, in NumPy, independently of the library."""

    def marked(side: type[In] | type[Out]) -> Any:
        masks = []
        for label, leaf in zip(wiring.labels_of(tree), jax.tree.leaves(tree), strict=True):
            mask = np.zeros(np.shape(leaf), bool)
            for index, axis in enumerate(label.axes):
                if isinstance(axis, side) and axis.space in units:
                    np.moveaxis(mask, index, 0)[np.flatnonzero(units[axis.space])] = True
            masks.append(mask)
        return jax.tree.unflatten(jax.tree.structure(tree), masks)

    return Slices(marked(Out), marked(In))


def started(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """Its state at the start, random keys as they are."""
    return jax.jit(optimizer.init)(params)


def programs(intervention: Intervention, setting: Setting) -> Programs:
    """Compile an intervention, alone and in company."""

    def act(state: TrainState, observed: Observed, key: jax.Array, step: Any) -> tuple[TrainState, Report]:
        return intervene(intervention, setting, state, observed, key, step)

    return Programs(jax.jit(act), jax.jit(jax.vmap(act)))


def see(setting: Setting, state: TrainState, batch: Batch, is_start: bool = True) -> Observed:
    """What a training step observes of a state."""
    return observer(setting.model, setting.loss)(state.variables, batch, jnp.bool_(is_start))


def until_it_acts(
    program: Callable[..., tuple[TrainState, Report]],
    setting: Setting,
    state: TrainState,
    observed: Observed,
    key: jax.Array,
    steps: Sequence[int],
) -> Act | None:
    """Let it see the same network step after step until it changes something; None if it does not."""
    for step in steps:
        after, report = program(state, observed, jax.random.fold_in(key, step), jnp.int32(step))
        touched = {space: np.asarray(mask) for space, mask in report.touched.items()}
        if int(report.reason) in (CHANGED, OPTIMIZER_STARTED) or any(mask.any() for mask in touched.values()):
            after = jax.device_get(after._replace(opt_state=plain(after.opt_state), own=())), after.own
            slices = slices_of(setting.model.wiring, state.variables, touched)
            return Act(setting, state, after[0]._replace(own=after[1]), observed, touched, step, slices)
        state = state._replace(own=after.own)
    return None


def plain(tree: Any) -> Any:
    """Random keys as their numbers, so that everything is an array of NumPy's."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def is_key(leaf: Any) -> bool:
    """Whether a leaf holds random keys."""
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def setting_of(model: Model, optimizer: optax.GradientTransformation | None, loss: Callable) -> Setting:
    """Adam unless said otherwise: two moments per array, and one count."""
    return Setting(model, optax.adam(1e-2) if optimizer is None else optimizer, loss)


def touched_spaces(act: Act) -> list[str]:
    """Spaces of which at least one unit was touched."""
    return [space for space, mask in act.touched.items() if mask.any()]


def named(tree: Any) -> Mapping[str, Any]:
    """Leaves by a readable path."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
