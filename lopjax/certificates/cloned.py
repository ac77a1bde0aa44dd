"""Are the units in these clusters clones? Evidence from the parameters, and from what they do on a batch."""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopjax.certificates.text import number, table
from lopjax.certificates.tolerances import GAP, parameter_tolerance, signal_tolerance
from lopjax.cloning import Partition
from lopjax.losses import Batch, check_batch, mean_cross_entropy
from lopjax.manifolds import (
    Clusters,
    Manifold,
    check_partition,
    cloned_manifold,
    cluster_mean,
    normal_part,
    tangency_residual,
    tree_norm,
)
from lopjax.model import Model, Params, Tap, Taps, Variables
from lopjax.wiring import Wiring, tree_paths


class CloneVerdict(Enum):
    """What a cloned-unit certificate concludes; the value is the sentence shown to the user."""

    BLOCK_CONSTANT = (
        "clones with equal weights (BC): trapped under gradient descent and under every update that treats equal "
        "weights with equal gradients alike"
    )
    ON_V = (
        "clones on V (RE and CE hold, BC does not or is undecided): trapped on the leaf W + BC under gradient "
        "descent and every update that depends on the gradient history alone"
    )
    FORWARD_ONLY = "equal activations (RE) but unequal outgoing totals (not CE): clones on every input, not trapped"
    NOT_CLONED = "not clones: some units of a cluster get different totals (not RE)"
    UNDECIDED = "undecided: residuals lie between rounding and signal, or parameters and data disagree"


class ArrayResiduals(NamedTuple):
    """Violations of one array, each a share of the array's norm (0 for a zero array).

    Attributes:
        re: `||P_in Q_out W|| / ||W||`, row equality: targets of a cluster get equal totals from each source cluster.
        ce: `||Q_in P_out W|| / ||W||`, column equality: sources of a cluster give equal totals.
        bc: `||W - P_in P_out W|| / ||W||`, block constancy: RE, CE and equal gauge.
        gradient: norm of the gradient's part normal to the leaf, over the norm of the *whole* gradient; `None` without
            a batch.
        counted: whether the verdict uses this array.
    """

    re: float
    ce: float
    bc: float
    gradient: float | None
    counted: bool


class SignalResiduals(NamedTuple):
    """Differences inside clusters at one site on the batch, over the norm of the site's whole signal.

    Attributes:
        forward: of the activations.
        backward: of dL/d(pre-activation).
    """

    forward: float
    backward: float


class ClonedCertificate(NamedTuple):
    """Result of `certify_cloned`; `str` gives a report.

    Attributes:
        verdict: the conclusion.
        arrays: residuals of every array with a cloned axis, statistics included.
        sites: signal residuals per site of a cloned space; empty without a batch.
        tangency: `||P_N g|| / ||g||` of the loss gradient on the leaf; `None` without a batch.
        tolerance: of parameter residuals.
        signal_tolerance: of signal and gradient residuals.
        notes: what a reader must know besides.
    """

    verdict: CloneVerdict
    arrays: Mapping[str, ArrayResiduals]
    sites: Mapping[str, SignalResiduals]
    tangency: float | None
    tolerance: float
    signal_tolerance: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """A report of a few lines, one row per array and per site."""
        arrays = [
            (name + ("" if r.counted else " (not counted)"), *map(number, (r.re, r.ce, r.bc, r.gradient)))
            for name, r in self.arrays.items()
        ]
        sites = [(name, number(r.forward), number(r.backward)) for name, r in self.sites.items()]
        lines = [
            f"Cloned units: {self.verdict.name}",
            f"  {self.verdict.value}",
            f"  tolerance {self.tolerance:.1e} for parameters, {self.signal_tolerance:.1e} for signals and gradients",
            *table(("array", "RE", "CE", "BC", "gradient"), arrays),
            *(table(("site", "forward", "backward"), sites) if sites else []),
        ]
        if self.tangency is not None:
            lines.append(f"  tangency residual of the gradient {self.tangency:.1e}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def certify_cloned(
    model: Model,
    variables: Variables,
    partition: Partition,
    batch: Batch | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = mean_cross_entropy,
    *,
    train: bool = False,
    exclude: str | Sequence[str] = (),
    tolerance: float | None = None,
) -> ClonedCertificate:
    """Certify that the units of each cluster are clones.

    The verdict follows from the parameters (RE and CE in every array put them on V, theory of arXiv 2510.00304, 4.1);
    a batch is a check on it: if activations, backward signals or the gradient contradict the parameters, the verdict
    is UNDECIDED.

    Args:
        model: the network.
        variables: its variables. Running statistics count like biases.
        partition: cluster id of every unit, per space.
        batch: `(inputs, labels)`, for forward, backward and gradient residuals.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        train: run the batch in train mode (batch norm with its own statistics); dropout stays off.
        exclude: paths, such as "hidden_0/bias", that the verdict must ignore: parameters whose true gradient is zero
            (a bias before batch norm, a key bias) are moved by Adam and Lion on rounding noise. They move the running
            mean along: exclude "batch_stats/hidden_0_norm/mean" too.
        tolerance: relative residual that counts as zero; default `parameter_tolerance`.

    Raises:
        ValueError: a partition without clusters or that does not fit the wiring; an unknown path in `exclude`;
            variables of another network.
    """
    wiring = model.wiring
    clusters = check_partition(wiring, partition)
    if not clusters:
        raise ValueError("partition has no cluster of two or more units: there is nothing to certify")
    names = ["/".join(path) for path in tree_paths(variables)]
    excluded = _resolve_excluded(exclude, names)
    params = variables["params"]
    tolerance = parameter_tolerance(params) if tolerance is None else tolerance
    data_tolerance = max(tolerance, signal_tolerance(params, wiring))
    gradients, sites, tangency = {}, {}, None
    if batch is not None:
        check_batch(loss, model, variables, batch)
        leaf = cloned_manifold(params, wiring, partition)
        gradient, backward, taps = _run(model.apply, loss, train, variables, batch)
        sites = _signal_residuals(clusters, taps, backward)
        data_tolerance = max(tolerance, signal_tolerance(params, wiring, taps))
        tangency = float(tangency_residual(leaf, gradient))
        gradients = _gradient_shares(leaf, gradient)
    arrays = _array_residuals(variables, wiring, partition, clusters, excluded, gradients)
    verdict, notes = _judge(arrays, sites, tangency, tolerance, data_tolerance)
    if excluded:
        notes.append(f"not counted: {sorted(excluded)}")
    return ClonedCertificate(verdict, arrays, sites, tangency, tolerance, data_tolerance, tuple(notes))


def _resolve_excluded(exclude: str | Sequence[str], names: Sequence[str]) -> set[str]:
    exclude = (exclude,) if isinstance(exclude, str) else exclude
    resolved = {name if name in names else f"params/{name}" for name in exclude}
    if unknown := sorted(resolved - set(names)):
        raise ValueError(f"exclude={unknown}: no such arrays; they are {names}")
    return resolved


def _array_residuals(
    variables: Variables,
    wiring: Wiring,
    partition: Partition,
    clusters: Mapping[str, Clusters],
    excluded: set[str],
    gradients: Mapping[str, float],
) -> dict[str, ArrayResiduals]:
    # Every array is scaled to unit size on its own: nothing overflows, and norms are relative already.
    scaled = jax.tree.map(_to_unit_norm, variables)
    manifold = cloned_manifold(scaled, wiring, partition)
    assert manifold.normals is not None
    pieces = [
        manifold.normals.incoming.project(scaled),
        manifold.normals.outgoing.project(scaled),
        normal_part(manifold, scaled),
    ]
    norms = [[float(tree_norm(leaf)) for leaf in jax.tree.leaves(piece)] for piece in pieces]
    residuals = {}
    for path, label, re, ce, bc in zip(tree_paths(variables), wiring.labels_of(variables), *norms, strict=True):
        name = "/".join(path)
        if any(space in clusters for space in (*label.reads(), *label.writes())):
            residuals[name] = ArrayResiduals(re, ce, bc, gradients.get(name), name not in excluded)
    return residuals


@jax.jit
def _to_unit_norm(array: jax.Array) -> jax.Array:
    """The array over its norm; scaled by its largest entry first, so that the norm cannot overflow."""
    largest = jnp.max(jnp.abs(array))
    array = array / jnp.where(largest > 0, largest, 1)
    norm = tree_norm(array).astype(array.dtype)
    return array / jnp.where(norm > 0, norm, 1)


# Compiled once per model, not once per certificate.
@partial(jax.jit, static_argnames=("apply", "loss", "train"))
def _run(
    apply: Callable[..., tuple],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    train: bool,
    variables: Variables,
    batch: Batch,
) -> tuple[Params, Taps, Taps]:
    """Gradient, backward signals and activations on a batch."""
    inputs, labels = batch

    def objective(params: Params, shifts: Mapping[str, Tap]) -> tuple[jax.Array, Taps]:
        state = {**variables, "params": params}
        logits, _, taps = apply(state, inputs, train=train, perturbations=shifts, dropout_rate=0.0)
        return loss(logits, labels), taps

    shapes = jax.eval_shape(lambda: apply(variables, inputs, train=train, dropout_rate=0.0)[2])
    shifts = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (gradient, backward), taps = jax.grad(objective, argnums=(0, 1), has_aux=True)(variables["params"], shifts)
    return gradient, backward, taps


def _signal_residuals(clusters: Mapping[str, Clusters], taps: Taps, backward: Taps) -> dict[str, SignalResiduals]:
    def spread(signal: jax.Array, space: str) -> float:
        within = signal - cluster_mean(signal, signal.ndim - 1, clusters[space])
        norm = tree_norm(signal)
        return float(tree_norm(within) / jnp.where(norm > 0, norm, 1))

    return {
        site: SignalResiduals(spread(tap.post, tap.space), spread(backward[site].pre, tap.space))
        for site, tap in taps.items()
        if tap.space in clusters
    }


def _gradient_shares(leaf: Manifold, gradient: Params) -> dict[str, float]:
    total = float(tree_norm(gradient)) or 1.0
    normals = jax.tree.leaves(normal_part(leaf, gradient))
    return {
        "/".join(("params", *path)): float(tree_norm(normal)) / total
        for path, normal in zip(tree_paths(gradient), normals, strict=True)
    }


def _judge(
    arrays: Mapping[str, ArrayResiduals],
    sites: Mapping[str, SignalResiduals],
    tangency: float | None,
    tolerance: float,
    data_tolerance: float,
) -> tuple[CloneVerdict, list[str]]:
    counted = {name: residuals for name, residuals in arrays.items() if residuals.counted}
    if not counted:
        return CloneVerdict.UNDECIDED, ["every array with a cloned axis is excluded"]
    worst = {
        kind: max(counted, key=lambda name, kind=kind: _or_infinite(getattr(counted[name], kind)))
        for kind in ("re", "ce", "bc")
    }
    size = {kind: getattr(counted[name], kind) for kind, name in worst.items()}
    notes = [
        f"largest {kind.upper()} residual {size[kind]:.1e} in {worst[kind]}"
        for kind in worst
        if not size[kind] <= tolerance
    ]
    is_zero = {kind: size[kind] <= tolerance for kind in size}
    is_signal = {kind: size[kind] >= GAP * tolerance for kind in size}
    if is_zero["re"] and is_zero["ce"]:
        verdict = CloneVerdict.BLOCK_CONSTANT if is_zero["bc"] else CloneVerdict.ON_V
        contradiction = _contradiction(sites, tangency, data_tolerance, ("forward", "backward"))
    elif is_zero["re"] and is_signal["ce"]:
        verdict, contradiction = CloneVerdict.FORWARD_ONLY, _contradiction(sites, None, data_tolerance, ("forward",))
    else:
        return (CloneVerdict.NOT_CLONED if is_signal["re"] else CloneVerdict.UNDECIDED), notes
    if contradiction:
        return CloneVerdict.UNDECIDED, [*notes, f"the parameters say {verdict.name}, but {contradiction}"]
    return verdict, notes


def _contradiction(
    sites: Mapping[str, SignalResiduals], tangency: float | None, tolerance: float, kinds: Sequence[str]
) -> str:
    """What on the batch speaks against the parameters; empty if nothing does."""
    for name, residuals in sites.items():
        for kind in kinds:
            if not getattr(residuals, kind) < GAP * tolerance:
                return f"{kind} signals at {name} differ by {getattr(residuals, kind):.1e}"
    if tangency is not None and not tangency < GAP * tolerance:
        return f"the gradient leaves the leaf by {tangency:.1e}"
    return ""


def _or_infinite(value: float) -> float:
    return value if value == value else float("inf")
