"""Updates recorded as a graph and played again: the same numbers, and nothing asks the host."""

import gc
import warnings
import weakref

import numpy as np
import pytest
from helpers import assert_close

import minires
from minires.arrays import aligned, to_host, xp_of
from minires.engine import ops
from minires.engine.autodiff import data_of
from minires.engine.convolution import mean_pool
from minires.networks.layers import (
    Branches,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Layer,
    MaxPool,
    MeanPool,
    Sequential,
)
from minires.networks.model import Model
from minires.resampling.baselines import EMA
from minires.training import capture, loop
from minires.training.optimizers import SGD, Adam

IMAGES, BATCH, UPDATES = 20, 4, 9


def small(dropout=0.5, **options):
    return minires.lenet(channels=(2, 3), hidden=8, dropout=dropout, **options)


def problem(device, model, replicas=None, dtype=np.float64):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((IMAGES, *model.input_shape)).astype(dtype)
    labels = rng.integers(0, 10, IMAGES)
    theta = model.init(rng, replicas=replicas, dtype=dtype)
    stats = model.init_stats(replicas, dtype=dtype)
    return [device.asarray(array) for array in (theta, stats, images, labels)]


def run(device, make, replicas=None, record=True, model=None, schedule=None, place=None, **options):
    """θ, statistics, losses and history after some updates, and the Updates."""
    model = model or small()
    theta, stats, images, labels = problem(device, model, replicas)
    theta = theta if place is None else place(theta)
    seeds = 3 if replicas is None else list(range(replicas))
    order, rng = loop.order_and_dropout(IMAGES, BATCH, seeds, "training")
    order = [next(order) for _ in range(UPDATES)]
    moments = minires.Moments(theta.shape, **options)
    optimizer = make()
    updates = capture.RecordedSteps(
        loop.Task(model, images, labels, BATCH), theta, stats, optimizer, order, rng,
        moments=[(moments, theta)], watch=[1, 5], record=record,
    )  # fmt: skip
    with updates:
        for number in range(UPDATES):
            assert updates.take() is None
            if schedule is not None:
                optimizer.rate = schedule(number)
    found = theta, stats, updates.losses, updates.history, moments.mean, moments.std
    return [to_host(array) for array in found], updates, moments


OPTIMIZERS = [
    lambda: SGD(0.1),
    lambda: SGD(0.05, momentum=0.9, weight_decay=0.1),
    lambda: Adam(1e-2),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("replicas", [None, 3])
@pytest.mark.parametrize("options", [{}, {"burn_in": 1, "stride": 2}])
def test_played_updates_are_the_same_bit_for_bit(device, make, replicas, options):
    played, updates, moments = run(device, make, replicas, **options)
    plain, other, _ = run(device, make, replicas, record=False, **options)
    assert updates.reason is None
    assert updates._graph is not None
    assert other._graph is None
    assert moments.seen == UPDATES
    assert moments.count == (UPDATES if not options else 4)
    for once, again in zip(played, plain, strict=True):
        np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("schedule", [None, lambda number: 0.1 / (1 + number // 2)])
def test_played_updates_are_those_of_a_plain_loop(device, make, schedule):
    """A loop as anybody would write it, with dropout: the same seeds make the same masks."""
    found, updates, _ = run(device, make, schedule=schedule)
    assert updates.reason is None
    assert updates.optimizer.count == UPDATES
    model = small()
    theta, stats, images, labels = problem(device, model)
    order, rng = loop.order_and_dropout(IMAGES, BATCH, 3, "training")
    optimizer, moments, losses = make(), minires.Moments(theta.shape), []
    for number in range(UPDATES):
        batch = device.asarray(next(order))
        data = images[batch], labels[batch], stats
        loss, gradient = model.loss_and_gradient(theta, *data, rng=rng)
        optimizer.step(theta, gradient)
        moments.update(theta)
        losses.append(float(loss))
        if schedule is not None:
            optimizer.rate = schedule(number)
    np.testing.assert_array_equal(found[0], theta.get())
    np.testing.assert_array_equal(found[2], losses)
    np.testing.assert_array_equal(found[4], moments.mean.get())
    np.testing.assert_array_equal(found[3][-1], theta.get()[[1, 5]])


@pytest.mark.parametrize(
    "make", [*OPTIMIZERS, lambda: SGD(np.array([[0.1], [0.02], [0.3]]), momentum=0.5)]
)
@pytest.mark.parametrize("record", [True, False])
def test_gaps_between_networks_change_no_bit(device, make, record):
    def place(theta):
        moved = aligned(theta)
        assert theta.strides[0] % 16 != 0
        assert moved.strides[0] % 16 == 0
        return moved

    beside, updates, _ = run(device, make, 3, record, place=place)
    assert updates.reason is None
    assert (updates._graph is not None) == record
    for ours, theirs in zip(beside, run(device, make, 3, record)[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_loop_of_ones_own_takes_networks_with_gaps(device):
    """What `init` gives on a GPU goes through every step that a caller may write."""
    found = []
    for device_of_theta in ("gpu", "cpu"):
        model, rng = small(dropout=0.0), np.random.default_rng(0)
        theta = model.init(rng, replicas=3, device=device_of_theta)
        _, stats, images, labels = problem(device, model, 3, np.float32)
        if device_of_theta == "gpu":
            assert theta.strides[0] % 16 == 0
        else:
            theta = device.asarray(theta)
        moments, averages, optimizer = minires.Moments(theta.shape), EMA(0.9), Adam(1e-2)
        for _ in range(3):
            loss, gradient = model.loss_and_gradient(theta, images, labels, stats)
            assert gradient.strides == theta.strides
            optimizer.step(theta, gradient)
            moments.update(theta)
            averages.update(theta)
        ends = theta, loss, moments.mean, moments.std, averages.mean, model.predict(theta, images)
        found.append([to_host(array) for array in ends])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_networks_side_by_side_with_their_own_rates(device):
    """Three seeds at three rates in one graph, against each alone."""
    rates = np.array([[0.1], [0.02], [0.3]])
    together, _, _ = run(device, lambda: SGD(rates), replicas=3)
    model = small()
    theta, _, images, labels = problem(device, model, 3)
    for seed in range(3):
        own, stats = theta[seed].copy(), device.zeros(0)
        order, rng = loop.order_and_dropout(IMAGES, BATCH, seed, "training")
        order = [next(order) for _ in range(UPDATES)]
        task, optimizer = loop.Task(model, images, labels, BATCH), SGD(float(rates[seed, 0]))
        with capture.RecordedSteps(task, own, stats, optimizer, order, rng) as steps:
            for _ in order:
                steps.take()
        assert_close(together[0][seed], own.get(), 1e-12)


def test_batch_norm_and_several_dropouts_are_played(device):
    model = minires.mobilenet_v1(width=0.125, dropout=0.3, input_shape=(16, 16, 1), classes=10)
    played, updates, _ = run(device, OPTIMIZERS[0], model=model)
    plain, _, _ = run(device, OPTIMIZERS[0], model=model, record=False)
    assert updates.reason is None
    for once, again in zip(played, plain, strict=True):
        np.testing.assert_array_equal(once, again)


OTHERS = {
    "lenet_classic": lambda: minires.lenet_classic(dropout=0.2),
    "mobilenet_v2": lambda: minires.mobilenet_v2(
        width=0.25, dropout=0.2, input_shape=(32, 32, 1), classes=10
    ),
    "inception_v3": lambda: minires.inception_v3(
        width=0.1, dropout=0.2, input_shape=(75, 75, 1), classes=10, variant="torch"
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_update_of_every_network_is_recorded(device, monkeypatch, name):
    """It calls only what a graph can hold."""
    monkeypatch.setitem(globals(), "UPDATES", 3)
    monkeypatch.setitem(globals(), "BATCH", 2)
    _, updates, _ = run(device, OPTIMIZERS[1], 2, model=OTHERS[name]())
    assert updates.reason is None
    assert updates._graph is not None


def test_every_dropout_of_every_network_draws_what_it_would_in_a_plain_loop(device):
    """Several layers take turns at one Generator, and each of two networks has its own."""
    layers = Conv2D(2, 3), Dropout(0.3), Flatten(), Dropout(0.5), Dense(10)
    model = Model((8, 8, 1), Sequential(*layers))
    found, updates, _ = run(device, OPTIMIZERS[0], 2, model=model)
    assert updates.reason is None
    theta, stats, images, labels = problem(device, model, 2)
    order, rng = loop.order_and_dropout(IMAGES, BATCH, [0, 1], "training")
    optimizer = OPTIMIZERS[0]()
    for _ in range(UPDATES):
        batch = device.asarray(next(order))
        data = images[batch], labels[batch], stats
        optimizer.step(theta, model.loss_and_gradient(theta, *data, rng=rng)[1])
    np.testing.assert_array_equal(found[0], theta.get())


def test_poolings_are_played(device):
    layers = Conv2D(2, 3, activation="relu"), MeanPool(3, 1, padding=1), MaxPool(2), Flatten()
    model = Model((8, 8, 1), Sequential(*layers, Dense(10)))
    played, updates, _ = run(device, OPTIMIZERS[0], model=model)
    plain, _, _ = run(device, OPTIMIZERS[0], model=model, record=False)
    assert updates.reason is None
    np.testing.assert_array_equal(played[0], plain[0])


def test_what_cannot_be_recorded_is_done_plainly_and_says_why(device, monkeypatch):
    plain, _, _ = run(device, OPTIMIZERS[0], record=False)
    apply = minires.networks.layers.Flatten.apply

    def asks_the_host(self, x, run):
        if float(x.data.sum() if hasattr(x, "data") and hasattr(x, "node") else x.sum()) > 1e9:
            raise ValueError("large")
        return apply(self, x, run)

    monkeypatch.setattr(minires.networks.layers.Flatten, "apply", asks_the_host)
    found, updates, _ = run(device, OPTIMIZERS[0])
    assert updates._graph is None
    assert "captur" in updates.reason.lower()
    for once, again in zip(found, plain, strict=True):
        np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize("fault", [False, True])
def test_updates_leave_no_memory_behind(device, monkeypatch, fault):
    """Their pool is large: it goes with the last name for it, not when the collector comes."""
    if fault:
        record = capture.RecordedSteps._record

        def fail_to_record(self):
            with monkeypatch.context() as patch:
                patch.setattr(minires.networks.layers.Flatten, "apply", lambda self, x, run: 1 / 0)
                record(self)

        monkeypatch.setattr(capture.RecordedSteps, "_record", fail_to_record)
    gc.collect()
    gc.disable()
    try:
        _, updates, _ = run(device, OPTIMIZERS[0])
        assert (updates.reason == "ZeroDivisionError: division by zero") == fault
        alive = weakref.ref(updates)
        del updates
        assert alive() is None
    finally:
        gc.enable()


def counted_updates(device):
    """Updates on the stand-in, which counts how often the host waits."""
    if not hasattr(device, "_graph_state"):
        pytest.skip("only the stand-in counts")
    model = small()
    theta, stats, images, labels = problem(device, model)
    order, rng = loop.order_and_dropout(IMAGES, BATCH, 3, "training")
    order = [next(order) for _ in range(UPDATES)]
    task = loop.Task(model, images, labels, BATCH)
    return capture.RecordedSteps(task, theta, stats, SGD(0.1), order, rng)


def test_who_leaves_the_loop_waits_for_what_is_queued(device):
    """θ is then nobody else's any more."""
    with counted_updates(device) as steps:
        for _ in range(UPDATES - 1):
            steps.take()
        before = device._graph_state.synchronisations
    assert device._graph_state.synchronisations == before + 1


def test_nothing_asks_the_host_between_epochs(device):
    counts = []
    with counted_updates(device) as steps:
        for _ in range(UPDATES):
            steps.take()
            counts.append(device._graph_state.synchronisations)
    assert counts[1] == counts[-1]


def test_training_on_the_device_notices_a_loss_that_is_no_number(device):
    model = small(dropout=0.0)
    theta, stats, images, labels = problem(device, model, dtype=np.float32)
    task = loop.Task(model, images, labels, BATCH, 0, quiet=True)
    with (
        np.errstate(all="ignore"),
        pytest.raises(FloatingPointError, match=r"the loss is nan at update \d of 10: lower the"),
    ):
        loop.train(task, theta, stats, SGD(1e30), 10)


def test_several_seeds_train_at_once_on_either_device(device):
    model = small(dropout=0.0)
    theta, stats, images, labels = problem(device, model, 2)
    here = [to_host(array) for array in (theta, stats, images, labels)]

    def task(images, labels, seed):
        return loop.Task(model, images, labels, BATCH, seed, quiet=True)

    loop.train(task(images, labels, [4, 5]), theta, stats, SGD(0.1), 6)
    alone = [here[0][r].copy() for r in range(2)]
    loop.train(task(*here[2:], [4, 5]), *here[:2], SGD(0.1), 6)
    assert_close(theta.get(), here[0], 1e-10)
    for r in range(2):
        loop.train(task(*here[2:], 4 + r), alone[r], here[1][r], SGD(0.1), 6)
        assert_close(alone[r], here[0][r], 1e-12)


def test_several_seeds_are_fine_tuned_at_rates_of_their_own(device):
    """R θ with their moments at once, on either device, as each alone."""
    model = small(dropout=0.0)
    rates = np.array([[0.1], [0.02]])
    theta, stats, images, labels = problem(device, model, 2)
    here = [to_host(array).copy() for array in (theta, stats, images, labels)]
    alone = [here[0][r].copy() for r in range(2)]

    def task(images, labels, seed):
        return loop.Task(model, images, labels, BATCH, seed, quiet=True)

    there = loop.fine_tune(task(images, labels, [4, 5]), theta, stats, SGD(rates), 5, watch=[3])
    both = loop.fine_tune(task(*here[2:], [4, 5]), *here[:2], SGD(rates), 5, watch=[3])
    assert_close(there[0].mean.get(), both[0].mean, 1e-11)
    assert there[2].shape == both[2].shape == (5, 2, 1)
    assert_close(there[2], both[2], 1e-11)
    for r in range(2):
        optimizer = SGD(float(rates[r, 0]))
        own = task(*here[2:], 4 + r)
        single = loop.fine_tune(own, alone[r], here[1][r], optimizer, 5, watch=[3])
        assert_close(single[0].std, both[0].std[r], 1e-11)


def test_looks_at_losses():
    assert capture.epoch_ends(10, 20, 5) == [3, 7, 9]
    assert capture.epoch_ends(8, 20, 5) == [3, 7]
    assert capture.epoch_ends(3, 5, 5) == [0, 1, 2]


# --- what may go wrong with a graph -------------------------------------------------------


def only_the_stand_in(device):
    if not hasattr(device, "_graph_state"):
        pytest.skip("only the stand-in can be made to run out of memory, or sees who holds it")


def test_a_graph_recorded_while_memory_ran_out_is_not_played(device, monkeypatch):
    """The pool then gives back memory that the graph names, and the next one who asks gets it."""
    only_the_stand_in(device)
    plain, _, _ = run(device, OPTIMIZERS[0], record=False)
    record = capture.RecordedSteps._record

    def short_of_memory(self):
        monkeypatch.setattr(device.cuda.Memory, "room", 1000)
        record(self)

    monkeypatch.setattr(capture.RecordedSteps, "_record", short_of_memory)
    found, updates, _ = run(device, OPTIMIZERS[0])
    assert updates._graph is None
    assert updates.reason.endswith("the GPU's memory ran out while an update was recorded")
    for once, again in zip(found, plain, strict=True):
        np.testing.assert_array_equal(once, again)


def test_the_divisors_of_a_pooling_outlive_those_of_many_others(device):
    """A recorded update keeps their address."""
    layers = Conv2D(2, 3), MeanPool(3, 1, padding=1), Flatten(), Dense(10)
    model = Model((9, 8, 1), Sequential(*layers))
    theta, stats, images, labels = problem(device, model)
    model.predict(theta, images)  # so they lie in memory that is not the graph's own
    order = np.random.default_rng(0).integers(0, IMAGES, (6, BATCH))
    task = loop.Task(model, images, labels, BATCH)
    with capture.RecordedSteps(task, theta, stats, SGD(0.1), order) as steps:
        for number in range(len(order)):
            if number == 4:
                for size in range(10, 90):
                    mean_pool(device.zeros((1, size, 5, 1)), window=2)
            steps.take()
    assert steps.reason is None
    assert np.isfinite(steps.losses.get()).all()


def test_many_branches_are_recorded(device):
    branches = Branches(*[Conv2D(1, 1) for _ in range(19)])
    model = Model((8, 8, 1), Sequential(branches, Flatten(), Dense(10)))
    played, updates, _ = run(device, OPTIMIZERS[0], model=model)
    plain, _, _ = run(device, OPTIMIZERS[0], model=model, record=False)
    assert updates.reason is None
    np.testing.assert_array_equal(played[0], plain[0])


def test_what_a_graph_cannot_hold_is_refused(device):
    """By the stand-in, as by CuPy: what copies from the host or to it, or asks for a number."""
    only_the_stand_in(device)
    x, where = device.ones(3), device.ones(3) > 0
    stream = device.cuda.Stream(non_blocking=True)
    with stream, device.cuda.using_allocator(device.cuda.MemoryPool().malloc):
        for refused in (
            lambda: device.asarray(np.ones(3)),
            lambda: x.get(),
            lambda: float(x[0]),
            lambda: x[where],
            lambda: device.nonzero(x),
            lambda: device.bincount(device.zeros(3, np.int64)),
            lambda: device.repeat(x, 2),
            lambda: device.searchsorted(x, x),
            lambda: device.concatenate([x] * 9),
            lambda: device.matmul(x, x),
            lambda: device.add.at(x, x, x),
        ):
            stream.begin_capture()
            try:
                with pytest.raises((RuntimeError, NotImplementedError), match="captur"):
                    refused()
            finally:
                stream.end_capture()


# --- what changes within a training ---------------------------------------------------------


def at_rest(optimizer):
    """Restore the optimizer's state with a velocity of 0."""
    state = optimizer.state()
    optimizer.restore(state | {"velocity": 0 * state["velocity"]})


CHANGES = {
    "momentum": lambda optimizer: setattr(optimizer, "momentum", 0.9),
    "weight decay": lambda optimizer: setattr(optimizer, "weight_decay", 0.5),
    "no momentum": lambda optimizer: setattr(optimizer, "momentum", 0.0),
    "restored": at_rest,
    "restored twice": lambda optimizer: [at_rest(optimizer), at_rest(optimizer)],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", [0, 4])
def test_an_optimizer_may_be_changed_between_updates(device, change, at):
    """What is recorded has the old numbers in it, and the addresses of the old state."""
    found = {}
    for where in ("cpu", "gpu"):
        kept = []

        def make(rates, kept=kept):
            kept.append(SGD(rates, momentum=0.0 if change in ("momentum", "weight decay") else 0.9))
            return kept[0]

        def after_update(number, theta, loss, kept=kept):
            if number == at:
                CHANGES[change](kept[0])

        found[where], _ = trained(device, where, make=make, after_update=after_update)
    assert_close(found["gpu"], found["cpu"], 1e-10)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_an_optimizer_that_stays_as_it_is_is_recorded_once(device, monkeypatch, make):
    record, times = capture.RecordedSteps._record, []
    monkeypatch.setattr(
        capture.RecordedSteps, "_record", lambda self: times.append(1) or record(self)
    )
    run(device, make)
    assert len(times) == 1


class Noise(Layer):
    """Adds normal numbers in training, drawn on the host."""

    def apply(self, x, forward):
        if forward.mode != "train":
            return x
        shape = data_of(x).shape
        noise = forward.rng.standard_normal(shape) + forward.rng.integers(0, 2, shape)
        return ops.add(x, xp_of(data_of(x)).asarray(0.1 * noise))


def test_a_layer_that_draws_its_own_numbers_is_only_slower(device):
    model = Model((4, 4, 1), Sequential(Noise(), Flatten(), Dense(3)))
    rng, found = np.random.default_rng(1), {}
    theta = model.init(rng, dtype=np.float64)
    images, labels = rng.standard_normal((8, 4, 4, 1)), rng.integers(0, 3, 8)
    for where in ("cpu", "gpu"):
        own = theta.copy(), model.init_stats(dtype=np.float64), images, labels
        own = [array if where == "cpu" else device.asarray(array) for array in own]
        task = loop.Task(model, own[2], own[3], 4, 0, True)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            loop.train(task, own[0], own[1], SGD(0.1), 6)
        remarks = [w for w in said if "rng.standard_normal" in str(w.message)]
        assert len(remarks) == (where == "gpu")
        found[where] = to_host(own[0])
    assert_close(found["gpu"], found["cpu"], 1e-12)


# --- what the study asks of training ------------------------------------------------------


def trained(device, where, seeds=(4, 5, 6), rates=(0.1, 0.02, 0.05), make=SGD, **options):
    """θ (R, P) after training on one of the devices, on the host, and what `train` returns."""
    model = small(dropout=0.0)
    arrays = problem(device, model, len(seeds))
    if where == "cpu":
        arrays = [to_host(array).copy() for array in arrays]
    theta, stats, images, labels = arrays
    moments = [(kept, theta) for kept in options.pop("moments", [])]
    task, lost = (
        loop.Task(model, images, labels, BATCH, list(seeds), True),
        options.pop("lost", None),
    )
    optimizer = make(np.array(rates)[:, None])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # overflow, on whatever thread
        found = loop.train(
            task, theta, stats, optimizer, UPDATES,
            moments=moments, raise_lost=lost is None, **options,
        )  # fmt: skip
    if lost is not None:
        lost |= found.lost
    assert optimizer.rate.tolist() == [[rate] for rate in rates], "the rate is left as it was"
    return to_host(theta), found.history


@pytest.mark.parametrize("make", [SGD, Adam])
def test_a_schedule_is_a_rate_for_every_update(device, make):
    """Against a loop that sets the rate itself, on either device."""

    def schedule(number):
        return 1 / (1 + number // 2)

    model, seeds, rates = small(dropout=0.0), (4, 5), np.array([[0.1], [0.02]])
    theta, stats, images, labels = (to_host(a).copy() for a in problem(device, model, 2))
    order, _ = loop.order_and_dropout(IMAGES, BATCH, seeds, "training")
    optimizer = make(rates)
    for number in range(UPDATES):
        batch = next(order)
        _, gradient = model.loss_and_gradient(theta, images[batch], labels[batch], stats=stats)
        optimizer.rate = rates * schedule(number)
        optimizer.step(theta, gradient)
    for where in ("cpu", "gpu"):
        options = {"seeds": seeds, "rates": (0.1, 0.02), "make": make, "schedule": schedule}
        found, _ = trained(device, where, **options)
        assert_close(found, theta, 1e-11)


def test_a_schedule_is_asked_once_for_every_update(device):
    asked = []
    trained(device, "gpu", schedule=lambda number: asked.append(number) or 1)
    assert asked == list(range(UPDATES))


def test_averages_of_every_kind_are_folded_within_the_graph(device):
    """Moments, some with a stride, and moving averages: as on the CPU, and for each network."""
    found = {}
    for where in ("cpu", "gpu"):
        shape = 3, small(dropout=0.0).size
        kept = minires.Moments(shape), EMA(0.7), minires.Moments(shape, stride=4)
        _, history = trained(device, where, moments=kept, watch=[1, 5])
        found[where] = [*kept, history]
    path = found["cpu"][3]
    for ours, theirs in zip(found["gpu"][:3], found["cpu"][:3], strict=True):
        assert ours.count == theirs.count
        assert_close(to_host(ours.mean), theirs.mean, 1e-11)
        assert_close(to_host(ours[1].mean), theirs.mean[1], 1e-11)
    assert_close(found["gpu"][3], path, 1e-11)
    assert_close(found["cpu"][0].mean[:, [1, 5]], path.mean(axis=0), 1e-12)
    assert_close(found["cpu"][2].mean[:, [1, 5]], path[[3, 7]].mean(axis=0), 1e-12)
    assert_close(to_host(found["gpu"][0][2].std), found["cpu"][0].std[2], 1e-9)


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_lost_networks_are_named_and_the_others_go_on(device, where):
    """A rate too high for one of three: what the others become is what they become without it."""
    good, _ = trained(device, where)
    lost = {}
    found, _ = trained(device, where, rates=(0.1, 1e300, 0.05), lost=lost)
    assert list(lost) == [1]
    assert isinstance(lost[1], FloatingPointError)
    assert "training: the loss is nan at update" in str(lost[1])
    assert str(lost[1]).endswith("lower the rate, 1e+300")
    np.testing.assert_array_equal(found[[0, 2]], good[[0, 2]])
    assert not np.isfinite(found[1]).all()
    with pytest.raises(FloatingPointError, match=r"of 9: lower the rate, 1e\+300$"):
        trained(device, where, rates=(0.1, 1e300, 0.05))


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_weights_lost_in_the_last_update(device, where):
    lost = {}
    options = {"rates": (0.1, 1e308, 0.05)}
    options["schedule"] = lambda number: 1e9 * (number == UPDATES - 1)
    trained(device, where, lost=lost, **options)
    assert list(lost) == [1]
    assert "after 9 updates, weights or batch-norm statistics are infinite" in str(lost[1])


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_training_ends_when_all_are_lost(device, where):
    numbers, lost = [], {}
    trained(
        device, where, rates=(1e300,) * 3, lost=lost,
        after_update=lambda number, theta, loss: numbers.append(number),
    )  # fmt: skip
    assert sorted(lost) == [0, 1, 2]
    assert len(numbers) < UPDATES - 1


def test_who_cannot_record_says_so(device, monkeypatch):
    def fail(self):
        self.record, self.reason = False, "out of order"

    monkeypatch.setattr(capture.RecordedSteps, "_record", fail)
    with pytest.warns(UserWarning, match=r"no update could be recorded .* \(out of order\)"):
        trained(device, "gpu")


def test_a_full_card_is_not_taken_for_one_that_cannot_record(device, monkeypatch):
    update, calls = capture.RecordedSteps._update, []

    def full(self, rng):
        calls.append(1)
        if len(calls) > capture.PLAIN:
            raise device.cuda.memory.OutOfMemoryError(1 << 30, 1 << 31)
        return update(self, rng)

    monkeypatch.setattr(capture.RecordedSteps, "_update", full)
    with pytest.raises(MemoryError):
        trained(device, "gpu")
