"""Who computes the cells of a sweep: processes of this machine, a Dask cluster, or a GPU.

All have

    submit(function, …)   a Future of the call
    capacity              calls to hand over at a time
    side_by_side              cells in a call, at most
    renew()               after a worker's death
    close()               when all is done, or nothing more is to be done
"""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import BrokenExecutor, CancelledError, Future, ProcessPoolExecutor

from tqdm import tqdm


class Processes:
    """Worker processes on this machine, one thread each.

    count   how many
    """

    side_by_side = 1  # cells in a call

    def __init__(self, count):
        self.count = count
        self.capacity = count + 1  # one more, so that nobody waits for the next
        self._executor = None

    def submit(self, *call):
        """Have a function called; returns its Future."""
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.count, multiprocessing.get_context("spawn"), initializer=_begin_worker
            )
        return self._executor.submit(*call)

    def renew(self):
        """After a worker's death: give up all that are left; new ones come when needed."""
        self.close()

    def close(self):
        """End the workers, whatever they do."""
        executor, self._executor = self._executor, None
        if executor is not None:
            # A worker may be ended in the middle of a result. The executor would wait for the rest
            # as long as any process holds the writing end of the pipe, and this process does.
            executor._result_queue._writer.close()
            for worker in list((executor._processes or {}).values()):
                worker.terminate()
            executor.shutdown(cancel_futures=True)


def _begin_worker():
    """Ctrl-C is the sweep's to handle; and no worker outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # its own would outlive a worker that is ended
    parent = multiprocessing.parent_process()

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class Cluster:
    """Workers of a Dask cluster, on other machines perhaps.

    address    of its scheduler, such as tcp://10.0.0.1:8786
    patience   how long to wait for an answer
    Raises     RuntimeError without Dask; OSError when nobody answers
    """

    side_by_side = 1  # cells in a call

    def __init__(self, address, patience="20s"):
        try:
            import dask
            from distributed import Client
        except ImportError as error:
            raise RuntimeError(
                "--cluster needs Dask, which is not installed: pip install 'minires[cluster]'"
            ) from error
        self._address = address
        # A fine-tuning carries its starting weights along; they may be large.
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
    def capacity(self):
        """How many cells to hand over at a time; workers may come and go."""
        try:
            return 1 + max(1, sum(self._client.ncores().values()))
        except OSError as error:
            raise ConnectionError(
                f"the Dask scheduler at {self._address} no longer answers; what is finished is "
                "kept: the same command goes on with it, on this cluster or another"
            ) from error

    def submit(self, *call):
        """Have a function called; returns its Future."""
        return self._executor.submit(*call)

    def renew(self):
        """Nothing to do: Dask starts its own workers anew."""

    def close(self):
        """Take back what is not done, and leave."""
        self._executor.shutdown(wait=False)
        self._client.close()


class Device:
    """A GPU, told by this process what to do; cells train side by side on it.

    side_by_side   how many at a time, at most
    """

    capacity = 1

    def __init__(self, side_by_side):
        self.side_by_side = side_by_side

    def submit(self, function, *arguments):
        """Call a function here and now; returns a Future that is done."""
        future = Future()
        try:
            future.set_result(function(*arguments, device="gpu"))
        except Exception as error:
            future.set_exception(error)
        return future

    def renew(self):
        """Nothing to do: there is no worker that could die alone."""

    def close(self):
        """Nothing to do either."""


def failure(future):
    """What went wrong with a call, or None."""
    try:
        return future.exception()
    except CancelledError as error:  # Dask lost its scheduler, or the worker with the result
        return error


def is_death(error):
    """Whether a worker died, rather than its work failed."""
    return isinstance(error, (BrokenExecutor, CancelledError)) or (
        type(error).__name__ == "KilledWorker"
    )
