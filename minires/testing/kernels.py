"""Properties of convolutions, pooling and batch norm. Images are (N, H, W, C)."""

from collections.abc import Callable

import numpy as np

from minires.testing import oracles
from minires.testing.judging import (
    Misfit,
    Property,
    Summary,
    Words,
    accepts,
    array_of,
    ask,
    ask_pullbacks,
    compare,
    grain,
    judge,
    show,
    strategies,
    suite_of,
)


def _forward(f, *arrays, **settings):
    """The result of f; what stands behind it in a tuple is a pullback."""
    returned = ask(f, *arrays, **settings)
    return returned[0] if isinstance(returned, tuple) else returned


def _gradients(f, backward, arrays, extra, g, settings):
    """The gradients of ⟨f(arrays), g⟩, from `backward` or from the pullbacks that f returns."""
    if backward is not None:
        gradients = ask(backward, *arrays, g, *extra, **settings)
    else:
        gradients = ask_pullbacks(f, g, *arrays, *extra, **settings)
    if len(arrays) == 1 and not isinstance(gradients, tuple | list):
        gradients = [gradients]
    if not isinstance(gradients, tuple | list) or len(gradients) < len(arrays):
        raise Misfit(Words(type(gradients).__name__), Words(f"{len(arrays)} gradients"))
    return gradients


def _has_pullback(f, *probe, **settings):
    try:
        returned = f(*probe, **settings)
    except Exception:  # the properties will say it
        return False
    return isinstance(returned, tuple) and len(returned) == 2


def _short_numbers(seed, shape, low=-4, high=5):
    """Whole numbers, or quarters."""
    return np.random.default_rng(seed).integers(low, high, shape) * grain(seed)


# --- convolution -------------------------------------------------------------------------


def check_convolution(f: Callable, backward: Callable | None = None) -> Summary:
    """Judge a convolution, and its two gradients.

        def conv2d(x, w, stride=1, padding=0): ...              # → y (N, OH, OW, O)
        def conv2d_backward(x, w, g, stride=1, padding=0): ...  # → x_gradient, w_gradient

        check_convolution(conv2d, conv2d_backward)

    x is (N, H, W, C), w (kh, kw, C, O), g like y. The kernel is not flipped, as in every
    deep-learning library (scipy.signal.correlate). `stride` and `padding` (one number each, zeros
    on all sides) are judged where f takes arguments of these names. Without `backward`, f may
    return (y, pullbacks): a tuple of a function each for x and w, or one function for both.

    f          the code to be judged, as above
    backward   the code of the backward pass, if it is not returned with the result
    Returns    Summary
    Raises     Falsified
    """
    return judge("convolution", convolution_properties(f, backward))


def convolution_suite(f: Callable, backward: Callable | None = None) -> Callable:
    """`check_convolution` for pytest: one test a property."""
    return suite_of("convolution", convolution_properties(f, backward))


def check_depthwise(f: Callable, backward: Callable | None = None) -> Summary:
    """Judge a depthwise convolution, and its two gradients: every channel has its own kernel.

        def depthwise(x, w, stride=1, padding=0): ...     # (N, H, W, C), (kh, kw, C) → (…, C)
        def depthwise_backward(x, w, g, stride=1, padding=0): ...

        check_depthwise(depthwise, depthwise_backward)

    Everything else as in `check_convolution`.

    f          the code to be judged, as above
    backward   the code of the backward pass, if it is not returned with the result
    Returns    Summary
    Raises     Falsified
    """
    return judge("depthwise", convolution_properties(f, backward, depthwise=True))


def depthwise_suite(f: Callable, backward: Callable | None = None) -> Callable:
    """`check_depthwise` for pytest: one test a property."""
    return suite_of("depthwise", convolution_properties(f, backward, depthwise=True))


def convolution_properties(
    f: Callable, backward: Callable | None = None, depthwise: bool = False
) -> list[Property]:
    """The properties that `check_convolution` tries.

    depthwise   whether it is `check_depthwise` that tries them
    """
    st = strategies()

    def cases(images=1, channels=1, outputs=1, strides=1, paddings=0, largest=3):
        """(N, H, W, C, O, kh, kw, stride, padding, seed), smallest first."""

        @st.composite
        def drawn(draw):
            kh, kw = draw(st.integers(1, largest)), draw(st.integers(1, largest))
            stride, padding = draw(st.integers(1, strides)), draw(st.integers(0, paddings))
            h = kh + draw(st.integers(0, 3))
            w = kw + draw(st.integers(0, 3))
            n, c, o = (draw(st.integers(1, most)) for most in (images, channels, outputs))
            return n, h, w, c, o, kh, kw, stride, padding, draw(st.integers(0, 5))

        return drawn()

    def arrays_of(case):
        n, h, w, c, o, kh, kw, _, _, seed = case
        kernel = (kh, kw, c) if depthwise else (kh, kw, c, o)
        return _short_numbers(seed, (n, h, w, c)), _short_numbers(seed + 100, kernel)

    def settings_of(case):
        stride, padding = case[7], case[8]
        return {
            name: value
            for name, value, plain in (("stride", stride, 1), ("padding", padding, 0))
            if value != plain
        }

    def full(w):
        return oracles.diagonal(w) if depthwise else w

    def hints(x, w, stride, padding):
        """Results of known mistakes; w is the kernel of an ordinary convolution."""
        wrong = [
            (oracles.convolve(x, w[::-1, ::-1], stride, padding),
             "the kernel is flipped: y[i, j] = Σ x[i + p, j + q] · w[p, q]"),
        ]  # fmt: skip
        if padding:
            places = "p zeros on each of the four sides: above, below, left and right"
            for before in (0, 2 * padding):
                sides = (before, 2 * padding - before)
                moved = np.pad(x, ((0, 0), sides, sides, (0, 0)))
                wrong.append((oracles.convolve(moved, w, stride), places))
        return wrong

    def value(case):
        x, w = arrays_of(case)
        right = oracles.convolve(x, full(w), case[7], case[8])
        yours = _forward(f, x, w, **settings_of(case))
        wrong = compare(yours, right, 1e-3)
        return wrong and compare(yours, right, 1e-3, hints(x, full(w), case[7], case[8]))

    def g_of(case):
        x, w = arrays_of(case)
        shape = oracles.convolve(x, full(w), case[7], case[8]).shape
        return _short_numbers(case[-1] + 200, shape, 1, 5)

    def gradient(which):
        def compared(case):
            (x, w), g = arrays_of(case), g_of(case)
            right = oracles.convolve_gradients(x, full(w), g, case[7], case[8])[which]
            if which == 1 and depthwise:
                right = np.einsum("pqcc->pqc", right)
            yours = _gradients(f, backward, (x, w), (), g, settings_of(case))[which]
            return compare(yours, right, 1e-3)

        return compared

    def tell(case):
        return told(case, zip("xw", arrays_of(case), strict=True))

    def tell_g(case):
        return told(case, zip("xwg", (*arrays_of(case), g_of(case)), strict=True))

    def told(case, arrays):
        words, large = [], False
        for name, array in arrays:
            large |= array.size > 12
            words.append(
                f"{name} {show(array)}" if array.size <= 12 else f"{name} of shape {array.shape}"
            )
        if large:
            words[-1] += f" (seed {case[-1]})"
        return ", ".join(words + [f"{name} {value}" for name, value in settings_of(case).items()])

    many = {"images": 2, "channels": 3, "outputs": 3}
    found = [
        Property("one channel: it is scipy.signal.correlate", cases(), value, tell,
                 "y[i, j] = Σ x[i + p, j + q] · w[p, q]; the output is smaller by kernel − 1",
                 "images", 30),
        Property("channels are separate" if depthwise else "channels are summed, outputs are not",
                 cases(**many), value, tell,
                 "y[…, c] comes from x[…, c] and w[…, c] only" if depthwise
                 else "the sum runs over p, q and the input channel c; each output o has its "
                 "own kernel w[:, :, :, o]", "batches", 40),
    ]  # fmt: skip
    strides, paddings = accepts(f, "stride"), accepts(f, "padding")
    if strides:
        found.append(
            Property("a stride s takes every s-th window", cases(strides=3), value, tell,
                     "y[i, j] starts at x[i·s, j·s]; there are (H − kh) // s + 1 rows",
                     "images", 40)
        )  # fmt: skip
    if paddings:
        found.append(
            Property("padding p puts p zeros on every side", cases(paddings=2), value, tell,
                     "zeros around the pixels of each image: (H + 2p − kh) // s + 1 rows come out",
                     "images", 40)
        )  # fmt: skip
    probe = np.ones((1, 2, 2, 1)), np.ones((1, 1, 1) if depthwise else (1, 1, 1, 1))
    if backward is None and not _has_pullback(f, *probe):
        return found
    strides = strides and (backward is None or accepts(backward, "stride"))
    paddings = paddings and (backward is None or accepts(backward, "padding"))
    kinds = [("", {}, "")]
    if strides:
        kinds.append(
            (
                ", at a stride",
                {"strides": 3},
                "the stride is part of the gradient too: g[i, j] belongs at x[i·s, j·s]",
            )
        )
    if paddings:
        kinds.append(
            (
                ", with padding",
                {"paddings": 2},
                "pad x for the gradient of w; cut the border off the gradient of x",
            )
        )
    for words, options, hint in kinds:
        found += [
            Property(f"x's gradient is the adjoint: ⟨y, g⟩ = ⟨x, x̄⟩{words}",
                     cases(**many, **options), gradient(0), tell_g,
                     hint or "x̄[i + p, j + q] += g[i, j] · w[p, q], summed over the outputs",
                     "batches", 40),
            Property(f"w's gradient is the adjoint: ⟨y, g⟩ = ⟨w, w̄⟩{words}",
                     cases(**many, **options), gradient(1), tell_g,
                     hint or "w̄[p, q] = Σ x[i + p, j + q] · g[i, j], over images and pixels",
                     "batches", 40),
        ]  # fmt: skip
    return found


# --- pooling -----------------------------------------------------------------------------


def check_pooling(f: Callable, backward: Callable | None = None, kind: str = "max") -> Summary:
    """Judge max pooling (or mean pooling), and its gradient.

        def max_pool(x, window=2, stride=None): ...            # (N, H, W, C) → (N, OH, OW, C)
        def max_pool_backward(x, g, window=2, stride=None): ...  # → x_gradient

        check_pooling(max_pool, max_pool_backward)

    Windows are window × window pixels, and start every `stride` pixels (as many as the window has
    without it); what does not fill a window is left out. `window` and `stride` are judged where f
    takes arguments of these names; else it is 2 × 2. Among equal largest values the first or the
    last may take the gradient, or all may share it, but it is handed on once. Without `backward`,
    f may return (y, pullback).

    f          the code to be judged, as above
    backward   the code of the backward pass, if it is not returned with the result
    kind       "max" or "mean"
    Returns    Summary
    Raises     Falsified; ValueError for another kind
    """
    return judge("pooling", pooling_properties(f, backward, kind))


def pooling_suite(f: Callable, backward: Callable | None = None, kind: str = "max") -> Callable:
    """`check_pooling` for pytest: one test a property."""
    return suite_of("pooling", pooling_properties(f, backward, kind))


def pooling_properties(
    f: Callable, backward: Callable | None = None, kind: str = "max"
) -> list[Property]:
    """The properties that `check_pooling` tries."""
    if kind not in ("max", "mean"):
        raise ValueError(f"check_pooling: kind is {kind!r}, expected 'max' or 'mean'")
    st = strategies()

    @st.composite
    def cases(draw, windows=(2,), free_stride=False, channels=1, ragged=0, ties=False):
        window = draw(st.sampled_from(windows))
        stride = draw(st.integers(1, 3)) if free_stride else window
        h, w = (
            window + stride * draw(st.integers(0, 1)) + (draw(st.integers(0, ragged)))
            for _ in range(2)
        )
        n, c = draw(st.integers(1, channels)), draw(st.integers(1, channels))
        return n, h, w, c, window, stride, ties, draw(st.integers(0, 9))

    def x_of(case):
        n, h, w, c, _, _, ties, seed = case
        if ties:
            return _short_numbers(seed, (n, h, w, c), 0, 2)
        # All different, some negative: no ties, and padding by zeros would be seen.
        order = np.random.default_rng(seed).permutation(n * h * w * c)
        return ((order - n * h * w * c + 1.0) * grain(seed)).reshape(n, h, w, c)

    def settings_of(case):
        window, stride = case[4:6]
        settings = {}
        if accepts(f, "window"):
            settings["window"] = window
        if stride != window:
            settings["stride"] = stride
        return settings

    def value(case):
        x = x_of(case)
        right = oracles.pool(x, case[4], case[5], kind)
        return compare(_forward(f, x, **settings_of(case)), right, 1e-4)

    def g_of(case):
        shape = oracles.pool(x_of(case), case[4], case[5]).shape
        return _short_numbers(case[-1] + 50, shape, 1, 9)

    def pulled(case):
        x, g = x_of(case), g_of(case)
        return x, g, _gradients(f, backward, (x,), (), g, settings_of(case))[0]

    def gradient(case):
        x, g, yours = pulled(case)
        return compare(yours, oracles.pool_gradient(x, g, case[4], case[5], kind), 1e-4)

    def once(case):
        x, g, yours = pulled(case)
        total = compare(array_of(yours, x.shape).sum(), g.sum(), 1e-3)
        if total:
            return total
        flat = oracles.pool(x, case[4], case[5])
        largest = np.zeros(x.shape, bool)
        for n, i, j, c in np.ndindex(flat.shape):
            rows, columns = (slice(k * case[5], k * case[5] + case[4]) for k in (i, j))
            largest[n, rows, columns, c] |= x[n, rows, columns, c] == flat[n, i, j, c]
        array = array_of(yours, x.shape)
        return compare(np.where(largest, 0, array), np.zeros(x.shape), 1e-4,
                       "a pixel that is not the largest of any window gets a gradient")  # fmt: skip

    def tell(case):
        x = x_of(case)
        words = f"x {show(x)}" if x.size <= 16 else f"x of shape {x.shape} (seed {case[-1]})"
        return words + f", window {case[4]}, stride {case[5]}"

    def tell_g(case):
        g = g_of(case)
        return tell(case) + (f", g {show(g)}" if g.size <= 16 else "")

    what = {"max": "largest value", "mean": "mean"}[kind]
    windows = (2, 3) if accepts(f, "window") else (2,)
    found = [
        Property(f"each output is the {what} of its window", cases(windows), value, tell,
                 "windows start at i·stride, and are cut within one image and channel", "images",
                 40),
        Property("images and channels are not mixed", cases(windows, channels=3), value, tell,
                 "reduce over the two axes of pixels only", "batches", 40),
        Property("what does not fill a window is left out", cases(windows, ragged=2), value, tell,
                 "there are (H − window) // stride + 1 rows", "images", 40),
    ]  # fmt: skip
    free = accepts(f, "stride") and (backward is None or accepts(backward, "stride"))
    if accepts(f, "stride"):
        found.append(
            Property("windows may overlap, or leave pixels out",
                     cases(windows, free_stride=True, ragged=2), value, tell,
                     "the window's size and the stride are two numbers", "images", 40)
        )  # fmt: skip
    if backward is None and not _has_pullback(f, np.ones((1, 2, 2, 1))):
        return found
    to = "goes to the largest pixel" if kind == "max" else "is spread evenly"
    found.append(
        Property(f"a window's gradient {to}", cases(windows, channels=2, ragged=1), gradient,
                 tell_g, "only the largest pixel of a window gets its g" if kind == "max"
                 else "each pixel gets g / window²", "batches", 30)
    )  # fmt: skip
    if free:
        found.append(
            Property("gradients of overlapping windows add",
                     cases(windows, free_stride=True, ragged=2), gradient, tell_g,
                     "x̄[…] += …, since a pixel may be in several windows", "images", 30)
        )  # fmt: skip
    if kind == "max":
        found.append(
            Property("among equal values the gradient is handed on once", cases(windows, ties=True),
                     once, tell_g, "x == max is true for all of the equal pixels: take the first "
                     "(argmax), or share", "images", 30)
        )  # fmt: skip
    return found


# --- batch norm --------------------------------------------------------------------------


def check_batch_norm(f: Callable, backward: Callable | None = None) -> Summary:
    """Judge batch norm in training, and its three gradients.

        def batch_norm(x, scale, shift, epsilon): ...         # (N, C), (C,), (C,) → (N, C)
        def batch_norm_backward(x, scale, shift, g, epsilon): ...
                                                # → x_gradient, scale_gradient, shift_gradient

        check_batch_norm(batch_norm, batch_norm_backward)

    y = scale · (x − mean) / √(variance + ε) + shift with the batch's own mean and population
    variance, so gradients flow through them too. Without `backward`, f may return (y, pullbacks).

    f          the code to be judged, as above
    backward   the code of the backward pass, if it is not returned with the result
    Returns    Summary
    Raises     Falsified
    Source     Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1
    """
    return judge("batch_norm", batch_norm_properties(f, backward))


def batch_norm_suite(f: Callable, backward: Callable | None = None) -> Callable:
    """`check_batch_norm` for pytest: one test a property."""
    return suite_of("batch_norm", batch_norm_properties(f, backward))


def batch_norm_properties(f: Callable, backward: Callable | None = None) -> list[Property]:
    """The properties that `check_batch_norm` tries."""
    st = strategies()

    def cases(plain=False, far=0.0, spread=1.0):
        @st.composite
        def drawn(draw):
            c = draw(st.integers(1, 2))
            rows = draw(
                st.lists(st.tuples(*[st.integers(-4, 4)] * c), min_size=2, max_size=5).map(tuple)
            )
            one = st.just(1) if plain else st.integers(1, 3)
            none = st.just(0) if plain else st.integers(-2, 2)
            epsilon = draw(st.sampled_from([1e-3, 1.0]))
            return rows, draw(st.tuples(*[one] * c)), draw(st.tuples(*[none] * c)), epsilon, far

        return drawn()

    def arrays_of(case):
        rows, scale, shift, _, far = case
        return [np.array(rows, float) + far, np.array(scale, float), np.array(shift, float)]

    def value(case):
        x, scale, shift = arrays_of(case)
        epsilon = case[3]
        right = oracles.batch_norm(x, scale, shift, epsilon)
        n, var, centered = len(x), x.var(axis=0), x - x.mean(axis=0)
        hints = [
            (scale * centered / np.sqrt(var * n / (n - 1) + epsilon) + shift,
             "the variance is divided by n, not by n − 1"),
            (scale * centered / (np.sqrt(var) + epsilon) + shift, "ε stands under the root"),
            (scale * centered / (var + epsilon) + shift, "divide by σ, the root of the variance"),
        ]  # fmt: skip
        named = {"epsilon": epsilon} if accepts(f, "epsilon") else {}
        settings = () if named else (epsilon,)
        yours = array_of(_forward(f, x, scale, shift, *settings, **named), right.shape)
        return compare(yours, right, 4e-3 * (1 + np.abs(right)), hints)

    def gradient(which):
        def compared(case):
            x, scale, shift = arrays_of(case)
            epsilon = case[3]
            g = _short_numbers(len(x), x.shape, 1, 9)
            right = oracles.batch_norm_gradients(x, scale, g, epsilon)[which]
            yours = _gradients(f, backward, (x, scale, shift), (epsilon,), g, {})[which]
            hints = []
            if which == 0:
                factor = scale / np.sqrt(x.var(axis=0) + epsilon)
                hints = [
                    (factor * g, "mean and variance depend on x too: two more terms"),
                    (factor * (g - g.mean(axis=0)), "the variance depends on x too"),
                ]
            room = 1e-3 * (1 + np.abs(g * scale).max() / np.sqrt(epsilon))
            return compare(yours, right, room, hints)

        return compared

    def tell(case):
        x, scale, shift = map(show, arrays_of(case))
        return f"x {x}, scale {scale}, shift {shift}, ε {case[3]}"

    found = [
        Property("each channel gets mean 0 and variance 1", cases(plain=True), value, tell,
                 "(x − mean) / √(variance + ε), over the rows of each column", "batches", 30),
        Property("then it is scaled and shifted", cases(), value, tell,
                 "y = scale · x̂ + shift", "batches", 40),
        Property("a mean far from 0 changes nothing", cases(far=2048.0), value, tell,
                 "E[x²] − E[x]² subtracts two nearly equal numbers", "batches", 30),
    ]  # fmt: skip
    probe = np.array([[1.0], [2.0]]), np.ones(1), np.zeros(1), 1e-3
    if backward is None and not _has_pullback(f, *probe):
        return found
    names = ("x", "scale", "shift")
    rules = (
        "scale/σ · (g − mean(g) − x̂ · mean(g·x̂)), with σ = √(variance + ε)",
        "Σ g · x̂ over the rows",
        "Σ g over the rows",
    )
    return found + [
        Property(f"the gradient of {names[i]}", cases(), gradient(i), tell, rules[i], "batches", 40)
        for i in (2, 1, 0)
    ]


# --- statistics that go with averaged weights --------------------------------------------


def check_running_statistics(f: Callable) -> Summary:
    """Judge the update of batch norm's running statistics.

        def update(mean, variance, x, momentum): ...   # (C,), (C,), (N, C), → new mean, variance

        check_running_statistics(update)

    mean ← momentum · mean + (1 − momentum) · the batch's mean, and so the (population) variance.
    A function that changes its arrays in place and returns None is right too.

    f         the code to be judged, as above
    Returns   Summary
    Raises    Falsified
    """
    return judge("running_statistics", running_statistics_properties(f))


def running_statistics_suite(f: Callable) -> Callable:
    """`check_running_statistics` for pytest: one test a property."""
    return suite_of("running_statistics", running_statistics_properties(f))


def _batches(st, fewest, most):
    return st.integers(1, 2).flatmap(
        lambda c: st.lists(
            st.lists(st.tuples(*[st.integers(-6, 6)] * c), min_size=1, max_size=4).map(tuple),
            min_size=fewest,
            max_size=most,
        ).map(tuple)
    )


def running_statistics_properties(f: Callable) -> list[Property]:
    """The properties that `check_running_statistics` tries."""
    st = strategies()
    cases = st.tuples(_batches(st, 1, 1), st.sampled_from([0.75, 0.5, 0.0, 1.0]))

    def run(mean, variance, x, momentum):
        returned = ask(lambda x: f(mean, variance, x, momentum), x)
        pair = (mean, variance) if returned is None else returned
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise Misfit(Words(type(pair).__name__), Words("a pair: mean, variance"))
        return pair

    def outcome(which):
        def compared(case):
            (rows,), momentum = case
            x = np.array(rows, float)
            old = np.array([2.0, 3.0])[which]
            batch = (x.mean(axis=0), x.var(axis=0))[which]
            c = x.shape[1]
            right = momentum * old + (1 - momentum) * batch
            yours = run(np.full(c, 2.0), np.full(c, 3.0), x, momentum)[which]
            n = len(x)
            hints = [
                (
                    momentum * batch + (1 - momentum) * old,
                    "the momentum multiplies the old statistics (PyTorch's is 1 − this one)",
                ),
                (np.full(c, old), "it is as before: not updated, or is a `return` missing?"),
            ]
            if which and n > 1:
                hints.append(
                    (
                        momentum * old + (1 - momentum) * batch * n / (n - 1),
                        "the population variance, divided by n",
                    )
                )
                hints.append((momentum * old + (1 - momentum) * np.sqrt(batch), "that is σ"))
            return compare(yours, right, 1e-4 * (1 + np.abs(right)), hints)  # fmt: skip

        return compared

    def tell(case):
        (rows,), momentum = case
        return f"mean 2, variance 3, batch {show(np.array(rows, float))}, momentum {momentum}"

    def repeated(case):
        (rows,), momentum = case
        x = np.array(rows, float)
        if momentum == 1.0:
            return None
        mean, variance = np.zeros(x.shape[1]), np.ones(x.shape[1])
        for _ in range(60):
            mean, variance = run(np.array(mean), np.array(variance), x, momentum)
        wrong = compare(mean, x.mean(axis=0), 1e-3)
        return wrong or compare(variance, x.var(axis=0), 1e-3)

    return [
        Property("the mean moves by the momentum", cases, outcome(0), tell,
                 "momentum · old + (1 − momentum) · the batch's", "batches", 50),
        Property("the variance moves by the momentum", cases, outcome(1), tell,
                 "momentum · old + (1 − momentum) · the batch's", "batches", 50),
        Property("the same batch again and again: its own statistics", cases, repeated, tell,
                 unit="batches", examples=20),
    ]  # fmt: skip


def check_reestimation(f: Callable) -> Summary:
    """Judge statistics measured again over batches of different sizes.

        def reestimate(batches): ...       # a list of (N_i, C) → mean, variance, each (C,)

        check_reestimation(reestimate)

    The mean over all rows, so that each batch weighs as many as it has. The variance may be that of
    all rows, or the weighted mean of the batches' own.

    f         the code to be judged, as above
    Returns   Summary
    Raises    Falsified
    """
    return judge("reestimation", reestimation_properties(f))


def reestimation_suite(f: Callable) -> Callable:
    """`check_reestimation` for pytest: one test a property."""
    return suite_of("reestimation", reestimation_properties(f))


def reestimation_properties(f: Callable) -> list[Property]:
    """The properties that `check_reestimation` tries."""
    st = strategies()

    def arrays_of(case):
        return [np.array(rows, float) for rows in case]

    def outcome(which):
        def compared(case):
            batches = arrays_of(case)
            sizes = np.array([len(b) for b in batches])
            everything = np.concatenate(batches)
            yours = ask(f, batches)
            if not isinstance(yours, tuple | list) or len(yours) != 2:
                raise Misfit(Words(type(yours).__name__), Words("a pair: mean, variance"))
            if which == 0:
                plain = np.mean([b.mean(axis=0) for b in batches], axis=0)
                return compare(
                    yours[0],
                    everything.mean(axis=0),
                    1e-3,
                    [(plain, "the batches weigh alike: weigh each by its size")],
                )
            within = (sizes[:, None] * [b.var(axis=0) for b in batches]).sum(axis=0) / sizes.sum()
            wrong = compare(yours[1], within, 1e-3)
            return wrong and compare(yours[1], everything.var(axis=0), 1e-3)  # fmt: skip

        return compared

    def tell(case):
        return "batches " + ", ".join(map(show, arrays_of(case)))

    one = _batches(st, 1, 1)
    several = _batches(st, 2, 3)
    rule = "Σ size · (the batch's) / Σ size"
    return [
        Property("one batch: its mean", one, outcome(0), tell, rule, "batches", 20),
        Property("one batch: its variance", one, outcome(1), tell,
                 "the population variance, divided by n", "batches", 20),
        Property("a batch weighs as many as it has", several, outcome(0), tell, rule, "lists", 30),
        Property("so does its variance", several, outcome(1), tell, rule, "lists", 30),
    ]  # fmt: skip
