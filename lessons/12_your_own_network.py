# %% [markdown]
# # 12. Your own network
#
# **After this lesson you can** improve a network that somebody else trained, and write it back as a
# file that other programs run.
#
# *12 minutes of yours, about 10 seconds of the computer's*
#
# All lessons so far used networks of this project. The title of the paper says "(nearly) every
# neural network". So take one from anywhere: PyTorch, TensorFlow and others write networks to files
# of one common form, **ONNX**. Such a file is a *graph*: a list of nodes, and a list of arrays.
#
# | node | operator | inputs | output |
# |---|---|---|---|
# | 1 | Conv | image, kernel_1, bias_1 | a |
# | 2 | Relu | a | b |
# | 3 | Conv | b, kernel_2, bias_2 | c |
# | … | | | |
#
# To improve it by weight resampling we need three things:
#
# 1. to know which arrays are **weights** θ (and which are shapes, bounds, statistics),
# 2. the gradient of the loss for them: lesson 2's tape, one pullback per operator,
# 3. to write new numbers into the same file, and leave all else as it was.
#
# And we need *images with labels* of the kind that the network was made for. The method needs data.

# %% tags=["setup"]
import atexit
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.data import load, scale
from minires.testing import check_weights_of
from minires.testing.classroom import bar, picture_style, rejected
from minires.training.metrics import accuracy, nll

picture_style()

try:
    import onnx
except ImportError:
    onnx = None
    print(
        "The package onnx is not installed, so the cells that read and write a file do nothing. "
        "The exercise works without it. To see all: pip install onnx, and start again."
    )

# %% [markdown]
# ## A file, so that we need no download
#
# Here is a small network written with the package `onnx` alone, as another program would. Its
# images are *channels first*, (N, 1, 28, 28), as PyTorch has them. (A file of your own: give its
# path to `minires.onnx.load`.)

# %% tags=["sizes"] small={"IMAGES": 300, "TEST": 100, "TRAINING": 6, "FINE_TUNING": 6, "RUNS": 2}
IMAGES, TEST, BATCH = 3000, 1000, 32
TRAINING, FINE_TUNING = 400, 150  # updates
RUNS, RATE = 4, np.float32(0.1)  # of fine-tuning; ℓ₂

# %%
folder = Path(tempfile.mkdtemp(prefix="minires-lesson-12-"))
atexit.register(shutil.rmtree, folder, ignore_errors=True)  # gone when this Python ends
rng = np.random.default_rng(12)


def he(*shape):
    """Random weights: σ² = 2 / number of inputs of a unit."""
    return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)


arrays = {
    "kernel_1": he(6, 1, 5, 5), "bias_1": np.zeros(6, np.float32),
    "kernel_2": he(12, 6, 3, 3), "bias_2": np.zeros(12, np.float32),
    "matrix_1": he(32, 12 * 7 * 7), "bias_3": np.zeros(32, np.float32),
    "matrix_2": he(10, 32), "bias_4": np.zeros(10, np.float32),
    "rows": np.array([0, -1], np.int64),  # a shape, no weight
}  # fmt: skip
convolution = {"strides": [2, 2]}
nodes = [
    ("Conv", ["image", "kernel_1", "bias_1"], "a", {"pads": [2] * 4, **convolution}),
    ("Relu", ["a"], "b", {}),
    ("Conv", ["b", "kernel_2", "bias_2"], "c", {"pads": [1] * 4, **convolution}),
    ("Relu", ["c"], "d", {}),
    ("Reshape", ["d", "rows"], "e", {}),
    ("Gemm", ["e", "matrix_1", "bias_3"], "f", {"transB": 1}),
    ("Relu", ["f"], "g", {}),
    ("Gemm", ["g", "matrix_2", "bias_4"], "logits", {"transB": 1}),
]

if onnx:
    from onnx import helper, numpy_helper

    number = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [output], **s) for op, inputs, output, s in nodes],
        "digits",
        [helper.make_tensor_value_info("image", number, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", number, ["N", 10])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(folder / "new.onnx"))
    network = minires.onnx.load(folder / "new.onnx")
    print(network.summary().replace(str(folder), "…"))

# %% [markdown]
# ## Exercise: which arrays are weights?
#
# Their names do not tell it: anybody may name an array anything. Their type does not tell it
# either. The *place where they are used* does:
#
# | operator | inputs, counted from 0 | weights |
# |---|---|---|
# | Conv, Gemm | x, kernel or matrix, bias | 1 and 2 |
# | MatMul | x, matrix | 1 |
# | BatchNormalization | x, scale, shift, m, v | 1 and 2 (m and v are statistics: lesson 10) |
# | Reshape, Clip | x, a shape or bounds | none |
#
# The bias of Conv and of Gemm may be missing.


# %% tags=["exercise", "weights_of"]
def weights_of(nodes, arrays):
    """The names of the arrays that are weights.

    nodes     a list of (operator, names of its inputs)
    arrays    {name: array}: what the file holds; other names are images or results of nodes
    Returns   a list of names, each once, in the order of their first use
    """
    raise NotImplementedError("go through the nodes")


# %% tags=["solution", "weights_of"]
def weights_of(nodes, arrays):
    """The names of the arrays that are weights."""
    places = {"Conv": (1, 2), "Gemm": (1, 2), "MatMul": (1,), "BatchNormalization": (1, 2)}
    found = []
    for operator, inputs in nodes:
        for place in places.get(operator, ()):
            if place < len(inputs) and inputs[place] in arrays and inputs[place] not in found:
                found.append(inputs[place])
    return found


# %% tags=["check", "weights_of"]
print(check_weights_of(weights_of))


# %% tags=["wrong", "weights_of"]
def every_float(nodes, arrays):
    """Takes the bounds of Clip and the variances of batch norm along: SGD would change them."""
    used = dict.fromkeys(name for _, inputs in nodes for name in inputs if name in arrays)
    return [name for name in used if np.asarray(arrays[name]).dtype.kind == "f"]


rejected(check_weights_of, every_float)


# %% tags=["wrong", "weights_of"]
def counts_shared_arrays_twice(nodes, arrays):
    """An array that two nodes share is one weight: its gradients add, and it moves once."""
    places = {"Conv": (1, 2), "Gemm": (1, 2), "MatMul": (1,), "BatchNormalization": (1, 2)}
    return [
        inputs[place]
        for operator, inputs in nodes
        for place in places.get(operator, ())
        if inputs[place] in arrays
    ]


rejected(check_weights_of, counts_shared_arrays_twice)

# %% [markdown]
# ## Somebody trains it
#
# This is the part that you would not see. The result is `base.onnx`: a network "from elsewhere".

# %%
digits = load("glyphs", train=IMAGES, test=TEST)
images, test_images = (  # channels first
    scale(each).transpose(0, 3, 1, 2).copy() for each in (digits.train_images, digits.test_images)
)
labels, test_labels = digits.train_labels, digits.test_labels


def step(theta, rate):
    """One update of `network`, in place."""
    chosen = rng.choice(IMAGES, BATCH, replace=False)
    _, gradient = network.loss_and_gradient(theta, images[chosen], labels[chosen])
    theta -= rate * gradient


if onnx:
    rng = np.random.default_rng(12)
    network = minires.onnx.load(folder / "new.onnx")
    theta = network.theta.copy()
    for _ in bar(range(TRAINING), "training"):
        step(theta, np.float32(0.05))
    minires.onnx.save(network, folder / "base.onnx", theta=theta)

# %% [markdown]
# ## Predict
#
# We now fine-tune `base.onnx`, four times with other batches, and compare on test images: the file
# as it came (*base*), the last θ, the mean, and an ensemble of ten. Which step brings most?
#
# - **a)** from base to fine-tuned
# - **b)** from fine-tuned to mean
# - **c)** from mean to ensemble
#
# <details><summary>Choose first. Then open.</summary>
#
# For *this* base: a) or b), and c) brings least. Base was trained for a short time, so more
# training alone helps it. That is the trap of every "before and after": compare the mean with the
# *fine-tuned* network, not only with base. What the averaging brings is the difference of these
# two.
#
# </details>

# %%
METHODS = ("base", "fine-tuned", "mean", "ensemble of 10")
scores = np.full((2, RUNS, len(METHODS)), np.nan)  # NLL and accuracy
if onnx:
    network = minires.onnx.load(folder / "base.onnx")
    for run in bar(range(RUNS), "fine-tuning"):
        rng = np.random.default_rng([13, run])
        theta, moments = network.theta.copy(), minires.Moments(network.theta.shape)
        for _ in range(FINE_TUNING):
            step(theta, RATE)
            moments.update(theta)
        members = moments.sample(10, rng)
        for column, p in enumerate(
            (
                network.predict(network.theta, test_images),
                network.predict(theta, test_images),
                network.predict(moments.mean, test_images),
                network.predict(members, test_images).mean(axis=0),
            )
        ):
            scores[:, run, column] = nll(p, test_labels), 100 * accuracy(p, test_labels)

# %% [markdown]
# ## The picture: what each step brings
#
# A grey line is one run of fine-tuning, the squares are the mean of the four.

# %%
if onnx:
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.6))
    for axes, values, label in zip(
        panels,
        scores,
        ("test NLL, nats (down is better)", "test accuracy, % (up is better)"),
        strict=True,
    ):
        axes.plot(METHODS, values.T, color="0.6", linewidth=1, linestyle="-", marker=".", ms=9)
        axes.plot(METHODS, values.mean(axis=0), "s", color="#0b3954", ms=11, linestyle="")
        axes.set_ylabel(label)
    plt.show()
    for name, values, digit in (("NLL", scores[0], 4), ("accuracy", scores[1], 2)):
        d = values[:, 2] - values[:, 1]
        error = d.std(ddof=1) / np.sqrt(RUNS)
        print(f"{name:9} mean − fine-tuned: {d.mean():+.{digit}f} ± {error:.{digit}f} (std. error)")

# %% [markdown]
# ## Write it back, and look whether it is the same
#
# `minires.onnx.save` puts the new numbers into a copy of the file: same nodes, same names. Any
# program that ran the old file runs the new one. (The folder goes when this notebook is closed. To
# keep the file, write it elsewhere.) Do not believe it: read the file again, and compare what it
# *computes*. Where the package `onnxruntime` is installed, it is asked too: a
# program that shares no line with this one.

# %%
if onnx:
    minires.onnx.save(network, folder / "mean.onnx", theta=moments.mean)
    again = minires.onnx.load(folder / "mean.onnx")
    wanted = network.logits(moments.mean, test_images[:100])
    print(
        "read again: largest difference",
        abs(again.logits(again.theta, test_images[:100]) - wanted).max(),
    )
    try:
        import onnxruntime
    except ImportError:
        print("onnxruntime is not installed: not asked")
    else:
        session = onnxruntime.InferenceSession(str(folder / "mean.onnx"))
        (theirs,) = session.run(None, {"image": test_images[:100]})
        print(f"onnxruntime: largest difference {abs(theirs - wanted).max():.1e}, of logits up to "
              f"{abs(wanted).max():.0f}")  # fmt: skip

# %% [markdown]
# ## What would break this?
#
# **Other images than it was made for.** Each network wants its input as in its own training: size,
# order of the channels, range of the numbers. The file does not tell the range. See what happens if
# the digits come in [0, 255] instead of [−1, 1]:

# %%
if onnx:
    grey = (test_images + 1) * np.float32(127.5)
    p = network.predict(moments.mean, grey)
    print(f"in [-1, 1]: {scores[1, -1, 2]:.1f} % right; in [0, 255]: "
          f"{100 * accuracy(p, test_labels):.1f} %, and no error message")  # fmt: skip

# %% [markdown]
# **A network that was averaged already.** Many published networks are averages (an exponential
# moving average of the weights). Then fine-tuning can make them *worse*, since the last θ is no
# average, and the mean may only win back what was there. So always report base too.
#
# **Computing in whole numbers, recurrent layers, control flow.** `minires.onnx.load` names each
# operator that it does not know, and refuses. "(Nearly) every" is not "every".
#
# ## Three questions
#
# **1.** The file needs 4 bytes per weight. How much memory do the moments need beside it, in
# float64?
#
# <details><summary>Answer</summary>
#
# 8 bytes for the mean, 8 for the variance. (Here 4 more for the first θ: lesson 6.) So five times
# the file, for any number of updates.
#
# </details>
#
# **2.** You want to give an ensemble of ten to somebody. In what form?
#
# <details><summary>Answer</summary>
#
# As ten files, or one with ten times the weights. And it takes ten times as long to predict. That
# is why the mean model is the part of the paper that is used in practice.
#
# </details>
#
# **3.** You have 200 labelled images of your own, for a network with 4 million weights. What can go
# wrong?
#
# <details><summary>Answer</summary>
#
# It learns these 200 by heart. Fine-tune with a small rate, keep some images back to see it, and
# compare with base on *those*. Averaging helps against jumping; it does not make new data.
#
# </details>
#
# ## Where this is
#
# In the paper: sections 3.2 and 3.3, Inception-V3 and MobileNet. In the code: `minires/onnx/`
# (`graph.py` finds the weights, `writing.py` writes them), and the command `minires improve`, which
# does all of this for photographs in folders. This was the last lesson. What you know now is most
# of what is in this project. The rest is speed.
