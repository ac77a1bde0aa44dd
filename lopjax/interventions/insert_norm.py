"""Inserting a norm into a trained network without changing its function."""

import importlib
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.arguments.batches import as_numbers
from lopjax.arguments.numbers import check_finite
from lopjax.losses import check_inputs
from lopjax.model import Model, Variables
from lopjax.models.norms import BatchNorm
from lopjax.wiring import Path, Wiring, tree_paths

ROUNDING = 1e4
"""Largest change of a logit by a norm that undoes itself, in units of eps times the largest logit."""


class _Norm(NamedTuple):
    """One inserted norm.

    Attributes:
        module: path of its module, without the collection.
        samples: how many numbers it averages over on the batch.
        bias: the bias that the layer before it had and no longer has, `(units,)` or 0.
    """

    module: Path
    samples: int
    bias: Any


def insert_norm(model: Model, variables: Variables, batch: Any, norm: str = "batch") -> tuple[Model, Variables]:
    r"""The network with batch norms where its architecture has them and, in eval mode, the same function as before.

    This inserts a norm that a network should have had from the start (arXiv 2510.00304 finds that it prevents much of
    the loss of plasticity). Each batch norm gets the mean :math:`\mu` and variance v of its input on the batch for its
    running statistics, the scale :math:`\sqrt{v + \epsilon}` and the offset :math:`\mu`, so that it undoes itself in
    eval mode, whatever the batch. From then on it affects training: in train mode the statistics are those of the
    minibatch, as for any batch norm.

    A layer norm cannot be inserted in this way: it divides each sample by its own standard deviation, which no scale
    and offset can undo.

    Args:
        model: a network whose constructor has an argument `norm`, which is "none": those of `lopjax.models`, and others
            that are `lopjax.models.recorded`.
        variables: its variables.
        batch: inputs, or `(inputs, labels)`; more samples give better statistics; the function is preserved with any
            number.
        norm: "batch".

    Returns:
        The new network, and its variables: the old parameters and the norms. A bias that the architecture has only
            without norms is absorbed by the offset of the norm that follows it. The state of an optimizer has to be
            initialised again.

    Raises:
        ValueError: a network that does not record how it was made, or has a norm; "layer" or an unknown norm; inputs or
            parameters that are not finite; logits that would change by more than rounding, because the architecture
            differs in more than its norm.
    """
    inputs = as_numbers("inputs", batch[0] if isinstance(batch, tuple) else batch)
    check_inputs(model, variables, inputs)
    check_finite("inputs", inputs)
    check_finite("params", variables["params"])
    new_model = _with_batch_norm(model, norm)
    params, norms = _start(model, new_model, variables, inputs)

    @jax.jit
    def seen(params: Any) -> Any:
        """Mean and unbiased variance of the input of every norm; in train mode each scale undoes its norm."""
        shapes = jax.eval_shape(new_model.init, jax.random.key(0))["batch_stats"]
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        after = new_model.apply({"params": params, "batch_stats": nothing}, inputs, train=True, dropout_rate=0.0)[1]
        return jax.tree.map(lambda leaf: leaf / (1 - BatchNorm.momentum), after["batch_stats"])

    statistics = seen(params)
    for _ in norms:  # Each pass fixes at least one more norm, the next in the order of the forward pass.
        old, statistics = statistics, seen(_undoing(params, statistics, norms, is_biased=True))
        if all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(statistics), strict=True)):
            break
    new = {"params": _undoing(params, statistics, norms, is_biased=False), "batch_stats": statistics}
    _check_function(model, variables, new_model, new, inputs)
    return new_model, new


def _with_batch_norm(model: Model, norm: str) -> Model:
    if norm == "layer":
        raise ValueError(
            "norm='layer': it divides every sample by a spread of its own, which no scale and offset undo, so it "
            "cannot be put in without a change of the function; use norm='batch'"
        )
    if norm != "batch":
        raise ValueError(f"norm={norm!r}: must be 'batch'")
    if model.constructor is None:
        raise ValueError("the network does not say how it was made; decorate its constructor with models.recorded")
    arguments = dict(model.constructor.arguments)
    if arguments.get("norm") != "none":
        raise ValueError(
            f"the network was made with norm={arguments.get('norm')!r}: must be 'none' for one to be inserted"
        )
    module, _, name = model.constructor.make.partition(":")
    affine = {"affine": True} if "affine" in arguments else {}
    normed: Model = getattr(importlib.import_module(module), name)(**{**arguments, **affine, "norm": "batch"})
    return normed.resize({space: model.wiring.size(space) for space in model.wiring.cloneable})


def _start(model: Model, new_model: Model, variables: Variables, inputs: jax.Array) -> tuple[Any, list[_Norm]]:
    """Parameters of the new network, with its norms at scale 1 and offset 0, and the facts about each norm."""
    old = dict(zip(tree_paths(variables["params"]), jax.tree.leaves(variables["params"]), strict=True))
    shapes = jax.eval_shape(new_model.init, jax.random.key(0))["params"]
    paths, dtype = tree_paths(shapes), jnp.result_type(*old.values())
    missing = [path for path in paths if path not in old and path[-1] not in ("scale", "offset")]
    if missing:
        raise ValueError(f"with a norm the network has parameters that are not the norm's: {missing}")
    leaves = [
        jnp.asarray(old[path]) if path in old else jnp.full(leaf.shape, float(path[-1] == "scale"), dtype)
        for path, leaf in zip(paths, jax.tree.leaves(shapes), strict=True)
    ]
    taps = jax.eval_shape(lambda x: model.apply(variables, x, dropout_rate=0.0)[2], inputs)
    lost = {path: leaf for path, leaf in old.items() if path not in paths}
    norms = [_norm(new_model.wiring, model.wiring, path[:-1], taps, lost) for path in paths if path[-1] == "offset"]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves), norms


def _norm(wiring: Wiring, old_wiring: Wiring, module: Path, taps: Any, lost: dict[Path, jax.Array]) -> _Norm:
    label = dict(wiring.labels)[("params", *module, "offset")]
    site = label.site if label.site in taps else wiring.sites_of(label.writes()[0])[0]
    labels = dict(old_wiring.labels)
    # The bias of the layer before the norm: both are in the same module.
    biases = [
        leaf
        for path, leaf in lost.items()
        if labels[("params", *path)].axes == label.axes and path[: len(module) - 1] == module[:-1]
    ]
    return _Norm(module, prod(taps[site].pre.shape[:-1]), biases[0] if biases else 0)


def _undoing(params: Any, statistics: Any, norms: list[_Norm], is_biased: bool) -> Any:
    """Scales and offsets that undo the norms: in train mode with the biased variance, in eval mode with the other."""
    new = jax.tree.map(lambda leaf: leaf, params)
    for module, samples, bias in norms:
        here, batch_stats = new, statistics
        for name in module:
            here, batch_stats = here[name], batch_stats[name]
        variance = batch_stats["var"] * ((samples - 1) / samples if is_biased else 1)
        here["scale"], here["offset"] = jnp.sqrt(variance + BatchNorm.epsilon), batch_stats["mean"] + bias
    return new


def _check_function(model: Model, variables: Variables, new_model: Model, new: Variables, inputs: jax.Array) -> None:
    before = np.asarray(jax.jit(model.apply)(variables, inputs, dropout_rate=0.0)[0])
    after = np.asarray(jax.jit(new_model.apply)(new, inputs, dropout_rate=0.0)[0])
    change, largest = float(np.abs(after - before).max()), float(np.abs(before).max())
    allowed = ROUNDING * float(np.finfo(before.dtype).eps) * max(largest, 1.0)
    if not change <= allowed:
        raise ValueError(
            f"logits change by {change:.3g}, more than rounding ({allowed:.3g}): with norm='batch' this architecture "
            "differs by more than its norms, or its norms are not lopjax.models.norms.BatchNorm"
        )
