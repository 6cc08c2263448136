"""Glyph digits: a data set like MNIST that the program makes, with nothing to download.

Each image shows one digit in one of the fonts of Matplotlib. The digit is distorted: turned,
sheared, stretched, shifted and bent; its strokes are made thicker or thinner, blurred, faded and
covered with noise.

One idea makes this fast and short. A digit is not stored as pixels but as a *distance field*: for
every point the distance to the nearest edge, positive inside the ink. Such a field is smooth. So a
coarse grid is enough, and the field can be read between the points of the grid. The ink is where
the field is positive; adding a number to the field makes every stroke thicker or thinner.

    images, labels = draw(1000, seed=0)             # (1000, 28, 28, 1) uint8, (1000,) int64

Image i depends on the seed, the split and i only, not on the number of images.
"""

import functools
import os
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minires.data import Dataset, cache_folder, cores

# This number is part of the cached files' names. Raise it with every change that alters an image.
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
    # The last four fonts are for test images only.
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif-BoldItalic",
    "STIXGeneralBolIta",
    "cmtt10",
)
FONTS_IN_TRAINING = len(FONTS) - 4

# Random numbers come in chunks of this many images, each with a stream of its own.
CHUNK = 500
# A chunk is drawn in blocks of this many images, so that their arrays fit into the cache.
BLOCK = 50
SPLITS = {"train": 0, "test": 1}

# How much the digits are distorted: standard deviations, in pixels, radians or powers of e.
SHIFT = 1.0
BEND = 0.7
KNOTS = 5  # a digit bends smoothly between so many points along each side
ANGLE = 0.12
SLANT = 0.12
LOG_SIZE = 0.06
LOG_STRETCH = 0.06
# Strokes: pixels added on each side, and the width of the soft edge (lowest, highest).
BOLDER = (0.0, 0.8)
EDGE = (1.0, 2.0)
# How quickly an image becomes unreadable: for each unit of murk the ink fades by a factor
# e^(−FADE), and the noise grows by NOISE.
FADE = 0.25
NOISE = 0.13

# A distance field is a square of FIELD × FIELD points, in which a digit is HEIGHT pixels high.
# It is measured in a drawing with FINER times as many dots along each side.
HEIGHT = 20
FIELD = 64
FINER = 2
POINTS_A_PIXEL = 2


def load(
    train: int = 30_000, test: int = 5_000, seed: int = 0, threads: int | None = None
) -> Dataset:
    """Return glyph digits, made at the first call and read from the cache later.

    train, test  number of images
    seed         int ≥ 0; another seed gives other images of the same kind
    threads      how many threads draw; None: one for every core. The images do not depend on it
    Returns      Dataset
    Raises       ValueError for a count or a seed out of its range
    """
    train_images, train_labels = _draw_cached(train, seed, "train", threads)
    test_images, test_labels = _draw_cached(test, seed, "test", threads)
    name = f"glyph digits (version {VERSION}, seed {seed})"
    return Dataset(train_images, train_labels, test_images, test_labels, name)


def draw(
    count: int, seed: int = 0, split: str = "train", threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw digits.

    count    number of images
    seed     int ≥ 0
    split    "train" or "test": they use different random numbers, and "test" has four more fonts
    threads  how many threads draw; None: one for every core
    Returns  images (count, 28, 28, 1) uint8, labels (count,) int64
    Raises   ValueError for a count or a seed out of its range, or an unknown split
    """
    _check(count, seed, split)
    fields = distance_fields()

    def one_chunk(index):
        rng = np.random.default_rng((seed, SPLITS[split], index))
        return _draw_chunk(fields, FONTS_IN_TRAINING if split == "train" else len(FONTS), rng)

    with ThreadPoolExecutor(max_workers=threads or cores()) as pool:
        chunks = list(pool.map(one_chunk, range(-(-count // CHUNK))))
    images = np.empty((len(chunks) * CHUNK, SIZE, SIZE, 1), np.uint8)
    labels = np.empty(len(chunks) * CHUNK, np.int64)
    for index, (chunk_images, chunk_labels) in enumerate(chunks):
        here = slice(index * CHUNK, (index + 1) * CHUNK)
        images[here, ..., 0], labels[here] = chunk_images, chunk_labels
    return images[:count], labels[:count]


def _draw_chunk(fields, fonts, rng):
    """Draw CHUNK digits with the first `fonts` fonts: uint8 (CHUNK, 28, 28), and their labels."""

    def normal(deviation, shape=(1, 1)):
        return np.float32(deviation) * rng.standard_normal((CHUNK, *shape), np.float32)

    def uniform(low, high):
        return np.float32(low) + np.float32(high - low) * rng.random((CHUNK, 1, 1), np.float32)

    labels = rng.integers(10, size=CHUNK)
    numbers = (
        10 * rng.integers(fonts, size=CHUNK) + labels,
        normal(SHIFT),
        normal(BEND, (KNOTS, KNOTS)),
        normal(SHIFT),
        normal(BEND, (KNOTS, KNOTS)),
        normal(ANGLE),
        normal(SLANT),
        normal(LOG_SIZE),
        normal(LOG_STRETCH),
        uniform(*BOLDER),
        uniform(*EDGE),
        rng.standard_exponential((CHUNK, 1, 1), np.float32),
        normal(NOISE, (SIZE, SIZE)),
    )
    images = np.empty((CHUNK, SIZE, SIZE), np.uint8)
    for start in range(0, CHUNK, BLOCK):
        here = slice(start, start + BLOCK)
        images[here] = _distort(fields, *(array[here] for array in numbers))
    return images, labels


def _distort(
    fields, glyphs, down, bend_down, right, bend_right, angle, slant, size, stretch,
    bolder, edge, murk, noise,
):  # fmt: skip
    """Digits distorted by the given random numbers: uint8 (…, 28, 28)."""
    # Each pixel shows a point of the undistorted digit: which one, in pixels from the centre?
    curve = _smooth_curve()
    centred = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    row = centred[:, None] + down + curve @ bend_down @ curve.T
    column = centred[None, :] + right + curve @ bend_right @ curve.T
    up = (np.cos(angle) * row + np.sin(angle) * column) * np.exp(size + stretch)
    along = (np.cos(angle) * column - np.sin(angle) * row) * np.exp(size - stretch) + slant * up

    distance = _look_up(fields, glyphs, up, along)
    ink = np.clip(0.5 + (distance + bolder) / edge, 0, 1)

    # Most images are clear, some are hard to read, and one in fifty cannot be read at all.
    image = ink * np.exp(-FADE * murk) + murk * noise
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


@functools.cache
def _smooth_curve(knots=KNOTS):
    """Return the matrix (28, knots) that turns random numbers into a smooth curve of 28 pixels.

    Each column is a bell curve around one knot. Each row has length 1, so at every pixel the curve
    has the same variance as the random numbers.
    """
    pixel = np.arange(SIZE)[:, None]
    bells = np.exp(-0.5 * ((pixel - np.linspace(0, SIZE - 1, knots)) / (SIZE / 6)) ** 2)
    return (bells / np.linalg.norm(bells, axis=1, keepdims=True)).astype(np.float32)


def _look_up(fields, glyphs, row, column):
    """Read distance fields between their points (bilinear). Outside, the border's value holds.

    fields       (G, FIELD, FIELD) float32
    glyphs       (N,) the number of the field for each image
    row, column  (N, 28, 28) float32, the places to read, in pixels from the centre
    Returns      (N, 28, 28) float32 distance to the edge of the ink, in pixels
    """
    density = np.float32(POINTS_A_PIXEL)
    last = FIELD - 1
    row = np.clip(row * density + last / 2, 0, last)
    column = np.clip(column * density + last / 2, 0, last)
    top = np.minimum(row.astype(np.intp), last - 1)
    left = np.minimum(column.astype(np.intp), last - 1)
    down, right = row - top.astype(np.float32), column - left.astype(np.float32)

    flat = fields.reshape(-1)
    corner = (glyphs[:, None, None] * FIELD + top) * FIELD + left
    upper = flat[corner] * (1 - right) + flat[corner + 1] * right
    corner += FIELD
    lower = flat[corner] * (1 - right) + flat[corner + 1] * right
    return (upper + (lower - upper) * down) / density


@functools.cache
def distance_fields() -> np.ndarray:
    """Return how far every point is from the edge of each digit of each font.

    Every digit is scaled to the same height and centred.

    Returns  (10 · fonts, FIELD, FIELD) float32, in points, positive inside the ink; digit d of
             font f is number 10 f + d
    """
    from scipy.ndimage import distance_transform_edt

    side = FIELD * FINER
    fields = []
    for font in FONTS:
        for inside in np.split(_render(font, side), 10, axis=1):
            distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
            points = distance.reshape(FIELD, FINER, FIELD, FINER).mean(axis=(1, 3))
            fields.append(points / FINER)
    return np.array(fields, np.float32)


def _render(font, side):
    """Draw the ten digits of a font side by side: bool (side, 10 · side), True where there is ink.

    Each stands in the middle of its own square.
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
        place = place.scale(HEIGHT * POINTS_A_PIXEL * side / FIELD / box.height)
        place = place.translate((digit + 0.5) * side, 0.5 * side)
        figure.add_artist(PathPatch(outline, transform=place, facecolor="black", linewidth=0))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., 0] < 128


def _draw_cached(count, seed, split, threads=None):
    """Return what `draw` returns, from a file in the cache folder if there is a sound one."""
    _check(count, seed, split)
    folder = cache_folder() / "glyphs"
    path = folder / f"v{VERSION}-{split}-seed{seed}-{count}.npz"
    found = _read_cached(path, count)
    if found:
        return found
    images, labels = draw(count, seed, split, threads)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="new-") as temporary:
            np.savez(os.path.join(temporary, path.name), images=images, labels=labels)
            os.replace(os.path.join(temporary, path.name), path)
    except OSError as error:
        warnings.warn(
            f"glyphs: {folder} cannot keep the images for the next time ({error}); "
            "name a folder that can with MINIRES_CACHE=FOLDER in the environment",
            RuntimeWarning,
            stacklevel=3,
        )
    return images, labels


def _read_cached(path, count):
    """Return images and labels from a file, or None when it is missing or not as expected."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    # A damaged archive can raise many exceptions, and the remedy is always to make it anew.
    except Exception:
        return None
    sound = images.shape == (count, SIZE, SIZE, 1) and images.dtype == np.uint8
    sound = sound and labels.shape == (count,) and labels.dtype == np.int64
    return (images, labels) if sound else None


def _check(count, seed, split):
    for what, value, least in (("count", count, 1), ("seed", seed, 0)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(f"glyphs: {what} must be a whole number ≥ {least}, not {value!r}")
    if split not in SPLITS:
        raise ValueError(f"glyphs: split must be one of {', '.join(SPLITS)}, not {split!r}")
