"""The whole engine on a GPU gives what it gives on a CPU: on a stand-in, or on a card (`-m gpu`).

Every operation and its gradients, every layer and network, steps of the optimizers, moments,
members, metrics: equal up to rounding. What is promised bit for bit is compared bit for bit.
"""

import numpy as np
import pytest
from helpers import assert_close

import minires
from minires.arrays import to_device, to_host
from minires.engine import ops
from minires.engine.autodiff import Tensor, gradients, variable
from minires.engine.batch_norm import batch_moments, batch_norm
from minires.engine.convolution import conv2d, depthwise_conv2d, max_pool, mean_pool
from minires.kernels import gpu, plain
from minires.resampling import averages
from minires.training import loop, metrics
from minires.training.optimizers import SGD, Adam


def pulled(function, arrays, seed):
    """A function's result, and its gradients with respect to every array."""
    variables = [variable(array) for array in arrays]
    result = function(*variables)
    return [result.data, *gradients(result, variables, seed)]


def assert_same(function, *arrays, device, rng, tolerance=1e-13):
    """Result and gradients of a function, on both devices."""
    result = function(*map(Tensor, arrays))
    seed = rng.standard_normal(result.shape).astype(result.dtype)
    expected = pulled(function, arrays, seed)
    actual = pulled(function, [device.asarray(a) for a in arrays], device.asarray(seed))
    for ours, theirs in zip(actual, expected, strict=True):
        assert type(ours) is device.ndarray
        assert ours.dtype == theirs.dtype
        assert_close(ours.get(), theirs, tolerance)


# --- operations ---------------------------------------------------------------------------

POSITIVE = ("divide", "log", "power", "sqrt")
BINARY = ("add", "subtract", "multiply", "divide", "maximum", "minimum")
UNARY = ("negative", "exp", "log", "sqrt", "tanh", "sigmoid", "relu", "relu6", "log_softmax")
SETTINGS = {
    "power": {"exponent": 3},
    "clip": {"low": -0.5, "high": 0.5},
    "sum": {"axis": (0, -1), "keepdims": True},
    "mean": {"axis": 1},
    "reshape": {"shape": (5, 12)},
    "broadcast_to": {"shape": (2, 3, 4, 5)},
    "transpose": {"axes": (2, 0, 1)},
    "take": {"index": (slice(None), slice(1, 3))},
}


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_array(device, rng, name):
    x = 3 * rng.standard_normal((3, 4, 5))
    x = abs(x) + 0.1 if name in POSITIVE else x
    assert_same(getattr(ops, name), x, device=device, rng=rng)
    assert_same(getattr(ops, name), x.astype(np.float32), device=device, rng=rng, tolerance=1e-6)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 1)])
def test_functions_of_two_arrays(device, rng, name, shape):
    x, y = rng.standard_normal((3, 4, 5)), rng.standard_normal(shape)
    assert_same(getattr(ops, name), x, abs(y) + 0.1, device=device, rng=rng)


@pytest.mark.parametrize("name", SETTINGS)
def test_functions_with_settings(device, rng, name):
    def function(x):
        return getattr(ops, name)(x, **SETTINGS[name])

    assert_same(function, rng.standard_normal((3, 4, 5)), device=device, rng=rng)


def test_a_repeated_index_adds_on_the_device_too(device, rng):
    x = rng.standard_normal((5, 2))
    index = np.array([4, 0, 4])
    variables = variable(x), variable(device.asarray(x))
    there = ops.take(variables[1], index=device.asarray(index))
    expected = gradients(ops.take(variables[0], index=index), variables[:1])[0]
    assert_close(gradients(there, variables[1:])[0].get(), expected)


def test_products_biases_and_sums(device, rng):
    x, w, b = rng.standard_normal((3, 6, 5)), rng.standard_normal((3, 5, 2)), rng.random((3, 2))
    assert_same(ops.dense, x, w, b, device=device, rng=rng)
    assert_same(ops.dense, x[0], w, b, device=device, rng=rng)
    assert_same(ops.dense, x, w[0], b[0], device=device, rng=rng)
    assert_same(lambda x, y: ops.concatenate([x, y]), x, x[..., :2], device=device, rng=rng)
    assert_same(ops.global_mean, rng.random((2, 3, 4, 4, 2)), device=device, rng=rng)
    assert_same(ops.flatten, rng.random((3, 4, 4, 2)), device=device, rng=rng)


@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_the_loss(device, rng, smoothing):
    logits, labels = 5 * rng.standard_normal((3, 6, 4)), rng.integers(0, 4, (3, 6))

    def loss(logits):
        there = device.asarray(labels) if type(logits.data) is device.ndarray else labels
        return ops.softmax_cross_entropy(logits, there, smoothing=smoothing)

    assert_same(loss, logits, device=device, rng=rng)


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("pool", [None, 2])
def test_convolutions(device, rng, lead, pool):
    x, b = rng.standard_normal((*lead, 3, 6, 7, 2)), rng.standard_normal((*lead, 4))
    w, d = rng.standard_normal((*lead, 3, 3, 2, 4)), rng.standard_normal((*lead, 3, 3, 2))
    for images in (x, x[0]) if lead else (x,):
        conv = {} if pool is None else {"pool": pool}

        def whole(x, w, b, conv=conv):
            return conv2d(x, w, b, padding="same", activation="relu", **conv)

        def depthwise(x, d, b):
            return depthwise_conv2d(x, d, b, stride=2, padding=1, activation="relu6")

        assert_same(whole, images, w, b, device=device, rng=rng)
        assert_same(depthwise, images, d, b[..., :2], device=device, rng=rng)


def test_pooling(device, rng):
    x = rng.standard_normal((2, 3, 6, 7, 2))
    assert_same(max_pool, x, device=device, rng=rng)
    for counted in (True, False):

        def pool(x, counted=counted):
            return mean_pool(x, window=3, stride=1, padding=1, count_padding=counted)

        assert_same(pool, x, device=device, rng=rng)


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize("shape", [(5, 3, 3, 4), (2, 5, 3, 3, 4), (6, 4)])
@pytest.mark.parametrize("of_batch", [True, False])
def test_batch_norm(device, rng, activation, shape, of_batch):
    x = 2 + 3 * rng.standard_normal(shape)
    own = 4 if len(shape) >= 4 else 2
    size = (*shape[:-own], shape[-1])
    scale, shift = rng.standard_normal(size), rng.standard_normal(size)

    def norm(x, scale, shift):
        if of_batch:
            mean, variance = batch_moments(x.data)
        else:
            mean, variance = 0.1 * shift.data, shift.data**2 + 1
        settings = {"mean": mean, "variance": variance, "activation": activation}
        return batch_norm(x, scale, shift, of_batch=of_batch, **settings)

    assert_same(norm, x, scale, shift, device=device, rng=rng, tolerance=1e-12)
    for ours, theirs in zip(batch_moments(device.asarray(x)), batch_moments(x), strict=True):
        assert_close(ours.get(), theirs, 1e-13)


def test_batch_norm_with_statistics_of_another_type(device, rng):
    """A vector of statistics is single unless one asks for more."""
    x, shift = rng.standard_normal((3, 3, 3, 4)), rng.standard_normal(4)
    mean, variance = np.float32([1, 0, 2, -1]), np.float32([1, 2, 3, 4])

    def norm(x, shift):
        there = device.asarray if type(x.data) is device.ndarray else np.asarray
        return batch_norm(x, None, shift, mean=there(mean), variance=there(variance))

    assert_same(norm, x, shift, device=device, rng=rng)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 3, 3, 4)])
def test_batch_norm_of_nothing(device, rng, shape):
    shift = rng.standard_normal((*shape[:-4], 4))

    def norm(x, shift):
        moments = {"mean": 0 * shift.data, "variance": 0 * shift.data + 1}
        return batch_norm(x, None, shift, **moments, activation="relu")

    assert_same(norm, np.zeros(shape), shift, device=device, rng=rng)


# --- networks -----------------------------------------------------------------------------


def networks():
    small = {"dropout": 0.0, "input_shape": (28, 28, 1), "classes": 10}
    return {
        "lenet": minires.lenet(channels=(4, 6), hidden=20, **small),
        "lenet_classic": minires.lenet_classic(**small),
        "mobilenet_v1": minires.mobilenet_v1(width=0.25, **small),
        "mobilenet_v2": minires.mobilenet_v2(width=0.25, **small),
        "inception_v3": minires.inception_v3(width=0.1, **small),
    }


NETWORKS = tuple(networks())


def batch_for(model, rng, dtype, lead=(), count=5):
    images = rng.standard_normal((*lead, count, *model.input_shape)).astype(dtype)
    return images, rng.integers(0, model.classes, (*lead, count))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("replicas", [None, 2])
def test_networks(device, rng, name, replicas):
    """Of one network and of two at once."""
    compare_with_the_cpu(device, rng, name, replicas, gradient=1e-9, statistics=1e-11, output=1e-10)


def compare_with_the_cpu(device, rng, name, replicas, gradient, statistics, output):
    """Loss, gradient, statistics and predictions; the last three arguments are tolerances."""
    model = networks()[name]
    theta = model.init(rng, replicas=replicas, dtype=np.float64)
    stats = model.init_stats(replicas, dtype=np.float64)
    images, labels = batch_for(model, rng, np.float64)
    there = [device.asarray(a) for a in (theta, images, labels, stats)]
    expected = model.loss_and_gradient(theta, images, labels, stats)
    actual = model.loss_and_gradient(*there)
    assert_close(to_host(actual[0]), expected[0], 1e-12)
    assert_close(actual[1].get(), expected[1], gradient)
    assert_close(there[3].get(), stats, statistics)
    expected = model.predict(theta, images, stats)
    actual = model.predict(there[0], there[1], there[3])
    assert type(actual) is device.ndarray
    assert_close(actual.get(), expected, output)


@pytest.mark.parametrize("name", ["lenet", "mobilenet_v2"])
def test_networks_in_single_precision(device, rng, name):
    """Against float64. Rounding carries some value across the kink of a ReLU in some batches."""
    model, gaps = networks()[name], []
    for _ in range(3):
        theta, stats = model.init(rng), model.init_stats()
        images, labels = batch_for(model, rng, np.float32, count=8)
        exact = [array.astype(float) for array in (theta, images, stats)]
        expected = model.loss_and_gradient(*exact[:2], labels, exact[2])
        there = [device.asarray(a) for a in (theta, images, labels, stats)]
        actual = model.loss_and_gradient(*there)
        assert actual[1].dtype == np.float32
        assert_close(to_host(actual[0]), expected[0], 1e-5)
        gap = np.linalg.norm(actual[1].get() - expected[1]) / np.linalg.norm(expected[1])
        gaps.append(gap)
    assert min(gaps) < 3e-5
    assert max(gaps) < 0.1


def test_networks_side_by_side_are_the_same_as_one_by_one(device, rng):
    model = networks()["lenet"]
    theta = model.init(rng, replicas=3, dtype=np.float64, device="gpu")
    images, labels = batch_for(model, rng, np.float64, lead=(3,))
    images, labels = device.asarray(images), device.asarray(labels)
    losses, together = model.loss_and_gradient(theta, images, labels)
    for r in range(3):
        loss, alone = model.loss_and_gradient(theta[r], images[r], labels[r])
        assert_close(float(loss), float(losses[r]), 1e-13)
        assert_close(alone.get(), together[r].get(), 1e-12)


@pytest.mark.parametrize("lead", [(), (3,)])
def test_the_calibration_error_is_the_same_bit_for_bit(device, rng, lead):
    """Its bins are added up in one order, on the host."""
    p = rng.dirichlet(np.ones(4), (*lead, 500))
    labels = rng.integers(0, 4, 500)
    ours = metrics.ece(device.asarray(p), device.asarray(labels))
    np.testing.assert_array_equal(ours, metrics.ece(p, labels))


def test_batch_norm_is_folded_once_for_all_batches(device, rng, monkeypatch):
    model = networks()["mobilenet_v1"]
    monkeypatch.setattr(model, "batch", 2)
    theta = model.init(rng, device="gpu")
    stats = model.init_stats(device="gpu")
    images = device.asarray(batch_for(model, rng, np.float32)[0])
    expected, folds, fold = model.predict(theta, images, stats).get(), [], model.fold
    monkeypatch.setattr(model, "fold", lambda *arrays: folds.append(1) or fold(*arrays))
    found = loop.predict(model, theta, images, stats, quiet=True)
    np.testing.assert_array_equal(found, expected)
    assert folds == [1]


# --- dropout ------------------------------------------------------------------------------


def test_dropout_drops_its_share_and_keeps_the_mean(device):
    x = device.ones((100, 1000), np.float32)
    y = ops.dropout(x, rate=0.3, rng=np.random.default_rng(1)).get()
    assert set(np.unique(y)) == {0, np.float32(1 / 0.7)}
    assert abs((y == 0).mean() - 0.3) < 0.005
    again = ops.dropout(x, rate=0.3, rng=np.random.default_rng(1)).get()
    other = ops.dropout(x, rate=0.3, rng=np.random.default_rng(2)).get()
    np.testing.assert_array_equal(y, again)
    assert abs(((y == 0) & (other == 0)).mean() - 0.09) < 0.005


def test_each_network_drops_what_it_would_drop_alone(device):
    x = device.ones((3, 7, 5), np.float32)
    together = ops.dropout(x, rate=0.5, rng=[np.random.default_rng(s) for s in range(3)])
    for seed in range(3):
        alone = ops.dropout(x[seed], rate=0.5, rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(alone.get(), together[seed].get())


def test_the_gradient_passes_where_dropout_let_through(device):
    x = variable(device.ones((50, 4), np.float32))
    y = ops.dropout(x, rate=0.5, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(gradients(y, [x])[0].get(), y.data.get())


# --- training -----------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda rate: SGD(rate),
    "momentum": lambda rate: SGD(rate, momentum=0.9, weight_decay=0.01),
    "adam": lambda rate: Adam(rate),
    "adam, epsilon inside": lambda rate: Adam(rate, epsilon=1e-3, epsilon_inside=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rates", ["one", "each"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_of_optimizers(device, rng, name, rates, dtype):
    rate = 0.1 if rates == "one" else np.array([[0.1], [0.02], [0.3]])
    theta = rng.standard_normal((3, 50)).astype(dtype)
    there = device.asarray(theta)
    ours, theirs = OPTIMIZERS[name](rate), OPTIMIZERS[name](rate)
    for _ in range(4):
        gradient = rng.standard_normal((3, 50)).astype(dtype)
        ours.step(there, device.asarray(gradient))
        theirs.step(theta, gradient)
        assert_close(there.get(), theta, 1e-6 if dtype == np.float32 else 1e-14)
    for vector in ours.vectors:
        assert_close(to_host(getattr(ours, vector)), getattr(theirs, vector), 1e-6)


@pytest.mark.parametrize("options", [{}, {"burn_in": 2, "stride": 3, "ddof": 1}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_and_members(device, rng, options, dtype):
    ours, theirs = (minires.Moments((3, 40), **options) for _ in range(2))
    for _ in range(12):
        theta = (300 + rng.standard_normal((3, 40))).astype(dtype)
        ours.update(device.asarray(theta))
        theirs.update(theta)
    assert ours.count == theirs.count > 2
    tolerance = 1e-7 if dtype == np.float32 else 1e-15
    assert_close(ours.mean.get(), theirs.mean, tolerance)
    assert_close(ours.variance.get(), theirs.variance, 2 * tolerance, scale=4)
    members = ours.sample(4, np.random.default_rng(3))
    assert type(members) is device.ndarray
    assert_close(members.get(), theirs.sample(4, np.random.default_rng(3)), 2 * tolerance)
    for rule in ("probabilities", "geometric", "vote"):
        p = rng.dirichlet(np.ones(4), (3, 6))
        actual = averages.average(device.asarray(p), rule)
        assert_close(actual.get(), averages.average(p, rule), 1e-14)


def test_moments_go_from_one_device_to_the_other(device, rng, tmp_path):
    moments = minires.Moments((5,))
    for _ in range(3):
        moments.update(device.asarray(rng.standard_normal(5)))
    moments.save(tmp_path / "moments.npz")
    here = minires.Moments.load(tmp_path / "moments.npz")
    there = minires.Moments.load(tmp_path / "moments.npz", device="gpu")
    theta = rng.standard_normal(5)
    here.update(theta)
    there.update(device.asarray(theta))
    assert_close(there.mean.get(), here.mean, 1e-15)


def test_metrics(device, rng):
    p, labels = rng.dirichlet(np.ones(5), (2, 30)), rng.integers(0, 5, 30)
    actual = metrics.evaluate(device.asarray(p), device.asarray(labels))
    for name, value in metrics.evaluate(p, labels).items():
        assert isinstance(actual[name], np.ndarray)
        assert_close(actual[name], value, 1e-14)


def test_batch_norm_statistics_are_measured_again(device, rng):
    model = networks()["mobilenet_v1"]
    theta = model.init(rng, dtype=np.float64)
    batches = [batch_for(model, rng, np.float64)[0] for _ in range(2)]
    expected = minires.reestimate_stats(model, theta, batches)
    there = [device.asarray(images) for images in batches]
    actual = minires.reestimate_stats(model, device.asarray(theta), there)
    assert_close(actual.get(), expected, 1e-10)


@pytest.mark.parametrize("make", [lambda: SGD(0.1, momentum=0.5), lambda: Adam(1e-3)])
def test_training_and_fine_tuning(device, make):
    """Thirty updates, without dropout: where both devices draw the same numbers."""
    rng = np.random.default_rng(0)
    model = networks()["lenet"]
    images, labels = batch_for(model, rng, np.float64, count=40)
    found = []
    for where in ("cpu", "gpu"):
        theta = model.init(np.random.default_rng(1), dtype=np.float64, device=where)
        stats = model.init_stats(dtype=np.float64, device=where)
        data = to_device(images, where), to_device(labels, where)
        task = loop.Task(model, *data, 8, 5, quiet=True)
        loop.train(task, theta, stats, make(), 10)
        moments, _, history = loop.fine_tune(task, theta, stats, make(), 20, watch=[0, 7])
        found.append((theta, moments.mean, moments.std, history))
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert_close(to_host(ours), theirs, 1e-9)


@pytest.mark.parametrize("name", ["lenet", "mobilenet_v2"])
def test_runs_repeat_bit_for_bit(device, name):
    model = networks()[name]

    def run():
        rng = np.random.default_rng(2)
        theta, stats = model.init(rng, device="gpu"), model.init_stats(device="gpu")
        images, labels = map(device.asarray, batch_for(model, rng, np.float32, count=6))
        task = loop.Task(model, images, labels, 2, 3, quiet=True)
        loop.train(task, theta, stats, SGD(0.1), 4)
        return theta.get(), stats.get()

    for once, again in zip(run(), run(), strict=True):
        np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize("kind", [SGD, Adam])
@pytest.mark.parametrize("rate", [1, np.array([[1], [2]])])
def test_a_rate_that_is_a_whole_number(device, kind, rate):
    theta = np.ones((2, 8), np.float32)
    found, gradient = device.asarray(theta), np.full_like(theta, 0.25)
    kind(rate).step(found, device.asarray(gradient))
    kind(np.asarray(rate, float) if np.ndim(rate) else float(rate)).step(theta, gradient)
    assert (theta != 1).all()
    assert_close(to_host(found), theta, 1e-6)


def test_gradients_of_another_width_are_converted(device, rng):
    """A layer of one's own may widen what it hands back: float32 times a float64 number."""
    x = rng.standard_normal((1, 2, 8, 8, 3)).astype(np.float32)
    w = rng.standard_normal((1, 3, 3, 3)).astype(np.float32)
    vectors = rng.standard_normal((3, 1, 1, 3)).astype(np.float32)
    valid, pooled = ((1, 1), ((1, 1), (1, 1)), (1, 1)), ((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1))
    rows = x.reshape(1, -1, 3)
    y = plain.max_pool(x[0], *pooled)
    four = np.full((4, 4, 1), 4, np.float32)
    calls = {
        "norm_sums": lambda k, up, g: k.norm_sums(g(rows), up(rows), *map(up, vectors), None)[1],
        "max_pool_gradient": lambda k, up, g: k.max_pool_gradient(g(y), up(x[0]), up(y), *pooled),
        "mean_pool_gradient": lambda k, up, g: k.mean_pool_gradient(
            g(y), up(four), x[0].shape, *pooled
        ),
        "depthwise_weight_gradient": lambda k, up, g: k.depthwise_weight_gradient(
            up(x), g(x), (3, 3), *valid
        ),
        "depthwise_input_gradient": lambda k, up, g: k.depthwise_input_gradient(
            g(x), up(w), x.shape[1:], *valid
        ),
    }
    for call in calls.values():
        ours = call(gpu, device.asarray, lambda a: device.asarray(a.astype(np.float64)))
        assert_close(to_host(ours), call(plain, np.asarray, np.asarray), 1e-5)
    given = [device.asarray(a) for a in (rows, rows.astype(np.float64), *vectors[:2])]
    with pytest.raises(ValueError, match="norm_gradient: an array is float64, expected float32"):
        gpu.norm_gradient(*given, None, None)


def test_labels_on_the_host_are_checked(device, rng):
    logits = device.asarray(rng.standard_normal((4, 3)))
    for labels in ([0, 1, 2, 3], np.array([0, 1, 2, -1])):
        with pytest.raises(ValueError, match="label"):
            ops.softmax_cross_entropy(logits, labels)
