"""Uses the installed library as a typed package: pyright must find nothing, and every line must run."""

import jax
import jax.numpy as jnp

import lopjax as lop
from lopjax.cloning import Partition
from lopjax.training import TrainState, init_state, train_step

key = jax.random.key(0)
batch = jax.random.normal(key, (8, 4)), jnp.arange(8) % 2
model: lop.Model = lop.mlp((4,), widths=(3,), num_classes=2, activation="tanh")
wide = lop.widen(model, 2)
cloned = lop.clone_variables(model.init(key), model.wiring, 2)
partition: Partition = lop.uniform_partition(wide.wiring, 2)
verdict: lop.CloneVerdict = lop.certify_cloned(wide, cloned, batch, partition).verdict
manifold = lop.cloned_manifold(cloned["params"], wide.wiring, partition)
residual: float = float(lop.tangency_residual(manifold, cloned["params"]))
print(lop.__version__, verdict.name, residual, TrainState._fields[0], init_state.__name__, train_step.__name__)
