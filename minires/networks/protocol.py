"""What every network of this library can do, whether it is built here or read from a file.

`minires.Model` (built from layers) and `minires.onnx.Network` (read from an ONNX file) share no
code, but they share these names, arguments and meanings. So everything that trains, averages or
evaluates is written once, for a `Classifier`.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from minires.arrays import Array


@runtime_checkable
class Classifier(Protocol):
    """A network that turns images into class probabilities. It holds no weights itself.

    input_shape   the shape of one image, without the batch axis
    classes       C, the number of classes
    size          P, the number of trainable weights: θ is (P,), or (R, P) for R networks
    stats_size    S, the number of batch-norm statistics: stats is (S,) or (R, S); 0 without any
    batch         how many images `logits` and `predict` take at once, unless they are told
    fixed_batch   the only number of images that it can take at once; None when any number will do
    """

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one image."""

    @property
    def classes(self) -> int:
        """C, the number of classes."""

    @property
    def size(self) -> int:
        """P, the number of trainable weights."""

    @property
    def stats_size(self) -> int:
        """S, the number of batch-norm statistics."""

    @property
    def batch(self) -> int:
        """How many images `logits` and `predict` take at once, unless they are told."""

    @property
    def fixed_batch(self) -> int | None:
        """The only number of images that it can take at once; None when any number will do."""

    def loss_and_gradient(
        self, theta: Array, images: Array, labels: Array, stats: Array = None, rng: Any = None
    ) -> tuple[Array, Array]:
        """The mean training loss of a batch, and its gradient.

        theta    (P,) float32 or float64; left as it is
        images   (N, *input_shape), dtype of theta, N >= 1
        labels   (N,) integers from 0 to C − 1
        stats    (S,), dtype of theta; updated in place. None is for networks that have none
                 (S = 0), or that hold statistics of their own: those are read, never changed
        rng      a Generator; needed with dropout only
        Returns  loss, a number; gradient, a new array like theta
        Raises   ValueError when a shape, a dtype or a label does not fit, or N is 0
        """

    def init_stats(
        self, replicas: int | None = None, dtype: Any = np.float32, device: str = "cpu"
    ) -> Array:
        """Batch-norm statistics to begin with.

        replicas  R, for R networks
        dtype     float32 or float64
        device    "cpu" or "gpu"
        Returns   stats (S,) or (R, S): of a Model mean 0 and variance 1, of a file its own
        """

    def measure(self, theta: Array, images: Array, stats: Array, momentum: float) -> None:
        """Move the batch-norm statistics towards those of one batch; no training.

        stats ← momentum · stats + (1 − momentum) · (mean and variance of this batch)

        Every batch-norm layer normalises by the batch, as in training. Dropout does nothing,
        since the statistics are measured for predictions.

        theta     (P,); left as it is
        images    (N, *input_shape), dtype of theta, N >= 2
        stats     (S,) float32 or float64, updated in place
        momentum  the share of the old statistics that is kept, from 0 to 1
        Raises    ValueError when a shape or a dtype does not fit
        """

    def logits(
        self, theta: Array, images: Array, stats: Array = None, batch: int | None = None
    ) -> Array:
        """The outputs before the softmax.

        theta    (P,), or (R, P): R networks
        images   (N, *input_shape), dtype of theta, N >= 1
        stats    (S,), or (R, S) with theta (R, P); left as they are; None as above
        batch    how many images to take at once, at least 1: it changes the memory that is
                 needed, not the result; None lets the network choose
        Returns  (N, C), or (R, N, C), dtype of theta
        Raises   ValueError when a shape or a dtype does not fit, N is 0, or batch is below 1
        """

    def predict(
        self, theta: Array, images: Array, stats: Array = None, batch: int | None = None
    ) -> Array:
        """Class probabilities: softmax(logits).

        theta, images, stats, batch   as for `logits`
        Returns  (N, C), or (R, N, C), dtype of theta; each row sums to 1
        Raises   as `logits`
        """

    def arrays(self, theta: Array) -> dict[str, Array]:
        """Every weight array by name.

        theta    (P,) or (R, P)
        Returns  {name: view of theta}: writing into an array changes theta
        Raises   ValueError when theta does not fit
        """
