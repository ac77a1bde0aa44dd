"""Optax transformations that perturb parameters, pull them back or confine them.

Each function returns an `optax.GradientTransformationExtraArgs` that composes with `optax.chain`, `optax.masked`
(to exempt some arrays) and `optax.inject_hyperparams`. Numbers may be traced, so that a grid of settings is one vmapped
program; concrete ones are checked when the transformation is made. Dtypes of parameters are preserved; noise is drawn
in float32 (float64 for float64 parameters) and then cast. Complex parameters are refused. (Beware that
`inject_hyperparams` stores numbers in the dtype of the parameters: in bfloat16 a decay of 0.999 is 1. Give it
`hyperparam_dtype=jnp.float32`.)

Randomness is a pure function of the seed, the step, the position of the array in the tree and the transformation: the
state contains no other source of randomness, and a resumed run draws what the uninterrupted run would have drawn. An
int seed makes a `philox4x32` key, from which JAX draws three times as fast as from its default on CPU. **Under vmap
give each lane its own key**: with an int, all lanes get the same noise. A state owns its buffers: it may be donated to
a compiled step without invalidating the seed or another state made by the same transformation.
"""

from lopjax.optim.adam import AdamPerWeightState, adam_per_weight
from lopjax.optim.confinement import L2InitState, keep_on_manifold, l2_init
from lopjax.optim.matrices import MatrixAxes, matrix_axes
from lopjax.optim.matrix_penalties import SpectralState, parseval, spectral
from lopjax.optim.muon import muon, muon_dimension_numbers
from lopjax.optim.nap import NaPState, nap
from lopjax.optim.noise import RelativeNoiseState, add_relative_noise, noisy_sgd
from lopjax.optim.own_arrays import on_own_arrays
from lopjax.optim.shrink_and_perturb import ShrinkAndPerturbState, shrink_and_perturb
from lopjax.optim.upgd import UPGDState, upgd

__all__ = [
    "AdamPerWeightState",
    "L2InitState",
    "MatrixAxes",
    "NaPState",
    "RelativeNoiseState",
    "ShrinkAndPerturbState",
    "SpectralState",
    "UPGDState",
    "adam_per_weight",
    "add_relative_noise",
    "keep_on_manifold",
    "l2_init",
    "matrix_axes",
    "muon",
    "muon_dimension_numbers",
    "nap",
    "noisy_sgd",
    "on_own_arrays",
    "parseval",
    "shrink_and_perturb",
    "spectral",
    "upgd",
]
