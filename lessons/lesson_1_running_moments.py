"""Lesson 1: a mean and a variance without keeping the numbers.

    python -m lessons.lesson_1_running_moments

The method needs the mean and the variance of three million weights over five hundred updates.
Kept, they would fill six gigabytes. Welford's recurrence (eqs. 2-3 of the paper) needs two
numbers a weight. This lesson follows it number by number, and shows how the obvious formula
fails. A second to run; then read `literal_update` and `Moments.update` in minires/moments.py.
"""

import numpy as np

from minires import Moments
from minires.resampling.moments import literal_update


def main():
    rng = np.random.default_rng(0)

    print("1. The recurrence of the paper, on five numbers")
    numbers = [2.0, 4.0, 4.0, 5.0, 10.0]
    mean, variance = 0.0, 0.0
    for t, number in enumerate(numbers):
        mean, variance = literal_update(mean, variance, number, t)
        print(f"   after {number:4}: mean {mean:.4f}   variance {variance:.4f}")
    print(f"   numpy says   : mean {np.mean(numbers):.4f}   variance {np.var(numbers):.4f}")

    print("\n2. The obvious formula, E[x²] − E[x]², in float32")
    weights = 0.1 + 1e-4 * rng.standard_normal((500, 1000))
    weights = weights.astype(np.float32)
    truth = weights.astype(np.float64).var(axis=0)
    total = np.zeros(1000, np.float32)
    squares = np.zeros(1000, np.float32)
    moments = Moments(1000)
    for theta in weights:
        total += theta
        squares += theta**2
        moments.update(theta)
    obvious = squares / np.float32(500) - (total / np.float32(500)) ** 2
    print(f"   negative variances      : {np.mean(obvious < 0):.0%} of the weights")
    print(f"   median error of variance: {np.median(np.abs(obvious / truth - 1)):.0%}")
    error = np.abs(moments.variance / truth - 1).max()
    print(f"   minires.Moments, largest error of any weight: {error:.1e}")

    print("\n3. Two streams, merged as if they had been one")
    first, second = Moments(1000), Moments(1000)
    for theta in weights[:200]:
        first.update(theta)
    for theta in weights[200:]:
        second.update(theta)
    first.merge(second)
    same = np.mean(np.abs(first.std / moments.std - 1) < 1e-6)
    print(f"   σ is that of the single stream, to six digits, for {same:.0%} of the weights")

    print("\nExercise: θ⁰, the weights before fine-tuning, may be far from all that follow. Call")
    print("moments.update(weights[0] + 1) before the loop of step 2: what becomes of σ, now 1e-4?")
    # One of 501 numbers lies 1 away: σ² = 500/501², so σ = 0.045, 450 times too large, and the
    # networks drawn with it are noise. That is why θ⁰ is not counted.


if __name__ == "__main__":
    main()
