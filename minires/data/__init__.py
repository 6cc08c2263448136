"""Images to learn from: digits made on the spot, MNIST, folders of photographs.

    from minires.data import load, scale

    data = load("glyphs")                       # made here in seconds, nothing to download
    data = load("mnist", data_dir="~/data")     # the classic, read from disk or downloaded
    images = scale(data.train_images)           # (N, 28, 28, 1) float32 in [-1, 1]

This package knows nothing about networks. It makes arrays or reads them from files.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["NAMES", "Dataset", "cache_folder", "cores", "load", "scale"]

NAMES = ("glyphs", "mnist")


@dataclass(frozen=True)
class Dataset:
    """Images and labels to train on, and others to test on.

    train_images  (N, 28, 28, 1) uint8, ink is bright
    train_labels  (N,) int64, 0 … 9
    test_images   (M, 28, 28, 1) uint8
    test_labels   (M,) int64
    name          what the data are called in a report
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    name: str


def load(
    name: str,
    *,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    progress: bool = True,
    threads: int | None = None,
) -> Dataset:
    """Return a data set by its name.

    name      "glyphs": digits made by the program (minires/data/glyphs.py);
              "mnist": read from disk, downloaded at the first use (minires/data/mnist.py)
    train     number of training images; None: 30,000 glyphs, all of MNIST
    test      number of test images; None: 5,000 glyphs, all of MNIST
    seed      which glyphs are made, an int ≥ 0; MNIST is always the same
    data_dir  folder of the MNIST files, or the folder that holds them as mnist/; None: look in
              the folder named by the environment variable MINIRES_DATA, then in the cache,
              then download
    progress  show a bar while downloading
    threads   how many threads make glyphs; None: one for every core of this process
    Returns   Dataset
    Raises    ValueError for an unknown name, a count that is too large or a damaged file;
              FileNotFoundError when data_dir lacks the files;
              ConnectionError when no mirror delivers them
    """
    if name == "glyphs":
        if data_dir is not None:
            raise ValueError(
                f"load: glyphs are made, not read, so data_dir={os.fspath(data_dir)!r} has no "
                "use here: leave it out, or load 'mnist'"
            )
        from minires.data import glyphs

        counts = {"train": train, "test": test}
        return glyphs.load(
            **{k: n for k, n in counts.items() if n is not None}, seed=seed, threads=threads
        )
    if name == "mnist":
        from minires.data import mnist

        return mnist.load(data_dir, train=train, test=test, progress=progress)
    raise ValueError(f"load: no data set is called {name!r}; there are {', '.join(NAMES)}")


def scale(images: Any) -> Any:
    """Turn grey levels into numbers around zero.

    y = x / 127.5 − 1

    images   (…) uint8, 0 … 255, NumPy or CuPy
    Returns  (…) float32 in [−1, 1], exactly −1 for 0 and 1 for 255
    """
    scaled = images.astype(np.float32)
    scaled /= np.float32(127.5)
    scaled -= np.float32(1)
    return scaled


def cores() -> int:
    """Return the number of cores this process may use, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_folder() -> Path:
    """Return the folder that keeps made and downloaded data for the next time.

    It is the folder named by the environment variable MINIRES_CACHE, or else `minires` in
    XDG_CACHE_HOME or ~/.cache, where the compiled kernels are too. It need not exist yet.
    """
    named = os.environ.get("MINIRES_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minires"
