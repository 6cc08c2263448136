"""The property sets by name, for the command line and for the matrix of mistakes."""

from collections.abc import Callable
from functools import partial

from minires.testing import (
    ensembles,
    experiments,
    gradients,
    kernels,
    moments,
    optimizers,
    weights,
)
from minires.testing.judging import Property

# name → a function of the code to be judged that returns its properties
KINDS: dict[str, Callable[..., list[Property]]] = {
    "moments": moments.moments_properties,
    "merge": moments.merge_properties,
    "gradient": gradients.gradient_properties,
    "unbroadcast": gradients.unbroadcast_properties,
    "matmul": gradients.matmul_properties,
    "log_softmax": gradients.log_softmax_properties,
    "softmax_cross_entropy": gradients.softmax_cross_entropy_properties,
    "dropout": gradients.dropout_properties,
    "topological_backward": gradients.topological_backward_properties,
    "convolution": kernels.convolution_properties,
    "depthwise": partial(kernels.convolution_properties, depthwise=True),
    "max_pooling": partial(kernels.pooling_properties, kind="max"),
    "mean_pooling": partial(kernels.pooling_properties, kind="mean"),
    "batch_norm": kernels.batch_norm_properties,
    "running_statistics": kernels.running_statistics_properties,
    "reestimation": kernels.reestimation_properties,
    "sgd": partial(optimizers.optimizer_properties, kind="sgd"),
    "adam": partial(optimizers.optimizer_properties, kind="adam"),
    "sampler": ensembles.sampler_properties,
    "average": partial(ensembles.average_properties, rule="probabilities"),
    "geometric": partial(ensembles.average_properties, rule="geometric"),
    "vote": partial(ensembles.average_properties, rule="vote"),
    "accuracy": partial(ensembles.metric_properties, kind="accuracy"),
    "nll": partial(ensembles.metric_properties, kind="nll"),
    "brier": partial(ensembles.metric_properties, kind="brier"),
    "ece": partial(ensembles.metric_properties, kind="ece"),
    "paired_difference": experiments.paired_difference_properties,
    "paired_test": experiments.paired_test_properties,
    "equivalence": experiments.equivalence_properties,
    "collector": weights.collector_properties,
    "line": weights.line_properties,
    "harm": weights.harm_properties,
    "weights_of": weights.weights_of_properties,
}

# The kinds that take a second function, the backward pass.
WITH_BACKWARD = (
    "topological_backward", "convolution", "depthwise", "max_pooling", "mean_pooling", "batch_norm",
)  # fmt: skip
