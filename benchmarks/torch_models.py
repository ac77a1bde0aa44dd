"""The same networks in plain PyTorch, written for these benchmarks, with as many parameters as in `lopjax.models`."""

import torch
from torch import Tensor, nn


def mlp(widths: tuple[int, ...], num_classes: int = 10) -> nn.Module:
    """Dense layers with batch norm and ReLU on 32x32x3 images."""
    layers: list[nn.Module] = [nn.Flatten()]
    reads = 3 * 32 * 32
    for width in widths:
        layers += [nn.Linear(reads, width), nn.BatchNorm1d(width), nn.ReLU()]
        reads = width
    return nn.Sequential(*layers, nn.Linear(reads, num_classes))


def cnn(channels: tuple[int, ...] = (64, 128, 256), dense: int = 512, num_classes: int = 10) -> nn.Module:
    """3x3 convolutions with batch norm, ReLU and 2x2 max pooling, then a dense layer."""
    layers: list[nn.Module] = []
    reads, side = 3, 32
    for units in channels:
        layers += [nn.Conv2d(reads, units, 3, padding=1), nn.BatchNorm2d(units), nn.ReLU(), nn.MaxPool2d(2)]
        reads, side = units, side // 2
    head = [nn.Flatten(), nn.Linear(reads * side**2, dense), nn.ReLU(), nn.Linear(dense, num_classes)]
    return nn.Sequential(*layers, *head)


class Block(nn.Module):
    """Basic residual block: two 3x3 convolutions, the activation after the sum."""

    def __init__(self, reads: int, writes: int) -> None:
        super().__init__()
        stride = 1 if reads == writes else 2
        self.branch = nn.Sequential(
            nn.Conv2d(reads, writes, 3, stride, 1, bias=False),
            nn.BatchNorm2d(writes),
            nn.ReLU(),
            nn.Conv2d(writes, writes, 3, 1, 1, bias=False),
            nn.BatchNorm2d(writes),
        )
        self.shortcut = nn.Identity()
        if reads != writes:
            self.shortcut = nn.Sequential(nn.Conv2d(reads, writes, 1, stride, bias=False), nn.BatchNorm2d(writes))

    def forward(self, x: Tensor) -> Tensor:
        """Branch plus shortcut."""
        return torch.relu(self.branch(x) + self.shortcut(x))


def resnet18(width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2), num_classes: int = 10) -> nn.Module:
    """ResNet-18 for small images."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    reads = width
    for stage, number in enumerate(blocks):
        for _ in range(number):
            layers.append(Block(reads, width * 2**stage))
            reads = width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(reads, num_classes))


class Attention(nn.Module):
    """Multi-head self-attention by PyTorch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, tokens, width)` to the same."""
        batch, tokens, width = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class ViT(nn.Module):
    """Pre-norm vision transformer with class token and learned positions."""

    def __init__(self, patch: int, width: int, depth: int, heads: int, mlp_ratio: float, num_classes: int = 10) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (32 // patch) ** 2, width))
        self.attention = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), Attention(width, heads)) for _ in range(depth)
        )
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            for _ in range(depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1) + self.positions
        for attention, mlp in zip(self.attention, self.mlps):
            x = x + attention(x)
            x = x + mlp(x)
        return self.head(x[:, 0])


class CausalBlock(nn.Module):
    """Causal attention, then an MLP, each after a norm and added to the stream."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.ReLU(), nn.Linear(mlp, width))

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, time, width)` to the same shape."""
        batch, time, width = x.shape
        shape = (batch, time, self.heads, width // self.heads)
        q, k, v = (each.view(shape).transpose(1, 2) for each in self.qkv(self.norms[0](x)).chunk(3, -1))
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, time, width))
        return x + self.mlp(self.norms[1](x))


class GPT(nn.Module):
    """Token and position embeddings, causal blocks, a norm, and logits from a separate dense layer."""

    def __init__(self, length: int, vocabulary: int, width: int, depth: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(CausalBlock(width, heads, mlp) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(batch, time)` to logits of the next tokens."""
        return self.head(self.blocks(self.tokens(x) + self.positions.weight[: x.shape[1]]))
