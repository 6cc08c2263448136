"""Inception-V3: every stage looks at the image through windows of several sizes at once.

A block is a handful of *branches* from the same input, 1×1, 3×3 and 5×5 (as two 3×3) and a
pooling, whose channels are laid side by side. A 7×7 window is a 1×7 one followed by a 7×1 one:
14 multiplications instead of 49.

Two frameworks published it with small differences, chosen by `variant`:

             batch-norm scale   mean over windows        momentum   running variance
    "tf"     no                 leaves the padding out   0.99       of the batch
    "torch"  yes                counts it as zeros       0.9        of the population
"""

from minires.networks.layers import (
    AuxiliaryHead,
    BatchNorm,
    Branches,
    Conv2D,
    Dense,
    Dropout,
    GlobalMeanPool,
    MaxPool,
    MeanPool,
    Sequential,
    Shape,
)
from minires.networks.model import Model

VARIANTS = {
    "tf": {"momentum": 0.99, "unbiased": False, "scale": False},
    "torch": {"momentum": 0.9, "unbiased": True, "scale": True},
}

SMALL_IMAGE = 64  # pixels: up to this size a small stem and one block of each kind


class _Maker:
    """Makes the parts of one network: all share a width and a variant's settings."""

    def __init__(self, width, variant, scale, momentum, frozen):
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}, there are {', '.join(VARIANTS)}")
        self.width = width
        self.count_padding = variant == "torch"
        self.settings = dict(VARIANTS[variant], epsilon=1e-3, activation="relu", frozen=frozen)
        if scale is not None:
            self.settings["scale"] = scale
        if momentum is not None:
            self.settings["momentum"] = momentum

    def way(self, *steps):
        """Layers one after another: (channels, kernel[, stride, padding]) or a layer."""
        layers = []
        for step in steps:
            if not isinstance(step, tuple):
                layers.append(step)
                continue
            channels, kernel, stride, padding = step if len(step) == 4 else (*step, 1, "same")
            channels = max(8, int(channels * self.width))
            layers.append(Conv2D(channels, kernel, stride, padding, bias=False, initializer="he"))
            layers.append(BatchNorm(**self.settings))
        return Sequential(*layers)

    def mean_pool(self):
        """The mean of the 3×3 pixels around every pixel."""
        return MeanPool(3, 1, padding=1, count_padding=self.count_padding)

    def block_a(self, pooled):
        """Windows of 1, 5, 3 + 3; and the pooling, to `pooled` channels."""
        return Branches(
            self.way((64, 1)),
            self.way((48, 1), (64, 5)),
            self.way((64, 1), (96, 3), (96, 3)),
            self.way(self.mean_pool(), (pooled, 1)),
        )

    def reduction_b(self):
        """Half the rows and columns, by convolution and by pooling."""
        return Branches(
            self.way((384, 3, 2, "valid")),
            self.way((64, 1), (96, 3), (96, 3, 2, "valid")),
            MaxPool(3, 2),
        )

    def block_c(self, narrow):
        """Windows of 7, as 1×7 and 7×1, through `narrow` channels."""
        across, down = (1, 7), (7, 1)
        return Branches(
            self.way((192, 1)),
            self.way((narrow, 1), (narrow, across), (192, down)),
            self.way((narrow, 1), (narrow, down), (narrow, across), (narrow, down), (192, across)),
            self.way(self.mean_pool(), (192, 1)),
        )

    def reduction_d(self):
        """Half the rows and columns once more."""
        return Branches(
            self.way((192, 1), (320, 3, 2, "valid")),
            self.way((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2, "valid")),
            MaxPool(3, 2),
        )

    def block_e(self):
        """The widest block: a 1×3 and a 3×1 convolution side by side instead of a 3×3 one."""

        def cross():
            return Branches(self.way((384, (1, 3))), self.way((384, (3, 1))))

        return Branches(
            self.way((320, 1)),
            self.way((384, 1), cross()),
            self.way((448, 1), (384, 3), cross()),
            self.way(self.mean_pool(), (192, 1)),
        )

    def auxiliary_head(self, classes):
        """A second classifier on the 17×17 pixels before the last reduction."""
        features = self.way(MeanPool(5, 3), (128, 1), (768, 5, 1, "valid")).layers
        return AuxiliaryHead(*features, GlobalMeanPool(), Dense(classes), weight=0.4)


def inception_v3(
    width: float = 1.0,
    input_shape: Shape = (299, 299, 3),
    classes: int = 1000,
    dropout: float = 0.5,
    smoothing: float = 0.1,
    auxiliary: bool = False,
    variant: str = "tf",
    scale: bool | None = None,
    momentum: float | None = None,
    frozen: bool = False,
) -> Model:
    """Inception-V3: 23,834,568 weights with batch-norm scales, 23,817,352 without.

    width        multiplies the channels of every layer
    input_shape  (H, W, C): 75 pixels or more; up to 64 a smaller network is built, with a stem
                 that halves once and one block of each kind
    classes      how many outputs
    dropout      share of the 2,048 features dropped in training
    smoothing    label smoothing of the training loss
    auxiliary    add the auxiliary head: 27,161,264 weights; its loss counts 0.4
    variant      "tf" or "torch"
    scale        whether batch norm has a trainable scale; the variant's without it
    momentum     of the running statistics; the variant's without it
    frozen       train with the running statistics, and leave them as they are
    Returns      Model
    Source       Szegedy et al. 2015, arXiv:1512.00567, table 1, §4 and §7
    """
    make = _Maker(width, variant, scale, momentum, frozen)
    head = [make.auxiliary_head(classes)] if auxiliary else []
    if min(input_shape[:2]) <= SMALL_IMAGE:
        layers = [
            make.way((32, 3), (64, 3), MaxPool(3, 2), (192, 3)),
            make.block_a(64),
            make.reduction_b(),
            make.block_c(160),
            *head,
            make.reduction_d(),
            make.block_e(),
        ]
    else:
        layers = [
            make.way((32, 3, 2, "valid"), (32, 3, 1, "valid"), (64, 3), MaxPool(3, 2)),
            make.way((80, 1), (192, 3, 1, "valid"), MaxPool(3, 2)),
            *[make.block_a(pooled) for pooled in (32, 64, 64)],
            make.reduction_b(),
            *[make.block_c(narrow) for narrow in (128, 160, 160, 192)],
            *head,
            make.reduction_d(),
            make.block_e(),
            make.block_e(),
        ]
    layers += [GlobalMeanPool(), Dropout(dropout), Dense(classes)]
    return Model(input_shape, Sequential(*layers), smoothing)
