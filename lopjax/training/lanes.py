"""Lanes: independent runs of one program: sequential on a CPU, batched elsewhere, distributed over devices.

A lane is one seed of one method. Lanes are independent, so the result of a lane must not depend on which others run
with it. On a CPU, where XLA sums in a different order for a batch of matrices than for a single one, lanes run one
after the other through the program of one lane, and every bit is the same. On an accelerator, where batching pays off,
they are batched. With several devices or hosts, each device runs its share of the lanes; the batches of a lane may be
sharded over devices too.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from lopjax.random.philox import spell_out_products

SEED, BATCH = "seed", "batch"


def lane_mesh(seed_devices: int = 1, batch_devices: int = 1) -> Mesh | None:
    """A grid of devices: lanes are distributed over its rows, the batches of each lane over its columns.

    Args:
        seed_devices: number of groups of devices, each with its own share of the lanes.
        batch_devices: number of devices in a group, each with its own share of every batch.

    Returns:
        A mesh over `seed_devices * batch_devices` of the devices of all processes; None for a single device, which
        needs no mesh.

    Raises:
        ValueError: a number is not positive, there are too few devices, or a process would be left without any.
    """
    for name, value in (("seed_devices", seed_devices), ("batch_devices", batch_devices)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    num_devices, devices = seed_devices * batch_devices, jax.devices()
    if num_devices > len(devices):
        raise ValueError(
            f"seed_devices={seed_devices}, batch_devices={batch_devices}: need {num_devices} devices, there are "
            f"{len(devices)} ({devices[0].platform}); on a CPU, the environment variable "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={num_devices} makes as many"
        )
    if jax.process_count() > 1 and num_devices != len(devices):
        raise ValueError(
            f"seed_devices={seed_devices}, batch_devices={batch_devices}: {jax.process_count()} processes have "
            f"{len(devices)} devices together; the product must be {len(devices)}"
        )
    if num_devices == 1:
        return None
    spell_out_products()
    grid = np.array(devices[:num_devices]).reshape(seed_devices, batch_devices)
    return Mesh(grid, (SEED, BATCH))


def check_lanes(num_lanes: int, mesh: Mesh | None, name: str = "seeds") -> None:
    """Refuse a number of lanes that is not a multiple of the mesh's rows, before anything is compiled.

    Raises:
        ValueError: it is not a multiple; the message gives both numbers.
    """
    rows = 1 if mesh is None else mesh.shape[SEED]
    if num_lanes % rows:
        raise ValueError(f"seed_devices={rows}: must divide the {num_lanes} {name}")


def over_lanes(
    function: Callable[..., Any],
    num_lane_args: int,
    mesh: Mesh | None = None,
    donate: bool = False,
    is_batched: bool | None = None,
) -> Callable[..., Any]:
    """Compile a function of one lane for many.

    Args:
        function: pure function of `num_lane_args` trees of one lane and of arguments shared by all lanes; returns a
            tree.
        num_lane_args: number of arguments that have a leading lane axis in the compiled function.
        mesh: result of `lane_mesh`; the number of lanes must be a multiple of its rows.
        donate: whether the buffers of the first argument may be reused for the result.
        is_batched: whether lanes run batched; by default on all devices but CPUs. On a CPU it pays off for lanes so
            small that dispatching operations dominates; the bits of a lane then depend on the number of lanes.

    Returns:
        The compiled function, whose result has a leading lane axis.
    """

    def lanes(*args: Any) -> Any:
        own, shared = args[:num_lane_args], args[num_lane_args:]
        is_sequential = jax.default_backend() == "cpu" if is_batched is None else not is_batched
        if is_sequential:
            return jax.lax.map(lambda one: function(*one, *shared), own)
        return jax.vmap(lambda *one: function(*one, *shared))(*own)

    donated = (0,) if donate else ()
    if mesh is None:
        return jax.jit(lanes, donate_argnums=donated)

    # A batch axis over more than one device is left to the compiler, which follows `cut_batch`.
    manual = {SEED} if mesh.shape[BATCH] > 1 else {SEED, BATCH}

    def spread(*args: Any) -> Any:
        specs = (PartitionSpec(SEED),) * num_lane_args + (PartitionSpec(),) * (len(args) - num_lane_args)
        return jax.shard_map(
            lanes, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(SEED), axis_names=manual, check_vma=False
        )(*args)

    return jax.jit(spread, donate_argnums=donated)


def cut_batch(batch: PyTree, mesh: Mesh | None) -> PyTree:
    """Inside a function of one lane: shard the leading axis of every array over the columns of the mesh."""
    if mesh is None or mesh.shape[BATCH] == 1:
        return batch
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec(BATCH)), batch)


def place(tree: PyTree, mesh: Mesh | None, is_per_lane: bool) -> PyTree:
    """Place arrays as the compiled functions need them: sharded by lane over the mesh's rows, or replicated.

    Args:
        tree: arrays and random keys, the same on every process.
        mesh: result of `lane_mesh`; None leaves arrays unchanged.
        is_per_lane: whether their leading axis is the lane axis.
    """
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(SEED) if is_per_lane else PartitionSpec())

    def put(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        # Each process copies the shards of its own devices.
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)

    return jax.tree.map(put, tree)


def gathered(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The same arrays replicated on every device, so that every process can read them. All processes must call it."""
    if mesh is None:
        return tree
    return _gather(mesh)(tree)


@cache
def _gather(mesh: Mesh) -> Callable[[PyTree], PyTree]:
    """The jitted function of `gathered`: a new one for every call would be compiled anew."""
    return jax.jit(lambda arrays: arrays, out_shardings=NamedSharding(mesh, PartitionSpec()))
