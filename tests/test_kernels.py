"""Every kernel of every module against its definition, `minires.kernels.plain`; and that against
loops over single pixels, written in Python.

Each entry of `PROGRAMS` calls one or two kernels on some arrays. It runs on `plain`, `cpu`, `gpu`
and on `plain` with the arrays of the GPU (or its stand-in), and always must give what `plain` gives
for the same numbers in float64 on the CPU.
"""

import functools
import importlib
import inspect
import math
import os
import statistics
import subprocess
import sys
import threading

import numpy as np
import pytest
from helpers import assert_close, generator, naive_conv2d, naive_windows, pad

import minires
from minires import kernels
from minires.arrays import threads
from minires.kernels import cpu, gpu, plain
from minires.networks.layers import (
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Flatten,
    MaxPool,
    ReLU,
    Sequential,
)
from minires.networks.model import ForwardPass, Model

MODULES = {"plain": plain, "cpu": cpu, "gpu": gpu}
ROUNDING = {np.float32: 2e-5, np.float64: 1e-12}
NONE = (1, 1), ((0, 0), (0, 0)), (1, 1)

# N, (H, W), channels before and after, kernel, stride, padding, dilation
GEOMETRIES = {
    "one pixel": (3, (5, 4), 6, 2, (1, 1), *NONE),
    "one pixel, stride": (3, (5, 4), 3, 2, (1, 1), (2, 3), ((0, 0), (0, 0)), (1, 1)),
    "valid": (3, (6, 7), 3, 4, (3, 3), *NONE),
    "same": (3, (6, 7), 2, 3, (5, 3), (1, 1), ((2, 2), (1, 1)), (1, 1)),
    "stride": (3, (9, 8), 2, 3, (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1)),
    "uneven": (2, (8, 9), 2, 3, (2, 4), (3, 1), ((1, 0), (2, 1)), (1, 2)),
    "dilation": (2, (9, 9), 2, 2, (3, 2), (1, 2), ((2, 2), (1, 1)), (2, 3)),
    "whole image": (3, (4, 4), 5, 3, (4, 4), *NONE),
    "a wide border": (2, (2, 3), 2, 2, (2, 2), (1, 1), ((3, 4), (2, 5)), (1, 1)),
    "steps over pixels": (2, (7, 7), 2, 2, (2, 2), (3, 4), ((0, 0), (0, 0)), (1, 1)),
    "no image": (0, (5, 5), 2, 3, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "large, 3×3": (2, (16, 17), 16, 17, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "large, 5×5": (1, (17, 16), 32, 16, (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1)),
}
NETWORKS = {"one": (1, 1), "shared": (1, 3), "own": (3, 3)}  # sources, replicas
ACTIVATIONS = (None, "relu", "relu6")


# --- the programs -------------------------------------------------------------------------


def outputs(size, kernel, stride, padding, dilation):
    return tuple(
        (n + sum(border) - d * (k - 1) - 1) // s + 1
        for n, k, s, border, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )


def normal(rng, *shape):
    return rng.standard_normal(shape)


def convolution(rng, geometry, networks, activation):
    images, size, channels, out, kernel, *settings = geometry
    (sources, replicas), high_wide = networks, outputs(size, kernel, *settings)

    def program(k, x, w, b, g):
        return (
            k.convolve(x, w, b, *settings, activation),
            k.convolve(x, w, None, *settings, activation),
            k.convolve_weight_gradient(x, g, kernel, *settings),
            k.convolve_input_gradient(g, w, x.shape[1:], *settings),
        )

    return program, (
        normal(rng, sources, images, *size, channels),
        normal(rng, replicas, *kernel, channels, out) / math.prod((*kernel, channels)) ** 0.5,
        normal(rng, replicas, out),
        normal(rng, replicas, images, *high_wide, out),
    )


def depthwise_convolution(rng, geometry, networks, activation):
    images, size, channels, _, kernel, *settings = geometry
    (sources, replicas), high_wide = networks, outputs(size, kernel, *settings)

    def program(k, x, w, b, g):
        return (
            k.depthwise(x, w, b, *settings, activation),
            k.depthwise(x, w, None, *settings, activation),
            k.depthwise_weight_gradient(x, g, kernel, *settings),
            k.depthwise_input_gradient(g, w, x.shape[1:], *settings),
        )

    return program, (
        normal(rng, sources, images, *size, channels),
        normal(rng, replicas, *kernel, channels),
        normal(rng, replicas, channels),
        normal(rng, replicas, images, *high_wide, channels),
    )


def separable_convolution(rng, geometry, networks, activation):
    images, size, channels, out, kernel, *settings, _ = geometry
    sources, replicas = networks

    def program(k, x, expand, b, filters, c, project, d, more, e):
        return (
            k.separable(x, (expand, b), (filters, c), (project, d), *settings, (activation,) * 3),
            k.separable(
                x, None, (more, e), (project[:, :channels], d), *settings, (None, activation, None)
            ),
        )

    return program, (
        normal(rng, sources, images, *size, channels),
        normal(rng, replicas, channels, 2 * channels), normal(rng, replicas, 2 * channels),
        normal(rng, replicas, *kernel, 2 * channels), normal(rng, replicas, 2 * channels),
        normal(rng, replicas, 2 * channels, out), normal(rng, replicas, out),
        normal(rng, replicas, *kernel, channels), normal(rng, replicas, channels),
    )  # fmt: skip


def pooled_convolution(rng, geometry, networks, activation):
    _, (x, w, b, g) = convolution(rng, geometry, networks, activation)
    settings, size = geometry[5:], g.shape[2:4]
    window = tuple(min(n, k) for n, k in zip(size, (2, 3), strict=True))

    def program(k, x, w, b, g):
        y, winners = k.convolve_and_pool(x, w, b, *settings, activation, window)
        g = k.activate_gradient(g, 4 * y, activation)
        return y, winners, g, k.unpool(g, winners, window, size)

    pooled = [n // k for n, k in zip(size, window, strict=True)]
    return program, (x, w, b, normal(rng, *g.shape[:2], *pooled, g.shape[-1]))


def pooling(rng, geometry, networks, activation):
    images, size, channels, _, window, stride, padding, dilation = geometry
    # No window may see nothing but the border: the largest of no pixels is not defined.
    padding = tuple(
        tuple(min(side, d * (k - 1) // 2) for side in border)
        for border, k, d in zip(padding, window, dilation, strict=True)
    )
    settings = window, stride, padding, dilation
    high_wide = outputs(size, *settings)
    # Whole numbers: many pixels are equal, and the first must win.
    x = rng.integers(-2, 3, (images, *size, channels)).astype(float)

    def program(k, x, g, divisor):
        y = k.max_pool(x, *settings)
        return (
            y,
            k.max_pool_gradient(g, x, y, *settings),
            k.mean_pool(x, divisor, *settings),
            k.mean_pool_gradient(g, divisor, x.shape, *settings),
        )

    divisor = rng.integers(1, 9, (*high_wide, 1)).astype(float)
    return program, (x, normal(rng, images, *high_wide, channels), divisor)


def batch_normalisation(rng, geometry, networks, activation):
    images, size, channels, *_ = geometry
    (sources, replicas), rows = networks, max(1, images) * math.prod(size)

    def program(k, x, g, factor, offset, slope):
        passed, total, product = k.norm_sums(g, x, slope, factor, offset, activation)
        again, *_ = k.norm_sums(g, x, slope, factor, offset, activation)
        return (
            *k.norm_moments(x),
            *k.norm_factors(offset, slope * slope, factor, slope, 0.1),
            *k.norm_factors(offset, slope * slope, None, slope, 0.1),
            *k.norm_slopes(total, product, offset, slope, factor, rows),
            k.normalize(x, factor, offset, replicas, activation),
            total,
            product,
            k.norm_gradient(passed, x, factor, offset, None, activation),
            k.norm_gradient(again, x, factor, offset, (slope, offset), activation),
        )

    return program, (
        5 + normal(rng, sources, rows, channels),
        3 * normal(rng, replicas, rows, channels),
        *normal(rng, 3, replicas, 1, channels),
    )


def products(rng, geometry, networks, activation):
    images, size, channels, out, *_ = geometry
    sources, replicas = networks

    def program(k, a, b):
        return (
            k.matmul(a, b),
            k.matmul(b.swapaxes(-1, -2), a.swapaxes(-1, -2)),
            k.sum_rows(a),
            k.sum_rows(b[0]),
        )

    rows = images * math.prod(size) * 5  # in one case more than are summed at once
    return program, (
        normal(rng, sources, rows, channels * 3),
        normal(rng, replicas, channels * 3, out),
    )


def optimizers(rng, geometry, networks, activation):
    _, replicas = networks
    shape = (math.prod(geometry[1]),) if replicas == 1 else (replicas, math.prod(geometry[1]))
    numbers = [normal(rng, *shape) for _ in range(4)]
    decay = 0.0 if activation is None else 0.01

    def program(k, theta, gradient, velocity, second, rates, epsilon):
        one, two, three = (k.copy(theta) for _ in range(3))
        first, squares = k.copy(velocity), k.copy(second)
        k.step_sgd(one, gradient, None, rates, 0.0, decay)
        k.step_sgd(two, gradient, velocity, rates[:1], 0.9, decay)
        k.step_sgd(two, gradient, velocity, rates, 0.9, decay)
        k.step_adam(three, gradient, first, squares, rates, epsilon, 0.9, 0.99)
        k.step_adam(three, gradient, first, squares, rates[:1], epsilon, 0.9, 0.99)
        return one, two, velocity, three, first, squares

    numbers[3] = numbers[3] ** 2
    return program, (*numbers, rng.uniform(0.1, 1, replicas), np.array([1e-3]))


def moments(rng, geometry, networks, activation):
    thetas = 1e3 + normal(rng, 4, networks[1], math.prod(geometry[1]))

    def program(k, thetas, counts, weight):
        first = k.copy(thetas[0])
        offset, m2, mean = (k.copy(thetas[1]).astype(np.float64) for _ in range(3))
        for theta, n in zip(thetas, counts, strict=True):
            k.fold_moments(theta, first, offset, m2, n.reshape(1))
            k.fold_average(mean, theta, weight.astype(np.float64))
        return first, offset, m2, mean

    return program, (thetas, np.array([1, 2, 0, 3]), np.array([0.25]))


PROGRAMS = {
    convolution: ("convolve", "convolve_weight_gradient", "convolve_input_gradient"),
    pooled_convolution: ("convolve_and_pool", "activate_gradient", "unpool"),
    depthwise_convolution: (
        "depthwise", "depthwise_weight_gradient", "depthwise_input_gradient",
    ),
    separable_convolution: ("separable",),
    pooling: ("max_pool", "max_pool_gradient", "mean_pool", "mean_pool_gradient"),
    batch_normalisation: (
        "norm_moments", "norm_factors", "normalize", "norm_sums", "norm_slopes", "norm_gradient",
    ),
    products: ("matmul", "sum_rows"),
    optimizers: ("step_sgd", "step_adam"),
    moments: ("fold_moments", "fold_average"),
}  # fmt: skip
ALONE = {"uniform"}  # the only one whose results differ: see its own test


class Recorded:
    """A kernel module that remembers which of its kernels were called."""

    def __init__(self, module):
        self.module, self.called = module, set()

    def __getattr__(self, name):
        self.called.add(name)
        return getattr(self.module, name)

    def copy(self, array):
        return array.copy()


def run(program, arrays, dtype, module, xp):
    """The results on the host of a program on one module's kernels and arrays of `xp`."""
    given = [
        xp.asarray(array.astype(dtype) if array.dtype.kind == "f" else array.copy())
        for array in arrays
    ]
    results = program(Recorded(module), *given)
    assert all(type(result) is xp.ndarray for result in results)
    return [result if xp is np else result.get() for result in results]


@pytest.fixture(params=["plain", "cpu", "gpu", "plain on the device"])
def implementation(request):
    """(kernel module, array module)"""
    if request.param in ("plain", "cpu"):
        return MODULES[request.param], np
    device = request.getfixturevalue("emulated")
    return (gpu if request.param == "gpu" else plain), device


@pytest.fixture
def emulated():
    emulated_cupy = pytest.importorskip("emulated_cupy")
    if (reason := emulated_cupy.missing()) is not None:
        pytest.skip(reason)
    with emulated_cupy.installed() as cupy:
        yield cupy


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


class Case:
    """A program and its arrays in one dtype, and what `plain` makes of them in float64."""

    def __init__(self, program, arrays, dtype=np.float64):
        # Both start from the same numbers, those of `dtype`; the reference goes on in float64.
        arrays = [array.astype(dtype) if array.dtype.kind == "f" else array for array in arrays]
        self.program, self.arrays, self.dtype = program, arrays, dtype
        self.expected = run(program, arrays, np.float64, plain, np)
        self.plain = self.expected
        if dtype is not np.float64:
            self.plain = run(program, arrays, dtype, plain, np)

    def check(self, found):
        """The results are right, and of the types that `plain` gives."""
        results = zip(found, self.expected, self.plain, strict=True)
        for number, (actual, wanted, of_type) in enumerate(results):
            assert actual.dtype == of_type.dtype, f"result {number}"
            if wanted.dtype.kind == "f":
                np.testing.assert_array_equal(np.isnan(actual), np.isnan(wanted))
                assert_close(np.nan_to_num(actual), np.nan_to_num(wanted), ROUNDING[self.dtype])
            else:
                np.testing.assert_array_equal(actual, wanted)

    def compare(self, module, xp):
        self.check(run(self.program, self.arrays, self.dtype, module, xp))


# --- parity -------------------------------------------------------------------------------

others = pytest.mark.parametrize(
    "implementation", ["cpu", "gpu", "plain on the device"], indirect=True
)
each_program = pytest.mark.parametrize("make", PROGRAMS, ids=lambda make: make.__name__)
each_number = pytest.mark.parametrize("networks", NETWORKS)


@functools.cache
def cases(make, networks, dtype):
    """One for each geometry. All implementations get the same ones."""
    shift, found = list(NETWORKS).index(networks), []
    for number, geometry in enumerate(GEOMETRIES.values()):
        activation = ACTIVATIONS[(number + shift) % 3]
        problem = make(generator(number), geometry, NETWORKS[networks], activation)
        found.append(Case(*problem, dtype))
    return found


@each_number
@each_program
@others
def test_every_kernel_is_its_definition(make, networks, dtype, implementation):
    for case in cases(make, networks, dtype):
        case.compare(*implementation)


@each_number
@each_program
def test_plain_kernels_keep_the_digits_of_float32(make, networks):
    for case in cases(make, networks, np.float32):
        case.check(case.plain)


@each_program
def test_the_number_of_threads_changes_no_bit(make, monkeypatch):
    """In tiles that are so small that every thread gets some."""
    for name in ("TILE_BYTES", "PIECES_BYTES", "WIDE_BYTES"):
        monkeypatch.setattr(cpu, name, 1000)
    for case in cases(make, "own", np.float32):
        results = []
        for count in (1, 2, 3):
            with threads(count):
                results.append(run(case.program, case.arrays, np.float32, cpu, np))
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(one, two)


@functools.cache
def windows_of_any_kind(seed):
    rng, found = generator(seed), []
    for _ in range(5):
        kernel = tuple(rng.integers(1, 5, 2).tolist())
        stride, dilation = (tuple(rng.integers(1, 4, 2).tolist()) for _ in range(2))
        padding = tuple(map(tuple, rng.integers(0, 4, (2, 2)).tolist()))
        span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        size = tuple(
            max(1, n - sum(border)) + int(rng.integers(5))
            for n, border in zip(span, padding, strict=True)
        )
        images, channels, out = rng.integers(1, 6, 3).tolist()
        geometry = images, size, channels, out, kernel, stride, padding, dilation
        networks = list(NETWORKS.values())[rng.integers(3)]
        activation = ACTIVATIONS[rng.integers(3)]
        for make in (convolution, pooled_convolution, depthwise_convolution):
            found.append(Case(*make(rng, geometry, networks, activation)))
    return found


@others
@pytest.mark.parametrize("seed", range(8))
def test_kernels_for_windows_of_any_kind(seed, implementation):
    for case in windows_of_any_kind(seed):
        case.compare(*implementation)


@functools.cache
def with_a_nan(make):
    found = []
    for name in ("valid", "stride", "dilation"):
        for activation in ACTIVATIONS:
            program, arrays = make(generator(3), GEOMETRIES[name], (1, 1), activation)
            arrays[0].reshape(-1)[arrays[0].size // 2] = np.nan
            found.append(Case(program, arrays))
    return found


@others
@pytest.mark.parametrize(
    "make",
    [convolution, pooled_convolution, depthwise_convolution, separable_convolution, pooling],
    ids=lambda make: make.__name__,
)
def test_what_is_not_a_number_stays_so_and_spreads_no_further(make, implementation):
    for case in with_a_nan(make):
        case.compare(*implementation)


def test_the_programs_call_every_kernel():
    """So a new kernel cannot be forgotten here."""
    named = [name for names in PROGRAMS.values() for name in names]
    assert sorted([*named, *ALONE]) == sorted(kernels.KERNELS)
    for make, names in PROGRAMS.items():
        program, arrays = make(generator(0), GEOMETRIES["valid"], (1, 1), None)
        module = Recorded(plain)
        program(module, *arrays)
        assert module.called == set(names), make.__name__


def arguments_of(function):
    """Names, order and defaults of a function's arguments; their types are said in `plain`."""
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


def test_all_modules_have_the_same_kernels_with_the_same_arguments():
    for name in kernels.KERNELS:
        signatures = {key: arguments_of(getattr(module, name)) for key, module in MODULES.items()}
        assert len(set(map(str, signatures.values()))) == 1, (name, signatures)
        for module in (cpu, gpu):  # what a kernel computes is said once, in `plain`
            same = getattr(module, name) is getattr(plain, name)
            said = getattr(module, name).__doc__
            assert same or said.startswith(f"As `plain.{name}`"), (module, name, said)


def test_a_product_or_gradient_with_a_place_for_it(implementation):
    module, xp = implementation
    rng = generator(0)
    _, (x, w, _, g) = convolution(rng, GEOMETRIES["valid"], (1, 1), None)
    kernel, *settings = GEOMETRIES["valid"][4:]
    out = xp.empty(w.shape, w.dtype)
    found = module.convolve_weight_gradient(xp.asarray(x), xp.asarray(g), kernel, *settings, out)
    found = found if xp is np else found.get()
    assert_close(found, plain.convolve_weight_gradient(x, g, kernel, *settings))
    a, b = xp.asarray(normal(rng, 3, 4)), xp.asarray(normal(rng, 4, 5))
    out = xp.empty((3, 5), np.float64)
    assert module.matmul(a, b, out) is out
    assert module.matmul(a, b, xp.empty((3, 5), np.float32)).dtype == np.float64


def test_uniform_numbers(implementation):
    """Each of R networks draws what it would alone. On a GPU these are other numbers."""
    module, xp = implementation
    like = xp.zeros(1, np.float32)
    draws = module.uniform([generator(seed) for seed in (1, 2)], (2, 50, 40), like)
    assert type(draws) is xp.ndarray
    assert draws.dtype == np.float32
    alone = [module.uniform(generator(seed), (1, 50, 40), like) for seed in (1, 2)]
    draws, *alone = [array if xp is np else array.get() for array in (draws, *alone)]
    np.testing.assert_array_equal(draws, np.concatenate(alone))
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 4 / math.sqrt(12 * draws.size)
    if module is not gpu:
        drawn = generator(1).random((50, 40), np.float32)
        np.testing.assert_array_equal(draws[0], drawn)


# --- the definition against loops ---------------------------------------------------------


@pytest.mark.parametrize("name", GEOMETRIES)
def test_plain_convolution_is_the_loop_over_pixels(name):
    geometry = GEOMETRIES[name]
    _, _, _, _, _, stride, padding, dilation = geometry
    _, (x, w, b, g) = convolution(generator(1), geometry, (3, 3), None)
    y = plain.convolve(x, w, b, stride, padding, dilation, None)
    loops = [naive_conv2d(*one, stride, padding, dilation) for one in zip(x, w, b, strict=True)]
    assert_close(y, np.stack(loops), 1e-13)
    clipped = plain.convolve(x, w, b, stride, padding, dilation, "relu6")
    assert_close(clipped, np.minimum(np.maximum(y, 0), 6))
    # Both gradients: y is linear in x and in w, so ⟨y(x, w), g⟩ = ⟨x, ∂x⟩ = ⟨w, ∂w⟩.
    settings = stride, padding, dilation
    inner = (plain.convolve(x, w, None, *settings, None) * g).sum()
    by_x = (x * plain.convolve_input_gradient(g, w, x.shape[1:], *settings)).sum()
    by_w = (w * plain.convolve_weight_gradient(x, g, w.shape[1:3], *settings)).sum()
    assert by_x == pytest.approx(inner, rel=1e-11, abs=1e-11)
    assert by_w == pytest.approx(inner, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_plain_depthwise_convolution_is_one_with_diagonal_kernels(name):
    _, _, channels, _, kernel, *settings = GEOMETRIES[name]
    _, (x, w, b, g) = depthwise_convolution(generator(2), GEOMETRIES[name], (1, 3), None)
    diagonal = w[..., None] * np.eye(channels)
    y = plain.depthwise(x, w, b, *settings, "relu")
    assert_close(y, plain.convolve(x, diagonal, b, *settings, "relu"), 1e-13)
    found = plain.depthwise_weight_gradient(x, g, kernel, *settings)
    whole = plain.convolve_weight_gradient(x, g, kernel, *settings)
    assert_close(found, np.einsum("ruvcc->ruvc", whole), 1e-12)
    found = plain.depthwise_input_gradient(g, w, x.shape[1:], *settings)
    whole = plain.convolve_input_gradient(g, diagonal, x.shape[1:], *settings)
    assert_close(found, whole, 1e-13)


@pytest.mark.parametrize("name", ["valid", "same", "stride", "uneven", "dilation", "one pixel"])
def test_plain_pooling_is_the_loop_over_windows(name):
    _, (x, g, divisor) = pooling(generator(4), GEOMETRIES[name], (1, 1), None)
    window, stride, padding, dilation = GEOMETRIES[name][4:]
    padding = tuple(
        tuple(min(side, d * (k - 1) // 2) for side in border)
        for border, k, d in zip(padding, window, dilation, strict=True)
    )
    settings = window, stride, padding, dilation
    (top, _), (left, _) = padding
    y, mean = plain.max_pool(x, *settings), plain.mean_pool(x, divisor, *settings)
    largest = np.zeros_like(pad(x, padding))
    shared = np.zeros_like(largest)
    for n, i, j, c, values, places in naive_windows(x, window, stride, padding, dilation, -np.inf):
        assert y[n, i, j, c] == max(values)
        inside = [value for value in values if value > -np.inf]
        assert mean[n, i, j, c] == pytest.approx(sum(inside) / divisor[i, j, 0], abs=1e-14)
        largest[(n, *places[values.index(max(values))], c)] += g[n, i, j, c]
        for place in places:
            shared[(n, *place, c)] += g[n, i, j, c] / divisor[i, j, 0]
    inside = slice(None), slice(top, top + x.shape[1]), slice(left, left + x.shape[2])
    assert_close(plain.max_pool_gradient(g, x, y, *settings), largest[inside], 1e-13)
    found = plain.mean_pool_gradient(g, divisor, x.shape, *settings)
    assert_close(found, shared[inside], 1e-13)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_plain_pooling_behind_a_convolution(activation):
    _, (x, w, b, g) = convolution(generator(5), GEOMETRIES["valid"], (1, 1), None)
    window = (2, 2)
    y, winners = plain.convolve_and_pool(x, w, b, *NONE, activation, window)
    before = plain.convolve(x, w, b, *NONE, activation)[0]
    assert_close(y[0], plain.max_pool(before, window, window, *NONE[1:]))
    before = plain.convolve(x, w, None, *NONE, None)[0]
    g = generator(6).standard_normal(y.shape)
    found = plain.unpool(g, winners, window, before.shape[1:3])[0]
    largest = plain.max_pool(before, window, window, *NONE[1:])
    assert_close(found, plain.max_pool_gradient(g[0], before, largest, window, window, *NONE[1:]))


def test_plain_moments_are_those_of_the_library_of_python(rng):
    x = 1e4 + rng.standard_normal((2, 30, 3)).astype(np.float32)
    mean, variance = plain.norm_moments(x)
    for r, c in np.ndindex(2, 3):
        values = x[r, :, c].astype(float).tolist()
        assert mean[r, 0, c] == pytest.approx(statistics.fmean(values), rel=1e-14)
        assert variance[r, 0, c] == pytest.approx(statistics.pvariance(values), rel=1e-9)


def test_plain_batch_norm_gradients_are_sums_over_rows(rng):
    x, g = 3 * rng.standard_normal((2, 2, 20, 4))
    center, factor, offset, slope, constant = rng.standard_normal((5, 2, 1, 4))
    y = factor * x + offset
    for activation, passes in {
        None: lambda y: True, "relu": lambda y: y > 0, "relu6": lambda y: 0 < y < 6,
    }.items():  # fmt: skip
        passed, total, product = plain.norm_sums(g, x, center, factor, offset, activation)
        through = slope, constant
        gradient = plain.norm_gradient(passed.copy(), x, factor, offset, through, activation)
        for r, c in np.ndindex(2, 4):
            let = [g[r, m, c] if passes(y[r, m, c]) else 0 for m in range(20)]
            assert total[r, 0, c] == pytest.approx(sum(let))
            by_hand = sum(v * (x[r, m, c] - center[r, 0, c]) for m, v in enumerate(let))
            assert product[r, 0, c] == pytest.approx(by_hand)
            for m, v in enumerate(let):
                by_hand = factor[r, 0, c] * v + slope[r, 0, c] * x[r, m, c] + constant[r, 0, c]
                assert gradient[r, m, c] == pytest.approx(by_hand)


def test_plain_steps_are_the_formulas_for_single_weights(rng):
    theta, gradient, v, m = rng.standard_normal((4, 2, 5))
    squares, rates = m**2 + 1, np.array([0.1, 0.3])
    one, velocity = theta.copy(), v.copy()
    plain.step_sgd(one, gradient, velocity, rates, 0.9, 0.01)
    two, first, second = theta.copy(), m.copy(), squares.copy()
    plain.step_adam(two, gradient, first, second, rates, np.array([1e-3]), 0.8, 0.7)
    for r, p in np.ndindex(2, 5):
        new = 0.9 * v[r, p] + gradient[r, p] + 0.01 * theta[r, p]
        assert velocity[r, p] == pytest.approx(new)
        assert one[r, p] == pytest.approx(theta[r, p] - rates[r] * new)
        new_m = 0.8 * m[r, p] + 0.2 * gradient[r, p]
        new_v = 0.7 * squares[r, p] + 0.3 * gradient[r, p] ** 2
        assert (first[r, p], second[r, p]) == pytest.approx((new_m, new_v))
        change = rates[r] * new_m / (math.sqrt(new_v) + 1e-3)
        assert two[r, p] == pytest.approx(theta[r, p] - change)


def test_plain_memory_is_bounded_by_cutting_the_batch(rng, monkeypatch):
    """The same numbers, an image at a time."""
    for make in (convolution, depthwise_convolution):
        program, arrays = make(generator(0), GEOMETRIES["same"], (1, 3), "relu")
        whole = program(Recorded(plain), *arrays)
        monkeypatch.setattr(plain, "PIECE", 1)
        assert len(plain.pieces(2, 3, 10)) == 2 * 3
        for cut, all_at_once in zip(program(Recorded(plain), *arrays), whole, strict=True):
            assert_close(cut, all_at_once, 1e-14)
        monkeypatch.undo()


# --- which kernels are used ---------------------------------------------------------------


def test_kernels_are_chosen_for_a_block(monkeypatch):
    monkeypatch.delenv("MINIRES_KERNELS", raising=False)
    x = np.ones(2)
    assert kernels.kernels_of(x) is cpu
    with minires.kernels("plain"):
        assert kernels.kernels_of(x) is plain
        with minires.kernels("cpu"):
            assert kernels.kernels_of(x) is cpu
        assert kernels.kernels_of(x) is plain
    assert kernels.kernels_of(x) is cpu


def test_kernels_on_a_device(emulated, monkeypatch):
    monkeypatch.delenv("MINIRES_KERNELS", raising=False)
    x = emulated.zeros(2)
    assert kernels.kernels_of(x) is gpu
    with minires.kernels("plain"):
        assert kernels.kernels_of(x) is plain


def test_kernels_are_chosen_by_the_environment(monkeypatch):
    monkeypatch.setenv("MINIRES_KERNELS", "plain")
    assert kernels.kernels_of(np.ones(2)) is plain
    with minires.kernels("cpu"):
        assert kernels.kernels_of(np.ones(2)) is cpu
    monkeypatch.setenv("MINIRES_KERNELS", "")
    assert kernels.kernels_of(np.ones(2)) is cpu


def test_other_names_are_refused(monkeypatch):
    told = r"minires\.kernels is 'fast', expected 'plain' or 'cpu'"
    with pytest.raises(ValueError, match=told), minires.kernels("fast"):
        pass
    monkeypatch.setenv("MINIRES_KERNELS", "PLAIN")
    with pytest.raises(ValueError, match="MINIRES_KERNELS is 'PLAIN', expected 'plain' or 'cpu'"):
        kernels.kernels_of(np.ones(2))


def test_a_choice_holds_for_the_thread_that_made_it():
    elsewhere = []
    with minires.kernels("plain"):
        other = threading.Thread(target=lambda: elsewhere.append(kernels.chosen_kernels()))
        other.start()
        other.join()
    assert elsewhere == ["cpu"]


def test_a_choice_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), minires.kernels("plain"):
        1 / 0  # noqa: B018
    assert kernels.chosen_kernels() == "cpu"


def test_the_package_is_still_a_package():
    assert importlib.import_module("minires.kernels.cpu") is cpu
    assert minires.kernels.plain is plain
    assert kernels is minires.kernels


def small_network():
    layers = [
        Conv2D(4, 3), MaxPool(), ReLU(),
        DepthwiseConv2D(3, bias=False), BatchNorm(activation="relu"), Conv2D(5, 1),
        Flatten(), Dense(3),
    ]  # fmt: skip
    return Model((8, 8, 2), Sequential(*layers))


def test_with_plain_kernels_a_network_runs_as_written(rng, monkeypatch):
    model = small_network()
    theta, stats = model.init(rng, dtype=np.float64), model.init_stats(dtype=np.float64)
    images, labels = rng.standard_normal((6, 8, 8, 2)), rng.integers(0, 3, 6)
    loss, gradient = model.loss_and_gradient(theta, images, labels, stats)
    logits = model.logits(theta, images, stats)
    fresh = model.init_stats(dtype=np.float64)
    for name in ("convolve_and_pool", "separable"):
        monkeypatch.setattr(plain, name, None)
    monkeypatch.setattr(Model, "fold", None)
    with minires.kernels("plain"):
        found, slope = model.loss_and_gradient(theta, images, labels, fresh)
        assert found == pytest.approx(loss, rel=1e-12)
        assert_close(slope, gradient, 1e-11)
        assert_close(fresh, stats, 1e-12)
        assert_close(model.logits(theta, images, stats), logits, 1e-11)
        written = model.network.apply(images, ForwardPass(model.layout, theta, stats))
        np.testing.assert_array_equal(model.logits(theta, images, stats), written)


def test_training_on_plain_kernels_is_training(emulated):
    """On the CPU and on a device, where no update is recorded: all the same numbers."""
    from minires.training import loop

    def trained(xp, name):
        rng, model = generator(0), small_network()
        images = xp.asarray(rng.standard_normal((20, 8, 8, 2)))
        labels = xp.asarray(rng.integers(0, 3, 20))
        theta = xp.asarray(model.init(generator(1), dtype=np.float64))
        stats = xp.asarray(model.init_stats(dtype=np.float64))
        moments = minires.Moments(theta.shape)
        with minires.kernels(name):
            optimizer = minires.SGD(0.05, 0.9, 1e-3)
            task = loop.Task(model, images, labels, batch=4, quiet=True)
            kept = {"moments": [(moments, theta)], "watch": [0, 3]}
            loop.train(task, theta, stats, optimizer, 5, **kept)
            return [minires.to_host(array) for array in (theta, stats, moments.mean, moments.std)]

    expected = trained(np, "cpu")
    for xp, name in ((np, "plain"), (emulated, "plain")):
        for actual, wanted in zip(trained(xp, name), expected, strict=True):
            assert_close(actual, wanted, 1e-10)


def test_the_command_says_which_kernels_are_in_use():
    command = [sys.executable, "-m", "minires", "info"]
    for name in ("plain", "cpu"):
        environment = {**os.environ, "MINIRES_KERNELS": name}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert f'"kernels": "{name}' in told.stdout
