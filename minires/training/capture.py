"""Many updates of θ on a GPU: one is recorded as a CUDA graph, the others play it again.

A small network keeps a GPU busy for a fraction of a millisecond. Python needs several milliseconds
to tell the GPU what to do: it launches a hundred kernels, and each launch takes microseconds. But
every update launches the same kernels on the same memory. So the third update is *recorded*:
nothing is computed, CUDA only writes the launches down in a graph. From then on one launch of the
graph makes an update.

Some things differ between updates: the images of the batch, the rate, the number of updates in the
moments, the seeds of dropout. They are copied to the device beforehand, as the rows of tables. The
graph begins by copying the current row to a fixed place, and ends by going on to the next row. The
losses are kept in an array on the device; the host reads it at the end of an epoch.

The graph remembers memory addresses. So the recorded update takes its memory from a pool of its
own, which nothing else uses while the graph exists.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minires.arrays import to_host, xp_of
from minires.kernels import kernels_of
from minires.kernels.gpu import SEEDS
from minires.resampling.baselines import EMA
from minires.training.optimizers import SGD
from minires.training.schedules import constant

# So many updates are made one by one before one is recorded: the first compiles the kernels, the
# second fills the pool.
PLAIN = 2


class RecordedSteps:
    """Updates of θ on a GPU: each takes a batch, makes a step, and updates the moments.

        with RecordedSteps(task, theta, stats, optimizer, order, rng) as steps:
            for number in range(len(order)):
                steps.take()                # puts the update into the GPU's queue
        losses = steps.losses.get()         # after the block all updates are done

    GPU work that the body of the block starts goes into the same queue. So it sees θ after this
    update and before the next one.

    task            what to learn: its images and labels are on the GPU
    theta, stats    (P,) and (S,), or (R, P) and (R, S); changed in place
    optimizer       SGD or Adam; its rate may be changed between updates
    order           (updates, batch) or (updates, R, batch) integers: the images of each batch
    rng             for dropout: a Generator, or a list of R
    schedule        schedule(t) is the share of the rate at update t = 0, 1, …; None: all of it
    moments         [(Moments or EMA, vector), …]: updated with the vector after every step
    watch           indices of weights; their values after every update are kept in `history`
    record          whether to record; if not, every update launches its kernels one by one

    `losses` is (updates,) or (updates, R), `history` (updates, [R,] watched), on the device. When
    no update could be recorded, `reason` says why.
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
        # The private pool below cannot use memory that CuPy's default pool keeps for later.
        xp.get_default_memory_pool().free_all_blocks()
        # A private pool, and a stream of its own, which no other stream can delay.
        self._allocate = _Allocator(xp.cuda)
        self._pool = xp.cuda.MemoryPool(self._allocate)
        self._stream = xp.cuda.Stream(non_blocking=True)
        lead = theta.shape[:-1]
        self._watch = xp.asarray(np.asarray(watch, np.int64))
        self.losses = xp.empty((self.count, *lead), theta.dtype)
        self.history = xp.full((self.count, *lead, len(watch)), np.nan, theta.dtype)
        self._number = xp.zeros(1, np.int64)
        self._tables = {"batch": xp.asarray(np.asarray(order, np.int64))}
        self.optimizer = optimizer
        self._descent = (_RecordedSGD if isinstance(optimizer, SGD) else _RecordedAdam)(optimizer)
        optimizer.rate = to_host(optimizer.rate)
        self._descent.begin(theta)
        self._averages = [
            (_RecordedEMA if isinstance(kept, EMA) else _RecordedMoments)(kept, vector)
            for kept, vector in moments
        ]
        self._fill_rates(0)
        self._fill_moments()
        self._rows = {name: xp.empty_like(table[:1]) for name, table in self._tables.items()}

    # --- the tables -----------------------------------------------------------------------

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
        """Dropout's seeds for all updates but the first, in the order that plain updates use."""
        generators = self._generators()
        # The first row is not used: the first update took its own seeds.
        seeds = np.zeros((self.count, calls, len(generators)), np.uint64)
        for place, generator in enumerate(generators):
            seeds[1:, :, place] = generator.integers(SEEDS, size=(self.count - 1, calls))
        self._tables["seeds"] = self.xp.asarray(seeds)
        self._rows["seeds"] = self.xp.empty_like(self._tables["seeds"][:1])

    def _generators(self):
        if self.rng is None:
            return []
        return list(self.rng) if isinstance(self.rng, (list, tuple)) else [self.rng]

    # --- one update -----------------------------------------------------------------------

    def _update(self, rng):
        """All the work of an update. It reads the rows only, and never waits for the host."""
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

    def _random(self):
        """Random numbers for an update that is recorded, or could be."""
        if "seeds" not in self._rows:
            return self.rng
        return kernels_of(self.theta).Seeds(self._rows["seeds"][0])

    def _record(self):
        """Record an update; if that is not possible, remember why."""
        failure = None
        self._allocate.ran_out = False
        try:
            self._stream.begin_capture()
            try:
                self._update(self._random())
            except Exception as error:
                failure = error
            finally:
                graph = self._stream.end_capture()
        except Exception as error:
            failure = failure or error
        if failure is None and self._allocate.ran_out:
            # Then the pool gave back what nobody used any more, but for the graph.
            failure = RuntimeError("the GPU's memory ran out while an update was recorded")
        try:
            if isinstance(failure, MemoryError):  # an update without a graph needs as much
                raise failure
            if failure is None:
                self._graph = graph
            else:
                self.record = False
                self.reason = f"{type(failure).__name__}: {failure}"
        finally:
            del failure  # its traceback would keep the arrays of this frame alive

    def __enter__(self):
        # Work that other streams have queued must be done before the first update begins.
        self.xp.cuda.get_current_stream().synchronize()
        self._stream.__enter__()
        return self

    def __exit__(self, *error):
        self._stream.__exit__(*error)
        self._stream.synchronize()  # no kernel changes θ after the block, not even after an error

    def take(self) -> None:
        """Put the next update into the GPU's queue.

        Returns  None: the loss may not be known yet, see `losses`
        """
        number = self.number
        if self._descent.has_changed():
            self._graph = None
            self._descent.begin(self.theta)
            self._fill_rates(number)
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
                if others := counting[0].others:
                    self.record = False
                    self.reason = f"a layer draws random numbers itself: rng.{others[0]}"
                elif counting[0].calls:
                    self._fill_seeds(counting[0].calls)
            else:
                self._update(self._random())


class _Allocator:
    """Memory for a pool, from CUDA itself. It notes when there was none left.

    cuda   `cupy.cuda`
    """

    def __init__(self, cuda):
        self.cuda, self.ran_out = cuda, False

    def __call__(self, size):
        try:
            return self.cuda.MemoryPointer(self.cuda.Memory(size), 0)
        except self.cuda.runtime.CUDARuntimeError:
            self.ran_out = True
            raise


# --- SGD, Adam, Moments and EMA with numbers that lie on the device -------------------------
#
# `numbers` says beforehand which numbers the updates will need; `step` or `update` uses those of
# the current row. `Moments.update` and `EMA.update` also count the updates. Here `count` does that,
# because a recorded update executes no Python.


class _Recorded:
    """An optimizer whose steps are recorded.

    What is recorded has the settings in it, but for the rate, and the addresses of the vectors. The
    vectors are kept here: so no other array can come to lie where they are.
    """

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def begin(self, theta):
        """Make the state's vectors if there are none; from now on they and the settings count."""
        self.optimizer.ready(theta, theta)
        self.numbers_then, self.vectors_then = self._numbers(), self._vectors()

    def has_changed(self):
        """Whether the settings or the vectors are others than at `begin`."""
        now, then = self._vectors(), self.vectors_then
        same = len(now) == len(then) and all(map(operator.is_, now, then))
        return not same or self._numbers() != self.numbers_then

    def _numbers(self):
        own = self.optimizer
        return [getattr(own, name) for name in own.settings if name != "rate"]

    def _vectors(self):
        return [getattr(self.optimizer, name) for name in self.optimizer.vectors]


class _RecordedSGD(_Recorded):
    def numbers(self, count):
        return (self.optimizer.rate,)

    def step(self, theta, gradient, rate):
        own = self.optimizer
        if not own.momentum:
            own.velocity = None
        settings = own.momentum, own.weight_decay
        kernels_of(theta).step_sgd(theta, gradient, own.velocity, rate, *settings)


class _RecordedAdam(_Recorded):
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
        """For each update its number among those that count, from 1; 0 if it does not count."""
        numbers, count = [], self.moments.count
        for seen in range(self.moments.seen + 1, self.moments.seen + 1 + updates):
            counts = self.moments.counts(seen)
            count += counts
            numbers.append(count if counts else 0)
        return np.array(numbers, np.int64)

    def update(self, n):
        """Change the arrays: start anew if n is 1, change nothing if n is 0."""
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
        kernels_of(self.theta).fold_average(self.mean, self.theta, weight)

    def count(self):
        self.ema.count += 1


class _Counting:
    """A Generator that counts how often it is asked for a seed; `others` is what else was asked."""

    def __init__(self, generator):
        self.generator, self.calls, self.others = generator, 0, []

    def integers(self, *given, **options):
        if given != (SEEDS,) or options:
            self.others.append("integers")
        self.calls += 1
        return self.generator.integers(*given, **options)

    def __getattr__(self, name):
        self.others.append(name)
        return getattr(self.generator, name)


def epoch_ends(updates: int, images: int, batch: int) -> list[int]:
    """The last update of each epoch, after which the host reads the losses.

    updates   the number of updates
    images    the number of training images
    batch     images per update
    Returns   numbers of updates, from 0; the very last update is always among them
    """
    each = max(1, images // batch)
    return [*range(each - 1, updates - 1, each), updates - 1]
