"""Resets of a network with two hidden layers, written from the papers, unit by unit, without lopjax.

Weights are `(in, out)`; the loss is the mean over samples of half the squared distance. What a reset draws is handed
in: `fresh[layer]` is `(kernel, bias)` as the whole network would be drawn.
"""

from typing import Any

import numpy as np

HIDDEN = 2


class Network:
    """ReLU network under plain SGD, whose resets act after the update of a step."""

    def __init__(self, layers: list[tuple[np.ndarray, np.ndarray]], rate: float) -> None:
        self.kernels = [kernel.copy() for kernel, _ in layers]
        self.biases = [bias.copy() for _, bias in layers]
        self.rate = rate

    def step(self, x: np.ndarray, targets: np.ndarray) -> None:
        """One update; keeps pre-activations, activations and gradients of before it."""
        self.pre, self.post = [], [x]
        for k in range(HIDDEN):
            self.pre.append(self.post[-1] @ self.kernels[k] + self.biases[k])
            self.post.append(np.maximum(self.pre[-1], 0.0))
        delta = (self.post[-1] @ self.kernels[HIDDEN] + self.biases[HIDDEN] - targets) / len(x)
        self.gradients = []
        for k in range(HIDDEN, -1, -1):
            self.gradients.insert(0, (self.post[k].T @ delta, delta.sum(axis=0)))
            if k:
                delta = (delta @ self.kernels[k].T) * (self.pre[k - 1] > 0)
        for k, (kernel, bias) in enumerate(self.gradients):
            self.kernels[k] = self.kernels[k] - self.rate * kernel
            self.biases[k] = self.biases[k] - self.rate * bias

    def renew(self, layer: int, unit: int, fresh: list[Any]) -> None:
        """Incoming slices drawn, outgoing ones zero."""
        self.kernels[layer][:, unit] = fresh[layer][0][:, unit]
        self.biases[layer][unit] = fresh[layer][1][unit]
        self.kernels[layer + 1][unit, :] = 0.0


def redo(network: Network, fresh: list[Any], threshold: float) -> list[np.ndarray]:
    """arXiv 2302.12902, equation 1 and algorithm 1: all layers are scored, then reset, then zeroed."""
    touched = []
    for layer in range(HIDDEN):
        magnitudes = [np.mean(np.abs(network.post[layer + 1][:, j])) for j in range(network.kernels[layer].shape[1])]
        touched.append(np.array([m <= threshold * np.mean(magnitudes) for m in magnitudes]))  # a dead layer, too
    for layer in range(HIDDEN):
        for unit in np.flatnonzero(touched[layer]):
            network.renew(layer, unit, fresh)
    for layer in range(HIDDEN):
        network.kernels[layer + 1][touched[layer], :] = 0.0
    return touched


class ContinualBackprop:
    """Nature 632 (2024), algorithm 1, with the count carried and several replacements a step."""

    def __init__(self, sizes: list[int], rate: float, decay: float, maturity: int, utility: str) -> None:
        self.rate, self.decay, self.maturity, self.kind = rate, decay, maturity, utility
        self.utility = [np.zeros(size) for size in sizes]
        self.mean = [np.zeros(size) for size in sizes]
        self.age = [np.zeros(size, int) for size in sizes]
        self.owed = [0.0 for _ in sizes]

    def act(self, network: Network, fresh: list[Any]) -> list[np.ndarray]:
        touched, averages = [], []
        for layer in range(HIDDEN):
            h, eta = network.post[layer + 1], self.decay
            for j in range(h.shape[1]):
                self.age[layer][j] += 1
                correction = 1 - eta ** self.age[layer][j]
                self.mean[layer][j] = eta * self.mean[layer][j] + (1 - eta) * np.mean(h[:, j])
                outgoing = np.abs(network.kernels[layer + 1][j, :])
                if self.kind == "contribution":
                    y = np.mean(np.abs(h[:, j])) * outgoing.sum()
                else:
                    spread = np.mean(np.abs(h[:, j] - self.mean[layer][j] / correction))
                    y = spread * outgoing.mean() / np.mean(np.abs(network.kernels[layer][:, j]))
                self.utility[layer][j] = eta * self.utility[layer][j] + (1 - eta) * y
            correction = 1 - eta ** self.age[layer]
            corrected, average = self.utility[layer] / correction, self.mean[layer] / correction
            eligible = [j for j in range(h.shape[1]) if self.age[layer][j] > self.maturity]
            self.owed[layer] += self.rate * len(eligible)
            chosen = sorted(eligible, key=lambda j, u=corrected: u[j])[: int(self.owed[layer])]
            self.owed[layer] -= int(self.owed[layer])
            touched.append(np.isin(np.arange(h.shape[1]), chosen))
            averages.append(average)
        for layer in range(HIDDEN):
            for j in np.flatnonzero(touched[layer]):  # what it gave on average goes into the biases behind it
                lost = averages[layer][j] * network.kernels[layer + 1][j, :]
                network.biases[layer + 1] = network.biases[layer + 1] + lost
                network.renew(layer, j, fresh)
                self.utility[layer][j] = self.mean[layer][j] = self.age[layer][j] = 0
        return touched


class SelfNormalizedResets:
    """arXiv 2410.20098, algorithm 1: silences as lists, one a unit."""

    def __init__(self, sizes: list[int], percentile: float, longest: int) -> None:
        self.percentile, self.longest = percentile, longest
        self.now = [np.zeros(size, int) for size in sizes]
        self.ended: list[list[list[int]]] = [[[] for _ in range(size)] for size in sizes]

    def act(self, network: Network, fresh: list[Any]) -> list[np.ndarray]:
        touched = []
        for layer in range(HIDDEN):
            silent = []
            for j in range(network.pre[layer].shape[1]):
                if max(network.pre[layer][:, j]) > 0:
                    if self.now[layer][j]:
                        self.ended[layer][j].append(min(self.now[layer][j], self.longest))
                    self.now[layer][j] = 0
                else:
                    self.now[layer][j] += 1
                record = sorted(self.ended[layer][j])
                enough = [g for k, g in enumerate(record) if k + 1 >= self.percentile * len(record)]
                silent.append(self.now[layer][j] > (enough[0] if enough else self.longest))
            touched.append(np.array(silent))
        for layer in range(HIDDEN):
            for j in np.flatnonzero(touched[layer]):
                network.renew(layer, j, fresh)
                self.now[layer][j], self.ended[layer][j] = 0, []
        for layer in range(HIDDEN):
            network.kernels[layer + 1][touched[layer], :] = 0.0
        return touched
