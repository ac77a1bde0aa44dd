"""Which units of one layer are one unit by now, and kicks that they alone allow."""

from typing import NamedTuple

import numpy as np

from lopjax.activations import Activation


class Units(NamedTuple):
    """What has become of the units of a layer.

    Attributes:
        cluster: number of every unit's cluster, from 0 in order of first units; -1 for units that have vanished.
        multiple: c of every unit, whose activations are c times those of its cluster's first; 0 if it has vanished.
    """

    cluster: np.ndarray
    multiple: np.ndarray

    @property
    def num_distinct(self) -> int:
        """Number of clusters."""
        return int(self.cluster.max(initial=-1)) + 1

    @property
    def num_vanished(self) -> int:
        """Number of units that have vanished."""
        return int((self.cluster < 0).sum())


def units_of(activations: np.ndarray, activation: Activation, tolerance: float) -> Units:
    """Units that coincide: equal, mirrored if the activation is odd, multiples if it is positive-homogeneous.

    Args:
        activations: `(samples, units)`.
        activation: whose facts say which multiples count.
        tolerance: units are one if `|h_i - c h_1| <= tolerance max(|h_i|, |c h_1|)`, c allowed and h_1 the first unit
            of the cluster; a unit has vanished if `|h_i| <= tolerance max_k |h_k|`. Norms over samples.
    """
    values = np.asarray(activations, np.float64)
    sizes = np.linalg.norm(values, axis=0)
    cluster, multiple = np.full(len(sizes), -1), np.zeros(len(sizes))
    firsts: list[int] = []
    for unit in np.flatnonzero(sizes > tolerance * sizes.max()):
        own = values[:, unit]
        for number, first in enumerate(firsts):
            factor = _allowed(own @ values[:, first] / sizes[first] ** 2, activation)
            gap = np.linalg.norm(own - factor * values[:, first])
            if gap <= tolerance * max(sizes[unit], abs(factor) * sizes[first]):
                cluster[unit], multiple[unit] = number, factor
                break
        else:
            cluster[unit], multiple[unit] = len(firsts), 1.0
            firsts.append(int(unit))
    return Units(cluster, multiple)


def _allowed(factor: float, activation: Activation) -> float:
    """The multiple nearest to a factor under which units of an activation are clones."""
    size = abs(factor) if activation.is_homogeneous else 1.0
    return -size if activation.is_odd and factor < 0 else size


def outgoing_kick(units: Units, noise: np.ndarray) -> np.ndarray:
    """What of a change of outgoing weights no output sees: in every cluster `sum_i c_i r_i = 0`.

    A cluster of one gets nothing; a unit that has vanished gets all of its noise, as nothing of it is sent.

    Args:
        units: units of the layer.
        noise: the change, `(units, outputs)`.
    """
    kick = np.array(noise, np.float64)
    for number in range(units.num_distinct):
        members = units.cluster == number
        direction = units.multiple[members] / np.linalg.norm(units.multiple[members])
        kick[members] -= np.outer(direction, direction @ kick[members])
    return kick


def merged(kernel: np.ndarray, bias: np.ndarray, outgoing: np.ndarray, units: Units) -> tuple[np.ndarray, ...]:
    """Weights of the network of distinct units: means of what comes in, up to the multiples, and sums of what goes out.

    Args:
        kernel: incoming weights, `(inputs, units)`.
        bias: `(units,)`.
        outgoing: `(units, outputs)`.
        units: units of the layer.

    Returns:
        The same three arrays with a unit a cluster.
    """
    members = (units.cluster == np.arange(units.num_distinct)[:, None]).astype(np.float64)  # (clusters, units)
    safe = np.where(units.multiple == 0, 1.0, units.multiple)
    means = members / np.maximum(members.sum(1, keepdims=True), 1) / safe
    return kernel @ means.T, bias @ means.T, (members * units.multiple) @ outgoing
