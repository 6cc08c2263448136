"""SGD and Adam, against their formulas written out in float64 and against PyTorch."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minires
from minires import arrays
from minires.resampling.moments import Moments
from minires.training.optimizers import SGD, Adam

SETTINGS = [
    (SGD, {"rate": 0.1}),
    (SGD, {"rate": 0.1, "momentum": 0.9}),
    (SGD, {"rate": 0.1, "weight_decay": 0.03}),
    (SGD, {"rate": 0.1, "momentum": 0.7, "weight_decay": 0.03}),
    (Adam, {}),
    (Adam, {"rate": 0.05, "beta1": 0.8, "beta2": 0.95, "epsilon": 0.1}),
    (Adam, {"rate": 0.05, "beta1": 0.8, "beta2": 0.95, "epsilon": 0.1, "epsilon_inside": True}),
]
every_setting = pytest.mark.parametrize(("kind", "options"), SETTINGS)


def run(optimizer, theta, gradients):
    for gradient in gradients:
        optimizer.step(theta, gradient)
    return theta


def literal_sgd(theta, gradients, rate, momentum=0.0, weight_decay=0.0):
    velocity = 0.0
    for gradient in gradients:
        velocity = momentum * velocity + gradient + weight_decay * theta
        theta = theta - rate * velocity
    return theta


def literal_adam(
    theta, gradients, rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, epsilon_inside=False
):
    """From the definitions: each average is a weighted sum of all gradients so far."""
    for t in range(1, len(gradients) + 1):
        past = gradients[:t]
        age = np.arange(t - 1, -1, -1).reshape(-1, *[1] * theta.ndim)
        first = ((1 - beta1) * beta1**age * past).sum(axis=0)
        second = ((1 - beta2) * beta2**age * past**2).sum(axis=0)
        if epsilon_inside:
            step = (first / (1 - beta1**t)) / (np.sqrt(second / (1 - beta2**t)) + epsilon)
        else:
            step = np.sqrt(1 - beta2**t) / (1 - beta1**t) * first / (np.sqrt(second) + epsilon)
        theta = theta - rate * step
    return theta


LITERAL = {SGD: literal_sgd, Adam: literal_adam}


@every_setting
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (100_000,)])
def test_steps_follow_the_formula(xp, rng, kind, options, dtype, tolerance, shape):
    theta = rng.standard_normal(shape).astype(dtype)
    gradients = rng.standard_normal((4, *shape)).astype(dtype)
    ours = run(kind(**options), xp.asarray(theta.copy()), xp.asarray(gradients))
    expected = LITERAL[kind](theta.astype(np.float64), gradients.astype(np.float64), **options)
    assert ours.dtype == dtype
    np.testing.assert_allclose(arrays.to_host(ours), expected, rtol=tolerance, atol=tolerance)


@every_setting
def test_steps_equal_pytorch(rng, kind, options):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
    if kind is Adam and not options.get("epsilon_inside"):
        options = {**options, "epsilon_inside": True}
    theta = rng.standard_normal(50)
    gradients = rng.standard_normal((20, 50))
    ours = run(kind(**options), theta.copy(), gradients)

    parameter = torch.tensor(theta, requires_grad=True)
    names = dict(options)
    if kind is SGD:
        theirs = torch.optim.SGD([parameter], lr=names.pop("rate"), **names)
    else:
        theirs = torch.optim.Adam(
            [parameter],
            lr=options.get("rate", 1e-3),
            betas=(options.get("beta1", 0.9), options.get("beta2", 0.999)),
            eps=options.get("epsilon", 1e-8),
        )
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        theirs.step()
    np.testing.assert_allclose(ours, parameter.detach().numpy(), rtol=1e-12)


def test_the_two_conventions_for_epsilon_differ(rng):
    theta, gradients = np.zeros(5), rng.standard_normal((3, 5)) * 1e-3
    outside = run(Adam(epsilon=1e-3), theta.copy(), gradients)
    inside = run(Adam(epsilon=1e-3, epsilon_inside=True), theta.copy(), gradients)
    # After one step √(1 − β₂) = 0.03 lies between them: outside, ε weighs 30 times as much.
    assert (np.abs(outside) < 0.5 * np.abs(inside)).all()


def test_the_first_step_of_adam_is_the_rate():
    theta = run(Adam(rate=0.25), np.zeros(3), np.array([[7.0, -0.01, 0.0]]))
    np.testing.assert_allclose(theta, [-0.25, 0.25, 0], rtol=1e-4)


@every_setting
def test_replicas_at_once_equal_one_by_one(rng, kind, options):
    theta = rng.standard_normal((3, 40)).astype(np.float32)
    gradients = rng.standard_normal((5, 3, 40)).astype(np.float32)
    together = run(kind(**options), theta.copy(), gradients)
    for replica in range(3):
        alone = run(kind(**options), theta[replica].copy(), gradients[:, replica])
        np.testing.assert_array_equal(together[replica], alone)


@every_setting
@pytest.mark.parametrize("size", [40, 100_000])
def test_every_replica_may_have_its_own_rate(xp, rng, kind, options, size):
    theta = rng.standard_normal((3, size)).astype(np.float32)
    gradients = rng.standard_normal((4, 3, size)).astype(np.float32)
    rates = np.array([[0.1], [0.0], [0.003]])
    optimizer = kind(**options | {"rate": xp.asarray(rates)})
    together = run(optimizer, xp.asarray(theta.copy()), xp.asarray(gradients[:2]))
    again = kind(**options | {"rate": 0.5})
    again.restore(optimizer.state())
    together = arrays.to_host(run(again, together, xp.asarray(gradients[2:])))
    for replica, rate in enumerate(rates.ravel()):
        alone = kind(**options | {"rate": rate})
        expected = arrays.to_host(
            run(alone, xp.asarray(theta[replica].copy()), xp.asarray(gradients[:, replica]))
        )
        if xp is np:
            np.testing.assert_array_equal(together[replica], expected)
        np.testing.assert_allclose(together[replica], expected, rtol=1e-5, atol=1e-7)
    assert (together[0] != theta[0]).any()
    np.testing.assert_array_equal(together[1], theta[1])


@pytest.mark.parametrize(
    ("rate", "shape", "complaint"),
    [
        ((3,), (3, 4), r"SGD.step: rate is \(3,\), theta \(3, 4\): expected \(3, 1\) for one each"),
        ((2, 1), (3, 4), r"rate is \(2, 1\), theta \(3, 4\): expected \(3, 1\)"),
        ((3, 4), (3, 4), r"rate is \(3, 4\)"),
        ((3, 1), (3,), r"rate is \(3, 1\), theta \(3,\): expected one number"),
    ],
)
def test_rates_that_do_not_fit_the_replicas_are_refused(rate, shape, complaint):
    theta = np.ones(shape)
    with pytest.raises(ValueError, match=complaint):
        SGD(np.full(rate, 0.1)).step(theta, np.ones(shape))
    assert (theta == 1).all()


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_complex_rates_are_refused(kind):
    """NumPy's complex numbers have an order: 0 <= rate is no error."""
    for rate in (0.1 + 0j, np.complex64(0.1), np.full((3, 1), 0.1 + 1j)):
        with pytest.raises(ValueError, match=rf"{kind.__name__}: rate is .*j\)+, expected 0 <= "):
            kind(rate)


def test_momentum_may_change_between_steps(rng):
    gradients = rng.standard_normal((7, 5))
    optimizer, theta, expected, velocity = SGD(0.1), np.zeros(5), np.zeros(5), np.zeros(5)
    for momentum, gradient in zip([0, 0, 0.9, 0.5, 0, 0.9, 0.9], gradients, strict=True):
        optimizer.momentum = momentum
        optimizer.step(theta, gradient)
        velocity = momentum * velocity + gradient
        expected -= 0.1 * velocity
        velocity *= momentum > 0  # without momentum nothing is remembered
        np.testing.assert_allclose(theta, expected, rtol=1e-12)


@every_setting
def test_theta_changes_in_place_and_the_gradient_does_not(rng, kind, options):
    theta, gradient = rng.standard_normal((2, 10))
    gradient.flags.writeable = False
    before = theta.copy()
    optimizer = kind(**options)
    assert optimizer.step(theta, gradient) is None
    optimizer.step(theta, gradient)
    assert (theta != before).all()


@every_setting
@given(cut=st.integers(0, 6))
def test_a_restored_optimizer_goes_on_with_the_same_bits(kind, options, cut):
    rng = np.random.default_rng(cut)
    theta = rng.standard_normal(20).astype(np.float32)
    gradients = rng.standard_normal((6, 20)).astype(np.float32)
    whole = run(kind(**options), theta.copy(), gradients)

    first = kind(**options)
    first.rate *= 0.5
    theta = run(first, theta, gradients[:cut])
    # Through a file's arrays, numbers included, as a checkpoint would.
    state = {name: np.asarray(value) for name, value in first.state().items()}
    second = kind(**options)
    second.restore(state)
    assert second.rate == first.rate
    if cut:
        run(first, np.ones(20, np.float32), gradients)  # must not reach into the copy
    second.rate = first.rate = options.get("rate", 1e-3)
    resumed = run(second, theta.copy(), gradients[cut:])

    halved = kind(**options)
    halved.rate *= 0.5
    expected = np.random.default_rng(cut).standard_normal(20).astype(np.float32)
    run(halved, expected, gradients[:cut])
    halved.rate = second.rate
    np.testing.assert_array_equal(resumed, run(halved, expected, gradients[cut:]))
    assert cut or np.array_equal(resumed, whole)


@pytest.mark.parametrize("kind", [Adam, lambda: SGD(0.1, momentum=0.9)])
def test_a_state_is_a_copy_and_is_copied(rng, kind):
    first, second, theta = kind(), kind(), np.ones(4)
    first.step(theta, rng.standard_normal(4))
    state = first.state()
    kept = {name: np.copy(value) for name, value in state.items()}
    first.step(theta, rng.standard_normal(4))
    second.restore(state)
    second.step(theta, rng.standard_normal(4))
    for name, value in kept.items():
        np.testing.assert_array_equal(state[name], value)


def test_a_state_from_before_momentum_was_set_can_be_restored(rng):
    gradients = rng.standard_normal((4, 20)).astype(np.float32)
    first, theta = SGD(0.1), np.ones(20, np.float32)
    run(first, theta, gradients[:2])
    first.momentum = 0.9
    second, copied = SGD(0.1, momentum=0.9), theta.copy()
    second.restore(first.state())
    assert second.count == 2
    for optimizer, vector in ((first, theta), (second, copied)):
        run(optimizer, vector, gradients[2:])
    np.testing.assert_array_equal(copied, theta)
    with pytest.raises(ValueError, match="holds"):
        SGD(0.1).restore(first.state())


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_list_of_rates_is_refused(kind):
    with pytest.raises(TypeError, match=r"np\.array\(rates\)"):
        kind([0.1, 0.2])


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_rate_of_another_type_gives_the_same_bits(rng, kind):
    theta, gradient = rng.standard_normal((2, 1000)).astype(np.float32)
    plain = run(kind(0.1), theta.copy(), [gradient])
    np.testing.assert_array_equal(run(kind(np.float64(0.1)), theta.copy(), [gradient]), plain)


def test_the_rate_may_change_between_steps():
    optimizer, theta = SGD(1.0), np.zeros(1, np.float32)
    for rate in (1.0, 0.5, np.float64(0.25)):
        optimizer.rate = rate
        optimizer.step(theta, np.ones(1, np.float32))
    assert theta[0] == -1.75


def test_rate_zero_changes_nothing(rng):
    theta = rng.standard_normal(5)
    for optimizer in (SGD(0), SGD(0, momentum=0.9), Adam(0)):
        np.testing.assert_array_equal(run(optimizer, theta.copy(), [theta, theta]), theta)


def test_what_does_not_fit_is_refused_before_anything_changes():
    optimizer, theta = Adam(), np.ones(4, np.float32)
    optimizer.step(theta, theta.copy())
    before = theta.copy()
    for bad_theta, gradient, complaint in [
        (theta, np.ones(3, np.float32), r"Adam.step: theta is \(4,\) float32, gradient is \(3,\)"),
        (theta, np.ones(4), "gradient is .* float64, expected the same"),
        (np.ones(5, np.float32), np.ones(5, np.float32), "use a new optimizer"),
        (np.ones(4), np.ones(4), "use a new optimizer"),
        (np.ones(8, np.float32)[::2], np.ones(4, np.float32), "not contiguous"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            optimizer.step(bad_theta, gradient)
    assert optimizer.count == 1
    np.testing.assert_array_equal(theta, before)


def test_another_optimizers_state_is_refused():
    theta = np.ones(4)
    momentum = SGD(0.1, momentum=0.9)
    momentum.step(theta, theta.copy())
    for other in (SGD(0.1), Adam()):
        with pytest.raises(ValueError, match=r"restore: state holds \['count', 'rate', 'velocity'"):
            other.restore(momentum.state())
    with pytest.raises(ValueError, match=r"state holds \['rate'\]"):
        Adam().restore({"rate": 0.1})
    adam = Adam()
    adam.step(theta, theta.copy())
    with pytest.raises(ValueError, match="second, a mean of squares, is negative"):
        Adam().restore(adam.state() | {"second": -np.ones(4)})


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SGD, {"rate": -1}),
        (SGD, {"rate": np.nan}),
        (SGD, {"rate": 0.1, "momentum": 1}),
        (SGD, {"rate": 0.1, "weight_decay": -1}),
        (Adam, {"rate": np.inf}),
        (SGD, {"rate": np.array([[0.1], [-0.1]])}),
        (Adam, {"rate": np.array([[0.1], [np.nan]])}),
        (Adam, {"beta1": 1}),
        (Adam, {"beta2": -0.1}),
        (Adam, {"epsilon": 0}),
    ],
)
def test_arguments_out_of_range_are_refused(kind, options):
    name = list(options)[-1]
    with pytest.raises(ValueError, match=f"{kind.__name__}: {name} is"):
        kind(**options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(0.1, momentum=0.9, weight_decay=0.01),
        lambda: SGD(np.array([[0.1], [0.3]])),
        lambda: Adam(np.array([[0.1], [0.3]])),
    ],
)
def test_the_formula_as_it_is_written_is_what_the_fast_kernel_does(rng, make):
    """With plain kernels `step` and `Moments.update` run the formula that a student reads."""
    start = rng.standard_normal((2, 7))
    gradients = rng.standard_normal((4, 2, 7))
    found = {}
    for name in ("plain", "cpu"):
        theta, optimizer, moments = start.copy(), make(), Moments(start.shape)
        with minires.kernels(name):
            for gradient in gradients:
                optimizer.step(theta, gradient)
                moments.update(theta)
        found[name] = theta, moments.mean, moments.variance
    for written, fast in zip(found["plain"], found["cpu"], strict=True):
        np.testing.assert_allclose(written, fast, rtol=1e-12)
    assert not np.array_equal(found["cpu"][0], start)


@every_setting
def test_read_only_weights_stay_as_they_are(tmp_path, kind, options):
    """A file that is mapped into memory would otherwise end the process."""
    np.save(tmp_path / "theta.npy", np.ones(1000, np.float32))
    for theta in (np.load(tmp_path / "theta.npy", mmap_mode="r"), np.ones(1000, np.float32)):
        theta.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            kind(**options).step(theta, np.ones(1000, np.float32))
        assert (theta == 1).all()


@every_setting
def test_an_update_has_the_bits_of_the_formula(rng, kind, options):
    """Whatever compiler made the kernels: none may round a product and a sum at once."""
    start, gradients = rng.standard_normal(10_000), rng.standard_normal((3, 10_000))
    results = []
    for kernels in (None, "plain"):
        theta, optimizer = start.astype(np.float32), kind(**options)
        with minires.kernels(kernels) if kernels else contextlib.nullcontext():
            run(optimizer, theta, gradients.astype(np.float32))
        results.append(theta)
    np.testing.assert_array_equal(*results)
