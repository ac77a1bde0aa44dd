"""The randomised audit finds nothing, and finds what is planted; its oracle agrees with dense Hessians and mpmath."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.normal_space import dense_normal, repeated_spectrum

from lopjax.losses import mean_cross_entropy
from lopjax.models import mlp
from lopjax.stability import Stability, UnitBlocks
from lopjax.stability.verdicts import witnessed_report
from theory_checks.audit import normed
from theory_checks.audit.draws import SAMPLES, Network, Structure, base_layers, draw_network, signal_of
from theory_checks.audit.everything import run_audit
from theory_checks.audit.extended import FUNCTIONS
from theory_checks.audit.near_clones import audit_near_clones, wrong_answers
from theory_checks.audit.oracle import eigenvalues_of, falsehoods, true_blocks
from theory_checks.audit.running import clone_layers, judge
from theory_checks.audit.tally import Tally

STRUCTURE = Structure((2, 2), "tanh", "cross_entropy", 3, ((2, 3), (1, 2)))


@pytest.mark.slow
def test_no_verdict_and_no_count_is_false(x64):
    tally = Tally()
    for _, part in run_audit(300, seed=11, num_structures=10):
        tally.add(part)
    assert not tally.wrong, "\n".join(tally.wrong)
    ordinary = ("unit_blocks", "ordinary", "float64")
    assert sum(tally.networks.values()) == 300
    assert {key[0] for key in tally.networks} == {"unit_blocks", "batched hvp", "classify", "certificates"}
    assert tally.undecided[ordinary] <= 0.05 * tally.networks[ordinary]
    assert tally.unsigned[ordinary] <= 0.05 * tally.eigenvalues[ordinary]
    # Something is left undecided where it must be: the audit does tempt.
    assert sum(tally.unsigned.values()) > 100


@pytest.mark.slow
def test_near_clones_are_told_apart(x64):
    tally = audit_near_clones(num_networks=12, seed=3)
    assert tally.wrong == []
    assert sum(tally.networks.values()) == 12


def test_the_oracle_is_the_dense_hessian(x64):
    """Long double against `jax.hessian` of the cloned network between projectors written by hand."""
    network = draw_network(np.random.default_rng(0), STRUCTURE, "ordinary", "float64")
    truth = true_blocks(
        base_layers(STRUCTURE, network),
        STRUCTURE.activation,
        signal_of(STRUCTURE, network.labels),
        network.inputs,
        [np.array(sizes) for sizes in STRUCTURE.factors],
    )
    wide = mlp((2,), (5, 3), 3, activation="tanh")
    partition = {"hidden_0": (0, 0, 1, 1, 1), "hidden_1": (0, 1, 1)}
    variables = {"params": clone_layers(network, STRUCTURE)}
    batch = jnp.asarray(network.inputs), jnp.asarray(network.labels)
    normal = dense_normal(wide, variables, mean_cross_entropy, batch, partition)
    parts = [np.zeros(normal.num_gauge)]
    for units, sizes in zip(truth, STRUCTURE.factors, strict=True):
        parts += [block.eigenvalues for block, copies in zip(units, sizes, strict=True) for _ in range(copies - 1)]
    np.testing.assert_allclose(np.sort(np.concatenate(parts)), normal.eigenvalues, atol=1e-13)
    blocks = judge(STRUCTURE, network)
    np.testing.assert_allclose(repeated_spectrum(blocks, normal.num_gauge), normal.eigenvalues, atol=1e-13)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_in_long_double_against_mpmath(name):
    """Relative errors of f' and f'' stay at long double's own rounding, far out on both sides, too."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 60
    functions = {
        "tanh": mpmath.tanh,
        "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
        "softplus": lambda z: mpmath.log(1 + mpmath.exp(z)),
        "silu": lambda z: z / (1 + mpmath.exp(-z)),
        "gelu": lambda z: z * mpmath.ncdf(z),
        "elu": lambda z: z if z > 0 else mpmath.expm1(z),
        "selu": lambda z: 1.0507009873554804934193349852946 * (z if z > 0 else 1.6732632423543772 * mpmath.expm1(z)),
        "relu": lambda z: max(z, mpmath.mpf(0)),
        "leaky_relu": lambda z: z if z > 0 else z * mpmath.mpf(0.01),
        "sin": mpmath.sin,
    }
    for point in (-30.25, -6.5, -1.125, 0.375, 2.5, 17.75):
        found = FUNCTIONS[name](np.array([point], np.longdouble))
        for order in (0, 1, 2):
            expected = mpmath.diff(functions[name], mpmath.mpf(point), order)
            error = abs(mpmath.mpf(str(found[order][0])) - expected)
            assert error <= 1e-14 * abs(expected) + mpmath.mpf("1e-25")


def test_jacobi_rotations_find_the_eigenvalues():
    matrix = np.random.default_rng(0).normal(size=(7, 7))
    matrix = matrix + matrix.T
    np.testing.assert_allclose(eigenvalues_of(matrix.astype(np.longdouble)), np.linalg.eigvalsh(matrix), atol=1e-13)


def test_planted_falsehoods_are_found(x64):
    network = draw_network(np.random.default_rng(1), STRUCTURE, "ordinary", "float64")
    assert isinstance(network, Network)
    assert network.inputs.shape == (SAMPLES, 2)
    report = judge(STRUCTURE, network).spaces["hidden_0"].reports[0]
    block = true_blocks(
        base_layers(STRUCTURE, network),
        "tanh",
        signal_of(STRUCTURE, network.labels),
        network.inputs,
        [np.array(sizes) for sizes in STRUCTURE.factors],
    )[0][0]
    assert falsehoods(report, block, "tanh") == []
    turned = report._replace(n_plus=report.n_plus + 1, n_minus=report.n_minus - 1)
    assert "too many positive" in falsehoods(turned, block, "tanh")
    flat = report._replace(n_plus=report.n_plus - 1, n_zero=report.n_zero + 1)
    assert "zeros that are not" in falsehoods(flat, block, "tanh")
    assert "a bound that lies" in falsehoods(report._replace(min_eigenvalue=0.0), block, "tanh")
    assert "exact with something undecided" in falsehoods(report._replace(exact=not report.exact), block, "tanh")
    assert "exact or flat at a kink" in falsehoods(report, block._replace(is_kinked=True), "tanh")
    assert jax.config.jax_enable_x64


def test_planted_falsehoods_about_products_are_found(x64):
    structure = normed.STRUCTURES[0]
    truth = normed.TrueSpectrum(np.array([-1.0, 0.0, 2.0]), 1e-12)
    report = witnessed_report(
        (-1.0, 2.0), tolerance=1e-14, residual=0.0, method="batched hvp", space="leaf", zero_level=1e-8, scale=2.0
    )
    assert structure.model.wiring.cloneable == ("hidden_0",)

    def about(report):
        return "; ".join(normed.falsehoods(UnitBlocks({}, report), truth))

    assert about(report) == ""
    assert "outside the spectrum" in about(report._replace(min_eigenvalue=-1.1))
    assert "no eigenvalue within" in about(report._replace(min_eigenvalue=-0.9))
    assert "claims to count" in about(report._replace(exact=True))
    assert "flat and is not" in about(report._replace(verdict=Stability.NEUTRAL))
    positive = normed.TrueSpectrum(np.array([0.5, 1.0, 2.0]), 1e-12)
    assert "a saddle that is none" in "; ".join(normed.falsehoods(UnitBlocks({}, report), positive))


def test_contradictions_between_certificates_are_found():
    answers = {"certify_cloned": True, "find_clones": False, "unit_blocks_of_clones": True}
    assert list(wrong_answers(answers, 0.0, 1e-14)) == [
        "find_clones refuses clones",
        "certify_cloned and find_clones contradict each other",
    ]
    assert "unit_blocks_of_clones takes them for clones" in list(wrong_answers(answers, 1e-3, 1e-14))
    assert list(wrong_answers({"certify_cloned": None, "find_clones": False}, 1e-13, 1e-14)) == []
