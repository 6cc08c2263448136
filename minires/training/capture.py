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

import numpy as np

from minires.arrays import to_host, xp_of
from minires.kernels import kernels_of

PLAIN = 2  # updates before one is recorded: first compile the kernels, then fill the pool


class Updates:
    """A fixed number of updates of θ on the GPU, each a batch, a step, and the moments.

        updates = Updates(model, theta, stats, images, labels, optimizer, order, rng)
        for number in updates: ...          # 0, 1, …: queued, not necessarily done
        losses = updates.losses.get()

    What the body of the loop asks of the GPU is queued too: it sees θ after this update and before
    the next. Behind the loop all is done.

    model           a Model
    theta, stats    (P,) and (S,), or (R, P) and (R, S); changed in place
    images, labels  (N, H, W, C) and (N,)
    optimizer       SGD or Adam; its rate may be changed between updates
    order           (updates, batch) or (updates, R, batch) integers: the images of each batch
    rng             for dropout: a Generator, or a list of R
    schedule        schedule(t) is the share of the rate at update t = 0, 1, …; without one all
    moments         [(Moments or EMA, vector), …]: folded after every step
    watch           indices of weights whose every value is kept, in `history`
    record          whether to record; else every update launches its kernels itself

    `losses` is (updates,) or (updates, R), `history` (updates, [R,] watched), on the device;
    `loss`, of the last update, is None, since nobody waits for it; `reason` says why nothing
    could be recorded, if so.
    """

    def __init__(
        self,
        model,
        theta,
        stats,
        images,
        labels,
        optimizer,
        order,
        rng=None,
        schedule=None,
        moments=(),
        watch=(),
        record=True,
    ):
        self.model, self.theta, self.stats = model, theta, stats
        self.images, self.labels, self.optimizer = images, labels, optimizer
        self.rng, self.schedule = rng, schedule or constant
        self.moments, self.record = list(moments), record
        self.xp = xp = xp_of(theta)
        self.count = len(order)
        self.reason = self._graph = self.loss = None
        # What the common pool keeps for later, nobody else could use.
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
        optimizer.rate = to_host(optimizer.rate)
        optimizer.prepare(theta, theta)
        for kept, vector in self.moments:
            kept.prepare(vector)
        self._fill_rates(0)
        self._fill_moments()
        self._rows = {name: xp.empty_like(table[:1]) for name, table in self._tables.items()}

    # --- what lies on the device beforehand ---------------------------------------------

    def _fill_rates(self, first):
        """The optimizer's numbers for all updates from `first` on."""
        optimizer, rate, rows = self.optimizer, self.optimizer.rate, []
        for number in range(first, self.count):
            optimizer.rate = rate * self.schedule(number)
            rows.append(optimizer.numbers(optimizer.count + 1 + number - first))
        optimizer.rate, self._rate = rate, np.copy(rate)
        for place, column in enumerate(zip(*rows, strict=True)):
            table = np.stack([np.ravel(numbers) for numbers in column])
            table = self.xp.asarray(table.astype(self.theta.dtype))
            if first:
                self._tables[f"rates {place}"][first:] = table
            else:
                self._tables[f"rates {place}"] = table

    def _fill_moments(self):
        for place, (kept, _) in enumerate(self.moments):
            numbers = kept.next_numbers(self.count)
            self._tables[f"moments {place}"] = self.xp.asarray(np.array(numbers))

    def _fill_seeds(self, calls):
        """Dropout's seeds for all updates but the first, drawn in the order of plain updates."""
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
        loss, gradient = self.model.loss_and_gradient(
            self.theta, self.images[batch], self.labels[batch], stats=self.stats, rng=rng
        )
        numbers = [rows[name][0] for name in rows if name.startswith("rates")]
        self.optimizer.descend(self.theta, gradient, *numbers)
        for place, (kept, vector) in enumerate(self.moments):
            kept.fold(vector, rows[f"moments {place}"])
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

    def __iter__(self):
        xp = self.xp
        # What was queued before, on other streams, is done when the first update begins.
        xp.cuda.get_current_stream().synchronize()
        try:
            for number in range(self.count):
                with self._stream:
                    if not np.array_equal(self._rate, self.optimizer.rate):
                        self._fill_rates(number)
                    if self._graph is not None:
                        self._graph.launch()
                    else:
                        self._plain_or_recorded(number)
                    self.optimizer.count += 1
                    for kept, _ in self.moments:
                        kept.count_update()
                    yield number
        finally:  # whoever leaves the loop early, too, finds nothing still at work on θ
            self._stream.synchronize()

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


class _Counting:
    """A Generator that counts how often it is asked for a seed."""

    def __init__(self, generator):
        self.generator, self.calls = generator, 0

    def integers(self, high):
        self.calls += 1
        return self.generator.integers(high)


def epoch_ends(updates, images, batch):
    """After which updates an epoch is over, and the host looks at the losses."""
    each = max(1, images // batch)
    return [*range(each - 1, updates - 1, each), updates - 1]


def constant(number):
    """The schedule of a rate that stays as it is."""
    return 1
