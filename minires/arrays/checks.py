"""The checks of arrays that a caller passes: each in one place, each error in one sentence.

Each function takes `where`, the name of the function that was called, and raises unless its array
fits. An error names the array, what it is, what was expected and, unless it is obvious, the
remedy. A wrong kind of object is a TypeError, a wrong shape, dtype or value a ValueError.

These checks look at shapes and dtypes, which takes no time. Only `labels_for` and
`probabilities_of` look at every number. Images are searched for NaN (`first_not_finite`) only
after a loss was not finite, so that training is not slowed down.
"""

import math
import operator
from typing import Any

import numpy as np

from minires.arrays.device import device_of, to_host, xp_of

ROW_SUM = 1e-3  # how far the sum of a row of probabilities may be from 1


def whole_number(where: str, name: str, value: Any, least: int) -> int:
    """A setting that must be a whole number.

    where    the function that was called
    name     of the setting
    value    what was given
    least    the smallest number that is allowed
    Returns  the number as an int
    Raises   ValueError
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{where}: {name} is {value!r}, expected a whole number >= {least}")
    return number


def one_of(where: str, name: str, value: Any, allowed: Any) -> Any:
    """A setting that must be one of a few.

    where     the function or class that was called
    name      of the setting
    value     what was given
    allowed   what may be given
    Returns   value
    Raises    ValueError that lists what is allowed
    """
    if value not in tuple(allowed):
        choices = ", ".join(map(repr, allowed))
        raise ValueError(f"{where}: {name} is {value!r}, expected one of {choices}")
    return value


def number_in(
    where: str, name: str, value: Any, low: float, high: float = math.inf, low_open: bool = False
) -> float:
    """A setting that must be a number in [low, high), or in (low, high).

    where      the function or class that was called
    name       of the setting
    value      what was given
    low, high  the range
    low_open   whether `low` itself is refused
    Returns    value, unchanged
    Raises     ValueError
    """
    try:
        fits = (low < value if low_open else low <= value) and value < high
        fits = fits and not np.iscomplexobj(value)  # NumPy's complex numbers have an order
    except (TypeError, ValueError):
        fits = False
    if not fits:
        below = "<" if low_open else "<="
        wanted = f"{low} {below} {name}" + (f" < {high}" if high < math.inf else " < infinity")
        raise ValueError(f"{where}: {name} is {value!r}, expected {wanted}")
    return value


def is_array(where: str, name: str, array: Any) -> Any:
    """Refuse anything but a NumPy or CuPy array.

    where    the function that was called
    name     of the array
    array    what was given
    Returns  array
    Raises   TypeError
    """
    if not (hasattr(array, "dtype") and hasattr(array, "shape")):
        raise TypeError(
            f"{where}: {name} is a {type(array).__name__}, expected a NumPy or CuPy array: "
            f"convert it with numpy.asarray({name}, numpy.float32)"
        )
    return array


def array_like(where: str, name: str, array: Any, like: Any) -> Any:
    """An array with the shape and the dtype of another one.

    where    the function that was called
    name     of the array
    array    what was given
    like     the other array
    Returns  array
    Raises   ValueError
    """
    if (array.shape, array.dtype) != (like.shape, like.dtype):
        raise ValueError(
            f"{where}: {name} is {array.shape} {array.dtype}, expected {like.shape} {like.dtype}"
        )
    return array


def generator_of(where: str, rng: Any) -> Any:
    """Refuse a seed, or None, in place of a random generator.

    where    the function that was called
    rng      what was given
    Returns  rng
    Raises   TypeError
    """
    if rng is None or isinstance(rng, (int, float, str, np.integer)):
        raise TypeError(f"{where}: rng is {rng!r}, expected numpy.random.default_rng(seed)")
    return rng


def theta_for(where: str, theta: Any, size: int) -> Any:
    """Weights that fit a network.

    where    the function that was called
    theta    what was given: (P,) or (R, P), float32 or float64
    size     P
    Returns  theta
    Raises   TypeError, ValueError
    """
    is_array(where, "theta", theta)
    if theta.ndim not in (1, 2) or theta.shape[-1] != size or 0 in theta.shape[:-1]:
        raise ValueError(
            f"{where}: theta is {theta.shape}, this model has {size:,} weights: "
            f"expected ({size},) or (R, {size})"
        )
    if theta.dtype not in (np.float32, np.float64):
        raise ValueError(f"{where}: theta is {theta.dtype}, expected float32 or float64")
    return theta


def images_for(where: str, images: Any, theta: Any, input_shape: tuple) -> Any:
    """Images that fit a network and its weights.

    where        the function that was called
    images       what was given: (N, H, W, C), or (R, N, H, W, C), N >= 1
    theta        (P,) or (R, P), checked before
    input_shape  (H, W, C)
    Returns      images
    Raises       TypeError, ValueError
    """
    is_array(where, "images", images)
    lead = theta.shape[:-1]
    fits = images.ndim > 3 and images.shape[:-4] in ((), lead)
    if not fits or images.shape[-3:] != tuple(input_shape):
        wanted = ", ".join(map(str, input_shape))
        also = f" or ({lead[0]}, N, {wanted})" if lead else ""
        raise ValueError(f"{where}: images are {images.shape}, expected (N, {wanted}){also}")
    if images.shape[-4] == 0:
        raise ValueError(f"{where}: images are {images.shape}: there is no image, pass at least 1")
    if images.dtype != theta.dtype:
        raise ValueError(
            f"{where}: images are {images.dtype}, theta is {theta.dtype}: convert the images "
            "(minires.data.scale makes float32 in [−1, 1] of bytes)"
        )
    if device_of(images) != device_of(theta):
        raise ValueError(
            f"{where}: images are on the {device_of(images)}, theta is on the "
            f"{device_of(theta)}: move one of them with minires.to_device"
        )
    return images


def stats_for(where: str, stats: Any, theta: Any, size: int) -> Any:
    """Batch-norm statistics that fit a network and its weights.

    where    the function that was called
    stats    what was given: (S,) or (R, S); None if S is 0
    theta    (P,) or (R, P), checked before
    size     S
    Returns  stats; an empty array for None
    Raises   TypeError, ValueError
    """
    lead = theta.shape[:-1]
    if stats is None:
        if size:
            raise ValueError(
                f"{where}: this model has {size:,} batch-norm statistics: "
                "pass stats=, from model.init_stats()"
            )
        return xp_of(theta).empty((*lead, 0), theta.dtype)
    is_array(where, "stats", stats)
    if stats.shape != (*lead, size):
        raise ValueError(f"{where}: stats is {stats.shape}, expected {(*lead, size)}")
    if stats.dtype.kind != "f":
        raise ValueError(f"{where}: stats is {stats.dtype}, expected {theta.dtype}")
    return stats


def labels_for(where: str, labels: Any, count: int, classes: int, like: Any = None) -> Any:
    """Labels of some images: integers from 0 to classes − 1, one per image.

    where    the function that was called
    labels   what was given: (N,), an array or a list
    count    N, the number of images
    classes  C
    like     an array on the device where the labels are wanted
    Returns  an integer array (N,)
    Raises   ValueError
    """
    if not hasattr(labels, "dtype"):
        labels = np.asarray(labels)
    labels = (np if like is None else xp_of(like)).asarray(labels)
    if labels.dtype.kind not in "iu":
        raise ValueError(labels_are_no_integers(where, labels))
    if labels.shape != (count,):
        raise ValueError(
            f"{where}: {count} images, but labels are {labels.shape}: expected ({count},), "
            "one label per image"
        )
    if labels.size:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ValueError(labels_out_of_range(where, low, high, classes))
    return labels


def labels_are_no_integers(where: str, labels: Any) -> str:
    """The complaint about labels of another kind, and the remedy.

    where    the function that was called
    labels   what was given: an array
    Returns  one line
    """
    remedy = "labels.argmax(axis=-1)" if labels.ndim > 1 else "labels.astype(int)"
    return f"{where}: labels are {labels.dtype} {labels.shape}, expected integers: use {remedy}"


def labels_out_of_range(where: str, low: int, high: int, classes: int) -> str:
    """The complaint about labels that are no class, and the remedy if there is one.

    where      the function that was called
    low, high  the smallest and the largest label
    classes    C
    Returns    one line
    """
    remedy = ""
    if low >= 1 and high == classes:
        remedy = ": do they count from 1? Then subtract 1"
    elif high >= classes:
        remedy = f": the network needs {high + 1} classes for them"
    return f"{where}: labels go from {low} to {high}, expected 0 to {classes - 1}{remedy}"


def batch_of(where: str, batch: Any) -> int | None:
    """How many images to take at once: a whole number from 1 up, or None.

    where    the function that was called
    batch    what was given
    Returns  batch
    Raises   ValueError
    """
    return None if batch is None else whole_number(where, "batch", batch, 1)


def probabilities_of(where: str, probabilities: Any, axes: int = 2) -> Any:
    """Class probabilities: floats from 0 up, and each row sums to 1.

    A row of NaN is accepted: it is the prediction of a network whose training has diverged. The
    caller decides what that means.

    where          the function that was called
    probabilities  what was given: (…, classes), an array or a list
    axes           how many axes it must have at least
    Returns        a float32 or float64 array
    Raises         ValueError
    """
    if not hasattr(probabilities, "dtype"):
        probabilities = np.asarray(probabilities)
    shape = probabilities.shape
    if probabilities.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"{where}: probabilities are {probabilities.dtype}, expected float32 or float64: "
            "convert them with .astype(numpy.float32)"
        )
    if len(shape) < axes or 0 in shape:
        raise ValueError(
            f"{where}: probabilities are {shape}, expected at least {axes} axes, none empty, "
            "the last one the classes"
        )
    xp = xp_of(probabilities)
    sums = probabilities.sum(axis=-1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        bad = (probabilities < 0).any(axis=-1) | (abs(sums - 1) > ROW_SUM)
    if bool(bad.any()):
        place = tuple(int(i) for i in np.unravel_index(int(xp.argmax(bad)), bad.shape))
        row = to_host(probabilities[place])
        raise ValueError(
            f"{where}: row {', '.join(map(str, place))} of the probabilities sums to "
            f"{float(sums[place]):.6g} and its smallest number is {float(row.min()):.6g}, "
            "expected numbers from 0 up that sum to 1 (are these logits? softmax turns them "
            "into probabilities)"
        )
    return probabilities


def first_not_finite(array: Any) -> tuple[int, ...] | None:
    """Where the first NaN or infinity of an array is.

    array    any floats
    Returns  its index, or None
    """
    good = xp_of(array).isfinite(array)
    if bool(good.all()):
        return None
    return tuple(int(i) for i in np.unravel_index(int((~good).argmax()), array.shape))


def images_are_finite(where: str, images: Any) -> None:
    """Refuse images that hold a NaN or an infinity; the error names the place of the first.

    It is called after a loss was not finite: the cause may be the images, not the weights.

    where    the function that was called
    images   (…, N, H, W, C)
    Raises   ValueError
    """
    place = first_not_finite(images)
    if place is not None:
        number, row, column, channel = place[-4:]
        raise ValueError(
            f"{where}: image {number} holds {float(images[place])} at row {row}, column {column}, "
            f"channel {channel}: replace it, every pixel must be a finite number"
        )
