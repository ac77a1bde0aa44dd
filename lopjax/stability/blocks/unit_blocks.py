"""Is a network of clones trapped at a saddle? One small block per unit decides for the whole normal space.

At a point of BC the Hessian on the normal space of the leaf is `sum_j I_(n_j - 1) x M_j + 0(gauge)`.
"""

import numpy as np
from jaxtyping import Array, Key

from lopjax.arguments.networks import check_network
from lopjax.arguments.order import renamed, takes_old_order, third_is
from lopjax.arguments.precision import all_digits
from lopjax.arguments.promotion import standard_promotion
from lopjax.cloning import Factor, Partition, clone_variables, collapse, uniform_partition, widen
from lopjax.cloning.programs import check_programs
from lopjax.cloning.rounding import parameter_tolerance
from lopjax.losses import Batch, check_batch, mean_cross_entropy
from lopjax.manifolds import check_partition
from lopjax.model import Model, Variables
from lopjax.models.check import check_labels
from lopjax.stability.blocks.closed_form import blocks_by_closed_form
from lopjax.stability.blocks.coordinates import block_constant_residual
from lopjax.stability.blocks.matrices import LossOfLogits
from lopjax.stability.blocks.plain_spaces import PlainSpace, plain_space
from lopjax.stability.blocks.results import BlockOptions, ClonedNetwork, SpaceBlocks, UnitBlocks, off_block_constant
from lopjax.stability.blocks.witnessed import blocks_by_products

__all__ = ["SpaceBlocks", "UnitBlocks", "unit_blocks", "unit_blocks_of_clones"]

METHODS = ("auto", "closed form", "batched hvp")


@takes_old_order("model variables loss batch factor", third_is(callable))
@all_digits()
def unit_blocks(
    model: Model,
    variables: Variables,
    batch: Batch,
    factor: Factor,
    *,
    loss: LossOfLogits = mean_cross_entropy,
    method: str = "auto",
    batch_size: int = 500,
    near_critical: bool = False,
    train: bool = False,
    num_steps: int = 32,
    key: Key[Array, ""] | None = None,
) -> UnitBlocks:
    """Stability of the network that `clone_variables(variables, model.wiring, factor)` makes, unit by unit.

    Args:
        model: the *base* network.
        variables: its variables.
        batch: inputs and labels of all the data, processed in batches.
        factor: number of clones of every unit, or `{space: number}`.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        method: "closed form" counts every eigenvalue, and needs plain layers: kernel, bias, activation, with nothing in
            between (convolutions and flatten are plain). "batched hvp" works for any network; it bounds the ends of
            every spectrum and does not count eigenvalues. "auto" takes the closed form where it applies.
        batch_size: samples per pass.
        near_critical: treat the point as an approximation of a critical point of the base network, at which B_j is rank
            deficient, and add `gradient_residual` to the tolerance. By default the report is about the point itself.
        train: whether batch norm uses the statistics of the batch (all of it at once; "batched hvp" only).
        num_steps: Lanczos steps of "batched hvp".
        key: random key of its start vectors, `jax.random.key(0)` by default.

    Returns:
        Reports and spectra per unit, and the report on the whole normal space.

    Raises:
        ValueError: see `clone_factors`; a factor that clones nothing; an unknown method; the closed form requested
            where it does not apply, or in train mode.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lopjax.models import mlp
        >>> base, batch = mlp((4,), (3,), 2), (jnp.ones((5, 4)), jnp.array([0, 1, 0, 0, 1]))
        >>> blocks = unit_blocks(base, base.init(jax.random.key(0)), batch, factor=2)
        >>> len(blocks.spaces["hidden_0"].reports), blocks.spaces["hidden_0"].dimension
        (3, 7)

    References:
        arXiv 2510.00304, definition 4 and section 4; the decomposition into unit blocks is this library's own.
    """
    check_network(model, variables)
    wide_model = widen(model, factor)
    clusters = check_partition(wide_model.wiring, uniform_partition(wide_model.wiring, factor))
    wide = clone_variables(variables, model.wiring, factor)
    options = BlockOptions(loss, batch_size, near_critical, train, num_steps, key)
    return _blocks(ClonedNetwork(model, variables, wide_model, wide, clusters), batch, method, options)


@takes_old_order(
    "wide_model wide_variables loss batch partition",
    third_is(callable),
    renamed(wide_model="model", wide_variables="variables"),
)
@all_digits()
def unit_blocks_of_clones(
    model: Model,
    variables: Variables,
    batch: Batch,
    partition: Partition,
    *,
    loss: LossOfLogits = mean_cross_entropy,
    bc_tolerance: float | None = None,
    method: str = "auto",
    batch_size: int = 500,
    near_critical: bool = False,
    train: bool = False,
    num_steps: int = 32,
    key: Key[Array, ""] | None = None,
) -> UnitBlocks:
    """Stability of a cloned network from its own variables: like `unit_blocks`, after checking that they lie on BC.

    Clusters of one space may have different sizes.

    Args:
        model: the cloned network.
        variables: its variables.
        batch: inputs and labels, all the data.
        partition: cluster id of every unit, per space with clones.
        loss: as in `unit_blocks`, like the arguments after `bc_tolerance`.
        bc_tolerance: largest `||W - P W|| / ||W||`, on the slices of one cluster, that counts as block constant;
            default `lopjax.cloning.rounding.parameter_tolerance`. With a larger value the blocks are those of the
            cluster means; then no report is `exact`, and each has a note to that effect.
        method: see `unit_blocks`.
        batch_size: see `unit_blocks`.
        near_critical: see `unit_blocks`.
        train: see `unit_blocks`.
        num_steps: see `unit_blocks`.
        key: see `unit_blocks`.

    Raises:
        ValueError: variables that are not block constant: elsewhere on V units couple, and the blocks would be wrong;
            an invalid partition; and as in `unit_blocks`.
    """
    check_network(model, variables)
    clusters = check_partition(model.wiring, partition, model.wiring.cloneable)
    residual = block_constant_residual(variables, model.wiring, clusters)
    allowed = parameter_tolerance(variables["params"]) if bc_tolerance is None else bc_tolerance
    if not residual <= allowed:
        raise ValueError(
            f"the variables are not block constant on these clusters: residual {residual:.3g}, allowed {allowed:.3g}. "
            "Off BC the units couple and their blocks would give wrong eigenvalues; use "
            "classify(loss, params, cloned_manifold(params, wiring, partition), method='dense' or 'lanczos')"
        )
    base_model = model.resize({space: len(each.leaders) for space, each in clusters.items()})
    base = collapse(variables, model.wiring, partition, np.float64)
    options = BlockOptions(loss, batch_size, near_critical, train, num_steps, key)
    network = ClonedNetwork(base_model, base, model, variables, clusters)
    blocks = _blocks(network, batch, method, options)
    is_rounding = residual <= parameter_tolerance(variables["params"])
    return blocks if is_rounding else off_block_constant(blocks, residual)


@standard_promotion()
def _blocks(network: ClonedNetwork, batch: Batch, method: str, options: BlockOptions) -> UnitBlocks:
    if method not in METHODS:
        raise ValueError(f"method={method!r}: must be one of {list(METHODS)}")
    if not network.clusters:
        raise ValueError("no unit has a clone: pass a factor of at least 2, or clusters of two or more units")
    if options.batch_size < 1 or options.num_steps < 1:
        wrong = ("batch_size", options.batch_size) if options.batch_size < 1 else ("num_steps", options.num_steps)
        raise ValueError(f"{wrong[0]}={wrong[1]}: must be a positive integer")
    check_batch(network.base_model, network.base, batch, loss=options.loss, size=options.batch_size)
    check_labels(network.base_model, network.base, batch[0])
    check_programs(network.base_model, network.base, batch, options.loss, is_curved=True)
    described = [plain_space(network.base_model.wiring, space) for space in network.clusters]
    reasons = [each for each in described if isinstance(each, str)]
    if options.train and network.wide.get("batch_stats"):
        reasons.append("train=True: batch norm couples the samples")
    if method == "closed form" and reasons:
        raise ValueError(f"the closed form does not apply: {'; '.join(reasons)}. Use method='batched hvp'")
    if method == "batched hvp" or reasons:
        return blocks_by_products(network, batch, options)
    return blocks_by_closed_form(network, [each for each in described if isinstance(each, PlainSpace)], batch, options)
