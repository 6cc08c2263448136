"""The first stage of `minires improve`: fine-tune on photographs, and go on after a stop."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minires.arrays.files import content_of, load_arrays, save_arrays
from minires.arrays.text import counted, shown
from minires.commands.evaluate import Examination
from minires.training.fine_tuning import FineTuning
from minires.training.loop import batches, stream

FORMAT = "minires improve 3"
RECOMPUTE_BATCHES = 100  # the most training batches that recomputed statistics are measured on


class State(FineTuning):
    """A fine-tuning, and what was noted about its photographs.

    theta, stats, optimizer, decay   as for `FineTuning`
    notes                            minires.data.imagenet.Notes: files that were left out so far
    """

    def __init__(self, theta: Any, stats: Any, optimizer: Any, decay: float, notes: Any):
        super().__init__(theta, stats, optimizer, decay)
        self.notes = notes

    def save(self, path: Path, settings: dict) -> None:
        """Write everything to one file, which appears only when it is complete.

        path       of the checkpoint
        settings   plain values: what the command line asked for
        """
        save_arrays(
            path,
            format=np.array(FORMAT),
            settings=np.array(json.dumps(settings)),
            notes=np.array(json.dumps(self.notes.rows())),
            **self.arrays(),
        )

    def load(self, path: Path, settings: dict) -> None:
        """Go on from what `save` wrote.

        path       of the checkpoint
        settings   as for `save`
        Raises     ValueError when the file is damaged, or was written with other settings
        """
        names = "format", "settings", "updates", "losses", "notes", "theta", "stats"
        arrays = load_arrays(path, *names)
        if str(arrays["format"]) != FORMAT:
            raise ValueError(
                f"{path} has the format {shown(arrays['format'])}, expected {FORMAT!r}: name "
                "another folder with --out, or delete that file to start anew"
            )
        with content_of(path, "delete that file to start anew"):
            before = {"device": "cpu", "among": False} | json.loads(str(arrays["settings"]))
            changed = [f"{n} was {shown(before.get(n))}, now {v}" for n, v in settings.items()
                       if before.get(n) != v]  # fmt: skip
            if not changed:
                self.restore(arrays)
                for name, kind, text in json.loads(str(arrays["notes"])):
                    self.notes.add(str(name), str(kind), str(text))
        if changed:
            raise ValueError(
                f"{path} was written with other settings ({'; '.join(changed)}): name another "
                "folder with --out, or delete that file to start anew"
            )


def split(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a random share of the photographs.

    count    how many there are
    share    of them held out, in (0, 1)
    seed     decides which
    Returns  indices to train on, indices held out, each in rising order
    Raises   ValueError when one side would be empty
    """
    held = round(count * share)
    if not 0 < held < count:
        raise ValueError(
            f"--holdout {share} of {counted(count, 'picture')} leaves nothing on one side: name "
            "more pictures, or others to compare on with --test-images"
        )
    order = stream(seed, "held-out images").permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def updates_of(
    examination: Examination, state: State, indices: np.ndarray, options: Any
) -> Iterator[tuple]:
    """What `FineTuning.update` takes for every update that is missing, photographs included.

    examination  the network and the photographs
    state        State, as far as it has come
    indices      of the photographs to train on
    options      the command line: updates, batch, seed
    Yields       images (n, …) and labels (n,) of a batch, random numbers for dropout, and the
                 outputs that compete
    Raises       ValueError when no photograph of a batch can be used
    """
    order = batches(len(indices), options.batch, stream(options.seed, "fine-tuning order"))
    plan = (indices[chosen] for chosen in itertools.islice(order, state.updates, options.updates))
    for images, labels, _ in examination.batches(plan):
        if len(labels) == 0:
            raise ValueError(
                f"no picture in the batch of update {state.updates + 1} can be used "
                f"({examination.notes}): mend the files, or use larger batches"
            )
        # A graph of fixed batch takes so many pictures and no fewer: some are shown twice in the
        # place of broken ones.
        images, labels = examination.whole_batches(images, labels)
        targets, classes = examination.targets(labels)
        yield images, targets, stream(options.seed, "fine-tuning dropout", state.updates), classes


def training_batches(job: Any) -> Iterator[Any]:
    """The photographs that recomputed statistics are measured on, batch by batch.

    job      `minires.commands.improve.Job`
    Yields   images (N, …)
    Raises   ValueError when none of them can be used
    """
    examination, batch, count = job.examination, job.options.batch, len(job.training)
    order = batches(count, batch, stream(job.options.seed, "statistics order"))
    plan = itertools.islice(order, min(RECOMPUTE_BATCHES, count // batch))
    empty = True
    for images, labels, _ in examination.batches(job.training[chosen] for chosen in plan):
        if len(labels):
            empty = False
            yield examination.whole_batches(images)[0]
    if empty:
        raise ValueError("no training picture can be used to recompute batch-norm statistics")
