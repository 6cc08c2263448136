"""Lesson 2: gradients, from one op to a network.

    python -m lessons.lesson_2_gradients

An op says, beside its result, how a gradient flows back through it: its *pullback* takes the
gradient of the loss to the op's output and gives that to its input. `gradients` does the rest.
A second to run; then read `matmul` in minires/ops.py and `gradients` in minires/autodiff.py.
"""

import numpy as np

from minires import lenet_classic
from minires.engine.autodiff import gradients, op, variable


@op
def softplus(x):
    """log(1 + eˣ): forward and backward stand side by side."""
    return np.logaddexp(0, x), (lambda g: g / (1 + np.exp(-x)),)


def main():
    print("1. An op of our own, and its gradient checked by a finite difference")
    x = variable(np.array([-1.0, 0.0, 2.0]))
    (gradient,) = gradients(softplus(x), [x])
    h = 1e-6
    numeric = (softplus(x.data + h) - softplus(x.data - h)) / (2 * h)
    print(f"   gradient {gradient.round(6)}\n   numeric  {numeric.round(6)}")

    print("\n2. The chain rule is the engine's work: y = softplus(x)² · x")
    x = variable(np.array([0.5]))
    (gradient,) = gradients(softplus(x) ** 2 * x, [x])
    s, slope = np.logaddexp(0, 0.5), 1 / (1 + np.exp(-0.5))
    print(f"   dy/dx at 0.5 = {gradient[0]:.6f}")
    print(f"   by hand      = {2 * s * slope * 0.5 + s**2:.6f}")

    print("\n3. A network is one function of one vector θ")
    rng = np.random.default_rng(0)
    model = lenet_classic()
    print("   " + model.summary().replace("\n", "\n   "))
    theta = model.init(rng, dtype=np.float64)
    images, labels = rng.standard_normal((8, 28, 28, 1)), rng.integers(0, 10, 8)
    loss, gradient = model.loss_and_gradient(theta, images, labels)
    direction = rng.standard_normal(theta.shape)
    ahead, _ = model.loss_and_gradient(theta + h * direction, images, labels)
    behind, _ = model.loss_and_gradient(theta - h * direction, images, labels)
    print(f"\n   loss {loss:.4f}; slope along a random direction:")
    print(f"   by the gradient    {gradient @ direction:.6f}")
    print(f"   by two evaluations {(ahead - behind) / (2 * h):.6f}")

    print("\nExercise: write `swish`, x · sigmoid(x), as an op, and check it the same way.")
    # With s = 1 / (1 + e⁻ˣ) the pullback is g · (s + x · s · (1 − s)).


if __name__ == "__main__":
    main()
