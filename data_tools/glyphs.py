"""Glyph digits: a data set like MNIST that is made on the spot, with nothing to download.

Each image shows one digit of one of the fonts that Matplotlib brings along, bent out of shape:
turned, sheared, stretched, shifted, its strokes warped, thickened or thinned, blurred, faded,
smudged and covered with noise.

The trick that makes this fast and short is to store each letter shape not as pixels but as a
*distance field*: at every point, how far it is to the nearest edge, positive inside the ink. Such
a field is smooth, so a coarse grid holds it and it may be sampled anywhere; and adding a number
to it before asking "is it positive?" makes every stroke thicker or thinner.

    images, labels = draw(1000, seed=0)             # (1000, 28, 28, 1) uint8, (1000,) int64

Image i depends on seed, split and i alone, not on how many are drawn.
"""

import functools
import os
import tempfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data_tools import Dataset, cache_folder

# Part of the cached files' names: raise it with every change that alters an image.
VERSION = 1

SIZE = 28
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Oblique",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralItalic",
    "STIXGeneralBol",
    "cmb10",
    "cmmi10",
    "cmr10",
    "cmss10",
    "cmti10",
    # The last four are seen in test images only.
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif-BoldItalic",
    "STIXGeneralBolIta",
    "cmtt10",
)
FONTS_IN_TRAINING = len(FONTS) - 4
# Random streams: one for each split and each chunk of this many images.
SPLITS = {"train": 0, "test": 1}
CHUNK = 500

# A distance field is a square of FIELD points a side, each HEIGHT / FIELD_HEIGHT pixels wide.
FIELD = 64
FIELD_HEIGHT = 40
FINER = 4
HEIGHT = 20


def load(train=20_000, test=10_000, seed=0):
    """Return glyph digits, made at the first call and read from the cache later.

    train, test  number of images
    seed         int ≥ 0; another seed gives other images of the same kind
    Returns      Dataset
    Raises       ValueError for a negative or fractional count or seed
    """
    train_images, train_labels = _draw_cached(train, seed, "train")
    test_images, test_labels = _draw_cached(test, seed, "test")
    name = f"glyph digits (version {VERSION}, seed {seed})"
    return Dataset(train_images, train_labels, test_images, test_labels, name)


def draw(count, seed=0, split="train"):
    """Draw digits.

    count    number of images
    seed     int ≥ 0
    split    "train" or "test": other random numbers, and test images use four fonts more
    Returns  images (count, 28, 28, 1) uint8, labels (count,) int64
    Raises   ValueError for a negative or fractional count or seed, or an unknown split
    """
    _check(count, seed, split)
    fields = distance_fields()

    def one_chunk(index):
        rng = np.random.default_rng((seed, SPLITS[split], index))
        return _draw_chunk(fields, FONTS_IN_TRAINING if split == "train" else len(FONTS), rng)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        chunks = list(pool.map(one_chunk, range(-(-count // CHUNK))))
    images = np.empty((len(chunks) * CHUNK, SIZE, SIZE, 1), np.uint8)
    labels = np.empty(len(chunks) * CHUNK, np.int64)
    for index, (chunk_images, chunk_labels) in enumerate(chunks):
        here = slice(index * CHUNK, (index + 1) * CHUNK)
        images[here, ..., 0], labels[here] = chunk_images, chunk_labels
    return images[:count], labels[:count]


def _draw_chunk(fields, fonts, rng):
    """Draw CHUNK images: uint8 (CHUNK, 28, 28), and their labels."""
    n = CHUNK

    def normal(deviation, *shape):
        return (deviation * rng.standard_normal((n, *shape), np.float32)).astype(np.float32)

    def uniform(low, high):
        return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

    labels = rng.integers(10, size=n)
    glyphs = rng.integers(fonts, size=n) * 10 + labels

    # Most images are tame, a few are wild: an exponential factor on every distortion.
    wild = np.minimum(rng.standard_exponential((n, 1, 1), np.float32), P["top"])
    murk = rng.standard_exponential((n, 1, 1), np.float32); wild = 1
    # Where does each pixel look in the upright, undistorted digit? Unit: pixels from the centre.
    centred = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    bend = _bumps()
    rows, columns = (
        centred[:, None] - normal(P["shift"], 1, 1) + P["bend"] * wild * (bend @ normal(1, *bend.shape[1:] * 2) @ bend.T),
        centred[None, :] - normal(P["shift"], 1, 1) + P["bend"] * wild * (bend @ normal(1, *bend.shape[1:] * 2) @ bend.T),
    )
    angle = wild * normal(P["angle"], 1, 1)
    slant = wild * normal(P["slant"], 1, 1)
    size = np.exp(wild * normal(P["size"], 1, 1))
    stretch = np.exp(wild * normal(P["stretch"], 1, 1))
    up = (np.cos(angle) * rows + np.sin(angle) * columns) / (size * stretch)
    along = (np.cos(angle) * columns - np.sin(angle) * rows) / size * stretch + slant * up

    distance = _sample(fields, glyphs, up, along)
    boldness, softness = uniform(*P["bold"]), uniform(*P["soft"])
    ink = np.clip(0.5 + (distance + boldness) / softness, 0, 1)
    picture = ink * np.exp(-P["fade"] * murk)
    picture += P["noise"] * murk * rng.standard_normal(picture.shape, np.float32)
    return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8), labels


P = dict(shift=1.2, bend=1.0, angle=0.2, slant=0.2, size=0.1, stretch=0.1, bold=0.5, soft=(1, 3),
         fade=0.3, smudge=0.3, contrast=(0.5, 1), noise=(0, 0.2))
exec(os.environ.get("GP", ""))

def _bumps():
    """Return the matrix (28, 5) that turns 5 random numbers into a smooth curve of 28 pixels.

    Each column is a bell; the rows have length 1, so the curve's variance is that of the numbers.
    """
    centres = np.linspace(0, SIZE - 1, 5)
    bells = np.exp(-0.5 * ((np.arange(SIZE)[:, None] - centres) / (SIZE / 6)) ** 2)
    return (bells / np.linalg.norm(bells, axis=1, keepdims=True)).astype(np.float32)


def _sample(fields, glyphs, rows, columns):
    """Read distance fields between their points (bilinear), outside them at their border.

    fields         (G, FIELD, FIELD) float32
    glyphs         (N,) which field
    rows, columns  (N, 28, 28) where, in pixels from the centre
    Returns        (N, 28, 28) distance to the edge, in pixels
    """
    points_a_pixel = FIELD_HEIGHT / HEIGHT
    last = np.float32(FIELD - 1)
    rows = np.clip(rows * np.float32(points_a_pixel) + last / 2, 0, last)
    columns = np.clip(columns * np.float32(points_a_pixel) + last / 2, 0, last)
    top = np.minimum(rows.astype(np.intp), FIELD - 2)
    left = np.minimum(columns.astype(np.intp), FIELD - 2)
    down, right = rows - top, columns - left

    flat = fields.reshape(-1)
    corner = (glyphs[:, None, None] * FIELD + top) * FIELD + left
    upper = flat[corner] * (1 - right) + flat[corner + 1] * right
    corner += FIELD
    lower = flat[corner] * (1 - right) + flat[corner + 1] * right
    return (upper + (lower - upper) * down) / np.float32(points_a_pixel)


@functools.cache
def distance_fields():
    """Return how far every point is from the edge of each digit of each font.

    Every digit is scaled to the same height and centred.

    Returns  (10 · fonts, FIELD, FIELD) float32, in points, positive inside the ink; digit d of
             font f is number 10 f + d
    """
    from scipy.ndimage import distance_transform_edt

    finer = FIELD * FINER
    fields = []
    for font in FONTS:
        ink = _render(font, finer)
        for digit in range(10):
            inside = ink[:, digit * finer : (digit + 1) * finer]
            distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
            blocks = distance.reshape(FIELD, FINER, FIELD, FINER) / FINER
            fields.append(blocks.mean(axis=(1, 3)))
    return np.array(fields, np.float32)


def _render(font, side):
    """Draw the ten digits of a font side by side: bool (side, 10 · side), True where there is ink.

    Each stands centred in its own square and is side · FIELD_HEIGHT / FIELD pixels high.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    file = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    figure = Figure(figsize=(10, 1), dpi=side)
    canvas = FigureCanvasAgg(figure)
    for digit in range(10):
        outline = TextPath((0, 0), str(digit), size=100, prop=FontProperties(fname=file))
        box = outline.get_extents()
        place = Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2)
        place = place.scale(side * FIELD_HEIGHT / FIELD / box.height)
        place = place.translate((digit + 0.5) * side, 0.5 * side)
        figure.add_artist(PathPatch(outline, transform=place, facecolor="black", linewidth=0))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., 0] < 128


def _check(count, seed, split):
    for what, value in (("count", count), ("seed", seed)):
        if not isinstance(value, int | np.integer) or value < 0:
            raise ValueError(f"glyphs: {what} must be a whole number ≥ 0, not {value!r}")
    if split not in SPLITS:
        raise ValueError(f"glyphs: split must be one of {', '.join(SPLITS)}, not {split!r}")
