"""Backend: which module, sums, threads, memory for results, and children of a fork."""

import itertools
import multiprocessing
import os
import sys
import threading
import weakref
from collections import deque

import numpy as np
import pytest
from helpers import assert_close, generator, seeds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

from minires import arrays, kernels
from minires.arrays import workers
from minires.engine.convolution import conv2d
from minires.kernels import memory, sums

MEGABYTE = 1 << 20


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
    says = r"^a GPU was asked for, but CuPy is not installed: pip install 'minires\[gpu13\]"
    with pytest.raises(RuntimeError, match=says):
        arrays.to_device(np.ones(2), "gpu")
    assert arrays.describe_gpus().startswith("CuPy is not installed")


def test_blas_is_described():
    for line in arrays.describe_blas():
        assert "threads)" in line
    assert arrays.describe_blas()


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
    monkeypatch.setattr(workers, "_count", None)
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
    """It inherits what the helpers' parent knew of them, but none of the helpers."""
    x, w = rng.standard_normal((400, 12, 12, 6)), rng.standard_normal((3, 3, 6, 8))
    with arrays.threads(2):
        expected = conv2d(x, w)  # the helpers have worked
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


# --- memory for results -------------------------------------------------------------------


@pytest.fixture
def shelf(monkeypatch):
    """No slabs, until the test makes some; small ones."""
    monkeypatch.setattr(memory, "_slabs", [])
    monkeypatch.setattr(memory, "SLAB", 8 * MEGABYTE)
    monkeypatch.setattr(memory._Owner, "given_back", deque())


def address(array):
    return array.__array_interface__["data"][0]


@given(
    life=st.lists(
        st.one_of(
            st.tuples(st.just("make"), st.integers(300, 420)),
            st.tuples(st.sampled_from(["drop", "view", "view of view"]), st.integers(0, 9)),
        ),
        min_size=5,
        max_size=40,
    )
)
def test_memory_in_use_is_never_handed_out_again(life):
    """Arrays are made, dropped, or kept by a view or by a view of a view only."""
    alive = []  # (array, the number it was filled with)
    for serial, (what, number) in enumerate(life):
        if what == "make":
            array = memory.empty((number, 1024), np.float32)
            array[...] = serial
            alive.append((array, serial))
        elif alive:
            array, filled = alive.pop(number % len(alive))
            if what != "drop":
                part = array[10:200:3] if what == "view" else array.reshape(-1).T[5:][1:]
                alive.append((part, filled))
                del part
        array = None
        for array, filled in alive:
            assert (array == filled).all(), "two arrays share memory"
        del array


def test_memory_nobody_uses_is_handed_out_again(shelf):
    first = memory.empty((MEGABYTE,), np.uint8)
    place = address(first)
    del first
    again = memory.empty((MEGABYTE // 8,), np.float64)
    assert address(again) == place
    assert place % 64 == 0, "a vector would lie on two cache lines"
    assert (again.shape, again.dtype) == ((MEGABYTE // 8,), np.float64)
    assert again.flags.c_contiguous
    assert again.flags.writeable
    other = memory.empty((MEGABYTE,), np.uint8)
    assert not np.shares_memory(other, again)


def test_the_first_gap_that_is_large_enough_is_taken(shelf):
    sizes = 2, 1, 3, 1, 1  # a slab of eight megabytes
    made = [memory.empty((size * MEGABYTE,), np.uint8) for size in sizes]
    places = [address(array) for array in made]
    assert places == [places[0] + start * MEGABYTE for start in (0, 2, 3, 6, 7)]
    made[0] = made[2] = None
    assert address(memory.empty((MEGABYTE,), np.uint8)) == places[0]
    assert address(memory.empty((3 * MEGABYTE,), np.uint8)) == places[2]
    other = memory.empty((4 * MEGABYTE,), np.uint8)
    assert len(memory._slabs) == 2, "a gap of four megabytes is not there yet"
    assert not any(np.shares_memory(other, array) for array in made if array is not None)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_gaps_side_by_side_become_one(shelf, order):
    """Whatever comes back first; the pieces before and behind stay in use."""
    made = [memory.empty((size * MEGABYTE,), np.uint8) for size in (1, 1, 1, 1, 4)]
    place = address(made[1])
    made[0][...], made[4][...] = 3, 5
    for number in order:
        made[1 + number] = None
        assert (made[0] == 3).all()
        assert (made[4] == 5).all()
    joined = memory.empty((3 * MEGABYTE,), np.uint8)
    assert address(joined) == place
    joined[...] = 7
    assert (made[0] == 3).all()
    assert (made[4] == 5).all()


def test_a_result_larger_than_a_slab_has_one_of_its_own(shelf):
    large = memory.empty((9 * MEGABYTE + 1,), np.uint8)
    assert large.size == 9 * MEGABYTE + 1
    large[...] = 1
    assert [len(slab.memory) for slab in memory._slabs] == [9 * MEGABYTE + 64]


def test_small_arrays_are_left_to_numpy(shelf):
    assert memory.empty((100,), np.float32).base is None
    assert memory.empty((), np.float32).shape == ()
    assert memory.empty((0, 5), np.float32).shape == (0, 5)


def test_idle_slabs_stay_below_their_limit_and_the_last_goes_first(shelf, monkeypatch):
    monkeypatch.setattr(memory, "MOST_IDLE", 20 * MEGABYTE)
    made = [memory.empty((8 * MEGABYTE,), np.uint8) for _ in range(4)]
    slabs = [weakref.ref(slab) for slab in memory._slabs]
    made[0] = made[1] = None
    in_use = memory.empty((4 * MEGABYTE,), np.uint8)
    in_use[...] = 7
    assert all(slab() is not None for slab in slabs)
    del made
    other = memory.empty((MEGABYTE,), np.uint8)
    other[...] = 1
    assert [slab() is not None for slab in slabs] == [True, True, True, False]
    assert len(memory._slabs) == 3
    assert (in_use == 7).all()


def test_arrays_may_go_in_any_thread_and_during_a_collection_of_garbage(shelf):
    """Also while another array is being made: giving back waits for no lock."""
    with memory._lock:
        array = np.asarray(memory._Owner(*memory._take(MEGABYTE)))
        del array  # would wait for ever
    failures = []

    def work(number):
        try:
            for _ in range(30):
                mine = [memory.empty((MEGABYTE,), np.uint8) for _ in range(4)]
                for k, array in enumerate(mine):
                    array[...] = number * 4 + k
                cycle = [mine]
                cycle.append(cycle)  # only the garbage collector frees it
                for k, array in enumerate(mine):
                    assert (array == number * 4 + k).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
