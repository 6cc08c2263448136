"""MobileNet V1 and V2: published sizes, paddings, small inputs, replicas, and that they learn."""

import numpy as np
import pytest
from helpers import assert_close

from minires import Adam, reestimate_stats
from minires.data import load, scale
from minires.networks import NETWORKS, mobilenet_v1, mobilenet_v2
from minires.networks import model as module
from minires.networks.mobilenet import round_channels
from minires.networks.model import ForwardPass


@pytest.mark.parametrize("variant", ["tf", "torch"])
def test_published_numbers_of_weights(variant):
    assert mobilenet_v1(variant=variant).size == 4_231_976
    assert mobilenet_v2(variant=variant).size == 3_504_872
    # Keras counts the running statistics in: 4,253,864 and 3,538,984.
    assert mobilenet_v1().stats_size == 4_253_864 - 4_231_976
    assert mobilenet_v2().stats_size == 3_538_984 - 3_504_872


@pytest.mark.parametrize(
    ("make", "width", "total"),
    [  # keras.applications, running statistics counted in
        (mobilenet_v1, 0.25, 475_544),
        (mobilenet_v1, 0.5, 1_342_536),
        (mobilenet_v1, 0.75, 2_601_976),
        (mobilenet_v2, 1.4, 6_156_712),
    ],
)
def test_published_numbers_for_other_widths(make, width, total):
    model = make(width)
    assert model.size + model.stats_size == total


def test_channels_are_rounded_to_eights_but_not_far_down():
    assert [round_channels(c) for c in (3, 11.2, 12, 22.4, 33.6, 134.4)] == [8, 16, 16, 24, 32, 136]


@pytest.mark.parametrize("variant", ["tf", "torch"])
def test_resolution_changes_pixels_and_no_weights(variant):
    for size in (96, 128, 193):
        model = mobilenet_v2(input_shape=(size, size, 3), variant=variant)
        assert model.size == 3_504_872
        outputs = [after for *_, after in model.layout.rows if len(after) == 3]
        assert outputs[-1][:2] == (-(-size // 32),) * 2


def test_tensorflow_pads_at_the_end(rng):
    """The first convolution of an even image: output 0 sees pixels 0 to 2, not −1 to 1."""
    for variant, reach in (("tf", 3), ("torch", 2)):
        model = mobilenet_v2(0.1, input_shape=(96, 96, 1), variant=variant)
        first = model.network.layers[0]
        run = ForwardPass(model.layout, model.init(rng))
        image = np.zeros((1, 96, 96, 1), np.float32)
        image[0, reach - 1, 0] = 1
        touched = first.apply(image, run)[0, 0, 0]
        image = np.roll(image, 1, axis=1)
        assert np.abs(touched).max() > 0
        assert np.abs(first.apply(image, run)[0, 0, 0]).max() == 0


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_small_images_keep_their_pixels_at_first(name, shape, rng):
    model = NETWORKS[name](width=0.1, input_shape=shape, classes=10)
    assert model.layout.rows[0][-1][:2] == shape[:2]
    theta, stats = model.init(rng), model.init_stats()
    images = rng.standard_normal((3, *shape), np.float32)
    assert model.predict(theta, images, stats).shape == (3, 10)


def one_step(model, theta, stats, images, labels, rng):
    loss, gradient = model.loss_and_gradient(theta, images, labels, stats=stats, rng=rng)
    return loss, gradient, stats, model.logits(theta, images, stats)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
@pytest.mark.parametrize("own_images", [False, True])
def test_replicas_at_once_equal_one_by_one(name, own_images, rng):
    model = NETWORKS[name](width=0.1, input_shape=(16, 16, 1), classes=4, dropout=0.3)
    theta = model.init(rng, replicas=3, dtype=float)
    stats = model.init_stats(replicas=3, dtype=float)
    images = rng.standard_normal((3, 8, 16, 16, 1) if own_images else (8, 16, 16, 1))
    labels = rng.integers(0, 4, images.shape[:-3])
    together = one_step(model, theta, stats, images, labels, np.random.default_rng(5).spawn(3))
    streams = np.random.default_rng(5).spawn(3)
    for r in range(3):
        mine = (images[r], labels[r]) if own_images else (images, labels)
        alone = one_step(model, theta[r], model.init_stats(dtype=float), *mine, streams[r])
        for a, b in zip(together, alone, strict=True):
            assert_close(a[r], b, 1e-8)


def test_large_images_are_predicted_a_few_at_a_time(rng, monkeypatch):
    monkeypatch.setattr(module, "PIXELS", 2 * 16 * 16 + 100)
    model = mobilenet_v2(width=0.1, input_shape=(16, 16, 1), classes=4)
    assert model.batch == 2
    theta, stats = model.init(rng, replicas=2), model.init_stats(replicas=2)
    images = rng.standard_normal((5, 16, 16, 1), np.float32)
    whole = model.logits(theta, images, stats, batch=5)
    assert_close(model.logits(theta, images, stats), whole, 1e-5)
    assert mobilenet_v2(width=0.1, input_shape=(32, 32, 1), classes=4).batch == 1


def test_unknown_variants_are_named():
    with pytest.raises(ValueError, match="variant is 'keras', there are tf, torch"):
        mobilenet_v2(variant="keras")


def test_frozen_and_momentum_reach_every_layer(rng):
    model = mobilenet_v2(0.1, input_shape=(16, 16, 1), classes=4, dropout=0, frozen=True)
    theta, stats = model.init(rng), model.init_stats()
    images, labels = rng.standard_normal((4, 16, 16, 1), np.float32), rng.integers(0, 4, 4)
    model.loss_and_gradient(theta, images, labels, stats=stats)
    np.testing.assert_array_equal(stats, model.init_stats())
    model = mobilenet_v2(0.1, input_shape=(16, 16, 1), classes=4, dropout=0, momentum=1.0)
    model.loss_and_gradient(theta, images, labels, stats=stats)
    np.testing.assert_array_equal(stats, model.init_stats())


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
def test_it_learns_a_batch_of_glyphs(name):
    """Fifteen updates on the same digits, and it has them by heart, at test too."""
    data = load("glyphs", train=16, test=1)
    images, labels = scale(data.train_images), data.train_labels
    model = NETWORKS[name](width=0.1, input_shape=(28, 28, 1), classes=10, momentum=0.8, dropout=0)
    theta, stats, optimizer = model.init(np.random.default_rng(3)), model.init_stats(), Adam(0.003)
    losses = []
    for _ in range(15):
        loss, gradient = model.loss_and_gradient(theta, images, labels, stats)
        optimizer.step(theta, gradient)
        losses.append(loss)
    assert losses[-1] < 0.3 * losses[0]
    stats = reestimate_stats(model, theta, [images])
    assert (model.predict(theta, images, stats).argmax(axis=1) == labels).mean() > 0.8
