"""Properties for anybody's code: what a class points at its own answers.

    from minires.testing import check_moments

    class Running: ...                       # the answer of a student, or of any library

    print(check_moments(Running))            # the properties that hold; or Falsified

Each `check_…` takes the code to be judged, tries it on inputs that Hypothesis makes, and returns
the properties that hold. When one does not, it raises `Falsified` (an AssertionError) with the
smallest input that shows it, the answer, the right answer, and a hint. Plain NumPy arrays go in
and come out, so code for any library can be judged through a few lines of conversion.

From a shell: `minires check moments answers.py:Running`. From pytest, one test a property:
`test_mine = moments_suite(Running)`. How sharp the properties are is measured against wrong
answers: `minires.testing.mistakes`.

Needs `hypothesis`: pip install 'minires[teach]'.
"""

from minires.testing.ensembles import (
    average_suite,
    check_average,
    check_metric,
    check_sampler,
    metric_suite,
    sampler_suite,
)
from minires.testing.experiments import (
    check_equivalence,
    check_paired_difference,
    check_paired_test,
    equivalence_suite,
    paired_difference_suite,
    paired_test_suite,
)
from minires.testing.gradients import (
    check_dropout,
    check_gradient,
    check_log_softmax,
    check_matmul,
    check_softmax_cross_entropy,
    check_topological_backward,
    check_unbroadcast,
    dropout_suite,
    gradient_suite,
    log_softmax_suite,
    matmul_suite,
    softmax_cross_entropy_suite,
    topological_backward_suite,
    unbroadcast_suite,
)
from minires.testing.judging import Falsified, Summary, Unfinished
from minires.testing.kernels import (
    batch_norm_suite,
    check_batch_norm,
    check_convolution,
    check_depthwise,
    check_pooling,
    check_reestimation,
    check_running_statistics,
    convolution_suite,
    depthwise_suite,
    pooling_suite,
    reestimation_suite,
    running_statistics_suite,
)
from minires.testing.moments import check_merge, check_moments, merge_suite, moments_suite
from minires.testing.optimizers import check_optimizer, optimizer_suite
from minires.testing.weights import (
    check_collector,
    check_harm,
    check_line,
    check_weights_of,
    collector_suite,
    harm_suite,
    line_suite,
    weights_of_suite,
)

__all__ = [
    "Falsified",
    "Summary",
    "Unfinished",
    "average_suite",
    "batch_norm_suite",
    "check_average",
    "check_batch_norm",
    "check_collector",
    "check_convolution",
    "check_depthwise",
    "check_dropout",
    "check_equivalence",
    "check_gradient",
    "check_harm",
    "check_line",
    "check_log_softmax",
    "check_matmul",
    "check_merge",
    "check_metric",
    "check_moments",
    "check_optimizer",
    "check_paired_difference",
    "check_paired_test",
    "check_pooling",
    "check_reestimation",
    "check_running_statistics",
    "check_sampler",
    "check_softmax_cross_entropy",
    "check_topological_backward",
    "check_unbroadcast",
    "check_weights_of",
    "collector_suite",
    "convolution_suite",
    "depthwise_suite",
    "dropout_suite",
    "equivalence_suite",
    "gradient_suite",
    "harm_suite",
    "line_suite",
    "log_softmax_suite",
    "matmul_suite",
    "merge_suite",
    "metric_suite",
    "moments_suite",
    "optimizer_suite",
    "paired_difference_suite",
    "paired_test_suite",
    "pooling_suite",
    "reestimation_suite",
    "running_statistics_suite",
    "sampler_suite",
    "softmax_cross_entropy_suite",
    "topological_backward_suite",
    "unbroadcast_suite",
    "weights_of_suite",
]
