# %% [markdown]
# # 2. A tape of scalars
#
# **After this lesson you can** say what reverse mode does, and write it.
#
# *12 minutes of yours, about 5 seconds of the computer's*
#
# To train a network we ask: if this weight grew a little, how much would the loss change? That
# number is the gradient, ∂L/∂w. A network has millions of weights, and we need the gradient for
# each of them.
#
# A computer makes the loss out of the weights in many small steps: sums, products. Each step is so
# simple that its own slope is known:
#
#     c = a + b     if a grows by 1, c grows by 1          ∂c/∂a = 1     ∂c/∂b = 1
#     c = a · b     if a grows by 1, c grows by b          ∂c/∂a = b     ∂c/∂b = a
#
# The chain rule joins the steps. If a is used in the steps c₁, c₂, … then
#
#     ∂L/∂a = ∂L/∂c₁ · ∂c₁/∂a + ∂L/∂c₂ · ∂c₂/∂a + …
#
# In words: *along* a path slopes are multiplied; where paths *meet*, they are added. **Reverse
# mode** uses this formula once per step, from the loss back to the weights. One walk back gives all
# the gradients. For that, each value must remember what it was made from.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import numpy as np

from minires.engine.autodiff import gradients, variable
from minires.testing import check_topological_backward
from minires.testing.classroom import picture_style, rejected

picture_style()


class Value:
    """A number that remembers how it was made.

    data        the number
    made_from   [(value, slope), …]: the values it was made from, each with the slope of this step
    grad        ∂output/∂self, once somebody has walked back
    """

    def __init__(self, data, made_from=()):
        self.data, self.made_from, self.grad = data, made_from, 0.0

    def __add__(self, other):
        return Value(self.data + other.data, [(self, 1.0), (other, 1.0)])

    def __mul__(self, other):
        return Value(self.data * other.data, [(self, other.data), (other, self.data)])


# %% [markdown]
# ## Predict
#
# One neuron has one weight w, one input x and a bias b. It should give 0. So its error is
# e = w·x + b, and its loss is e². We also want w to be small, so we add w²:
#
#     L = (w·x + b)² + w²        with w = 2, x = 3, b = −4
#
# What is ∂L/∂w?
#
# - **a)** 12, from the first square
# - **b)** 4, from the second square
# - **c)** 16, both together
#
# <details><summary>Choose first. Then open.</summary>
#
# c). w goes into the loss by two ways. Through e: 2e · x = 2 · 2 · 3 = 12. Through w²: 2w = 4.
# Where paths meet, we add: 16.
#
# </details>

# %%
w, x, b = Value(2.0), Value(3.0), Value(-4.0)
product = w * x
error = product + b
square = error * error
penalty = w * w
loss = square + penalty

# The tape: all values in the order in which they were made. Nothing is made before its parts, so
# walking back along the tape we meet each value after everything that uses it.
tape = [w, x, b, product, error, square, penalty, loss]
loss.grad = 1.0
for value in reversed(tape):
    for part, slope in value.made_from:
        part.grad += value.grad * slope

print(f"L = {loss.data}, ∂L/∂w = {w.grad}, ∂L/∂x = {x.grad}, ∂L/∂b = {b.grad}")

# %% [markdown]
# ## The picture: values go right, gradients come back
#
# Each box is a value. The upper number was computed on the way to the right. The lower number, the
# gradient, was computed on the way back. A number on an arrow is the slope of that one step.
#
# Check one box by hand: e has gradient 4. Two arrows leave it, both to e·e, each with slope 2.
# So 1 · 2 + 1 · 2 = 4.

# %%
places = {
    "w": (0, 2), "x": (0, 1), "b": (1, 0), "w·x": (1, 1), "e": (2, 0.5),
    "e·e": (3, 0.5), "w·w": (2, 2), "L": (4, 1.25),
}  # fmt: skip
values = dict(zip(["w", "x", "b", "w·x", "e", "e·e", "w·w", "L"], tape, strict=True))
name_of = {id(value): name for name, value in values.items()}

figure, axes = plt.subplots(figsize=(10.5, 5))
for name, value in values.items():
    x1, y1 = places[name]
    twice = len({id(part) for part, _ in value.made_from}) < len(value.made_from)
    for number, (part, slope) in enumerate(value.made_from):
        x0, y0 = places[name_of[id(part)]]
        bend = 0.25 * (2 * number - 1) if twice else 0.0
        axes.annotate(
            "", (x1, y1), (x0, y0),
            arrowprops={
                "arrowstyle": "-|>", "color": "0.35", "lw": 1.6, "shrinkA": 34, "shrinkB": 34,
                "connectionstyle": f"arc3,rad={bend}",
            },
        )  # fmt: skip
        middle = (y0 + y1) / 2 - bend * (x1 - x0) * 0.66
        axes.text((x0 + x1) / 2, middle, f"{slope:g}", ha="center", va="center", fontsize=12,
                  bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip
    axes.text(
        x1, y1, f"{name}\nvalue {value.data:g}\ngrad {value.grad:g}", ha="center", va="center",
        fontsize=12,
        bbox={"boxstyle": "round,pad=0.4", "fc": "#e7f0f5", "ec": "#0b3954", "lw": 1.5},
    )  # fmt: skip
axes.set_xlim(-0.5, 4.5)
axes.set_ylim(-0.5, 2.5)
axes.axis("off")
axes.set_title("L = e·e + w·w with e = w·x + b")
plt.show()

# %% [markdown]
# The engine of this project does the same with arrays. `variable` starts a tape, `gradients` walks
# back along it:

# %%
w2, x2, b2 = (variable(np.array(number)) for number in (2.0, 3.0, -4.0))
print("minires:", *gradients((w2 * x2 + b2) ** 2 + w2 * w2, [w2, x2, b2]))


# %% [markdown]
# ## Exercise: walk back without a tape
#
# Now nobody gives you the tape. You get the last value only, and find everything else through
# `made_from`. The difficult part is the order: a value may hand on its gradient only when *all*
# that was made from it has done so.
#
# A real network makes thousands of values, one from another. So do not let a function call itself
# once per step: Python stops at a depth of about 1000. A list of what is still to do is enough.


# %% tags=["exercise", "backward"]
def backward(output):
    """Fill `grad` of `output` and of every Value that it was made from. Returns nothing.

    output   a Value; afterwards output.grad is 1, and value.grad is ∂output/∂value
    """
    raise NotImplementedError("find an order, then walk back")


# %% tags=["solution", "backward"]
def backward(output):
    """Fill `grad` of `output` and of every Value that it was made from."""
    order, seen, to_do = [], set(), [(output, False)]
    while to_do:
        value, parts_are_in = to_do.pop()
        if parts_are_in:
            order.append(value)
        elif value not in seen:
            seen.add(value)
            to_do.append((value, True))  # comes up again when its parts are in the order
            to_do.extend((part, False) for part, _ in value.made_from)
    for value in order:
        value.grad = 0.0
    output.grad = 1.0
    for value in reversed(order):
        for part, slope in value.made_from:
            part.grad += value.grad * slope


# %% tags=["check", "backward"]
print(check_topological_backward(Value, backward))


# %% tags=["wrong", "backward"]
def overwrites(output):
    """Writes the gradient where it should add: the last path wins."""
    output.grad = 1.0
    to_do = [output]
    while to_do:
        value = to_do.pop()
        for part, slope in value.made_from:
            part.grad = value.grad * slope
            to_do.append(part)


rejected(check_topological_backward, Value, overwrites)


# %% tags=["wrong", "backward"]
def goes_too_early(output):
    """Adds, but hands a gradient on at every visit: what came first is counted again."""
    output.grad = 1.0
    to_do = [output]
    while to_do:
        value = to_do.pop()
        for part, slope in value.made_from:
            part.grad += value.grad * slope
            to_do.append(part)


rejected(check_topological_backward, Value, goes_too_early)


# %% tags=["wrong", "backward"]
def level_by_level(output):
    """Visits each value once, nearest first: some visits come before all gradients are in."""
    output.grad = 1.0
    to_do, seen = [output], {output}
    while to_do:
        value = to_do.pop(0)
        for part, slope in value.made_from:
            part.grad += value.grad * slope
            if part not in seen:
                seen.add(part)
                to_do.append(part)


rejected(check_topological_backward, Value, level_by_level)

# %% [markdown]
# ## What would break this?
#
# **Changing a value after it was used.** The slope of w·x to w is the x *of that moment*. If the
# array of x is changed in place before the walk back, the gradient is wrong, and there is no error.
# So no operation of this engine changes its inputs.
#
# **Walking back twice.** Gradients are *added*. A second walk that does not start from zero gives
# too much: 72 instead of 16 for the weight above, since the values between have kept their
# gradients, too. (PyTorch keeps those of the weights only, and gives twice as much. This is why one
# calls `zero_grad`.) The engine here refuses: a tape is emptied while it is walked.
#
# **Memory.** Every value must be kept until the walk back has passed it. That is why training needs
# much more memory than prediction.
#
# ## Three questions
#
# **1.** Without reverse mode we could move each weight a little and compute the loss again. LeNet
# has 3.3 million weights and needs about 20 thousandths of a second for a loss. How long is one
# step?
#
# <details><summary>Answer</summary>
#
# 3.3 million × 0.02 s = 66,000 s, about 18 hours. The walk back takes two or three times as long as
# the loss itself: 0.05 s.
#
# </details>
#
# **2.** A value is computed, but the loss does not depend on it. What is its gradient?
#
# <details><summary>Answer</summary>
#
# Zero: nothing in the loss changes when it grows. The walk back from the loss never reaches it.
#
# </details>
#
# **3.** Why backwards? One could also carry ∂value/∂w forward, beside each value.
#
# <details><summary>Answer</summary>
#
# One can: that is forward mode. But it needs one walk per *input* w, reverse mode one walk per
# *output*. A network has millions of weights and one loss.
#
# </details>
#
# ## Where this is
#
# In the paper: the gradient ∇ of equation 1 is taken for granted. In the code:
# `minires/engine/autodiff.py`, one page, where `_walk` takes the newest value first: another right
# order. Next: lesson 3 puts arrays in place of numbers.
