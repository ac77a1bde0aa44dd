"""Certificates: is this network trapped, in what sense, and on what evidence?"""

from lopjax.certificates.batch_evidence import SignalResiduals
from lopjax.certificates.cloned import ClonedCertificate, CloneVerdict, certify_cloned
from lopjax.certificates.dead_units import interval_bounds, joint_margin, revival_radius
from lopjax.certificates.frozen import FrozenCertificate, FrozenVerdict, UnitEvidence, certify_frozen
from lopjax.certificates.parameter_residuals import ArrayResiduals
from lopjax.certificates.symmetries import leaves_loss_unchanged
from lopjax.certificates.weighted import WeightedCertificate, WeightedVerdict, certify_weighted
from lopjax.cloning.rounding import parameter_tolerance, signal_tolerance

__all__ = [
    "ArrayResiduals",
    "CloneVerdict",
    "ClonedCertificate",
    "FrozenCertificate",
    "FrozenVerdict",
    "SignalResiduals",
    "UnitEvidence",
    "WeightedCertificate",
    "WeightedVerdict",
    "certify_cloned",
    "certify_frozen",
    "certify_weighted",
    "interval_bounds",
    "joint_margin",
    "leaves_loss_unchanged",
    "parameter_tolerance",
    "revival_radius",
    "signal_tolerance",
]
