"""Right answers: what the properties must never reject.

Each is written as a student might write it: NumPy in float64 or float32, pure Python lists, other
orders of the arithmetic. `RIGHT` lists them with the property set that judges each.
"""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Answer:
    """Code to be judged.

    kind     the property set, a name in `kinds.KINDS`
    name     one line
    judged   what the set's function takes first: one function, or one and its backward pass
    options  its keyword arguments
    source   where this is found in public code, if it is
    """

    kind: str
    name: str
    judged: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    source: str = ""


RIGHT: list[Answer] = []


def _right(kind, name, *, before=(), **options):
    def register(code):
        RIGHT.append(Answer(kind, name, (*before, code), options))
        return code

    return register


# --- the running mean and variance -------------------------------------------------------


@_right("moments", "Welford, float64")
class Welford:
    def __init__(self, shape):
        self.count = 0
        self.mean = np.zeros(shape)
        self.squares = np.zeros(shape)

    def update(self, theta):
        self.count += 1
        before = theta - self.mean
        self.mean = self.mean + before / self.count
        self.squares = self.squares + before * (theta - self.mean)

    @property
    def variance(self):
        return self.squares / self.count

    def merge(self, other):
        n = self.count + other.count
        d = other.mean - self.mean
        self.squares = self.squares + other.squares + d**2 * self.count * other.count / n
        self.mean = self.mean + d * other.count / n
        self.count = n


@_right("moments", "eqs. 2-3 as printed, in float64")
class Literal:
    def __init__(self):
        self.t = 0
        self.mean = self.variance = 0.0

    def update(self, theta):
        t = self.t
        d = theta.astype(np.float64) - self.mean
        self.mean = self.mean + d / (t + 1)
        self.variance = (self.variance * t + t / (t + 1) * d**2) / (t + 1)
        self.t = t + 1


@_right("moments", "two passes over a list of copies")
class TwoPasses:
    def __init__(self):
        self.rows = []

    def update(self, theta):
        self.rows.append(theta.copy())

    def mean(self):
        return np.mean(self.rows, axis=0, dtype=np.float64)

    def variance(self):
        return np.var(self.rows, axis=0, dtype=np.float64)


@_right("moments", "float32, relative to the first θ")
class ShiftedFloat32:
    def __init__(self, shape):
        self.n = 0
        self.offset = np.zeros(shape, np.float32)
        self.squares = np.zeros(shape, np.float32)

    def update(self, theta):
        theta = theta.astype(np.float32)
        self.n += 1
        if self.n == 1:
            self.first = theta
        d = theta - self.first - self.offset
        self.offset = self.offset + d / np.float32(self.n)
        self.squares = self.squares + d * (theta - self.first - self.offset)

    @property
    def mean(self):
        return self.first + self.offset

    @property
    def variance(self):
        return self.squares / np.float32(self.n)


@_right("moments", "lists of Python numbers")
class Lists:
    def __init__(self):
        self.n = 0

    def update(self, theta):
        flat = [float(x) for x in np.ravel(theta)]
        self.shape = np.shape(theta)
        if self.n == 0:
            self._mean, self._squares = [0.0] * len(flat), [0.0] * len(flat)
        self.n += 1
        for i, x in enumerate(flat):
            d = x - self._mean[i]
            self._mean[i] += d / self.n
            self._squares[i] += d * (x - self._mean[i])

    def _shaped(self, numbers):
        return np.reshape(numbers, self.shape).tolist()

    @property
    def mean(self):
        return self._shaped(self._mean)

    @property
    def variance(self):
        return self._shaped([s / self.n for s in self._squares])


@_right("merge", "Chan, Golub and LeVeque, float64")
def merge(count_a, mean_a, variance_a, count_b, mean_b, variance_b):
    count = count_a + count_b
    d = mean_b - mean_a
    squares = variance_a * count_a + variance_b * count_b + d**2 * count_a * count_b / count
    return count, mean_a + d * count_b / count, squares / count


@_right("merge", "by the sums of x and x², float32")
def merge_by_sums(count_a, mean_a, variance_a, count_b, mean_b, variance_b):
    a, b = np.float32(count_a), np.float32(count_b)
    halves = ((a, mean_a, variance_a), (b, mean_b, variance_b))
    total = sum(n * mean.astype(np.float32) for n, mean, _ in halves)
    squares = sum(n * (v.astype(np.float32) + m.astype(np.float32) ** 2) for n, m, v in halves)
    mean = total / (a + b)
    return [count_a + count_b, mean, squares / (a + b) - mean**2]


# --- gradients ---------------------------------------------------------------------------


def unbroadcast(gradient, shape):
    while gradient.ndim > len(shape):
        gradient = gradient.sum(axis=0)
    for axis, size in enumerate(shape):
        if size == 1:
            gradient = gradient.sum(axis=axis, keepdims=True)
    return gradient


RIGHT.append(Answer("unbroadcast", "axis by axis", (unbroadcast,)))


@_right("unbroadcast", "float32, all axes at once")
def _unbroadcast_float32(gradient, shape):
    gradient = gradient.astype(np.float32)
    padded = (1,) * (gradient.ndim - len(shape)) + tuple(shape)
    axes = tuple(i for i, size in enumerate(padded) if size == 1)
    return gradient.sum(axis=axes).reshape(shape)


def _with_pullbacks(x, y):
    return x * y + x, (
        lambda g: unbroadcast(g * (y + 1), x.shape),
        lambda g: unbroadcast(g * x, y.shape),
    )


RIGHT += [
    Answer(
        "gradient", "x·y + x with two pullbacks", (_with_pullbacks,), {"shapes": [(2, 2), (2,)]}
    ),
    Answer(
        "gradient", "a loss and its gradients",
        (lambda w: (float((w**3).sum()), 3 * w**2),), {"shapes": [(3,)]},
    ),
    Answer(
        "gradient", "relu, which has a kink",
        (lambda x: (np.maximum(x, 0), lambda g: g * (x > 0)),), {"shapes": [(4,)]},
    ),
    Answer(
        "gradient", "slopes of whole numbers",
        (lambda x: (np.maximum(x, 0).sum(), (x > 0).astype(int)),), {"shapes": [(3,)]},
    ),
    Answer(
        "gradient", "the logarithm, of positive numbers",
        (lambda x: (np.log(x), lambda g: g / x),), {"shapes": [(3,)], "domain": (0.5, 3.0)},
    ),
    Answer(
        "gradient", "tanh in float32",
        (lambda x: (np.tanh(x.astype(np.float32)),
                    lambda g: g * (1 - np.tanh(x.astype(np.float32)) ** 2)),),
        {"shapes": [(4,)]},
    ),
    Answer(
        "gradient", "a layer of 120 weights",
        (lambda x, w: (np.tanh(x @ w), lambda g: (
            g * (1 - np.tanh(x @ w) ** 2) @ w.T, x.T @ (g * (1 - np.tanh(x @ w) ** 2)))),),
        {"shapes": [(2, 12), (12, 10)]},
    ),
]  # fmt: skip


@_right("matmul", "float64")
def matmul_pullbacks(x, w, g):
    return g @ w.T, x.T @ g


@_right("matmul", "as an op, float32")
def _matmul_op(x, w):
    x, w = x.astype(np.float32), w.astype(np.float32)
    return x @ w, (lambda g: g @ w.T, lambda g: x.T @ g)


@_right("matmul", "lists of Python numbers")
def _matmul_lists(x, w, g):
    def product(a, b):
        return [[sum(p * q for p, q in zip(row, column)) for column in zip(*b)] for row in a]  # noqa: B905

    x, w, g = x.tolist(), w.tolist(), g.tolist()
    return product(g, list(zip(*w))), product(list(zip(*x)), g)  # noqa: B905


@_right("log_softmax", "float64")
def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@_right("log_softmax", "float32")
def _log_softmax_float32(logits):
    return log_softmax(logits.astype(np.float32))


@_right("log_softmax", "lists of Python numbers")
def _log_softmax_lists(logits):
    result = []
    for row in logits.tolist():
        top = max(row)
        total = math.log(sum(math.exp(z - top) for z in row))
        result.append([z - top - total for z in row])
    return result


@_right("softmax_cross_entropy", "loss and gradient, float64")
def softmax_cross_entropy(logits, labels):
    log_p = log_softmax(logits)
    rows = np.arange(len(labels))
    gradient = np.exp(log_p)
    gradient[rows, labels] -= 1
    return -log_p[rows, labels].mean(), gradient / len(labels)


@_right("softmax_cross_entropy", "the loss only, float32")
def _loss_only(logits, labels):
    log_p = log_softmax(logits.astype(np.float32))
    onehot = np.eye(logits.shape[1], dtype=np.float32)[labels]
    return -(onehot * log_p).sum() / np.float32(len(labels))


@_right("softmax_cross_entropy", "with a pullback")
def _loss_with_pullback(logits, labels):
    loss, gradient = softmax_cross_entropy(logits, labels)
    return loss, (lambda g: g * gradient,)


@_right("dropout", "with a pullback")
def dropout(x, rate, rng):
    mask = (rng.random(x.shape) >= rate) / (1 - rate)
    return x * mask, lambda g: g * mask


@_right("dropout", "float32, without one")
def _dropout_float32(x, rate, rng):
    kept = rng.random(x.shape, np.float32) < 1 - rate
    return x.astype(np.float32) * kept / np.float32(1 - rate)


class _Scalar:
    def __init__(self, data, parents=()):
        self.data, self.grad, self.parents = data, 0.0, parents

    def __add__(self, other):
        return type(self)(self.data + other.data, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other):
        return type(self)(self.data * other.data, ((self, other.data), (other, self.data)))


@_right("topological_backward", "a method, depth first")
class Value(_Scalar):
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
                parent.grad += value.grad * slope


@_right("topological_backward", "a function, by counting children", before=(_Scalar,))
def _backward_by_counting(output):
    waiting, children = [output], {}
    seen = {output}
    while waiting:
        for parent, _ in waiting.pop().parents:
            children[parent] = children.get(parent, 0) + 1
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    output.grad, ready = 1.0, [output]
    while ready:
        value = ready.pop()
        for parent, slope in value.parents:
            parent.grad += value.grad * slope
            children[parent] -= 1
            if not children[parent]:
                ready.append(parent)


# --- kernels -----------------------------------------------------------------------------


def conv2d(x, w, stride=1, padding=0):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[:2], axis=(1, 2))
    return np.einsum("nijcpq,pqco->nijo", windows[:, ::stride, ::stride], w)


def conv2d_backward(x, w, g, stride=1, padding=0):
    h, width = x.shape[1:3]
    kh, kw = w.shape[:2]
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    x_gradient, w_gradient = np.zeros_like(padded), np.zeros_like(w)
    oh, ow = g.shape[1:3]
    for p in range(kh):
        for q in range(kw):
            part = np.s_[:, p : p + stride * oh : stride, q : q + stride * ow : stride]
            x_gradient[part] += g @ w[p, q].T
            w_gradient[p, q] = np.einsum("nijc,nijo->co", padded[part], g)
    return x_gradient[:, padding : padding + h, padding : padding + width], w_gradient


def depthwise(x, w, stride=1, padding=0):
    return conv2d(x, w[..., None] * np.eye(w.shape[-1]), stride, padding)


def depthwise_backward(x, w, g, stride=1, padding=0):
    full = w[..., None] * np.eye(w.shape[-1])
    x_gradient, w_gradient = conv2d_backward(x, full, g, stride, padding)
    return x_gradient, np.einsum("pqcc->pqc", w_gradient)


def max_pool(x, window=2, stride=None):
    stride = stride or window
    windows = np.lib.stride_tricks.sliding_window_view(x, (window, window), axis=(1, 2))
    return windows[:, ::stride, ::stride].max(axis=(-1, -2))


def max_pool_backward(x, g, window=2, stride=None):
    stride = stride or window
    gradient = np.zeros_like(x)
    for n, i, j, c in np.ndindex(g.shape):
        part = x[n, i * stride : i * stride + window, j * stride : j * stride + window, c]
        p, q = np.unravel_index(part.argmax(), part.shape)
        gradient[n, i * stride + p, j * stride + q, c] += g[n, i, j, c]
    return gradient


def _max_pool_shared(x, g, window=2, stride=None):
    """Equal pixels share the gradient."""
    stride = stride or window
    gradient = np.zeros_like(x)
    for n, i, j, c in np.ndindex(g.shape):
        part = np.s_[n, i * stride : i * stride + window, j * stride : j * stride + window, c]
        winners = x[part] == x[part].max()
        gradient[part] += g[n, i, j, c] * winners / winners.sum()
    return gradient


def _max_pool_2x2(x):
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4)).astype(np.float32)


def mean_pool(x, window=2):
    windows = np.lib.stride_tricks.sliding_window_view(x, (window, window), axis=(1, 2))
    y = windows[:, ::window, ::window].mean(axis=(-1, -2))

    def pullback(g):
        gradient = np.zeros_like(x)
        inner = np.repeat(np.repeat(g, window, axis=1), window, axis=2) / window**2
        gradient[:, : inner.shape[1], : inner.shape[2]] = inner
        return gradient

    return y, pullback


def batch_norm(x, scale, shift, epsilon):
    return scale * (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + epsilon) + shift


def batch_norm_backward(x, scale, shift, g, epsilon):
    inverse = 1 / np.sqrt(x.var(axis=0) + epsilon)
    normal = (x - x.mean(axis=0)) * inverse
    centered = g - g.mean(axis=0) - normal * (g * normal).mean(axis=0)
    return scale * inverse * centered, (g * normal).sum(axis=0), g.sum(axis=0)


def _batch_norm_float32(x, scale, shift, epsilon):
    x, scale, shift = (a.astype(np.float32) for a in (x, scale, shift))
    return batch_norm(x, scale, shift, np.float32(epsilon))


def _conv2d_lists(x, w):
    (n, h, width, c), (kh, kw, _, o) = x.shape, w.shape
    x, w = x.tolist(), w.tolist()
    return [
        [
            [
                [
                    sum(
                        x[image][i + p][j + q][channel] * w[p][q][channel][out]
                        for p in range(kh) for q in range(kw) for channel in range(c)
                    )
                    for out in range(o)
                ]
                for j in range(width - kw + 1)
            ]
            for i in range(h - kh + 1)
        ]
        for image in range(n)
    ]  # fmt: skip


def _conv2d_float32(x, w, stride=1, padding=0):
    x, w = x.astype(np.float32), w.astype(np.float32)
    return conv2d(x, w, stride, padding), lambda g: conv2d_backward(x, w, g, stride, padding)


RIGHT += [
    Answer("convolution", "float64", (conv2d, conv2d_backward)),
    Answer("convolution", "float32, with a pullback", (_conv2d_float32,)),
    Answer("convolution", "lists of Python numbers, no stride, no padding", (_conv2d_lists,)),
    Answer("depthwise", "as a diagonal convolution", (depthwise, depthwise_backward)),
    Answer("max_pooling", "the first of the largest", (max_pool, max_pool_backward)),
    Answer("max_pooling", "equal pixels share", (max_pool, _max_pool_shared)),
    Answer("max_pooling", "2 × 2 by reshape, float32", (_max_pool_2x2,)),
    Answer("mean_pooling", "with a pullback", (mean_pool,)),
    Answer("batch_norm", "float64", (batch_norm, batch_norm_backward)),
    Answer("batch_norm", "float32", (_batch_norm_float32,)),
]


@_right("running_statistics", "new arrays")
def running_statistics(mean, variance, x, momentum):
    return (
        momentum * mean + (1 - momentum) * x.mean(axis=0),
        momentum * variance + (1 - momentum) * x.var(axis=0),
    )


@_right("running_statistics", "in place")
def _running_in_place(mean, variance, x, momentum):
    mean += (1 - momentum) * (x.mean(axis=0) - mean)
    variance += (1 - momentum) * (x.var(axis=0) - variance)


@_right("reestimation", "the weighted mean")
def reestimation(batches):
    count, mean, variance = 0, 0.0, 0.0
    for x in batches:
        count += len(x)
        mean = mean + (x.mean(axis=0) - mean) * len(x) / count
        variance = variance + (x.var(axis=0) - variance) * len(x) / count
    return mean, variance


@_right("reestimation", "all rows, float32")
def _all_rows(batches):
    x = np.concatenate(batches).astype(np.float32)
    return x.mean(axis=0), x.var(axis=0)


# --- optimizers --------------------------------------------------------------------------


@_right("sgd", "in place")
def sgd(theta, gradient, rate):
    theta -= rate * gradient


@_right("sgd", "a new array, float32")
def _sgd_float32(theta, gradient, rate):
    return theta.astype(np.float32) - np.float32(rate) * gradient.astype(np.float32)


@_right("adam", "algorithm 1")
def adam(theta, gradient, state, rate):
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
    v = state["v"] = 0.999 * state.get("v", 0) + 0.001 * gradient**2
    return theta - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


@_right("adam", "an object, float32, the faster form of §2")
class Adam:
    def __init__(self, rate):
        self.rate, self.t = rate, 0
        self.m = self.v = np.float32(0)

    def step(self, theta, gradient):
        gradient = gradient.astype(np.float32)
        self.t += 1
        self.m = self.m + np.float32(0.1) * (gradient - self.m)
        self.v = self.v + np.float32(0.001) * (gradient * gradient - self.v)
        rate = self.rate * math.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        theta -= rate * self.m / (np.sqrt(self.v) + 1e-8)


# --- ensembles ---------------------------------------------------------------------------


@_right("sampler", "a stream for every member")
def sample(mean, variance, k, rng, scale=1.0):
    noise = np.stack([stream.standard_normal(mean.shape) for stream in rng.spawn(k)])
    return mean + scale * np.sqrt(variance) * noise


@_right("sampler", "one stream, row by row, float32, no scale")
def _sample_rows(mean, variance, k, rng):
    noise = rng.standard_normal((k, *mean.shape), dtype=np.float32)
    return mean.astype(np.float32) + np.sqrt(variance).astype(np.float32) * noise


@_right("average", "float32")
def average(probabilities):
    return probabilities.astype(np.float32).mean(axis=0)


@_right("average", "lists of Python numbers")
def _average_lists(probabilities):
    members = probabilities.tolist()
    return [
        [sum(p) / len(members) for p in zip(*rows, strict=True)]
        for rows in zip(*members, strict=True)
    ]


@_right("geometric", "roots of products")
def geometric(probabilities):
    product = probabilities.prod(axis=0) ** (1 / len(probabilities))
    return product / product.sum(axis=-1, keepdims=True)


@_right("vote", "counts")
def vote(probabilities):
    chosen = probabilities.argmax(axis=-1)
    classes = range(probabilities.shape[-1])
    return np.stack([(chosen == c).mean(axis=0) for c in classes], axis=-1)


@_right("accuracy", "the share")
def accuracy(probabilities, labels):
    return (probabilities.argmax(axis=1) == labels).mean()


@_right("nll", "float32")
def nll(probabilities, labels):
    return -np.log(probabilities.astype(np.float32)[np.arange(len(labels)), labels]).mean()


@_right("nll", "lists of Python numbers")
def _nll_lists(probabilities, labels):
    pairs = zip(probabilities.tolist(), labels.tolist(), strict=True)
    return sum(-math.log(row[label]) for row, label in pairs) / len(labels)


@_right("brier", "one-hot")
def brier(probabilities, labels):
    onehot = np.eye(probabilities.shape[1])[labels]
    return ((probabilities - onehot) ** 2).sum(axis=1).mean()


@_right("ece", "a loop over masks, as in most public code")
def ece(probabilities, labels):
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges, total = np.linspace(0, 1, 16), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


@_right("ece", "by the index of the bin")
def _ece_by_index(probabilities, labels, bins=15):
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    index = np.maximum(np.ceil(confidence * bins).astype(int) - 1, 0)
    gaps = np.bincount(index, weights=confidence - right, minlength=bins)
    return np.abs(gaps).sum() / len(labels)


# --- experiments -------------------------------------------------------------------------


@_right("paired_difference", "NumPy")
def paired_difference(a, b):
    d = a - b
    return d.mean(), d.std(ddof=1) / np.sqrt(len(d))


@_right("paired_difference", "lists of Python numbers")
def _paired_difference_lists(a, b):
    d = [x - y for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    n = len(d)
    mean = sum(d) / n
    return mean, math.sqrt(sum((x - mean) ** 2 for x in d) / (n - 1) / n)


@_right("paired_test", "by Student's t")
def paired_test(a, b):
    from scipy import stats

    mean, error = paired_difference(a, b)
    return 2 * stats.t.sf(abs(mean / error), len(a) - 1)


@_right("equivalence", "two one-sided tests")
def equivalence(a, b, margin):
    from scipy import stats

    mean, error = paired_difference(a, b)
    above = stats.t.sf((mean + margin) / error, len(a) - 1)
    below = stats.t.cdf((mean - margin) / error, len(a) - 1)
    return max(above, below)


# --- collecting weights, walking between them, choosing them -----------------------------


@_right("collector", "Welford")
def collect(theta, step, updates, burn_in=0, stride=1):
    count, mean, squares = 0, np.zeros(theta.shape), np.zeros(theta.shape)
    for number in range(1, updates + 1):
        step(theta)
        if number > burn_in and (number - burn_in) % stride == 0:
            count += 1
            d = theta - mean
            mean = mean + d / count
            squares = squares + d * (theta - mean)
    return mean, squares / count


@_right("collector", "copies in float32")
def _collect_copies(theta, step, updates, burn_in=0, stride=1):
    seen = []
    for _ in range(updates):
        step(theta)
        seen.append(theta.astype(np.float32))
    counted = seen[burn_in:][stride - 1 :: stride]
    return np.mean(counted, axis=0), np.var(counted, axis=0)


@_right("collector", "lists of Python numbers")
def _collect_lists(theta, step, updates, burn_in=0, stride=1):
    counted = []
    for number in range(updates):
        step(theta)
        if number >= burn_in and (number - burn_in + 1) % stride == 0:
            counted.append(theta.tolist())
    columns = list(zip(*counted, strict=True))
    means = [sum(column) / len(column) for column in columns]
    pairs = zip(columns, means, strict=True)
    return means, [sum((x - mean) ** 2 for x in own) / len(own) for own, mean in pairs]


@_right("line", "a and a part of the way")
def points(a, b, places):
    return a + places[:, None] * (b - a)


@_right("line", "a weighted mean, float32")
def _points_float32(a, b, places):
    a, b, t = (array.astype(np.float32) for array in (a, b, places))
    return np.outer(1 - t, a) + np.outer(t, b)


@_right("line", "lists of Python numbers")
def _points_lists(a, b, places):
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    return [[x + place * (y - x) for x, y in pairs] for place in places.tolist()]


@_right("harm", "NumPy")
def harmful(settings, plain, mean):
    d = mean - plain
    return settings[d.mean(axis=0) > 2 * d.std(axis=0, ddof=1) / np.sqrt(len(d))]


@_right("harm", "lists of Python numbers")
def _harmful_lists(settings, plain, mean):
    found = []
    for column, setting in enumerate(settings.tolist()):
        difference, error = _paired_difference_lists(mean[:, column], plain[:, column])
        if difference > 2 * error:
            found.append(setting)
    return found


_WEIGHTS = {"Conv": (1, 2), "Gemm": (1, 2), "MatMul": (1,), "BatchNormalization": (1, 2)}


@_right("weights_of", "by the place of use")
def weights_of(nodes, arrays):
    found = []
    for operator, inputs in nodes:
        for place in _WEIGHTS.get(operator, ()):
            if place < len(inputs) and inputs[place] in arrays and inputs[place] not in found:
                found.append(inputs[place])
    return found


@_right("weights_of", "a generator over a dictionary")
def _weights_of_names(nodes, arrays):
    used = (
        name for operator, (_, *rest) in nodes for name in rest[: len(_WEIGHTS.get(operator, ()))]
    )
    return dict.fromkeys(name for name in used if name in arrays)
