# %% [markdown]
# # 3. Arrays and broadcasting
#
# **After this lesson you can** write an operation on arrays together with its gradient.
#
# *15 minutes of yours, about 5 seconds of the computer's*
#
# In lesson 2 every step knew its slope, one number. A step on arrays has many inputs and many
# outputs. We do not need all those slopes one by one. We need one function, the **pullback**. It
# takes g, the gradient of the loss with respect to the step's *result*. It gives the gradient of
# the loss with respect to the step's *input*:
#
#     y = f(x)        x's gradient[i] = Σⱼ g[j] · ∂y[j]/∂x[i]        (always the shape of x)
#
# Three pullbacks carry a network:
#
#     y = x · z       for x: g · z                      each number has its own slope
#     Y = X @ W       for X: G @ Wᵀ, for W: Xᵀ @ G      the shapes leave no other choice
#     y = x + b       for b: g, summed over all rows    if b was broadcast: see below
#
# **Broadcasting** is how NumPy adds a bias b of shape (4,) to x of shape (3, 4): it uses the same b
# for each of the three rows. So one number of b goes three ways, and where paths meet, gradients
# are added. *What is copied on the way forward is summed on the way back.*

# %% tags=["setup"]
import matplotlib.pyplot as plt
import numpy as np

from minires.engine.autodiff import gradients, op, variable
from minires.testing import check_gradient, check_matmul, check_unbroadcast
from minires.testing.classroom import picture_style, rejected

picture_style()

# %% [markdown]
# ## An operation of our own
#
# An operation returns its result, and beside it one pullback per input. The engine does the rest:
# it remembers, walks back, and undoes broadcasting. This one is softplus, a smooth form of max(x,
# 0):


# %%
@op
def softplus(x):
    """log(1 + eˣ), and its pullback: the slope is 1 / (1 + e⁻ˣ)."""
    return np.logaddexp(0, x), (lambda g: g / (1 + np.exp(-x)),)


x = variable(np.array([[-1.0, 0.0, 2.0], [0.5, 1.0, 3.0]]))
bias = variable(np.array([0.1, 0.2, 0.3]))
for name, gradient in zip(("x", "bias"), gradients(softplus(x + bias), [x, bias]), strict=True):
    print(f"gradient of {name}, shape {gradient.shape}:\n{gradient.round(4)}")

# %% [markdown]
# ## Predict
#
# How do we know that a pullback is right? We compare it with a *difference quotient*: move x by a
# small step h, and see how much the result changes.
#
#     one-sided: (f(x + h) − f(x)) / h         two-sided: (f(x + h) − f(x − h)) / 2h
#
# In mathematics smaller h is better. On a computer with 16 digits (float64), which step gives the
# smallest error of the *one-sided* quotient?
#
# - **a)** h = 10⁻¹⁵, nearly the smallest that still changes x
# - **b)** h = 10⁻⁸
# - **c)** h = 10⁻³
#
# <details><summary>Choose first. Then open.</summary>
#
# b). Two errors fight. The curve bends: that error is about h. And f(x + h) − f(x) subtracts two
# nearly equal numbers, each known to 10⁻¹⁶ only: that error is about 10⁻¹⁶/h. Their sum is smallest
# where they are equal: h² = 10⁻¹⁶.
#
# </details>

# %%
steps = np.logspace(-16, 0, 129)
point = 0.7
slope = 1 / (1 + np.exp(-point))
one_sided = np.abs((softplus(point + steps) - softplus(point)) / steps - slope)
two_sided = np.abs((softplus(point + steps) - softplus(point - steps)) / (2 * steps) - slope)
# With a complex step nothing is subtracted: f(x + ih) = f(x) + ih·f'(x) − …
complex_step = np.abs(np.log(1 + np.exp(point + 1j * steps)).imag / steps - slope)
for name, error in (("one-sided", one_sided), ("two-sided", two_sided)):
    print(f"{name}: best step {steps[error.argmin()]:.0e}, error there {error.min():.0e}")

# %% [markdown]
# ## The picture: the V
#
# From right to left: the error falls while the bend of the curve gets less, reaches its lowest
# point, and rises again while rounding takes over. The two-sided quotient falls faster. The complex
# step has no left arm, since it subtracts nothing.

# %%
figure, axes = plt.subplots()
least = 1e-17  # where an error is exactly 0, a logarithmic axis has no place for it
for error, name, marker in (
    (one_sided, "one-sided", "s"),
    (two_sided, "two-sided", "o"),
    (complex_step, "complex step", "^"),
):
    axes.loglog(steps, np.maximum(error, least), marker=marker, markevery=16, label=name, lw=1.6)
axes.annotate("rounding: about 10⁻¹⁶ / h", (1e-13, 3e-3), ha="left", fontsize=12)
axes.annotate("bend: about h", (5e-4, 2e-3), ha="right", fontsize=12)
axes.set_xlabel("step h")
axes.set_ylabel("error of the slope")
axes.set_title("A smaller step is not always a better one (softplus at 0.7, float64)")
axes.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, -0.16))
axes.set_ylim(1e-18, 10)
plt.show()

# %% [markdown]
# `check_gradient` below does this for you: two-sided steps, every coordinate of every input, many
# inputs.
#
# ## Exercise 1: undo broadcasting
#
# NumPy has broadcast an array of `shape` to the shape of `gradient`. It can do two things: put new
# axes in front, and stretch axes of length one. Undo both: each element gets the sum over all its
# copies.
#
#     gradient (2, 3, 4), shape (3, 1)   →   sum over axis 0, and over the last axis, which is kept


# %% tags=["exercise", "unbroadcast"]
def unbroadcast(gradient, shape):
    """Sum a gradient over the copies that broadcasting made.

    gradient   an array whose shape `shape` can be broadcast to; it is not changed
    shape      a tuple
    Returns    an array of `shape`
    """
    raise NotImplementedError("sum over what was copied")


# %% tags=["solution", "unbroadcast"]
def unbroadcast(gradient, shape):
    """Sum a gradient over the copies that broadcasting made."""
    new_axes = gradient.ndim - len(shape)
    gradient = gradient.sum(axis=tuple(range(new_axes)))
    stretched = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return gradient.sum(axis=stretched, keepdims=True)


# %% tags=["check", "unbroadcast"]
print(check_unbroadcast(unbroadcast))


# %% tags=["wrong", "unbroadcast"]
def only_new_axes(gradient, shape):
    """Forgets the axes of length one."""
    while gradient.ndim > len(shape):
        gradient = gradient.sum(axis=0)
    return gradient


rejected(check_unbroadcast, only_new_axes)


# %% tags=["wrong", "unbroadcast"]
def loses_axes(gradient, shape):
    """Sums axes of length one, but does not keep them."""
    while gradient.ndim > len(shape):
        gradient = gradient.sum(axis=0)
    return gradient.sum(axis=tuple(i for i, size in enumerate(shape) if size == 1))


rejected(check_unbroadcast, loses_axes)


# %% tags=["wrong", "unbroadcast"]
def takes_the_mean(gradient, shape):
    """The mean over the copies, where the sum is right."""
    while gradient.ndim > len(shape):
        gradient = gradient.mean(axis=0)
    return gradient.mean(axis=tuple(i for i, s in enumerate(shape) if s == 1), keepdims=True)


rejected(check_unbroadcast, takes_the_mean)

# %% [markdown]
# ## Exercise 2: the two pullbacks of a matrix product
#
# Y = X @ W with X (M, K) and W (K, L). G has the shape of Y, (M, L). If you forget the formula, let
# the shapes tell you.


# %% tags=["exercise", "matmul"]
def matmul_pullbacks(x, w, g):
    """The gradients of both factors of y = x @ w.

    x, w      (M, K) and (K, L)
    g         (M, L), the gradient of the loss with respect to y
    Returns   two arrays: the gradient of x (M, K), the gradient of w (K, L)
    """
    raise NotImplementedError("two products, two transposes")


# %% tags=["solution", "matmul"]
def matmul_pullbacks(x, w, g):
    """The gradients of both factors of y = x @ w."""
    return g @ w.T, x.T @ g


# %% tags=["check", "matmul"]
print(check_matmul(matmul_pullbacks))


# %% tags=["wrong", "matmul"]
def transposed_too_late(x, w, g):
    """gᵀ @ x is the transpose of what is wanted: its shape fits when K = L, and only then."""
    return g @ w.T, g.T @ x


rejected(check_matmul, transposed_too_late)


# %% tags=["wrong", "matmul"]
def mean_over_rows(x, w, g):
    """Divides by the number of rows. The loss may do that, a product does not."""
    return g @ w.T, x.T @ g / len(x)


rejected(check_matmul, mean_over_rows)


# %% [markdown]
# ## Exercise 3: an operation of your own
#
# Write swish, x · s with s = 1 / (1 + e⁻ˣ). Return the result and a tuple with one pullback, as
# `softplus` does above. Differentiate it by hand: a product has two terms, and the slope of s is
# s · (1 − s).


# %% tags=["exercise", "swish"]
def swish(x):
    """x / (1 + e⁻ˣ), elementwise.

    x         an array
    Returns   the result, and (pullback,): the function from g to the gradient of x
    """
    raise NotImplementedError("write the result and its pullback")


# %% tags=["solution", "swish"]
def swish(x):
    """x / (1 + e⁻ˣ), elementwise."""
    s = 1 / (1 + np.exp(-x))
    return x * s, (lambda g: g * (s + x * s * (1 - s)),)


# %% tags=["check", "swish"]
print(check_gradient(swish, [(2, 3)], value=lambda x: x / (1 + np.exp(-x))))


# %% tags=["wrong", "swish"]
def one_term_only(x):
    """Treats s as a constant."""
    s = 1 / (1 + np.exp(-x))
    return x * s, (lambda g: g * s,)


rejected(check_gradient, one_term_only, [(2, 3)])


# %% tags=["wrong", "swish"]
def forgets_g(x):
    """The slope alone: right only while g is 1."""
    s = 1 / (1 + np.exp(-x))
    return x * s, (lambda g: s + x * s * (1 - s),)


rejected(check_gradient, forgets_g, [(2, 3)])

# %% [markdown]
# ## What would break this?
#
# **A check with g = 1 only.** Suppose that a pullback forgets to multiply by g. It passes every
# test that asks for the gradient of a plain sum, where g is 1. A good test takes another g.
#
# **A check at a kink.** max(x, 0) has no slope at 0. A difference quotient there gives ½, the
# engine gives 0, and both are fair. Libraries differ here. So may their results, by a little.
#
# **float32.** With seven digits the two-sided quotient is best near h = 10⁻², and is still wrong by
# about 10⁻⁵. Check gradients in float64, then train in float32.
#
# ## Three questions
#
# **1.** A bias of shape (10,) is added to logits of shape (128, 10), and g is all ones. What is the
# bias's gradient?
#
# <details><summary>Answer</summary>
#
# 128 for each of the ten: each number of the bias was used for 128 rows.
#
# </details>
#
# **2.** Why does the engine undo broadcasting, and not each operation?
#
# <details><summary>Answer</summary>
#
# So that it is written once. A pullback may return the gradient in the shape of the result; the
# engine knows the shape of the input and sums. Fewer places, fewer mistakes.
#
# </details>
#
# **3.** A gradient check passes. Can the operation still be wrong?
#
# <details><summary>Answer</summary>
#
# Yes. It only says that result and pullback belong together. If you wrote softplus where swish was
# wanted, both agree and both are wrong.
#
# </details>
#
# ## Where this is
#
# In the paper: nowhere; every framework brings it along. In the code: `minires/engine/ops.py`,
# where each operation stands beside its pullbacks, and `sum_to_shape` in `minires/kernels/sums.py`,
# which is exercise 1. Next: lesson 4 makes a network learn.
