"""A small Inception-V3, pre-trained on glyph digits, as files for `sweep --profile pretrained`.

    python data_tools/small_inception.py FOLDER

writes inception_v3_small.onnx, and the digits as PNG files in tars of one folder for each class:

    train.tar   the first 10,000 of the 40,000 that it was pre-trained on (a quarter, as in the
                paper)
    choose.tar  2,000 others, for choosing the best rate
    test.tar    1,000 others, some of them in fonts that no other picture shows
    synsets.txt the order of the classes
"""

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

import minires
import minires.onnx
from minires import data

PRETRAINED_ON, TUNED_ON, TEST, CHOOSE = 40_000, 10_000, 1_000, 2_000
RATE, MOMENTUM, BATCH, EPOCHS = 0.05, 0.9, 128, 2


def main(arguments):
    """Pre-train, then write the network and the pictures."""
    folder = Path(arguments[0] if arguments else "small-inception")
    folder.mkdir(parents=True, exist_ok=True)
    digits = data.load("glyphs", train=PRETRAINED_ON + CHOOSE, test=TEST)
    images = np.repeat(data.scale(digits.train_images), 3, axis=3)  # of three equal channels
    model = minires.inception_v3(width=0.25, input_shape=(28, 28, 3), classes=10)
    theta, stats = model.init(np.random.default_rng(0)), model.init_stats()
    task = minires.Task(
        model, images[:PRETRAINED_ON], digits.train_labels[:PRETRAINED_ON], batch=BATCH
    )
    updates = EPOCHS * (PRETRAINED_ON // BATCH)
    optimizer = minires.SGD(RATE, momentum=MOMENTUM)
    minires.train(
        task, theta, stats, optimizer, updates, schedule=minires.schedules.linear(updates)
    )
    minires.onnx.export(model, theta, stats, folder / "inception_v3_small.onnx")
    for name, pixels, labels in (
        ("train", digits.train_images[:TUNED_ON], digits.train_labels[:TUNED_ON]),
        ("choose", digits.train_images[PRETRAINED_ON:], digits.train_labels[PRETRAINED_ON:]),
        ("test", digits.test_images, digits.test_labels),
    ):
        write_tar(folder / f"{name}.tar", pixels, labels)
    (folder / "synsets.txt").write_text("".join(f"digit_{digit}\n" for digit in range(10)))
    print(f"inception_v3_small.onnx, train.tar, choose.tar, test.tar, synsets.txt: in {folder}")


def write_tar(path, pixels, labels):
    """Pictures (N, 28, 28, 1) uint8 as PNG files, each in the folder of its class."""
    with tarfile.open(path, "w") as archive:
        for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
            content = io.BytesIO()
            Image.fromarray(picture[..., 0]).save(content, "PNG")
            entry = tarfile.TarInfo(f"digit_{label}/{number:05d}.png")
            entry.size = content.tell()
            content.seek(0)
            archive.addfile(entry, content)


if __name__ == "__main__":
    main(sys.argv[1:])
