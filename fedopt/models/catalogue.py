"""The reference models that a configuration can name. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from fedopt.registry import Entry, Options, register


class LogisticOptions(Options):
    """Multinomial logistic regression has no options but its bias."""

    bias: bool = Field(True, description="whether the linear map has a bias")


class MlpOptions(Options):
    """Widths of a multi-layer perceptron."""

    hidden: tuple[int, ...] = Field(
        (64,), strict=False, min_length=1, description="widths of the hidden layers, each >= 1"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability, in [0, 1)")

    def model_post_init(self, _context: object) -> None:
        """Refuse widths below one."""
        if min(self.hidden) < 1:
            raise ValueError(f"hidden: each width must be >= 1, got {list(self.hidden)}")


class CnnOptions(Options):
    """The two-convolution network of McMahan et al. (2017)."""

    channels: tuple[int, int] = Field(
        (32, 64), strict=False, description="output channels of the convolutions"
    )
    hidden: int = Field(512, ge=1, description="width of the dense layer, >= 1")
    kernel_size: Literal[3, 5] = Field(5, description="side of the square kernels, pixels")
    norm: Literal["none", "group"] = Field(
        "none", description="normalisation after each convolution: none, or GroupNorm"
    )
    groups: int = Field(8, ge=1, description="groups of GroupNorm; must divide both channels")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability, in [0, 1)")

    def model_post_init(self, _context: object) -> None:
        """Refuse channels that GroupNorm cannot split."""
        if min(self.channels) < 1:
            raise ValueError(f"channels: each must be >= 1, got {list(self.channels)}")
        if self.norm == "group" and any(c % self.groups for c in self.channels):
            raise ValueError(
                f"groups: must divide both of channels = {list(self.channels)}, got {self.groups}"
            )


class ResnetOptions(Options):
    """The residual network of He et al. (2016) for small images, with GroupNorm."""

    depth: int = Field(8, ge=8, description="layers with weights: 8, 14, 20, ... (6 n + 2)")
    width: int = Field(16, ge=1, description="channels of the first of three stages, >= 1")
    groups: int = Field(2, ge=1, description="groups of GroupNorm; must divide the width")

    def model_post_init(self, _context: object) -> None:
        """Refuse depths without whole stages, and channels that GroupNorm cannot split."""
        if (self.depth - 2) % 6:
            below = self.depth - (self.depth - 2) % 6
            raise ValueError(
                f"depth: must be 6 n + 2, got {self.depth}; the nearest are {below} and {below + 6}"
            )
        if self.width % self.groups:
            raise ValueError(f"groups: must divide width = {self.width}, got {self.groups}")


class CellSupernetOptions(Options):
    """Cells of mixed operations, for images."""

    channels: int = Field(4, ge=1, description="channels of a node of the first cell, >= 1")
    cells: int = Field(
        2, ge=1, description="number of cells, >= 1; those at 1/3 and 2/3 halve the image"
    )
    nodes: int = Field(2, ge=1, description="nodes of a cell, >= 1")
    operations: tuple[str, ...] = Field(
        (
            "none",
            "max_pool_3x3",
            "avg_pool_3x3",
            "skip_connect",
            "sep_conv_3x3",
            "sep_conv_5x5",
            "dil_conv_3x3",
            "dil_conv_5x5",
        ),
        strict=False,
        description="operations of an edge, out of those of DARTS",
    )
    norm: Literal["group", "batch"] = Field(
        "group", description="normalisation: of each example (`group`), or of the batch"
    )


class DenseSupernetOptions(Options):
    """Dense layers of mixed width, activation and skip, for tables."""

    widths: tuple[int, ...] = Field(
        (16, 32, 64), strict=False, description="choices of a layer's width, each >= 1"
    )
    activations: tuple[str, ...] = Field(
        ("relu", "tanh", "gelu", "identity"),
        strict=False,
        description="choices of its activation: identity, relu, tanh, sigmoid, gelu, silu, sin",
    )
    depth: int = Field(2, ge=1, description="number of layers, >= 1")
    skips: bool = Field(True, description="whether skips are searched too")


class GenotypeOptions(Options):
    """An architecture that a search found."""

    path: str = Field(description="genotype.json, as `fedopt search` writes it")


class FreeOptions(Options):
    """Options of a model given by path: passed to the factory as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)


register(
    Entry(
        kind="models",
        name="logistic",
        target="fedopt.models.reference:logistic",
        options=LogisticOptions,
        description="multinomial logistic regression on the flattened input",
        source="Li et al. 2020 (FedProx), section 5",
    )
)
register(
    Entry(
        kind="models",
        name="mlp",
        target="fedopt.models.reference:mlp",
        options=MlpOptions,
        description="multi-layer perceptron with ReLU; hidden=[200, 200] is McMahan's 2NN",
        source="McMahan et al. 2017, section 3 (2NN)",
    )
)
register(
    Entry(
        kind="models",
        name="cnn",
        target="fedopt.models.reference:cnn",
        options=CnnOptions,
        description="two convolutions with max-pooling and one dense layer",
        source="McMahan et al. 2017, section 3 (CNN)",
    )
)
register(
    Entry(
        kind="models",
        name="resnet",
        target="fedopt.models.residual:resnet",
        options=ResnetOptions,
        description="residual network for small images with GroupNorm; depth=8 is ResNet-8",
        source="He et al. 2016, section 4.2; Hsieh et al. 2020 (GroupNorm)",
    )
)
register(
    Entry(
        kind="models",
        name="cell_supernet",
        target="fedopt.models.searched:cell_supernet",
        options=CellSupernetOptions,
        description="cells of mixed operations for images, to be searched",
        source="Liu et al. 2019 (DARTS), section 2.1",
    )
)
register(
    Entry(
        kind="models",
        name="dense_supernet",
        target="fedopt.models.searched:dense_supernet",
        options=DenseSupernetOptions,
        description="dense layers of mixed width, activation and skip, to be searched",
        source="Liu et al. 2019 (DARTS), equation 2",
    )
)
register(
    Entry(
        kind="models",
        name="genotype",
        target="fedopt.models.searched:genotype",
        options=GenotypeOptions,
        description="an architecture that a search found, from its file",
        source="Liu et al. 2019 (DARTS), section 3.2",
    )
)
