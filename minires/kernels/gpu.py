"""The kernels of `plain.py`, made fast for a GPU: same names, same arguments, same results.

cuBLAS computes the products (`cublas.py`). All else is CUDA C, `gpu.cu`, compiled for the card at
its first use. A convolution copies every window of the images into a row ("im2col") and multiplies
these rows by the kernels. It takes many images at once, and cuts the batch into pieces only if the
windows of all images would fill the memory.

An optimizer's step and an update of the moments are one kernel each. It reads and writes every
number once; a NumPy expression would launch a kernel for each of its operators.
"""

import functools
import threading
from pathlib import Path

import numpy as np

from minires.arrays import Array, xp_of
from minires.kernels import cublas, plain

WINDOW_BYTES = 1 << 28  # Most bytes of windows at once; a batch that has more is cut.
THREADS = 256  # Threads of a block.
BLOCKS = 1 << 16  # Most blocks of a launch; if there are more results, a thread takes several.
STRIP = 4  # One thread copies the windows of so many neighbouring outputs.
ROWS = 64  # One thread adds up at least so many rows.
LANES = 1 << 18  # At most so many threads add up the rows of a batch norm.
FILL = 264  # So many blocks of a product fill a large card: two for each multiprocessor.
TILE = 64  # About so many rows and columns of a product are computed by one block.
SHORTEST = 1024  # A sum of no more terms than this is not divided.
SMALL = 1 << 30  # Arrays with fewer numbers are counted with 32 bits, which is faster.
ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2}
SEEDS = 1 << 63  # the seeds of random numbers are whole numbers below it

matmul = cublas.matmul


# --- launching ----------------------------------------------------------------------------

SOURCE = Path(__file__).with_name("gpu.cu")
_modules = {}
_lock = threading.Lock()


def options(real: str, index: str) -> tuple[str, ...]:
    """The compiler's options for `gpu.cu`.

    real    the type of numbers: "float" or "double"
    index   the type that counts elements: "int" or "long long"
    """
    return (f"-DREAL={real}", f"-DINDEX={index}", f"-DSTRIP={STRIP}")


@functools.cache
def source() -> str:
    """The text of `gpu.cu` for the compiler: only ASCII, since CuPy may write it to a file."""
    return SOURCE.read_text("utf-8").encode("ascii", "ignore").decode()


def _kernel(xp, name, real, index):
    key = xp, xp.cuda.runtime.getDevice(), real, index
    with _lock:
        if key not in _modules:
            _modules[key] = xp.RawModule(code=source(), options=options(real, index)), {}
        module, functions = _modules[key]
        if name not in functions:
            functions[name] = module.get_function(name)
    return functions[name]


def _launch(name, count, *arguments, dtype=None):
    """Launch a kernel of `gpu.cu`, one thread for each result.

    count       results
    arguments   what comes after `count` in its declaration: arrays; `Index` for an INDEX, `Size`
                for a SIZE, other whole numbers for an int, floats for a REAL
    dtype       what REAL is: the dtype of the first array without it
    """
    if count == 0:
        return
    arrays = [a for a in arguments if hasattr(a, "dtype")]
    if not all(array.flags.c_contiguous for array in arrays):
        raise ValueError(f"{name}: an array is not contiguous")
    dtype = np.dtype(dtype or arrays[0].dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"{name}: arrays are {dtype}, expected float32 or float64")
    for array, kind in zip(arrays, _declared(name), strict=True):
        if array.dtype != (wanted := DTYPES.get(kind, dtype)):
            raise ValueError(f"{name}: an array is {array.dtype}, expected {wanted}: convert it")
    real = {4: "float", 8: "double"}[dtype.itemsize]
    sizes = [array.size for array in arrays] + [n for n in arguments if isinstance(n, Index)]
    small = max(count, *sizes) < SMALL
    index = np.int32 if small else np.int64

    given = [index(count)]
    for value in arguments:
        if isinstance(value, Size):
            given += index(value), divisor(value)
        elif hasattr(value, "dtype"):
            given.append(value)
        elif isinstance(value, Index):
            given.append(index(value))
        else:
            given.append(dtype.type(value) if isinstance(value, float) else np.int32(value))
    kernel = _kernel(xp_of(arrays[0]), name, real, "int" if small else "long long")
    kernel((min(-(-count // THREADS), BLOCKS),), (THREADS,), tuple(given))


DTYPES = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "long long": np.dtype(np.int64),
    "unsigned long long": np.dtype(np.uint64),
    "unsigned char": np.dtype(np.uint8),
}


@functools.cache
def _declared(name):
    """The types of a kernel's arrays, as its declaration in `gpu.cu` has them, in this order."""
    _, _, rest = source().partition(f"__global__ void {name}(")
    parameters = rest[: rest.index("{")].split(",")
    return [p.partition("*")[0].replace("const ", "").strip() for p in parameters if "*" in p]


class Index(int):
    """A number that counts elements, and may need 64 bits."""


class Size(int):
    """A size that a kernel divides by. It multiplies and shifts instead, see `divisor`."""


@functools.cache
def divisor(size: int) -> np.uint64:
    """(m, s) such that ⌊n / size⌋ = ⌊n · m / 2ˢ⌋ for 0 ≤ n < 2³¹, as one number: 256 m + s.

    With 2ᵏ ≥ size, s = 31 + k, m = ⌊2ˢ / size⌋ + 1 < 2³²: m · size exceeds 2ˢ by size at most. So
    n · m / 2ˢ exceeds n / size by less than 1 / size, and never reaches the next whole number.

    size     what is divided by, from 1 up to 2³¹
    Returns  np.uint64
    Source   Granlund and Montgomery 1994, "Division by invariant integers", theorem 4.2
    """
    size = max(1, int(size))
    shift = 31 + (size - 1).bit_length()
    return np.uint64((1 << shift) // size + 1 << 8 | shift)


def _contiguous(array, dtype=None):
    return xp_of(array).ascontiguousarray(array, dtype)


class _Windows:
    """The windows of a convolution or pooling: `output`, their number, and `WINDOWS` of gpu.cu."""

    def __init__(self, shape, kernel, stride, padding, dilation):
        self.height, self.width, self.channels = shape[-3:]
        self.output = plain.output_size(shape[-3:-1], kernel, stride, padding, dilation)
        self.size = kernel[0] * kernel[1] * self.channels
        before = padding[0][0], padding[1][0]
        sizes = map(Size, (*shape[-3:], *self.output, *kernel))
        self.arguments = (*sizes, *stride, *before, *dilation)
        # A 1×1 kernel's windows are the pixels themselves: nothing to copy.
        self.plain = tuple(kernel) == (1, 1) and tuple(stride) == (1, 1) and not np.any(padding)

    def pieces(self, networks, images, dtype):
        """Slices of the images whose windows fit the memory meant for them."""
        rows = max(1, self.output[0] * self.output[1] * networks)
        step = max(1, WINDOW_BYTES // max(1, rows * self.size * np.dtype(dtype).itemsize))
        return [(first, min(step, images - first)) for first in range(0, images, step)]

    def gather(self, x, first, some):
        """The windows of some images of every network as matrices (S, outputs, kh·kw·C)."""
        networks, images = x.shape[:2]
        if self.plain:
            return x[:, first : first + some].reshape(networks, -1, self.channels)
        count = some * self.output[0] * self.output[1]
        rows = xp_of(x).empty((networks, count, self.size), x.dtype)
        high, wide = self.output
        strips = Size(-(-wide // STRIP))
        threads = networks * some * high * strips * self.size
        _launch("gather", threads, x, rows, images, first, Size(some), strips, *self.arguments)
        return rows


# --- convolution --------------------------------------------------------------------------


def _finish(y, bias, activation):
    """Add the bias (R, C) to y (R, …, C) and apply the activation, in place."""
    if bias is None and activation is None:
        return
    given = y if bias is None else _contiguous(bias)
    own = Size(y.size // max(1, len(y))), Size(y.shape[-1])
    _launch("finish", y.size, y, given, *own, bias is not None, ACTIVATIONS[activation])


def convolve(x, w, bias, stride, padding, dilation, activation):
    """As `plain.convolve`: the windows of many images at a time, by cuBLAS."""
    x = _contiguous(x)
    (sources, images), (replicas, *kernel, _, out_channels) = x.shape[:2], w.shape
    windows = _Windows(x.shape, kernel, stride, padding, dilation)
    flat = w.reshape(replicas, windows.size, out_channels)
    y = xp_of(x).empty((replicas, images, *windows.output, out_channels), x.dtype)
    matrices = y.reshape(replicas, -1, out_channels)
    area = windows.output[0] * windows.output[1]
    for first, some in windows.pieces(sources, images, x.dtype):
        part = matrices[:, first * area : (first + some) * area]
        matmul(windows.gather(x, first, some), flat, out=part)
    _finish(y, bias, activation)
    return y


def convolve_and_pool(x, w, bias, stride, padding, dilation, activation, window):
    """As `plain.convolve_and_pool`."""
    y = convolve(x, w, None, stride, padding, dilation, None)
    given = y if bias is None else _contiguous(bias)
    replicas, images, *size, channels = y.shape
    pooled = [n // k for n, k in zip(size, window, strict=True)]
    largest = xp_of(y).empty((replicas, images, *pooled, channels), y.dtype)
    winners = xp_of(y).empty(largest.shape, np.uint8)
    own = Size(largest.size // max(1, replicas))
    place = own, *size, *map(Size, (channels, *pooled)), *window
    choices = bias is not None, ACTIVATIONS[activation]
    _launch("keep_largest", largest.size, y, given, largest, winners, *place, *choices)
    return largest, winners


activate_gradient = plain.activate_gradient  # LeNet's alone: batch norm has a kernel of its own


def unpool(g, winners, window, size):
    """As `plain.unpool`."""
    g = _contiguous(g)
    result = xp_of(g).empty((*g.shape[:2], *size, g.shape[-1]), g.dtype)
    place = *map(Size, (*size, g.shape[-1])), *g.shape[2:4], *window
    _launch("unpool", result.size, g, winners, result, *place)
    return result


def convolve_weight_gradient(x, g, kernel, stride, padding, dilation, out=None):
    """As `plain.convolve_weight_gradient`: many images at a time, by cuBLAS."""
    x, g = _contiguous(x), _contiguous(g)
    (sources, images), (replicas, *_, out_channels) = x.shape[:2], g.shape
    windows = _Windows(x.shape, kernel, stride, padding, dilation)
    area = windows.output[0] * windows.output[1]
    matrices = g.reshape(replicas, images * area, out_channels)
    shape = (replicas, *kernel, x.shape[-1], out_channels)
    if out is None or not out[:1].flags.c_contiguous:  # of R networks: a part of each one's vector
        out = xp_of(x).empty(shape, x.dtype)
    total = out.reshape(replicas, windows.size, out_channels)
    for first, some in windows.pieces(sources, images, x.dtype) or [(0, 0)]:
        rows = windows.gather(x, first, some)
        part = matrices[:, first * area : (first + some) * area]
        if first == 0:
            product = _long_product(rows, part, total)
            if product is not total:
                total[...] = product
        else:
            total += _long_product(rows, part)
    return out


def _long_product(x, g, out=None):
    """xᵀ g, where the sums run over many rows and the result is small.

    One block of threads would compute each sum, and most of the card would have nothing to do. So
    the rows are cut into parts, one product for each; `sum_rows` adds these, always in the same
    order.

    x        (1 | R, M, K)
    g        (R, M, L)
    out      an array (R, K, L) to write to, if there is one part only
    Returns  (R, K, L)
    """
    (sources, rows, k), (replicas, _, length) = x.shape, g.shape
    tiles = replicas * -(-k // TILE) * -(-length // TILE)
    most = min(FILL // max(1, tiles), rows // SHORTEST)
    parts = next((n for n in range(most, 1, -1) if rows % n == 0), 1)
    if parts == 1:
        return matmul(x.swapaxes(-1, -2), g, out)
    x = x.reshape(sources, parts, -1, k).swapaxes(-1, -2)
    g = g.reshape(replicas, parts, -1, length)
    if sources == replicas:
        products = matmul(x, g)
    else:  # the same x for all networks, for which cuBLAS has no stride
        products = xp_of(x).empty((replicas, parts, k, length), x.dtype)
        for network in range(replicas):
            matmul(x[0], g[network], products[network])
    return sum_rows(products.reshape(replicas, parts, -1)).reshape(replicas, k, length)


def convolve_input_gradient(g, w, shape, stride, padding, dilation):
    """As `plain.convolve_input_gradient`: many images at a time, by cuBLAS.

    Every pixel then adds up its shares from all windows that saw it.
    """
    g = _contiguous(g)
    replicas, *kernel, channels, out_channels = w.shape
    images = shape[0]
    windows = _Windows(shape, kernel, stride, padding, dilation)
    area = windows.output[0] * windows.output[1]
    matrices = g.reshape(replicas, images * area, out_channels)
    flat = w.reshape(replicas, windows.size, out_channels).swapaxes(-1, -2)
    if windows.plain:
        return matmul(matrices, flat).reshape(replicas, *shape)
    x_gradient = xp_of(g).empty((replicas, *shape), g.dtype)
    for first, some in windows.pieces(replicas, images, g.dtype):
        rows = matmul(matrices[:, first * area : (first + some) * area], flat)
        count = replicas * some * shape[1] * shape[2] * channels
        place = images, first, Size(some)
        _launch("spread", count, rows, x_gradient, *place, *windows.arguments)
    return x_gradient


# --- depthwise convolution ----------------------------------------------------------------


def depthwise(x, w, bias, stride, padding, dilation, activation):
    """As `plain.depthwise`."""
    x, w = _contiguous(x), _contiguous(w)
    (sources, images), (replicas, *kernel, channels) = x.shape[:2], w.shape
    windows = _Windows(x.shape, kernel, stride, padding, dilation)
    y = xp_of(x).empty((replicas, images, *windows.output, channels), x.dtype)
    given = w if bias is None else _contiguous(bias)
    choices = Size(images), sources == 1, bias is not None, ACTIVATIONS[activation]
    _launch("depthwise", y.size, x, w, given, y, *choices, *windows.arguments)
    return y


def depthwise_weight_gradient(x, g, kernel, stride, padding, dilation):
    """As `plain.depthwise_weight_gradient`: each thread adds up a few outputs' shares."""
    x, g = _contiguous(x), _contiguous(g, x.dtype)
    (sources, images), (replicas, *_, channels) = x.shape[:2], g.shape
    windows = _Windows(x.shape, kernel, stride, padding, dilation)
    high, wide = windows.output
    rows, nine = images * high, tuple(kernel) == (3, 3)
    step = max(-(-ROWS // wide), -(-replicas * rows * channels // LANES))
    parts = max(1, -(-rows // step))
    partial = xp_of(x).empty((replicas, parts, *kernel, channels), x.dtype)
    split = images, sources == 1, Size(parts), step
    name, threads = "depthwise_weight_gradient", partial.size
    if nine:
        name, threads = "depthwise_weight_gradient_3x3", partial.size // 9
    _launch(name, threads, x, g, partial, *split, *windows.arguments)
    return sum_rows(partial.reshape(replicas, parts, -1)).reshape(replicas, *kernel, channels)


def depthwise_input_gradient(g, w, shape, stride, padding, dilation):
    """As `plain.depthwise_input_gradient`."""
    g, w = _contiguous(g, w.dtype), _contiguous(w)
    replicas, *kernel, _ = w.shape
    windows = _Windows(shape, kernel, stride, padding, dilation)
    x_gradient = xp_of(g).empty((replicas, *shape), g.dtype)
    arrays = g, w, x_gradient
    place = Size(shape[0]), *windows.arguments
    _launch("depthwise_input_gradient", x_gradient.size, *arrays, *place)
    return x_gradient


# --- pooling ------------------------------------------------------------------------------


def max_pool(x, window, stride, padding, dilation):
    """As `plain.max_pool`."""
    x = _contiguous(x)
    windows = _Windows(x.shape, window, stride, padding, dilation)
    y = xp_of(x).empty((len(x), *windows.output, x.shape[-1]), x.dtype)
    _launch("max_pool", y.size, x, y, *windows.arguments)
    return y


def max_pool_gradient(g, x, y, window, stride, padding, dilation):
    """As `plain.max_pool_gradient`."""
    g, x, y = (_contiguous(array, x.dtype) for array in (g, x, y))
    windows = _Windows(x.shape, window, stride, padding, dilation)
    x_gradient = xp_of(x).empty(x.shape, x.dtype)
    _launch("max_pool_gradient", x.size, g, x, y, x_gradient, *windows.arguments)
    return x_gradient


def mean_pool(x, divisor, window, stride, padding, dilation):
    """As `plain.mean_pool`."""
    x, divisor = _contiguous(x), _contiguous(divisor)
    windows = _Windows(x.shape, window, stride, padding, dilation)
    y = xp_of(x).empty((len(x), *windows.output, x.shape[-1]), x.dtype)
    _launch("mean_pool", y.size, x, divisor, y, *windows.arguments)
    return y


def mean_pool_gradient(g, divisor, shape, window, stride, padding, dilation):
    """As `plain.mean_pool_gradient`."""
    g, divisor = _contiguous(g, divisor.dtype), _contiguous(divisor)
    windows = _Windows(shape, window, stride, padding, dilation)
    x_gradient = xp_of(g).empty(shape, g.dtype)
    _launch("mean_pool_gradient", x_gradient.size, g, divisor, x_gradient, *windows.arguments)
    return x_gradient


# --- batch norm ---------------------------------------------------------------------------


def _rows_a_thread(shape):
    """How many rows of (R, M, C) one thread adds up: few, but not more threads than `LANES`."""
    replicas, rows, channels = shape
    return max(1, min(rows, max(ROWS, -(-replicas * rows * channels // LANES))))


def norm_moments(rows):
    """As `plain.norm_moments`: in parts, whose results are merged in float64."""
    xp, rows = xp_of(rows), _contiguous(rows)
    replicas, count, channels = rows.shape
    step = _rows_a_thread(rows.shape)
    parts = -(-count // step)
    found = xp.empty((2, parts, replicas, 1, channels), np.float64)
    given = Index(count), Size(channels), Size(replicas), step
    _launch("norm_moments", found[0].size, rows, *found, *given)
    last = False
    while not last:
        group = ROWS if parts > ROWS else parts
        merged = xp.empty((2, -(-parts // group), *found.shape[2:]), np.float64)
        last = merged.shape[1] == 1
        own = *map(Index, (count, step, parts)), group, Size(replicas * channels), last
        _launch("merge_parts", merged[0].size, *found, *merged, *own, dtype=rows.dtype)
        found, parts, step = merged, merged.shape[1], step * group
    return found[0, 0], found[1, 0]


def norm_factors(mean, variance, scale, shift, epsilon):
    """As `plain.norm_factors`: in one launch."""
    mean, variance, shift = map(_contiguous, (mean, variance, shift))
    given = shift if scale is None else _contiguous(scale)
    found = xp_of(mean).empty((3, *mean.shape), mean.dtype)
    arrays = mean, variance, given, shift, *found
    _launch("norm_factors", mean.size, *arrays, scale is not None, float(epsilon))
    return tuple(found)


def normalize(rows, factor, offset, replicas, activation):
    """As `plain.normalize`."""
    rows, factor, offset = map(_contiguous, (rows, factor, offset))
    y = xp_of(rows).empty((replicas, *rows.shape[1:]), rows.dtype)
    sizes = Size(y.size // max(1, replicas)), Size(rows.shape[-1])
    own = *sizes, len(rows) < replicas, ACTIVATIONS[activation]
    _launch("normalize", y.size, rows, factor, offset, y, *own)
    return y


def norm_sums(g, rows, center, factor, offset, activation):
    """As `plain.norm_sums`, but returns g, not g': each pass computes g' again."""
    g, *arrays = (_contiguous(a, rows.dtype) for a in (g, rows, center, factor, offset))
    replicas, count, channels = g.shape
    step = _rows_a_thread(g.shape)
    found = xp_of(g).empty((2, -(-count // step), replicas * channels), np.float64)
    choices = len(rows) < replicas, ACTIVATIONS[activation]
    given = Index(count), Size(channels), Size(replicas), step, *choices
    _launch("norm_sums", found[0].size, g, *arrays, *found, *given)
    return g, *sum_rows(found).reshape(2, replicas, 1, channels)


def norm_slopes(total, product, center, inverse, factor, count):
    """As `plain.norm_slopes`: in one launch."""
    arrays = [*map(_contiguous, (total, product, center, inverse, factor))]
    found = xp_of(factor).empty((4, *factor.shape), factor.dtype)
    _launch("norm_slopes", factor.size, *arrays, *found, Index(count), dtype=factor.dtype)
    return tuple(found)


def norm_gradient(g, rows, factor, offset, through_moments, activation):
    """As `plain.norm_gradient`."""
    g, rows, factor, offset = map(_contiguous, (g, rows, factor, offset))
    slope, constant = map(_contiguous, through_moments or (factor, factor))
    x_gradient = xp_of(g).empty(g.shape, g.dtype)
    sizes = Size(g.size // max(1, len(g))), Size(g.shape[-1])
    own = *sizes, len(rows) < len(g), through_moments is not None
    arrays = g, rows, factor, offset, slope, constant, x_gradient
    _launch("norm_gradient", g.size, *arrays, *own, ACTIVATIONS[activation])
    return x_gradient


# --- separable convolutions ---------------------------------------------------------------


def separable(x, expand, filters, project, stride, padding, activations):
    """As `plain.separable`."""
    steps = convolve, depthwise
    return plain.in_three_steps(steps, x, expand, filters, project, stride, padding, activations)


# --- sums, random numbers, optimizers, moments --------------------------------------------


def sum_rows(array):
    """As `plain.sum_rows`: each thread adds a few rows of one column.

    This is repeated until one row is left. No sum has many terms, so none loses digits.
    """
    array = _contiguous(array)
    *lead, rows, channels = array.shape
    if rows == 0:
        return xp_of(array).zeros((*lead, channels), array.dtype)
    while rows > 1:
        parts = -(-rows // ROWS)
        sums = xp_of(array).empty((*lead, parts, channels), array.dtype)
        own = Index(rows), Size(channels), Size(parts), ROWS
        _launch("sum_rows", sums.size, array, sums, *own)
        array, rows = sums, parts
    return array.reshape(*lead, channels)


class Seeds:
    """Seeds on the device. A recorded step takes its random numbers from them, not a Generator.

    table   (calls, S) uint64: a row for every call of `uniform`, a seed for each network
    """

    def __init__(self, table: Array):
        self.rows = iter(table)


def uniform(rng, shape, like):
    """As `plain.uniform`, but other numbers, computed on the device.

    The Generator only gives a seed. Each number has 24 random bits. `rng` may also be `Seeds`.

    Source   Philox 4×32-10: Salmon et al. 2011, SC '11
    """
    xp = xp_of(like)
    if isinstance(rng, Seeds):
        seeds = next(rng.rows)
    else:
        generators = rng if isinstance(rng, (list, tuple)) else [rng]
        numbers = [int(generator.integers(SEEDS)) for generator in generators]
        seeds = xp.asarray(np.array(numbers, np.uint64))
    values = xp.empty(shape, np.float32)
    size = values.size // seeds.size
    count = seeds.size * -(-size // 4)
    _launch("uniform", count, seeds, values, Index(size), dtype=np.float32)
    return values


def _launches(*arrays):
    """The arrays of one launch for all networks; or, if θ is `aligned`, of one for each network.

    arrays   (R, P); or (R,), a number for each network; or (1,), one for all; or None
    """
    single = arrays[0].ndim < 2
    if single or all(array is None or array.flags.c_contiguous for array in arrays):
        return [arrays]

    def own(array, network):
        if array is None or len(array) == 1:
            return array
        return array[network] if array.ndim > 1 else array[network : network + 1]

    return [[own(array, network) for array in arrays] for network in range(len(arrays[0]))]


def step_sgd(theta, gradient, velocity, rates, momentum, decay):
    """As `plain.step_sgd`: one launch, or one for each network of an `aligned` θ."""
    given, settings = theta if velocity is None else velocity, (float(momentum), float(decay))
    for vectors in _launches(theta, gradient, given, rates):
        own = Index(theta.shape[-1]), vectors[-1].size > 1, velocity is not None
        _launch("step_sgd", vectors[0].size, *vectors, *own, *settings)


def step_adam(theta, gradient, first, second, rates, epsilon, beta1, beta2):
    """As `plain.step_adam`: one launch, or one for each network of an `aligned` θ."""
    settings = float(1 - beta1), float(1 - beta2)
    for *vectors, rate, epsilon_of in _launches(theta, gradient, first, second, rates, epsilon):
        own = Index(theta.shape[-1]), rate.size > 1, *settings
        _launch("step_adam", vectors[0].size, *vectors, rate, epsilon_of, *own)


def fold_moments(theta, first, offset, m2, n):
    """As `plain.fold_moments`: one launch, or one for each network of an `aligned` θ."""
    for vectors in _launches(theta, first, offset, m2, n):
        _launch("fold_moments", vectors[0].size, *vectors)


def fold_average(mean, theta, weight):
    """As `plain.fold_average`: one launch, or one for each network of an `aligned` θ."""
    for vectors in _launches(mean, theta, weight):
        _launch("fold_average", vectors[0].size, *vectors, dtype=theta.dtype)
