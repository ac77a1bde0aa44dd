# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Hessian eigenvalues of a cloned network
#
# We train a small network on digits, clone every unit, and ask the Hessian three things: what is the curvature *across* the
# manifold of clones, along which direction is there a way out, and what becomes of both when the task changes?
# Every cell stands on its own after the first two, so copy what you need. Runs in about a minute on two CPU cores.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from lopjax import data
from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.curvature import dense_hessian
from lopjax.losses import cross_entropy, mean_cross_entropy
from lopjax.manifolds import cloned_manifold, codimension, dimension, normal_basis, tangency_residual
from lopjax.models import mlp
from lopjax.stability import classify, escape_time, free_kick, kick_components, unit_blocks

jax.config.update("jax_enable_x64", True)  # the sign of a small number is the question

# %% [markdown]
# ## A base network, trained
#
# Images are averaged down to 4 × 4, so that the clone stays small enough for a dense Hessian: the oracle here, not needed
# for the method.

# %%
digits = data.load("digits")
pixels = digits.train_images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)) / 255.0
inputs = jnp.asarray((pixels - pixels.mean()) / pixels.std())[:400, ..., None]
labels = jnp.asarray(digits.train_labels)[:400]
order = np.random.default_rng(0).permutation(len(labels))
inputs, labels = inputs[order], labels[order]

base = mlp((4, 4, 1), widths=(6, 6), num_classes=10, activation="tanh")
variables = base.init(jax.random.key(0))


def train(model, params, batch, steps, learning_rate=0.2):
    """Full-batch gradient descent: `steps` steps in one compiled scan; returns parameters and losses."""
    optimizer = optax.sgd(learning_rate)
    loss = cross_entropy(model, {"params": params}, batch)

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps))
    (params, _), losses = run(params)
    return params, losses


params, losses = train(base, variables["params"], (inputs, labels), steps=2000)
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")

# %% [markdown]
# ## Clone every unit
#
# The function is unchanged, and the gradient has no component normal to the manifold of clones: gradient descent cannot leave.

# %%
wide = widen(base, 2)
cloned = clone_variables({"params": params}, base.wiring, 2)
manifold = cloned_manifold(cloned["params"], wide.wiring, uniform_partition(wide.wiring, 2))
loss = cross_entropy(wide, cloned, (inputs, labels))
gradient = jax.jit(jax.grad(loss))(cloned["params"])

print(f"{dimension(manifold)} dimensions along the manifold, {codimension(manifold)} across it")
print(f"logits differ by {abs(wide.apply(cloned, inputs).logits - base.apply({'params': params}, inputs).logits).max():.1e}")
print(f"share of the gradient that leaves the manifold: {tangency_residual(manifold, gradient):.1e}")

# %% [markdown]
# ## The full spectrum, and the part across the manifold
#
# A dense Hessian of all parameters, and its restriction to the normal space by an orthonormal basis.

# %%
hessian = np.asarray(dense_hessian(loss, cloned["params"]))
basis = np.asarray(normal_basis(manifold))
full = np.linalg.eigvalsh(hessian)
normal, modes = np.linalg.eigh(basis @ hessian @ basis.T)

figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.plot(np.linspace(0, 1, len(full)), full, label=f"all {len(full)} directions")
axes.plot(np.linspace(0, 1, len(normal)), normal, label=f"the {len(normal)} across the manifold")
axes.set(xlabel="rank of the eigenvalue (fraction)", ylabel="eigenvalue (nats per squared parameter)", yscale="symlog")
axes.set_yscale("symlog", linthresh=1e-4)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What class of manifold is this?
#
# `classify` counts the signs, with a tolerance that rounding cannot cross; `unit_blocks` finds the same numbers from one
# small block for each unit of the *base* network. That works for a million parameters, where a dense Hessian does not.

# %%
report = classify(loss, cloned["params"], manifold)
blocks = unit_blocks(base, {"params": params}, (inputs, labels), factor=2, loss=mean_cross_entropy)
print(report.verdict.value)
for found in (report, blocks.total):
    print(f"{found.method:12} +{found.n_plus} -{found.n_minus} 0:{found.n_zero}  min {found.min_eigenvalue:.6f}")

# %% [markdown]
# ## The way out
#
# Kick the clones by a little along the most unstable direction and train on: how many steps until they are apart? The
# prediction is exact at a critical point of the base network; elsewhere the base moves on, and so does the curvature.

# %%
unravel = ravel_pytree(cloned["params"])[1]
escape = unravel(jnp.asarray(modes[:, 0] @ basis))
radius, kick, learning_rate = 1e-2, 1e-5, 0.2
components = kick_components(
    jax.tree.map(lambda leaf: leaf[None], escape), jax.tree.map(lambda leaf: kick * leaf, escape)
)
predicted = float(escape_time(normal[:1], components, radius, learning_rate))

kicked = jax.tree.map(lambda leaf, direction: leaf + kick * direction, cloned["params"], escape)


@jax.jit
def distances(params):
    """Distance from the manifold along 3,000 steps of gradient descent."""

    def step(params, _):
        params = jax.tree.map(lambda leaf, slope: leaf - learning_rate * slope, params, jax.grad(loss)(params))
        return params, jnp.linalg.norm(basis @ (ravel_pytree(params)[0] - ravel_pytree(cloned["params"])[0]))

    return jax.lax.scan(step, params, None, length=3000)[1]


path = np.asarray(distances(kicked))
reached = int(np.argmax(path >= radius)) if path.max() >= radius else None
print(f"predicted for constant curvature: {predicted:.0f} steps; measured: {reached}")

figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.semilogy(path, label="measured")
axes.semilogy(
    kick * (1 + learning_rate * abs(normal[0])) ** np.arange(len(path)).clip(max=2 * predicted), "--", label="predicted"
)
axes.axhline(radius, color="0.6", linewidth=1)
axes.set(xlabel="steps of gradient descent", ylabel="distance from the manifold", ylim=(kick / 2, 10))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# A kick that costs nothing: opposite changes of the outgoing weights of two clones change no output at all, yet the next
# gradient separates the clones.

# %%
free = free_kick(loss, cloned["params"], wide.wiring, uniform_partition(wide.wiring, 2), "hidden_1", unit=0)
freed = jax.tree.map(lambda leaf, direction: leaf + 0.5 * direction, cloned["params"], free.direction)
change = abs(wide.apply({"params": freed}, inputs).logits - wide.apply(cloned, inputs).logits).max()
print(f"change of the logits {change:.1e}; share of the next gradient that leaves: ", end="")
print(f"{tangency_residual(manifold, jax.grad(loss)(freed)):.3f}")

# %% [markdown]
# ## When the task changes
#
# Fit the task further, then redraw all labels. While the task is being fitted the blocks M_j shrink with the residuals, and
# the clones become neutral; new labels make them repel each other again.

# %%
new_labels = jnp.asarray(np.random.default_rng(1).integers(0, 10, len(labels)))
stages, current = [], params
for task, (targets, rounds) in enumerate(((labels, 5), (new_labels, 4))):
    for stage in range(rounds):
        measured = unit_blocks(base, {"params": current}, (inputs, targets), factor=2, loss=mean_cross_entropy)
        escape_rates = np.concatenate([-space.per_unit("min_eigenvalue") for space in measured.spaces.values()])
        stages.append((task, escape_rates))
        current, losses = train(base, current, (inputs, targets), steps=600)
        print(
            f"task {task + 1}: {measured.total.verdict.name:8} fastest way out {escape_rates.max():.2e}, loss {losses[-1]:.4f}"
        )

figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.boxplot([rates for _, rates in stages], widths=0.6)
axes.axvline(5.5, color="0.5", linestyle=":", label="labels redrawn")
axes.set(xlabel="stage, 600 steps each", ylabel="escape rate of each unit's clones", yscale="log")
axes.legend(frameon=False)
plt.show()
