"""Are the units in these clusters clones? Evidence from the parameters and from their signals on a batch."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopjax.arguments.batches import as_batch, check_tolerance
from lopjax.arguments.networks import check_network
from lopjax.arguments.order import no_batch, takes_old_order, third_is_mapping_or_no_batch
from lopjax.arguments.precision import all_digits
from lopjax.certificates.batch_evidence import Loss, Pass, SignalResiduals, gradient_shares, run, signal_residuals
from lopjax.certificates.cloned_verdicts import ClonedCertificate, CloneVerdict
from lopjax.certificates.parameter_residuals import KINDS, ArrayResiduals, array_residuals
from lopjax.certificates.symmetries import Change, align, changed, constants, is_invisible
from lopjax.cloning import Partition
from lopjax.cloning.programs import check_programs
from lopjax.cloning.rounding import (
    CERTAIN_FROM,
    at_least_float32,
    check_precision,
    parameter_tolerance,
    signal_tolerance,
)
from lopjax.losses import Batch, check_batch, check_inputs, mean_cross_entropy
from lopjax.manifolds import Clusters, Manifold, check_partition, cloned_manifold, tangency_residual
from lopjax.model import Model, Variables
from lopjax.models.check import check_labels
from lopjax.wiring import tree_paths


class _OnBatch(NamedTuple):
    """Evidence from a batch; empty, apart from the tolerance, without one."""

    seen: Pass | None
    sites: Mapping[str, SignalResiduals]
    gradients: Mapping[str, float]
    tangency: float | None
    tolerance: float


class _Case(NamedTuple):
    """All the evidence for a verdict: residuals of the arrays that count, and the evidence from a batch."""

    arrays: Mapping[str, ArrayResiduals]
    on_batch: _OnBatch
    tolerance: float

    def worst(self, kind: str) -> float:
        """The largest residual of a kind; infinite if one is not a number."""
        return max((_or_infinite(getattr(each, kind)) for each in self.arrays.values() if each.counted), default=0.0)

    def is_zero(self, *kinds: str) -> bool:
        """Whether all residuals of these kinds are within tolerance."""
        return all(self.worst(kind) <= self.tolerance for kind in kinds)

    def is_signal(self, kind: str) -> bool:
        """Whether some residual of this kind is certainly not zero."""
        return CERTAIN_FROM * self.tolerance <= self.worst(kind) < float("inf")


@takes_old_order("model variables partition batch loss", third_is_mapping_or_no_batch, no_batch)
@all_digits()
def certify_cloned(
    model: Model,
    variables: Variables,
    batch: Batch | None,
    partition: Partition,
    *,
    loss: Loss = mean_cross_entropy,
    train: bool = False,
    exclude: str | Sequence[str] = (),
    tolerance: float | None = None,
) -> ClonedCertificate:
    """Certify that the units of each cluster are clones.

    The parameters propose a verdict (RE and CE in every array put them on V, arXiv 2510.00304, 4.1), and a batch must
    confirm it: if activations, backward signals or the gradient contradict the parameters, or, for FORWARD_ONLY and
    NOT_CLONED, do not show the difference, the verdict is UNDECIDED. With a batch the verdict is also modulo changes
    that its loss cannot see, as detected by `lopjax.certificates.symmetries`: constants added to outgoing weights (over
    the classes of a softmax, or over a space that only layer norms read), signs of units, rotations inside attention
    heads.

    Args:
        model: the network.
        variables: its variables. Running statistics count like biases. 16-bit variables are converted to float32,
            exactly, before they are compared and the network is run.
        batch: `(inputs, labels)`, for forward, backward and gradient residuals; `None` to judge by the parameters
            alone.
        partition: cluster id of every unit, per space.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        train: run the batch in train mode (batch norm with its own statistics); dropout stays off.
        exclude: paths, such as "hidden_0/bias", that the verdict ignores: parameters whose true gradient is zero (a
            bias before batch norm, a key bias) are moved by Adam and Lion on rounding noise. They move the running mean
            with them: exclude "batch_stats/hidden_0_norm/mean" too.
        tolerance: relative residual that counts as zero; default `parameter_tolerance`.

    Raises:
        ValueError: a partition without clusters or that does not fit the wiring; an unknown path in `exclude`;
            variables of another network; a batch for a network that computes in 16 bits.
    """
    check_network(model, variables)
    wiring, variables = model.wiring, at_least_float32(variables)
    clusters = check_partition(wiring, partition)
    if not clusters:
        raise ValueError(
            "partition has no cluster of two or more units: there is nothing to certify; give one, such as (0, 0, 1)"
        )
    check_tolerance(tolerance)
    if batch is not None:
        batch = as_batch(batch)
        check_inputs(model, variables, batch[0])
    check_labels(model, variables, None if batch is None else batch[0])
    excluded = _resolve_excluded(exclude, ["/".join(path) for path in tree_paths(variables)])
    leaf = cloned_manifold(variables["params"], wiring, partition)
    question = _Question(model, variables, leaf, clusters, batch, loss, train, frozenset(excluded))
    limit = parameter_tolerance(variables["params"]) if tolerance is None else tolerance
    verdict, case, notes = _judge(question, limit)
    if excluded:
        notes.append(f"not counted: {sorted(excluded)}")
    data = case.on_batch
    return ClonedCertificate(verdict, case.arrays, data.sites, data.tangency, limit, data.tolerance, tuple(notes))


class _Question(NamedTuple):
    """The network and clusters to be certified."""

    model: Model
    variables: Variables
    leaf: Manifold
    clusters: Mapping[str, Clusters]
    batch: Batch | None
    loss: Loss
    train: bool
    excluded: frozenset[str]

    @property
    def only_permutable(self) -> tuple[str, ...]:
        """Spaces with clusters whose units cannot be cloned: in these, only equal units are known to stay equal."""
        return tuple(space for space in self.clusters if space not in self.model.wiring.cloneable)

    def case(self, tolerance: float, blind: Collection[str] = ()) -> _Case:
        """Residuals at these variables."""
        data = self.on_batch(tolerance)
        arrays = array_residuals(self.variables, self.model.wiring, self.clusters, self.excluded, data.gradients, blind)
        return _Case(arrays, data, tolerance)

    def on_batch(self, tolerance: float) -> _OnBatch:
        """Signals and gradients at these variables."""
        params, wiring = self.variables["params"], self.model.wiring
        if self.batch is None:
            return _OnBatch(None, {}, {}, None, max(tolerance, signal_tolerance(params, wiring)))
        inputs = jnp.asarray(self.batch[0])
        check_precision(jax.eval_shape(lambda: self.model.apply(self.variables, inputs).taps))
        check_batch(self.model, self.variables, self.batch, loss=self.loss)
        check_programs(self.model, self.variables, self.batch, self.loss)
        seen = run(self.model, self.variables, self.batch, self.loss, self.train)
        return _OnBatch(
            seen,
            signal_residuals(self.clusters, seen),
            gradient_shares(self.leaf, self.clusters, seen.gradient),
            float(tangency_residual(self.leaf, seen.gradient)),
            max(tolerance, signal_tolerance(params, wiring, seen.taps)),
        )

    def is_invisible(self, change: Change, tolerance: float) -> bool | None:
        """Whether the loss on the batch is the same after a change of variables, whatever the parameters."""
        if self.batch is None:
            return None
        batch = self.batch
        loss = lambda variables: run(self.model, variables, batch, self.loss, self.train).loss  # noqa: E731
        move = partial(changed, self.model.wiring, change)
        return is_invisible(move, self.model.wiring, self.variables, loss, tolerance)


def _resolve_excluded(exclude: str | Sequence[str], names: Sequence[str]) -> set[str]:
    exclude = (exclude,) if isinstance(exclude, str) else exclude
    resolved = {name if name in names else f"params/{name}" for name in exclude}
    if unknown := sorted(resolved - set(names)):
        raise ValueError(f"exclude={unknown}: no such arrays; they are {names}")
    return resolved


def _judge(question: _Question, tolerance: float) -> tuple[CloneVerdict, _Case, list[str]]:
    """The verdict, the residuals behind it, and notes.

    The parameters propose a verdict: first, constants added to outgoing weights that the loss cannot see are removed;
    then the strongest claim whose residuals are all zero is made or, if a residual is certainly not zero, the claim
    is denied. Then the batch may contradict it. Anything in between stays undecided.
    """
    case = question.case(tolerance)
    if not any(each.counted for each in case.arrays.values()):
        return CloneVerdict.UNDECIDED, case, ["every array with a cloned axis is excluded"]
    blind, maybe, notes = _hidden_constants(question, case)
    if blind:
        case = case._replace(arrays=question.case(tolerance, blind).arrays)
    notes = [*_largest(case), *notes]
    if case.is_zero("re", "ce"):
        is_equal = case.is_zero("bc") and not blind
        if question.only_permutable and not is_equal:
            spaces = list(question.only_permutable)
            why = f"units of {spaces} are permutable, not cloneable: only equal ones (BC) are trapped"
            return CloneVerdict.UNDECIDED, case, [*notes, why]
        verdict = CloneVerdict.BLOCK_CONSTANT if is_equal else CloneVerdict.ON_V
        return _unless(_contradiction(case, ("forward", "backward")), verdict, case, notes)
    if case.is_zero("re") and case.is_signal("ce") and not maybe:
        doubt = _contradiction(case, ("forward",)) or _silence(case, ("backward",), CERTAIN_FROM)
        return _unless(doubt, CloneVerdict.FORWARD_ONLY, case, notes)
    if case.is_signal("re"):
        return _judge_unequal(question, case, blind, maybe, notes)
    return CloneVerdict.UNDECIDED, case, notes


def _judge_unequal(
    question: _Question, case: _Case, blind: Collection[str], maybe: Collection[str], notes: list[str]
) -> tuple[CloneVerdict, _Case, list[str]]:
    """Not RE: clones up to a symmetry, not clones, or undecided."""
    wiring, variables, tolerance = question.model.wiring, question.variables, case.tolerance
    hidden = {*blind, *maybe}
    ids = {space: own.ids for space, own in question.clusters.items()}
    # Before units are called unequal, each is mapped onto the first of its cluster by the best sign or rotation. If
    # that makes them clones, this holds for the parameters only; whether the loss sees the map is tested on the loss.
    alignment = align(wiring, variables, ids, hidden)
    mapped = question._replace(variables=changed(wiring, alignment, variables))
    arrays = array_residuals(mapped.variables, wiring, question.clusters, question.excluded, {}, hidden)
    if case._replace(arrays=arrays).is_zero("re", "ce", *(("bc",) if question.only_permutable else ())):
        answer = question.is_invisible(alignment, tolerance)
        if answer and not maybe:
            there = mapped.case(tolerance, blind)
            doubt = _contradiction(there, ("forward", "backward"))
            seen = "residuals are those after mapping each unit onto the first of its cluster by a sign or rotation"
            notes = [*(note for note in notes if "largest" not in note), seen]
            return _unless(doubt, CloneVerdict.UP_TO_SYMMETRY, there, notes)
        if answer is not False:
            hint = "" if question.batch else ": a batch would show it"
            notes = [*notes, f"equal up to signs or rotations of units, which the loss may or may not see{hint}"]
            return CloneVerdict.UNDECIDED, case, notes
    return _unless(_silence(case, ("forward", "backward"), 1.0), CloneVerdict.NOT_CLONED, case, notes)


def _hidden_constants(question: _Question, case: _Case) -> tuple[set[str], set[str], list[str]]:
    """Arrays that break CE only in ways that the loss does not see, arrays that may do so, and notes."""
    names = [name for name, each in case.arrays.items() if each.counted and not each.ce <= case.tolerance]
    if not names:
        return set(), set(), []
    without = array_residuals(
        question.variables, question.model.wiring, question.clusters, question.excluded, {}, blind=names
    )
    blind, maybe, notes = set(), set(), []
    for seed, name in enumerate(names):
        if not without[name].ce <= case.tolerance:
            continue
        answer = question.is_invisible(constants(name, seed), case.tolerance)
        if answer is False:
            continue
        (blind if answer else maybe).add(name)
        verb = "does not see" if answer else "may or may not see" + ("" if question.batch else " (a batch shows it)")
        notes.append(f"{name}: outgoing weights differ by constants over the units it writes, which the loss {verb}")
    return blind, maybe, notes


def _largest(case: _Case) -> list[str]:
    """The arrays and clusters that are not within tolerance."""
    notes = []
    for kind in KINDS:
        if not case.is_zero(kind):
            counted = {name: each for name, each in case.arrays.items() if each.counted}
            name = max(counted, key=lambda name: _or_infinite(getattr(counted[name], kind)))
            where = [f", cluster of {space}[{unit}]" for at, space, unit in counted[name].worst if at == kind]
            size = getattr(counted[name], kind)
            notes.append(f"largest {kind.upper()} residual {size:.1e} in {name}{''.join(where)}")
    return notes


def _unless(doubt: str, verdict: CloneVerdict, case: _Case, notes: list[str]) -> tuple[CloneVerdict, _Case, list[str]]:
    if doubt:
        return CloneVerdict.UNDECIDED, case, [*notes, f"the parameters say {verdict.name}, but {doubt}"]
    return verdict, case, notes


def _contradiction(case: _Case, kinds: Sequence[str], multiple: float = CERTAIN_FROM) -> str:
    """What on the batch contradicts equal signals of these kinds (backward includes gradients); empty if nothing."""
    data = case.on_batch
    limit = multiple * data.tolerance
    for name, residuals in data.sites.items():
        for kind in kinds:
            if not getattr(residuals, kind) < limit:
                return f"{kind} signals at {name} differ by {getattr(residuals, kind):.1e}"
    if "backward" in kinds and data.tangency is not None:
        if not data.tangency < limit:
            return f"the gradient leaves the leaf by {data.tangency:.1e}"
        for name, share in data.gradients.items():
            if not share < limit:
                return f"the gradient of {name} leaves the leaf by {share:.1e}"
    return ""


def _silence(case: _Case, kinds: Sequence[str], multiple: float) -> str:
    """A sentence if neither signals of these kinds nor the gradient differ by this many tolerances; else empty.

    A difference of less than `CERTAIN_FROM` proves nothing, but does not contradict unequal parameters either.
    """
    if case.on_batch.seen is None or _contradiction(case, kinds, multiple):
        return ""
    return f"no difference shows on the batch ({', '.join(kinds)} signals and gradient agree)"


def _or_infinite(value: float) -> float:
    return value if value == value else float("inf")
