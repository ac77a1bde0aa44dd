"""The lanes of a group in training: their settings and seeds, and records of their logs and measurements."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.kit.methods import Group, Lane
from lopjax.runs.schedule import Part
from lopjax.training import Lanes, Logs, gathered, place


class GroupLanes(NamedTuple):
    """Lanes that share a program, in rows: each row has the seeds of one method and point of the grid.

    Attributes:
        group: the group.
        seeds: the seeds of every row.
        mesh: devices over which they are distributed; None for one device.
    """

    group: Group
    seeds: tuple[int, ...]
    mesh: Mesh | None = None

    def of_seeds(self, tree: Any) -> Any:
        """Arrays with a leading axis of seeds, repeated for every row, giving a leading axis of lanes."""
        return _repeated(tree, len(self.group.lanes) // len(self.seeds))

    def numbers(self) -> dict[str, jax.Array]:
        """The numbers that differ between lanes."""
        return {name: jnp.array(values) for name, values in self.group.traced.items()}

    def placed(self, tree: Any) -> Any:
        """Arrays with a leading axis of lanes, or of a row's seeds, placed where the compiled functions want them."""
        return place(tree, self.mesh, is_per_lane=True)

    def read(self, tree: Any) -> Any:
        """Arrays as NumPy arrays, gathered from all devices."""
        return jax.device_get(gathered(tree, self.mesh))

    def rows(self) -> list[tuple[slice, tuple[Lane, ...]]]:
        """The position of every row's lanes, and their names."""
        size = len(self.seeds)
        firsts = range(0, len(self.group.lanes), size)
        return [(slice(first, first + size), self.group.lanes[first : first + size]) for first in firsts]

    def row(self, tree: Any, row: slice) -> Any:
        """The arrays of one row's lanes, placed like those of all lanes."""
        return self.placed(_row(tree, row.start, row.stop - row.start))

    def part(self, phase: str, steps: int, do: Callable[[Any], Any], like: Callable[[], Any]) -> Part:
        """A part of `steps` steps of every lane, after which each lane has a record."""
        name = f"{phase}: {', '.join(self.group.methods)}"
        return Part(name, steps * len(self.group.lanes), do, like, num_records=len(self.group.lanes))

    def records(
        self, lanes: Lanes, logs: Logs, where: Mapping[str, Any], measure: Callable[[Any], Logs]
    ) -> list[dict[str, Any]]:
        """A record per lane.

        Args:
            lanes: their state.
            logs: logs of the previous steps, each an array over the lanes.
            where: fields that all records have: phase, step.
            measure: from the state of a row to its measurements, each an array over seeds. It is called row by row, so
                that groups with one method and groups with three share the compiled program.
        """
        logs, frozen_at, records = self.read(logs), self.read(lanes.frozen_at), []
        for row, names in self.rows():
            state = self.row(lanes.state, row)
            values = {name: array[row] for name, array in logs.items()} | self.read(measure(state))
            for index, lane in enumerate(names):
                frozen = int(frozen_at[row.start + index])
                record = {**lane.fields(), **where, **({"frozen_at": frozen} if frozen >= 0 else {})}
                records.append(record | {name: float(array[index]) for name, array in values.items()})
        return records


# One program for the whole tree: array by array, every shape would be compiled separately.
_repeated = jax.jit(
    lambda tree, num: jax.tree.map(lambda leaf: leaf[jnp.tile(jnp.arange(leaf.shape[0]), num)], tree), static_argnums=1
)
_row = jax.jit(
    lambda tree, first, size: jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, size), tree),
    static_argnums=2,
)
