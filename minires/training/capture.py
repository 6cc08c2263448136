"""Many updates of θ on a GPU: one is recorded as a CUDA graph, the others play it again.

A small network keeps a GPU busy for a fraction of a millisecond, and Python takes several to tell
it what to do: a hundred launches, each some microseconds. But every update launches the same
kernels on the same memory. So the third update is *recorded*: nothing runs, CUDA notes what would
have, a graph. From then on an update is one launch.

What differs between updates must lie on the device beforehand: the images of every batch, the
rates, the number of updates in the moments, the seeds of dropout. They are rows of tables; the
graph begins by copying the current row to a fixed place, and ends by adding one to its number.
The losses gather in an array that the host looks at when an epoch is over.

The graph keeps the addresses of all that it worked with. So the memory of the recorded update comes
from a pool of its own, which nobody else uses while the graph lives.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minires.arrays import to_host, xp_of
from minires.kernels import kernels_of
from minires.resampling.baselines import EMA
from minires.training.optimizers import SGD
from minires.training.schedules import constant

PLAIN = 2  # updates before one is recorded: first compile the kernels, then fill the pool


class RecordedSteps:
    """Updates of θ on a GPU: each is a batch, a step of the optimizer, and the moments.

        with RecordedSteps(task, theta, stats, optimizer, order, rng) as steps:
            for number in range(len(order)):
                steps.take()                # queued, not necessarily done
        losses = steps.losses.get()         # after the block all is done

    What the body of the block asks of the GPU is queued too: it sees θ after this update and before
    the next.

    task            what to learn: its images and labels are on the GPU
    theta, stats    (P,) and (S,), or (R, P) and (R, S); changed in place
    optimizer       SGD or Adam; its rate may be changed between updates
    order           (updates, batch) or (updates, R, batch) integers: the images of each batch
    rng             for dropout: a Generator, or a list of R
    schedule        schedule(t) is the share of the rate at update t = 0, 1, …; without one all
    moments         [(Moments or EMA, vector), …]: updated with the vector after every step
    watch           indices of weights whose every value is kept, in `history`
    record          whether to record; if not, every update launches its kernels itself

    `losses` is (updates,) or (updates, R), `history` (updates, [R,] watched), on the device;
    `reason` says why nothing could be recorded, if so.
    """

    def __init__(
        self,
        task: Any,
        theta: Any,
        stats: Any,
        optimizer: Any,
        order: Any,
        rng: Any = None,
        schedule: Callable[[int], float] | None = None,
        moments: Sequence[tuple[Any, Any]] = (),
        watch: Sequence[int] = (),
        record: bool = True,
    ):
        self.task, self.theta, self.stats = task, theta, stats
        self.rng, self.schedule, self.record = rng, schedule or constant, record
        self.xp = xp = xp_of(theta)
        self.count, self.number = len(order), 0
        self.reason = self._graph = None
        # The private pool below cannot use what CuPy's default pool keeps for later.
        xp.get_default_memory_pool().free_all_blocks()
        # A private pool, and a stream to record: work on it waits for nothing else.
        self._pool = xp.cuda.MemoryPool()
        self._stream = xp.cuda.Stream(non_blocking=True)
        lead = theta.shape[:-1]
        self._watch = xp.asarray(np.asarray(watch, np.int64))
        self.losses = xp.empty((self.count, *lead), theta.dtype)
        self.history = xp.empty((self.count, *lead, len(watch)), theta.dtype)
        self._number = xp.zeros(1, np.int64)
        self._tables = {"batch": xp.asarray(np.asarray(order, np.int64))}
        self.optimizer = optimizer
        self._descent = (_RecordedSGD if isinstance(optimizer, SGD) else _RecordedAdam)(optimizer)
        optimizer.rate = to_host(optimizer.rate)
        optimizer.ready(theta, theta)
        self._averages = [
            (_RecordedEMA if isinstance(kept, EMA) else _RecordedMoments)(kept, vector)
            for kept, vector in moments
        ]
        self._fill_rates(0)
        self._fill_moments()
        self._rows = {name: xp.empty_like(table[:1]) for name, table in self._tables.items()}

    # --- what lies on the device beforehand ---------------------------------------------

    def _fill_rates(self, first):
        """The optimizer's numbers for all updates from `first` on."""
        optimizer, rate, rows = self.optimizer, self.optimizer.rate, []
        for number in range(first, self.count):
            optimizer.rate = rate * self.schedule(number)
            rows.append(self._descent.numbers(optimizer.count + 1 + number - first))
        optimizer.rate, self._rate = rate, np.copy(rate)
        for place, column in enumerate(zip(*rows, strict=True)):
            table = np.stack([np.ravel(numbers) for numbers in column])
            table = self.xp.asarray(table.astype(self.theta.dtype))
            if first:
                self._tables[f"rates {place}"][first:] = table
            else:
                self._tables[f"rates {place}"] = table

    def _fill_moments(self):
        for place, average in enumerate(self._averages):
            self._tables[f"moments {place}"] = self.xp.asarray(average.numbers(self.count))

    def _fill_seeds(self, calls):
        """Dropout's seeds for all updates but the first, in the order of plain updates."""
        generators = self._generators()
        # The first row is not used: that update drew for itself.
        seeds = np.zeros((self.count, calls, len(generators)), np.uint64)
        for place, generator in enumerate(generators):
            seeds[1:, :, place] = generator.integers(1 << 63, size=(self.count - 1, calls))
        self._tables["seeds"] = self.xp.asarray(seeds)
        self._rows["seeds"] = self.xp.empty_like(self._tables["seeds"][:1])

    def _generators(self):
        if self.rng is None:
            return []
        return list(self.rng) if isinstance(self.rng, (list, tuple)) else [self.rng]

    # --- one update -----------------------------------------------------------------------

    def _update(self, rng):
        """All the work of an update, from what lies in the rows: nothing here asks the host."""
        xp, rows = self.xp, self._rows
        for name, table in self._tables.items():
            xp.take(table, self._number, axis=0, out=rows[name])
        batch = rows["batch"][0]
        task = self.task
        loss, gradient = task.model.loss_and_gradient(
            self.theta, task.images[batch], task.labels[batch], stats=self.stats, rng=rng
        )
        numbers = [rows[name][0] for name in rows if name.startswith("rates")]
        self._descent.step(self.theta, gradient, *numbers)
        for place, average in enumerate(self._averages):
            average.update(rows[f"moments {place}"])
        self.losses[self._number] = loss[None]
        if self._watch.size:
            self.history[self._number] = self.theta[..., self._watch][None]
        self._number += 1

    def _draws(self):
        """Random numbers for an update that is recorded, or could be."""
        if "seeds" not in self._rows:
            return self.rng
        return kernels_of(self.theta).Seeds(self._rows["seeds"][0])

    def _record(self):
        """Record an update; remember why if that is not possible."""
        failure = None
        try:
            self._stream.begin_capture()
            try:
                self._update(self._draws())
            except Exception as error:
                failure = error
            finally:
                graph = self._stream.end_capture()
        except Exception as error:
            failure = failure or error
        try:
            if isinstance(failure, MemoryError):  # nor is there room to go on without a graph
                raise failure
            if failure is None:
                self._graph = graph
            else:
                self.record = False
                self.reason = f"{type(failure).__name__}: {failure}"
        finally:
            del failure  # it knows this frame, and would keep the memory of all that is here

    def __enter__(self):
        # What was queued before, on other streams, is done when the first update begins.
        self.xp.cuda.get_current_stream().synchronize()
        self._stream.__enter__()
        return self

    def __exit__(self, *error):
        self._stream.__exit__(*error)
        self._stream.synchronize()  # after an error, too, nothing is still at work on θ

    def take(self) -> None:
        """Queue the next update.

        Returns  None, since its loss may not be known yet: see `losses`
        """
        number = self.number
        if not np.array_equal(self._rate, self.optimizer.rate):
            self._fill_rates(number)
        if self._graph is not None:
            self._graph.launch()
        else:
            self._plain_or_recorded(number)
        self.optimizer.count += 1
        for average in self._averages:
            average.count()
        self.number += 1

    def _plain_or_recorded(self, number):
        with self.xp.cuda.using_allocator(self._pool.malloc):
            if number >= PLAIN and self.record:
                self._record()
            if self._graph is not None:
                self._graph.launch()
            elif number == 0 and self._generators():
                counting = [_Counting(generator) for generator in self._generators()]
                self._update(counting if isinstance(self.rng, (list, tuple)) else counting[0])
                calls = counting[0].calls
                if calls:
                    self._fill_seeds(calls)
            else:
                self._update(self._draws())


# --- what SGD, Adam, Moments and EMA do, with numbers that lie on the device ---------------
#
# Each says beforehand which numbers its updates will need (`numbers`), and makes an update of
# the numbers in the current row of the table. `Moments.update` and its like count as they go; here
# the counting is apart, because a recorded update runs without Python.


class _RecordedSGD:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def numbers(self, count):
        return (self.optimizer.rate,)

    def step(self, theta, gradient, rate):
        own = self.optimizer
        if not own.momentum:
            own.velocity = None
        settings = own.momentum, own.weight_decay
        kernels_of(theta).step_sgd(theta, gradient, own.velocity, rate, *settings)


class _RecordedAdam:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def numbers(self, count):
        return self.optimizer.corrected(count)

    def step(self, theta, gradient, rate, epsilon):
        own = self.optimizer
        vectors = theta, gradient, own.first, own.second
        kernels_of(theta).step_adam(*vectors, rate, epsilon, own.beta1, own.beta2)


class _RecordedMoments:
    def __init__(self, moments, theta):
        self.moments, self.theta = moments, theta
        moments.accepted(theta)
        if moments.arrays[0] is None:
            moments.start(theta)

    def numbers(self, updates):
        """For each update its number among those that count, from 1; or 0 if it does not."""
        numbers, count = [], self.moments.count
        for seen in range(self.moments.seen + 1, self.moments.seen + 1 + updates):
            counts = self.moments.counts(seen)
            count += counts
            numbers.append(count if counts else 0)
        return np.array(numbers, np.int64)

    def update(self, n):
        """Change the arrays: from scratch if n is 1, not at all if it is 0."""
        kernels_of(self.theta).fold_moments(self.theta, *self.moments.arrays, n)

    def count(self):
        self.moments.seen += 1
        self.moments.count += self.moments.counts(self.moments.seen)


class _RecordedEMA:
    def __init__(self, ema, theta):
        self.ema, self.theta, self.mean = ema, theta, ema.ready(theta)

    def numbers(self, updates):
        """The weight w of each update."""
        first = self.ema.count + 1
        return np.array([self.ema.weight(count) for count in range(first, first + updates)])

    def update(self, weight):
        rows = zip(self.theta, self.mean, strict=True) if self.theta.ndim == 2 else None
        for theta, mean in rows or [(self.theta, self.mean)]:  # one at a time, to save memory
            mean += weight * (theta - mean)

    def count(self):
        self.ema.count += 1


class _Counting:
    """A Generator that counts how often it is asked for a seed."""

    def __init__(self, generator):
        self.generator, self.calls = generator, 0

    def integers(self, high):
        self.calls += 1
        return self.generator.integers(high)


def epoch_ends(updates: int, images: int, batch: int) -> list[int]:
    """After which updates an epoch is over, and the host looks at the losses.

    updates   how many there are
    images    how many there are to train on
    batch     images per update
    Returns   numbers of updates, from 0; the last one always
    """
    each = max(1, images // batch)
    return [*range(each - 1, updates - 1, each), updates - 1]
