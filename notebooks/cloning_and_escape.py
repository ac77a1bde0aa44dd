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
# # Cloning and escape
#
# Clone every unit of a trained network, certify that the clones are trapped, train on with and without noise, and predict
# from the *base* network how fast they can part. Half a minute on two CPU cores.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import lopjax as lop
from lopjax import data
from lopjax.losses import mean_cross_entropy
from lopjax.metrics import cloning_r2
from lopjax.optim import noisy_sgd

jax.config.update("jax_enable_x64", True)  # the sign of a small number is the question

# %% [markdown]
# ## A trained base network
#
# Digits, averaged down to 4 × 4. Half of the labels are drawn at random: a task that is fitted leaves no curvature to escape
# along.

# %%
digits = data.load("digits")
pixels = digits.train_images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4))[:400, ..., None] / 255.0
random = np.random.default_rng(0)
labels = np.where(random.random(400) < 0.5, digits.train_labels[:400], random.integers(10, size=400))
batch = jnp.asarray((pixels - pixels.mean()) / pixels.std()), jnp.asarray(labels)

base = lop.mlp((4, 4, 1), widths=(8, 8), num_classes=10, activation="tanh")


def train(model, params, optimizer, steps=2000):
    """Full-batch training in one compiled scan; returns parameters, and activations of the second layer on the way."""

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda p: mean_cross_entropy(model.apply({"params": p}, batch[0]).logits, batch[1]))(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), model.apply({"params": params}, batch[0]).taps["hidden_1"].post

    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps))
    (params, _), activations = run(params)
    return params, activations[:: steps // 100]


params, _ = train(base, base.init(jax.random.key(0))["params"], optax.sgd(0.2))

# %% [markdown]
# ## Clones, certified
#
# `clone_variables` repeats every unit and divides the weights that read it, so the function stays the same. The certificate
# holds for every batch, and says for which updates.

# %%
wide = lop.widen(base, 2)
cloned = lop.clone_variables({"params": params}, base.wiring, 2)
partition = lop.uniform_partition(wide.wiring, 2)

same = abs(wide.apply(cloned, batch[0]).logits - base.apply({"params": params}, batch[0]).logits).max()
print(f"logits differ by {same:.1e}")
print(lop.certify_cloned(wide, cloned, batch, partition).verdict.value)

# %% [markdown]
# ## Is there a way out?
#
# One small block for each unit of the base network has the whole curvature across the manifold.

# %%
blocks = lop.unit_blocks(base, {"params": params}, batch, factor=2)
print(blocks.total.verdict.value)
print(f"{blocks.total.n_minus} ways down, {blocks.total.n_plus} up, {blocks.total.n_zero} flat")
rate = -blocks.total.min_eigenvalue
print(f"fastest: a departure grows by e every {1 / (0.2 * rate):.0f} steps of size 0.2")

# %% [markdown]
# ## Training on
#
# R² is the share of the variance across units that clusters of clones explain: 1 for exact clones. Gradient descent stays,
# although the manifold is a saddle. A little noise, which dies away, is enough to leave.

# %%
methods = {
    "SGD": optax.sgd(0.2),
    "noisy SGD": noisy_sgd(0.2, noise_scale=0.01, noise_decay=0.99, seed=0),
}
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
left = {}
for name, optimizer in methods.items():
    _, activations = train(wide, cloned["params"], optimizer, steps=2000)
    left[name] = 1 - np.array([cloning_r2(h, 2) for h in activations])
    axes.semilogy(np.linspace(0, 2000, len(activations)), left[name].clip(1e-17), label=name)
    print(f"{name:10} 1 - R² at the end: {left[name][-1]:.1e}")
axes.set(xlabel="step", ylabel="1 - R² of the second layer")
axes.legend(frameon=False)
plt.show()

assert left["SGD"].max() < 1e-9 < 1e-6 < left["noisy SGD"][-1]

# %% [markdown]
# ## A kick that costs nothing
#
# Opposite changes of what two clones *send* change no output at all. The next gradient tells the clones apart.

# %%
loss = lop.losses.cross_entropy(wide, cloned, batch)
free = lop.free_kick(loss, cloned["params"], wide.wiring, partition, "hidden_1", unit=0)
kicked = jax.tree.map(lambda leaf, direction: leaf + 0.5 * direction, cloned["params"], free.direction)
manifold = lop.cloned_manifold(cloned["params"], wide.wiring, partition)
change = abs(wide.apply({"params": kicked}, batch[0]).logits - wide.apply(cloned, batch[0]).logits).max()
print(f"logits change by {change:.1e}")
print(f"share of the next gradient that leaves: {lop.tangency_residual(manifold, jax.grad(loss)(kicked)):.3f}")
