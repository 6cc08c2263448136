"""Download MNIST, check it, and say that all is there.

    python data_tools/fetch_mnist.py            into the cache, unless MINIRES_DATA names a folder
    python data_tools/fetch_mnist.py FOLDER     check the four files of a folder

The checks compare the SHA-256 of what is inside each file with the published one.
"""

import sys

from minires import data


def main(arguments):
    """Load the data set once: what is missing is downloaded, what is damaged is refused."""
    folder = arguments[0] if arguments else None
    dataset = data.load("mnist", data_dir=folder)
    if dataset.name != "MNIST":
        sys.exit(f"{dataset.name}: the files are whole, but their SHA-256 is not MNIST's")
    print(f"{len(dataset.train_images):,} + {len(dataset.test_images):,} images are there")


if __name__ == "__main__":
    main(sys.argv[1:])
