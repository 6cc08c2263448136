"""What a card would be given, with the real shapes of all networks: on a GPU without memory.

`shapes_only` looks at every launch (a legal grid, every index within the bits that count it, every
pointer aligned) and at every product (leading dimensions, how many, within its arrays).
"""

import collections

import numpy as np
import pytest
import shapes_only

import minires
from minires.arrays import aligned
from minires.kernels import gpu
from minires.training import capture, loop
from minires.training.optimizers import SGD, Adam

PHOTOS = {"variant": "torch", "dropout": 0.2}
NETWORKS = {
    "lenet": minires.lenet,
    "lenet_classic": minires.lenet_classic,
    "mobilenet_v1": lambda: minires.mobilenet_v1(input_shape=(224, 224, 3), dropout=0.2),
    "mobilenet_v2": lambda: minires.mobilenet_v2(input_shape=(224, 224, 3), width=1.0, **PHOTOS),
    "inception_v3": lambda: minires.inception_v3(input_shape=(299, 299, 3), width=1.0, **PHOTOS),
}


@pytest.fixture
def device():
    if (reason := shapes_only.emulated_cupy.missing()) is not None:
        pytest.skip(reason)
    with shapes_only.installed() as cupy:
        yield cupy


def arrays(device, model, batch, replicas, dtype=np.float32):
    lead = () if replicas is None else (replicas,)
    theta, stats = (device.empty((*lead, n), dtype) for n in (model.size, model.stats_size))
    images = device.empty((*lead, batch, *model.input_shape), dtype)
    return aligned(theta), stats, images, device.empty((*lead, batch), np.int64)


def launches_of(device, function, *arguments, **settings):
    device.launches.clear()
    function(*arguments, **settings)
    return list(device.launches)


def launches_of_a_step(device, model, batch, replicas=None):
    """Those of a loss and its gradient, on memory that nothing else uses."""
    shapes_only.reset()
    theta, stats, images, labels = arrays(device, model, batch, replicas)
    rng = np.random.default_rng(0)
    rng = rng if replicas is None else rng.spawn(replicas)
    return launches_of(device, model.loss_and_gradient, theta, images, labels, stats=stats, rng=rng)


def problems():
    """(network, batch, networks side by side); of the large networks some are slow."""
    for name in NETWORKS:
        small = name.startswith("lenet")
        for replicas in (None, 1, 10, 50):
            for batch in (1, 2, 17, 64, 128, 256) if small else (1, 64, 256):
                fast = small or (batch == 64 and replicas in (None, 50))
                marks = [] if fast else [pytest.mark.slow]
                yield pytest.param(name, batch, replicas, marks=marks)


@pytest.mark.parametrize(("name", "batch", "replicas"), [*problems()])
def test_every_launch_of_a_step_and_of_a_prediction_is_legal(device, name, batch, replicas):
    model = NETWORKS[name]()
    found = launches_of_a_step(device, model, batch, replicas)
    assert {"gather", "product", "sum_rows"} <= {launch.name for launch in found}
    if batch * (replicas or 1) <= 64:
        assert all(launch.bits in (0, 32) for launch in found), "small arrays, large index"
    theta, stats, images, _ = arrays(device, model, batch, replicas)
    assert launches_of(device, model.predict, theta, images, stats)


@pytest.mark.slow
def test_arrays_beyond_32_bits_are_counted_with_64(device):
    model = NETWORKS["inception_v3"]()
    bits = {launch.bits for launch in launches_of_a_step(device, model, 256, 50)}
    assert bits >= {32, 64}


@pytest.mark.parametrize("make", [lambda: SGD(0.1, momentum=0.9), lambda: Adam(1e-3)])
@pytest.mark.parametrize("replicas", [None, 10, 50])
def test_a_whole_update_of_lenet(device, make, replicas):
    """With the step of the optimizer, dropout, the moments and a moving average."""
    model = minires.lenet()
    theta, stats, images, labels = arrays(device, model, 600, None)
    if replicas is not None:
        theta, stats = arrays(device, model, 1, replicas)[:2]
    seeds = 3 if replicas is None else list(range(replicas))
    order, rng = loop.order_and_dropout(600, 128, seeds, "training")
    order = [next(order) for _ in range(3)]
    kept = [(minires.Moments(theta.shape), theta), (minires.EMA(0.99), theta)]
    # Of labels without values nothing can be said: they are not checked here.
    task = object.__new__(loop.Task)
    for field, value in {"model": model, "images": images, "labels": labels}.items():
        object.__setattr__(task, field, value)
    steps = capture.RecordedSteps(
        task, theta, stats, make(), order, rng, moments=kept, record=False
    )
    with steps:
        counts = [len(launches_of(device, steps.take)) for _ in order]
    assert counts[1] == counts[2]
    names = collections.Counter(launch.name for launch in device.launches)
    assert {"uniform", "fold_moments", "take"} <= set(names)
    assert names["step_sgd"] + names["step_adam"] == (replicas or 1)


# --- alignment, and long sums -------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenet_v2", "inception_v3"])
def test_the_products_of_one_network_begin_at_16_bytes(device, name):
    """All but the first layer's, of 27 rows, and the last one's gradients, of 1,001 places."""
    model = NETWORKS[name]()
    found = launches_of_a_step(device, model, 64)
    products = [launch for launch in found if launch.name == "product"]
    assert len(products) > 100
    assert {launch.shape for launch in products if not launch.aligned} <= {
        launch.shape for launch in products if 27 in launch.shape
    }


@pytest.mark.parametrize("replicas", [10, 50])
def test_networks_side_by_side_begin_where_one_does(device, replicas):
    """LeNet's 3,274,634 weights are no multiple of four: without gaps only a quarter would."""
    model, shares = minires.lenet(), []
    assert model.size % 4
    for number in (None, replicas):
        found = launches_of_a_step(device, model, 128, number)
        products = [launch for launch in found if launch.name == "product"]
        whole = sum(launch.work for launch in products)
        shares.append(sum(launch.work for launch in products if launch.aligned) / whole)
    assert shares[1] == pytest.approx(shares[0])
    assert shares[0] > 0.96  # all but the first layer, of 25 rows, and the last one, of 10 columns


def test_no_product_has_a_long_sum_and_a_small_result(device):
    """One block of threads would add it up, and the rest of the card would wait."""
    for name in ("lenet", "lenet_classic", "mobilenet_v2", "inception_v3"):
        for launch in launches_of_a_step(device, NETWORKS[name](), 64):
            if launch.name == "product":
                rows, columns, inner, many = launch.shape
                blocks = -(-rows // gpu.TILE) * -(-columns // gpu.TILE) * many
                assert inner < 4 * gpu.SHORTEST or blocks > gpu.FILL // 4, (name, launch)


# --- what the checks would catch ----------------------------------------------------------


def test_the_checks_refuse_what_a_card_would(device):
    text = 'extern "C" __global__ void f(INDEX count, const REAL* x, int n) {}'
    kernel = device.RawModule(code=text, options=gpu.options("float", "int")).get_function("f")
    x, number = device.empty(100, np.float32), np.int32(100)
    for grid, threads in (((0,), (256,)), ((1 << 31,), (256,)), ((1,), (2048,))):
        with pytest.raises(AssertionError):
            kernel(grid, threads, (number, x, number))
    with pytest.raises(AssertionError, match="exceeds 32 bits"):
        kernel((1,), (256,), (np.int32((1 << 31) - 1), x, number))
    with pytest.raises(AssertionError):  # a number of 64 bits where 32 are declared
        kernel((1,), (256,), (number, x, np.int64(3)))
    a, b = device.empty((6, 4), np.float32), device.empty((4, 6), np.float32)
    gpu.matmul(a, b)
    assert device.launches[-1].shape == (6, 6, 4, 1)
    assert not device.launches[-1].aligned  # rows of 6 floats
    shapes_only._blocks[-2] = (b.data.ptr, b.nbytes - 4)
    with pytest.raises(AssertionError, match="reaches beyond its array"):
        gpu.matmul(a, b)
