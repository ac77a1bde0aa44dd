"""Ten steps of the cloning experiment against the same ten by hand: NumPy in float64, with PyTorch's conventions.

The oracle is written from PyTorch's documentation of Linear, BatchNorm1d (eps 1e-5, running statistics 0.9 old + 0.1
new, running variance over n - 1), CrossEntropyLoss, SGD and Adam (eps outside the root), with gradients by the chain
rule through mean and variance one by one. It shares nothing with lopjax but the initial variables and the batches.
"""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.cloning.config import PRESETS, MLPConfig
from experiments.cloning.lane import make_program
from experiments.cloning.measurements import make_measure
from experiments.cloning.setup import build
from experiments.kit.networks import MLP
from lopjax.data import load

DEPTH, STEPS, CLONED_AT, BATCH, PROBE, EPSILON = 5, 10, 5, 32, 60, 1e-5
CONFIG = MLPConfig(
    net=MLP(widths=(16,) * DEPTH), dataset="digits", augment=False, unit="steps", base_length=CLONED_AT,
    clone_length=STEPS - CLONED_AT, batch_size=BATCH, seeds=(0,), probe_samples=PROBE, learning_rate=0.05,
)  # fmt: skip


# --- PyTorch by hand: a network is {"fc.0.weight": (out, in), ...} --------------------


def to_torch(variables):
    """Variables of lopjax under PyTorch's names, kernels transposed."""
    params, stats = jax.tree.map(
        lambda leaf: np.array(leaf, np.float64), (variables["params"], variables["batch_stats"])
    )
    layers = [(f"fc.{k}", f"hidden_{k}") for k in range(DEPTH)] + [("out", "classes")]
    net = {f"{name}.weight": params[space]["kernel"].T for name, space in layers}
    net |= {f"{name}.bias": params[space]["bias"] for name, space in layers}
    for k in range(DEPTH):
        norm, running = params[f"hidden_{k}_norm"], stats[f"hidden_{k}_norm"]
        net |= {f"bn.{k}.weight": norm["scale"], f"bn.{k}.bias": norm["offset"]}
        net |= {f"bn.{k}.running_mean": running["mean"], f"bn.{k}.running_var": running["var"]}
    return net


def doubled(net):
    """Every hidden unit twice, side by side; what reads two copies of a unit takes half of it from each."""
    wide = {}
    for name, array in net.items():
        out = array if name.startswith("out") else np.repeat(array, 2, axis=0)
        wide[name] = np.repeat(out, 2, axis=1) / 2 if array.ndim == 2 and name != "fc.0.weight" else out.copy()
    return wide


def eval_mode(net, x):
    """Logits and the activations of every hidden layer, by running statistics."""
    hidden = []
    for k in range(DEPTH):
        z = x @ net[f"fc.{k}.weight"].T + net[f"fc.{k}.bias"]
        z = (z - net[f"bn.{k}.running_mean"]) / np.sqrt(net[f"bn.{k}.running_var"] + EPSILON)
        x = np.maximum(z * net[f"bn.{k}.weight"] + net[f"bn.{k}.bias"], 0)
        hidden.append(x)
    return x @ net["out.weight"].T + net["out.bias"], hidden


def cross_entropy(logits, labels):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -log_probabilities[np.arange(len(labels)), labels].mean(), np.exp(log_probabilities)


def backward(net, x, labels):
    """Loss and gradients in train mode; updates the running statistics in place."""
    n, saved = len(x), []
    for k in range(DEPTH):
        z = x @ net[f"fc.{k}.weight"].T + net[f"fc.{k}.bias"]
        mean, var = z.mean(axis=0), z.var(axis=0)
        for name, value in (("mean", mean), ("var", var * n / (n - 1))):
            net[f"bn.{k}.running_{name}"] = 0.9 * net[f"bn.{k}.running_{name}"] + 0.1 * value
        y = (z - mean) / np.sqrt(var + EPSILON)
        saved.append((x, z - mean, var + EPSILON, y))
        x = np.maximum(y * net[f"bn.{k}.weight"] + net[f"bn.{k}.bias"], 0)
    loss, probabilities = cross_entropy(x @ net["out.weight"].T + net["out.bias"], labels)
    signal = (probabilities - np.eye(probabilities.shape[1])[labels]) / n
    gradient = {"out.weight": signal.T @ x, "out.bias": signal.sum(axis=0)}
    signal = signal @ net["out.weight"] * (x > 0)
    for k in reversed(range(DEPTH)):
        x, centred, var, y = saved[k]
        gradient |= {f"bn.{k}.weight": (signal * y).sum(axis=0), f"bn.{k}.bias": signal.sum(axis=0)}
        signal = signal * net[f"bn.{k}.weight"]
        of_var = (signal * centred).sum(axis=0) * -0.5 * var**-1.5
        of_mean = -(signal / np.sqrt(var)).sum(axis=0) - 2 * of_var * centred.mean(axis=0)
        signal = signal / np.sqrt(var) + (2 * of_var * centred + of_mean) / n
        gradient |= {f"fc.{k}.weight": signal.T @ x, f"fc.{k}.bias": signal.sum(axis=0)}
        signal = signal @ net[f"fc.{k}.weight"] * (x > 0)
    return loss, gradient


def update(net, gradient, state, method):
    """One step of SGD or Adam, in place."""
    state["step"] = step = state.get("step", 0) + 1
    for name, g in gradient.items():
        if method == "sgd":
            net[name] = net[name] - CONFIG.learning_rate * g
            continue
        m, v = state.get(name, (0.0, 0.0))
        state[name] = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        size = np.sqrt(v / (1 - 0.999**step)) + 1e-8
        net[name] = net[name] - CONFIG.adam_learning_rate * (m / (1 - 0.9**step)) / size


def measured(net, probe, test):
    """Test loss and accuracy, and of the probe: mean over the layers of effective rank and of R² inside pairs."""
    logits, _ = eval_mode(net, test[0])
    ranks, r2 = [], []
    for h in eval_mode(net, probe)[1]:
        share = np.linalg.svd(h, compute_uv=False)
        share = share[share > 1e-14 * share[0]] / share.sum()
        ranks.append(np.exp(-(share * np.log(share)).sum()))
        pairs = h.reshape(len(h), -1, 2)
        within = np.square(pairs - pairs.mean(axis=2, keepdims=True)).sum()
        r2.append(1 - within / np.square(h - h.mean(axis=1, keepdims=True)).sum())
    accuracy = (logits.argmax(axis=1) == test[1]).mean()
    return {"test_loss": cross_entropy(logits, test[1])[0], "test_accuracy": accuracy,
            "effective_rank/mean": np.mean(ranks), "r2_forward/mean": np.mean(r2)}  # fmt: skip


# --- Side by side --------------------


def normalised(dataset, images):
    pixels = dataset.train_images.reshape(-1, dataset.image_shape[-1]) / 255
    return ((images / 255 - pixels.mean(axis=0)) / pixels.std(axis=0)).reshape(len(images), -1)


def assert_same(variables, net):
    found = to_torch(variables)
    for name, expected in net.items():
        # A bias in front of a batch norm has no gradient but rounding, of which Adam would make steps.
        if not (name.startswith("fc.") and name.endswith("bias")):
            np.testing.assert_allclose(found[name], expected, rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_ten_steps_are_those_of_pytorch_by_hand(method):
    with jax.enable_x64(True):
        setup = build(replace(CONFIG, methods=(method,)))
        data, program = load(CONFIG.dataset, label_noise=CONFIG.label_noise), make_program(setup, setup.groups[0])
        pair = program.start(setup.base.init(jax.random.key(1)), jax.random.key(2), {})
        step, measure, draw = jax.jit(program.step), jax.jit(make_measure(setup)), jax.jit(setup.stream.draw)
        nets, states = {"base": to_torch(pair.base.variables)}, {"base": {}}
        for index in range(STEPS):
            if index == CLONED_AT:  # the clone starts with the running statistics of the base and a fresh optimizer
                pair = program.clone(pair)
                nets["clone"], states["clone"] = doubled(nets["base"]), {}
            drawn = draw(setup.stream.data, jax.random.key(3), index)
            images, labels = (np.asarray(array) for array in drawn.batch)
            pair, logs = step(pair, drawn, jax.random.key(4), index)
            for name, net in nets.items():
                loss, gradient = backward(net, normalised(data, images), labels)
                np.testing.assert_allclose(logs[f"{name}/train_loss"], loss, rtol=1e-10)  # of before the update
                update(net, gradient, states[name], method)
                assert_same(getattr(pair, name).variables, net)
        probe, test = ((data.train_images[:PROBE], data.train_labels[:PROBE]), (data.test_images, data.test_labels))
        assert pair.clone is not None
        found = measure(pair.base.variables, pair.clone.variables, probe, test)
    of_test = normalised(data, data.test_images), data.test_labels
    for name, net in nets.items():
        for key, expected in measured(net, normalised(data, probe[0]), of_test).items():
            if (name, key) != ("base", "r2_forward/mean"):
                np.testing.assert_allclose(found[f"{name}/{key}"], expected, rtol=1e-8, err_msg=f"{name}/{key}")
    # A control: the running variance over n instead of n - 1 would have been noticed.
    off = {**nets["base"]}
    off["bn.0.running_var"] = off["bn.0.running_var"] * (BATCH - 1) / BATCH
    with pytest.raises(AssertionError, match=r"bn\.0\.running_var"):
        assert_same(pair.base.variables, off)


def test_the_reference_preset_is_the_setting_of_the_reference_curves():
    config = PRESETS["mlp"]["reference"]
    assert isinstance(config, MLPConfig)
    assert config.net == MLP(widths=(128,) * 5, activation="relu", norm="batch", affine=True, init="pytorch")
    assert (config.dataset, config.augment, config.label_noise, config.batch_size) == ("cifar10", False, 0.0, 128)
    assert (config.learning_rate, config.adam_learning_rate, config.dropout) == (0.01, 0.001, 0.1)
    assert (config.noise_scale, config.noise_decay, config.probe_samples) == (0.01, 0.999, 500)
