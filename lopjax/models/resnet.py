"""ResNet-18 for small images (arXiv 1512.03385): one residual stream of units per stage, written many times."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lopjax.model import Model
from lopjax.models.constructors import recorded
from lopjax.models.initialisation import float_type
from lopjax.models.labels import tap
from lopjax.models.layers import Conv, Dense, dropout, to_compute_type
from lopjax.models.linen import from_linen
from lopjax.models.network import Network, common_fields
from lopjax.models.norms import kernel_site, normalise
from lopjax.models.options import check_image_shape, check_options


class NormedConv(nn.Module):
    """Convolution and norm; the convolution has a bias only if no norm follows, as in PyTorch's models."""

    reads: str
    writes: str
    size: int
    site: str
    norm: str
    affine: bool
    initialisation: str
    kernel_size: int = 3
    stride: int = 1
    source: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`(batch, height, width, channels)` to `(batch, ceil(height / stride), ceil(width / stride), units)`."""
        plain = self.norm == "none"
        x = Conv(
            self.reads,
            self.writes,
            self.size,
            kernel_size=self.kernel_size,
            stride=self.stride,
            site=kernel_site(self.norm, self.site),
            source=self.source if plain else None,
            initialisation=self.initialisation,
            use_bias=plain,
            name="conv",
        )(x)
        return normalise(x, self.norm, self.writes, self.site, self.affine, train, "norm", num_axes=3)


class ResNet(Network):
    """Stage s has the residual space `stage_s`; its block b has the inner space `stage_s_block_b`.

    `stage_s` is written by the stem (s = 0) or the projection shortcut of its first block (s > 0), and by the second
    convolution of every block. An activation follows each sum, so each write has a site of its own: `stem`, and
    `stage_s_block_b_output`. A unit that is dead at one of them freezes the parameters that write there, not the
    earlier writers.
    """

    blocks: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: Any = None) -> jax.Array:
        """`(batch, height, width, channels)` to `(batch, classes)`."""
        x = to_compute_type(x, self.compute_dtype)
        x = self._conv("stem", "input", "stage_0", "stem", source="input")(x, train)
        x = tap(self, "stem", "stage_0", self.activation, x)
        stream, site = "stage_0", "stem"
        for stage, num_blocks in enumerate(self.blocks):
            for block in range(num_blocks):
                x = self._block(x, f"stage_{stage}_block_{block}", stream, f"stage_{stage}", site, train)
                stream, site = f"stage_{stage}", f"stage_{stage}_block_{block}_output"
        x = dropout(self, jnp.mean(x, axis=(1, 2), dtype=float_type()), self.dropout, dropout_rate, train)
        classes, num_classes = self.sizes[-1]
        return Dense(stream, classes, num_classes, classes, None, self.initialisation, name=classes)(x)

    def _block(self, x: jax.Array, name: str, reads: str, writes: str, source: str, train: bool) -> jax.Array:
        """Two convolutions, plus the stream itself or, if the stage changes, its projection; then the activation."""
        stride = 1 if reads == writes else 2
        output = f"{name}_output"
        hidden = self._conv(f"{name}_conv_0", reads, name, name, stride=stride, source=source)(x, train)
        hidden = tap(self, name, name, self.activation, hidden)
        branch = self._conv(f"{name}_conv_1", name, writes, output)(hidden, train)
        if reads != writes:
            x = self._conv(f"{name}_projection", reads, writes, output, kernel_size=1, stride=stride)(x, train)
        return tap(self, output, writes, self.activation, x + branch)

    def _conv(
        self,
        name: str,
        reads: str,
        writes: str,
        site: str,
        kernel_size: int = 3,
        stride: int = 1,
        source: str | None = None,
    ) -> NormedConv:
        return NormedConv(
            reads,
            writes,
            dict(self.sizes)[writes],
            site,
            self.norm,
            self.affine,
            self.initialisation,
            kernel_size=kernel_size,
            stride=stride,
            source=source,
            name=name,
        )


@recorded
def resnet18(
    input_shape: Sequence[int],
    num_classes: int,
    width: int = 64,
    blocks: Sequence[int] = (2, 2, 2, 2),
    activation: str | Callable = "relu",
    norm: str = "batch",
    affine: bool = True,
    dropout: float = 0.0,
    init: str = "he_fan_out",
    compute_dtype: str = "float32",
) -> Model:
    """Build a residual network of basic blocks for small images: 3x3 stem without pooling, activation after the sum.

    Unit spaces: `stage_s` (the residual stream of a stage) and `stage_s_block_b` (inside a block). Stage s has
    `width * 2**s` units; every stage but the first halves the map, with a strided 1x1 projection as its shortcut.
    Sites: `stem`, `stage_s_block_b`, `stage_s_block_b_output`. The head reads the mean over positions.

    Args:
        input_shape: `(height, width, channels)` of one input.
        num_classes: number of logits.
        width: number of units of the first stage.
        blocks: number of blocks of each stage; `(1, 1)` and a small width give a model for tests.
        activation: a name in `lopjax.activations.ACTIVATIONS` or any elementwise function. Reuse the same function
            object: it identifies the model. Pass an `Activation` if verdicts need facts about it.
        norm: `"batch"`, `"layer"` (over units and positions: group norm with one group) or `"none"` (convolutions then
            have biases), after every convolution.
        affine: whether the norm has a scale and an offset per unit.
        dropout: rate before the head, in [0, 1).
        init: as in `mlp`; `"he_fan_out"` is usual for residual networks.
        compute_dtype: as in `mlp`.

    Returns:
        The model; the same arguments give the same object.

    Raises:
        ValueError: a bad argument; names it, what was given and what is allowed.

    Example:
        >>> from lopjax.models import resnet18
        >>> model = resnet18((8, 8, 3), 10, width=4, blocks=(1,))
        >>> model.wiring.sites_of("stage_0")
        ('stem', 'stage_0_block_0_output')

    References:
        arXiv 1512.03385, sections 3.3 and 4.2; arXiv 2510.00304, appendix C.
    """
    check_image_shape(input_shape)
    check_options(
        input_shape, num_classes, activation, norm, dropout, init, compute_dtype, width=(width,), blocks=blocks
    )
    sizes: dict[str, int] = {}
    for stage, num_blocks in enumerate(blocks):
        units = int(width) * 2**stage
        spaces = (f"stage_{stage}", *(f"stage_{stage}_block_{block}" for block in range(num_blocks)))
        sizes |= {space: units for space in spaces}
    module = ResNet(
        sizes=(*sizes.items(), ("classes", int(num_classes))),
        blocks=tuple(int(number) for number in blocks),
        **common_fields(activation, norm, affine, dropout, init, compute_dtype),
    )
    return from_linen(module, tuple(int(size) for size in input_shape))
