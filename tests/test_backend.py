"""Backend: which module, sums, threads, recycled memory, and children of a fork."""

import gc
import multiprocessing
import os
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import threadpoolctl
from helpers import assert_close, generator, seeds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

from minires import arrays, kernels
from minires.arrays import memory, workers
from minires.engine.convolution import conv2d
from minires.kernels import sums

MEGABYTE = 1 << 20


def blas_threads():
    """The threads of each BLAS in this process, but SciPy's own: products here are NumPy's."""
    return [
        library["num_threads"]
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas" and "scipy.libs" not in library["filepath"]
    ]


# --- where arrays live --------------------------------------------------------------------


def test_the_type_of_an_array_names_its_module():
    assert arrays.xp_of(np.ones(2)) is np
    assert arrays.xp_of(np.float32(2)) is np
    assert arrays.xp_of(3.0) is np
    assert kernels.kernels_of(np.ones(2)).__name__ == "minires.kernels.cpu"


def test_an_array_of_cupy_is_known_by_its_type(monkeypatch):
    class Foreign:
        pass

    Foreign.__module__ = "cupy._core.core"
    module = object()
    monkeypatch.setitem(sys.modules, "cupy", module)
    assert arrays.xp_of(Foreign()) is module


def test_arrays_on_the_host_stay_the_same_object():
    x = np.ones(2)
    assert arrays.to_host(x) is x
    assert arrays.to_device(x) is x
    assert arrays.to_device(x, "cpu") is x


def test_a_device_that_does_not_exist():
    with pytest.raises(ValueError, match="device is 'tpu', expected 'cpu' or 'gpu'"):
        arrays.to_device(np.ones(2), "tpu")


def test_a_gpu_without_cupy_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match=r"CuPy is not installed: pip install 'minires\[gpu13\]"):
        arrays.to_device(np.ones(2), "gpu")
    assert "CuPy is not installed" in arrays.describe_gpus()


def test_blas_is_described():
    for line in arrays.describe_blas():
        assert "threads)" in line
    assert len(arrays.describe_blas()) >= len(blas_threads()) > 0


# --- sums ---------------------------------------------------------------------------------


@given(pair=mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4), seed=seeds)
def test_broadcasting_is_undone(pair, seed):
    shape, _ = pair.input_shapes
    array = generator(seed).standard_normal(pair.result_shape)
    result = sums.sum_to_shape(array, shape)
    # ⟨broadcast(x), g⟩ = ⟨x, undone(g)⟩ for every x: with one number at a time.
    assert result.shape == shape
    for place in np.ndindex(shape):
        one = np.zeros(shape)
        one[place] = 1
        expected = (np.broadcast_to(one, array.shape) * array).sum()
        assert abs(result[place] - expected) <= 1e-13 * (1 + np.abs(array).sum())


def test_broadcasting_of_empty_arrays_is_undone():
    assert sums.sum_to_shape(np.ones((2, 0, 3)), (0, 3)).shape == (0, 3)
    np.testing.assert_array_equal(sums.sum_to_shape(np.ones((0, 2, 3)), (2, 3)), np.zeros((2, 3)))
    np.testing.assert_array_equal(sums.sum_to_shape(np.ones((0, 3)), (1, 3)), np.zeros((1, 3)))


def test_an_array_of_the_right_shape_is_returned_itself(rng):
    x = rng.standard_normal((2, 3))
    assert sums.sum_to_shape(x, (2, 3)) is x


@pytest.mark.parametrize("rows", [0, 1, 2047, 2048, 2049, 10_000])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_sums_of_rows(rng, rows, lead):
    x = rng.standard_normal((*lead, rows, 5))
    assert_close(sums.sum_rows(x), x.sum(axis=-2), 1e-12, scale=1 + np.sqrt(rows))
    whole = rng.integers(0, 9, (*lead, rows, 5))
    np.testing.assert_array_equal(sums.sum_rows(whole), whole.sum(axis=-2))


@pytest.mark.parametrize("value", [0.1, 1.7])
def test_long_sums_in_float32_keep_five_digits(value):
    """Added one after another, three hundred thousand equal numbers lose three digits."""
    x = np.full((300_000, 4), value, np.float32)
    expected = 300_000 * np.float64(np.float32(value))
    np.testing.assert_allclose(sums.sum_rows(x), expected, rtol=2e-5)
    np.testing.assert_allclose(sums.sum_leading(x, 1), expected, rtol=2e-5)
    assert abs(np.cumsum(x[:, 0])[-1] / expected - 1) > 1e-4


# --- threads ------------------------------------------------------------------------------


@given(count=st.integers(0, 40), threads=st.integers(1, 4))
def test_every_tile_is_done_once(count, threads):
    done = []
    with arrays.threads(threads):
        arrays.run_tiles(done.append, count)
    assert sorted(done) == list(range(count))


def test_tiles_are_shared_among_threads():
    meet = threading.Barrier(3, timeout=30)  # passes only when three threads work at once
    with arrays.threads(3):
        arrays.run_tiles(lambda tile: meet.wait(), 3)


def test_one_thread_is_the_caller_itself():
    seen = set()
    with arrays.threads(1):
        arrays.run_tiles(lambda tile: seen.add(threading.current_thread()), 5)
    assert seen == {threading.current_thread()}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("bad", [0, 7, 19])
def test_an_error_in_a_tile_comes_out_and_the_pool_lives_on(threads, bad):
    running = []
    lock = threading.Lock()

    def tile(number):
        with lock:
            running.append(number)
        try:
            if number == bad:
                raise ArithmeticError(f"tile {number}")
        finally:
            with lock:
                running.remove(number)

    before = blas_threads()
    with arrays.threads(threads):
        with pytest.raises(ArithmeticError, match=f"tile {bad}"):
            arrays.run_tiles(tile, 20)
        assert running == [], "a tile was still at work when the error came out"
        assert blas_threads() == before
        done = []
        arrays.run_tiles(done.append, 20)
        assert sorted(done) == list(range(20))


def test_an_error_stops_the_tiles_not_yet_begun():
    done = []

    def tile(number):
        if number == 3:
            raise ArithmeticError("stop")
        done.append(number)

    with arrays.threads(1), pytest.raises(ArithmeticError):
        arrays.run_tiles(tile, 1000)
    assert done == [0, 1, 2]


def test_an_error_in_one_thread_stops_the_others_soon():
    done = []

    def tile(number):
        if number == 0:
            raise ArithmeticError("stop")
        time.sleep(0.001)
        done.append(number)

    with arrays.threads(2), pytest.raises(ArithmeticError):
        arrays.run_tiles(tile, 2000)
    assert len(done) < 1000


@pytest.mark.parametrize("guilty", ["the caller", "a helper"])
def test_errors_of_every_thread_come_out(guilty):
    main = threading.current_thread()
    meet = threading.Barrier(2, timeout=30)

    def tile(number):
        meet.wait()
        if (threading.current_thread() is main) == (guilty == "the caller"):
            raise ArithmeticError("here")

    with arrays.threads(2), pytest.raises(ArithmeticError, match="here"):
        arrays.run_tiles(tile, 2)


def test_tiles_within_tiles_run_where_they_are():
    done = []

    def outer(tile):
        thread = threading.current_thread()

        def inner(number):
            assert threading.current_thread() is thread
            done.append((tile, number))

        arrays.run_tiles(inner, 4)

    with arrays.threads(3):
        arrays.run_tiles(outer, 5)
        assert sorted(done) == [(i, j) for i in range(5) for j in range(4)]
        # And afterwards this thread hands out tiles again.
        meet = threading.Barrier(3, timeout=30)
        arrays.run_tiles(lambda tile: meet.wait(), 3)


def test_two_threads_of_the_caller_may_compute_at_once(rng):
    x, w = rng.standard_normal((400, 12, 12, 6)), rng.standard_normal((3, 3, 6, 8))
    expected = conv2d(x, w)
    results = {}

    def compute(number):
        results[number] = [conv2d(x, w) for _ in range(5)]

    with arrays.threads(2):
        workers = [threading.Thread(target=compute, args=(k,)) for k in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for found in results.values():
        for y in found:
            np.testing.assert_array_equal(y, expected)
    assert len(results) == 3


def test_blas_has_one_thread_within_and_what_it_had_after():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        within = []
        with arrays.threads(2):
            arrays.run_tiles(lambda tile: within.append(blas_threads()), 1)
        assert within == [[1] * len(before)]
        assert blas_threads() == before
        with arrays.single_threaded_blas:
            assert blas_threads() == [1] * len(before)
            with arrays.single_threaded_blas:
                pass
            assert blas_threads() == [1] * len(before), "the inner block gave it back too early"
        assert blas_threads() == before


def test_blas_gets_its_threads_back_after_an_error():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with pytest.raises(ArithmeticError), arrays.single_threaded_blas:
            raise ArithmeticError
        assert blas_threads() == before


def test_blas_has_one_thread_whichever_thread_asks():
    libraries = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    before = [library.num_threads for library in libraries]

    def set_all(counts):
        for library, count in zip(libraries, counts, strict=True):
            library.set_num_threads(count)
            if hasattr(library, "clear_controlling_thread"):  # else no other thread may
                library.clear_controlling_thread()

    within = []

    def ask():
        with arrays.single_threaded_blas:
            within.append(blas_threads())

    try:
        set_all([2] * len(libraries))
        ask()
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        ask()
    finally:
        set_all(before)
    assert within == [[1] * len(blas_threads())] * 3


def test_the_number_of_threads(monkeypatch):
    with arrays.threads(3):
        assert arrays.get_threads() == 3
        with arrays.threads(1):
            assert arrays.get_threads() == 1
        assert arrays.get_threads() == 3
        with pytest.raises(ArithmeticError), arrays.threads(2):
            raise ArithmeticError
        assert arrays.get_threads() == 3
    with pytest.raises(ValueError, match="count is 0, expected at least 1"):
        arrays.set_threads(0)
    monkeypatch.setattr(workers, "_pool_size", None)
    monkeypatch.setenv("MINIRES_THREADS", "5")
    assert arrays.get_threads() == 5
    monkeypatch.delenv("MINIRES_THREADS")
    assert arrays.get_threads() == arrays.default_threads() >= 1


def _compute_in_child(connection, x, w):
    connection.send(conv2d(x, w))
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_can_compute(rng):
    """It inherits the pool object, but none of the pool's threads."""
    x, w = rng.standard_normal((400, 12, 12, 6)), rng.standard_normal((3, 3, 6, 8))
    with arrays.threads(2):
        expected = conv2d(x, w)  # the pool exists and has worked
        arrays.run_tiles(lambda tile: None, 8)
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_compute_in_child, args=(there, x, w))
        child.start()
        try:
            assert here.poll(30), "the child computes nothing"
            np.testing.assert_array_equal(here.recv(), expected)
        finally:
            child.join(10)
            if child.is_alive():
                child.kill()
                child.join()
        assert child.exitcode == 0
        np.testing.assert_array_equal(conv2d(x, w), expected)


# --- blocks -------------------------------------------------------------------------------


@given(
    size=st.integers(0, 300),
    block=st.sampled_from([1, 7, 64, 300, 1 << 15]),
    threads=st.integers(1, 3),
    seed=seeds,
)
def test_each_block_reaches_every_number_once(size, block, threads, seed):
    a, b = generator(seed).standard_normal((2, size))
    expected = a - 0.5 * b

    def function(a, b):
        a -= 0.5 * b

    with arrays.threads(threads):
        arrays.each_block(function, a, b, block=block)
    np.testing.assert_array_equal(a, expected)


def test_each_block_takes_any_shape_but_no_gaps():
    a, b = np.ones((3, 4)), np.full((3, 4), 2.0)

    def function(a, b):
        a += b

    arrays.each_block(function, a, b, block=5)
    np.testing.assert_array_equal(a, np.full((3, 4), 3))
    with pytest.raises(ValueError, match=r"not contiguous, pass np\.ascontiguousarray"):
        arrays.each_block(function, a.T, b.T)


# --- recycled memory ----------------------------------------------------------------------


def held(recycler):
    return sum(len(block) for block in recycler._blocks)


def address(array):
    return array.__array_interface__["data"][0]


@st.composite
def life_of_arrays(draw):
    """What happens to arrays: made, dropped, kept by a view or by a view of a view only."""
    step = st.one_of(
        st.tuples(st.just("make"), st.integers(16_000, 24_000)),
        st.tuples(st.sampled_from(["drop", "view", "view of view", "release"]), st.integers(0, 9)),
    )
    return draw(st.lists(step, min_size=5, max_size=40))


@given(life=life_of_arrays())
def test_memory_in_use_is_never_handed_out_again(life):
    recycler = memory._Recycler()
    alive = []  # (array, the number it was filled with)
    for serial, (what, number) in enumerate(life):
        if what == "make":
            array = recycler.empty((number,), np.float32)
            array[...] = serial
            alive.append((array, serial))
            del array
        elif what == "release":
            recycler.release()
        elif alive:
            array, filled = alive.pop(number % len(alive))
            if what == "view":
                alive.append((array[100:5000:3], filled))
            elif what == "view of view":
                alive.append(
                    (
                        array.reshape(2, -1).T[10:20]
                        if len(array) % 2 == 0 and array.ndim == 1
                        else array[1:][1:],
                        filled,
                    )
                )
            del array
        for array, filled in alive:
            assert (array == filled).all(), "two arrays share memory"


def test_memory_nobody_uses_is_handed_out_again():
    recycler = memory._Recycler()
    first = recycler.empty((MEGABYTE,), np.uint8)
    place = address(first)
    del first
    again = recycler.empty((MEGABYTE // 8,), np.float64)
    assert address(again) == place
    assert (again.shape, again.dtype) == ((MEGABYTE // 8,), np.float64)
    other = recycler.empty((MEGABYTE,), np.uint8)
    assert not np.shares_memory(other, again)
    assert held(recycler) == 2 * MEGABYTE


def test_an_array_kept_by_a_tensor_or_a_closure_is_in_use():
    recycler = memory._Recycler()
    first = recycler.empty((MEGABYTE,), np.uint8)
    keep = lambda: first
    assert not np.shares_memory(recycler.empty((MEGABYTE,), np.uint8), keep())


def test_at_most_a_quarter_is_wasted():
    recycler = memory._Recycler()
    place = address(recycler.empty((MEGABYTE,), np.uint8))
    assert address(recycler.empty((MEGABYTE * 9 // 10,), np.uint8)) == place
    small = recycler.empty((MEGABYTE * 7 // 10,), np.uint8)
    assert len(recycler._blocks) == 2
    large = recycler.empty((MEGABYTE + 1,), np.uint8)
    assert not np.shares_memory(small, large)


def test_the_block_that_fits_best_is_taken():
    recycler = memory._Recycler()
    arrays = [recycler.empty((size,), np.uint8) for size in (120_000, 100_000, 110_000)]
    places = [address(array) for array in arrays]
    del arrays
    assert address(recycler.empty((99_000,), np.uint8)) == places[1]
    assert address(recycler.empty((105_000,), np.uint8)) == places[2]


def test_small_arrays_are_left_to_numpy():
    recycler = memory._Recycler()
    assert recycler.empty((100,), np.float32).base is None
    assert recycler.empty((), np.float32).shape == ()
    assert recycler.empty((0, 5), np.float32).shape == (0, 5)
    assert recycler._blocks == []


def test_release_gives_back_what_nobody_uses():
    recycler = memory._Recycler()
    kept = recycler.empty((MEGABYTE,), np.uint8)
    dropped = recycler.empty((MEGABYTE,), np.uint8)
    dropped_block = weakref.ref(dropped.base)
    del dropped
    assert dropped_block() is not None, "kept for the next one"
    recycler.release()
    assert dropped_block() is None
    kept[...] = 5
    assert not np.shares_memory(recycler.empty((MEGABYTE,), np.uint8), kept)


def test_release_memory_empties_the_recycler_of_the_program():
    gc.collect()
    block = weakref.ref(arrays.empty((MEGABYTE * 3 + 17,), np.uint8).base)
    assert block() is not None
    arrays.release_memory()
    assert block() is None


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_idle_memory_stays_below_its_limit(sizes):
    recycler = memory._Recycler()
    recycler.idle_limit = 10 * 65536
    for number, size in enumerate(sizes):
        array = recycler.empty((size * 65536,), np.uint8)
        array[:] = number
        fresh = array.base is recycler._blocks[-1]
        del array
        if fresh:
            assert held(recycler) <= max(recycler.idle_limit, size * 65536 * 5 // 4)


def test_the_oldest_idle_blocks_go_first():
    recycler = memory._Recycler()
    recycler.idle_limit = 3 * MEGABYTE
    sizes = [MEGABYTE, 2 * MEGABYTE]
    places = [weakref.ref(recycler.empty((size,), np.uint8).base) for size in sizes]
    in_use = recycler.empty((3 * MEGABYTE // 2,), np.uint8)
    in_use[...] = 7
    assert places[0]() is None
    assert places[1]() is None
    recycler.empty((MEGABYTE * 3,), np.uint8)
    assert (in_use == 7).all()


def test_empty_lives_where_its_model_does():
    like = np.ones(3)
    assert type(arrays.empty((2, 3), np.float32, like=like)) is np.ndarray
    assert arrays.empty((2, 3), np.float32).shape == (2, 3)
