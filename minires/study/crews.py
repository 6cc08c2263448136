"""Who computes the cells of a sweep: processes of this machine, a Dask cluster, or a GPU.

All of them have

    submit(function, …)   start a call; returns a Future of its result
    capacity              how many calls may wait or be computed at a time
    side_by_side          the most cells in a call
    renew()               make ready again after a worker has died
    close()               end all workers
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Future, ProcessPoolExecutor
from typing import Any

from tqdm import tqdm


class Processes:
    """Worker processes on this machine, one thread each.

    count   how many
    """

    side_by_side = 1  # cells in a call

    def __init__(self, count: int):
        self.count = count
        self.capacity = count + 1  # one call more than workers, so that none of them must wait
        self._executor = None

    def submit(self, *call: Any) -> Future:
        """Have a function called; returns its Future.

        call   the function, then its arguments
        """
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.count, multiprocessing.get_context("spawn"), initializer=_begin_worker
            )
        return self._executor.submit(*call)

    def renew(self) -> None:
        """End the workers that are left; the next call starts new ones."""
        self.close()

    def close(self) -> None:
        """End the workers, even in the middle of a call."""
        executor, self._executor = self._executor, None
        if executor is not None:
            # A worker may be ended while it sends a result. The executor waits for the rest of it
            # as long as any process can write to the pipe, and this process can: so close our end.
            executor._result_queue._writer.close()
            for worker in list((executor._processes or {}).values()):
                worker.terminate()
            executor.shutdown(cancel_futures=True)


def _begin_worker():
    """In a new worker: leave Ctrl-C to the sweep, and end when the sweep's process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # tqdm's own lock is shared: an ended worker would keep it
    parent = multiprocessing.parent_process()

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class Cluster:
    """Workers of a Dask cluster, which may be on other machines.

    address    of its scheduler, such as tcp://10.0.0.1:8786
    patience   how long to wait for an answer
    Raises     RuntimeError without Dask; OSError when the scheduler does not answer
    """

    side_by_side = 1  # cells in a call

    def __init__(self, address: str, patience: str = "20s"):
        try:
            import dask
            from distributed import Client
        except ImportError as error:
            raise RuntimeError(
                "--cluster needs Dask, which is not installed: pip install 'minires[cluster]'"
            ) from error
        self._address = address
        # The initial weights of a fine-tuning are sent with the call, and may be large.
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"})
        try:
            self._client = Client(address, timeout=patience, set_as_default=False)
        except OSError as error:
            raise OSError(
                f"no Dask scheduler answers at {address}: start one with `dask scheduler`, and "
                "workers with `dask worker`"
            ) from error
        self._executor = self._client.get_executor(pure=False)

    @property
    def capacity(self) -> int:
        """How many cells to send at a time. The number of workers may change.

        Raises   ConnectionError when the scheduler no longer answers
        """
        try:
            return 1 + max(1, sum(self._client.ncores().values()))
        except OSError as error:
            raise ConnectionError(
                f"the Dask scheduler at {self._address} no longer answers; what is finished is "
                "kept: the same command goes on with it, on this cluster or another"
            ) from error

    def submit(self, *call: Any) -> Any:
        """Have a function called; returns its Future.

        call   the function, then its arguments
        """
        return self._executor.submit(*call)

    def renew(self) -> None:
        """Nothing to do: Dask replaces its own workers."""

    def close(self) -> None:
        """Cancel the calls that are not done, and disconnect."""
        self._executor.shutdown(wait=False)
        self._client.close()


class Device:
    """A GPU that this process uses; cells train side by side on it.

    side_by_side   the most cells at a time
    """

    capacity = 1

    def __init__(self, side_by_side: int):
        self.side_by_side = side_by_side

    def submit(self, function: Callable, *arguments: Any) -> Future:
        """Call a function at once, in this process; returns a Future that is done.

        function    takes a `device`
        arguments   its other arguments
        """
        future = Future()
        try:
            future.set_result(function(*arguments, device="gpu"))
        except Exception as error:
            future.set_exception(error)
        return future

    def renew(self) -> None:
        """Nothing to do: there is no other process that could die."""

    def close(self) -> None:
        """Nothing to do either."""


def failure(future: Future) -> BaseException | None:
    """The error of a call, or None.

    future   of a call that has ended
    """
    try:
        return future.exception()
    except CancelledError as error:  # Dask lost its scheduler, or the worker with the result
        return error


def is_death(error: BaseException) -> bool:
    """Whether the error means that the worker died, not that its work failed.

    error   as from `failure`
    """
    return isinstance(error, (BrokenExecutor, CancelledError)) or (
        type(error).__name__ == "KilledWorker"
    )
