"""Glyph digits: the same images for the same seed, whatever else is asked for; a safe cache."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage

from minires import data as data_tools
from minires.data import glyphs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder for each test."""
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))
    return tmp_path


def test_images_and_labels_have_the_shapes_and_types_of_mnist():
    images, labels = glyphs.draw(501, seed=3)
    assert images.shape == (501, 28, 28, 1)
    assert images.dtype == np.uint8
    assert labels.shape == (501,)
    assert labels.dtype == np.int64
    assert set(labels) == set(range(10))


def test_an_image_does_not_depend_on_how_many_are_drawn():
    few, few_labels = glyphs.draw(7, seed=1)
    many, many_labels = glyphs.draw(glyphs.CHUNK + 1, seed=1)
    np.testing.assert_array_equal(few, many[:7])
    np.testing.assert_array_equal(few_labels, many_labels[:7])


def workers(monkeypatch):
    """A list that will hold the numbers of threads that were started."""
    started, start = [], glyphs.ThreadPoolExecutor

    def noting(max_workers):
        started.append(max_workers)
        return start(max_workers)

    monkeypatch.setattr(glyphs, "ThreadPoolExecutor", noting)
    return started


def test_as_many_threads_as_there_are_cores_for_this_process(monkeypatch):
    started = workers(monkeypatch)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    glyphs.draw(1)
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    glyphs.draw(1)
    assert started == [3, 64]


def test_images_do_not_depend_on_the_number_of_threads(monkeypatch):
    started = workers(monkeypatch)
    one, labels = glyphs.draw(1200, threads=1)
    three = data_tools.load("glyphs", train=1200, test=1, threads=3)
    np.testing.assert_array_equal(one, three.train_images)
    np.testing.assert_array_equal(labels, three.train_labels)
    assert started == [1, 3, 3]


def test_the_same_images_as_ever():
    """Whoever changes them raises VERSION, so that no cache holds others under the same name."""
    images, labels = glyphs.draw(1200, seed=7, split="test")
    assert glyphs.VERSION == 1
    # Another FreeType or another processor may round a pixel another way.
    assert images.sum(dtype=np.int64) == pytest.approx(44_863_697, rel=1e-5)
    assert labels.sum() == 5399


def test_no_two_images_are_equal_within_and_across_chunks_seeds_and_splits():
    drawn = [
        glyphs.draw(2 * glyphs.CHUNK, seed=0)[0],
        glyphs.draw(20, seed=1)[0],
        glyphs.draw(20, seed=0, split="test")[0],
    ]
    images = np.concatenate(drawn)
    assert len({image.tobytes() for image in images}) == len(images)


def test_every_seed_and_split_has_its_own_labels():
    streams = [glyphs.draw(200, seed, split)[1] for seed in (0, 1) for split in ("train", "test")]
    for first in range(4):
        for second in range(first):
            # 200 independent labels agree in about 20 places.
            assert np.sum(streams[first] == streams[second]) < 50


def test_labels_are_balanced():
    counts = np.bincount(glyphs.draw(5000)[1], minlength=10)
    # Each count has mean 500 and standard deviation √(5000 · 0.1 · 0.9) = 21.
    assert np.all(np.abs(counts - 500) < 5 * 21)


def test_pixels_resemble_those_of_mnist():
    """MNIST: mean 0.13, standard deviation 0.31, most pixels black, digits in the middle."""
    pixels = glyphs.draw(1000)[0][..., 0] / 255
    assert 0.1 < pixels.mean() < 0.2
    assert 0.2 < pixels.std() < 0.4
    average = pixels.mean(axis=0)
    border = np.concatenate([average[0], average[-1], average[:, 0], average[:, -1]])
    assert border.max() < 0.1 < average[9:19, 9:19].min()


def test_labels_tell_the_digits_apart():
    """The mean image of each digit recognises most test images: labels belong to their images."""
    images, labels = glyphs.draw(3000, split="train")
    means = np.array([images[labels == digit].mean(axis=0).ravel() for digit in range(10)])
    means -= means.mean(axis=1, keepdims=True)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    images, labels = glyphs.draw(1000, split="test")
    found = np.argmax(images.reshape(len(images), -1) @ means.T, axis=1)
    assert np.mean(found == labels) > 0.6


def test_a_label_is_the_digit_that_a_human_reads(monkeypatch):
    """Counted without distortion: 8 has two holes, 0, 4, 6 and 9 have one, the others none."""
    for name in ("SHIFT", "BEND", "ANGLE", "SLANT", "LOG_SIZE", "LOG_STRETCH", "FADE", "NOISE"):
        monkeypatch.setattr(glyphs, name, 0)
    monkeypatch.setattr(glyphs, "BOLDER", (-0.2, -0.2))
    images, labels = glyphs.draw(500)
    paper = np.pad(images[..., 0] < 128, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    holes = np.array([scipy.ndimage.label(each)[1] - 1 for each in paper])
    medians = [np.median(holes[labels == digit]) for digit in range(10)]
    assert medians == [1, 0, 0, 0, 1, 0, 1, 0, 2, 1]


def test_distance_fields_measure_the_distance_to_the_edge():
    """Moving by one point changes the distance by at most one; the outermost points are far."""
    fields = glyphs.distance_fields()
    assert fields.shape == (10 * len(glyphs.FONTS), glyphs.FIELD, glyphs.FIELD)
    # One dot more where ink and ground meet: the dots beside the edge count +1 and −1, never 0.
    step = 1 + 1 / glyphs.FINER + 1e-5
    assert np.abs(np.diff(fields, axis=1)).max() <= step
    assert np.abs(np.diff(fields, axis=2)).max() <= step
    assert fields.max(axis=(1, 2)).min() > 1
    assert fields[:, [0, -1]].max() < -5


def test_every_digit_is_as_high_as_promised():
    rows = (glyphs.distance_fields() > 0).any(axis=2)
    heights = rows.sum(axis=1)
    expected = glyphs.HEIGHT * glyphs.POINTS_A_PIXEL
    assert np.all(np.abs(heights - expected) <= 2)


def test_looking_up_between_points_is_exact_for_a_plane():
    """Bilinear interpolation reproduces a linear function, here in pixels from the centre."""
    axis = (np.arange(glyphs.FIELD) - (glyphs.FIELD - 1) / 2) / glyphs.POINTS_A_PIXEL
    plane = 3 * axis[:, None] - 2 * axis[None, :]
    fields = np.array([np.zeros_like(plane), plane], np.float32)
    rng = np.random.default_rng(0)
    row, column = rng.uniform(-14, 14, (2, 1, 28, 28)).astype(np.float32)
    found = glyphs._look_up(fields, np.array([1]), row, column)
    expected = (3 * row - 2 * column) / glyphs.POINTS_A_PIXEL
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_smooth_curves_have_the_variance_of_their_numbers():
    curve = glyphs._smooth_curve()
    np.testing.assert_allclose((curve**2).sum(axis=1), 1, rtol=1e-6)


def test_the_cache_gives_back_what_was_drawn(cache, monkeypatch):
    first = glyphs.load(train=30, test=20, seed=5)
    assert len(list((cache / "glyphs").glob("*.npz"))) == 2
    assert len(list((cache / "glyphs").iterdir())) == 2, "something half-written was left"

    monkeypatch.setattr(glyphs, "draw", lambda *_: pytest.fail("drawn again, not read"))
    second = glyphs.load(train=30, test=20, seed=5)
    np.testing.assert_array_equal(first.train_images, second.train_images)
    np.testing.assert_array_equal(first.train_labels, second.train_labels)
    np.testing.assert_array_equal(first.test_images, second.test_images)
    np.testing.assert_array_equal(first.test_labels, second.test_labels)


def test_another_count_seed_split_or_version_is_another_file(cache, monkeypatch):
    glyphs.load(train=10, test=10, seed=0)
    glyphs.load(train=11, test=10, seed=0)
    glyphs.load(train=10, test=10, seed=1)
    monkeypatch.setattr(glyphs, "VERSION", glyphs.VERSION + 1)
    glyphs.load(train=10, test=10, seed=0)
    assert len(list((cache / "glyphs").iterdir())) == 2 + 1 + 2 + 2


def test_a_damaged_cache_is_made_again(cache):
    images, labels = glyphs._draw_cached(8, 0, "train")
    (path,) = (cache / "glyphs").iterdir()
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", b"PK\x03\x04", sound[:-1], sound[: len(sound) // 2], sound[100:]]
    for place in rng.integers(len(sound), size=40):
        damaged.append(sound[:place] + bytes([sound[place] ^ 0xFF]) + sound[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        again, again_labels = glyphs._draw_cached(8, 0, "train")
        np.testing.assert_array_equal(again, images)
        np.testing.assert_array_equal(again_labels, labels)


def test_a_cached_file_with_other_arrays_is_made_again(cache):
    images, _ = glyphs._draw_cached(8, 0, "train")
    (path,) = (cache / "glyphs").iterdir()
    np.savez(path, images=images[:7], labels=np.zeros(7, np.int64))
    assert len(glyphs._draw_cached(8, 0, "train")[0]) == 8
    np.savez(path, images=np.array([{}], dtype=object), labels=np.zeros(8, np.int64))
    assert len(glyphs._draw_cached(8, 0, "train")[0]) == 8


def test_a_cache_that_cannot_be_written_is_a_warning_that_says_what_to_do(cache, monkeypatch):
    (cache / "file").write_text("a file, not a folder")
    monkeypatch.setenv("MINIRES_CACHE", str(cache / "file"))
    with pytest.warns(RuntimeWarning, match="MINIRES_CACHE"):
        images, _ = glyphs._draw_cached(8, 0, "train")
    np.testing.assert_array_equal(images, glyphs.draw(8)[0])


@pytest.mark.parametrize("count", [0, -1, 2.5, "5", None, True])
def test_a_bad_count_is_refused(count):
    with pytest.raises(ValueError, match="count must be a whole number ≥ 1"):
        glyphs.draw(count)


@pytest.mark.parametrize("seed", [-1, 0.5, None, "a", False])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be a whole number ≥ 0"):
        glyphs.load(10, 10, seed)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, test, not 'validation'"):
        glyphs.draw(1, split="validation")


def test_the_one_face_loads_glyphs():
    data = data_tools.load("glyphs", train=12, test=8, seed=2)
    np.testing.assert_array_equal(data.train_images, glyphs.draw(12, 2)[0])
    np.testing.assert_array_equal(data.test_labels, glyphs.draw(8, 2, "test")[1])
    assert "seed 2" in data.name


def test_the_one_face_refuses_what_means_nothing():
    with pytest.raises(ValueError, match="no data set is called 'cifar'; there are glyphs, mnist"):
        data_tools.load("cifar")
    with pytest.raises(ValueError, match="glyphs are made, not read"):
        data_tools.load("glyphs", data_dir="somewhere")


def test_scale_maps_grey_levels_to_minus_one_and_one_exactly():
    scaled = data_tools.scale(np.arange(256, dtype=np.uint8))
    assert scaled.dtype == np.float32
    assert scaled[0] == -1
    assert scaled[255] == 1
    np.testing.assert_allclose(scaled, np.linspace(-1, 1, 256), atol=1e-7)


def test_drawn_data_need_no_downloader(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.delenv("MINIRES_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_tools.cache_folder() == tmp_path / "minires"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_tools.cache_folder() == Path.home() / ".cache" / "minires"


def test_importing_the_data_imports_nothing_heavy():
    heavy = {"matplotlib", "scipy", "pooch", "requests", "tqdm"}
    code = (
        "import sys; from minires.data import glyphs, mnist; "
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
