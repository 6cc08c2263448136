# %% [markdown]
# # 6. Mean and variance on the way
#
# **After this lesson you can** derive and code the running mean and variance (eqs. 2-3).
#
# *12 minutes of yours, about 5 seconds of the computer's*
#
# While a network is fine-tuned, every update leaves slightly different weights θ. The method needs
# the mean and the variance of each weight over 500 updates. The paper's LeNet has 3.3 million
# weights. To keep them all takes 500 × 3.3 million × 4 bytes = 6.5 GB. There is a way to keep only
# two numbers per weight, and to throw each θ away at once.
#
# **The mean.** Let x₁ … xₙ be the values that one weight has had, and mₙ their mean. Write the sum
# of the first n − 1 values as (n − 1) mₙ₋₁. Then
#
#     mₙ = ((n − 1) mₙ₋₁ + xₙ) / n = mₙ₋₁ + d / n,     d = xₙ − mₙ₋₁        (eq. 2)
#
# In words: the mean goes one n-th of the way towards the new value.
#
# **The variance.** Let Sₙ be the sum of the squared distances from the mean, Σ (xᵢ − mₙ)². When the
# mean moves by d/n, each of the n − 1 old values gets (d/n)² more in this sum, on average. (The
# mixed terms cancel: distances from a mean sum to zero.) The new value lies d − d/n away. In all:
#
#     Sₙ = Sₙ₋₁ + (n − 1)(d/n)² + (d − d/n)² = Sₙ₋₁ + d² (n − 1)/n          (eq. 3 is Sₙ / n)
#     σ² = Sₙ / n
#
# This is Welford's recurrence, from 1962. Both lines only *add*: nothing large is subtracted from
# something large. That is the point of this lesson.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import numpy as np

from minires import Moments
from minires.resampling.moments import literal_update
from minires.testing import check_merge, check_moments
from minires.testing.classroom import picture_style, rejected

picture_style()

# %% [markdown]
# ## Five numbers, by hand and by the paper
#
# `literal_update` is eqs. 2 and 3 as they are printed. The paper counts from t = 0, so its t is our
# n − 1. Follow the first three lines with a pencil.

# %%
numbers = [2.0, 4.0, 4.0, 5.0, 10.0]
mean, variance = 0.0, 0.0
for t, number in enumerate(numbers):
    mean, variance = literal_update(mean, variance, number, t)
    print(f"after {number:4}: mean {mean:.4f}   variance {variance:.4f}")
print(f"numpy says: mean {np.mean(numbers):.4f}   variance {np.var(numbers):.4f}")

# %% [markdown]
# ## Predict
#
# There is an older formula: σ² = E[x²] − E[x]², the mean of the squares minus the square of the
# mean. It also needs two sums only, and in mathematics it gives the same number.
#
# A weight is near 0.1 and wanders by σ = 0.0001, as weights do in fine-tuning. We take 500 values
# in single precision (float32, about seven digits). The old formula gives
#
# - **a)** the right variance, to about three digits
# - **b)** a variance that is wrong by one percent or so
# - **c)** a variance that is wrong by a half, and below zero for some weights
#
# <details><summary>Choose first. Then open.</summary>
#
# c). x² is near 0.01, and float32 keeps it to about 1e-9. A sum of 500 of them is rounded at every
# step. The variance itself is 1e-8. So hardly one digit of it is left after the subtraction, and
# rounding can push it below zero.
#
# </details>

# %% tags=["sizes"] small={"WEIGHTS": 50, "UPDATES": 600}
WEIGHTS, UPDATES, SIGMA = 1000, 5000, 1e-4

# %%
rng = np.random.default_rng(0)
first = (0.1 + SIGMA * rng.standard_normal((500, WEIGHTS))).astype(np.float32)
squares, total = np.float32(0), np.float32(0)
for theta in first:
    squares = squares + theta**2
    total = total + theta
old_formula = squares / np.float32(500) - (total / np.float32(500)) ** 2
truth = first.var(axis=0, dtype=np.float64)
print(f"variances below zero    : {np.mean(old_formula < 0):.0%} of the weights")
print(f"median error of σ²      : {np.median(np.abs(old_formula / truth - 1)):.0%}")

# %% [markdown]
# ## The picture: three ways to the same number
#
# All three see the same float32 weights. Two keep their sums in float32, the third is
# `minires.Moments`: Welford's recurrence on θ − θ₁, with sums in float64. The line is the median
# over the weights of the relative error of σ². Both axes are logarithmic: from one grid line to the
# next the error is ten times as large.

# %%
looks = np.unique(np.geomspace(4, UPDATES, 40).astype(int))
theta = np.empty((UPDATES, WEIGHTS), np.float32)
for n in range(UPDATES):
    theta[n] = 0.1 + SIGMA * rng.standard_normal(WEIGHTS)

squares, total = np.zeros(WEIGHTS, np.float32), np.zeros(WEIGHTS, np.float32)
mean32, sum32 = np.zeros(WEIGHTS, np.float32), np.zeros(WEIGHTS, np.float32)
moments = Moments(WEIGHTS)
names = ("E[x²] − E[x]², float32", "Welford, float32", "minires.Moments")
errors = {name: [] for name in names}
for n, x in enumerate(theta, 1):
    squares += x * x
    total += x
    d = x - mean32
    mean32 += d / np.float32(n)
    sum32 += d * d * np.float32((n - 1) / n)
    moments.update(x)
    if n in looks:
        right = theta[:n].var(axis=0, dtype=np.float64)
        mine = total / np.float32(n)
        for name, own in zip(
            names, (squares / np.float32(n) - mine * mine, sum32 / n, moments.variance), strict=True
        ):
            errors[name].append(np.median(np.abs(own / right - 1)))

figure, axes = plt.subplots()
for name, marker in zip(names, "so^", strict=True):
    axes.loglog(looks, errors[name], marker=marker, markevery=4)
    axes.text(looks[-1], errors[name][-1] * 2.5, name, ha="right")
axes.axhline(1, color="0.5", linewidth=1, linestyle="-")
axes.text(looks[0], 1.3, "above this line the answer is worthless", color="0.35", fontsize=11)
axes.set_xlabel("number of updates n")
axes.set_ylabel("relative error of σ²")
axes.set_title("The same numbers: only the arithmetic differs")
axes.set_ylim(1e-9, 100)
axes.set_yticks(10.0 ** np.arange(-9, 3))
plt.show()

# %% [markdown]
# `Moments` ends at 10⁻⁸ or so, which is as exact as its float32 answer can be. Welford in float32
# is good enough for *this* weight. It is not for one that drifts slowly: after thousands of updates
# d/n is too small to be added to a float32 mean at all. The last property of exercise 1 tries it.

# %% [markdown]
# ## Exercise 1: your own running moments
#
# Write the class. θ is an array of any shape. It is *the same array* at every call, because SGD
# changes θ in place. So keep numbers, not θ itself.


# %% tags=["exercise", "update"]
class Running:
    """The mean and variance of every weight over the updates seen so far (eqs. 2-3).

    update(theta)   take in the weights after one more update; theta is not changed
    mean            θ̄, an array like theta
    variance        σ², an array like theta, divided by n

    If it has a `count`, this is the number of updates so far.
    """

    def __init__(self, shape):
        self.mean = np.zeros(shape)
        self.variance = np.zeros(shape)

    def update(self, theta):
        raise NotImplementedError("write update")


# %% tags=["solution", "update"]
class Running:
    """The mean and variance of every weight over the updates seen so far."""

    def __init__(self, shape):
        self.count = 0
        self.mean = np.zeros(shape)
        self.squares = np.zeros(shape)

    def update(self, theta):
        self.count += 1
        d = theta - self.mean
        self.mean = self.mean + d / self.count
        self.squares = self.squares + d**2 * (self.count - 1) / self.count

    @property
    def variance(self):
        return self.squares / self.count


# %% tags=["check", "update"]
print(check_moments(Running))


# %% tags=["wrong", "update"]
class OldFormula:
    """E[x²] − E[x]²: right in mathematics, not on a computer."""

    def __init__(self, shape):
        self.count, self.total, self.squares = 0, np.zeros(shape), np.zeros(shape)

    def update(self, theta):
        self.count += 1
        self.total += theta
        self.squares += theta**2

    @property
    def mean(self):
        return self.total / self.count

    @property
    def variance(self):
        return self.squares / self.count - self.mean**2


rejected(check_moments, OldFormula)


# %% tags=["wrong", "update"]
class FirstTwice:
    """Starts at the first θ, and then counts it again."""

    def __init__(self, shape):
        self.count, self.mean = 0, None

    def update(self, theta):
        if self.mean is None:
            self.mean, self.squares, self.count = theta.copy(), 0 * theta, 1
        self.count += 1
        d = theta - self.mean
        self.mean = self.mean + d / self.count
        self.squares = self.squares + d**2 * (self.count - 1) / self.count

    @property
    def variance(self):
        return self.squares / self.count


rejected(check_moments, FirstTwice)


# %% tags=["wrong", "update"]
class KeepsTheta:
    """Keeps every θ. But they are all one array, which SGD changes in place."""

    def __init__(self, shape):
        self.seen = []

    def update(self, theta):
        self.seen.append(theta)

    @property
    def mean(self):
        return np.mean(self.seen, axis=0)

    @property
    def variance(self):
        return np.var(self.seen, axis=0)


rejected(check_moments, KeepsTheta)


# %% [markdown]
# ## Exercise 2: merge two halves
#
# Two computers fine-tune at the same time. Each has its own count, mean and variance. Compute what
# one computer would have found if it had seen all updates. Think first: the means are 0 and 2, both
# variances are 0, both counts are 100. Can the variance of all 200 be 0?


# %% tags=["exercise", "merge"]
def merge(count_a, mean_a, variance_a, count_b, mean_b, variance_b):
    """The moments of both streams together.

    count      how many updates each has seen, 1 or more
    mean       θ̄ of each, arrays of one shape
    variance   σ² of each
    Returns    count, mean, variance of all updates
    """
    raise NotImplementedError("write merge")


# %% tags=["solution", "merge"]
def merge(count_a, mean_a, variance_a, count_b, mean_b, variance_b):
    """The moments of both streams together."""
    count = count_a + count_b
    d = mean_b - mean_a
    mean = mean_a + d * count_b / count
    squares = variance_a * count_a + variance_b * count_b + d**2 * count_a * count_b / count
    return count, mean, squares / count


# %% tags=["check", "merge"]
print(check_merge(merge))


# %% tags=["wrong", "merge"]
def weighs_equally(count_a, mean_a, variance_a, count_b, mean_b, variance_b):
    """Forgets that one half may be longer."""
    d = mean_b - mean_a
    return count_a + count_b, mean_a + d / 2, (variance_a + variance_b) / 2 + d**2 / 4


rejected(check_merge, weighs_equally)


# %% tags=["wrong", "merge"]
def forgets_the_distance(count_a, mean_a, variance_a, count_b, mean_b, variance_b):
    """Averages the variances, as if both halves had the same mean."""
    a, b = count_a / (count_a + count_b), count_b / (count_a + count_b)
    return count_a + count_b, a * mean_a + b * mean_b, a * variance_a + b * variance_b


rejected(check_merge, forgets_the_distance)

# %% [markdown]
# ## What would break this?
#
# **A first value far from all others.** θ⁰, the weights *before* fine-tuning, may be far from all
# that follow. The paper's formula lets θ⁰ drop out: at t = 0 both old values are multiplied by
# zero. See what happens to σ (about 0.0001 here) when one value that lies 1 away is counted:

# %%
with_theta_0 = Moments(WEIGHTS)
with_theta_0.update(first[0] + 1)
for x in first:
    with_theta_0.update(x)
print(f"σ without θ⁰ {np.sqrt(truth).mean():.4f}, with θ⁰ {with_theta_0.std.mean():.4f}")

# %% [markdown]
# One value among 501 makes σ 450 times too large. (σ² = 500/501², so σ = 0.045.)
# Networks sampled with that σ are noise. The mean hardly notices: it moves by 1/501.
#
# **A wrong divisor.** Eq. 3 divides by the number of values, not by that number minus one. At 500
# updates the two differ by 0.2 %, which no accuracy shows. But say which one you used.
#
# ## Three questions
#
# **1.** Why does `Moments` count from θ − θ₁ and not from θ?
#
# <details><summary>Answer</summary>
#
# A weight of 300 that moves by 0.08 would spend four of its sixteen digits on the 300. After the
# shift all sixteen are there for what moves. The variance does not change when all values are
# shifted by the same number.
#
# </details>
#
# **2.** After 500 updates, how much does update number 1 weigh in the mean, and how much number
# 500?
#
# <details><summary>Answer</summary>
#
# Both weigh 1/500. Update 500 enters with weight 1/500; update 1 entered with weight 1, and each
# later step made it smaller: 1 · 1/2 · 2/3 · … · 499/500 = 1/500.
#
# </details>
#
# **3.** Somebody divides by the number of the *epoch* instead of n. What goes wrong?
#
# <details><summary>Answer</summary>
#
# The weights do not shrink fast enough, so the newest updates have almost all the weight. In public
# code with this mistake the last 10 of 3,283 iterates carried 79 % of it: hardly an average.
#
# </details>
#
# ## Where this is
#
# In the paper: section 2, equations 2 and 3. In the code: `minires/resampling/moments.py`, where
# `literal_update` is the formula, and `Moments` is the same made safe for millions of weights.
# Next: lesson 7 collects these numbers from a network that learns.
