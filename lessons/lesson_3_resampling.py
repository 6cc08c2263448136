"""Lesson 3: the whole method in thirty lines.

    python -m lessons.lesson_3_resampling

Train a small network on glyph digits, fine-tune it with the moments running, and compare the
last weights with the mean weights and with an ensemble drawn around them. About 15 seconds.

The rate of fine-tuning is high on purpose. The weights then wander around a good place without
ever settling in it; the last ones are wherever the walk stopped, their mean is in the middle.
"""

import numpy as np

import minires
from minires import data as data_tools
from minires.training.loop import batches
from minires.training.metrics import accuracy, nll


def main(train=10_000, test=5_000, epochs=4, updates=300):
    rng = np.random.default_rng(0)
    data = data_tools.load("glyphs", train=train, test=test)
    images, test_images = data_tools.scale(data.train_images), data_tools.scale(data.test_images)

    model = minires.lenet_classic()
    theta = model.init(rng)
    moments = minires.Moments(theta.shape)
    order = batches(len(images), 128, rng)

    def descend(rate):
        """One update of SGD (eq. 1)."""
        chosen = next(order)
        _, gradient = model.loss_and_gradient(theta, images[chosen], data.train_labels[chosen])
        theta[:] -= rate * gradient

    for _ in range(epochs * len(images) // 128):
        descend(rate=0.2)
    for _ in range(updates):
        descend(rate=0.3)
        moments.update(theta)  # eqs. 2-3, after every update

    members = moments.sample(10, rng)
    predictions = {
        "fine-tuned": model.predict(theta, test_images),
        "mean model": model.predict(moments.mean, test_images),
        "1 drawn network": model.predict(members[0], test_images),
        "ensemble of 10": model.predict(members, test_images).mean(axis=0),
    }
    print(f"{'':16} accuracy     NLL")
    for name, probabilities in predictions.items():
        right = accuracy(probabilities, data.test_labels)
        print(f"{name:16} {right:8.2%}  {nll(probabilities, data.test_labels):.4f}")
    print("\nExercise: draw with moments.sample(10, rng, scale=2), then with 4 and 8. What breaks")
    print("first, one drawn network or the ensemble?")
    # One network: at scale 4 about 82 % of its answers are right, of the ensemble's 94 %. At 8 it
    # is half of them and three quarters: the ten err, but each in its own way.
    return predictions


if __name__ == "__main__":
    main()
