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
# # Dead units and their radius
#
# A ReLU unit that is off on every sample has no gradient. How large a change wakes it, and what keeps it asleep? Ten seconds
# on two CPU cores.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import lopjax as lop

jax.config.update("jax_enable_x64", True)

random = np.random.default_rng(0)
batch = jnp.asarray(random.normal(size=(64, 4))), jnp.asarray(random.integers(3, size=64))
model = lop.mlp((4,), widths=(8, 8), num_classes=3, activation="relu")
params = model.init(jax.random.key(0))["params"]

# %% [markdown]
# ## Two units, put to sleep
#
# One in each layer, by a bias that no sample outweighs.

# %%
for layer, unit, bias in (("hidden_0", 5, -4.0), ("hidden_1", 2, -1.5)):
    params[layer]["bias"] = params[layer]["bias"].at[unit].set(bias)

certificate = lop.certify_frozen(model, {"params": params}, batch, {"hidden_0": [5], "hidden_1": [2]})
print(certificate)

# %% [markdown]
# The first one is trapped: its input is the data, and nothing else decides whether it is on. The second one reads units that
# learn, so it sleeps only while they let it: `depends_on` names them.
#
# ## The radius is tight
#
# With what the unit reads held fixed, no change of its weights and bias shorter than `r = min -z / |(h, 1)|` wakes it, and the
# change along the sample that attains the minimum does at length r.

# %%
first = certificate.units[0]
inputs = np.asarray(batch[0])
kernel, bias = np.asarray(params["hidden_0"]["kernel"])[:, 5], float(params["hidden_0"]["bias"][5])
extended = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
distances = -(inputs @ kernel + bias) / np.linalg.norm(extended, axis=1)
nearest = extended[distances.argmin()] / np.linalg.norm(extended[distances.argmin()])
print(f"radius by the certificate {first.radius:.6f}, by hand {distances.min():.6f}")


def largest(change):
    """The largest pre-activation of the unit after a change of its weights and bias."""
    return (extended @ (np.append(kernel, bias) + change)).max()


print(f"0.99 r towards that sample: {largest(0.99 * first.radius * nearest):+.4f}; 1.01 r: {largest(1.01 * first.radius * nearest):+.4f}")
worst = max(largest(0.99 * first.radius * way / np.linalg.norm(way)) for way in random.normal(size=(10_000, 5)))
print(f"0.99 r in 10,000 random directions, the largest: {worst:+.4f}")
assert worst < 0 < largest(1.01 * first.radius * nearest)

# %% [markdown]
# ## Training
#
# Gradient descent leaves the first-layer unit where it is, to the last bit. Of the other one only the parameters stand still:
# whether it sleeps is up to the layer below.

# %%
loss = lop.losses.cross_entropy(model, {"params": params}, batch)


@jax.jit
def trained(params):
    """A thousand steps of gradient descent, and the largest pre-activation of the deeper unit after each."""

    def step(params, _):
        params = jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, params, jax.grad(loss)(params))
        return params, model.apply({"params": params}, batch[0]).taps["hidden_1"].pre[:, 2].max()

    return jax.lax.scan(step, params, None, length=1000)


after, pre = trained(params)
moved = abs(after["hidden_0"]["kernel"][:, 5] - params["hidden_0"]["kernel"][:, 5]).max()
print(f"the first-layer unit moved by {moved}")
print(f"the deeper unit's largest pre-activation: {pre[0]:+.3f} at first, {pre[-1]:+.3f} at the end")
assert moved == 0

# %% [markdown]
# ## Waking up, without a change of the function
#
# `interventions.wake_dead_units` draws the incoming weights anew and sets the outgoing ones to zero: no logit changes, and the
# next gradient reaches the unit. The page on interventions tells what every method touches.
