"""What `certify_cloned` concludes, and its report."""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from lopjax.certificates.batch_evidence import SignalResiduals
from lopjax.certificates.parameter_residuals import ArrayResiduals
from lopjax.certificates.tables import number, table


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
    UP_TO_SYMMETRY = (
        "clones up to signs or rotations of units that the loss cannot see: trapped under gradient descent with or "
        "without momentum; coordinate-wise updates such as Adam's keep signs, not rotations"
    )
    FORWARD_ONLY = (
        "equal activations (RE) but unequal outgoing totals (not CE): clones on every input, and not trapped where "
        "their backward signals differ (seen on the batch, if one was given)"
    )
    NOT_CLONED = "not clones: some units of a cluster get different totals (not RE)"
    UNDECIDED = "undecided: residuals lie between rounding and signal, or parameters and data disagree"


class ClonedCertificate(NamedTuple):
    """Result of `certify_cloned`; `str` gives a report.

    Attributes:
        verdict: the conclusion.
        arrays: residuals of every array with a cloned axis, statistics included. For UP_TO_SYMMETRY, arrays, sites and
            tangency refer to the network after its units are mapped onto each other.
        sites: signal residuals per site of a cloned space; empty without a batch.
        tangency: `||P_N g|| / ||g||` of the loss gradient on the leaf; `None` without a batch.
        tolerance: tolerance of parameter residuals.
        signal_tolerance: tolerance of signal and gradient residuals.
        notes: anything else the reader needs to know.
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
