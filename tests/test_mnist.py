"""The MNIST reader: it returns what the file says, or one clear ValueError, never anything else."""

import contextlib
import gzip
import re
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minires import data as data_tools
from minires.data import mnist


def idx(array):
    """Write an IDX file of bytes, packed or not, the way its description says."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def digits(count, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(count, 28, 28), dtype=np.uint8)
    return images, rng.integers(10, size=count, dtype=np.uint8)


def write_four(folder, train=6, test=4, suffix=".gz"):
    """Write a small data set in the format of MNIST; return its arrays in the order of FILES."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [*digits(train, 1), *digits(test, 2)]
    for name, array in zip(mnist.FILES, arrays, strict=True):
        content = idx(array)
        (folder / f"{name}{suffix}").write_bytes(
            gzip.compress(content, mtime=0) if suffix == ".gz" else content
        )
    return arrays


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch, request):
    """No data folder (but for a test that asks for it), an empty cache, no network."""
    if "data_dir" not in request.fixturenames:
        monkeypatch.delenv("MINIRES_DATA", raising=False)
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/",))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """One path to write to again and again."""
    return tmp_path_factory.mktemp("idx") / "file"


# Reading one file


@given(count=st.integers(1, 5), seed=st.integers(0, 99), packed=st.booleans())
def test_what_was_written_is_read(file, count, seed, packed):
    images, labels = digits(count, seed)
    pack = gzip.compress if packed else bytes
    file.write_bytes(pack(idx(images)))
    found = mnist.read_images(file)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, images[..., None])
    file.write_bytes(pack(idx(labels)))
    found = mnist.read_labels(file)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, labels)


@given(share=st.floats(0, 1, exclude_max=True), packed=st.booleans(), labels=st.booleans())
def test_any_truncation_is_a_clear_error(file, share, packed, labels):
    content = idx(digits(3)[labels])
    content = gzip.compress(content, mtime=0) if packed else content
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=re.escape(f"{file}: ")):
        (mnist.read_labels if labels else mnist.read_images)(file)


@given(data=st.data(), labels=st.booleans(), flip=st.integers(1, 255))
def test_any_changed_byte_of_the_header_is_a_clear_error(file, data, labels, flip):
    array = digits(3)[labels]
    content = bytearray(idx(array))
    place = data.draw(st.integers(0, 4 + 4 * array.ndim - 1), label="place")
    content[place] ^= flip
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{file}: ")):
        (mnist.read_labels if labels else mnist.read_images)(file)


@given(data=st.data(), flip=st.integers(1, 255))
def test_a_changed_byte_of_a_packed_file_is_noticed_or_harmless(file, data, flip):
    """Gzip's own header has bytes without meaning here (a date, a name); the rest is checked."""
    images = digits(2)[0]
    content = bytearray(gzip.compress(idx(images), mtime=0))
    content[data.draw(st.integers(0, len(content) - 1), label="place")] ^= flip
    file.write_bytes(content)
    with contextlib.suppress(ValueError):
        np.testing.assert_array_equal(mnist.read_images(file), images[..., None])


@given(content=st.binary(max_size=200), packed=st.booleans())
def test_arbitrary_bytes_are_a_clear_error(file, content, packed):
    # 18 bytes that form a whole file of labels would be right to read.
    assume(content[:4] != bytes([0, 0, 8, 1]))
    file.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    with pytest.raises(ValueError, match=re.escape(f"{file}: ")):
        mnist.read_labels(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html>", "starts with the bytes 3c 21 44 4f"),
        (idx(digits(2)[1]), "with 3 dimension"),
        (idx(digits(2)[0])[:12], "ends within its header, after 12 bytes"),
        (idx(digits(2)[0])[:-1], "holds 1567 bytes after its header, which promises 1568"),
        (idx(digits(2)[0]) + b"\0", "holds more than the 1568 bytes"),
        (idx(np.zeros((0, 28, 28))), "promises 0 × 28 × 28 = 0 bytes"),
        (idx(np.zeros((2, 32, 32))), "images are 32 × 32 pixels, not 28 × 28"),
        (gzip.compress(idx(digits(2)[0]))[:-1], "cannot be unpacked"),
        # Ten bytes of gzip's header, then a block of the type 3, which does not exist.
        (gzip.compress(b"", mtime=0)[:10] + b"\x07" * 20, "cannot be unpacked (Error -3"),
    ],
)
def test_an_error_says_what_is_wrong(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        mnist.read_images(tmp_path / "file")


def test_a_label_out_of_range_is_named(tmp_path):
    (tmp_path / "file").write_bytes(idx(np.array([0, 9, 10, 11])))
    with pytest.raises(ValueError, match="label 2 is 10, not 0 to 9"):
        mnist.read_labels(tmp_path / "file")


def test_a_file_that_unpacks_to_far_more_than_it_promises_is_not_unpacked(tmp_path):
    content = gzip.compress(idx(digits(1)[0]) + bytes(1 << 27))
    (tmp_path / "bomb").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than the 784 bytes"):
        mnist.read_images(tmp_path / "bomb")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 << 20


def test_a_header_that_promises_too_much_is_refused_before_anything_is_read(tmp_path):
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 28, 28)
    (tmp_path / "file").write_bytes(header)
    with pytest.raises(ValueError, match=r"3367254359280 bytes, and 1 to 1073741824 are allowed"):
        mnist.read_images(tmp_path / "file")


# Finding and loading all four


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("inner", ["", "mnist"])
@pytest.mark.parametrize("how", ["argument", "environment", "cache"])
def test_the_files_are_found_where_they_are_promised_to_be(
    tmp_path, monkeypatch, suffix, inner, how
):
    folder = tmp_path / "cache" if how == "cache" else tmp_path / "data"
    arrays = write_four(folder / ("mnist" if how == "cache" else inner), suffix=suffix)
    if how == "environment":
        monkeypatch.setenv("MINIRES_DATA", str(folder))
    data = data_tools.load("mnist", data_dir=folder if how == "argument" else None)
    np.testing.assert_array_equal(data.train_images, arrays[0][..., None])
    np.testing.assert_array_equal(data.train_labels, arrays[1])
    np.testing.assert_array_equal(data.test_images, arrays[2][..., None])
    np.testing.assert_array_equal(data.test_labels, arrays[3])


def test_names_with_a_dot_are_found(tmp_path):
    write_four(tmp_path, suffix="")
    for path in tmp_path.glob("*-ubyte"):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(mnist.load(tmp_path).test_labels) == 4


def test_the_argument_comes_before_the_environment_and_that_before_the_cache(tmp_path, monkeypatch):
    for name, count in (("argument", 1), ("environment", 2), ("cache/mnist", 3)):
        write_four(tmp_path / name, train=count)
    assert len(mnist.load().train_labels) == 3
    monkeypatch.setenv("MINIRES_DATA", str(tmp_path / "environment"))
    assert len(mnist.load().train_labels) == 2
    assert len(mnist.load(tmp_path / "argument").train_labels) == 1


def test_a_named_folder_without_the_files_is_an_error_even_where_the_cache_has_them(
    tmp_path, monkeypatch
):
    write_four(tmp_path / "cache" / "mnist")
    empty = tmp_path / "empty"
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        mnist.load(empty)
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither .*empty .* nor .*mnist holds"):
        mnist.load(empty)
    # The environment variable may name a folder of other data.
    monkeypatch.setenv("MINIRES_DATA", str(empty))
    assert len(mnist.load().train_labels) == 6
    monkeypatch.setenv("MINIRES_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="MINIRES_DATA"):
        mnist.load()


def test_a_folder_that_lacks_one_file_says_which(tmp_path):
    write_four(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="lacks t10k-labels-idx1-ubyte"):
        mnist.load(tmp_path)


def test_counts_take_the_first_images(tmp_path):
    arrays = write_four(tmp_path)
    data = mnist.load(tmp_path, train=3, test=1)
    np.testing.assert_array_equal(data.train_images, arrays[0][:3, ..., None])
    np.testing.assert_array_equal(data.test_labels, arrays[3][:1])


@pytest.mark.parametrize("count", [0, -1, 7, 2.0, "3", True])
def test_a_count_that_cannot_be_had_is_refused(tmp_path, count):
    write_four(tmp_path)
    with pytest.raises(ValueError, match="training images"):
        mnist.load(tmp_path, train=count)


def test_images_and_labels_must_be_as_many(tmp_path):
    write_four(tmp_path, suffix="")
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(5)))
    with pytest.raises(ValueError, match=r"4 images but .*t10k-labels-idx1-ubyte 5 labels"):
        mnist.load(tmp_path)


def test_files_that_are_not_the_originals_are_read_and_named_so(tmp_path):
    write_four(tmp_path / "fashion")
    assert mnist.load(tmp_path / "fashion").name == "fashion (not the original MNIST)"


def test_the_script_that_fetches_refuses_other_data(tmp_path):
    write_four(tmp_path / "fashion")
    script = Path(__file__).parents[1] / "data_tools/fetch_mnist.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "fashion"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "fashion (not the original MNIST): the files are whole, but" in done.stderr
    assert done.stdout == ""


def test_the_original_files(data_dir):
    if not (data_dir / "mnist").is_dir():
        pytest.skip("the data folder has no mnist/")
    data = mnist.load(data_dir)
    assert data.name == "MNIST"
    assert data.train_images.shape == (60_000, 28, 28, 1)
    assert data.test_images.shape == (10_000, 28, 28, 1)
    # The class counts that are published with the data.
    np.testing.assert_array_equal(
        np.bincount(data.train_labels),
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    )
    np.testing.assert_array_equal(
        np.bincount(data.test_labels), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    )


def test_memory_follows_what_a_file_holds_rather_than_what_it_promises(tmp_path):
    """A header of 16 bytes that promises 1 GB."""
    for name, pack in (("plain", bytes), ("packed", gzip.compress)):
        path = tmp_path / name
        path.write_bytes(pack(struct.pack(">4I", 0x0803, 1 << 20, 28, 28) + bytes(784)))
        tracemalloc.start()
        with pytest.raises(ValueError, match="holds 784 bytes after its header"):
            mnist.read_images(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
        tracemalloc.stop()
