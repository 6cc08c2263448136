"""MobileNet V1 and V2: a convolution split in two, one within channels, one across them.

A 3×3 convolution from C to O channels needs 9·C·O multiplications per pixel. Filtering every
channel by itself (depthwise, 9·C) and then mixing the channels of each pixel (pointwise, 1×1,
C·O) needs about an eighth of them, and a network of such pairs is nearly as good.

Two frameworks published these networks with small differences, chosen by `variant`:

             stride-2 padding       ε      momentum   running variance
    "tf"     at the end only        1e-3   0.99       of the batch
    "torch"  one pixel all round    1e-5   0.9        of the population (unbiased)

For images of up to 64 pixels the first convolution keeps the size: after five halvings nothing
would be left of 28×28. So the same function makes the network for ImageNet and one for MNIST.
"""

from minires.networks.layers import (
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    GlobalMeanPool,
    Residual,
    Sequential,
    Shape,
)
from minires.networks.model import Model

VARIANTS = {
    "tf": {"epsilon": 1e-3, "momentum": 0.99, "unbiased": False},
    "torch": {"epsilon": 1e-5, "momentum": 0.9, "unbiased": True},
}

SMALL_IMAGE = 64  # pixels: up to this size the first convolution does not halve the image

# MobileNet V1: channels and stride of each pair.
V1 = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)

# MobileNet V2: expansion, channels, blocks, stride of the first of them.
V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _Maker:
    """Makes the layers of one network: all share a variant's settings."""

    def __init__(self, variant, momentum, frozen):
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}, there are {', '.join(VARIANTS)}")
        self.same = variant == "tf"
        self.settings = dict(VARIANTS[variant], frozen=frozen)
        if momentum is not None:
            self.settings["momentum"] = momentum

    def convolution(self, channels, kernel=1, stride=1, activation="relu6"):
        """Convolution, batch norm, activation."""
        padding = "same" if self.same else kernel // 2
        yield Conv2D(channels, kernel, stride, padding, bias=False, initializer="he")
        yield BatchNorm(activation=activation, **self.settings)

    def depthwise(self, stride):
        """Depthwise 3×3 convolution, batch norm, activation."""
        padding = "same" if self.same else 1
        yield DepthwiseConv2D(3, stride, padding, bias=False, initializer="he")
        yield BatchNorm(activation="relu6", **self.settings)


def _first_stride(input_shape):
    return 1 if min(input_shape[:2]) <= SMALL_IMAGE else 2


def round_channels(channels: float, multiple: int = 8) -> int:
    """A number of channels that divides well: at least `multiple`, at least 0.9 · channels.

    channels  the number that is wanted
    multiple  of which the result is the nearest multiple
    """
    rounded = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * channels else rounded


def mobilenet_v1(
    width: float = 1.0,
    input_shape: Shape = (224, 224, 3),
    classes: int = 1000,
    dropout: float = 0.001,
    variant: str = "tf",
    momentum: float | None = None,
    frozen: bool = False,
) -> Model:
    """MobileNet V1: 4,231,976 weights at width 1.0 for 1,000 classes.

    width        multiplies the channels of every layer
    input_shape  (H, W, C): any resolution; up to 64 pixels the first stride is 1
    classes      how many outputs
    dropout      share of the 1,024 features dropped in training
    variant      "tf" or "torch"
    momentum     of the running statistics; the variant's without it
    frozen       train with the running statistics, and leave them as they are
    Returns      Model
    Source       Howard et al. 2017, arXiv:1704.04861, table 1
    """
    make = _Maker(variant, momentum, frozen)
    layers = [*make.convolution(max(8, int(32 * width)), 3, _first_stride(input_shape))]
    for channels, stride in V1:
        layers += make.depthwise(stride)
        layers += make.convolution(max(8, int(channels * width)))
    layers += [GlobalMeanPool(), Dropout(dropout), Dense(classes)]
    return Model(input_shape, Sequential(*layers))


def mobilenet_v2(
    width: float = 1.0,
    input_shape: Shape = (224, 224, 3),
    classes: int = 1000,
    dropout: float = 0.2,
    variant: str = "tf",
    momentum: float | None = None,
    frozen: bool = False,
) -> Model:
    """MobileNet V2: 3,504,872 weights at width 1.0 for 1,000 classes.

    Its blocks are inverted residuals: a 1×1 convolution to six times the channels, a depthwise
    convolution, and a 1×1 convolution back, without an activation. What a block adds is few
    channels wide; the wide arrays live only within the block.

    width        multiplies the channels of every layer (the last only upwards)
    input_shape  (H, W, C): any resolution; up to 64 pixels the first stride is 1
    classes      how many outputs
    dropout      share of the 1,280 features dropped in training
    variant      "tf" or "torch"
    momentum     of the running statistics; the variant's without it
    frozen       train with the running statistics, and leave them as they are
    Returns      Model
    Source       Sandler et al. 2018, arXiv:1801.04381, table 2
    """
    make = _Maker(variant, momentum, frozen)
    channels = round_channels(32 * width)
    layers = [*make.convolution(channels, 3, _first_stride(input_shape))]
    for expansion, wanted, blocks, first_stride in V2:
        after = round_channels(wanted * width)
        for number in range(blocks):
            stride = first_stride if number == 0 else 1
            block = [*make.convolution(expansion * channels)] if expansion > 1 else []
            block += make.depthwise(stride)
            block += make.convolution(after, activation=None)
            keeps_shape = stride == 1 and channels == after
            layers.append(Residual(*block) if keeps_shape else Sequential(*block))
            channels = after
    layers += make.convolution(round_channels(1280 * max(1.0, width)))
    layers += [GlobalMeanPool(), Dropout(dropout), Dense(classes)]
    return Model(input_shape, Sequential(*layers))
