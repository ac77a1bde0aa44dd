"""How far every unit is from being a clone: a graded distance, by what units do and by their weights."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from lopjax.activations import Activation, activation
from lopjax.arguments.batches import as_numbers
from lopjax.arguments.networks import check_network
from lopjax.arguments.numbers import check_numbers, takes_numbers
from lopjax.metrics.scaling import scaled, times_power_of_two
from lopjax.model import Model, Tap, Variables, outputs_of, samples_by_units
from lopjax.optim.checks import check
from lopjax.wiring import Wiring, unit_rows


class Multiples(NamedTuple):
    """The c for which a unit with c times another's activations is its clone; c = 1 always counts.

    Attributes:
        positive: every c > 0: the activation is homogeneous (ReLU), and only kernels read the unit.
        mirrored: -1, or with `positive` every c < 0: the activation is odd (tanh).
    """

    positive: bool
    mirrored: bool


class Nearest(NamedTuple):
    """The nearest possible clone of every unit of a space.

    Attributes:
        distance: `|h_j - c h_k| / max(|h_j|, |c h_k|)`, Euclidean: 0 for a clone, at most 2; infinite for a unit that
            is 0 throughout (a dead unit equals others for a trivial reason), and where no other unit is alive; NaN for
            a unit with a number that is not finite, which is nobody else's nearest.
        unit: k, the nearest unit; the unit's own number where the distance is infinite or NaN.
        multiple: c.
    """

    distance: Float[Array, " units"]
    unit: Int[Array, " units"]
    multiple: Float[Array, " units"]


class CloneDistances(NamedTuple):
    """How far the units of one space are from being clones.

    Attributes:
        activations: by activations on the batch, over all sites that write the space, each on its own scale.
        parameters: by incoming weights, biases and norm parameters. Small is sufficient, not necessary: units whose
            weights differ but whose totals over cloned sources agree are far here and near by activations.
    """

    activations: Nearest
    parameters: Nearest


def clone_distances(model: Model, variables: Variables, batch: Any) -> dict[str, CloneDistances]:
    """Distance of every unit to the nearest unit that it might be a clone of. Pure, static shapes; use under jit.

    Where `find_clones` says which units are clones up to rounding, this is the measure to watch: "three units are
    within 1 % of a clone" (`near_clones`). Mirror twins of odd activations and positive multiples of homogeneous ones
    count as clones, see `multiples_by_activations`. A head counts as one unit with all its coordinates; heads that
    are equal up to a linear map of them are far apart here.

    The nearest unit is chosen by products of rows, to about the square root of rounding; its distance is then
    computed from the difference itself, to rounding.

    Args:
        model: any model.
        variables: its variables, evaluated in eval mode.
        batch: inputs `(batch, *input_shape)`, or `(inputs, labels)`, whose labels are not used.

    Returns:
        For every cloneable space with a site, its distances.

    Raises:
        ValueError: inputs that the network does not take; none at all, on which all units would be alike.
    """
    check_network(model, variables)
    inputs = as_numbers("inputs", batch[0] if isinstance(batch, tuple) else batch)
    wiring = model.wiring
    taps = outputs_of(model, variables, inputs, dropout_rate=0.0).taps
    distances = {}
    for space in wiring.cloneable:
        tapped = [taps[site] for site in wiring.sites_of(space)]
        if tapped:
            distances[space] = CloneDistances(
                nearest_units(activation_rows(tapped), multiples_by_activations(wiring, space)),
                nearest_units(parameter_rows(wiring, variables, space), multiples_by_parameters(wiring, space)),
            )
    return distances


def near_clones(
    distances: Mapping[str, CloneDistances], tolerance: ArrayLike = 0.01
) -> dict[str, Bool[Array, " units"]]:
    """Which units are within a tolerance of a clone by activations.

    Args:
        distances: result of `clone_distances`.
        tolerance: relative distance.

    Raises:
        ValueError: distances that are not one number per unit, or a number that is no tolerance.
    """
    for space, distance in distances.items():
        check_numbers(f"distance in {space}", distance.activations.distance, ranks=1)
    check("tolerance", tolerance, minimum=0.0)
    return {space: distance.activations.distance <= tolerance for space, distance in distances.items()}


def check_per_unit(**arrays: ArrayLike) -> None:
    """Refuse arrays that do not have one number for each unit of one space.

    Raises:
        ValueError: another number of axes, different numbers of units, or no numbers.
    """
    for name, array in arrays.items():
        check_numbers(name, array, ranks=1)
    sizes = {name: jnp.shape(array)[0] for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"arrays for different numbers of units, {sizes}: they must be of the units of one space")


def activation_rows(taps: Sequence[Tap]) -> Float[Array, "units samples"]:
    """Activations of every unit at all sites of its space side by side, each site divided by its mean square root."""

    def rows(tap: Tap) -> jax.Array:
        values = samples_by_units(tap.post).T
        values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        is_finite = jnp.isfinite(values)
        values, _ = scaled(jnp.where(is_finite, values, 0))  # or squares overflow and vanish
        size = jnp.sqrt(jnp.mean(jnp.square(values)))
        return jnp.where(is_finite, values / jnp.where(size > 0, size, 1), jnp.nan)

    return jnp.concatenate([rows(tap) for tap in taps], axis=1)


def parameter_rows(wiring: Wiring, variables: Variables, space: str) -> Float[Array, "units parameters"]:
    """Incoming parameters of every unit side by side; running statistics are not among them."""
    labels, leaves = wiring.labels_of(variables["params"]), jax.tree.leaves(variables["params"])
    slices = [
        unit_rows(leaf, axis)
        for label, leaf in zip(labels, leaves, strict=True)
        for axis, *_ in label.unit_axes((space,), is_read=False)
    ]
    rows = jnp.concatenate(slices, axis=1)
    return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))


@takes_numbers(rows=2)
def nearest_units(rows: Float[Array, "units n"], multiples: Multiples) -> Nearest:
    """The nearest row of every row, up to the multiples that are allowed.

    Args:
        rows: one for each unit.
        multiples: which c count.
    """
    rows = jnp.asarray(rows)
    if 0 in rows.shape:
        raise ValueError(f"rows has shape {rows.shape}: must be (units, n), both at least 1")
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    is_known = jnp.all(jnp.isfinite(rows), axis=1)
    # Each row is a power of two times one of size 1, so that no square overflows or vanishes.
    rows, exponents = scaled(jnp.where(is_known[:, None], rows, 0), axis=1)
    exponents = exponents[:, 0]
    lengths = jnp.linalg.norm(rows, axis=1)
    safe = jnp.where(lengths > 0, lengths, 1)
    directions = rows / safe[:, None]
    products = jnp.matmul(directions, directions.T, precision=jax.lax.Precision.HIGHEST)
    sign = jnp.where(products < 0, -1, 1) if multiples.mirrored else jnp.ones_like(products)
    ratio = times_power_of_two(safe[:, None] / safe[None], exponents[:, None] - exponents[None])
    # The shorter over the longer, or 1 where multiples make them equally long.
    share = jnp.ones_like(ratio) if multiples.positive else jnp.minimum(ratio, 1 / ratio)
    is_pair = (lengths > 0)[:, None] & (lengths > 0)[None] & ~jnp.eye(len(rows), dtype=bool)
    rough = jnp.where(is_pair, 1 + share**2 - 2 * share * sign * products, jnp.inf)
    units = jnp.arange(len(rows))
    unit = jnp.where(jnp.any(is_pair, axis=1), jnp.argmin(rough, axis=1), units)
    sign = sign[units, unit]
    if multiples.positive:
        multiple, distance = (
            sign * ratio[units, unit],
            jnp.linalg.norm(directions - sign[:, None] * directions[unit], axis=1),
        )
    else:
        multiple, distance = sign, _relative_distance(rows, exponents, sign, unit)
    distance = jnp.where(is_pair[units, unit], distance, jnp.inf)
    return Nearest(jnp.where(is_known, distance, jnp.nan), unit, multiple)


def _relative_distance(rows: Array, exponents: Array, sign: Array, unit: Array) -> Float[Array, " units"]:
    """`|h_j - c h_k| / max(|h_j|, |h_k|)`, c = ±1, with both rows on the scale of the larger."""
    common = jnp.maximum(exponents, exponents[unit])
    mine = times_power_of_two(rows, (exponents - common)[:, None])
    other = times_power_of_two(rows[unit], (exponents[unit] - common)[:, None])
    longest = jnp.maximum(jnp.linalg.norm(mine, axis=1), jnp.linalg.norm(other, axis=1))
    return jnp.linalg.norm(mine - sign[:, None] * other, axis=1) / jnp.where(longest > 0, longest, 1)


def multiples_by_activations(wiring: Wiring, space: str) -> Multiples:
    """Which multiples of a unit's activations are its clones.

    Positive ones of homogeneous activations, -1 of odd ones: whatever kernel reads both can be split among them
    without a change of the function. In a space over whose units a layer norm averages, none but 1.
    """
    if space in wiring.coupled:
        return Multiples(False, False)
    sites = [activation(wiring.site(site).activation) for site in wiring.sites_of(space)]
    return Multiples(all(bool(entry.is_homogeneous) for entry in sites), all(is_odd(entry) for entry in sites))


def multiples_by_parameters(wiring: Wiring, space: str) -> Multiples:
    """Which multiples of a unit's incoming parameters make multiples of its activations.

    The same as by activations where these parameters are kernels and at most one bias for each site; with the
    parameters or statistics of a norm among them the pre-activation is not linear in them, and only 1 is left.
    """
    labels = dict(wiring.labels)
    incoming = [(path, labels[path]) for path, _ in wiring.incoming(space)]
    is_normed = any(path[0] != "params" for path, _ in incoming)
    num_biases = sum(not label.reads() for _, label in incoming)
    if is_normed or num_biases > len(wiring.sites_of(space)):
        return Multiples(False, False)
    return multiples_by_activations(wiring, space)


def is_odd(entry: Activation) -> bool:
    """Whether f(-z) = -f(z): as the `Activation` says, or else tried on 64 points, to 1e-5 of the largest value."""
    if entry.is_odd is not None:
        return entry.is_odd
    with jax.ensure_compile_time_eval():
        points = jnp.asarray(np.concatenate([np.linspace(0, 3, 48), np.geomspace(3, 30, 16)]), jnp.float32)
        values, mirrored = np.asarray(entry(points)), np.asarray(entry(-points))
    return bool(np.abs(values + mirrored).max() <= 1e-5 * max(np.abs(values).max(), 1.0))
