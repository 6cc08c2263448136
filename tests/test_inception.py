"""Inception-V3: published sizes, its auxiliary head, variants, replicas, and that it learns."""

import numpy as np
import pytest
from helpers import assert_close

from minires import Adam, reestimate_stats
from minires.data import load, scale
from minires.engine.ops import log_softmax
from minires.networks import inception_v3
from minires.networks.layers import (
    AuxiliaryHead,
    BatchNorm,
    Branches,
    Conv2D,
    Dense,
    GlobalMeanPool,
    MaxPool,
    MeanPool,
    Sequential,
)
from minires.networks.model import ForwardPass, Layout, Model


def test_published_numbers_of_weights():
    assert inception_v3(scale=True).size == 23_834_568
    assert inception_v3(variant="torch").size == 23_834_568
    assert inception_v3(variant="torch", auxiliary=True).size == 27_161_264
    # Keras has no scales and counts the running statistics in.
    assert inception_v3().size + inception_v3().stats_size == 23_851_784


def test_the_stages_have_the_published_shapes():
    model = inception_v3()
    found = [after for name, _, _, after in model.layout.rows if "." not in name]
    assert found[:2] == [(73, 73, 64), (35, 35, 192)]
    assert found[2:13] == [
        (35, 35, 256), (35, 35, 288), (35, 35, 288), *[(17, 17, 768)] * 5, (8, 8, 1280),
        (8, 8, 2048), (8, 8, 2048),
    ]  # fmt: skip
    assert found[13:] == [(2048,), (2048,), (1000,)]


def layers_of(layer):
    yield layer
    for part in getattr(layer, "layers", ()):
        yield from layers_of(part)


@pytest.mark.parametrize(("variant", "counts", "scaled"), [("tf", 0, 0), ("torch", 1, 1)])
def test_variants(variant, counts, scaled):
    layers = list(layers_of(inception_v3(variant=variant).network))
    pools = [layer for layer in layers if isinstance(layer, MeanPool)]
    norms = [layer for layer in layers if isinstance(layer, BatchNorm)]
    assert len(pools) == 9
    assert len(norms) == 94
    assert {pool.count_padding for pool in pools} == {bool(counts)}
    assert {norm.has_scale for norm in norms} == {bool(scaled)}
    assert {norm.epsilon for norm in norms} == {1e-3}


def tiny(weight=0.4):
    """A network of one block with an auxiliary head."""
    head = AuxiliaryHead(Conv2D(2, 3), Pixels(), weight=weight)
    network = Sequential(Conv2D(4, 3, 2), head, Conv2D(3, 1), Pixels())
    return Model((6, 6, 2), network, smoothing=0.1)


class Pixels(Sequential):
    """Global mean and a dense layer."""

    def __init__(self):
        super().__init__(GlobalMeanPool(), Dense(5))


def test_the_auxiliary_head_adds_its_share_of_the_loss(rng):
    images, labels = rng.standard_normal((4, 6, 6, 2)), rng.integers(0, 5, 4)
    model = tiny()
    theta = model.init(rng, dtype=float)
    losses = {w: tiny(w).loss_and_gradient(theta, images, labels) for w in (0, 0.4, 1)}
    (none, _), (some, gradient), (full, _) = losses.values()
    assert np.isclose(some, none + 0.4 * (full - none))
    # The loss without the head is the smoothed cross-entropy of the logits alone.
    log_p = log_softmax(model.logits(theta, images))
    target = 0.9 * np.eye(5)[labels] + 0.1 / 5
    assert np.isclose(none, -(target * log_p).sum(axis=1).mean())
    # What the head adds is the cross-entropy of its own logits, with a plus.
    run = ForwardPass(model.layout, theta)
    below, head = model.network.layers[:2]
    log_p = log_softmax(Sequential.apply(head, below.apply(images, run), run))
    assert np.isclose(some - none, -0.4 * (target * log_p).sum(axis=1).mean())
    direction = 1e-6 * rng.standard_normal(theta.shape)
    ahead, _ = model.loss_and_gradient(theta + direction, images, labels)
    behind, _ = model.loss_and_gradient(theta - direction, images, labels)
    assert np.isclose((ahead - behind) / 2, gradient @ direction, 1e-6)


def test_the_auxiliary_head_is_not_in_the_way_of_prediction(rng):
    model = inception_v3(0.1, (299, 299, 3), classes=7, auxiliary=True)
    theta, stats = model.init(rng), model.init_stats()
    folded, _ = model.fold(theta, stats)
    assert not any(isinstance(layer, AuxiliaryHead) for layer in layers_of(folded.network))
    assert folded.stats_size == 0


def test_replicas_at_once_equal_one_by_one(rng):
    options = {"input_shape": (32, 32, 1), "classes": 4, "dropout": 0}
    model = inception_v3(0.1, **options)
    theta, stats = model.init(rng, 2, dtype=float), model.init_stats(2, dtype=float)
    images, labels = rng.standard_normal((6, 32, 32, 1)), rng.integers(0, 4, 6)
    loss, gradient = model.loss_and_gradient(theta, images, labels, stats=stats)
    logits = model.logits(theta, images, stats)
    for r in range(2):
        alone = model.init_stats(dtype=float)
        mine = model.loss_and_gradient(theta[r], images, labels, stats=alone)
        for a, b in zip((loss[r], gradient[r], stats[r]), (*mine, alone), strict=True):
            assert_close(a, b, 1e-8)
        assert_close(logits[r], model.logits(theta[r], images, alone), 1e-8)


def test_branches_lie_side_by_side_in_order(rng):
    branches = Branches(Conv2D(2, 1, bias=False), MaxPool(3, 1, padding=1), Conv2D(1, (1, 7)))
    layout = Layout()
    assert branches.connect((5, 5, 3), layout) == (5, 5, 6)
    theta = rng.standard_normal(sum(e.size for e in layout.weights))
    x = rng.standard_normal((2, 5, 5, 3))
    run = ForwardPass(layout, theta)
    y = branches.apply(x, run)
    parts = [layer.apply(x, run) for layer in branches.layers]
    assert_close(y, np.concatenate(parts, axis=-1))


def test_branches_of_unequal_size_are_refused():
    with pytest.raises(ValueError, match="only channels may differ"):
        Model((6, 6, 1), Sequential(Branches(Conv2D(1, 1), MaxPool(2)), Pixels()))


def test_it_learns_a_batch_of_glyphs():
    """Fifteen updates on the same digits, and it has them by heart, at test too."""
    data = load("glyphs", train=16, test=1)
    images, labels = scale(data.train_images), data.train_labels
    model = inception_v3(0.1, (28, 28, 1), classes=10, dropout=0, momentum=0.8, smoothing=0)
    theta, stats, optimizer = model.init(np.random.default_rng(3)), model.init_stats(), Adam(0.003)
    losses = []
    for _ in range(15):
        loss, gradient = model.loss_and_gradient(theta, images, labels, stats)
        optimizer.step(theta, gradient)
        losses.append(loss)
    assert losses[-1] < 0.3 * losses[0]
    stats = reestimate_stats(model, theta, [images])
    assert (model.predict(theta, images, stats).argmax(axis=1) == labels).mean() > 0.8
