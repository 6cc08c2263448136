"""`minires info --check`: does this machine compute what the definitions say?

Every kernel that is in use, on a CPU or a GPU, against the same one of `kernels/plain.py` on the
same device; a gradient against one of plain kernels; on a GPU also training steps that are recorded
and played again against steps that are not, TF32 off and on, and whether all memory is given back.
It takes less than a minute, most of it to compile.
"""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minires import arrays
from minires.kernels import gpu, kernels_of, plain, runs_as_written, use_kernels
from minires.networks.lenet import lenet
from minires.networks.mobilenet import mobilenet_v2
from minires.resampling.moments import Moments
from minires.training import capture, loop
from minires.training.optimizers import SGD

PRECISIONS = np.float32, np.float64
ALLOWED = {"float32": 5e-5, "float64": 1e-12}  # relative to the largest value of a result
SIZE = 512  # rows and columns of a product for which cuBLAS uses tensor cores
UPDATES, BATCH = 5, 8
LOST = 32 << 20  # bytes of the card that other programs may take meanwhile
VARIABLE = "MINIRES_TF32"
WEYL = 0x9E3779B9, 0xBB67AE85  # what Philox adds to its keys


@dataclass
class Finding:
    """One line of the table.

    what      was checked
    error     the largest, relative to the largest value; None where there is no number
    allowed   how large it may be
    remark    what went wrong, or what there is to say
    """

    what: str
    error: float | None = None
    allowed: float | None = None
    remark: str = ""
    passed: bool = True

    def cells(self) -> list[str]:
        """Its cells in the table."""
        numbers = ["" if n is None else f"{n:.1e}" for n in (self.error, self.allowed)]
        return [self.what, *numbers, "pass" if self.passed else "FAIL", self.remark]


HEADS = ["checked", "largest error", "allowed", "", ""]


def findings(device: str) -> Iterator[Finding]:
    """Check a device; what fails does not stop what follows.

    device   "cpu" or "gpu"
    Returns  Findings, as they come
    """
    for dtype in PRECISIONS:
        for name, compute in kernel_calls(device, dtype).items():
            yield _tried(f"{name}, {dtype.__name__}", _kernel_error, device, compute, dtype)
    yield _tried("random numbers", _random_numbers, device)
    small = {"input_shape": (32, 32, 1), "classes": 10}
    for dropout in (0.0, 0.2):
        networks = {
            "LeNet": lenet(channels=(8, 16), hidden=32, dropout=dropout, **small),
            "MobileNetV2": mobilenet_v2(width=0.25, dropout=dropout, **small),
        }
        for name, model in networks.items():
            if not dropout:
                yield _tried(f"gradient of {name}", _gradient_error, model, device)
            elif device == "gpu" and not runs_as_written():  # plain steps are not recorded
                yield _tried(f"recorded steps of {name}", _recorded_error, model)
    if device == "gpu":
        yield _tried("products without TF32", _product_error, "0")
        yield _tried("products with TF32", _product_error, "1")
        yield _tried("memory is given back", _memory_left, networks["LeNet"])


def _tried(what, check, *arguments):
    """The finding of a check; what it raises is one, too."""
    try:
        finding = check(*arguments)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(what, remark=text[:200], passed=False)
    finding.what = what
    if finding.error is not None and finding.allowed is not None:
        finding.passed = finding.passed and finding.error <= finding.allowed
    return finding


def _difference(ours, theirs):
    """The largest difference of two arrays, relative to the largest value; NaN is infinite."""
    ours, theirs = (arrays.to_host(array).astype(np.float64) for array in (ours, theirs))
    if ours.shape != theirs.shape:
        raise ValueError(f"the result is {ours.shape}, expected {theirs.shape}")
    if not theirs.size:
        return 0.0
    error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)
    return float(error) if np.isfinite(error) else np.inf


# --- kernels ------------------------------------------------------------------------------


# Stride, borders and dilation of windows: the usual ones, and uneven ones.
SAME = (1, 1), ((1, 1), (1, 1)), (1, 1)
UNEVEN = (2, 1), ((1, 0), (2, 1)), (1, 2)


def kernel_calls(device: str, dtype: Any) -> dict[str, Callable[[Any], list]]:
    """{name of a kernel: a function that calls it, of a module of kernels, on arrays of a device}.

    Each returns the arrays that the kernel made or changed. Two networks see two batches; there are
    uneven windows, and sums that are long enough to be cut into parts.

    device   "cpu" or "gpu"
    dtype    of the arrays
    """
    rng = np.random.default_rng(0)

    def some(*shape):
        return arrays.to_device(rng.standard_normal(shape).astype(dtype), device)

    kinds = _products, _convolutions, _depthwise_convolutions, _poolings, _batch_norms, _updates
    return {name: call for kind in kinds for name, call in kind(some).items()}


def _twice(kernel, first, second):
    """The results of a kernel for two lists of arguments."""
    return [kernel(*first), kernel(*second)]


def _products(some):
    rows, columns, vectors = some(2, 17, 16), some(2, 16, 40), some(2, 16, 1)
    x, gradient = some(2, 5000, 6), some(2, 5000, 6)
    return {
        "matmul": lambda k: _twice(k.matmul, (rows, columns), (columns.swapaxes(1, 2), vectors)),
        "sum_rows": lambda k: [k.sum_rows(x)],
        "activate_gradient": lambda k: [k.activate_gradient(gradient, 5 * x, "relu6")],
    }


def _convolutions(some):
    x, w, b = some(2, 9, 16, 17, 16), some(2, 3, 3, 16, 24), some(2, 24)
    g, odd, tiled = some(2, 9, 16, 17, 24), some(2, 9, 8, 16, 24), some(2, 9, 8, 8, 24)
    # Whole numbers, whose sums have no rounding: many pixels of a window are equally large.
    images, kernel = (arrays.xp_of(array).rint(array) for array in (x[..., :4], w[:, :, :, :4]))
    winners = plain.convolve_and_pool(images, kernel, None, *SAME, None, (2, 2))[1]
    return {
        "convolve": lambda k: _twice(
            k.convolve, (x, w, b, *SAME, "relu"), (x[:1], w, None, *UNEVEN, "relu6")
        ),
        "convolve_weight_gradient": lambda k: _twice(
            k.convolve_weight_gradient, (x, g, (3, 3), *SAME), (x[:1], odd, (3, 3), *UNEVEN)
        ),
        "convolve_input_gradient": lambda k: _twice(
            k.convolve_input_gradient,
            (g, w, x.shape[1:], *SAME),
            (odd, w, x.shape[1:], *UNEVEN),
        ),
        "convolve_and_pool": lambda k: list(
            k.convolve_and_pool(images, kernel, b, *SAME, "relu", (2, 2))
        ),
        "unpool": lambda k: [k.unpool(tiled, winners, (2, 2), (16, 17))],
    }


def _depthwise_convolutions(some):
    x, odd = some(2, 9, 16, 17, 16), some(2, 9, 8, 16, 16)
    taps, b = some(2, 3, 3, 16), some(2, 16)
    expand = some(2, 16, 40), some(2, 40)
    filters = some(2, 3, 3, 40), some(2, 40)
    project = some(2, 40, 8), some(2, 8)
    functions = "relu6", "relu6", None
    return {
        "depthwise": lambda k: _twice(
            k.depthwise, (x, taps, b, *SAME, "relu6"), (x[:1], taps, None, *UNEVEN, None)
        ),
        "depthwise_weight_gradient": lambda k: _twice(
            k.depthwise_weight_gradient, (x, x, (3, 3), *SAME), (x[:1], odd, (3, 3), *UNEVEN)
        ),
        "depthwise_input_gradient": lambda k: _twice(
            k.depthwise_input_gradient,
            (x, taps, x.shape[1:], *SAME),
            (odd, taps, x.shape[1:], *UNEVEN),
        ),
        "separable": lambda k: [
            k.separable(x, expand, filters, project, (1, 1), SAME[1], functions)
        ],
    }


def _poolings(some):
    x, g = some(9, 16, 17, 16), some(9, 8, 8, 16)
    divisor = arrays.xp_of(x).full((8, 8, 1), 4, x.dtype)
    window = (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)
    largest = plain.max_pool(x, *window)
    return {
        "max_pool": lambda k: [k.max_pool(x, *window)],
        "max_pool_gradient": lambda k: [k.max_pool_gradient(g, x, largest, *window)],
        "mean_pool": lambda k: [k.mean_pool(x, divisor, *window)],
        "mean_pool_gradient": lambda k: [k.mean_pool_gradient(g, divisor, x.shape, *window)],
    }


def _batch_norms(some):
    x, g = some(2, 5000, 6), some(2, 5000, 6)
    center, scale, shift = some(2, 1, 6), some(2, 1, 6), some(2, 1, 6)
    normalized = x, center, scale, shift
    sums = plain.norm_sums(g, *normalized, "relu")[1:]

    def norm_gradient(k):
        passed = k.norm_sums(g.copy(), *normalized, "relu6")[0]
        return [k.norm_gradient(passed, x, scale, shift, (center, center), "relu6")]

    return {
        "norm_moments": lambda k: list(k.norm_moments(x + 3)),
        "norm_factors": lambda k: list(k.norm_factors(center, center**2, center, center, 1e-3)),
        "norm_slopes": lambda k: list(k.norm_slopes(*sums, center, center, center, 5000)),
        "normalize": lambda k: [k.normalize(x, center, center, 2, "relu")],
        "norm_sums": lambda k: list(k.norm_sums(g.copy(), *normalized, "relu")[1:]),
        "norm_gradient": norm_gradient,
    }


def _updates(some):
    theta, gradient, first, second = (some(2, 3000) for _ in range(4))
    xp = arrays.xp_of(theta)
    rates, epsilon = xp.asarray([0.1, 0.2], theta.dtype), xp.asarray([1e-3], theta.dtype)
    offset, deviation = (some(2, 3000).astype(np.float64) for _ in range(2))
    number, weight = xp.asarray([3], np.int64), xp.asarray([0.01])

    def changed(kernel, vectors, *numbers):
        copies = [vector.copy() for vector in vectors]
        kernel(*copies, *numbers)
        return copies

    return {
        "step_sgd": lambda k: changed(k.step_sgd, (theta, gradient, first), rates, 0.9, 0.01),
        "step_adam": lambda k: changed(
            k.step_adam, (theta, gradient, first, second**2), rates, epsilon, 0.9, 0.999
        ),
        "fold_moments": lambda k: changed(
            k.fold_moments, (theta, first, offset, deviation**2), number
        ),
        "fold_average": lambda k: changed(k.fold_average, (offset, theta), weight),
    }


def _in_use(device):
    """The module of kernels that computes on a device."""
    return kernels_of(arrays.module_for(device).zeros(1))


@contextlib.contextmanager
def _tf32(choice):
    """Within the block products are as MINIRES_TF32 = `choice` says."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = choice
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def _kernel_error(device, compute, dtype):
    with _tf32("0"):  # whether the kernels are right: TF32 would leave three digits
        errors = map(_difference, compute(_in_use(device)), compute(plain))
    return Finding("", max(errors), ALLOWED[dtype.__name__])


def _random_numbers(device):
    """On a GPU against Philox in NumPy's whole numbers; on a CPU they are NumPy's own."""
    seeds, size = np.array([3, (1 << 62) + 7], np.uint64), 1003
    if _in_use(device) is not gpu:
        rngs = lambda: [np.random.default_rng(seed) for seed in seeds]
        like = arrays.module_for(device).zeros(1)
        pair = (k.uniform(rngs(), (2, size), like) for k in (_in_use(device), plain))
        return Finding("", _difference(*pair), 0.0)
    table = arrays.to_device(seeds[None], device)
    ours = gpu.uniform(gpu.Seeds(table), (2, size), table)
    return Finding("", _difference(ours, _philox(seeds, size)), 0.0)


def _philox(seeds, size):
    """What `gpu.uniform` should give: see gpu.cu."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    counters = np.arange(-(-size // 4), dtype=np.uint64)
    words = [np.tile(counters & mask, (len(seeds), 1)), *np.zeros((3, len(seeds), len(counters)))]
    words = [word.astype(np.uint64) for word in words]
    keys = [seeds[:, None] & mask, seeds[:, None] >> shift]
    for _ in range(10):
        left, right = np.uint64(0xD2511F53) * words[0], np.uint64(0xCD9E8D57) * words[2]
        words = [
            (right >> shift) ^ words[1] ^ keys[0], right & mask,
            (left >> shift) ^ words[3] ^ keys[1], left & mask,
        ]  # fmt: skip
        keys = [(key + np.uint64(n)) & mask for key, n in zip(keys, WEYL, strict=True)]
    numbers = np.stack(words, axis=-1).reshape(len(seeds), -1)[:, :size]
    return (numbers >> np.uint64(8)) / 2.0**24


# --- training -----------------------------------------------------------------------------


def _problem(model, device, dtype):
    """θ, statistics, images and labels on a device."""
    rng = np.random.default_rng(1)
    theta, stats = model.init(rng, dtype=dtype), model.init_stats(dtype=dtype)
    images = rng.standard_normal((4 * BATCH, *model.input_shape)).astype(dtype)
    labels = rng.integers(0, model.classes, 4 * BATCH)
    return [arrays.to_device(array, device) for array in (theta, stats, images, labels)]


def _gradient_error(model, device):
    """In float64: in float32 a value beside the kink of a ReLU may land on its other side."""
    theta, stats, images, labels = _problem(model, device, np.float64)
    ours = model.loss_and_gradient(theta, images, labels, stats.copy())[1]
    with use_kernels("plain"):
        theirs = model.loss_and_gradient(theta, images, labels, stats.copy())[1]
    return Finding("", _difference(ours, theirs), 1e-9)


def _trained(model, record):
    """What some updates make of a network on a GPU, and why they could not be recorded, if so."""
    theta, stats, images, labels = _problem(model, "gpu", np.float32)
    order, rng = loop.order_and_dropout(len(images), BATCH, 0, "training")
    order = [next(order) for _ in range(UPDATES)]
    moments, task = Moments(theta.shape), loop.Task(model, images, labels, BATCH)
    kind = loop.Steps if runs_as_written() else partial(capture.RecordedSteps, record=record)
    optimizer = SGD(0.05, momentum=0.9)
    with kind(task, theta, stats, optimizer, order, rng, moments=[(moments, theta)]) as steps:
        for _ in order:
            steps.take()
    found = theta, stats, moments.mean, moments.variance, steps.losses
    return [arrays.to_host(array) for array in found], steps.reason


def _recorded_error(model):
    (ours, reason), (theirs, _) = _trained(model, True), _trained(model, False)
    error = max(map(_difference, ours, theirs))
    return Finding("", error, 0.0, f"not recorded: {reason}" if reason else "", reason is None)


# --- the GPU's own ------------------------------------------------------------------------


def _product_error(choice):
    """With TF32 three digits are left, if the card and cuBLAS use it at all."""
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, SIZE, SIZE)).astype(np.float32)
    with _tf32(choice):
        product = gpu.matmul(*(arrays.to_device(array, "gpu") for array in (a, b)))
    error = _difference(product, a.astype(np.float64) @ b)
    unused = choice == "1" and error < 1e-5
    remark = "as exact as without: this card, or cuBLAS, does not use it" if unused else ""
    return Finding("", error, 1e-2 if choice == "1" else 1e-5, remark)


def _memory_left(model):
    """Bytes that arrays still have after a training, and what the card has less of."""
    xp = arrays.module_for("gpu")

    def after_training():
        _trained(model, True)
        gc.collect()
        pool = xp.get_default_memory_pool()
        pool.free_all_blocks()
        return pool.used_bytes(), xp.cuda.runtime.memGetInfo()[0]

    (used, free), (used_again, free_again) = after_training(), after_training()
    left, lost = used_again - used, free - free_again
    remark = f"{left:,} bytes kept by arrays, {lost:,} fewer are free" if left or lost else ""
    return Finding("", remark=remark, passed=left <= 0 and lost <= LOST)
