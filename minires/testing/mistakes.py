"""Wrong answers: what the properties must reject.

Each is a small piece of code with one mistake. Some are found in public code; most are what
students write. `MISTAKES` lists them with the property set that judges each, and `matrix()`
shows which property catches which:

    python -c "from minires.testing.mistakes import matrix; print(matrix())"
"""

from collections.abc import Iterable

import numpy as np

from minires.testing import references as right
from minires.testing.judging import examine, readable
from minires.testing.kinds import KINDS
from minires.testing.references import Answer

MISTAKES: list[Answer] = []


def _wrong(kind, name, *, before=(), source="", **options):
    def register(code):
        MISTAKES.append(Answer(kind, name, (*before, code), options, source))
        return code

    return register


# --- the running mean and variance, as public code has it --------------------------------


@_wrong("moments", "the first θ is counted twice", source="seen in public code")
class FirstCountedTwice(right.Welford):
    def update(self, theta):
        if self.count == 0:
            super().update(theta)
            self.count = 1
        super().update(theta)


@_wrong("moments", "sums start at a copy of the first θ", source="seen in public code")
class StartsAtACopy:
    def __init__(self):
        self.n = 0

    def update(self, theta):
        if self.n == 0:
            self.total, self.squares = theta.copy(), theta**2
        self.n += 1
        self.total = self.total + theta
        self.squares = self.squares + theta**2

    @property
    def mean(self):
        return self.total / self.n

    @property
    def variance(self):
        return np.maximum(self.squares / self.n - self.mean**2, 0)


@_wrong("moments", "divided by the epoch, not by the update", source="seen in public code")
class DividedByEpoch:
    batches = 2  # updates in an epoch

    def __init__(self, shape):
        self.n, self.mean, self.variance = 0, np.zeros(shape), np.zeros(shape)

    def update(self, theta):
        epoch = self.n // self.batches + 1
        d = theta - self.mean
        self.mean = self.mean + d / epoch
        self.variance = self.variance + (d * (theta - self.mean) - self.variance) / epoch
        self.n += 1


@_wrong(
    "moments", "E[θ²] − E[θ]², clamped at a floor",
    source="github.com/wjmaddox/swa_gaussian, swag/posteriors/swag.py: var_clamp",
)  # fmt: skip
class DifferenceOfSquares:
    def __init__(self):
        self.n, self.mean, self.square = 0, 0.0, 0.0  # of θ's dtype from the first update on

    def update(self, theta):
        self.mean = self.mean * self.n / (self.n + 1) + theta / (self.n + 1)
        self.square = self.square * self.n / (self.n + 1) + theta**2 / (self.n + 1)
        self.n += 1

    @property
    def variance(self):
        return np.maximum(self.square - self.mean**2, 1e-30)


@_wrong("moments", "Welford with sums in float32", source="seen in public code")
class WelfordFloat32(right.Welford):
    def __init__(self, shape):
        self.count = np.float32(0)
        self.mean = np.zeros(shape, np.float32)
        self.squares = np.zeros(shape, np.float32)

    def update(self, theta):
        super().update(theta.astype(np.float32))
        self.count = np.float32(self.count)


# --- … and as students write it ----------------------------------------------------------


@_wrong("moments", "divided by n − 1")
class DividedByNMinusOne(right.Welford):
    @property
    def variance(self):
        return self.squares / max(self.count - 1, 1)


@_wrong("moments", "the sum of squares is not divided")
class NotDivided(right.Welford):
    @property
    def variance(self):
        return self.squares


@_wrong("moments", "the new mean in both factors")
class NewMeanTwice(right.Welford):
    def update(self, theta):
        self.count += 1
        self.mean = self.mean + (theta - self.mean) / self.count
        self.squares = self.squares + (theta - self.mean) ** 2


@_wrong("moments", "σ instead of σ²")
class StandardDeviation(right.Welford):
    @property
    def variance(self):
        return np.sqrt(self.squares / self.count)


@_wrong("moments", "a moving average with a fixed weight")
class MovingAverage(right.Welford):
    def update(self, theta):
        self.count += 1
        d = theta - self.mean
        self.mean = self.mean + (d if self.count == 1 else 0.5 * d)
        self.squares = self.squares + d * (theta - self.mean)


@_wrong("moments", "θ is kept, not a copy")
class KeepsTheta(right.TwoPasses):
    def update(self, theta):
        self.rows.append(theta)


@_wrong("moments", "θ is changed")
class ChangesTheta(right.Welford):
    def update(self, theta):
        super().update(theta)
        theta -= self.mean


@_wrong("moments", "reading resets")
class ReadingResets(right.TwoPasses):
    def variance(self):
        value = super().variance()
        self.rows = self.rows[-1:]
        return value


@_wrong("moments", "one mean for all weights")
class OneMean(right.Welford):
    def __init__(self):
        super().__init__(())

    def update(self, theta):
        super().update(theta.mean())


@_wrong("moments", "halves merge as if equally long")
class MergesHalfHalf(right.Welford):
    def merge(self, other):
        d = other.mean - self.mean
        self.mean = (self.mean + other.mean) / 2
        self.squares = self.squares + other.squares + d**2 / 4
        self.count += other.count


@_wrong("moments", "`count` starts at one")
class CountsFromOne(right.Welford):
    def update(self, theta):
        self._count = getattr(self, "_count", 0) + 1
        d = theta - self.mean
        self.mean = self.mean + d / self._count
        self.squares = self.squares + d * (theta - self.mean)

    @property
    def count(self):
        return getattr(self, "_count", 0) + 1

    @count.setter
    def count(self, value):
        pass

    @property
    def variance(self):
        return self.squares / self._count


@_wrong("merge", "both halves weigh the same")
def halves_weigh_the_same(count_a, mean_a, variance_a, count_b, mean_b, variance_b):
    d = mean_b - mean_a
    return count_a + count_b, mean_a + d / 2, (variance_a + variance_b) / 2 + d**2 / 4


@_wrong("merge", "the distance of the means is forgotten")
def forgets_the_distance(count_a, mean_a, variance_a, count_b, mean_b, variance_b):
    n = count_a + count_b
    a, b = count_a / n, count_b / n
    return n, a * mean_a + b * mean_b, a * variance_a + b * variance_b


@_wrong("merge", "σ² is taken for nσ²")
def sums_of_squares_for_variances(count_a, mean_a, variance_a, count_b, mean_b, variance_b):
    n, d = count_a + count_b, mean_b - mean_a
    squares = variance_a + variance_b + d**2 * count_a * count_b / n
    return n, mean_a + d * count_b / n, squares / n


@_wrong("merge", "a mean is changed in place")
def merge_in_place(count_a, mean_a, variance_a, count_b, mean_b, variance_b):
    answer = right.merge(count_a, mean_a, variance_a, count_b, mean_b, variance_b)
    mean_a += mean_b
    return answer


@_wrong("merge", "the count of the first half")
def count_of_the_first(count_a, mean_a, variance_a, count_b, mean_b, variance_b):
    n, d = count_a + count_b, mean_b - mean_a
    inside = (count_a * variance_a + count_b * variance_b) / n
    return count_a, mean_a + d * count_b / n, inside + d**2 * count_a * count_b / n**2


# --- gradients ---------------------------------------------------------------------------


@_wrong("gradient", "forgotten unbroadcast", shapes=[(2, 3), (3,)])
def forgotten_unbroadcast(x, y):
    return x * y, (lambda g: g * y, lambda g: g * x)


@_wrong("gradient", "the inputs are exchanged", shapes=[(2, 2), (2, 2)])
def exchanged(x, y):
    return x * y, (lambda g: g * x, lambda g: g * y)


@_wrong("gradient", "the sign of a quotient", shapes=[(3,), (3,)], domain=(0.5, 2.0))
def sign_of_a_quotient(x, y):
    return x / y, (lambda g: g / y, lambda g: g * x / y**2)


@_wrong("gradient", "the derivative at the result, not at the input", shapes=[(3,)])
def derivative_at_the_result(x):
    y = np.tanh(x)
    return y, lambda g: g * (1 - np.tanh(y) ** 2)


@_wrong("gradient", "the gradient of the result is forgotten", shapes=[(3,)])
def forgets_g(x):
    return x**2, lambda g: 2 * x


@_wrong("gradient", "one weight of a hundred", shapes=[(100,)])
def one_of_a_hundred(w):
    gradient = 2 * w
    gradient[6] = w[6]
    return float((w**2).sum()), gradient


@_wrong("gradient", "the mean's N is forgotten on one side of a kink", shapes=[(4,)])
def forgotten_on_one_side(x):
    return float(np.maximum(x, 0.1 * x).mean()), np.where(x > 0, 1 / x.size, 0.1)


@_wrong("gradient", "the input is changed in place", shapes=[(3,)])
def in_place(x):
    positive = x > 0
    x[~positive] = 0
    return x, lambda g: g * positive


@_wrong("gradient", "another function, with its own right gradient", shapes=[(3,)], value=np.exp)
def another_function(x):
    return np.sin(x), (lambda g: g * np.cos(x),)


@_wrong("unbroadcast", "nothing is summed")
def nothing_summed(gradient, shape):
    return gradient


@_wrong("unbroadcast", "an array of whole numbers")
def cuts_off_fractions(gradient, shape):
    return right.unbroadcast(gradient, shape).astype(int)


@_wrong("unbroadcast", "new axes only")
def new_axes_only(gradient, shape):
    while gradient.ndim > len(shape):
        gradient = gradient.sum(axis=0)
    return gradient


@_wrong("unbroadcast", "wrong axis of a sum")
def wrong_axis(gradient, shape):
    while gradient.ndim > len(shape):
        gradient = gradient.sum(axis=-1)
    for axis, size in enumerate(shape):
        if size == 1:
            gradient = gradient.sum(axis=axis, keepdims=True)
    return gradient


@_wrong("unbroadcast", "the mean instead of the sum")
def mean_for_sum(gradient, shape):
    size = max(int(np.prod(shape)), 1)
    return right.unbroadcast(gradient, shape) * size / gradient.size


@_wrong("unbroadcast", "the gradient is doubled in place")
def doubled_in_place(gradient, shape):
    gradient *= 2
    return right.unbroadcast(gradient, shape)


@_wrong("matmul", "a transpose is forgotten")
def no_transpose(x, w, g):
    return g @ (w if w.shape[0] == w.shape[1] else w.T), x.T @ g


@_wrong("matmul", "swapped transpose")
def swapped_transpose(x, w, g):
    return g @ w.T, (g.T @ x)


@_wrong("log_softmax", "overflow: nothing is subtracted")
def overflows(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@_wrong("log_softmax", "the logits are changed in place")
def changes_logits(logits):
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@_wrong("log_softmax", "the log of a softmax that is 0")
def log_of_zero(logits):
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.log(p / p.sum(axis=-1, keepdims=True))


@_wrong("log_softmax", "the sum over the rows")
def sum_over_rows(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=0, keepdims=True))


@_wrong("softmax_cross_entropy", "softmax that overflows")
def softmax_overflows(logits, labels):
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return -np.log(p[np.arange(len(labels)), labels]).mean()


@_wrong("softmax_cross_entropy", "the mean over classes too")
def mean_over_classes(logits, labels):
    onehot = np.eye(logits.shape[1])[labels]
    return -(onehot * right.log_softmax(logits)).mean()


@_wrong("softmax_cross_entropy", "the gradient is not divided by N")
def gradient_of_the_sum(logits, labels):
    loss, gradient = right.softmax_cross_entropy(logits, labels)
    return loss, gradient * len(labels)


@_wrong("softmax_cross_entropy", "the loss of the likeliest class")
def likeliest_class(logits, labels):
    return -right.log_softmax(logits).max(axis=1).mean()


@_wrong("dropout", "no scaling")
def no_scaling(x, rate, rng):
    return x * (rng.random(x.shape) >= rate)


@_wrong("dropout", "`rate` is what is kept")
def rate_is_kept(x, rate, rng):
    if rate == 0:
        return x
    return x * (rng.random(x.shape) < rate) / (1 - rate)


@_wrong("dropout", "divided by `rate`")
def divided_by_rate(x, rate, rng):
    return x * (rng.random(x.shape) >= rate) / rate


@_wrong("dropout", "the same mask every time")
def same_mask(x, rate, rng):
    return x * (np.random.default_rng(0).random(x.shape) >= rate) / (1 - rate)


@_wrong("dropout", "whole rows are dropped")
def all_or_nothing(x, rate, rng):
    return x * (rng.random() >= rate) / (1 - rate)


@_wrong("dropout", "x is changed in place")
def drops_in_place(x, rate, rng):
    x *= (rng.random(x.shape) >= rate) / (1 - rate)
    return x


@_wrong("dropout", "another mask for the gradient")
def another_mask(x, rate, rng):
    def mask():
        return (rng.random(x.shape) >= rate) / (1 - rate)

    return x * mask(), lambda g: g * mask()


@_wrong("topological_backward", "gradients replace one another")
class Replaces(right.Value):
    def backward(self):
        order, seen = [], set()

        def visit(value):
            if value not in seen:
                seen.add(value)
                for parent, _ in value.parents:
                    visit(parent)
                order.append(value)

        visit(self)
        self.grad = 1.0
        for value in reversed(order):
            for parent, slope in value.parents:
                parent.grad = value.grad * slope


@_wrong("topological_backward", "depth first, each value as soon as it is reached")
class DepthFirst(right.Value):
    def backward(self):
        self.grad, seen = 1.0, set()

        def visit(value):
            for parent, slope in value.parents:
                parent.grad += value.grad * slope
                if parent not in seen:
                    seen.add(parent)
                    visit(parent)

        visit(self)


@_wrong("topological_backward", "everything again on every path")
class EveryPath(right.Value):
    def backward(self):
        self.grad = 1.0

        def visit(value):
            for parent, slope in value.parents:
                parent.grad += value.grad * slope
                visit(parent)

        visit(self)


@_wrong("topological_backward", "every path by itself")
class PathByPath(right.Value):
    def backward(self):
        def walk(value, gradient):
            value.grad += gradient
            for parent, slope in value.parents:
                walk(parent, gradient * slope)

        walk(self, 1.0)


@_wrong("topological_backward", "the output's own gradient stays 0")
class NoSeed(right.Value):
    def backward(self):
        super().backward()
        self.grad = 0.0

    def __init__(self, data, parents=()):
        super().__init__(data, [(parent, 0.0) for parent, _ in parents])


@_wrong("topological_backward", "sums for products")
class SumsForProducts(right.Value):
    def __mul__(self, other):
        return self + other


# --- kernels -----------------------------------------------------------------------------


@_wrong("convolution", "flipped kernel")
def flipped(x, w, stride=1, padding=0):
    return right.conv2d(x, w[::-1, ::-1], stride, padding)


@_wrong("convolution", "the gradient is summed in place of x", before=(right.conv2d,))
def writes_into_x(x, w, g, stride=1, padding=0):
    x_gradient, w_gradient = right.conv2d_backward(x, w, g, stride, padding)
    x[...] = x_gradient
    return x, w_gradient


@_wrong("convolution", "a pullback that writes into x")
def pullback_into_x(x, w, stride=1, padding=0):
    def back(g):
        x_gradient, w_gradient = right.conv2d_backward(x, w, g, stride, padding)
        x[...] = x_gradient
        return x, w_gradient

    return right.conv2d(x, w, stride, padding), back


@_wrong("convolution", "one padding too few")
def padding_off_by_one(x, w, stride=1, padding=0):
    return right.conv2d(x, w, stride, max(padding - 1, 0))


@_wrong("convolution", "the stride in one direction only")
def stride_of_rows(x, w, stride=1, padding=0):
    return right.conv2d(x, w, 1, padding)[:, ::stride]


@_wrong("convolution", "channels are not summed: the first only")
def first_channel(x, w, stride=1, padding=0):
    return right.conv2d(x[..., :1], w[:, :, :1], stride, padding)


@_wrong("convolution", "stride ignored in the input's gradient", before=(right.conv2d,))
def stride_ignored_for_x(x, w, g, stride=1, padding=0):
    return (
        right.conv2d_backward(x, w, g, 1, padding)[0],
        right.conv2d_backward(x, w, g, stride, padding)[1],
    )


@_wrong("convolution", "the border stays on the input's gradient", before=(right.conv2d,))
def border_stays(x, w, g, stride=1, padding=0):
    _, w_gradient = right.conv2d_backward(x, w, g, stride, padding)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return right.conv2d_backward(padded, w, g, stride, 0)[0], w_gradient


@_wrong("convolution", "x is not padded for the gradient of w", before=(right.conv2d,))
def not_padded_for_w(x, w, g, stride=1, padding=0):
    x_gradient, w_gradient = right.conv2d_backward(x, w, g, stride, padding)
    shifted = np.pad(x, ((0, 0), (0, 2 * padding), (0, 2 * padding), (0, 0)))
    return x_gradient, right.conv2d_backward(shifted, w, g, stride, 0)[1] if padding else w_gradient


@_wrong("convolution", "the stride is ignored in the gradient of w", before=(right.conv2d,))
def stride_ignored_for_w(x, w, g, stride=1, padding=0):
    return (
        right.conv2d_backward(x, w, g, stride, padding)[0],
        right.conv2d_backward(x, w, g, 1, padding)[1],
    )


@_wrong("convolution", "the kernel is flipped in both gradients", before=(right.conv2d,))
def flipped_gradients(x, w, g, stride=1, padding=0):
    x_gradient, w_gradient = right.conv2d_backward(x, w[::-1, ::-1], g, stride, padding)
    return x_gradient, w_gradient[::-1, ::-1]


@_wrong("depthwise", "channels are summed")
def channels_summed(x, w, stride=1, padding=0):
    return right.conv2d(x, np.repeat(w[..., None], w.shape[-1], axis=-1), stride, padding)


@_wrong("depthwise", "flipped kernel")
def flipped_depthwise(x, w, stride=1, padding=0):
    return right.depthwise(x, w[::-1, ::-1], stride, padding)


@_wrong("depthwise", "one padding too few, stride in one direction only")
def depthwise_borders(x, w, stride=1, padding=0):
    return right.depthwise(x, w, 1, max(padding - 1, 0))[:, ::stride]


@_wrong("depthwise", "the gradients ignore the stride", before=(right.depthwise,))
def depthwise_stride_ignored(x, w, g, stride=1, padding=0):
    return right.depthwise_backward(x, w, g, 1, padding)


@_wrong("depthwise", "the gradients ignore the padding", before=(right.depthwise,))
def depthwise_padding_ignored(x, w, g, stride=1, padding=0):
    inner = g[:, padding : g.shape[1] - padding, padding : g.shape[2] - padding]
    return right.depthwise_backward(x, w, inner, stride, 0)


@_wrong("depthwise", "the gradients of channel 0 for all", before=(right.depthwise,))
def depthwise_first_channel(x, w, g, stride=1, padding=0):
    x_gradient, w_gradient = right.depthwise_backward(x, w, g, stride, padding)
    return x_gradient[..., :1] + 0 * x, w_gradient[..., :1] + 0 * w


@_wrong("max_pooling", "the gradient goes to all ties", before=(right.max_pool,))
def all_ties(x, g, window=2, stride=None):
    stride = stride or window
    gradient = np.zeros_like(x)
    for n, i, j, c in np.ndindex(g.shape):
        part = np.s_[n, i * stride : i * stride + window, j * stride : j * stride + window, c]
        gradient[part] += g[n, i, j, c] * (x[part] == x[part].max())
    return gradient


@_wrong("max_pooling", "gradients of overlapping windows replace one another",
        before=(right.max_pool,))  # fmt: skip
def overlaps_replace(x, g, window=2, stride=None):
    stride = stride or window
    gradient = np.zeros_like(x)
    for n, i, j, c in np.ndindex(g.shape):
        part = x[n, i * stride : i * stride + window, j * stride : j * stride + window, c]
        p, q = np.unravel_index(part.argmax(), part.shape)
        gradient[n, i * stride + p, j * stride + q, c] = g[n, i, j, c]
    return gradient


@_wrong("max_pooling", "the gradient of a mean", before=(right.max_pool,))
def gradient_of_a_mean(x, g, window=2):
    inner = np.repeat(np.repeat(g, window, axis=1), window, axis=2) / window**2
    gradient = np.zeros_like(x)
    gradient[:, : inner.shape[1], : inner.shape[2]] = inner
    return gradient


@_wrong("max_pooling", "the last windows are padded by zeros")
def padded_by_zeros(x, window=2, stride=None):
    stride = stride or window
    rest = [(0, -(size - window) % stride) for size in x.shape[1:3]]
    return right.max_pool(np.pad(x, ((0, 0), *rest, (0, 0))), window, stride)


@_wrong("max_pooling", "the stride is the window's size")
def stride_is_the_window(x, window=2, stride=None):
    return right.max_pool(x, window)


@_wrong("max_pooling", "the largest of all channels")
def over_channels(x, window=2, stride=None):
    y = right.max_pool(x, window, stride)
    return np.repeat(y.max(axis=-1, keepdims=True), x.shape[-1], axis=-1)


@_wrong("max_pooling", "the largest size, not the largest value")
def largest_size(x, window=2, stride=None):
    return right.max_pool(abs(x), window, stride)


@_wrong("mean_pooling", "the gradient is not divided")
def mean_not_divided(x, window=2):
    y, pullback = right.mean_pool(x, window)
    return y, lambda g: pullback(g) * window**2


@_wrong("mean_pooling", "divided by the window's side")
def divided_by_the_side(x, window=2):
    return right.mean_pool(x, window)[0] * window


@_wrong("mean_pooling", "the mean of all images")
def mean_of_images(x, window=2):
    y = right.mean_pool(x, window)[0]
    return y * 0 + y.mean(axis=0)


@_wrong("mean_pooling", "the last windows are padded by zeros")
def mean_padded(x, window=2):
    rest = [(0, -size % window) for size in x.shape[1:3]]
    return right.mean_pool(np.pad(x, ((0, 0), *rest, (0, 0))), window)[0]


@_wrong("batch_norm", "the sample variance")
def sample_variance(x, scale, shift, epsilon):
    return scale * (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0, ddof=1) + epsilon) + shift


@_wrong("batch_norm", "ε beside the root")
def epsilon_outside(x, scale, shift, epsilon):
    return scale * (x - x.mean(axis=0)) / (x.std(axis=0) + epsilon) + shift


@_wrong("batch_norm", "E[x²] − E[x]² in float32")
def norm_difference_of_squares(x, scale, shift, epsilon):
    x = x.astype(np.float32)
    mean = x.mean(axis=0)
    variance = np.maximum((x * x).mean(axis=0) - mean * mean, 0)
    return scale * (x - mean) / np.sqrt(variance + np.float32(epsilon)) + shift


@_wrong("batch_norm", "no shift")
def no_shift(x, scale, shift, epsilon):
    return right.batch_norm(x, scale, 0 * shift, epsilon)


@_wrong("batch_norm", "mean and variance as constants in the gradient", before=(right.batch_norm,))
def frozen_moments(x, scale, shift, g, epsilon):
    _, scale_gradient, shift_gradient = right.batch_norm_backward(x, scale, shift, g, epsilon)
    return g * scale / np.sqrt(x.var(axis=0) + epsilon), scale_gradient, shift_gradient


@_wrong("batch_norm", "means for sums in the gradients", before=(right.batch_norm,))
def means_for_sums(x, scale, shift, g, epsilon):
    gradients = right.batch_norm_backward(x, scale, shift, g, epsilon)
    return gradients[0], gradients[1] / len(x), gradients[2] / len(x)


@_wrong("running_statistics", "the momentum of the new batch")
def momentum_of_the_new(mean, variance, x, momentum):
    return right.running_statistics(mean, variance, x, 1 - momentum)


@_wrong("running_statistics", "the batch is centred in place")
def centres_the_batch(mean, variance, x, momentum):
    answer = right.running_statistics(mean, variance, x, momentum)
    x -= x.mean(axis=0)
    return answer


@_wrong("running_statistics", "σ instead of σ²")
def running_sigma(mean, variance, x, momentum):
    new_mean, _ = right.running_statistics(mean, variance, x, momentum)
    return new_mean, momentum * variance + (1 - momentum) * x.std(axis=0)


@_wrong("running_statistics", "the sample variance")
def running_sample_variance(mean, variance, x, momentum):
    new_mean, _ = right.running_statistics(mean, variance, x, momentum)
    own = x.var(axis=0, ddof=1) if len(x) > 1 else x.var(axis=0)
    return new_mean, momentum * variance + (1 - momentum) * own


@_wrong("running_statistics", "added up, not averaged")
def running_sum(mean, variance, x, momentum):
    return momentum * mean + x.mean(axis=0), momentum * variance + x.var(axis=0)


@_wrong("reestimation", "batches weigh alike")
def batches_weigh_alike(batches):
    return (
        np.mean([x.mean(axis=0) for x in batches], axis=0),
        np.mean([x.var(axis=0) for x in batches], axis=0),
    )


@_wrong("reestimation", "the last batch only")
def last_batch_only(batches):
    return batches[-1].mean(axis=0), batches[-1].var(axis=0)


@_wrong("reestimation", "sums, not means")
def sums_not_means(batches):
    x = np.concatenate(batches)
    return x.sum(axis=0), ((x - x.mean(axis=0)) ** 2).sum(axis=0)


# --- optimizers --------------------------------------------------------------------------


@_wrong("sgd", "uphill")
def uphill(theta, gradient, rate):
    return theta + rate * gradient


@_wrong("sgd", "the gradient is scaled in place")
def scaled_in_place(theta, gradient, rate):
    gradient *= rate
    theta -= gradient


@_wrong("sgd", "a velocity for all optimizers")
class SharedVelocity:
    velocity = np.zeros(1)

    def __init__(self, rate):
        self.rate = rate

    def step(self, theta, gradient):
        SharedVelocity.velocity = 0.9 * SharedVelocity.velocity.mean() + gradient
        theta -= self.rate * SharedVelocity.velocity


@_wrong("sgd", "a gradient divided by its own size: 0 / 0")
def normalised(theta, gradient, rate):
    return theta - rate * gradient * np.abs(gradient).max() / np.abs(gradient).max()


@_wrong("adam", "no bias correction")
def no_bias_correction(theta, gradient, state, rate):
    m = state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
    v = state["v"] = 0.999 * state.get("v", 0) + 0.001 * gradient**2
    return theta - rate * m / (np.sqrt(v) + 1e-8)


@_wrong("adam", "ε under the root")
def epsilon_under_the_root(theta, gradient, state, rate):
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
    v = state["v"] = 0.999 * state.get("v", 0) + 0.001 * gradient**2
    return theta - rate * (m / (1 - 0.9**t)) / np.sqrt(v / (1 - 0.999**t) + 1e-8)


@_wrong("adam", "a new array, where θ itself must change", in_place=True)
def not_in_place(theta, gradient, state, rate):
    return right.adam(theta, gradient, state, rate)


@_wrong("adam", "the correction's t stays 1")
def t_stays_one(theta, gradient, state, rate):
    m = state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
    v = state["v"] = 0.999 * state.get("v", 0) + 0.001 * gradient**2
    return theta - rate * (m / (1 - 0.9)) / (np.sqrt(v / (1 - 0.999)) + 1e-8)


@_wrong("adam", "no ε: 0 / 0")
def no_epsilon(theta, gradient, state, rate):
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
    v = state["v"] = 0.999 * state.get("v", 0) + 0.001 * gradient**2
    return theta - rate * (m / (1 - 0.9**t)) / np.sqrt(v / (1 - 0.999**t))


@_wrong("adam", "the state is a default argument of all")
def shared_state(theta, gradient, state, rate, shared={}):  # noqa: B006
    return right.adam(theta, gradient, shared if theta.shape == (1,) else state, rate)


# --- ensembles ---------------------------------------------------------------------------


@_wrong("sampler", "variance used as standard deviation", source="seen in public code")
def variance_as_sigma(mean, variance, k, rng, scale=1.0):
    return right.sample(mean, variance**2, k, rng, scale)


@_wrong(
    "sampler", "the scale of σ², not of σ",
    source="github.com/wjmaddox/swa_gaussian, swag/posteriors/swag.py: scale_sqrt",
)  # fmt: skip
def scale_of_variance(mean, variance, k, rng, scale=1.0):
    return right.sample(mean, scale * variance, k, rng)


@_wrong("sampler", "member k depends on K")
def depends_on_k(mean, variance, k, rng, scale=1.0):
    noise = rng.standard_normal((*mean.shape, k))
    return mean + scale * np.sqrt(variance) * np.moveaxis(noise, -1, 0)


@_wrong("sampler", "one number for all weights")
def one_number(mean, variance, k, rng, scale=1.0):
    return mean + scale * np.sqrt(variance) * rng.standard_normal((k, 1))


@_wrong("sampler", "the same noise for all members")
def same_noise(mean, variance, k, rng, scale=1.0):
    noise = rng.standard_normal(mean.shape)
    return np.stack([mean + scale * np.sqrt(variance) * noise] * k)


@_wrong("sampler", "uniform noise")
def uniform_noise(mean, variance, k, rng, scale=1.0):
    noise = rng.uniform(-np.sqrt(3), np.sqrt(3), (k, *mean.shape))
    return mean + scale * np.sqrt(variance) * noise


@_wrong("sampler", "large noise is cut off")
def clipped_noise(mean, variance, k, rng, scale=1.0):
    noise = np.clip(rng.standard_normal((k, *mean.shape)), -2.5, 2.5)
    return mean + scale * np.sqrt(variance) * noise


@_wrong("sampler", "noise that is never negative")
def positive_noise(mean, variance, k, rng, scale=1.0):
    return mean + scale * np.sqrt(variance) * np.abs(rng.standard_normal((k, *mean.shape)))


@_wrong("sampler", "a generator of its own")
def own_generator(mean, variance, k, rng, scale=1.0):
    own_generator.calls = getattr(own_generator, "calls", 0) + 1
    return right.sample(mean, variance, k, np.random.default_rng(own_generator.calls), scale)


@_wrong("sampler", "a seed of its own for every member")
def own_seeds(mean, variance, k, rng, scale=1.0):
    noise = [np.random.default_rng(j).standard_normal(mean.shape) for j in range(k)]
    return mean + scale * np.sqrt(variance) * np.stack(noise)


@_wrong("sampler", "the same networks at every call")
def starts_again(mean, variance, k, rng, scale=1.0):
    seed = rng.bit_generator.seed_seq.entropy
    return right.sample(mean, variance, k, np.random.default_rng(seed), scale)


@_wrong("sampler", "the mean is not added")
def no_mean(mean, variance, k, rng, scale=1.0):
    return right.sample(0 * mean, variance, k, rng, scale)


@_wrong("sampler", "one network without its axis")
def no_axis(mean, variance, k, rng, scale=1.0):
    return right.sample(mean, variance, k, rng, scale).squeeze()


@_wrong("average", "averaging logits as probabilities")
def logits_for_probabilities(probabilities):
    return np.log(probabilities).mean(axis=0)


@_wrong("average", "the first axis is not the networks'")
def over_images(probabilities):
    return probabilities.mean(axis=1)


@_wrong("average", "a running average that halves")
def halves(probabilities):
    total = probabilities[0]
    for p in probabilities[1:]:
        total = (total + p) / 2
    return total


@_wrong("geometric", "not made to sum to one")
def not_normalised(probabilities):
    return np.exp(np.log(probabilities).mean(axis=0))


@_wrong("geometric", "without the root")
def no_root(probabilities):
    product = probabilities.prod(axis=0)
    return product / product.sum(axis=-1, keepdims=True)


@_wrong("geometric", "the first network weighs twice")
def first_weighs_twice(probabilities):
    twice = np.concatenate([probabilities[:1], probabilities])
    return right.geometric(twice)


@_wrong("geometric", "one class per row")
def class_per_row(probabilities):
    return right.vote(probabilities)


@_wrong("vote", "counts, not shares")
def counts(probabilities):
    return right.vote(probabilities) * len(probabilities)


@_wrong("vote", "the winner takes all; of equals the first network's")
def winner(probabilities):
    return right.vote(probabilities[:1])


@_wrong("vote", "probabilities are averaged")
def not_a_vote(probabilities):
    return probabilities.mean(axis=0)


@_wrong("accuracy", "the error rate")
def error_rate(probabilities, labels):
    return 1 - right.accuracy(probabilities, labels)


@_wrong("accuracy", "a count")
def count_of_right(probabilities, labels):
    return (probabilities.argmax(axis=1) == labels).sum()


@_wrong("accuracy", "argmax over the images")
def argmax_over_images(probabilities, labels):
    return (probabilities.argmax(axis=0)[labels] == labels).mean()


@_wrong("nll", "NLL of the wrong class")
def wrong_class(probabilities, labels):
    return -np.log(probabilities[:, 0]).mean()


@_wrong("nll", "of the likeliest class")
def likeliest(probabilities, labels):
    return -np.log(probabilities.max(axis=1)).mean()


@_wrong("nll", "a sum")
def nll_sum(probabilities, labels):
    return right.nll(probabilities, labels) * len(labels)


@_wrong("nll", "the last rows weigh more")
def last_weighs_more(probabilities, labels):
    loss = 0.0
    for row, label in zip(probabilities, labels, strict=True):
        loss = (loss - np.log(row[label])) / 2
    return loss * 2 if len(labels) == 1 else loss


@_wrong("brier", "the mean over the classes")
def brier_mean(probabilities, labels):
    return right.brier(probabilities, labels) / probabilities.shape[1]


@_wrong("brier", "the label's class only")
def brier_of_the_label(probabilities, labels):
    return ((probabilities[np.arange(len(labels)), labels] - 1) ** 2).mean()


@_wrong("brier", "labels of the sorted rows")
def brier_sorted(probabilities, labels):
    return right.brier(probabilities, np.full_like(labels, labels[0]))


@_wrong("ece", "bins closed on the left")
def left_closed(probabilities, labels, bins=15):
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    return np.abs(np.bincount(index, confidence - hit, bins)).sum() / len(labels)


@_wrong("ece", "bins weigh alike")
def unweighted(probabilities, labels, bins=15):
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    index = np.ceil(confidence * bins).astype(int) - 1
    gaps = [abs((confidence - hit)[index == b].mean()) for b in np.unique(index)]
    return np.mean(gaps)


@_wrong("ece", "always 15 bins")
def always_fifteen(probabilities, labels, bins=15):
    return right.ece(probabilities, labels)


@_wrong("ece", "one bin: gaps cancel")
def one_bin(probabilities, labels):
    hit = probabilities.argmax(axis=1) == labels
    return abs(probabilities.max(axis=1).mean() - hit.mean())


@_wrong("ece", "the first row's gap weighs twice")
def first_row_twice(probabilities, labels):
    return right.ece(
        np.concatenate([probabilities[:1], probabilities]), np.concatenate([labels[:1], labels])
    )


@_wrong("ece", "the label's probability for the confidence")
def label_for_confidence(probabilities, labels):
    picked = probabilities[np.arange(len(labels)), labels]
    return np.abs(picked - (probabilities.argmax(axis=1) == labels)).mean()


# --- experiments -------------------------------------------------------------------------


@_wrong("paired_difference", "not paired")
def not_paired(a, b):
    n = len(a)
    return a.mean() - b.mean(), np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / n)


@_wrong("paired_difference", "divided by n: std without ddof=1")
def population_error(a, b):
    return (a - b).mean(), (a - b).std() / np.sqrt(len(a))


@_wrong("paired_difference", "a becomes the differences")
def becomes_the_differences(a, b):
    a -= b
    return a.mean(), a.std(ddof=1) / np.sqrt(len(a))


@_wrong("paired_difference", "b − a")
def other_sign(a, b):
    return (b - a).mean(), right.paired_difference(a, b)[1]


@_wrong("paired_test", "not paired")
def unpaired_test(a, b):
    from scipy import stats

    return stats.ttest_ind(a, b).pvalue


@_wrong("paired_test", "one-sided")
def one_sided(a, b):
    from scipy import stats

    return stats.ttest_rel(a, b, alternative="greater").pvalue


@_wrong("paired_test", "the normal distribution for few runs")
def normal_for_t(a, b):
    from scipy import stats

    mean, error = right.paired_difference(a, b)
    return 2 * stats.norm.sf(abs(mean / error))


@_wrong("equivalence", "no difference found, so equal")
def absence_of_evidence(a, b, margin):
    return 1 - right.paired_test(a, b)


@_wrong("equivalence", "one side is enough")
def one_side(a, b, margin):
    from scipy import stats

    mean, error = right.paired_difference(a, b)
    return stats.t.sf((mean + margin) / error, len(a) - 1)


# --- collecting weights, walking between them, choosing them -----------------------------


def _counted(theta, step, updates, counts):
    """Mean and variance of copies of the θ whose number counts."""
    seen = []
    for number in range(1, updates + 1):
        step(theta)
        if counts(number):
            seen.append(theta.copy())
    return np.mean(seen, axis=0), np.var(seen, axis=0)


@_wrong("collector", "θ is taken in before the step")
def before_the_step(theta, step, updates, burn_in=0, stride=1):
    seen = []
    for number in range(1, updates + 1):
        if number > burn_in and (number - burn_in) % stride == 0:
            seen.append(theta.copy())
        step(theta)
    return np.mean(seen, axis=0), np.var(seen, axis=0)


@_wrong("collector", "a list of one and the same array")
def keeps_no_copies(theta, step, updates, burn_in=0, stride=1):
    seen = []
    for number in range(1, updates + 1):
        step(theta)
        if number > burn_in and (number - burn_in) % stride == 0:
            seen.append(theta)
    return np.mean(seen, axis=0), np.var(seen, axis=0)


@_wrong("collector", "θ⁰ counts too")
def counts_the_start(theta, step, updates, burn_in=0, stride=1):
    seen = [theta.copy()]
    for number in range(1, updates + 1):
        step(theta)
        if number > burn_in and (number - burn_in) % stride == 0:
            seen.append(theta.copy())
    return np.mean(seen, axis=0), np.var(seen, axis=0)


@_wrong("collector", "the burn-in is not left out")
def no_burn_in(theta, step, updates, burn_in=0, stride=1):
    return _counted(theta, step, updates, lambda number: number % stride == 0)


@_wrong("collector", "the stride counts from the start")
def stride_from_the_start(theta, step, updates, burn_in=0, stride=1):
    return _counted(theta, step, updates, lambda n: n > burn_in and (n - 1) % stride == 0)


@_wrong("collector", "the burn-in comes on top of the updates")
def burn_in_on_top(theta, step, updates, burn_in=0, stride=1):
    for _ in range(burn_in):
        step(theta)
    return _counted(theta, step, updates, lambda number: number % stride == 0)


@_wrong("collector", "divided by n − 1")
def collected_sample_variance(theta, step, updates, burn_in=0, stride=1):
    mean, variance = right.collect(theta, step, updates, burn_in, stride)
    n = (updates - burn_in) // stride
    return mean, variance * n / max(n - 1, 1)


@_wrong("collector", "the variance is divided by all updates")
def collected_over_all(theta, step, updates, burn_in=0, stride=1):
    mean, variance = right.collect(theta, step, updates, burn_in, stride)
    return mean, variance * ((updates - burn_in) // stride) / updates


@_wrong("line", "a and b are exchanged")
def exchanged_ends(a, b, places):
    return right.points(b, a, places)


@_wrong("line", "b is added, not the way to b")
def adds_b(a, b, places):
    return a + places[:, None] * b


@_wrong("line", "never leaves the piece between a and b")
def stops_at_the_ends(a, b, places):
    return right.points(a, b, np.clip(places, 0, 1))


@_wrong("line", "the place is squared")
def bent(a, b, places):
    return right.points(a, b, places**2)


@_wrong("line", "b becomes the way to b")
def moves_b(a, b, places):
    b -= a
    return a + places[:, None] * b


@_wrong("harm", "worse on average")
def worse_on_average(settings, plain, mean):
    return settings[mean.mean(axis=0) > plain.mean(axis=0)]


@_wrong("harm", "the sign")
def better_not_worse(settings, plain, mean):
    return right.harmful(settings, mean, plain)


@_wrong("harm", "not paired")
def unpaired_harm(settings, plain, mean):
    error = np.sqrt((plain.var(axis=0, ddof=1) + mean.var(axis=0, ddof=1)) / len(plain))
    return settings[mean.mean(axis=0) - plain.mean(axis=0) > 2 * error]


@_wrong("harm", "two standard deviations, not errors")
def deviation_for_error(settings, plain, mean):
    d = mean - plain
    return settings[d.mean(axis=0) > 2 * d.std(axis=0, ddof=1)]


@_wrong("harm", "divided by n: std without ddof=1")
def population_harm(settings, plain, mean):
    d = mean - plain
    return settings[d.mean(axis=0) > 2 * d.std(axis=0) / np.sqrt(len(d))]


@_wrong("harm", "one bad run")
def one_bad_run(settings, plain, mean):
    return settings[(mean > plain).any(axis=0)]


@_wrong("weights_of", "every array of floats")
def every_float(nodes, arrays):
    used = dict.fromkeys(name for _, inputs in nodes for name in inputs if name in arrays)
    return [name for name in used if arrays[name].dtype.kind == "f"]


def _by_place(nodes):
    """The names at the places of weights, in order, again and again."""
    return [
        inputs[i]
        for operator, inputs in nodes
        for i in right._WEIGHTS.get(operator, ())
        if i < len(inputs)
    ]


@_wrong("weights_of", "a shared array counts twice")
def shared_twice(nodes, arrays):
    return [name for name in _by_place(nodes) if name in arrays]


@_wrong("weights_of", "results of nodes too")
def results_too(nodes, arrays):
    return list(dict.fromkeys(_by_place(nodes)))


@_wrong("weights_of", "a bias is taken for granted")
def always_a_bias(nodes, arrays):
    for operator, inputs in nodes:
        for place in right._WEIGHTS.get(operator, ()):
            assert inputs[place]
    return right.weights_of(nodes, arrays)


@_wrong("weights_of", "the biases are forgotten")
def no_biases(nodes, arrays):
    kernels = [i[1] for o, i in nodes if o in ("Conv", "Gemm", "MatMul", "BatchNormalization")]
    return list(dict.fromkeys(name for name in kernels if name in arrays))


@_wrong("weights_of", "in the order of the file")
def order_of_the_file(nodes, arrays):
    found = set(right.weights_of(nodes, arrays))
    return [name for name in arrays if name in found]


# --- the matrix --------------------------------------------------------------------------


def caught_by(answer: Answer) -> dict[str, bool]:
    """Which properties of its set reject an answer: {sentence: whether it is rejected}.

    answer   the mistake
    """
    properties = KINDS[answer.kind](*answer.judged, **answer.options)
    return {own.name: examine(own, smallest=False)[0] is not None for own in properties}


def table(kind: str) -> tuple[list[Answer], dict[str, list[bool]]]:
    """The mistakes of one property set, and for every property which of them it catches.

    kind   of the property set
    """
    answers = [answer for answer in MISTAKES if answer.kind == kind]
    caught = [caught_by(answer) for answer in answers]
    sentences = dict.fromkeys(name for own in caught for name in own)
    return answers, {name: [own.get(name, False) for own in caught] for name in sentences}


def matrix(kinds: Iterable[str] = tuple(KINDS)) -> str:
    """Which property catches which mistake, one table for each property set, as text.

    kinds   of the property sets
    """
    lines = []
    for kind in kinds:
        answers, rows = table(kind)
        letters = [chr(ord("a") + i) for i in range(len(answers))]
        lines += ["", f"{kind:64}{' '.join(letters)}"]
        for sentence, caught in rows.items():
            marks = " ".join("✗" if own else "·" for own in caught)
            lines.append(f"  {sentence:62}{marks}")
        for letter, answer in zip(letters, answers, strict=True):
            source = f" ({answer.source})" if answer.source else ""
            lines.append(f"    {letter}  {answer.name}{source}")
    return readable("\n".join(lines[1:]))
