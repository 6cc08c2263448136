"""Gradient descent: plain, with momentum, and Adam. Each changes θ in place.

An optimizer holds its own state vectors, made like θ at the first step, so (P,) and (R, P),
float32 and float64, CPU and GPU are all the same to it. The loop that trains owns θ:

    optimizer = SGD(0.2)
    loss, gradient = model.loss_and_gradient(theta, images, labels, rng=rng)
    optimizer.step(theta, gradient)

`rate` may be changed between steps; that is all a schedule is. R networks side by side may each
have their own: a rate of shape (R, 1) for θ (R, P).
"""

import copy
import math

import numpy as np

from minires.arrays import device_of, to_device, xp_of
from minires.kernels import kernels_of


class _Optimizer:
    """What every optimizer needs: its state made like θ, kept, and given back."""

    vectors = ()  # names of the state vectors; each is None until the first step

    def state(self):
        """Everything that changes from step to step, for going on later bit for bit.

        Returns  dict: "rate", "count" (steps taken) and a copy of each state vector
        """
        state = {"rate": copy.copy(self.rate), "count": self.count}
        for name in self.vectors:
            if getattr(self, name) is not None:
                state[name] = getattr(self, name).copy()
        return state

    def restore(self, state):
        """Go on from what `state` gave, in an optimizer made with the same arguments.

        state    dict; its arrays are copied, and go to θ's device at the next step
        Raises   ValueError when it is another optimizer's
        """
        count = int(state["count"]) if "count" in state else 0
        expected = {"rate", "count"} | (set(self.vectors) if count else set())
        if set(state) != expected:
            raise ValueError(
                f"{type(self).__name__}.restore: state holds {sorted(state)}, "
                f"expected {sorted(expected)} after {count} steps"
            )
        rate = state["rate"]
        self.rate, self.count = rate.copy() if np.ndim(rate) else float(rate), count
        for name in self.vectors:
            setattr(self, name, state[name].copy() if count else None)

    def step(self, theta, gradient):
        """Change θ in place by one step.

        theta      (P,) or (R, P), contiguous; changed
        gradient   shape and dtype of theta; left as it is
        Raises     ValueError when shapes or dtypes differ
        """
        self.prepare(theta, gradient)
        self.count += 1
        self.descend(theta, gradient, *self.numbers(self.count))

    def numbers(self, count):
        """What is not the same at every step, for step number `count`, from 1: ℓ, and perhaps ε.

        Apart from the step itself, so that one recorded on a GPU can be played with new numbers.
        """
        raise NotImplementedError

    def descend(self, theta, gradient, *numbers):
        """Change θ and the state vectors in place; the numbers may be arrays on θ's device."""
        raise NotImplementedError

    def prepare(self, theta, gradient):
        """Check one step's arrays, and make the state vectors if there are none."""
        where = f"{type(self).__name__}.step"
        if gradient.shape != theta.shape or gradient.dtype != theta.dtype:
            raise ValueError(
                f"{where}: theta is {theta.shape} {theta.dtype}, gradient is "
                f"{gradient.shape} {gradient.dtype}, expected the same"
            )
        if not (theta.flags.c_contiguous and gradient.flags.c_contiguous):
            raise ValueError(f"{where}: theta or gradient is not contiguous, pass a copy")
        device = device_of(theta)
        for name in self.vectors:
            vector = getattr(self, name)
            if vector is None:
                setattr(self, name, xp_of(theta).zeros_like(theta))
            elif vector.shape != theta.shape or vector.dtype != theta.dtype:
                raise ValueError(
                    f"{where}: theta is {theta.shape} {theta.dtype}, the {name} of the steps "
                    f"before is {vector.shape} {vector.dtype}: use a new optimizer"
                )
            else:
                setattr(self, name, to_device(vector, device))
        if np.shape(self.rate) not in ((), (*theta.shape[:-1], 1)):
            wanted = f"({len(theta)}, 1) for one each" if theta.ndim == 2 else "one number"
            raise ValueError(
                f"{where}: rate is {np.shape(self.rate)}, theta {theta.shape}: expected {wanted}"
            )


def _beside(theta, numbers):
    """One number, or one for each network, in a vector on θ's device."""
    return xp_of(theta).asarray(numbers, theta.dtype).reshape(-1)


class SGD(_Optimizer):
    """Stochastic gradient descent.

    v ← μ v + g + λ θ
    θ ← θ − ℓ v

    rate           ℓ, the learning rate, at least 0: a number, or (R, 1) for R networks
    momentum       μ, in [0, 1); 0 keeps no state: θ ← θ − ℓ g, eq. 1. It may be changed between
                   steps; from 0 upwards, v starts at 0
    weight_decay   λ, at least 0
    Source         eq. 1, with g the gradient of the mean loss; momentum: Polyak 1964
    """

    def __init__(self, rate, momentum=0.0, weight_decay=0.0):
        _require("SGD", "rate", rate, _all_in_range(rate))
        _require("SGD", "momentum", momentum, 0 <= momentum < 1)
        _require("SGD", "weight_decay", weight_decay, 0 <= weight_decay < math.inf)
        self.rate = rate
        self.momentum = float(momentum)
        self.weight_decay = float(weight_decay)
        self.count = 0
        self.velocity = None

    @property
    def vectors(self):
        return ("velocity",) if self.momentum else ()

    def numbers(self, count):
        return (self.rate,)

    def descend(self, theta, gradient, rate):
        momentum, decay = self.momentum, self.weight_decay
        if not momentum:
            self.velocity = None
        step = kernels_of(theta).step_sgd
        step(theta, gradient, self.velocity, _beside(theta, rate), momentum, decay)


class Adam(_Optimizer):
    """Adaptive moment estimation: a step size for every weight.

    m ← β₁ m + (1 − β₁) g            first:  the gradient's moving average
    v ← β₂ v + (1 − β₂) g²           second: its square's

    The averages start at zero; dividing by 1 − βᵗ after t steps corrects for that. Where ε
    stands relative to the correction differs between programs:

    θ ← θ − ℓ √(1−β₂ᵗ)/(1−β₁ᵗ) m / (√v + ε)             epsilon_inside=False (TensorFlow 1.8)
    θ ← θ − ℓ m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)            epsilon_inside=True (PyTorch)

    rate             ℓ, at least 0: a number, or (R, 1) for R networks
    beta1, beta2     in [0, 1)
    epsilon          > 0
    epsilon_inside   whether the correction of √v is made before ε is added
    Source           Kingma and Ba 2015, arXiv:1412.6980: algorithm 1 is epsilon_inside=True,
                     the faster form at the end of its §2 is epsilon_inside=False
    """

    vectors = ("first", "second")

    def __init__(self, rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, epsilon_inside=False):
        _require("Adam", "rate", rate, _all_in_range(rate))
        _require("Adam", "beta1", beta1, 0 <= beta1 < 1)
        _require("Adam", "beta2", beta2, 0 <= beta2 < 1)
        _require("Adam", "epsilon", epsilon, 0 < epsilon < math.inf)
        self.rate = rate
        self.beta1 = float(beta1)
        self.beta2 = float(beta2)
        self.epsilon = float(epsilon)
        self.epsilon_inside = epsilon_inside
        self.count = 0
        self.first = None
        self.second = None

    def numbers(self, count):
        correction = math.sqrt(1 - self.beta2**count)
        # Inside: √(v/c²) + ε = (√v + c ε)/c, so both conventions are one formula.
        epsilon = self.epsilon * (correction if self.epsilon_inside else 1.0)
        return self.rate * correction / (1 - self.beta1**count), epsilon

    def descend(self, theta, gradient, rate, epsilon):
        numbers = _beside(theta, rate), _beside(theta, epsilon), self.beta1, self.beta2
        kernels_of(theta).step_adam(theta, gradient, self.first, self.second, *numbers)


def _all_in_range(rate):
    """Whether every learning rate is a finite number from 0 up."""
    return bool(((rate >= 0) & (rate < math.inf)).all()) if np.ndim(rate) else 0 <= rate < math.inf


def _require(where, name, value, holds):
    if not holds:
        raise ValueError(f"{where}: {name} is {value}, outside its range (see help({where}))")
