"""LeNet: two convolutions, two poolings, dense layers.

ReLU comes *after* each pooling: max(0, the largest of four values) is the largest of the four
max(0, value). The numbers are the same, and ReLU has a quarter of the work.
"""

from minires.networks.layers import (
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPool,
    ReLU,
    Sequential,
    Shape,
)
from minires.networks.model import Model


def lenet(
    channels: tuple[int, int] = (32, 64),
    hidden: int = 1024,
    dropout: float = 0.5,
    initializer: str = "glorot",
    input_shape: Shape = (28, 28, 1),
    classes: int = 10,
) -> Model:
    """The network of the paper's MNIST study, in the shape that TF-slim gave it.

    5×5 convolutions with padding "same", each followed by 2×2 pooling, one dense layer with
    dropout, one for the logits: 3,274,634 weights for 28×28 grey images.

    channels     of the two convolutions
    hidden       units of the dense layer
    dropout      share of the hidden units dropped in training; 0 for none
    initializer  of the weights: "glorot", "he" or "truncated_normal"
    input_shape  (H, W, C) of one image
    classes      how many outputs
    Returns      Model
    Source       LeCun et al. 1998; the slim models of TensorFlow 1.8, the paper's framework
    """
    first, second = channels
    return Model(
        input_shape,
        Sequential(
            Conv2D(first, 5, initializer=initializer),
            MaxPool(2),
            ReLU(),
            Conv2D(second, 5, initializer=initializer),
            MaxPool(2),
            ReLU(),
            Flatten(),
            Dense(hidden, initializer=initializer),
            ReLU(),
            Dropout(dropout),
            Dense(classes, initializer=initializer),
        ),
    )


def lenet_classic(
    dropout: float = 0.0,
    initializer: str = "glorot",
    input_shape: Shape = (28, 28, 1),
    classes: int = 10,
) -> Model:
    """The 1998 proportions, 6-16-120-84, with ReLU and max pooling: 61,706 weights.

    dropout      share of the last hidden units dropped in training
    initializer  of the weights: "glorot", "he" or "truncated_normal"
    input_shape  (H, W, C) of one image
    classes      how many outputs
    Returns      Model
    Source   LeCun, Bottou, Bengio and Haffner 1998, fig. 2
    """
    return Model(
        input_shape,
        Sequential(
            Conv2D(6, 5, initializer=initializer),
            MaxPool(2),
            ReLU(),
            Conv2D(16, 5, padding="valid", initializer=initializer),
            MaxPool(2),
            ReLU(),
            Flatten(),
            Dense(120, initializer=initializer),
            ReLU(),
            Dense(84, initializer=initializer),
            ReLU(),
            Dropout(dropout),
            Dense(classes, initializer=initializer),
        ),
    )
