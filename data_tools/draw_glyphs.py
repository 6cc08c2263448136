"""Draw a sheet of glyph digits, to see what the networks see.

python data_tools/draw_glyphs.py digits.png
"""

import sys

from matplotlib.image import imsave

from minires import data

ROWS, COLUMNS = 12, 20


def main(arguments):
    """Write a PNG file of training images, in rows."""
    path = arguments[0] if arguments else "digits.png"
    images = data.load("glyphs", train=ROWS * COLUMNS, test=1).train_images[..., 0]
    size = images.shape[-1]
    sheet = images.reshape(ROWS, COLUMNS, size, size).transpose(0, 2, 1, 3)
    imsave(path, 255 - sheet.reshape(ROWS * size, COLUMNS * size), cmap="gray", vmin=0, vmax=255)
    print(f"{len(images)} digits: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
