"""The right answers: slow, literal, and written from the definitions.

Everything here is float64 or exact, uses loops where a formula has a sum, and shares no line with
the code that is judged.

An argument means the same in all of these functions, unless one says otherwise:

    x         images (N, H, W, C)
    g         the gradient of the result
    stride    pixels from one window to the next
    padding   pixels of zeros on each side of an image
    window    pixels of a side of the window
    kind      "max" or "mean"
"""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np


def exact_moments(rows: Any, ddof: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of every column of numbers, without any rounding until the end.

    rows      (n, P) numbers
    ddof      the divisor is n − ddof
    Returns   two float64 arrays (P,)
    """
    columns = [[Fraction(float(x)) for x in column] for column in zip(*rows, strict=True)]
    means = [sum(column) / len(column) for column in columns]
    squares = [
        sum((x - mean) ** 2 for x in column) / (len(column) - ddof)
        for column, mean in zip(columns, means, strict=True)
    ]
    return np.array([float(m) for m in means]), np.array([float(s) for s in squares])


def sum_to(gradient: np.ndarray, shape: tuple) -> np.ndarray:
    """The gradient of an array that was broadcast: the sum over every copy of each element.

    gradient   of the result of broadcasting
    shape      of the array before
    """
    total = np.zeros(shape)
    missing = gradient.ndim - len(shape)
    for place in np.ndindex(gradient.shape):
        own = tuple(0 if size == 1 else i for i, size in zip(place[missing:], shape, strict=True))
        total[own] += gradient[place]
    return total


def slope(function: Callable, steps: Iterable[float], tolerance: float) -> tuple[float, float]:
    """The slope of a function of one number at 0, kinks and all: a pair (lowest, highest).

    At each step h the slope is measured on the left, on the right, and across with h and h/2. Where
    all agree, no kink lies within h of 0, and the slope is Richardson's: (4 D(h/2) − D(h)) / 3,
    whose error is of order h⁴. Else a kink may lie near 0: the next step is smaller. Where none
    agrees, 0 is itself a kink, and what lies between the slopes of its two sides is right.

    function   float → float
    steps      the steps h, the largest first
    tolerance  slopes that are not further apart agree
    """
    here = function(0.0)
    for h in steps:
        far_left, left, right, far_right = (function(part * h) for part in (-1, -0.5, 0.5, 1))
        wide, narrow = (far_right - far_left) / (2 * h), (right - left) / h
        # One-sided, with an error of order h²: a curve without a kink has two equal sides.
        sides = (far_left - 4 * left + 3 * here) / h, (4 * right - 3 * here - far_right) / h
        if abs(sides[0] - sides[1]) <= tolerance and abs(wide - narrow) <= tolerance:
            center = (4 * narrow - wide) / 3
            return center, center
    return min(sides), max(sides)


def log_softmax(logits: Any) -> np.ndarray:
    """z − log Σ eᶻ in float64 (scipy.special.log_softmax).

    logits   (N, C)
    """
    from scipy.special import log_softmax

    return log_softmax(np.asarray(logits, np.float64), axis=-1)


def pad(x: np.ndarray, padding: int) -> np.ndarray:
    """Zeros around every image of (N, H, W, C)."""
    return np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def windows(size: int, kernel: int, stride: int) -> range:
    """Where windows start along one axis, and how many there are.

    size     pixels of the image
    kernel   pixels of a window
    """
    return range(0, size - kernel + 1, stride)


def convolve(x: np.ndarray, w: np.ndarray, stride: int = 1, padding: int = 0) -> np.ndarray:
    """y[n, i, j, o] = Σ x[n, i·s + p, j·s + q, c] w[p, q, c, o]: no kernel is flipped.

    x        (N, H, W, C)
    w        (kh, kw, C, O)
    Returns  (N, OH, OW, O)
    """
    x = pad(np.asarray(x, np.float64), padding)
    kh, kw = w.shape[:2]
    rows, columns = windows(x.shape[1], kh, stride), windows(x.shape[2], kw, stride)
    y = np.zeros((len(x), len(rows), len(columns), w.shape[3]))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            window = x[:, top : top + kh, left : left + kw, :]
            y[:, i, j, :] = np.tensordot(window, w, axes=3)
    return y


def convolve_gradients(
    x: np.ndarray, w: np.ndarray, g: np.ndarray, stride: int = 1, padding: int = 0
) -> tuple:
    """The gradients of ⟨convolve(x, w), g⟩ with respect to x and w.

    w   (kh, kw, C, O)
    """
    padded = pad(np.asarray(x, np.float64), padding)
    x_gradient, w_gradient = np.zeros(padded.shape), np.zeros(w.shape)
    kh, kw = w.shape[:2]
    for i, top in enumerate(windows(padded.shape[1], kh, stride)):
        for j, left in enumerate(windows(padded.shape[2], kw, stride)):
            part = np.s_[:, top : top + kh, left : left + kw, :]
            x_gradient[part] += np.tensordot(g[:, i, j, :], w, axes=([1], [3]))
            w_gradient += np.tensordot(padded[part], g[:, i, j, :], axes=([0], [0]))
    inner = slice(padding, -padding or None)
    return x_gradient[:, inner, inner, :], w_gradient


def diagonal(w: np.ndarray) -> np.ndarray:
    """The (kh, kw, C, C) kernel of the ordinary convolution that equals depthwise (kh, kw, C).

    w   (kh, kw, C)
    """
    return w[..., None] * np.eye(w.shape[-1])


def pool(x: np.ndarray, window: int, stride: int, kind: str = "max") -> np.ndarray:
    """The largest value, or the mean, of every window of (N, H, W, C)."""
    reduce = {"max": np.max, "mean": np.mean}[kind]
    rows, columns = windows(x.shape[1], window, stride), windows(x.shape[2], window, stride)
    y = np.zeros((len(x), len(rows), len(columns), x.shape[3]))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            y[:, i, j, :] = reduce(x[:, top : top + window, left : left + window, :], axis=(1, 2))
    return y


def pool_gradient(
    x: np.ndarray, g: np.ndarray, window: int, stride: int, kind: str = "max"
) -> np.ndarray:
    """The gradient of ⟨pool(x), g⟩; of equal values in a window the first takes it."""
    gradient = np.zeros(x.shape)
    for n, i, j, c in np.ndindex(g.shape):
        part = np.s_[n, i * stride : i * stride + window, j * stride : j * stride + window, c]
        if kind == "mean":
            gradient[part] += g[n, i, j, c] / window**2
        else:
            place = np.unravel_index(np.argmax(x[part]), (window, window))
            gradient[part][place] += g[n, i, j, c]
    return gradient


def batch_norm(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, epsilon: float) -> np.ndarray:
    """scale · (x − mean) / √(variance + ε) + shift for every column of (N, C).

    x         (N, C)
    scale     (C,)
    shift     (C,)
    epsilon   added to the variance
    """
    return scale * (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + epsilon) + shift


def batch_norm_gradients(x: np.ndarray, scale: np.ndarray, g: np.ndarray, epsilon: float) -> tuple:
    """The gradients of ⟨batch_norm(x, scale, shift), g⟩ with respect to x, scale and shift.

    x         (N, C)
    scale     (C,)
    epsilon   added to the variance
    """
    deviation = np.sqrt(x.var(axis=0) + epsilon)
    normal = (x - x.mean(axis=0)) / deviation
    x_gradient = scale / deviation * (g - g.mean(axis=0) - normal * (g * normal).mean(axis=0))
    return x_gradient, (g * normal).sum(axis=0), g.sum(axis=0)


def adam(
    theta: np.ndarray,
    gradients: Sequence,
    rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> list[np.ndarray]:
    """θ after each step, every average written as the weighted sum of all gradients so far.

    theta       (P,) before the first step
    gradients   (P,) of each step
    rate        ℓ, the learning rate
    beta1       of the average of the gradients
    beta2       of the average of their squares
    epsilon     added to the root
    """
    steps = []
    for t in range(1, len(gradients) + 1):
        ages = range(t - 1, -1, -1)
        past = list(zip(ages, gradients[:t], strict=True))
        first = sum((1 - beta1) * beta1**age * g for age, g in past) / (1 - beta1**t)
        second = sum((1 - beta2) * beta2**age * g**2 for age, g in past) / (1 - beta2**t)
        theta = theta - rate * first / (np.sqrt(second) + epsilon)
        steps.append(theta)
    return steps


def average(probabilities: np.ndarray, rule: str) -> np.ndarray:
    """One prediction from K: (K, N, C) → (N, C).

    probabilities   (K, N, C)
    rule            one of `ensembles.RULES`
    """
    from scipy.special import softmax

    if rule == "probabilities":
        return probabilities.mean(axis=0)
    if rule in ("geometric", "logits"):
        return softmax(np.log(probabilities).mean(axis=0), axis=-1)
    votes = probabilities.argmax(axis=-1)[..., None] == np.arange(probabilities.shape[-1])
    return votes.mean(axis=0)


def metric(name: str, probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Accuracy, NLL, Brier score or ECE, image by image from the definition.

    name            "accuracy", "nll", "brier" or "ece"
    probabilities   (N, C)
    labels          (N,) integers
    bins            of the calibration error
    """
    total, count = 0.0, len(labels)
    gaps = [0.0] * bins
    for row, label in zip(probabilities, labels, strict=True):
        chosen = int(np.argmax(row))
        if name == "accuracy":
            total += chosen == label
        elif name == "nll":
            total -= np.log(row[label])
        elif name == "brier":
            total += sum((p - (c == label)) ** 2 for c, p in enumerate(row))
        else:
            confidence = float(row[chosen])
            own = next(b for b in range(bins) if confidence <= (b + 1) / bins or b == bins - 1)
            gaps[own] += confidence - (chosen == label)
    return sum(map(abs, gaps)) / count if name == "ece" else total / count
