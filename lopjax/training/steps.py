"""One training step of one network, with any loss and any optax optimizer."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PyTree

from lopjax.losses import accuracy, mean_cross_entropy
from lopjax.model import Model, Variables
from lopjax.signals import Observed, observe

Logs = dict[str, jax.Array]
"""Numbers that a step reports, by name."""


class TrainState(NamedTuple):
    """One network in training.

    Attributes:
        variables: parameters and batch statistics.
        opt_state: state of the optax optimizer.
        own: states of interventions, kept here so that checkpoints contain them.
    """

    variables: Variables
    opt_state: optax.OptState
    own: PyTree = ()


def init_state(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """A network at the start of training.

    Raises:
        ValueError: no variables with arrays of numbers under "params".
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            f"variables is a {type(variables).__name__}: must be {{'params': ...}}, as model.init makes it"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        if not hasattr(leaf, "dtype") or leaf.dtype.kind in "USO":
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} is a {type(leaf).__name__} without numbers: must be an array"
            )
    return TrainState(variables, optimizer.init(variables["params"]))


def train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: tuple[PyTree, PyTree],
    key: jax.Array | None = None,
    *,
    loss: Callable[[jax.Array, Any], jax.Array] = mean_cross_entropy,
    dropout_rate: jax.typing.ArrayLike | None = None,
    signals: bool = False,
    task: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> tuple[TrainState, Observed]:
    """One step of any optax optimizer on one batch, in train mode.

    Optimizers that need the loss receive `value`, `grad` and `value_fn` of the same batch, under optax's names
    (`polyak_sgd`, `lbfgs`, `contrib.reduce_on_plateau`).

    Args:
        model: the network.
        optimizer: any optax transformation.
        state: its variables and optimizer state.
        batch: `(inputs, labels)`.
        key: random key of dropout.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        dropout_rate: overrides the model's own; may be traced.
        signals: whether to observe backward signals, too.
        task: the stream's task, passed on as observed.
        extra: further keyword arguments of the optimizer's `update`; these override the three above.

    Returns:
        The new state, and the observations from *before* the step. Under jit, unused observations cost nothing.
    """
    observed = observe(
        model,
        state.variables,
        batch,
        loss=loss,
        train=True,
        key=key,
        dropout_rate=dropout_rate,
        signals=signals,
        task=task,
    )
    params = state.variables["params"]

    def value_fn(changed: PyTree) -> jax.Array:
        variables = {**state.variables, "params": changed}
        logits = model.apply(variables, batch[0], train=True, key=key, dropout_rate=dropout_rate).logits
        return loss(logits, batch[1])

    extra_args = {"value": observed.loss, "grad": observed.gradient, "value_fn": value_fn, **(extra or {})}
    takes_extra = optax.with_extra_args_support(optimizer)
    updates, opt_state = takes_extra.update(observed.gradient, state.opt_state, params, **extra_args)
    changed = optax.apply_updates(params, updates)
    return state._replace(variables={**observed.variables, "params": changed}, opt_state=opt_state), observed


LOGS: dict[str, Callable[[Observed], jax.Array]] = {
    "loss": lambda seen: seen.loss,
    "accuracy": lambda seen: accuracy(seen.logits, seen.batch[1]),
    "gradient_norm": lambda seen: optax.tree.norm(seen.gradient),
}
"""The logs that `logs_of` provides by name."""


def logs_of(seen: Observed, *names: str, **own: Callable[[Observed], jax.Array]) -> Logs:
    """The numbers that a step logs, from its observations.

    Args:
        seen: observations from `train_step`.
        names: any of `LOGS`: "loss", "accuracy" (needs integer labels), "gradient_norm" (Euclidean, all parameters).
        own: further logs, `Observed -> scalar`, by name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if unknown := [name for name in names if name not in LOGS]:
        raise ValueError(f"logs {unknown}: must be among {sorted(LOGS)}, or functions passed by name")
    return {name: log(seen) for name, log in {**{name: LOGS[name] for name in names}, **own}.items()}


def sgd_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    inputs: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    dropout_rate: jax.typing.ArrayLike | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = mean_cross_entropy,
) -> tuple[TrainState, Logs]:
    """Deprecated: `train_step` and `logs_of`. One step that logs loss and accuracy; this name works for one release."""
    warnings.warn(
        "sgd_step: use train_step(model, optimizer, state, (inputs, labels), key) and logs_of",
        DeprecationWarning,
        stacklevel=2,
    )
    state, observed = train_step(model, optimizer, state, (inputs, labels), key, loss=loss, dropout_rate=dropout_rate)
    return state, logs_of(observed, "loss", "accuracy")
