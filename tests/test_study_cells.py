"""One cell: every method against a literal reference, and nothing but the cell decides."""

from dataclasses import replace

import numpy as np
import pytest

from minires import data as data_tools
from minires.study import cells
from minires.study.cells import Source, Start
from minires.study.experiment import fingerprint
from minires.study.grid import Cell, Profile
from minires.training import loop, metrics
from minires.training.optimizers import SGD

TINY = Profile(
    "tiny",
    "glyphs",
    options={"channels": (3, 4), "hidden": 16},
    epochs=2,
    updates=20,
    batch=16,
    seeds=2,
    l1=(0.2,),
    l1_outside=(),
    l2=(0.05, 0.15),
    baselines=(0.05, 0.15),
    curves=(0.15,),
)
PRE = Cell("sgd", 0.2, 0.5, 1)
CELL = replace(PRE, finetune_optimizer="sgd", l2=0.15)


def compute(cell, profile, source, start=None):
    """One cell alone, as a worker on a CPU does it."""
    (outcome,) = cells.compute([cell], profile, source, None if start is None else [start])
    return outcome


def images_and_labels(rng, count):
    """Ten patterns in noise: a few updates learn them in part."""
    patterns = np.random.default_rng(0).integers(0, 256, (10, 28, 28, 1))
    labels = rng.integers(0, 10, count)
    noise = rng.integers(0, 256, (count, 28, 28, 1))
    return (0.6 * patterns[labels] + 0.4 * noise).astype(np.uint8), labels


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(5)
    return data_tools.Dataset(*images_and_labels(rng, 256), *images_and_labels(rng, 50), "patterns")


@pytest.fixture(scope="module")
def source(dataset, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    source = Source(folder, "glyphs", 256, 50, None, fingerprint(dataset))
    source.share(dataset)
    return source


@pytest.fixture(scope="module")
def pretrained(source):
    return compute(PRE, TINY, source)


@pytest.fixture(scope="module")
def start(pretrained):
    return Start(pretrained.theta, pretrained.record["methods"]["pretrained"])


@pytest.fixture(scope="module")
def outcome(source, start):
    return compute(replace(CELL, seed=1), TINY, source, start)


class Reference:
    """The same, written down a second time: plain loops over plain training steps."""

    def __init__(self, source, cell, theta):
        self.data = source.data()
        self.model = TINY.model(cell.dropout, (28, 28, 1))
        self.cell = cell
        self.start = theta

    def path(self, rate):
        """θ after each of the updates; rate(t) at t = 1 … T."""
        order = loop.batches(256, 16, loop.stream(self.cell.seed, "fine-tuning order"))
        dropout = loop.stream(self.cell.seed, "fine-tuning dropout")
        theta, path = self.start.copy(), []
        for t in range(1, TINY.updates + 1):
            chosen = next(order)
            images, labels = self.data.train_images[chosen], self.data.train_labels[chosen]
            _, gradient = self.model.loss_and_gradient(theta, images, labels, rng=dropout)
            theta = theta - np.float32(rate(t)) * gradient
            path.append(theta)
        return path

    def predict(self, theta):
        return self.model.predict(theta, self.data.test_images)

    def ensemble(self, thetas):
        return np.mean([self.predict(theta) for theta in thetas], axis=0)

    def draws(self, mean, std, count=10):
        streams = loop.stream(self.cell.seed, "sampled networks").spawn(count)
        return [mean + std * s.standard_normal(len(mean), dtype=np.float32) for s in streams]


@pytest.fixture(scope="module")
def reference(source, start):
    return Reference(source, CELL, start.theta)


@pytest.fixture(scope="module")
def path(reference):
    return reference.path(lambda t: 0.15)


def assert_scores(reference, found, probabilities):
    """NLL and Brier agree but for rounding, and so does accuracy where no image is on the edge."""
    expected = metrics.evaluate(probabilities.astype(np.float32), reference.data.test_labels)
    for name in ("nll", "brier"):
        assert found[name] == pytest.approx(expected[name], rel=2e-5)
    top = np.sort(probabilities, axis=-1)
    if (top[:, -1] - top[:, -2]).min() > 1e-5:
        assert found["accuracy"] == pytest.approx(expected["accuracy"])


# --- the paper's method -------------------------------------------------------------------


def test_a_pre_training_is_training(source, pretrained):
    model, data = TINY.model(0.5, (28, 28, 1)), source.data()
    theta = model.init(loop.stream(1, "initial weights"))
    task = loop.Task(model, data.train_images, data.train_labels, 16, 1, quiet=True)
    loop.train(task, theta, model.init_stats(), SGD(0.2), 32)
    assert np.array_equal(pretrained.theta, theta)
    expected = loop.score(model.predict(theta, data.test_images), data.test_labels)
    assert pretrained.record["methods"] == {"pretrained": expected}
    assert expected["accuracy"] > 0.2  # learns something, so the tests below mean something
    assert pretrained.predictions is None


def test_the_papers_methods(outcome, reference, path, start):
    methods = outcome.record["methods"]
    history = np.array(path, np.float64)
    mean = history.mean(axis=0).astype(np.float32)
    std = history.std(axis=0).astype(np.float32)
    drawn = reference.draws(mean, std)
    assert methods["pretrained"] == start.scores
    assert_scores(reference, methods["finetuned"], reference.predict(path[-1]))
    assert_scores(reference, methods["mean"], reference.predict(mean))
    assert_scores(reference, methods["draw"], reference.predict(drawn[0]))
    assert_scores(reference, methods["ensemble_3"], reference.ensemble(drawn[:3]))
    assert_scores(reference, methods["ensemble_10"], reference.ensemble(drawn))
    weights = 0.99 ** np.arange(len(path))[::-1]
    ema = (weights[:, None] * history).sum(axis=0) / weights.sum()
    assert_scores(reference, methods["ema"], reference.predict(ema.astype(np.float32)))
    assert methods["mean"] != methods["finetuned"]
    np.testing.assert_allclose(outcome.predictions, reference.predict(path[-1]), atol=1e-5)


# --- the others at equal budget -----------------------------------------------------------


def test_decayed_falls_along_a_line_to_zero(outcome, reference):
    path = reference.path(lambda t: 0.15 * (1 - (t - 1) / 20))
    assert_scores(reference, outcome.record["methods"]["decayed"], reference.predict(path[-1]))


def test_swa_and_snapshots_come_from_the_ends_of_cycles(outcome, reference):
    """Ten cycles of two updates; Izmailov et al., eq. for α(i) at i = 1 … 20 with c = 2."""

    def alpha(i, c=2, high=0.15, low=0.15 / 100):
        t = ((i - 1) % c + 1) / c
        return (1 - t) * high + t * low

    ends = reference.path(alpha)[1::2]
    assert len(ends) == 10
    methods = outcome.record["methods"]
    swa = np.mean(np.array(ends, np.float64), axis=0).astype(np.float32)
    assert_scores(reference, methods["swa"], reference.predict(swa))
    assert_scores(reference, methods["snapshot"], reference.ensemble(ends))


def test_swag_from_the_weights_collected(outcome, reference, path):
    """Twenty updates: each is collected, so the diagonal is the paper's own Gaussian."""
    methods = outcome.record["methods"]
    assert methods["swag"] == methods["ensemble_10"]
    history = np.array(path, np.float64)
    mean, std = history.mean(axis=0), history.std(axis=0)
    d = np.array([history[i] - history[: i + 1].mean(axis=0) for i in range(10, 20)])
    members = []
    for own in loop.stream(1, "sampled networks").spawn(10):
        z1 = own.standard_normal(len(mean), dtype=np.float32)
        members.append(mean + std * z1 / np.sqrt(2) + own.standard_normal(10) @ d / np.sqrt(18))
    members = np.array(members).astype(np.float32)
    assert_scores(reference, methods["swag_low_rank"], reference.ensemble(members))


def test_swag_collects_seldom_where_there_are_more_updates(source, start):
    profile = replace(TINY, updates=45)
    found = compute(CELL, profile, source, start).record["methods"]
    assert found["swag"] != found["ensemble_10"]


def test_isotropic_noise_is_equal_within_each_array(outcome, reference, path):
    history = np.array(path, np.float64)
    level = np.empty(history.shape[1])
    for entry in reference.model.layout.weights:
        part = slice(entry.start, entry.start + entry.size)
        level[part] = np.sqrt(history[:, part].var(axis=0).mean())
    members = reference.draws(history.mean(axis=0).astype(np.float32), level.astype(np.float32))
    found = outcome.record["methods"]["isotropic_10"]
    assert_scores(reference, found, reference.ensemble(members))
    assert found != outcome.record["methods"]["ensemble_10"]


def test_mc_dropout_is_ten_passes_with_dropout(outcome, reference, path):
    """By hand: the hidden layer is cut out, half of it dropped, the rest doubled."""
    model, images = reference.model, reference.data.test_images
    *before, dropout, _ = model.network.layers
    assert dropout.rate == 0.5
    run = cells.ForwardPass(model.layout, path[-1], model.init_stats())
    hidden = images
    for layer in before:
        hidden = layer.apply(hidden, run)
    weight, bias = (entry.view(path[-1]) for entry in model.layout.weights[-2:])
    passes = []
    for rng in loop.stream(1, "sampled networks").spawn(10):
        kept = rng.random(hidden.shape, np.float32) >= 0.5
        logits = (hidden * kept * 2) @ weight + bias
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        passes.append(odds / odds.sum(axis=1, keepdims=True))
    found = outcome.record["methods"]["mc_dropout_10"]
    assert_scores(reference, found, np.mean(passes, axis=0))
    assert len({p.tobytes() for p in passes}) == 10


def test_without_dropout_there_is_no_mc_dropout(source, monkeypatch):
    profile = replace(TINY, dropout=(0.0,))
    pre = compute(replace(PRE, dropout=0.0), profile, source)
    start = Start(pre.theta, pre.record["methods"]["pretrained"])
    found = compute(replace(CELL, dropout=0.0), profile, source, start)
    assert "mc_dropout_10" not in found.record["methods"]
    assert "swa" in found.record["methods"]


def test_schedules_at_their_ends():
    line = cells.linear(500)
    assert line(0) == 1
    assert line(499) == pytest.approx(1 / 500)
    saw = cells.cyclic(50)
    assert saw(0) == pytest.approx(1 - 0.99 / 50)
    assert saw(49) == pytest.approx(0.01)
    assert saw(50) == saw(0)


# --- what else a cell says ----------------------------------------------------------------


def test_mcnemar_counts_who_alone_is_right(outcome, reference, path):
    labels = reference.data.test_labels
    history = np.array(path, np.float64)
    mean, std = (f(history, axis=0).astype(np.float32) for f in (np.mean, np.std))
    three = reference.ensemble(reference.draws(mean, std)[:3])
    right = {
        "finetuned": reference.predict(path[-1]).argmax(axis=1) == labels,
        "mean": reference.predict(mean).argmax(axis=1) == labels,
        "ensemble_3": three.argmax(axis=1) == labels,
    }

    def count(a, b):
        pairs = list(zip(right[a], right[b], strict=True))
        return [pairs.count((True, False)), pairs.count((False, True))]

    found = outcome.record["mcnemar"]
    assert found["mean"] == count("finetuned", "mean")
    assert found["ensemble_3"] == count("finetuned", "ensemble_3")
    assert found["mean_vs_ensemble_3"] == count("mean", "ensemble_3")
    assert set(found) == {"mean", "ensemble_3", "ensemble_10", "mean_vs_ensemble_3"}
    assert sum(found["mean"]) > 0


def test_curves(outcome, reference, path):
    curves, methods = outcome.record["curves"], outcome.record["methods"]
    ensemble = curves["ensemble"]
    assert ensemble["members"] == list(range(1, 11))
    for k, name in ((1, "draw"), (3, "ensemble_3"), (10, "ensemble_10")):
        assert ensemble["nll"][k - 1] == methods[name]["nll"]
        assert ensemble["accuracy"][k - 1] == methods[name]["accuracy"]
    updates = curves["updates"]
    assert updates["updates"] == [1, 2, 5, 10, 20]
    for t, nll in zip(updates["updates"], updates["nll"], strict=True):
        mean = np.mean(np.array(path[:t], np.float64), axis=0).astype(np.float32)
        expected = metrics.nll(reference.predict(mean), reference.data.test_labels)
        assert nll == pytest.approx(expected, rel=2e-5)
    noise = curves["noise"]
    assert noise["scale"] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert noise["nll"][0] == pytest.approx(methods["mean"]["nll"], rel=1e-6)
    history = np.array(path, np.float64)
    mean, std = (f(history, axis=0).astype(np.float32) for f in (np.mean, np.std))
    for scale, nll in zip(noise["scale"], noise["nll"], strict=True):
        members = reference.draws(mean, np.float32(scale) * std, 3)
        scores = [metrics.nll(reference.predict(m), reference.data.test_labels) for m in members]
        assert nll == pytest.approx(np.mean(scores), rel=2e-5)


def test_the_reliability_diagram_adds_up_to_the_ece(outcome):
    for name in ("finetuned", "mean", "ensemble_10"):
        found = outcome.record["reliability"][name]
        assert sum(found["count"]) == 50
        gaps = [
            count * abs(confidence - accuracy)
            for confidence, accuracy, count in zip(*found.values(), strict=True)
            if count
        ]
        assert sum(gaps) / 50 == pytest.approx(outcome.record["methods"][name]["ece"], rel=1e-9)
        for confidence, count in zip(found["confidence"], found["count"], strict=True):
            assert (confidence is None) == (count == 0)


def test_bins_of_confidence_are_closed_on_the_right():
    """9/15 is the upper edge of the ninth bin, a hair more belongs to the tenth; as in the ECE."""
    confidence = np.array([0.6, np.nextafter(0.6, 1), 1.0, 1.0])
    found = cells._reliability(np.stack([confidence, 1 - confidence], axis=1), np.zeros(4, int))
    assert [k for k, count in enumerate(found["count"]) if count] == [8, 9, 14]
    assert found["count"][14] == 2
    assert found["accuracy"][8] == 1


def test_the_moments_are_checked_against_all_weights_kept(outcome, source, start, monkeypatch):
    check = outcome.record["moments_check"]
    assert check["weights"] == 64
    assert 0 < check["mean"] < 1e-6
    assert 0 < check["variance"] < 1e-6

    class Wrong(cells.Stopwatch):
        """Counts the first θ twice."""

        def update(self, theta):
            super().update(theta)
            if self.moments.seen == 1:
                super().update(theta)

    monkeypatch.setattr(cells, "Stopwatch", Wrong)
    wrong = compute(CELL, TINY, source, start).record["moments_check"]
    assert wrong["mean"] > 1e-3
    assert wrong["variance"] > 1e-2


def test_only_some_cells_have_more_than_the_method(source, start):
    found = compute(replace(CELL, l2=0.05), TINY, source, start)
    assert "decayed" in found.record["methods"]
    assert not set(found.record) & {"curves", "reliability", "portrait", "moments_check"}
    adam = replace(PRE, optimizer="adam", finetune_optimizer="sgd", l2=0.15)
    found = compute(adam, TINY, source, start)
    assert set(found.record) == {"cell", "methods", "mcnemar", "seconds", "made"}
    assert "decayed" not in found.record["methods"]
    assert found.predictions is None


def test_the_cost_of_a_cell_is_what_it_does(source, start, monkeypatch):
    """`work` counts the updates and predictions that `compute` makes."""
    counts = {"updates": 0, "images": 0}
    model = type(TINY.model(0.5, (28, 28, 1)))
    step, predict = model.loss_and_gradient, model.predict
    dropped = cells.predict_with_dropout

    def count_step(self, *arguments, **options):
        counts["updates"] += 1
        return step(self, *arguments, **options)

    def count_images(self, theta, images, *arguments, **options):
        counts["images"] += len(images) * (len(theta) if theta.ndim == 2 else 1)
        return predict(self, theta, images, *arguments, **options)

    def count_dropped(lab, *arguments):
        counts["images"] += len(lab.data.test_images)
        return dropped(lab, *arguments)

    monkeypatch.setattr(model, "loss_and_gradient", count_step)
    monkeypatch.setattr(model, "predict", count_images)
    monkeypatch.setattr(cells, "predict_with_dropout", count_dropped)
    monkeypatch.setattr(cells, "PLANE", 4)
    for cell in (PRE, CELL, replace(CELL, l2=0.05), replace(CELL, seed=0), replace(CELL, l2=0.1)):
        counts.update(updates=0, images=0)
        compute(cell, TINY, source, None if cell is PRE else start)
        updates, predictions = cells.work(cell, TINY, 256, 50)
        assert counts["updates"] == updates, cell
        assert counts["images"] == pytest.approx(predictions * 50), cell


# --- nothing but the cell decides ---------------------------------------------------------


def timeless(record):
    return {name: value for name, value in record.items() if name != "seconds"}


def test_twice_is_the_same_and_the_start_is_left_alone(source, start, outcome):
    before = start.theta.copy()
    again = compute(CELL, TINY, source, start)
    assert timeless(again.record) == timeless(outcome.record)
    assert np.array_equal(again.predictions, outcome.predictions)
    assert np.array_equal(start.theta, before)
    made = again.record["made"]
    assert set(made) == {"minires", "numpy", "kernels", "processor", "date"}
    assert all(made.values())
    seconds = again.record["seconds"]
    assert set(seconds) == {"cell", "step", "moments", "predict_mean", "predict_finetuned"}
    assert all(value > 0 for value in seconds.values())


def test_other_seeds_are_other_networks(source, start, outcome):
    other = compute(replace(CELL, seed=2), TINY, source, start)
    assert other.record["methods"]["finetuned"] != outcome.record["methods"]["finetuned"]
    theta = compute(replace(PRE, seed=2), TINY, source).theta
    assert not np.array_equal(theta, start.theta)


def test_rates_share_order_and_dropout(source, start, monkeypatch):
    """At rate zero all fine-tunings stand still: so what differs between rates is the rate."""
    seen = {}
    model = type(TINY.model(0.5, (28, 28, 1)))
    step = model.loss_and_gradient

    def watch(self, theta, images, labels, stats=None, rng=None):
        (own,) = rng
        seen[rate].append((labels.tobytes(), own.bit_generator.state["state"]["state"]))
        return step(self, theta, images, labels, stats=stats, rng=rng)

    monkeypatch.setattr(model, "loss_and_gradient", watch)
    for rate in (0.01, 0.2):
        seen[rate] = []
        compute(replace(CELL, optimizer="adam", l2=rate), TINY, source, start)
    assert len(seen[0.01]) == 20
    assert seen[0.01] == seen[0.2]


def test_a_loss_without_bound_is_a_finding_not_a_failure(source, start):
    outcome = compute(replace(CELL, l2=1e30), replace(TINY, l2=(1e30,)), source, start)
    assert set(outcome.record) == {"cell", "diverged", "seconds", "made"}
    assert "lower the rate" in outcome.record["diverged"]
    pre = compute(replace(PRE, l1=1e30), TINY, source)
    assert "training: the loss is" in pre.record["diverged"]
    assert pre.theta is None


# --- the portrait -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def portrait(source, start):
    cell = replace(CELL, seed=0)
    return compute(cell, TINY, source, start).record["portrait"], cell


def test_the_portrait(portrait, source, start):
    portrait, cell = portrait
    reference = Reference(source, cell, start.theta)
    path = reference.path(lambda t: 0.15)
    mean = np.mean(np.array(path, np.float64), axis=0).astype(np.float32)
    std = np.std(np.array(path, np.float64), axis=0)
    data = reference.data

    def loss(theta, images, labels):
        return metrics.nll(reference.model.predict(theta.astype(np.float32), images), labels)

    line = portrait["line"]
    assert line["position"][0] == -0.5
    assert line["position"][-1] == pytest.approx(2.5)
    stations = {0.0: start.theta, 0.5: (start.theta + path[-1]) / 2, 1.0: path[-1], 2.0: mean}
    stations |= {2.5: mean + (mean - path[-1]) / 2, -0.5: start.theta * 1.5 - path[-1] / 2}
    for position, theta in stations.items():
        at = int(np.argmin(np.abs(np.array(line["position"]) - position)))
        test = loss(theta, data.test_images, data.test_labels)
        assert line["test_loss"][at] == pytest.approx(test, rel=1e-4)
        train = loss(theta, data.train_images, data.train_labels)
        assert line["train_loss"][at] == pytest.approx(train, rel=1e-4)

    plane = portrait["plane"]
    points = plane["points"]
    thetas = {"pretrained": start.theta, "finetuned": path[-1], "mean": mean}
    for a in thetas:
        for b in thetas:
            apart = np.linalg.norm(thetas[a].astype(float) - thetas[b])
            assert np.hypot(*np.subtract(points[a], points[b])) == pytest.approx(apart, rel=1e-4)
    x, y = np.array(plane["x"]), np.array(plane["y"])
    assert np.shape(plane["test_loss"]) == (21, 21)
    for point in points.values():
        assert x[0] < point[0] < x[-1]
        assert y[0] < point[1] < y[-1]
    # One corner by hand: walk from the pre-trained network along both axes.
    along = (path[-1] - start.theta) / points["finetuned"][0]
    up = (mean - start.theta - points["mean"][0] * along) / points["mean"][1]
    corner = start.theta + x[-1] * along + y[0] * up
    expected = loss(corner, data.test_images, data.test_labels)
    assert plane["test_loss"][0][-1] == pytest.approx(expected, rel=1e-3)

    names = [entry.name for entry in reference.model.layout.weights]
    assert [row["name"] for row in portrait["sigma"]] == names
    for row, entry in zip(portrait["sigma"], reference.model.layout.weights, strict=True):
        sigma, w = entry.view(std), entry.view(mean).astype(float)
        filters = [np.sqrt(np.mean(sigma[..., f] ** 2)) for f in range(sigma.shape[-1])]
        np.testing.assert_allclose(row["filters"], filters, rtol=1e-4)
        relative = np.sqrt(np.mean(sigma**2) / np.mean(w**2))
        assert row["relative"] == pytest.approx(relative, rel=1e-4)
        assert row["quantiles"][2] == pytest.approx(np.median(sigma), rel=1e-3)
        assert row["quantiles"] == sorted(row["quantiles"])


# --- the data -----------------------------------------------------------------------------


def test_workers_share_the_memory_of_the_images(source):
    data = source.data()
    assert data.train_images.dtype == np.float32
    assert isinstance(data.train_images.base, np.memmap)
    assert data is source.data()


def test_a_worker_that_cannot_see_the_folder_loads_the_same_data(source, tmp_path, monkeypatch):
    drawn = data_tools.Dataset
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))
    glyphs = data_tools.load("glyphs", train=30, test=10)
    assert isinstance(glyphs, drawn)
    far = Source(str(tmp_path / "nowhere"), "glyphs", 30, 10, None, fingerprint(glyphs))
    data = far.data()
    assert np.array_equal(data.train_images, data_tools.scale(glyphs.train_images))
    assert np.array_equal(data.test_labels, glyphs.test_labels)
    other = replace(far, sha256="0" * 64)
    with pytest.raises(ValueError, match=r"glyphs on this machine has the SHA-256 [0-9a-f]{16}…"):
        other.data()
