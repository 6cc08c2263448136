"""How good predicted probabilities are: four numbers, one definition each.

Every function takes probabilities (…, N, C) of N images and C classes, and labels (N,). It
returns (…): one number for each network. All sums are in float64, and the same probabilities give
the same numbers in float32 and float64. If a network predicts NaN for an image, `accuracy` counts
that image as wrong, and the other three numbers are NaN.
"""

from typing import Any

import numpy as np

from minires.arrays import checks, to_host, xp_of


def evaluate(probabilities: Any, labels: Any) -> dict[str, Any]:
    """All metrics at once.

    probabilities   (…, N, C) float32 or float64, or a list: each row sums to one
    labels          (N,) integers from 0 to C − 1, or a list of them
    Returns         dict: "accuracy", "nll", "brier" and "ece", each (…) float64 on the host
    Raises          ValueError when shapes do not fit, a row does not hold probabilities, or a
                    label is out of range
    """
    probabilities, labels = _checked("evaluate", probabilities, labels)
    return {
        "accuracy": accuracy(probabilities, labels),
        "nll": nll(probabilities, labels),
        "brier": brier(probabilities, labels),
        "ece": ece(probabilities, labels),
    }


def accuracy(probabilities: Any, labels: Any) -> Any:
    """The fraction of images whose most probable class is the label.

    Of equal probabilities the first class counts as the most probable.

    probabilities, labels, Raises   as in `evaluate`
    Returns   (…) float64, in [0, 1]
    """
    probabilities, labels = _checked("accuracy", probabilities, labels)
    return _on_host(_correct(probabilities, labels).mean(axis=-1))


def top_k(probabilities: Any, labels: Any, k: int = 5) -> Any:
    """The fraction of images whose label is among the k most probable classes.

    Of equal probabilities the first class counts as the most probable.

    probabilities, labels, Raises   as in `evaluate`
    k         how many classes, at least 1; with 1 this is `accuracy`
    Returns   (…) float64, in [0, 1]
    """
    k = checks.whole_number("top_k", "k", k, 1)
    probabilities, labels = _checked("top_k", probabilities, labels)
    return _on_host((place_of_label(probabilities, labels) < k).mean(axis=-1))


def place_of_label(probabilities: Any, labels: Any) -> Any:
    """How many classes are more probable than the label.

    Of equal probabilities the first class counts as the most probable. Where a NaN was
    predicted, the label comes after all classes of any network.

    probabilities   (…, N, C)
    labels          (N,) integers, on the same device
    Returns         (…, N) integers, 0 for the most probable class
    """
    xp = xp_of(probabilities)
    own = probabilities[..., xp.arange(len(labels)), labels][..., None]
    first = xp.arange(probabilities.shape[-1]) < labels[:, None]
    place = ((probabilities > own) | ((probabilities == own) & first)).sum(axis=-1)
    return xp.where(xp.isnan(probabilities).any(axis=-1), np.iinfo(place.dtype).max, place)


def nll(probabilities: Any, labels: Any) -> Any:
    """The negative log-likelihood of the labels, in nats per image.

    −(1/N) Σ_n ln max(p[n, label_n], tiny)

    tiny is the smallest normal number of the dtype, 1.2e-38 for float32. So an image whose label
    has probability zero adds 87.3 to the sum, and not infinity.

    probabilities, labels, Raises   as in `evaluate`
    Returns   (…) float64, at least 0
    """
    probabilities, labels = _checked("nll", probabilities, labels)
    xp = xp_of(probabilities)
    likelihood = probabilities[..., xp.arange(len(labels)), labels]
    likelihood = xp.maximum(likelihood, float(np.finfo(probabilities.dtype).tiny))
    return _on_host(-xp.log(likelihood.astype(np.float64)).mean(axis=-1))


def brier(probabilities: Any, labels: Any) -> Any:
    """The Brier score: the squared error, summed over the classes, averaged over the images.

    (1/N) Σ_n Σ_c (p[n, c] − [c = label_n])²

    probabilities, labels, Raises   as in `evaluate`
    Returns   (…) float64, in [0, 2]
    Source    Brier 1950, Monthly Weather Review 78(1)
    """
    probabilities, labels = _checked("brier", probabilities, labels)
    xp = xp_of(probabilities)
    error = probabilities.astype(np.float64)
    error[..., xp.arange(len(labels)), labels] -= 1
    return _on_host((error * error).sum(axis=-1).mean(axis=-1))


def ece(probabilities: Any, labels: Any, bins: int = 15) -> Any:
    """The expected calibration error: how much confidence and accuracy differ.

    Σ_b |B_b|/N · |mean confidence in B_b − accuracy in B_b|

    An image's confidence is its largest probability. The bins are equally wide and closed on
    the right, B_b = (b/bins, (b+1)/bins]; a confidence of 0 would belong to the first.

    probabilities, labels, Raises   as in `evaluate`
    bins      how many, at least 1
    Returns   (…) float64, in [0, 1]
    Source    Guo et al. 2017, arXiv:1706.04599, eq. 3
    """
    probabilities, labels = _checked("ece", probabilities, labels)
    confidence = probabilities.max(axis=-1)
    return calibration_error(confidence, _correct(probabilities, labels), bins)


def calibration_error(confidence: Any, correct: Any, bins: int = 15) -> Any:
    """The expected calibration error, from confidences and hits.

    confidence  (…, N) float, the largest probability of each image
    correct     (…, N) bool, whether that class is the label
    bins        how many, at least 1, as for `ece`
    Returns     (…) float64, in [0, 1]
    """
    bins = checks.whole_number("ece", "bins", bins, 1)
    # On the host: a GPU would add up the gaps of a bin in an order that changes.
    confidence, correct = to_host(confidence).astype(np.float64), to_host(correct)
    gap, count = confidence - correct, confidence.shape[-1]

    # One bincount for all networks: network r has the bins r·bins … (r+1)·bins − 1.
    networks = gap.size // count
    # Edges and confidences are compared in float32: 0.6 in float32 is 0.60000002, which in
    # float64 would lie above the edge 9/15 and so in another bin.
    inner_edges = (np.arange(1, bins) / bins).astype(np.float32)
    rounded = confidence.reshape(networks, -1).astype(np.float32)
    bin_of = np.searchsorted(inner_edges, rounded, side="left")
    bin_of += bins * np.arange(networks)[:, None]
    gaps = np.bincount(bin_of.reshape(-1), weights=gap.reshape(-1), minlength=networks * bins)
    error = abs(gaps.reshape(networks, bins)).sum(axis=-1) / count
    return error.reshape(gap.shape[:-1])[()]


def _correct(probabilities, labels):
    """Whether each image's most probable class is its label, (…, N) bool."""
    is_number = ~xp_of(probabilities).isnan(probabilities).any(axis=-1)
    return (probabilities.argmax(axis=-1) == labels) & is_number


def _checked(where, probabilities, labels):
    """Both as arrays, once they are known to fit."""
    probabilities = checks.probabilities_of(where, probabilities)
    shape = probabilities.shape
    return probabilities, checks.labels_for(where, labels, shape[-2], shape[-1], probabilities)


def _on_host(value):
    """A NumPy array, or a plain number where there is one network."""
    return to_host(value)[()]
