"""Training: the order of batches, equation 1 step by step, the moments it collects, divergence."""

import itertools

import numpy as np
import pytest
from helpers import assert_close
from hypothesis import given
from hypothesis import strategies as st

from minires.networks.layers import BatchNorm, Dense, Dropout, Flatten, ReLU, Sequential
from minires.networks.model import Model
from minires.resampling.moments import Moments, literal_update
from minires.training import loop, metrics, schedules
from minires.training.loop import (
    STREAMS,
    Task,
    batches,
    choose_weights,
    fine_tune,
    score,
    stream,
    train,
)
from minires.training.optimizers import SGD, Adam


class Flat(Sequential):
    """(H, W, C) → features, so that a model of dense layers takes images."""

    def connect(self, shape, layout):
        return super().connect((int(np.prod(shape)),), layout)

    def apply(self, x, run):
        return super().apply(x.reshape(*x.shape[:-3], -1), run)


def small(dropout=0.0):
    layers = Dense(9), ReLU(), Dropout(dropout), Dense(3)
    return Model((2, 3, 1), Flat(*layers))


@pytest.fixture
def task(rng):
    """Three kinds of images that can be told apart."""
    labels = rng.integers(0, 3, 50)
    centres = rng.standard_normal((3, 2, 3, 1))
    images = centres[labels] + 0.3 * rng.standard_normal((50, 2, 3, 1))
    return images.astype(np.float32), labels


def run(model, task, updates=20, seed=3, rate=0.2, phase="training", optimizer=None, batch=8):
    theta = model.init(stream(seed, "initial weights"))
    stats = model.init_stats()
    losses = []
    train(
        Task(model, *task, batch, seed, quiet=True),
        theta,
        stats,
        optimizer or SGD(rate),
        updates,
        phase=phase,
        after_update=lambda number, theta, loss: losses.append(float(loss)),
    )
    return theta, losses


# --- order --------------------------------------------------------------------------------


@given(count=st.integers(1, 40), batch=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_epoch_is_a_permutation_cut_into_batches(count, batch, seed):
    if batch > count:
        with pytest.raises(ValueError, match=f"{batch} examples in a batch, but there are {count}"):
            batches(count, batch, np.random.default_rng(seed))
        return
    order = batches(count, batch, np.random.default_rng(seed))
    literal = np.random.default_rng(seed)
    per_epoch = count // batch
    for _ in range(3):  # the stream goes on from epoch to epoch
        epoch = list(itertools.islice(order, per_epoch))
        assert all(chosen.shape == (batch,) for chosen in epoch)
        seen = np.concatenate(epoch)
        assert len(set(seen.tolist())) == per_epoch * batch, "an example comes twice"
        assert 0 <= seen.min() <= seen.max() < count
        np.testing.assert_array_equal(seen, literal.permutation(count)[: per_epoch * batch])


@pytest.mark.parametrize("batch", [0, -1])
def test_batches_have_examples(batch):
    with pytest.raises(ValueError, match=f"batches: {batch} examples in a batch"):
        batches(10, batch, np.random.default_rng(0))


def test_epochs_differ():
    order = batches(50, 50, np.random.default_rng(0))
    assert (next(order) != next(order)).any()


def test_streams_are_apart_and_repeatable():
    first = {purpose: stream(5, purpose).integers(1 << 60) for purpose in STREAMS}
    assert len(set(first.values())) == len(STREAMS)
    assert first == {purpose: stream(5, purpose).integers(1 << 60) for purpose in STREAMS}
    assert all(stream(6, purpose).integers(1 << 60) != first[purpose] for purpose in STREAMS)
    with pytest.raises(ValueError, match=r"purpose is .weather., expected one of .initial"):
        stream(5, "weather")


# --- training -----------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["training", "fine-tuning"])
def test_training_is_equation_1_step_by_step(task, phase):
    """θ⁽ᵗ⁺¹⁾ = θ⁽ᵗ⁾ − ℓ ∇ of the mean loss of a batch, with the streams that are promised."""
    model = small(dropout=0.3)
    images, labels = task
    theta, losses = run(model, task, 20, rate=0.2, phase=phase)
    expected = model.init(stream(3, "initial weights"))
    dropout = stream(3, f"{phase} dropout")
    order = batches(50, 8, stream(3, f"{phase} order"))
    for number, chosen in enumerate(itertools.islice(order, 20)):
        loss, gradient = model.loss_and_gradient(
            expected, images[chosen], labels[chosen], rng=dropout
        )
        assert losses[number] == float(loss)
        expected -= 0.2 * gradient
    np.testing.assert_array_equal(theta, expected)
    assert len(losses) == 20


def test_training_repeats_to_the_bit_and_depends_on_the_seed_and_the_phase(task):
    model = small(dropout=0.3)
    theta, losses = run(model, task)
    again, losses_again = run(model, task)
    np.testing.assert_array_equal(theta, again)
    assert losses == losses_again
    assert (run(model, task, seed=4)[0] != theta).any()
    other = small(dropout=0.3)
    assert (run(other, task, phase="fine-tuning")[1]) != losses


@pytest.mark.parametrize("optimizer", [SGD(0.3), Adam(0.03)], ids=["SGD", "Adam"])
def test_training_learns(task, optimizer):
    model = small()
    theta, losses = run(model, task, 150, optimizer=optimizer)
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:3])
    assert metrics.accuracy(model.predict(theta, task[0]), task[1]) > 0.9


def test_a_rate_too_high_is_an_error_that_says_so(task):
    """And the overflow that comes before it is no warning of its own."""
    images, labels = task
    with pytest.raises(
        FloatingPointError, match=r"training: the loss is .* of 200: lower the rate, 1e\+30"
    ):
        run(small(), (images * 1e4, labels), 200, rate=1e30)


def test_a_rate_in_place_of_an_optimizer_says_what_to_pass(task):
    model, (images, labels) = small(), task
    theta = model.init(np.random.default_rng(0))
    with pytest.raises(TypeError, match=r"train: optimizer is 0\.1, expected .* minires\.SGD"):
        train(Task(model, images, labels, 8), theta, model.init_stats(), 0.1, updates=1)


def test_the_rate_to_lower_is_the_one_that_was_given(task):
    """Whatever share of it a schedule took when the loss was lost, or one update before."""
    model, (images, labels) = small(), task
    theta, stats = model.init(np.random.default_rng(0)), model.init_stats()
    shares = [1, 1e30, 0.5, 0.25]
    with (
        np.errstate(all="ignore"),
        pytest.raises(FloatingPointError, match=r"at update 3 of 4: lower the rate, 0\.1$"),
    ):
        train(
            Task(model, images, labels, 8, seed=3), theta, stats, SGD(0.1), 4,
            schedule=shares.__getitem__,
        )  # fmt: skip


def test_no_updates_change_nothing(task):
    theta, losses = run(small(), task, updates=0)
    np.testing.assert_array_equal(theta, small().init(stream(3, "initial weights")))
    assert losses == []


def test_no_progress_bar_off_a_terminal(task, capsys):
    model = small()
    for quiet in (True, False):
        train(
            Task(model, *task, 8, 0, quiet), model.init(stream(0, "initial weights")),
            model.init_stats(), SGD(0.1), 3,
        )  # fmt: skip
        loop.predict(model, model.init(stream(0, "initial weights")), task[0], quiet=quiet)
    assert capsys.readouterr() == ("", "")


# --- fine-tuning --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"burn_in": 3, "stride": 2, "ddof": 1}])
def test_fine_tuning_folds_every_update_into_the_moments(task, options):
    model = small(dropout=0.3)
    path = []
    theta = model.init(stream(3, "initial weights"))
    train(
        Task(model, *task, 8, 3, quiet=True), theta.copy(), model.init_stats(), SGD(0.1), 15,
        phase="fine-tuning",
        after_update=lambda number, theta, loss: path.append(theta.astype(float)),
    )  # fmt: skip
    moments, of_stats, history = fine_tune(
        Task(model, *task, 8, 3, quiet=True), theta, model.init_stats(), SGD(0.1), 15,
        watch=[0, 5, 80], **options,
    )  # fmt: skip
    np.testing.assert_array_equal(theta, path[-1].astype(np.float32))
    stride = options.get("stride", 1)
    counted = np.array(path[options.get("burn_in", 0) + stride - 1 :: stride])
    assert moments.count == len(counted)
    assert_close(moments.mean, counted.mean(axis=0), 1e-6)
    assert_close(moments.variance, counted.var(axis=0, ddof=options.get("ddof", 0)), 1e-4)
    assert history.shape == (15, 3)
    np.testing.assert_array_equal(history, np.array(path)[:, [0, 5, 80]].astype(np.float32))
    assert of_stats.mean.shape == (0,)
    if not options:
        mean, variance = 0 * path[0], 0 * path[0]
        for t, weights in enumerate(path):
            mean, variance = literal_update(mean, variance, weights, t)
        assert_close(moments.mean, mean, 1e-6)
        assert_close(moments.variance, variance, 1e-4)
    assert isinstance(moments, Moments)


# --- evaluation ---------------------------------------------------------------------------


def test_predict_is_the_model_s_own_in_batches(task, rng):
    model = small()
    model.batch = 7
    for theta in (model.init(rng), model.init(rng, replicas=2)):
        result = loop.predict(model, theta, task[0], quiet=True)
        assert_close(result, model.predict(theta, task[0]), 1e-6)
        assert result.shape == (*theta.shape[:-1], 50, 3)


def test_scores_are_plain_numbers(rng):
    p = rng.dirichlet(np.ones(3), 20)
    labels = rng.integers(0, 3, 20)
    scores = score(p, labels)
    assert list(scores) == ["accuracy", "nll", "brier", "ece"]
    assert all(type(value) is float for value in scores.values())
    assert scores["accuracy"] == (p.argmax(axis=1) == labels).mean()


def test_watched_weights_are_spread_over_the_layers(rng):
    model = small()
    chosen = choose_weights(model, 6, rng)
    names = [
        entry.name
        for index in chosen
        for entry in model.layout.weights
        if entry.start <= index < entry.start + entry.size
    ]
    assert names == ["dense_1.weight", "dense_2.weight"] * 3


def test_after_an_interrupt_the_rate_is_the_optimizer_s_own(task):
    class Interrupted(SGD):
        steps = 0

        def step(self, theta, gradient):
            self.steps += 1
            if self.steps == 5:
                raise KeyboardInterrupt
            super().step(theta, gradient)

    optimizer, model = Interrupted(0.2), small()
    theta, examples = model.init(stream(3, "initial weights")), Task(model, *task, 8, 3, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        train(examples, theta, model.init_stats(), optimizer, 10, schedule=schedules.cosine(10))
    assert optimizer.rate == 0.2


def test_a_falling_rate_stays_at_its_end():
    for make in (schedules.linear, schedules.cosine):
        share = make(20, 0.1)
        assert share(20) == pytest.approx(0.1)
        assert share(59) == pytest.approx(0.1)


def test_updates_that_are_not_made_have_no_weights(task):
    model = small()
    theta, examples = model.init(stream(3, "initial weights")), Task(model, *task, 8, 3, quiet=True)
    stats = model.init_stats()
    trained = train(examples, theta, stats, SGD(1e36), 50, watch=[0, 1], raise_lost=False)
    assert trained.lost
    assert np.isnan(trained.history[-1]).all()


def test_layers_of_other_kinds_are_predicted_batch_by_batch(rng):
    class Wrapped(Sequential):
        def apply(self, x, forward):
            return super().apply(x, forward)

    model = Model((2, 3, 1), Sequential(Wrapped(BatchNorm()), Flatten(), Dense(3)))
    theta, stats = model.init(rng), model.init_stats()
    images = rng.standard_normal((5, 2, 3, 1)).astype(np.float32)
    found = loop.predict(model, theta, images, stats, quiet=True)
    np.testing.assert_allclose(found, model.predict(theta, images, stats), rtol=1e-6)
