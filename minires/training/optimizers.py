"""Gradient descent: plain, with momentum, and Adam. Each changes θ in place.

An optimizer makes its own state vectors at the first step, with the shape, the dtype and the
device of θ. So θ may be (P,) or (R, P), float32 or float64, on a CPU or a GPU. The caller holds θ:

    optimizer = SGD(0.2)
    loss, gradient = model.loss_and_gradient(theta, images, labels, rng=rng)
    optimizer.step(theta, gradient)

`rate` may be changed between steps; a schedule does only that. R networks side by side may each
have a rate of their own: rate (R, 1) for θ (R, P).
"""

import copy
import math
from typing import Any

import numpy as np

from minires.arrays import can_be_stepped, checks, device_of, to_device, to_host, xp_of
from minires.kernels.vectors import apply_formula


class _Optimizer:
    """What every optimizer needs: it makes its state vectors, gives them, and takes them back."""

    vectors: tuple[str, ...] = ()  # names of the state vectors; each is None until the first step
    squares: tuple[str, ...] = ()  # those of them that are never negative
    optional: tuple[str, ...] = ()  # those that may be missing; then they start at 0
    settings: tuple[str, ...] = ()  # names of its arguments, for `repr`

    def __repr__(self) -> str:
        given = (f"{name}={getattr(self, name)!r}" for name in self.settings)
        return f"{type(self).__name__}({', '.join(given)})  # {self.count:,} steps taken"

    def state(self) -> dict[str, Any]:
        """Everything that changes from step to step. With it, training goes on bit for bit.

        Returns  dict: "rate", "count" (steps taken) and a copy of each state vector
        """
        state = {"rate": copy.copy(self.rate), "count": self.count}
        for name in self.vectors:
            if getattr(self, name) is not None:
                state[name] = getattr(self, name).copy()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, in an optimizer made with the same arguments.

        state    dict; its arrays are copied, and go to θ's device at the next step
        Raises   ValueError when the state belongs to another kind of optimizer, or is none
        """
        count = np.asarray(state.get("count", 0)).item()
        checks.whole_number(f"{type(self).__name__}.restore", "count", count, 0)
        expected = {"rate", "count"} | (set(self.vectors) if count else set())
        expected -= set(self.optional) - set(state)
        if set(state) != expected:
            raise ValueError(
                f"{type(self).__name__}.restore: state holds {sorted(state)}, "
                f"expected {sorted(expected)} after {count} steps"
            )
        for name in expected - {"rate", "count"}:
            vector = state[name]
            if vector.dtype.kind != "f" or not bool(xp_of(vector).isfinite(vector).all()):
                raise ValueError(
                    f"{type(self).__name__}.restore: {name} is {vector.dtype}, or not finite"
                )
            if name in self.squares and bool((vector < 0).any()):
                raise ValueError(
                    f"{type(self).__name__}.restore: {name}, a mean of squares, is negative"
                )
        rate = _rate_of(f"{type(self).__name__}.restore", state["rate"])
        self.rate, self.count = rate.copy() if np.ndim(rate) else float(rate), count
        for name in self.vectors:
            setattr(self, name, state[name].copy() if name in state else None)

    def step(self, theta: Any, gradient: Any) -> None:
        """Change θ in place by one step.

        theta      (P,) or (R, P), float32 or float64, contiguous or `arrays.aligned`; changed
        gradient   shape and dtype of theta; left as it is
        Raises     ValueError when shapes or dtypes differ
        """
        raise NotImplementedError

    def ready(self, theta: Any, gradient: Any) -> None:
        """Check the arrays of one step, and make the state vectors if there are none.

        theta, gradient, Raises   as for `step`
        """
        where = f"{type(self).__name__}.step"
        for name, array in (("theta", theta), ("gradient", gradient)):
            checks.is_array(where, name, array)
        if gradient.shape != theta.shape or gradient.dtype != theta.dtype:
            raise ValueError(
                f"{where}: theta is {theta.shape} {theta.dtype}, gradient is "
                f"{gradient.shape} {gradient.dtype}, expected the same"
            )
        if theta.dtype.kind != "f":
            raise ValueError(f"{where}: theta is {theta.dtype}, expected float32 or float64")
        if not (can_be_stepped(theta) and can_be_stepped(gradient)):
            raise ValueError(f"{where}: theta or gradient is not contiguous, pass a copy")
        for name in self.vectors:
            vector = getattr(self, name)
            if vector is None:
                setattr(self, name, xp_of(theta).zeros_like(theta))
            elif vector.shape != theta.shape or vector.dtype != theta.dtype:
                raise ValueError(
                    f"{where}: theta is {theta.shape} {theta.dtype}, the {name} of earlier steps "
                    f"is {vector.shape} {vector.dtype}: use a new optimizer"
                )
            else:
                setattr(self, name, to_device(vector, device_of(theta)))
        if np.shape(self.rate) not in ((), (*theta.shape[:-1], 1)):
            wanted = f"({len(theta)}, 1) for one each" if theta.ndim == 2 else "one number"
            raise ValueError(
                f"{where}: rate is {np.shape(self.rate)}, theta {theta.shape}: expected {wanted}"
            )


class SGD(_Optimizer):
    """Stochastic gradient descent.

    v ← μ v + g + λ θ
    θ ← θ − ℓ v

    rate           ℓ, the learning rate, at least 0: a number, or (R, 1) for R networks
    momentum       μ, in [0, 1). With 0 no state is kept: θ ← θ − ℓ g, eq. 1. It may be changed
                   between steps; when it becomes larger than 0, v starts at 0
    weight_decay   λ, at least 0
    Source         eq. 1, with g the gradient of the mean loss; momentum: Polyak 1964
    """

    settings = ("rate", "momentum", "weight_decay")
    optional = ("velocity",)  # if momentum was 0 until now

    def __init__(self, rate: Any, momentum: float = 0.0, weight_decay: float = 0.0):
        self.rate = _rate_of("SGD", rate)
        self.momentum = float(checks.number_in("SGD", "momentum", momentum, 0, 1))
        self.weight_decay = float(checks.number_in("SGD", "weight_decay", weight_decay, 0))
        self.count = 0
        self.velocity = None

    @property
    def vectors(self) -> tuple[str, ...]:
        """The names of its state vectors."""
        return ("velocity",) if self.momentum else ()

    def step(self, theta: Any, gradient: Any) -> None:
        """One step: v ← μ v + g + λ θ,  θ ← θ − ℓ v.

        theta, gradient, Raises   as for every optimizer: theta (P,) or (R, P), changed in place;
                                  gradient like theta; ValueError when they do not fit
        """
        self.ready(theta, gradient)
        self.count += 1
        if not self.momentum:
            self.velocity = None

        def formula(theta, gradient, velocity, rate, momentum, decay):
            if decay:
                gradient = gradient + decay * theta
            if momentum:
                velocity *= momentum
                velocity += gradient
                gradient = velocity
            theta -= rate * gradient

        vectors, settings = (theta, gradient, self.velocity), (self.momentum, self.weight_decay)
        apply_formula(formula, *vectors, numbers=[self.rate], settings=settings, kernel="step_sgd")


class Adam(_Optimizer):
    """Adaptive moment estimation: a step size for every weight.

    m ← β₁ m + (1 − β₁) g            first:  the moving average of the gradient
    v ← β₂ v + (1 − β₂) g²           second: the moving average of its square

    The averages start at zero; dividing by 1 − βᵗ after t steps corrects for that. Programs
    differ in whether ε is added before or after the correction:

    θ ← θ − ℓ √(1−β₂ᵗ)/(1−β₁ᵗ) m / (√v + ε)             epsilon_inside=False (TensorFlow 1.8)
    θ ← θ − ℓ m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)            epsilon_inside=True (PyTorch)

    rate             ℓ, at least 0: a number, or (R, 1) for R networks
    beta1, beta2     in [0, 1)
    epsilon          > 0
    epsilon_inside   whether the correction of √v is made before ε is added
    Source           Kingma and Ba 2015, arXiv:1412.6980: algorithm 1 is epsilon_inside=True,
                     the faster form at the end of its §2 is epsilon_inside=False
    """

    settings = ("rate", "beta1", "beta2", "epsilon", "epsilon_inside")
    vectors = ("first", "second")
    squares = ("second",)

    def __init__(
        self,
        rate: Any = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        epsilon_inside: bool = False,
    ):
        self.rate = _rate_of("Adam", rate)
        self.beta1 = float(checks.number_in("Adam", "beta1", beta1, 0, 1))
        self.beta2 = float(checks.number_in("Adam", "beta2", beta2, 0, 1))
        self.epsilon = float(checks.number_in("Adam", "epsilon", epsilon, 0, low_open=True))
        self.epsilon_inside = epsilon_inside
        self.count = 0
        self.first = None
        self.second = None

    def corrected(self, count: int) -> tuple[Any, float]:
        """The rate and ε of one step, both corrected because the averages start at zero.

        count    t, the number of the step, from 1
        Returns  ℓ √(1−β₂ᵗ)/(1−β₁ᵗ), a number or (R, 1); and ε, or ε √(1−β₂ᵗ) when inside:
                 √(v/c²) + ε = (√v + c ε)/c, so both conventions are one formula
        """
        correction = math.sqrt(1 - self.beta2**count)
        epsilon = self.epsilon * (correction if self.epsilon_inside else 1.0)
        return self.rate * correction / (1 - self.beta1**count), epsilon

    def step(self, theta: Any, gradient: Any) -> None:
        """One step: m and v follow g and g², then θ ← θ − ℓ m / (√v + ε).

        theta, gradient, Raises   as for every optimizer: theta (P,) or (R, P), changed in place;
                                  gradient like theta; ValueError when they do not fit
        """
        self.ready(theta, gradient)
        self.count += 1

        def formula(theta, gradient, first, second, rate, epsilon, beta1, beta2):
            first += (1 - beta1) * (gradient - first)
            second += (1 - beta2) * (gradient * gradient - second)
            theta -= rate * first / (xp_of(second).sqrt(second) + epsilon)

        vectors, numbers = (theta, gradient, self.first, self.second), self.corrected(self.count)
        settings = self.beta1, self.beta2
        apply_formula(formula, *vectors, numbers=numbers, settings=settings, kernel="step_adam")


def _rate_of(where, rate):
    """Check that a learning rate, or each of several, is a finite number from 0 up; return it."""
    if isinstance(rate, (list, tuple)):
        raise TypeError(
            f"{where}: rate is {rate!r}, expected a number, or an array (R, 1) for R networks: "
            "write np.array(rates)[:, None]"
        )
    for number in np.ravel(to_host(rate)) if np.ndim(rate) else [rate]:
        checks.number_in(where, "rate", number, 0)
    return rate
